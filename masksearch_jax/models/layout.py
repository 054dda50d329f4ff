"""Where a model's weights lie on a mesh."""

import jax
from jax.sharding import Mesh, NamedSharding
from jax.tree_util import KeyPath

from masksearch_jax.models.parameters import PARAMETERS, whole_axes
from masksearch_jax.models.transformer import Transformer
from masksearch_jax.parallel import sharding
from masksearch_jax.parallel.sharding import RULES, MeshError, PyTree


def parameter_shardings(mesh: Mesh, model: Transformer, *, whole: bool = False) -> PyTree:
    """A tree like `model` (arrays or shapes) of where each parameter lies; `whole`: not shared.

    Raises MeshError naming an axis that the mesh does not divide.
    """
    for heads in ("num_heads", "num_kv_heads"):
        ways, count = sharding.ways(mesh, RULES["heads"]), getattr(model.config, heads)
        if count % ways:
            raise MeshError(
                f"model.{heads} {count} does not divide over {ways} devices (mesh "
                f"{dict(mesh.shape)}, heads are split by {RULES['heads']})"
            )

    def place(path: KeyPath, leaf: jax.Array | jax.ShapeDtypeStruct) -> NamedSharding:
        name = sharding.parameter_name(path)
        if name not in PARAMETERS:
            raise MeshError(f"parameter {name!r} has no sharding rule; known: {sorted(PARAMETERS)}")
        axes = whole_axes(name) if whole else PARAMETERS[name]
        return sharding.fitting(mesh, axes, leaf.shape, name)

    return jax.tree_util.tree_map_with_path(place, model)


def shard_parameters(mesh: Mesh, model: Transformer) -> Transformer:
    """The model with its parameters laid out over the mesh."""
    return jax.device_put(model, parameter_shardings(mesh, model))

"""The names of our weights, the logical axes of each, and where they so lie on a mesh."""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax
from jax.sharding import Mesh, NamedSharding
from jax.tree_util import KeyPath

from masksearch_jax.parallel import sharding
from masksearch_jax.parallel.sharding import RULES, SHARED, MeshError, PyTree

if TYPE_CHECKING:
    from masksearch_jax.models.transformer import Transformer  # which knows this module

# Logical axes of every parameter, by its path in the model.
PARAMETERS: dict[str, tuple[str, ...]] = {
    "embedding": ("vocab", "model"),
    "head": ("vocab", "model"),
    "norm": ("norm",),
    "blocks.attention_norm": ("layers", "norm"),
    "blocks.q": ("layers", "model", "heads"),
    "blocks.k": ("layers", "model", "kv_heads"),
    "blocks.v": ("layers", "model", "kv_heads"),
    "blocks.q_bias": ("layers", "heads"),
    "blocks.k_bias": ("layers", "kv_heads"),
    "blocks.v_bias": ("layers", "kv_heads"),
    "blocks.q_norm": ("layers", "norm"),
    "blocks.k_norm": ("layers", "norm"),
    "blocks.o": ("layers", "heads", "model"),
    "blocks.mlp_norm": ("layers", "norm"),
    "blocks.gate": ("layers", "model", "hidden"),
    "blocks.up": ("layers", "model", "hidden"),
    "blocks.down": ("layers", "hidden", "model"),
}
# An adapter's A is split as its matrix's inputs, B as its outputs.
PARAMETERS |= {
    f"blocks.adapters.{name}_{half}": axes
    for name in ("q", "k", "v", "o", "gate", "up", "down")
    for half, axes in (
        ("a", (*PARAMETERS[f"blocks.{name}"][:2], "rank")),
        ("b", ("layers", "rank", PARAMETERS[f"blocks.{name}"][2])),
    )
}


def whole_axes(name: str) -> tuple[str, ...]:
    """Logical axes of a parameter of that name that no devices share."""
    return tuple("any" if axis == SHARED else axis for axis in PARAMETERS[name])


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

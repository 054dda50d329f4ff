"""Where arrays lie: a mesh of three axes, a table of rules, the crossings to and from the host.

Mesh axes: `data` (whole replicas), `fsdp` (replicas that share the weights), `tensor` (heads,
hidden units and vocabulary split). Axis types are Auto: the compiler places what the rules leave
open.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from masksearch_jax.config import MeshConfig

Tree = TypeVar("Tree")

AXES = ("data", "fsdp", "tensor")

# Logical axis -> mesh axes that split it. What is not listed is not split.
RULES: dict[str, str | tuple[str, ...]] = {
    "batch": ("data", "fsdp"),
    "model": "fsdp",
    "heads": "tensor",
    "kv_heads": "tensor",
    "hidden": "tensor",
    "vocab": "tensor",
}

# Logical axes of every parameter, by its path in the model.
PARAMETERS: dict[str, tuple[str, ...]] = {
    "embedding": ("vocab", "model"),
    "head": ("vocab", "model"),
    "norm": ("norm",),
    "blocks.attention_norm": ("layers", "norm"),
    "blocks.q": ("layers", "model", "heads", "head_dim"),
    "blocks.k": ("layers", "model", "kv_heads", "head_dim"),
    "blocks.v": ("layers", "model", "kv_heads", "head_dim"),
    "blocks.q_bias": ("layers", "heads", "head_dim"),
    "blocks.k_bias": ("layers", "kv_heads", "head_dim"),
    "blocks.v_bias": ("layers", "kv_heads", "head_dim"),
    "blocks.q_norm": ("layers", "norm"),
    "blocks.k_norm": ("layers", "norm"),
    "blocks.o": ("layers", "heads", "head_dim", "model"),
    "blocks.mlp_norm": ("layers", "norm"),
    "blocks.gate": ("layers", "model", "hidden"),
    "blocks.up": ("layers", "model", "hidden"),
    "blocks.down": ("layers", "hidden", "model"),
}

# Both halves of a KV cache: k [L, B, K, D, S] and v [L, B, K, S, D].
CACHE = ("layers", "batch", "kv_heads", "any", "any")





class MeshError(ValueError):
    """A mesh that does not fit the devices, the model or the batch."""


def make_mesh(config: MeshConfig, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """The mesh of all devices (or of `devices`); one axis of -1 takes what is left.

    Raises MeshError when the sizes do not multiply to the number of devices.
    """
    devices = jax.devices() if devices is None else devices
    sizes = [getattr(config, axis) for axis in AXES]
    asked = ", ".join(f"{axis}={size}" for axis, size in zip(AXES, sizes, strict=True))
    if sizes.count(-1) > 1 or any(size < 1 and size != -1 for size in sizes):
        raise MeshError(f"mesh {asked}: sizes are positive, and at most one is -1")
    known = math.prod(size for size in sizes if size != -1)
    if len(devices) % known or (-1 not in sizes and known != len(devices)):
        raise MeshError(f"mesh {asked} does not divide {len(devices)} devices; one axis may be -1")
    shape = tuple(len(devices) // known if size == -1 else size for size in sizes)
    return jax.make_mesh(shape, AXES, axis_types=(AxisType.Auto,) * len(AXES), devices=devices)


def spec(*logical: str) -> PartitionSpec:
    """The mesh axes of an array with these logical axes."""
    return PartitionSpec(*(RULES.get(axis) for axis in logical))


def parameter_name(path: tuple[Any, ...]) -> str:
    """`blocks.q` of a parameter's pytree path: attribute names without the trailing `value`."""
    names = [key.name for key in path]
    return ".".join(names[:-1] if names[-1] == "value" else names)


def parameter_sharding(mesh: Mesh, path: tuple[Any, ...], shape: tuple[int, ...]) -> NamedSharding:
    """Where one parameter lies. Raises MeshError naming an axis that the mesh does not divide."""
    name = parameter_name(path)
    if name not in PARAMETERS:
        raise MeshError(f"parameter {name!r} has no sharding rule; known: {sorted(PARAMETERS)}")
    return _fitting(mesh, PARAMETERS[name], shape, name)


def parameter_shardings(mesh: Mesh, model: Tree) -> Tree:
    """A tree like `model` (arrays or shapes) of each parameter's sharding."""
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: parameter_sharding(mesh, path, leaf.shape), model
    )


def shard_parameters(mesh: Mesh, model: Tree) -> Tree:
    """The model with its parameters laid out over the mesh."""
    return jax.device_put(model, parameter_shardings(mesh, model))


def shard_cache(mesh: Mesh, cache: Tree) -> Tree:
    """A KV cache laid out over the mesh: slots as a batch, kv heads over `tensor`."""
    return jax.tree.map(
        lambda leaf: jax.device_put(leaf, _fitting(mesh, CACHE, leaf.shape, "KV cache")), cache
    )


def shard_batch(mesh: Mesh, batch: Tree, axis: int = 0) -> Tree:
    """Global arrays of a host batch, rows along `axis`; every process brings its own rows.

    Raises MeshError when the rows of all processes do not divide over `data` and `fsdp`.
    """

    def put(rows: np.ndarray) -> jax.Array:
        shape = list(rows.shape)
        shape[axis] *= jax.process_count()
        logical = ("any",) * axis + ("batch",) + ("any",) * (rows.ndim - axis - 1)
        sharding = _fitting(mesh, logical, tuple(shape), "batch")
        return jax.make_array_from_process_local_data(sharding, rows, tuple(shape))

    return jax.tree.map(put, batch)


def replicate(mesh: Mesh, tree: Tree) -> Tree:
    """The tree with a whole copy of each leaf on every device."""
    return jax.device_put(tree, NamedSharding(mesh, PartitionSpec()))


def to_host(tree: Tree) -> Tree:
    """The tree as whole numpy arrays; gathers what other processes hold, so all must call it."""

    def fetch(leaf: jax.Array) -> np.ndarray:
        if getattr(leaf, "is_fully_addressable", True):
            return np.asarray(jax.device_get(leaf))
        return np.asarray(multihost_utils.process_allgather(leaf, tiled=True))

    return jax.tree.map(fetch, tree)


def constrain(x: jax.Array, *logical: str) -> jax.Array:
    """x laid out by its logical axes where a mesh is in force (`jax.set_mesh`); x itself elsewhere.

    An axis that the mesh does not divide is left to the compiler.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return x
    pairs = zip(spec(*logical), x.shape, strict=True)
    kept = (axes if size % _ways(mesh, axes) == 0 else None for axes, size in pairs)
    return jax.lax.with_sharding_constraint(x, PartitionSpec(*kept))


def _ways(mesh: Any, axes: str | tuple[str, ...] | None) -> int:
    """Into how many parts these mesh axes split an array's axis."""
    names = (axes,) if isinstance(axes, str) else axes or ()
    return math.prod(mesh.shape[name] for name in names)


def _fitting(
    mesh: Mesh, logical: tuple[str, ...], shape: tuple[int, ...], what: str
) -> NamedSharding:
    partition = spec(*logical)
    for axis, axes, size in zip(logical, partition, shape, strict=True):
        if size % _ways(mesh, axes):
            raise MeshError(
                f"{what}: {axis} of {size} does not divide over {_ways(mesh, axes)} devices "
                f"(mesh {dict(mesh.shape)}, {axis} is split by {axes})"
            )
    return NamedSharding(mesh, partition)

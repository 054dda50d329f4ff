"""Where arrays lie: a mesh of four axes, a table of rules, the crossings to and from the host.

Mesh axes: `data` (whole replicas), `fsdp` (replicas that share the weights), `context` (the time
of packed rows split, in training; these share the weights too), `tensor` (heads, hidden units and
vocabulary split). Axis types are Auto: the compiler places what the rules leave open.
"""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias, TypeVar

import jax
import numpy as np
from jax.experimental import mesh_utils, multihost_utils
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec
from jax.tree_util import KeyPath

from masksearch_jax.core.config import MeshConfig
from masksearch_jax.runtime.process import name_devices

# Arrays, or their shapes, in any nest of containers and modules: a model's weights, an optimizer's
# state, a batch. `Tree` where what comes out is built as what went in.
PyTree: TypeAlias = Any
Tree = TypeVar("Tree")

AXES = ("data", "fsdp", "context", "tensor")
REPLICAS = "data"

# Logical axis -> mesh axes that split it. What is not listed is not split.
RULES: dict[str, str | tuple[str, ...]] = {
    "batch": ("data", "fsdp"),
    "time": "context",
    "model": ("fsdp", "context"),
    "heads": "tensor",
    "kv_heads": "tensor",
    "hidden": "tensor",
    "vocab": "tensor",
}

SHARED = "model"  # the logical axis along which devices share parameters

# A KV cache: k [L, N, P, K, D, S], v [L, N, P, K, S, D], their scales [L, N, P, K, S].
CACHE = ("layers", "batch", "any", "kv_heads", "any", "any")


# The TPU compiler would make loops of products with weights that devices share, to gather these by
# pieces: for a 7B on 32 chips of v6e the loops' sums move five times as much in HBM as all else.
_NO_LOOPS = "--xla_jf_spmd_threshold_for_windowed_einsum_mib=1000000"


def libtpu_args(own: str | None) -> str:
    """LIBTPU_INIT_ARGS of one's own, with that unless they name it or are there and empty."""
    if own is None:
        return _NO_LOOPS
    told = not own or _NO_LOOPS.split("=")[0] in own
    return own if told else f"{own} {_NO_LOOPS}"


def set_libtpu_args() -> None:
    """Sets LIBTPU_INIT_ARGS; call before JAX first looks for TPUs, or compiles for some."""
    os.environ["LIBTPU_INIT_ARGS"] = libtpu_args(os.environ.get("LIBTPU_INIT_ARGS"))


class MeshError(ValueError):
    """A mesh that does not fit the devices, the model or the batch."""


def split_cpu(count: int) -> None:
    """Makes `count` devices of the CPU, each with a thread of its own, unless JAX has begun."""
    with contextlib.suppress(RuntimeError):
        jax.config.update("jax_num_cpu_devices", count)


def make_mesh(config: MeshConfig, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """The mesh of all devices (or of `devices`); one axis of -1 takes what is left.

    Devices of several slices are split along `data` first: only gradients cross between slices.
    Raises MeshError when the sizes do not multiply to the number of devices.
    """
    set_libtpu_args()
    devices = jax.devices() if devices is None else devices
    name_devices(devices[0].device_kind, len(devices))
    sizes = [getattr(config, axis) for axis in AXES]
    asked = ", ".join(f"{axis}={size}" for axis, size in zip(AXES, sizes, strict=True))
    if sizes.count(-1) > 1 or any(size < 1 and size != -1 for size in sizes):
        raise MeshError(f"mesh {asked}: sizes are positive, and at most one is -1")
    known = math.prod(size for size in sizes if size != -1)
    if len(devices) % known or (-1 not in sizes and known != len(devices)):
        raise MeshError(f"mesh {asked} does not divide {len(devices)} devices; one axis may be -1")
    shape = tuple(len(devices) // known if size == -1 else size for size in sizes)
    types = (AxisType.Auto,) * len(AXES)
    slices = len({getattr(device, "slice_index", 0) for device in devices})
    if slices == 1:
        grid = mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)
        return Mesh(grid, AXES, axis_types=types)
    if shape[0] % slices:
        raise MeshError(f"mesh {asked}: data of {shape[0]} does not divide over {slices} slices")
    within, between = (shape[0] // slices, *shape[1:]), (slices, 1, 1, 1)
    grid = mesh_utils.create_hybrid_device_mesh(
        within, between, devices, allow_split_physical_axes=True
    )
    return Mesh(grid, AXES, axis_types=types)


def spec(*logical: str) -> PartitionSpec:
    """The mesh axes of an array with these logical axes."""
    return PartitionSpec(*(RULES.get(axis) for axis in logical))


def parameter_name(path: KeyPath) -> str:
    """`blocks.q` of a parameter's pytree path: attribute names without the trailing `value`."""
    names = [key.name for key in path]
    return ".".join(names[:-1] if names[-1] == "value" else names)


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
    pairs = zip(_free(mesh, spec(*logical)), x.shape, strict=True)
    kept = (axes if size % ways(mesh, axes) == 0 else None for axes, size in pairs)
    return jax.lax.with_sharding_constraint(x, PartitionSpec(*kept))


def on_shards(
    function: Callable[..., Tree], inputs: Sequence[tuple[str, ...]], output: tuple[str, ...]
) -> Callable[..., Tree]:
    """`function` run by each device on its own shards alone, where a mesh in force splits them.

    `inputs` has the leading logical axes of each argument's leaves, `output` the result's; sizes
    and indices along the axes that the mesh splits are local then, the others as ever. For what
    the compiler cannot split by itself: slices at places that differ between shards, and kernels.
    """

    def call(*args: Tree) -> Tree:
        mesh = jax.sharding.get_abstract_mesh()
        specs = [_free(mesh, spec(*axes)) for axes in (*inputs, output)]
        if mesh.empty or mesh.size == 1 or not _is_divisible(mesh, specs, args):
            return function(*args)
        # A TPU kernel takes no axis that is left to the compiler; `context` splits nothing else.
        split = {RULES["time"]} & set(mesh.axis_names)
        split |= {name for s in specs for axes in s for name in _names(axes)}
        mapped = jax.shard_map(
            function,
            in_specs=tuple(specs[:-1]),
            out_specs=specs[-1],
            axis_names=split,
            check_vma=False,
        )
        return mapped(*args)

    return call


def _is_divisible(mesh: AbstractMesh, specs: Sequence[PartitionSpec], args: Sequence[Tree]) -> bool:
    return all(
        size % ways(mesh, axes) == 0
        for partition, arg in zip(specs, args, strict=False)
        for leaf in jax.tree.leaves(arg)
        for axes, size in zip(partition, leaf.shape, strict=False)
    )


def bytes_on_device(tree: PyTree) -> float:
    """Of the shards of a tree, of arrays or of shapes with shardings, that one device holds."""
    return float(
        sum(
            math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize
            for x in jax.tree.leaves(tree)
        )
    )


def replicas() -> int:
    """How many replicas, of weights that devices may share, the mesh in force has."""
    return jax.sharding.get_abstract_mesh().shape.get(REPLICAS, 1)


def batch_shards(mesh: Mesh | None) -> int:
    """Into how many shards the mesh splits a batch; 1 without a mesh."""
    return 1 if mesh is None or mesh.empty else ways(mesh, RULES["batch"])


def context_shards(mesh: Mesh | AbstractMesh, time: int) -> int:
    """Into how many shards the mesh splits rows of `time` tokens, each in two pieces.

    Raises MeshError for rows that cannot be cut so.
    """
    count = mesh.shape.get(RULES["time"], 1)
    if count > 1 and time % (2 * count):
        raise MeshError(
            f"rows of {time} tokens do not divide over mesh.context {count}, in two pieces on "
            f"each device: choose a length that is a multiple of {2 * count}"
        )
    return count


def ways(mesh: Mesh | AbstractMesh, axes: str | tuple[str, ...] | None) -> int:
    """Into how many shards these mesh axes split an array's axis."""
    return math.prod(mesh.shape[name] for name in _names(axes))


def _names(axes: str | tuple[str, ...] | None) -> tuple[str, ...]:
    return (axes,) if isinstance(axes, str) else axes or ()


def _free(mesh: Mesh | AbstractMesh, partition: PartitionSpec) -> PartitionSpec:
    """The partition without the mesh axes along which each device already runs by itself."""

    def kept(axes: str | tuple[str, ...] | None) -> tuple[str, ...] | None:
        return tuple(name for name in _names(axes) if name not in mesh.manual_axes) or None

    return PartitionSpec(*map(kept, partition))


def fitting(
    mesh: Mesh | AbstractMesh, logical: tuple[str, ...], shape: tuple[int, ...], what: str
) -> NamedSharding:
    """Where an array with these logical axes lies. Raises MeshError for an axis not divided."""
    partition = _free(mesh, spec(*logical))
    for axis, axes, size in zip(logical, partition, shape, strict=True):
        if size % ways(mesh, axes):
            raise MeshError(
                f"{what}: {axis} of {size} does not divide over {ways(mesh, axes)} devices "
                f"(mesh {dict(mesh.shape)}, {axis} is split by {axes})"
            )
    return NamedSharding(mesh, partition)

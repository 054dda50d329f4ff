"""Weights that devices share: gathered where they are used, their gradients summed where they lie.

Left to itself the TPU compiler sums some gradients on every device, of which each then keeps its
part: twice the bytes between chips, and for embedding and head a whole float32 table on each.

Axis key: B row, T time, I inputs, O outputs, M model, V vocabulary, G devices that share a weight.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator

import jax
import jax.numpy as jnp

from masksearch_jax.parallel import sharding

COLUMNS = ("any", sharding.SHARED)  # logical axes of a table for `sharding.on_shards`
_ROWS = ("batch", "time")
_TABLE_CHUNKS = 8
_ROUND = 4  # devices; the TPU compiler makes sums on all of larger groups, on some slices


def matmul(x: jax.Array, w: jax.Array, axis: int) -> jax.Array:
    """x [B, T, I] times w [I, O], of whose `axis` each device may have a shard."""
    product = functools.partial(_product, axis=axis)
    sizes = jax.sharding.get_abstract_mesh().shape
    if math.prod(sizes.get(name, 1) for name in sharding.RULES[sharding.SHARED]) == 1:
        return product(x, w)
    place = tuple(sharding.SHARED if i == axis else "any" for i in range(2))
    return sharding.on_shards(product, (_ROWS, place), _ROWS)(x, w)


@functools.partial(jax.custom_vjp, nondiff_argnames=("axis",))
def _product(x: jax.Array, w: jax.Array, axis: int) -> jax.Array:
    """JAX's own rule transposes w's gradient, a product that XLA's CPU backend then runs with both
    operands transposed, at half the speed.
    """
    return jnp.einsum("bti,io->bto", x, whole(w, axis))


def _forward(x: jax.Array, w: jax.Array, axis: int) -> tuple[jax.Array, tuple]:
    return _product(x, w, axis), (x, w)


def _backward(axis: int, kept: tuple, g: jax.Array) -> tuple[jax.Array, jax.Array]:
    x, w = kept
    of_x = jnp.einsum("bto,io->bti", g, whole(w, axis))
    if axis == 1 and _here():  # a product that has the axis to be scattered first in memory
        return of_x, own_sum(summed(g, x), 0).T
    return of_x, own_sum(summed(x, g), axis)


_product.defvjp(_forward, _backward)


def summed(x: jax.Array, g: jax.Array, dtype: jnp.dtype | None = None) -> jax.Array:
    """Σ x[B, T, I] g[B, T, O] as [I, O], by default in the operands' dtype.

    Over one axis: of two XLA's CPU backend makes one by a transposed copy of x.
    """
    x, g = (a.reshape(-1, a.shape[-1]) for a in (x, g))
    return jnp.einsum("ni,no->io", x, g, preferred_element_type=dtype)


def lookup(table: jax.Array, ids: jax.Array, dtype: jnp.dtype) -> jax.Array:
    """table[ids] in `dtype`: ids int[B, T] -> [B, T, M].

    Each device looks up its columns for all that share the table with it, and gets the others of
    its own ids from them.
    """

    def read(table: jax.Array, ids: jax.Array) -> jax.Array:
        axes = _here()
        if not axes:
            return table[ids].astype(dtype)
        found = table[jax.lax.all_gather(ids, axes)].astype(dtype)  # [G, B, T, M / G]
        return jax.lax.all_to_all(found, axes, split_axis=0, concat_axis=3, tiled=True)[0]

    return sharding.on_shards(read, (COLUMNS, _ROWS), _ROWS)(table, ids)


def whole(weight: jax.Array, axis: int) -> jax.Array:
    """All of a matrix whose `axis` is split where this runs, within `sharding.on_shards`."""
    axes = _here()
    return jax.lax.all_gather(weight, axes, axis=axis, tiled=True) if axes else weight


def own_sum(gradient: jax.Array, axis: int) -> jax.Array:
    """Sum over the devices that share a matrix of its gradient, this one's shard along `axis`."""
    axes = _here()
    if not axes:
        return gradient
    # Devices first: the TPU compiler scatters the outermost axis in memory alone, by whole tiles.
    count = jax.lax.axis_size(axes)
    split = gradient.reshape(*gradient.shape[:axis], count, -1, *gradient.shape[axis + 1 :])
    shards = jnp.moveaxis(split, axis, 0)
    for name in axes:
        for size, groups in _rounds(jax.lax.axis_size(name)):
            shards = shards.reshape(size, -1, *shards.shape[1:])
            shards = jax.lax.psum_scatter(shards, name, axis_index_groups=groups)
    return shards[0]


def own_sum_of_table(gradient: jax.Array) -> jax.Array:
    """`own_sum` of the columns of a table's gradient [V, M], some rows after the others.

    A TPU lays out what goes to each device in tiles of 128 columns, however few these are.
    """
    if not _here():
        return gradient
    rows = gradient.reshape(math.gcd(len(gradient), _TABLE_CHUNKS), -1, gradient.shape[1])
    return jax.lax.map(lambda chunk: own_sum(chunk, 1), rows).reshape(len(gradient), -1)


def _rounds(total: int) -> Iterator[tuple[int, list[list[int]] | None]]:
    """How a sum over so many devices in a row goes: over groups of a size, far apart ones first."""
    far, sizes = total, []
    while far > 2 * _ROUND and far % _ROUND == 0:
        far //= _ROUND
        sizes.append(_ROUND)
    apart = total
    for size in (far, *sizes):
        block, apart = apart, apart // size
        starts = (first + i for first in range(0, total, block) for i in range(apart))
        groups = [[start + i * apart for i in range(size)] for start in starts]
        yield size, groups if len(groups) > 1 else None


def _here() -> tuple[str, ...]:
    """The mesh axes that split a shared weight where each device runs by itself."""
    mesh = jax.sharding.get_abstract_mesh()
    axes = sharding.RULES[sharding.SHARED]
    return tuple(axis for axis in axes if axis in mesh.manual_axes and mesh.shape[axis] > 1)

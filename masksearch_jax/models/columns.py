"""The embedding and the head where devices share them by columns: [V, M] of which each has some.

Left to itself the compiler gives every device the whole table's gradient in float32, and sums these
over all of them: 4 GiB more to hold and to send of a 7B. Here each gets the sum of its own columns.

Axis key: B row, T time, M model, V vocabulary, G devices that share a table.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from masksearch_jax import sharding

PLACE = ("any", sharding.SHARED)  # logical axes of a table for `sharding.on_shards`


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

    rows = ("batch", "time")
    return sharding.on_shards(read, (PLACE, rows), rows)(table, ids)


def whole(table: jax.Array) -> jax.Array:
    """All columns [V, M] of a table that is split where this runs, within `sharding.on_shards`."""
    axes = _here()
    return jax.lax.all_gather(table, axes, axis=1, tiled=True) if axes else table


def own_sum(gradient: jax.Array) -> jax.Array:
    """Sum over the devices that share a table of its gradient [V, M], this one's columns of it."""
    axes = _here()
    if not axes:
        return gradient
    # The TPU compiler scatters no columns that are not whole tiles: it would sum all everywhere.
    parts = gradient.reshape(len(gradient), jax.lax.axis_size(axes), -1)
    return jax.lax.psum_scatter(jnp.moveaxis(parts, 1, 0), axes, scatter_dimension=0)


def _here() -> tuple[str, ...]:
    """The mesh axes that split a table where each device runs by itself."""
    mesh = jax.sharding.get_abstract_mesh()
    axes = sharding.RULES[sharding.SHARED]
    return tuple(axis for axis in axes if axis in mesh.manual_axes and mesh.shape[axis] > 1)

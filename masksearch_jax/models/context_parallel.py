"""Rows longer than a device should hold: their time split over the mesh axis `context`.

Axis key: B batch row, T time of whole rows, P shards that time is split into.

A row is cut into 2P pieces, and device i has pieces i and 2P-1-i (as Llama 3 was trained, arXiv
2407.21783, section 3.3.2): each then has the same share of causal attention's work, where the last
of contiguous shards would have almost twice the mean. Only the decoder's inside is laid out so: ids
are taken in that order, and hidden states put back in order once. Attention gathers the keys and
values of a row, with grouped queries much the smaller part; the backward pass scatters their
gradients.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from masksearch_jax.parallel import sharding

AXIS = "context"


def shards(time: int) -> int:
    """Shards into which the mesh in force splits rows of `time` tokens; MeshError if it cannot."""
    return sharding.context_shards(jax.sharding.get_abstract_mesh(), time)


def order(time: int, count: int) -> np.ndarray:
    """int32[T]: the times of all devices, one device after the other."""
    pieces = np.arange(time, dtype=np.int32).reshape(2 * count, -1)
    held = [(i, 2 * count - 1 - i) for i in range(count)]
    return pieces[np.asarray(held).reshape(-1)].reshape(-1)


def in_shards(x: jax.Array) -> jax.Array:
    """x[B, T], whole on every device, laid out over the devices.

    Raises MeshError for a B or T that the mesh does not divide.
    """
    count = shards(x.shape[1])
    if count == 1:
        return x
    sharding.fitting(jax.sharding.get_abstract_mesh(), ("batch", "time"), x.shape, "batch")
    return sharding.constrain(x[:, order(x.shape[1], count)], "batch", "time")


def in_order(x: jax.Array) -> jax.Array:
    """x[B, T, M] laid out over the devices with its times in order, each device with as many."""
    count = shards(x.shape[1])
    if count == 1:
        return x

    def swap(x: jax.Array) -> jax.Array:
        # In order device i has pieces 2i and 2i + 1. Each piece travels with those of its parity.
        home = [min(c, 2 * count - 1 - c) for c in range(2 * count)]  # of piece c, until now
        low, high = jnp.split(x, 2, axis=1)
        even = jax.lax.axis_index(AXIS) % 2 == 0  # its low piece's number, the other is odd
        of_even, of_odd = jnp.where(even, low, high), jnp.where(even, high, low)
        there = (
            [(home[2 * i], i) for i in range(count)],
            [(home[2 * i + 1], i) for i in range(count)],
        )
        moved = (
            jax.lax.ppermute(a, AXIS, to) for a, to in zip((of_even, of_odd), there, strict=True)
        )
        return jnp.concatenate(list(moved), axis=1)

    axes = ("batch", "time")
    return sharding.on_shards(swap, (axes,), axes)(x)


def whole(x: jax.Array) -> jax.Array:
    """All times [B, T, ...] in order, of this device's; x itself where time is not split."""
    count = _split_here()
    if count == 1:
        return x
    gathered = jax.lax.all_gather(x, AXIS, axis=1, tiled=True)
    pieces = gathered.reshape(len(x), 2 * count, -1, *x.shape[2:])
    back = np.argsort(order(2 * count, count))
    return pieces[:, back].reshape(gathered.shape)


def times(time: int) -> jax.Array:
    """int32[T / P]: the times that this device has; all of them where time is not split."""
    count = _split_here()
    if count == 1:
        return jnp.arange(time, dtype=jnp.int32)
    return jnp.asarray(order(time, count)).reshape(count, -1)[jax.lax.axis_index(AXIS)]


def _split_here() -> int:
    mesh = jax.sharding.get_abstract_mesh()
    return mesh.shape[AXIS] if AXIS in mesh.manual_axes else 1

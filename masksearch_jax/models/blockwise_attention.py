"""Attention of packed rows that holds the scores of one pair of blocks at a time.

The algorithms 1 and 2 of FlashAttention 2 (Dao 2023, arXiv 2307.08691), in XLA's own loops: any
device runs them. A block of queries meets the key blocks from the first that holds a segment of it,
in any row of the batch, to its own. So a row packed from several texts costs less than one text as
long, and most is saved with one row to a micro-batch. Scores are of one pair of blocks, of all rows
and heads. There is no forward mode and no second derivative.

Axis key: B batch row, T query time, S key time, H heads = K·G, K kv heads, G query heads per kv
head, D head dim, N query blocks, X = G times the tokens of a block.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from masksearch_jax.models.remat import keep

BLOCK = 256  # tokens, at most: the scores of a pair of blocks stay in a core's cache
_LOW = float(jnp.finfo(jnp.float32).min)
_LAST = jnp.iinfo(jnp.int32).max  # padding's segment, where blocks are compared


class Inputs(NamedTuple):
    """Queries q[B, T, H, D] of `segments`[B, T] at `times`[T]; k and v[B, S, K, D] of times 0 to
    S - 1, of `key_segments`[B, S].
    """

    q: jax.Array
    k: jax.Array
    v: jax.Array
    segments: jax.Array
    times: jax.Array
    key_segments: jax.Array


class _Queries(NamedTuple):
    """What a block of queries has, [N, ...] for all of them."""

    q: jax.Array  # [B, K, X, D]
    segments: jax.Array  # [B, T]
    times: jax.Array  # [T]
    first: jax.Array  # the first key block that any of the queries may see
    end: jax.Array  # one after the last


@jax.custom_vjp
def attend(inputs: Inputs) -> jax.Array:
    """Each query over the keys of its segment that are not later -> [B, T, H, D]."""
    return _forward(inputs)[0]


def _forward(inputs: Inputs) -> tuple[jax.Array, tuple]:
    out, log_total = map(keep, forward_blocks(inputs))
    return out, (inputs, out, log_total)


def _backward(kept: tuple, g: jax.Array) -> tuple[Inputs]:
    return (Inputs(*backward_blocks(*kept, g), None, None, None),)


attend.defvjp(_forward, _backward)


@jax.jit
def forward_blocks(inputs: Inputs) -> tuple[jax.Array, jax.Array]:
    """`attend`, and the logarithm of each query's sum of exponentials [N, B, K, X, 1]."""
    q, k, v = inputs[:3]
    shape = q.shape
    queries, key_segments, keys = _blocks(inputs)
    k, v = _keys(k, keys), _keys(v, keys)

    def of_block(x: _Queries) -> tuple[jax.Array, jax.Array]:
        def add(j: jax.Array, so_far: tuple) -> tuple:
            top, total, out = so_far
            scores = _scores(x, _cut(k, j, keys), key_segments, j)
            higher = jnp.maximum(top, jnp.max(scores, axis=-1, keepdims=True))
            exp, less = jnp.exp(scores - higher), jnp.exp(top - higher)
            total = total * less + jnp.sum(exp, axis=-1, keepdims=True)
            seen = _product("bkxs,bksd->bkxd", exp.astype(v.dtype), _cut(v, j, keys))
            return higher, total, out * less + seen

        rows = x.q.shape[:3]
        start = jnp.full((*rows, 1), _LOW), jnp.zeros((*rows, 1)), jnp.zeros(x.q.shape)
        top, total, out = jax.lax.fori_loop(x.first, x.end, add, start)
        return (out / total).astype(q.dtype), top + jnp.log(total)

    out, log_total = jax.lax.map(of_block, queries)
    return _whole(out, shape), log_total


@jax.jit
def backward_blocks(
    inputs: Inputs, out: jax.Array, log_total: jax.Array, g: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The gradients of q, k and v; the weights are computed again."""
    q, k, v = inputs[:3]
    shape, kv_heads, dtypes = q.shape, k.shape[2], (k.dtype, v.dtype)
    mean = jnp.sum(g.astype(jnp.float32) * out.astype(jnp.float32), axis=-1, keepdims=True)
    queries, key_segments, keys = _blocks(inputs)
    count = len(queries.times)
    # What fills the last block up are copies of the last query; they have no gradient.
    g, mean = (_split_queries(x, kv_heads, count, "constant") for x in (g, mean))
    length, k, v = k.shape[1], _keys(k, keys), _keys(v, keys)

    def of_block(sums: tuple, xs: tuple) -> tuple:
        x, g, mean, log_total = xs

        def add(j: jax.Array, so_far: tuple) -> tuple:
            of_q, of_k, of_v = so_far
            block = _cut(k, j, keys)
            weights = jnp.exp(_scores(x, block, key_segments, j) - log_total)
            slope = _product("bkxd,bksd->bkxs", g, _cut(v, j, keys))
            slope = (weights * (slope - mean) * q.shape[3] ** -0.5).astype(q.dtype)
            of_q += _product("bkxs,bksd->bkxd", slope, block)
            of_k = _add(of_k, _product("bkxs,bkxd->bksd", slope, x.q), j)
            of_v = _add(of_v, _product("bkxs,bkxd->bksd", weights.astype(q.dtype), g), j)
            return of_q, of_k, of_v

        of_q, *sums = jax.lax.fori_loop(x.first, x.end, add, (jnp.zeros(x.q.shape), *sums))
        return tuple(sums), of_q

    start = jnp.zeros(k.shape), jnp.zeros(v.shape)
    sums, of_q = jax.lax.scan(of_block, start, (queries, g, mean, log_total))
    of_k, of_v = (
        x.swapaxes(1, 2)[:, :length].astype(dtype) for x, dtype in zip(sums, dtypes, strict=True)
    )
    return _whole(of_q, shape).astype(q.dtype), of_k, of_v


def _blocks(inputs: Inputs) -> tuple[_Queries, jax.Array, int]:
    """All blocks of queries; the keys' segments, in whole blocks; the tokens of a key block."""
    q, k, _, segments, times, key_segments = inputs
    count, key_count = _count(q.shape[1]), _count(key_segments.shape[1])
    # What fills a last block up is of the last token's segment: keys later than any query.
    key_segments = _fill(key_segments, key_count)
    keys = key_segments.shape[1] // key_count
    times = _fill(times[None], count)[0].reshape(count, -1)
    segments = _fill(segments, count).reshape(len(segments), count, -1)
    of_keys = key_segments.reshape(len(key_segments), key_count, keys)
    low, high = _range(segments)
    key_low, key_high = _range(of_keys)
    meet = (low[:, :, None] <= key_high[:, None]) & (key_low[:, None] <= high[:, :, None])
    return (
        _Queries(
            _split_queries(q, k.shape[2], count),
            segments.swapaxes(0, 1),
            times,
            jnp.argmax(jnp.any(meet, axis=0), axis=1).astype(jnp.int32),
            (jnp.max(times, axis=1) // keys + 1).astype(jnp.int32),
        ),
        key_segments,
        keys,
    )


def _count(time: int) -> int:
    return -(-time // BLOCK)


def _fill(x: jax.Array, count: int, mode: str = "edge") -> jax.Array:
    """x[B, T, ...] with its last entry, or 0, at the end, so that `count` blocks are as long."""
    more = -x.shape[1] % count
    return jnp.pad(x, [(0, 0), (0, more)] + [(0, 0)] * (x.ndim - 2), mode=mode)


def _range(segments: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The least and the highest segment of each block of [B, N, T]; padding comes last."""
    ordered = jnp.where(segments > 0, segments, _LAST)
    return jnp.min(ordered, axis=2), jnp.max(ordered, axis=2)


def _split_queries(x: jax.Array, kv_heads: int, count: int, mode: str = "edge") -> jax.Array:
    """x[B, T, H, D] as [N, B, K, X, D]; the last block is filled up."""
    x = _fill(x, count, mode)
    batch, time, heads, dim = x.shape
    x = x.reshape(batch, count, time // count, kv_heads, heads // kv_heads, dim)
    return x.transpose(1, 0, 3, 4, 2, 5).reshape(count, batch, kv_heads, -1, dim)


def _whole(x: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """x[N, B, K, X, D] as [B, T, H, D], which is `shape`."""
    batch, time, heads, dim = shape
    count, _, kv_heads = x.shape[:3]
    x = x.reshape(count, batch, kv_heads, heads // kv_heads, -1, dim)
    return x.transpose(1, 0, 4, 2, 3, 5).reshape(batch, -1, heads, dim)[:, :time]


def _keys(x: jax.Array, block: int) -> jax.Array:
    """x[B, S, K, D] as [B, K, S, D] of whole blocks."""
    return jnp.pad(x, [(0, 0), (0, -x.shape[1] % block), (0, 0), (0, 0)]).swapaxes(1, 2)


def _cut(x: jax.Array, j: jax.Array, size: int) -> jax.Array:
    return jax.lax.dynamic_slice_in_dim(x, j * size, size, axis=2)


def _add(x: jax.Array, more: jax.Array, j: jax.Array) -> jax.Array:
    size = more.shape[2]
    return jax.lax.dynamic_update_slice_in_dim(x, _cut(x, j, size) + more, j * size, axis=2)


def _product(equation: str, a: jax.Array, b: jax.Array) -> jax.Array:
    return jnp.einsum(equation, a, b, preferred_element_type=jnp.float32)


def _scores(x: _Queries, keys: jax.Array, key_segments: jax.Array, j: jax.Array) -> jax.Array:
    """Scaled scores [B, K, X, S] of a block of queries and key block j; the least float where a
    query does not see a key.
    """
    size = keys.shape[2]
    scores = _product("bkxd,bksd->bkxs", x.q, keys) * x.q.shape[-1] ** -0.5
    own = jax.lax.dynamic_slice_in_dim(key_segments, j * size, size, axis=1)
    seen = (x.segments[:, :, None] == own[:, None]) & (
        x.times[:, None] >= j * size + jnp.arange(size)
    )
    split = scores.reshape(*scores.shape[:2], -1, len(x.times), size)
    # A finite score does not move the least float, and a sum is faster than a choice.
    return (split + jnp.where(seen, 0.0, _LOW)[:, None, None]).reshape(scores.shape)

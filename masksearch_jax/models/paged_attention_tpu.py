"""A TPU kernel: attention of one token per row over the pages of a KV cache that the row has.

Axis key: B row, K kv heads, X query heads of a kv head, D head dim, L layers, N shards, P pages of
a shard, S tokens of a page, W pages of a row. An item is up to BLOCK tokens of one row: what is
copied from HBM and attended to at a time, the next one's copy under way.
"""

from __future__ import annotations

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from etils import epy
from jax.experimental import pallas as pl

from masksearch_jax.models.attention import AttentionError
from masksearch_jax.models.kv_cache import KVCache

with epy.lazy_imports():  # it takes a third of a second, and most runs do without
    from jax.experimental.pallas import tpu as pltpu

BLOCK = 512  # tokens
LANES = 128
_LEAST = float(jnp.finfo(jnp.float32).min)


class Partial(NamedTuple):
    """Attention over some of the keys, float32: Σ e^(s-top)·v, the highest score s, Σ e^(s-top)."""

    out: jax.Array  # [B, K, X, D]
    top: jax.Array  # [B, K, X]
    total: jax.Array  # [B, K, X]


def merge(a: Partial, b: Partial) -> Partial:
    """Attention over the keys of both; a part without keys has total 0 and the least top."""
    top = jnp.maximum(a.top, b.top)
    shares = jnp.exp(a.top - top), jnp.exp(b.top - top)
    out = a.out * shares[0][..., None] + b.out * shares[1][..., None]
    return Partial(out, top, a.total * shares[0] + b.total * shares[1])


def check_sizes(head_dim: int, page_tokens: int) -> None:
    """Raises AttentionError for sizes that are no multiples of a TPU's lanes."""
    for name, size in (("model.head_dim", head_dim), ("rollout.page_tokens", page_tokens)):
        if size % LANES:
            raise AttentionError(
                f"rollout.attention pallas takes a {name} that is a multiple of {LANES}, got {size}"
                "; choose another, or rollout.attention xla"
            )


class _Items(NamedTuple):
    """Scalars that say which item is which; int32."""

    layer: jax.Array  # [1]
    first: jax.Array  # [B + 1], a row's first item; the last: how many there are
    row: jax.Array  # [items at most]
    table: jax.Array  # [B·W]
    length: jax.Array  # [B]


def _items(layer: jax.Array, table: jax.Array, length: jax.Array, tokens: int, page: int) -> _Items:
    """`tokens` of each item at most; table[B, W]."""
    blocks = (length + tokens - 1) // tokens
    first = jnp.concatenate([jnp.zeros(1, jnp.int32), jnp.cumsum(blocks, dtype=jnp.int32)])
    most = len(table) * math.ceil(table.shape[1] * page / tokens)
    row = jnp.searchsorted(first[1:], jnp.arange(most), side="right").astype(jnp.int32)
    return _Items(layer.reshape(1).astype(jnp.int32), first, row, table.reshape(-1), length)


def attend(
    q: jax.Array, cache: KVCache, layer: jax.Array, table: jax.Array, length: jax.Array
) -> Partial:
    """Attention of q[B, K, X, D] over the first length[B] tokens of each row's pages.

    Rows are shard by shard, table int[N, B/N, W]. Reads a row's used pages and no other. Raises
    AttentionError for sizes that the kernel does not take.
    """
    rows, width = table.shape[1:]
    page, dim = cache.page_tokens, q.shape[-1]
    check_sizes(dim, page)
    pages = max(1, min(width, BLOCK // page))
    items = _items(layer, table.reshape(-1, width), length, pages * page, page)
    leaves = [leaf for leaf in cache if leaf is not None]
    read = 2 * len(q) * width * math.prod(cache.k.shape[3:]) * cache.k.dtype.itemsize
    mine = lambda *tail: pl.BlockSpec((1, *tail), lambda b, *_: (b, *(0,) * len(tail)))  # noqa: E731
    heads, sizes = q.shape[1:3], (dim, LANES, LANES)
    out, top, total = pl.pallas_call(
        functools.partial(_kernel, width=width, rows=rows),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=len(items),
            grid=(len(q),),
            in_specs=[mine(*heads, dim), *[pl.BlockSpec(memory_space=pl.ANY)] * len(leaves)],
            out_specs=[mine(*heads, size) for size in sizes],
            scratch_shapes=[
                pltpu.SemaphoreType.DMA((2,)),
                *(pltpu.VMEM((2, pages, *leaf.shape[3:]), leaf.dtype) for leaf in leaves),
            ],
        ),
        out_shape=[jax.ShapeDtypeStruct((*q.shape[:3], s), jnp.float32) for s in sizes],
        compiler_params=pltpu.CompilerParams(dimension_semantics=("arbitrary",)),
        cost_estimate=pl.CostEstimate(
            flops=4 * q.size * width * page,
            transcendentals=q.size // dim * width * page,
            bytes_accessed=read + q.size * (q.dtype.itemsize + 4),
        ),
        name="paged_attention",
    )(*items, q, *leaves)
    return Partial(out, top[..., 0], total[..., 0])


def _kernel(*refs: Any, width: int, rows: int) -> None:
    """One row: its items, each copied while the one before it is attended to."""
    items, (q, *refs) = _Items(*refs[: len(_Items._fields)]), refs[len(_Items._fields) :]
    leaves = (len(refs) - 4) // 2
    stored, results, buffers = refs[:leaves], refs[leaves : leaves + 3], refs[leaves + 4 :]
    copy = functools.partial(_copy, items, stored, buffers, refs[leaves + 3], width, rows)
    pages, page = buffers[1].shape[1], buffers[1].shape[3]
    b = pl.program_id(0)
    last = items.first[pl.num_programs(0)]

    @pl.when((b == 0) & (last > 0))
    def _() -> None:
        copy(jnp.int32(0), "start")

    for result, start in zip(results, (0.0, _LEAST, 0.0), strict=True):
        result[...] = jnp.full_like(result, start)

    def attend_to(item: jax.Array, _: None) -> None:
        @pl.when(item + 1 < last)
        def _() -> None:
            copy(item + 1, "start")

        copy(item, "wait")
        start = (item - items.first[b]) * (pages * page)
        for c in range(pages):
            for head in range(q.shape[1]):
                held = [buffer.at[item % 2, c, head] for buffer in buffers]
                left = items.length[b] - start - c * page
                _fold(q[0, head], held, left, *(x.at[0, head] for x in results))

    jax.lax.fori_loop(items.first[b], items.first[b + 1], attend_to, None)


def _copy(
    items: _Items,
    stored: list[Any],
    buffers: list[Any],
    arrived: Any,
    width: int,
    rows: int,
    item: jax.Array,
    act: str,
) -> None:
    """Starts or awaits the copies of an item's pages, of those that the row uses."""
    pages, page = buffers[1].shape[1], buffers[1].shape[3]
    row = items.row[item]
    start = (item - items.first[row]) * pages
    for c in range(pages):

        @pl.when((start + c) * page < items.length[row])
        def _(c: int = c) -> None:
            index = items.table[row * width + start + c]
            for src, dst in zip(stored, buffers, strict=True):
                page_of = src.at[items.layer[0], row // rows, index]
                to = dst.at[item % 2, c]
                getattr(pltpu.make_async_copy(page_of, to, arrived.at[item % 2]), act)()


def _fold(q: jax.Array, held: list[Any], left: jax.Array, out: Any, top: Any, total: Any) -> None:
    """Adds a page's keys to out[X, D], top and total [X, LANES]; its first `left` tokens count.

    held: k[D, S], v[S, D] and, in int8, their scales [S]. What no copy has written may be NaN.
    """
    k, v, *scales = (ref[...] for ref in held)
    scores = jnp.dot(q, k.astype(q.dtype), preferred_element_type=jnp.float32)
    if scales:
        scores = scores * scales[0][None]
    written = jax.lax.broadcasted_iota(jnp.int32, scores.shape, 1) < left
    scores = jnp.where(written, scores * q.shape[-1] ** -0.5, _LEAST)
    old = top[...]
    new = jnp.maximum(old, jnp.max(scores, axis=1, keepdims=True))
    weights, shrink = jnp.exp(scores - new[:, :1]), jnp.exp(old - new)
    weights = jnp.where(written, weights, 0.0)
    top[...] = new
    total[...] = total[...] * shrink + jnp.sum(weights, axis=1, keepdims=True)
    if scales:
        weights = jnp.where(written, weights * scales[1][None], 0.0)
    v = jnp.where(jax.lax.broadcasted_iota(jnp.int32, v.shape, 0) < left, v.astype(q.dtype), 0)
    seen = jnp.dot(weights.astype(q.dtype), v, preferred_element_type=jnp.float32)
    out[...] = out[...] * shrink[:, :1] + seen

"""Attention over what a paged KV cache holds: in XLA, or by the kernel of the device.

Axis key: B row, T query time, S key time, H heads, K kv heads, X query heads of a kv head times T,
D head dim, L layers, N shards, W pages of a row.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from masksearch_jax.models import attention, paged_attention_gpu, paged_attention_tpu
from masksearch_jax.models.kv_cache import Fresh, KVCache
from masksearch_jax.models.paged_attention_tpu import Partial
from masksearch_jax.parallel import sharding

SCORES = 2**22  # attention scores at a time of a chunk: 16 MiB in float32


def _attend(
    q: jax.Array,
    cache: KVCache,
    layer: jax.Array,
    shard: jax.Array,
    table: jax.Array,
    length: jax.Array,
) -> Callable[[Partial], Partial]:
    """Folds attention of q[B, K, X, D] over the pages of its rows, page by page.

    shard int[B], table int[B, W]; times below length[B] count, and no page past the longest is
    read. A page past a row's length changes no bit of its result.
    """
    page = cache.page_tokens
    dim = q.shape[-1]

    def fold(number: jax.Array, partial: Partial) -> Partial:
        index = jax.lax.dynamic_index_in_dim(table, number, axis=1, keepdims=False)
        pages = jax.tree.map(
            lambda leaf: leaf.at[layer, shard, index].get(mode="promise_in_bounds"), cache
        )
        written = number * page + jnp.arange(page) < length[:, None]
        k, v = pages.k.astype(q.dtype), pages.v.astype(q.dtype)
        scores = jnp.einsum("bkxd,bkds->bkxs", q, k, preferred_element_type=jnp.float32)
        if pages.k_scale is not None:
            scores = scores * pages.k_scale[:, :, None]
        return _fold(partial, scores * dim**-0.5, written[:, None, None], v, pages.v_scale)

    used = jnp.max((length + page - 1) // page)
    return lambda partial: jax.lax.fori_loop(0, used, fold, partial)


def _begin(q: jax.Array, k: jax.Array, v: jax.Array, allowed: jax.Array) -> Partial:
    """Attention of q[B, K, X, D] over fresh k and v [B, K, S, D] alone, those allowed[X, S]."""
    dim = q.shape[-1]
    scores = jnp.einsum("bkxd,bksd->bkxs", q, k, preferred_element_type=jnp.float32)
    none = jnp.full(q.shape[:3], jnp.finfo(jnp.float32).min)
    empty = Partial(jnp.zeros(q.shape, jnp.float32), none, jnp.zeros_like(none))
    return _fold(empty, scores * dim**-0.5, allowed[None, None], v, None)


def _fold(
    old: Partial, scores: jax.Array, allowed: jax.Array, v: jax.Array, v_scale: jax.Array | None
) -> Partial:
    """Attention over more keys: scores[B, K, X, S], where `allowed` is, and v[B, K, S, D]."""
    scores = jnp.where(allowed, scores, jnp.finfo(jnp.float32).min)
    top = jnp.maximum(old.top, jnp.max(scores, axis=-1))
    weights, shrink = jnp.exp(scores - top[..., None]), jnp.exp(old.top - top)
    total = old.total * shrink + jnp.sum(weights, axis=-1)
    if v_scale is not None:
        weights = weights * v_scale[:, :, None]
    out = jnp.einsum(
        "bkxs,bksd->bkxd", weights.astype(v.dtype), v, preferred_element_type=jnp.float32
    )
    return Partial(old.out * shrink[..., None] + out, top, total)


def _end(partial: Partial, dtype: jnp.dtype) -> jax.Array:
    return (partial.out / partial.total[..., None]).astype(dtype)


def reader(choice: str, platform: str, head_dim: int, page_tokens: int) -> str:
    """`xla` or `pallas` of a choice that may be `auto`: the kernel if there is one for these."""
    kernels = {"tpu": paged_attention_tpu.check_sizes, "gpu": paged_attention_gpu.check_sizes}
    if choice != "auto":
        return choice
    try:
        kernels[platform](head_dim, page_tokens)
    except (KeyError, attention.AttentionError):
        return "xla"
    return "pallas"


def decode_attention(
    q: jax.Array,
    cache: KVCache,
    fresh: Fresh,
    layer: jax.Array,
    step: jax.Array,
    table: jax.Array,
    length: jax.Array,
    backend: str = "xla",
) -> jax.Array:
    """Attention of one token per row, q[B, H, D], over one layer -> [B, H, D].

    Rows are shard by shard, table int[N, B/N, W]. Of the cache, times below length[B] count; of
    the layer's fresh tokens [B, K, T, D], those up to `step`.
    """
    backend = reader(backend, jax.default_backend(), q.shape[-1], cache.page_tokens)

    def attend(q, cache, k, v, layer, step, table, length):
        grouped = attention.group(q[:, None], k.shape[1])
        if backend == "pallas" and jax.default_backend() == "gpu":
            now = paged_attention_gpu.attend(
                grouped, cache, Fresh(k, v), layer, step, table, length
            )
            return attention.ungroup(now, 1)[:, 0]
        allowed = jnp.arange(k.shape[2])[None] <= step
        now = _begin(grouped, k.astype(q.dtype), v.astype(q.dtype), allowed)
        if backend == "pallas":
            before = paged_attention_tpu.attend(grouped, cache, layer, table, length)
            now = paged_attention_tpu.merge(before, now)
        else:
            now = _attend(grouped, cache, layer, *_rows_of(table), length)(now)
        return attention.ungroup(_end(now, q.dtype), 1)[:, 0]

    heads, kv, own = ("batch", "heads"), ("batch", "kv_heads"), ("batch",)
    run = sharding.on_shards(attend, (heads, sharding.CACHE[:4], kv, kv, (), (), own, own), heads)
    return run(q, cache, *fresh, layer, step, table, length)


def _rows_of(table: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Shard int[B] and table int[B, W] of each row of table[N, B/N, W]."""
    shards, rows, width = table.shape
    return jnp.repeat(jnp.arange(shards), rows), table.reshape(-1, width)


def extend_attention(
    q: jax.Array,
    cache: KVCache,
    fresh: Fresh,
    layer: jax.Array,
    table: jax.Array,
    length: jax.Array,
) -> jax.Array:
    """Causal attention of a chunk, q[B, T, H, D] and one layer of fresh [B, K, T, D], after its
    row's first length[B] times in the cache -> [B, T, H, D].

    Rows are shard by shard, table int[N, B/N, W]. One row at a time, and no more of its queries
    at once than SCORES allows: the scores of all would outgrow the cache.
    """
    time, heads = q.shape[1:3]
    block = max(1, min(time, SCORES // (heads * (cache.page_tokens + time))))

    def attend(q, cache, k, v, layer, table, length):
        q = jnp.pad(q, [(0, 0), (0, -time % block), (0, 0), (0, 0)])
        q = q.reshape(len(q), -1, block, *q.shape[2:])
        blocks = q.shape[1]
        shard, table = _rows_of(table)

        def one(unit: jax.Array) -> jax.Array:
            i, first = unit // blocks, unit % blocks * block
            allowed = first + jnp.arange(block)[:, None] >= jnp.arange(time)
            row = lambda a: jax.lax.dynamic_index_in_dim(a, i)  # noqa: E731
            grouped = attention.group(q[i, unit % blocks][None], k.shape[1])
            each = grouped.shape[2] // block
            now = _begin(grouped, row(k), row(v), jnp.tile(allowed, (each, 1)))
            rows = (row(a) for a in (shard, table, length))
            now = _attend(grouped, cache, layer, *rows)(now)
            return attention.ungroup(_end(now, q.dtype), block)[0]

        out = jax.lax.map(one, jnp.arange(len(q) * blocks))
        return out.reshape(len(q), -1, *out.shape[2:])[:, :time]

    heads, kv, own = ("batch", "any", "heads"), ("batch", "kv_heads"), ("batch",)
    run = sharding.on_shards(attend, (heads, sharding.CACHE[:4], kv, kv, (), own, own), heads)
    return run(q, cache, *fresh, layer, table, length)

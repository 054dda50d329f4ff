"""A GPU kernel: attention of one token per row over the pages of a KV cache that the row has.

Axis key: B row, K kv heads, X query heads of a kv head, D head dim, L layers, N shards, P pages of
a shard, S tokens of a page, W pages of a row, C parts of a row. A part is PART tokens: programs of
their own read the parts of a row at once, and which part a token is in depends on its time alone,
so that a row's result does not depend on who decodes with it.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from etils import epy
from jax.experimental import pallas as pl

with epy.lazy_imports():
    from jax.experimental.pallas import triton as plgpu

PART, WARPS, STAGES = 1024, 4, 2  # the fastest of those tried on an H200; PART in tokens
LEAST_ROWS = 16  # of a matrix that Triton multiplies
_LEAST = float(jnp.finfo(jnp.float32).min)


def check(head_dim: int, page_tokens: int) -> None:
    """Raises ValueError for sizes that Triton has no blocks of."""
    for name, size in (("model.head_dim", head_dim), ("rollout.page_tokens", page_tokens)):
        if size < LEAST_ROWS or size & (size - 1):
            raise ValueError(
                f"rollout.attention pallas takes on a GPU a {name} that is a power of two from "
                f"{LEAST_ROWS}, got {size}; choose another, or rollout.attention xla"
            )


def attend(
    q: jax.Array,
    cache: Any,
    fresh: Any,
    layer: jax.Array,
    step: jax.Array,
    table: jax.Array,
    length: jax.Array,
    *,
    interpret: bool = False,
) -> jax.Array:
    """Attention of q[B, K, X, D] over the first length[B] tokens of each row's pages and the fresh
    ones up to `step` -> [B, K, X, D].

    cache: a `kv_cache.KVCache`; fresh: one layer's keys and values [B, K, T, D]; rows are shard by
    shard, table int[N, B/N, W]. Reads a row's used pages and no other. Raises ValueError for sizes
    that the kernel does not take.
    """
    batch, kv_heads, heads, dim = q.shape
    rows, width = table.shape[1:]
    page = cache.page_tokens
    check(dim, page)
    pages = max(1, PART // page)
    parts = math.ceil(width / pages)
    padded = max(LEAST_ROWS, pl.next_power_of_2(heads))
    time = max(LEAST_ROWS, pl.next_power_of_2(fresh.k.shape[2]))
    late = [(0, 0), (0, 0), (0, time - fresh.k.shape[2]), (0, 0)]
    leaves = [leaf for leaf in cache if leaf is not None]
    whole = pl.BlockSpec(memory_space=pl.ANY)
    own = lambda *tail: pl.BlockSpec((None, None, *tail), lambda b, k, c: (b, k, 0, 0))  # noqa: E731
    shape = functools.partial(jax.ShapeDtypeStruct, dtype=jnp.float32)
    out, top, total = pl.pallas_call(
        functools.partial(_kernel, rows=rows, pages=pages, padded=padded),
        grid=(batch, kv_heads, parts),
        in_specs=[
            *[whole] * 4,
            *[own(time, dim)] * 2,
            *[whole] * len(leaves),
        ],
        out_specs=[whole] * 3,
        out_shape=[
            shape((batch, kv_heads, parts, heads, dim)),
            *[shape((batch, kv_heads, parts, heads))] * 2,
        ],
        compiler_params=plgpu.CompilerParams(num_warps=WARPS, num_stages=STAGES),
        interpret=interpret,
        name="paged_attention",
    )(
        jnp.stack([layer, step]).astype(jnp.int32),
        table.reshape(batch, width),
        length,
        q,
        *(jnp.pad(x, late).astype(q.dtype) for x in fresh),
        *leaves,
    )
    highest = jnp.max(top, axis=2)
    shares = jnp.exp(top - highest[:, :, None])
    seen = jnp.sum(out * shares[..., None], axis=2) / jnp.sum(total * shares, axis=2)[..., None]
    return seen.astype(q.dtype)


def _kernel(
    at: Any,
    table: Any,
    length: Any,
    q: Any,
    k_now: Any,
    v_now: Any,
    *refs: Any,
    rows,
    pages,
    padded,
) -> None:
    """One part of one row and kv head; the first has the fresh tokens too."""
    leaves, results = refs[:-3], refs[-3:]
    b, head, part = (pl.program_id(axis) for axis in range(3))
    page, dim = leaves[1].shape[4:]
    all_heads, left = pl.ds(0, padded), length[b]
    real = jnp.arange(padded, dtype=jnp.int32) < q.shape[2]
    query = plgpu.load(q.at[b, head, all_heads], mask=real[:, None], other=0.0)

    def add(held: tuple, scores: jax.Array, allowed: jax.Array, v: jax.Array, scale: Any) -> tuple:
        out, top, total = held
        scores = jnp.where(allowed[None], scores * dim**-0.5, _LEAST)
        new = jnp.maximum(top, jnp.max(scores, axis=1))
        weights, shrink = jnp.exp(scores - new[:, None]), jnp.exp(top - new)
        total = total * shrink + jnp.sum(weights, axis=1)
        weights = weights if scale is None else weights * scale[None]
        seen = plgpu.dot(weights.astype(query.dtype), v.astype(query.dtype))
        return out * shrink[:, None] + seen, new, total

    def of_cache(i: jax.Array, held: tuple) -> tuple:
        page_of = (at[0], b // rows, table[b, i], head)
        k, v, *scales = (leaf[page_of] for leaf in leaves)
        scores = plgpu.dot(query, k.astype(query.dtype))
        k_scale, v_scale = scales or (None, None)
        scores = scores if k_scale is None else scores * k_scale[None]
        written = i * page + jnp.arange(page, dtype=jnp.int32) < left
        return add(held, scores, written, v, v_scale)

    def of_fresh(_: jax.Array, held: tuple) -> tuple:
        scores = plgpu.dot(query, k_now[...].T)
        allowed = jnp.arange(k_now.shape[0], dtype=jnp.int32) <= at[1]
        return add(held, scores, allowed, v_now[...], None)

    held = (
        jnp.zeros((padded, dim), jnp.float32),
        jnp.full((padded,), _LEAST, jnp.float32),
        jnp.zeros((padded,), jnp.float32),
    )
    held = jax.lax.fori_loop(0, 1 - jnp.minimum(part, 1), of_fresh, held)
    last = jnp.minimum((part + 1) * pages, (left + page - 1) // page)
    held = jax.lax.fori_loop(part * pages, last, of_cache, held)
    for result, value in zip(results, held, strict=True):
        mask = real.reshape(-1, *(1,) * (value.ndim - 1))
        plgpu.store(result.at[b, head, part, all_heads], value, mask=mask)

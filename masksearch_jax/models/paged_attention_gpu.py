"""A GPU kernel: attention of one token per row over the pages of a KV cache that the row has.

Axis key: B row, K kv heads, X query heads of a kv head, D head dim, L layers, N shards, P pages of
a shard, S tokens of a page, W pages of a row, C chunks of a row. A chunk is CHUNK tokens:
programs of their own read the chunks of a row at once, and which chunk a token is in depends on its
time alone, so that a row's result does not depend on who decodes with it.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from etils import epy
from jax.experimental import pallas as pl

from masksearch_jax.models.attention import AttentionError
from masksearch_jax.models.kv_cache import Fresh, KVCache

with epy.lazy_imports():
    from jax.experimental.pallas import triton as plgpu

CHUNK, WARPS, STAGES = 1024, 4, 2  # the fastest of those tried on an H200; CHUNK in tokens
LEAST_ROWS = 16  # of a matrix that Triton multiplies
_LEAST = float(jnp.finfo(jnp.float32).min)


def check_sizes(head_dim: int, page_tokens: int) -> None:
    """Raises AttentionError for sizes that Triton has no blocks of."""
    for name, size in (("model.head_dim", head_dim), ("rollout.page_tokens", page_tokens)):
        if size < LEAST_ROWS or size & (size - 1):
            raise AttentionError(
                f"rollout.attention pallas takes on a GPU a {name} that is a power of two from "
                f"{LEAST_ROWS}, got {size}; choose another, or rollout.attention xla"
            )


def attend(
    q: jax.Array,
    cache: KVCache,
    fresh: Fresh,
    layer: jax.Array,
    step: jax.Array,
    table: jax.Array,
    length: jax.Array,
    *,
    interpret: bool = False,
) -> jax.Array:
    """Attention of q[B, K, X, D] over the first length[B] tokens of each row's pages and the fresh
    ones up to `step` -> [B, K, X, D].

    fresh: one layer's keys and values [B, K, T, D]. Rows are shard by shard, table int[N, B/N, W].
    Reads a row's used pages and no other.

    Raises AttentionError for sizes that the kernel does not take.
    """
    check_sizes(q.shape[-1], cache.page_tokens)
    size = max(LEAST_ROWS, pl.next_power_of_2(fresh.k.shape[2]))
    more = [(0, 0), (0, 0), (0, size - fresh.k.shape[2]), (0, 0)]
    out, top, total = _parts(
        jnp.stack([layer, step]).astype(jnp.int32),
        table,
        length,
        q,
        [jnp.pad(x, more).astype(q.dtype) for x in fresh],
        [leaf for leaf in cache if leaf is not None],
        interpret,
    )
    highest = jnp.max(top, axis=2)
    shares = jnp.exp(top - highest[:, :, None])
    seen = jnp.sum(out * shares[..., None], axis=2) / jnp.sum(total * shares, axis=2)[..., None]
    return seen.astype(q.dtype)


def _parts(
    at: jax.Array,
    table: jax.Array,
    length: jax.Array,
    q: jax.Array,
    fresh: list[jax.Array],
    leaves: list[jax.Array],
    interpret: bool,
) -> list[jax.Array]:
    """Of each chunk float32 Σ e^(s-top)·v [B, K, C, X, D], the highest score s and Σ e^(s-top)."""
    batch, kv_heads, heads, dim = q.shape
    rows, width = table.shape[1:]
    pages = max(1, CHUNK // leaves[1].shape[4])
    kernel = functools.partial(
        _kernel, rows=rows, pages=pages, padded=max(LEAST_ROWS, pl.next_power_of_2(heads))
    )
    shape = (batch, kv_heads, math.ceil(width / pages), heads)
    whole = pl.BlockSpec(memory_space=pl.ANY)
    own = pl.BlockSpec((None, None, *fresh[0].shape[2:]), lambda b, k, c: (b, k, 0, 0))
    return pl.pallas_call(
        kernel,
        grid=shape[:3],
        in_specs=[*[whole] * 4, own, own, *[whole] * len(leaves)],
        out_specs=[whole] * 3,
        out_shape=[jax.ShapeDtypeStruct(s, jnp.float32) for s in ((*shape, dim), shape, shape)],
        compiler_params=plgpu.CompilerParams(num_warps=WARPS, num_stages=STAGES),
        interpret=interpret,
        name="paged_attention",
    )(at, table.reshape(batch, width), length, q, *fresh, *leaves)


Held = tuple[jax.Array, jax.Array, jax.Array]  # what `_parts` finds, so far


def _kernel(*refs: Any, rows: int, pages: int, padded: int) -> None:
    """One chunk of one row and kv head; the first has the fresh tokens too."""
    (at, table, length, q, k_now, v_now), leaves, results = refs[:6], refs[6:-3], refs[-3:]
    b, head, chunk = (pl.program_id(axis) for axis in range(3))
    page, dim = leaves[1].shape[4:]
    all_heads, left = pl.ds(0, padded), length[b]
    real = jnp.arange(padded, dtype=jnp.int32) < q.shape[2]
    query = plgpu.load(q.at[b, head, all_heads], mask=real[:, None], other=0.0)

    def of_cache(i: jax.Array, held: Held) -> Held:
        page_of = (at[0], b // rows, table[b, i], head)
        k, v, *scales = (leaf[page_of] for leaf in leaves)
        written = i * page + jnp.arange(page, dtype=jnp.int32) < left
        return _add(held, query, k, v, written, *scales)

    def of_fresh(_: jax.Array, held: Held) -> Held:
        allowed = jnp.arange(k_now.shape[0], dtype=jnp.int32) <= at[1]
        return _add(held, query, k_now[...].T, v_now[...], allowed)

    held = (
        jnp.zeros((padded, dim), jnp.float32),
        jnp.full((padded,), _LEAST, jnp.float32),
        jnp.zeros((padded,), jnp.float32),
    )
    held = jax.lax.fori_loop(0, 1 - jnp.minimum(chunk, 1), of_fresh, held)
    last = jnp.minimum((chunk + 1) * pages, (left + page - 1) // page)
    held = jax.lax.fori_loop(chunk * pages, last, of_cache, held)
    for result, value in zip(results, held, strict=True):
        mask = real.reshape(-1, *(1,) * (value.ndim - 1))
        plgpu.store(result.at[b, head, chunk, all_heads], value, mask=mask)


def _add(
    held: Held, q: jax.Array, k: jax.Array, v: jax.Array, allowed: jax.Array, *scales: jax.Array
) -> Held:
    """Attention of q[X, D] over more keys too, k[D, S] and v[S, D], one at least allowed[S].

    scales: of k and v in int8, [S] each.
    """
    out, top, total = held
    scores = plgpu.dot(q, k.astype(q.dtype)) * q.shape[1] ** -0.5
    if scales:
        scores = scores * scales[0][None]
    scores = jnp.where(allowed[None], scores, _LEAST)
    new = jnp.maximum(top, jnp.max(scores, axis=1))
    weights, shrink = jnp.exp(scores - new[:, None]), jnp.exp(top - new)
    total = total * shrink + jnp.sum(weights, axis=1)
    if scales:
        weights = weights * scales[1][None]
    seen = plgpu.dot(weights.astype(q.dtype), v.astype(q.dtype))
    return out * shrink[:, None] + seen, new, total

"""Rotary positions and grouped-query attention of full rows.

Axis key: B batch row or cache slot, T query time, S key time, H heads = K·G, K kv heads, G query
heads per kv head, X = G·T, D head dim, L layers.

Scores are laid out as [B, K, G·T, S]: one plain matrix product per row and kv head, which XLA's CPU
backend runs about twice as fast as one einsum over [B, T, K, G, D], and which keeps B and K, the
sharded axes, apart.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from masksearch_jax.core.config import ModelConfig
from masksearch_jax.models import blockwise_attention, context_parallel, rotary
from masksearch_jax.models.remat import keep
from masksearch_jax.parallel import sharding

SPLASH_BLOCKS = (512, 256, 128)
# Rows are cut into at most so many pieces, of no fewer tokens; each leaves out the keys after it.
BLOCKS, LEAST_BLOCK = 4, 64
# Logical axes of queries, keys, values and segment ids, and of what attention makes of them.
_Q, _KV = ("batch", "time", "heads"), ("batch", "time", "kv_heads")
_SPLIT = ((_Q, _KV, _KV, ("batch", "time")), _Q)
SEGMENT = 512  # tokens; of segments that long as many fit a row as cuDNN's packing is made for


class AttentionError(ValueError):
    """Sizes or a device that a way to compute attention does not take."""


def rope_tables(positions: jax.Array, frequencies: np.ndarray) -> tuple[jax.Array, jax.Array]:
    """Cosine and sine of each position's angles, float32 [..., D/2]."""
    steps = jnp.expand_dims(frequencies, tuple(range(positions.ndim)))
    angles = positions.astype(jnp.float32)[..., None] * steps
    return jnp.cos(angles), jnp.sin(angles)


def rope(config: ModelConfig, positions: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The model's `rope_tables` at these positions, times yarn's attention factor."""
    scaling = config.rope_scaling
    cos, sin = rope_tables(
        positions, rotary.frequencies(config.head_dim, config.rope_theta, scaling)
    )
    if scaling is None or scaling.attention_factor == 1.0:
        return cos, sin
    return cos * scaling.attention_factor, sin * scaling.attention_factor


def rotate(x: jax.Array, tables: tuple[jax.Array, jax.Array]) -> jax.Array:
    """Rotates x[B, T, H, D] by its positions' angles [B, T, D/2]; channel i pairs with i + D/2."""
    cos, sin = (t[:, :, None, :] for t in tables)
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    turned = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return turned.astype(x.dtype)


def group(q: jax.Array, kv_heads: int) -> jax.Array:
    """q[B, T, H, D] as [B, K, G·T, D]."""
    batch, time, heads, dim = q.shape
    grouped = q.reshape(batch, time, kv_heads, heads // kv_heads, dim)
    return grouped.transpose(0, 2, 3, 1, 4).reshape(batch, kv_heads, -1, dim)


def ungroup(out: jax.Array, time: int) -> jax.Array:
    """[B, K, G·T, D] as [B, T, H, D]."""
    batch, kv_heads, rows, dim = out.shape
    split = out.reshape(batch, kv_heads, rows // time, time, dim)
    return split.transpose(0, 3, 1, 2, 4).reshape(batch, time, -1, dim)


def softmax(
    chunks: Sequence[tuple[jax.Array, jax.Array]], dim: int, dtype: jnp.dtype
) -> list[jax.Array]:
    """Attention weights over the keys of all chunks: scores[B, K, G·T, S], allowed[B, T, S]."""

    def masked(scores: jax.Array, allowed: jax.Array) -> jax.Array:
        batch, kv_heads, rows, keys = scores.shape
        time = allowed.shape[1]
        scaled = scores.astype(jnp.float32) * (dim**-0.5)
        split = scaled.reshape(batch, kv_heads, rows // time, time, keys)
        kept = jnp.where(allowed[:, None, None], split, jnp.finfo(jnp.float32).min)
        return kept.reshape(scores.shape)

    wide = [masked(*chunk) for chunk in chunks]
    top = functools.reduce(jnp.maximum, (jnp.max(s, axis=-1, keepdims=True) for s in wide))
    exp = [jnp.exp(s - jax.lax.stop_gradient(top)) for s in wide]
    total = sum(jnp.sum(e, axis=-1, keepdims=True) for e in exp)
    return [(e / total).astype(dtype) for e in exp]


def packed_attention(q: jax.Array, k: jax.Array, v: jax.Array, segment_ids: jax.Array) -> jax.Array:
    """Causal attention within each segment of packed rows.

    q [B, T, H, D], k and v [B, T, K, D], segment_ids int [B, T] -> [B, T, H, D]. Padding (segment
    0) attends to padding only, so that its rows stay finite.
    """
    time = q.shape[1]
    if context_parallel.shards(time) > 1:

        def split(q: jax.Array, *others: jax.Array) -> jax.Array:
            return _attend(
                q, *map(context_parallel.whole, others), others[-1], context_parallel.times(time)
            )

        return keep(sharding.on_shards(split, *_SPLIT)(q, k, v, segment_ids))
    edges = np.linspace(0, time, 1 + max(1, min(BLOCKS, time // LEAST_BLOCK)), dtype=int)
    out = [
        _attend(
            *(q[:, i:j], k[:, :j], v[:, :j], segment_ids[:, :j]),
            *(segment_ids[:, i:j], jnp.arange(i, j)),
        )
        for i, j in itertools.pairwise(edges.tolist())
    ]
    return keep(jnp.concatenate(out, axis=1))


def _attend(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    key_segments: jax.Array,
    segments: jax.Array,
    times: jax.Array,
) -> jax.Array:
    """Queries q[B, T, H, D] of `segments`[B, T] at `times`[T] over the keys of times 0 to S - 1."""
    causal = times[:, None] >= jnp.arange(k.shape[1])
    allowed = (segments[:, :, None] == key_segments[:, None, :]) & causal[None]
    grouped = group(q, k.shape[2])
    scores = jnp.einsum(
        "bkxd,bksd->bkxs", grouped, k.transpose(0, 2, 1, 3), preferred_element_type=jnp.float32
    )
    (weights,) = softmax([(scores, allowed)], q.shape[3], q.dtype)
    return ungroup(jnp.einsum("bkxs,bksd->bkxd", weights, v.transpose(0, 2, 1, 3)), q.shape[1])


def blocked_attention(
    q: jax.Array, k: jax.Array, v: jax.Array, segment_ids: jax.Array
) -> jax.Array:
    """`packed_attention` by `blockwise_attention`, on any device."""
    time = q.shape[1]

    def attend(q: jax.Array, k: jax.Array, v: jax.Array, segments: jax.Array) -> jax.Array:
        k, v, keys = (context_parallel.whole(x) for x in (k, v, segments))
        times = context_parallel.times(time)
        inputs = blockwise_attention.Inputs(q, k, v, segments, times, keys)
        return blockwise_attention.attend(inputs)

    return sharding.on_shards(attend, *_SPLIT)(q, k, v, segment_ids)


def splash_attention(q: jax.Array, k: jax.Array, v: jax.Array, segment_ids: jax.Array) -> jax.Array:
    """`packed_attention` by the Pallas kernel for TPUs, which keeps no scores in memory.

    Raises AttentionError for times that are no multiple of its smallest block.
    """
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as splash
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks

    time, dim, shards = q.shape[1], q.shape[3], context_parallel.shards(q.shape[1])
    block = next((b for b in SPLASH_BLOCKS if time % (b * shards) == 0), None)
    if block is None:
        raise AttentionError(
            f"compute.attention splash takes rows of a multiple of {SPLASH_BLOCKS[-1] * shards} "
            f"tokens, {SPLASH_BLOCKS[-1]} for each shard of mesh.context, got {time}"
        )
    sizes = splash.BlockSizes(
        **dict.fromkeys(("block_q", "block_kv", "block_q_dkv", "block_kv_dkv"), block),
        **dict.fromkeys(("block_q_dq", "block_kv_dq"), block),
    )

    mask = masks.CausalMask((time, time))
    mask.q_sequence = context_parallel.order(time, shards)

    def attend(q: jax.Array, k: jax.Array, v: jax.Array, segments: jax.Array) -> jax.Array:
        heads = masks.MultiHeadMask([mask] * q.shape[2])
        kernel = splash.make_splash_mha(
            heads, block_sizes=sizes, head_shards=1, q_seq_shards=shards
        )
        if shards > 1:
            kernel = _own_shard(kernel, shards)
        q = (q.astype(jnp.float32) * dim**-0.5).astype(q.dtype)
        k, v, keys = (context_parallel.whole(x) for x in (k, v, segments))
        q, k, v = (x.transpose(0, 2, 1, 3) for x in (q, k, v))
        return jax.vmap(kernel)(q, k, v, splash.SegmentIds(segments, keys)).swapaxes(1, 2)

    return sharding.on_shards(attend, *_SPLIT)(q, k, v, segment_ids)


def _own_shard(kernel: Any, shards: int) -> Any:
    """A splash kernel whose mask is laid out for `shards` devices, for this one of them."""

    def cut(x: jax.Array, axis: int) -> jax.Array:
        size = x.shape[axis] // shards
        return jax.lax.dynamic_slice_in_dim(
            x, jax.lax.axis_index(context_parallel.AXIS) * size, size, axis
        )

    infos, how = kernel.tree_flatten()
    held = (
        info._replace(
            **{
                name: cut(value, 0 if name == "q_sequence" else 1)
                for name, value in info._asdict().items()
                if value is not None and name != "partial_mask_blocks"
            }
        )
        for info in infos
    )
    return kernel.tree_unflatten(how, held)


def cudnn_attention(q: jax.Array, k: jax.Array, v: jax.Array, segment_ids: jax.Array) -> jax.Array:
    """`packed_attention` by cuDNN's fused kernel for NVIDIA GPUs, which keeps no scores in memory.

    Rows of at most T / SEGMENT segments go to its own packing, which skips what other segments
    hold and wants that number when it compiles; where a row has more, all get a mask, [B, T, T] in
    bfloat16, three to four times as slow, as on GPUs before Hopper.

    Raises AttentionError on another device or in another dtype than bfloat16, and cuDNN's own
    errors for shapes that it has no kernel for (odd T, D no multiple of 8).
    """
    if jax.default_backend() != "gpu" or q.dtype != jnp.bfloat16:
        raise AttentionError(
            "compute.attention cudnn is for compute.dtype bfloat16 on an NVIDIA GPU, got "
            f"{q.dtype} on {jax.default_backend()}; choose xla, or splash on a TPU"
        )
    if (shards := context_parallel.shards(q.shape[1])) > 1:
        raise AttentionError(
            f"compute.attention cudnn does not split rows over mesh.context {shards}; choose xla, "
            "or splash on a TPU"
        )
    from jax._src.cudnn import fused_attention_stablehlo as cudnn

    most = max(1, q.shape[1] // SEGMENT)

    def attend(q: jax.Array, k: jax.Array, v: jax.Array, segments: jax.Array) -> jax.Array:
        masked = functools.partial(fused_attention, implementation="cudnn")
        if not cudnn.check_compute_capability("9.0"):
            return masked(q, k, v, segments)
        own = functools.partial(segmented_attention, most=most)
        few = jnp.all(jnp.sum(_begins(segments), axis=1) <= most)
        return jax.lax.cond(few, own, masked, q, k, v, segments)

    heads, kv_heads = ("batch", "any", "heads"), ("batch", "any", "kv_heads")
    run = sharding.on_shards(attend, (heads, kv_heads, kv_heads, ("batch",)), heads)
    return run(q, k, v, segment_ids)


def _begins(segment_ids: jax.Array) -> jax.Array:
    """Where a segment begins, bool[B, T]."""
    change = segment_ids[:, 1:] != segment_ids[:, :-1]
    return jnp.pad(change, [(0, 0), (1, 0)], constant_values=True)


def segments_of(segment_ids: jax.Array, most: int) -> tuple[jax.Array, jax.Array]:
    """Lengths int32[B, most] and starts int32[B, most + 1] of the segments; -1 where there is none.

    No row says where its last one ends: cuDNN's list, of all rows one after the other, has the next
    row's first start there.
    """
    time = segment_ids.shape[1]
    starts = jnp.where(_begins(segment_ids), jnp.arange(time, dtype=jnp.int32), time)
    starts = jnp.sort(starts, axis=1)[:, : most + 1]
    starts = jnp.pad(starts, [(0, 0), (0, most + 1 - starts.shape[1])], constant_values=time)
    used = starts[:, :-1] < time
    lengths = jnp.where(used, starts[:, 1:] - starts[:, :-1], -1)
    known = jnp.arange(most + 1) < jnp.sum(used, axis=1, keepdims=True)
    return lengths, jnp.where(known, starts, -1)


def segmented_attention(
    q: jax.Array, k: jax.Array, v: jax.Array, segment_ids: jax.Array, *, most: int
) -> jax.Array:
    """`packed_attention` by cuDNN's kernel for rows of at most so many segments."""
    from jax._src.cudnn.fused_attention_stablehlo import MaskType, dot_product_attention

    lengths, starts = segments_of(segment_ids, most)
    # JAX 0.10 counts the keys' starts in the queries' heads: give both as many.
    k, v = (jnp.repeat(x, q.shape[2] // k.shape[2], axis=2) for x in (k, v))
    return dot_product_attention(
        *(q, k, v, None, None, lengths, lengths, starts, starts),
        scale=q.shape[-1] ** -0.5,
        mask_type=MaskType.PADDING_CAUSAL,
    )


def fused_attention(
    q: jax.Array, k: jax.Array, v: jax.Array, segment_ids: jax.Array, *, implementation: str
) -> jax.Array:
    """`packed_attention` as JAX offers it, by `xla` or `cudnn`."""
    own = segment_ids[:, None, :, None] == segment_ids[:, None, None, :]
    return jax.nn.dot_product_attention(
        q, k, v, mask=own, is_causal=True, implementation=implementation
    )


ATTENTION = {
    "xla": packed_attention,
    "blockwise": blocked_attention,
    "splash": splash_attention,
    "cudnn": cudnn_attention,
}

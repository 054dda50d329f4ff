"""One decoder-only transformer for Qwen2/2.5, Qwen3 and Llama 3.x: pre-norm, RoPE, GQA, gated MLP.

Axis key: B batch row or cache slot, T query time, S key time, H heads, K kv heads, D head dim, M
model, F hidden, V vocabulary, L layers. Parameters of all layers are stacked along a leading L and
scanned. Norms, softmax and logits are float32; the rest is `ComputeConfig.dtype`. Parameters are
pytree leaves of the model, so plain jax.jit, jax.grad and jax.lax.scan take it as a value.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
from flax import nnx

from masksearch_jax.core.config import ComputeConfig, ModelConfig
from masksearch_jax.models import (
    attention,
    context_parallel,
    head,
    kv_cache,
    layout,
    rollout_weights,
    shared_weights,
)
from masksearch_jax.models.kv_cache import Fresh, KVCache
from masksearch_jax.models.remat import REMAT, keep
from masksearch_jax.parallel import sharding

if TYPE_CHECKING:
    from masksearch_jax.models import unrolled  # which knows this module

FAMILIES = ("qwen2", "qwen3", "llama")
_LAYER = ("batch", "time", "activation")  # logical axes of what goes from layer to layer
INIT_STD = 0.02  # as transformers initialises these families
QK_IDENTITY = 2.6  # attention logit of a token with itself, at random weights
VO_IDENTITY = 0.46  # share of a token's normed embedding that all heads of a layer pass on


class ModelError(ValueError):
    """An architecture or a way to compute it that this decoder does not have."""


class Block(nnx.Module):
    """Parameters of every layer, stacked; one layer once sliced. Absent parameters are None.

    Random weights start as copiers: keys near their queries and outputs near their values, so that
    a head attends to tokens like its own and passes on what it finds (after mimetic
    initialisation, arXiv 2305.09828, with both signs positive; the scales are ours). In trials the
    tiny model copied from search results after far fewer updates than from plain random weights.
    """

    def __init__(self, config: ModelConfig, dtype: jnp.dtype, rngs: nnx.Rngs) -> None:
        M, F, D = config.hidden_size, config.intermediate_size, config.head_dim
        H, K = config.num_heads, config.num_kv_heads

        def normal(*shape: int, std: float = INIT_STD) -> jax.Array:
            return _normal(rngs, (config.num_layers, *shape), std)

        def param(x: jax.Array) -> nnx.Param:
            return nnx.Param(x.astype(dtype))

        def full(value: float, *shape: int) -> nnx.Param:
            return nnx.Param(jnp.full((config.num_layers, *shape), value, dtype))

        def flat(x: jax.Array, heads: int) -> nnx.Param:
            """[L, M, heads, D] as [L, M, heads·D], which pads no head to a TPU's tile of eight."""
            return param(x.reshape(config.num_layers, M, heads * D))

        k = normal(M, K, D, std=(QK_IDENTITY / (M * D**0.5)) ** 0.5)
        v = normal(M, K, D, std=(VO_IDENTITY / (D * H)) ** 0.5)
        self.attention_norm = full(1.0, M)
        self.q = flat(jnp.repeat(k, H // K, axis=2) + normal(M, H, D), H)
        self.k, self.v = flat(k, K), flat(v, K)
        self.q_bias = full(0.0, H * D) if config.qkv_bias else None
        self.k_bias = full(0.0, K * D) if config.qkv_bias else None
        self.v_bias = full(0.0, K * D) if config.qkv_bias else None
        self.q_norm = full(1.0, D) if config.qk_norm else None
        self.k_norm = full(1.0, D) if config.qk_norm else None
        o = jnp.repeat(v, H // K, axis=2).transpose(0, 2, 3, 1) + normal(H, D, M)
        self.o = param(o.reshape(config.num_layers, H * D, M))
        self.mlp_norm = full(1.0, M)
        self.gate, self.up = param(normal(M, F)), param(normal(M, F))
        self.down = param(normal(F, M))
        self.adapters = nnx.data(None)  # of models.lora


class Transformer(nnx.Module):
    """Embedding, blocks, final norm and head (the embedding itself when tied)."""

    def __init__(self, config: ModelConfig, compute: ComputeConfig, rngs: nnx.Rngs) -> None:
        check_architecture(config, compute)
        dtype = jnp.dtype(compute.param_dtype)
        table = (config.vocab_size, config.hidden_size)
        self.config = config
        self.compute = compute
        self.embedding = nnx.Param(_normal(rngs, table, config.hidden_size**-0.5).astype(dtype))
        self.blocks = Block(config, dtype, rngs)
        self.norm = nnx.Param(jnp.ones((config.hidden_size,), dtype))
        self.head = (
            None
            if config.tie_embeddings
            else nnx.Param(_normal(rngs, table, INIT_STD).astype(dtype))
        )

    def hidden(self, ids: jax.Array, positions: jax.Array, segment_ids: jax.Array) -> jax.Array:
        """Final hidden states [B, T, M] of packed rows; ids, positions, segment_ids int [B, T].

        Segments are contiguous and attend causally within themselves; segment 0 is padding.
        """
        ids, positions, segment_ids = map(context_parallel.in_shards, (ids, positions, segment_ids))
        tables = attention.rope(self.config, positions)
        attend = attention.ATTENTION[self.compute.attention]

        def layer(x: jax.Array, block: Block) -> tuple[jax.Array, None]:
            q, k, v = _project(block, x, tables, self.config.norm_eps, trained=True)
            out = attend(q, k, v, segment_ids)
            x = _finish(block, x, out, self.config.norm_eps, trained=True)
            return sharding.constrain(x, *_LAYER), None

        if self.compute.remat != "none":
            policy = REMAT[self.compute.remat]
            layer = jax.checkpoint(layer, prevent_cse=False, policy=policy)
        x = shared_weights.lookup(self.embedding[...], ids, self.compute.dtype)
        x, _ = jax.lax.scan(layer, sharding.constrain(x, *_LAYER), self.blocks)
        return context_parallel.in_order(self.final_norm(x))

    def embed(self, ids: jax.Array) -> jax.Array:
        """Embeddings [..., M] of ids [...], in the compute dtype."""
        x = self.embedding[...][ids].astype(self.compute.dtype)
        return sharding.constrain(x, *("batch", "time")[: ids.ndim], "activation")

    def final_norm(self, x: jax.Array) -> jax.Array:
        """The norm between the last block and the head, x [..., M]."""
        return rms_norm(x, self.norm[...], self.config.norm_eps)

    def logits(self, hidden: jax.Array) -> jax.Array:
        """float32 logits [..., V] of final hidden states [..., M]."""
        return head.logits(self.head_table, hidden)

    @property
    def head_table(self) -> jax.Array:
        """The head's weight [V, M]: the embedding when tied."""
        return (self.embedding if self.head is None else self.head)[...]

    def init_cache(self, shards: int, pages: int, page_tokens: int, dtype: str = "") -> KVCache:
        """A zeroed KV cache of `shards` × `pages` pages, by default in the compute dtype."""
        dtype = jnp.dtype(dtype or self.compute.dtype)
        return kv_cache.init_cache(self.config, shards, pages, page_tokens, dtype)

    def copy_pages(
        self, cache: KVCache, copies: jax.Array, src: jax.Array, dst: jax.Array
    ) -> KVCache:
        """The cache with page src[N, c] written over dst[N, c], for c below copies[N]."""
        return kv_cache.copy_pages(cache, copies, src, dst)

    def init_fresh(self, rows: int, tokens: int) -> Fresh:
        """Room for `tokens` fresh keys and values of each row, in the compute dtype."""
        shape = (self.config.num_layers, rows, self.config.num_kv_heads, tokens)
        zeros = jnp.zeros((*shape, self.config.head_dim), self.compute.dtype)
        zeros = sharding.constrain(zeros, "layers", "batch", "kv_heads", "any", "any")
        return Fresh(zeros, zeros)

    def for_sampling(self, weights: str = "whole") -> Transformer | unrolled.Unrolled:
        """What rollouts read under the mesh in force, as `rollout.weights` says."""
        from masksearch_jax.models import unrolled  # which knows this module

        sizes = jax.sharding.get_abstract_mesh().shape
        if rollout_weights.is_unrolled(weights, sizes):
            return unrolled.unroll(self)
        copied = rollout_weights.is_needed(self.compute, weights, sizes)
        return rollout_weights.stacked(self) if copied else self

    @property
    def steps_per_token(self) -> int:
        """How many of `decode_step` make a token."""
        return self.config.num_layers

    def decode_step(
        self,
        step: jax.Array,
        x: jax.Array,
        cache: KVCache,
        fresh: Fresh,
        table: jax.Array,
        length: jax.Array,
        backend: str = "xla",
    ) -> tuple[jax.Array, Fresh]:
        """One layer of one token per row: x [B, M], length int [B] -> x [B, M], fresh.

        Of token t, at time length + t, steps t·L to (t + 1)·L - 1 are the layers. Rows are shard by
        shard, their pages in table[N, B/N, W]. The token attends to the `length` tokens in the
        cache, to the first t fresh ones and to itself. For a flat loop over (token, layer) that
        only reads the cache: a scan over layers nested in a loop over tokens keeps a second one.
        """
        token, layer = step // self.config.num_layers, step % self.config.num_layers
        block = jax.tree.map(
            lambda leaf: jax.lax.dynamic_index_in_dim(leaf, layer, keepdims=False), self.blocks
        )
        tables = attention.rope(self.config, length[:, None] + token)
        q, k, v = _project(block, x[:, None], tables, self.config.norm_eps)

        def put(target: jax.Array, new: jax.Array) -> jax.Array:
            new = new.swapaxes(1, 2)[None].astype(target.dtype)
            return jax.lax.dynamic_update_slice(target, new, (layer, 0, 0, token, 0))

        def of_layer(stacked: jax.Array) -> jax.Array:
            return jax.lax.dynamic_index_in_dim(stacked, layer, keepdims=False)

        fresh = Fresh(put(fresh.k, k), put(fresh.v, v))
        mine = jax.tree.map(of_layer, fresh)
        out = kv_cache.decode_attention(q[:, 0], cache, mine, layer, token, table, length, backend)
        return _finish(block, x[:, None], out[:, None], self.config.norm_eps)[:, 0], fresh

    def write_cache(
        self,
        cache: KVCache,
        fresh: Fresh,
        table: jax.Array,
        start: jax.Array,
        count: jax.Array,
    ) -> KVCache:
        """The cache with the first count[B] fresh tokens of each row at times start[B].. of the
        pages in table[N, B/N, W]."""
        return kv_cache.write_cache(cache, fresh, table, start, count)

    def extend(
        self,
        cache: KVCache,
        ids: jax.Array,
        start: jax.Array,
        count: jax.Array,
        table: jax.Array,
    ) -> tuple[jax.Array, KVCache]:
        """Hidden states [B, T, M] of ids[B, T] written at times start[B].. of each row; the cache.

        Rows are shard by shard, their pages in table[N, B/N, W]. Only the first count[B] tokens of
        a row are written; the hidden states after them mean nothing. Each token attends to the
        row's earlier cache and to the chunk, causally.
        """
        tables = attention.rope(
            self.config, start[:, None] + jnp.arange(ids.shape[1], dtype=start.dtype)
        )

        def layer(x: jax.Array, xs: tuple) -> tuple[jax.Array, Fresh]:
            block, index = xs
            q, k, v = _project(block, x, tables, self.config.norm_eps)
            fresh = Fresh(k.swapaxes(1, 2), v.swapaxes(1, 2))
            out = kv_cache.extend_attention(q, cache, fresh, index, table, start)
            return _finish(block, x, out, self.config.norm_eps), fresh

        layers = jnp.arange(self.config.num_layers)
        x, fresh = jax.lax.scan(layer, self.embed(ids), (self.blocks, layers))
        return self.final_norm(x), self.write_cache(cache, fresh, table, start, count)


def check_architecture(config: ModelConfig, compute: ComputeConfig) -> None:
    """Raises ModelError for a family, head count, backend or remat policy that does not exist."""
    if config.family not in FAMILIES:
        raise ModelError(f"model.family {config.family!r} is unknown; choices: {FAMILIES}")
    if config.num_heads % config.num_kv_heads:
        raise ModelError(
            f"model.num_heads {config.num_heads} is not a multiple of "
            f"model.num_kv_heads {config.num_kv_heads}"
        )
    for name, choices in (
        ("dtype", ("bfloat16", "float32")),
        ("param_dtype", ("float32", "bfloat16")),
        ("attention", tuple(attention.ATTENTION)),
        ("remat", ("none", *REMAT)),
    ):
        if getattr(compute, name) not in choices:
            raise ModelError(
                f"compute.{name} {getattr(compute, name)!r} is unknown; choices: {choices}"
            )


def rms_norm(x: jax.Array, weight: jax.Array, eps: float) -> jax.Array:
    """x / rms(x) · weight over the last axis, statistics in float32."""
    wide = x.astype(jnp.float32)
    scale = jax.lax.rsqrt(jnp.mean(wide * wide, axis=-1, keepdims=True) + eps)
    gain = jnp.expand_dims(weight.astype(x.dtype), tuple(range(x.ndim - 1)))
    return (wide * scale).astype(x.dtype) * gain


def _normal(rngs: nnx.Rngs, shape: tuple[int, ...], std: float) -> jax.Array:
    return jax.random.normal(rngs.params(), shape, jnp.float32) * std


def _linear(block: Block, name: str, x: jax.Array, trained: bool) -> jax.Array:
    """x [B, T, I] times the block's matrix of that name [I, O], and what its adapter adds.

    `trained`: for an update, where devices may share the matrix and want its gradient.
    """
    matrix = getattr(block, name)[...].astype(x.dtype)
    if trained:
        axis = layout.PARAMETERS[f"blocks.{name}"].index(sharding.SHARED) - 1
        out = shared_weights.matmul(x, matrix, axis)
    else:
        out = jnp.einsum("bti,io->bto", x, matrix)
    more = None if block.adapters is None else block.adapters(name, x)
    return out if more is None else out + more


def _project(
    block: Block,
    x: jax.Array,
    tables: tuple[jax.Array, jax.Array],
    eps: float,
    trained: bool = False,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Rotated queries [B, T, H, D] and keys, and values [B, T, K, D], of x [B, T, M]."""
    normed = rms_norm(x, block.attention_norm[...], eps)

    def project(name: str, bias: nnx.Param | None) -> jax.Array:
        out = keep(_linear(block, name, normed, trained))
        return out if bias is None else out + bias[...].astype(x.dtype)[None, None]

    q, k, v = project("q", block.q_bias), project("k", block.k_bias), project("v", block.v_bias)
    norms = [None if norm is None else norm[...] for norm in (block.q_norm, block.k_norm)]
    return heads(q, k, v, norms, tables, eps)


def heads(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    norms: Sequence[jax.Array | None],
    tables: tuple[jax.Array, jax.Array],
    eps: float,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Projections [B, T, H·D] and [B, T, K·D] as rotated queries and keys, and values.

    norms: weights [D] of the queries' and the keys' own norm, or None.
    """
    head_dim = 2 * tables[0].shape[-1]
    q, k, v = (x.reshape(*x.shape[:2], -1, head_dim) for x in (q, k, v))
    q, k = (
        x if norm is None else rms_norm(x, norm, eps) for x, norm in zip((q, k), norms, strict=True)
    )
    return attention.rotate(q, tables), attention.rotate(k, tables), v


def _finish(
    block: Block, x: jax.Array, out: jax.Array, eps: float, trained: bool = False
) -> jax.Array:
    """x [B, T, M] plus the projected attention output [B, T, H, D], then plus the gated MLP."""
    x = keep(x + _linear(block, "o", out.reshape(*x.shape[:2], -1), trained))
    normed = rms_norm(x, block.mlp_norm[...], eps)
    gate, up = (keep(_linear(block, name, normed, trained)) for name in ("gate", "up"))
    return x + _linear(block, "down", jax.nn.silu(gate) * up, trained)

"""One decoder-only transformer of the families of `families`: pre-norm, RoPE, GQA, gated MLP.

Axis key: B batch row or cache slot, T query time, S key time, H heads, K kv heads, D head dim, M
model, F hidden, V vocabulary, L layers. Parameters of all layers are stacked along a leading L and
scanned. Norms, softmax and logits are float32; the rest is `ComputeConfig.dtype`. Parameters are
pytree leaves of the model, so plain jax.jit, jax.grad and jax.lax.scan take it as a value.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx

from masksearch_jax.core.config import ComputeConfig, ModelConfig
from masksearch_jax.models import (
    attention,
    blocks,
    context_parallel,
    families,
    head,
    kv_cache,
    paged_attention,
    rollout_weights,
    shared_weights,
    unrolled,
)
from masksearch_jax.models.kv_cache import Fresh, KVCache
from masksearch_jax.models.remat import REMAT
from masksearch_jax.models.unrolled import Unrolled
from masksearch_jax.parallel import sharding

_LAYER = ("batch", "time", "activation")  # logical axes of what goes from layer to layer


class ModelError(ValueError):
    """An architecture or a way to compute it that this decoder does not have."""


class Transformer(nnx.Module):
    """Embedding, blocks, final norm and head (the embedding itself when tied)."""

    def __init__(self, config: ModelConfig, compute: ComputeConfig, rngs: nnx.Rngs) -> None:
        check_architecture(config, compute)
        dtype = jnp.dtype(compute.param_dtype)
        table = (config.vocab_size, config.hidden_size)
        self.config = config
        self.compute = compute
        self.embedding = nnx.Param(
            blocks.normal(rngs, table, config.hidden_size**-0.5).astype(dtype)
        )
        self.blocks = blocks.Block(config, dtype, rngs)
        self.norm = nnx.Param(jnp.ones((config.hidden_size,), dtype))
        self.head = (
            None
            if config.tie_embeddings
            else nnx.Param(blocks.normal(rngs, table, blocks.INIT_STD).astype(dtype))
        )

    def hidden(self, ids: jax.Array, positions: jax.Array, segment_ids: jax.Array) -> jax.Array:
        """Final hidden states [B, T, M] of packed rows; ids, positions, segment_ids int [B, T].

        Segments are contiguous and attend causally within themselves; segment 0 is padding.
        """
        ids, positions, segment_ids = map(context_parallel.in_shards, (ids, positions, segment_ids))
        tables = attention.rope(self.config, positions)
        attend = attention.ATTENTION[self.compute.attention]

        def layer(x: jax.Array, block: blocks.Block) -> tuple[jax.Array, None]:
            q, k, v = blocks.project(block, x, tables, self.config.norm_eps, trained=True)
            out = attend(q, k, v, segment_ids)
            x = blocks.finish(block, x, out, self.config.norm_eps, trained=True)
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
        return blocks.rms_norm(x, self.norm[...], self.config.norm_eps)

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

    def for_sampling(self, weights: str = "whole") -> Transformer | Unrolled:
        """What rollouts read under the mesh in force, as `rollout.weights` says."""
        sizes = jax.sharding.get_abstract_mesh().shape
        if rollout_weights.is_unrolled(weights, sizes):
            return unroll(self)
        copied = rollout_weights.is_needed(self.compute, weights, sizes)
        return stacked(self) if copied else self

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
        q, k, v = blocks.project(block, x[:, None], tables, self.config.norm_eps)

        def put(target: jax.Array, new: jax.Array) -> jax.Array:
            new = new.swapaxes(1, 2)[None].astype(target.dtype)
            return jax.lax.dynamic_update_slice(target, new, (layer, 0, 0, token, 0))

        def of_layer(stacked: jax.Array) -> jax.Array:
            return jax.lax.dynamic_index_in_dim(stacked, layer, keepdims=False)

        fresh = Fresh(put(fresh.k, k), put(fresh.v, v))
        mine = jax.tree.map(of_layer, fresh)
        out = paged_attention.decode_attention(
            q[:, 0], cache, mine, layer, token, table, length, backend
        )
        return blocks.finish(block, x[:, None], out[:, None], self.config.norm_eps)[:, 0], fresh

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
            q, k, v = blocks.project(block, x, tables, self.config.norm_eps)
            fresh = Fresh(k.swapaxes(1, 2), v.swapaxes(1, 2))
            out = paged_attention.extend_attention(q, cache, fresh, index, table, start)
            return blocks.finish(block, x, out, self.config.norm_eps), fresh

        layers = jnp.arange(self.config.num_layers)
        x, fresh = jax.lax.scan(layer, self.embed(ids), (self.blocks, layers))
        return self.final_norm(x), self.write_cache(cache, fresh, table, start, count)


def check_architecture(config: ModelConfig, compute: ComputeConfig) -> None:
    """Raises ModelError for a head count, backend or remat policy that does not exist.

    ConfigError for a family.
    """
    families.of_config(config.family)
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


@jax.jit
def stacked(model: Transformer) -> Transformer:
    """A copy of the weights in the compute dtype, split by the mesh's `tensor` alone."""
    return rollout_weights.whole(model, model.compute.dtype)


@jax.jit
def unroll(model: Transformer) -> Unrolled:
    """A whole copy of the weights, apart and in the compute dtype; adapters in their own."""
    model = rollout_weights.whole(model, model.compute.dtype)
    return Unrolled(
        embedding=model.embedding[...],
        layers=unrolled.layers(model.blocks, model.config.num_layers),
        norm=model.norm[...],
        head_table=None if model.head is None else model.head[...],
        config=model.config,
        compute=model.compute,
    )

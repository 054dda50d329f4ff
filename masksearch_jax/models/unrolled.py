"""The transformer as rollouts read it on CPUs and GPUs: every layer's weights apart, none stacked.

Axis key as in `transformer`. A loop over stacked layers makes XLA's CPU and GPU backends copy the
weights of a layer for every token before they multiply by it, and those of products that share an
input once more to join them. Here both are done once for many ticks: weights in the compute dtype,
q, k and v as one matrix, gate and up as another, a decode step one straight program. TPUs read
stacked weights where they lie and compile a loop over layers that much sooner.

On a CPU matrices have their outputs first, [O, I], and stand on the left of a product: XLA's CPU
backend packs what is on the right anew for each product, and the few rows of a decode step are
packed sooner than the weights (1.6 to 3 times as fast at 8 to 32 rows).
"""

from __future__ import annotations

from typing import NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from masksearch_jax.core.config import ComputeConfig, ModelConfig
from masksearch_jax.models import attention, blocks, head, kv_cache, paged_attention
from masksearch_jax.models.adapters import Adapters
from masksearch_jax.models.blocks import Block
from masksearch_jax.models.kv_cache import Fresh, KVCache

FEW = 128  # rows, up to which a CPU has the weights on the left


class Layer(NamedTuple):
    """One layer's parameters in the compute dtype; absent ones are None. Matrices may be turned."""

    attention_norm: jax.Array  # [M]
    qkv: jax.Array  # [M, (H + 2K)·D]
    qkv_bias: jax.Array | None
    q_norm: jax.Array | None  # [D]
    k_norm: jax.Array | None
    o: jax.Array  # [H·D, M]
    mlp_norm: jax.Array  # [M]
    gate_up: jax.Array  # [M, 2F]
    down: jax.Array  # [F, M]
    adapters: Adapters | None  # of the layer, as they are trained


@flax.struct.dataclass
class Unrolled:
    """A Transformer's weights for sampling; its methods are the Transformer's of the same names."""

    embedding: jax.Array  # [V, M]
    layers: tuple[Layer, ...]
    norm: jax.Array  # [M]
    head_table: jax.Array | None  # [V, M]; None: the embedding
    config: ModelConfig = flax.struct.field(pytree_node=False)
    compute: ComputeConfig = flax.struct.field(pytree_node=False)

    steps_per_token = 1

    def for_sampling(self, weights: str = "whole") -> Unrolled:
        return self

    def embed(self, ids: jax.Array) -> jax.Array:
        return self.embedding[ids]

    def final_norm(self, x: jax.Array) -> jax.Array:
        return blocks.rms_norm(x, self.norm, self.config.norm_eps)

    def logits(self, hidden: jax.Array) -> jax.Array:
        table = self.embedding if self.head_table is None else self.head_table
        if not _is_turned() or hidden.ndim > 2 or len(hidden) > FEW:
            return head.logits(table, hidden)
        how = {"preferred_element_type": jnp.float32}
        return jax.lax.optimization_barrier(jnp.einsum("vm,bm->vb", table, hidden, **how)).T

    def init_cache(self, shards: int, pages: int, page_tokens: int, dtype: str = "") -> KVCache:
        dtype = jnp.dtype(dtype or self.compute.dtype)
        return kv_cache.init_cache(self.config, shards, pages, page_tokens, dtype)

    copy_pages = staticmethod(kv_cache.copy_pages)

    def init_fresh(self, rows: int, tokens: int) -> tuple[Fresh, ...]:
        shape = (rows, self.config.num_kv_heads, tokens, self.config.head_dim)
        return (Fresh(*[jnp.zeros(shape, self.compute.dtype)] * 2),) * len(self.layers)

    def decode_step(
        self,
        step: jax.Array,
        x: jax.Array,
        cache: KVCache,
        fresh: tuple[Fresh, ...],
        table: jax.Array,
        length: jax.Array,
        backend: str = "xla",
    ) -> tuple[jax.Array, tuple[Fresh, ...]]:
        """All layers of token `step` per row: x [B, M], length int [B] -> x [B, M], fresh."""
        tables = attention.rope(self.config, length[:, None] + step)
        x, held = x[:, None], []
        for index, (layer, kept) in enumerate(zip(self.layers, fresh, strict=True)):
            q, k, v = _project(layer, x, tables, self.config)
            put = lambda old, new: jax.lax.dynamic_update_slice(  # noqa: E731
                old, new.swapaxes(1, 2).astype(old.dtype), (0, 0, step, 0)
            )
            kept = Fresh(put(kept.k, k), put(kept.v, v))
            at = (jnp.int32(index), step, table, length)
            out = paged_attention.decode_attention(q[:, 0], cache, kept, *at, backend)
            x = _finish(layer, x, out[:, None], self.config.norm_eps)
            held.append(kept)
        return x[:, 0], tuple(held)

    def write_cache(
        self,
        cache: KVCache,
        fresh: tuple[Fresh, ...],
        table: jax.Array,
        start: jax.Array,
        count: jax.Array,
    ) -> KVCache:
        stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *fresh)
        return kv_cache.write_cache(cache, stacked, table, start, count)

    def extend(
        self,
        cache: KVCache,
        ids: jax.Array,
        start: jax.Array,
        count: jax.Array,
        table: jax.Array,
    ) -> tuple[jax.Array, KVCache]:
        positions = start[:, None] + jnp.arange(ids.shape[1], dtype=start.dtype)
        tables = attention.rope(self.config, positions)
        x, held = self.embed(ids), []
        for index, layer in enumerate(self.layers):
            q, k, v = _project(layer, x, tables, self.config)
            fresh = Fresh(k.swapaxes(1, 2), v.swapaxes(1, 2))
            out = paged_attention.extend_attention(q, cache, fresh, jnp.int32(index), table, start)
            x = _finish(layer, x, out, self.config.norm_eps)
            held.append(fresh)
        return self.final_norm(x), self.write_cache(cache, tuple(held), table, start, count)


def layers(stacked: Block, count: int) -> tuple[Layer, ...]:
    """The `count` layers of stacked ones, each apart; within a jitted function."""

    def joined(index: int, *names: str) -> jax.Array | None:
        found = [getattr(stacked, name) for name in names]
        if found[0] is None:
            return None
        whole = jnp.concatenate([x[index] for x in found], axis=-1)
        return whole.T if _is_turned() and whole.ndim == 2 else whole

    return tuple(
        Layer(
            attention_norm=joined(i, "attention_norm"),
            qkv=joined(i, "q", "k", "v"),
            qkv_bias=joined(i, "q_bias", "k_bias", "v_bias"),
            q_norm=joined(i, "q_norm"),
            k_norm=joined(i, "k_norm"),
            o=joined(i, "o"),
            mlp_norm=joined(i, "mlp_norm"),
            gate_up=joined(i, "gate", "up"),
            down=joined(i, "down"),
            adapters=jax.tree.map(lambda x, i=i: x[i], stacked.adapters),
        )
        for i in range(count)
    )


def _is_turned() -> bool:
    """Whether matrices are [O, I]."""
    return jax.default_backend() == "cpu"


def _product(x: jax.Array, w: jax.Array) -> jax.Array:
    """[B, T, O] of x [B, T, I]."""
    if not _is_turned():
        return jnp.einsum("bti,io->bto", x, w)
    if x.shape[0] * x.shape[1] > FEW:
        return jnp.einsum("bti,oi->bto", x, w)
    out = jnp.einsum("oi,ni->on", w, x.reshape(-1, x.shape[2]))
    # Without the barrier XLA puts the weights on the right again.
    return jax.lax.optimization_barrier(out).T.reshape(*x.shape[:2], -1)


def _products(
    layer: Layer, names: tuple[str, ...], x: jax.Array, w: jax.Array, sizes: list[int]
) -> list[jax.Array]:
    """x [B, T, I] times each of the matrices of these names and sizes, side by side in w."""
    out = _product(x, w)
    parts = jnp.split(out, np.cumsum(sizes)[:-1], axis=-1)
    if layer.adapters is None:
        return parts
    more = [layer.adapters(name, x) for name in names]
    return [a if b is None else a + b for a, b in zip(parts, more, strict=True)]


def _project(
    layer: Layer, x: jax.Array, tables: tuple[jax.Array, jax.Array], config: ModelConfig
) -> tuple[jax.Array, jax.Array, jax.Array]:
    normed = blocks.rms_norm(x, layer.attention_norm, config.norm_eps)
    sizes = [n * config.head_dim for n in (config.num_heads, *[config.num_kv_heads] * 2)]
    parts = _products(layer, ("q", "k", "v"), normed, layer.qkv, sizes)
    if layer.qkv_bias is not None:
        biases = jnp.split(layer.qkv_bias, np.cumsum(sizes)[:-1])
        parts = [part + bias[None, None] for part, bias in zip(parts, biases, strict=True)]
    return blocks.heads(*parts, (layer.q_norm, layer.k_norm), tables, config.norm_eps)


def _finish(layer: Layer, x: jax.Array, out: jax.Array, eps: float) -> jax.Array:
    def added(name: str, inner: jax.Array, w: jax.Array) -> jax.Array:
        return x + _products(layer, (name,), inner, w, [x.shape[2]])[0]

    x = added("o", out.reshape(*x.shape[:2], -1), layer.o)
    normed = blocks.rms_norm(x, layer.mlp_norm, eps)
    sizes = [layer.gate_up.size // x.shape[2] // 2] * 2
    gate, up = _products(layer, ("gate", "up"), normed, layer.gate_up, sizes)
    return added("down", jax.nn.silu(gate) * up, layer.down)

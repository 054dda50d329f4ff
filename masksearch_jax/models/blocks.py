"""The layers of a transformer: their parameters, stacked, and what a layer does.

Axis key as in `transformer`; I inputs and O outputs of a matrix.
"""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx

from masksearch_jax.core.config import ModelConfig
from masksearch_jax.models import attention, shared_weights
from masksearch_jax.models.parameters import PARAMETERS
from masksearch_jax.models.remat import keep
from masksearch_jax.parallel import sharding

INIT_STD = 0.02  # as transformers initialises these families
QK_IDENTITY = 2.6  # attention logit of a token with itself, at random weights
VO_IDENTITY = 0.46  # share of a token's normed embedding that all heads of a layer pass on


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

        def random(*shape: int, std: float = INIT_STD) -> jax.Array:
            return normal(rngs, (config.num_layers, *shape), std)

        def param(x: jax.Array) -> nnx.Param:
            return nnx.Param(x.astype(dtype))

        def full(value: float, *shape: int) -> nnx.Param:
            return nnx.Param(jnp.full((config.num_layers, *shape), value, dtype))

        def flat(x: jax.Array, heads: int) -> nnx.Param:
            """[L, M, heads, D] as [L, M, heads·D], which pads no head to a TPU's tile of eight."""
            return param(x.reshape(config.num_layers, M, heads * D))

        k = random(M, K, D, std=(QK_IDENTITY / (M * D**0.5)) ** 0.5)
        v = random(M, K, D, std=(VO_IDENTITY / (D * H)) ** 0.5)
        self.attention_norm = full(1.0, M)
        self.q = flat(jnp.repeat(k, H // K, axis=2) + random(M, H, D), H)
        self.k, self.v = flat(k, K), flat(v, K)
        self.q_bias = full(0.0, H * D) if config.qkv_bias else None
        self.k_bias = full(0.0, K * D) if config.qkv_bias else None
        self.v_bias = full(0.0, K * D) if config.qkv_bias else None
        self.q_norm = full(1.0, D) if config.qk_norm else None
        self.k_norm = full(1.0, D) if config.qk_norm else None
        o = jnp.repeat(v, H // K, axis=2).transpose(0, 2, 3, 1) + random(H, D, M)
        self.o = param(o.reshape(config.num_layers, H * D, M))
        self.mlp_norm = full(1.0, M)
        self.gate, self.up = param(random(M, F)), param(random(M, F))
        self.down = param(random(F, M))
        self.adapters = nnx.data(None)  # of models.adapters


def rms_norm(x: jax.Array, weight: jax.Array, eps: float) -> jax.Array:
    """x / rms(x) · weight over the last axis, statistics in float32."""
    wide = x.astype(jnp.float32)
    scale = jax.lax.rsqrt(jnp.mean(wide * wide, axis=-1, keepdims=True) + eps)
    gain = jnp.expand_dims(weight.astype(x.dtype), tuple(range(x.ndim - 1)))
    return (wide * scale).astype(x.dtype) * gain


def normal(rngs: nnx.Rngs, shape: tuple[int, ...], std: float) -> jax.Array:
    return jax.random.normal(rngs.params(), shape, jnp.float32) * std


def _linear(block: Block, name: str, x: jax.Array, trained: bool) -> jax.Array:
    """x [B, T, I] times the block's matrix of that name [I, O], and what its adapter adds.

    `trained`: for an update, where devices may share the matrix and want its gradient.
    """
    matrix = getattr(block, name)[...].astype(x.dtype)
    if trained:
        axis = PARAMETERS[f"blocks.{name}"].index(sharding.SHARED) - 1
        out = shared_weights.matmul(x, matrix, axis)
    else:
        out = jnp.einsum("bti,io->bto", x, matrix)
    more = None if block.adapters is None else block.adapters(name, x)
    return out if more is None else out + more


def project(
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


def finish(
    block: Block, x: jax.Array, out: jax.Array, eps: float, trained: bool = False
) -> jax.Array:
    """x [B, T, M] plus the projected attention output [B, T, H, D], then plus the gated MLP."""
    x = keep(x + _linear(block, "o", out.reshape(*x.shape[:2], -1), trained))
    normed = rms_norm(x, block.mlp_norm[...], eps)
    gate, up = (keep(_linear(block, name, normed, trained)) for name in ("gate", "up"))
    return x + _linear(block, "down", jax.nn.silu(gate) * up, trained)

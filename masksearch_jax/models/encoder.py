"""Text encoders of BERT's family: token ids to a vector a text, or to a score of two texts.

Axis key: B text, T query time, S key time, H heads, D head dim, M model, F hidden, L layers.
Positions are learned, a layer norm follows each block, attention is over all tokens. Layers are
stacked and scanned. Norms, softmax and pooling are float32; the rest is `dtype`.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx

ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "gelu": functools.partial(jax.nn.gelu, approximate=False),
    "gelu_new": jax.nn.gelu,
    "relu": jax.nn.relu,
}


@dataclasses.dataclass(frozen=True)
class EncoderShape:
    """The numbers of an HF `config.json` of model type bert, and how tokens become one vector."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    max_position: int
    token_types: int
    norm_eps: float
    activation: str
    pooling: Literal["mean", "cls"]
    normalised: bool


class Norm(nnx.Module):
    """Scale and shift of a layer norm, stacked where `layers` are given."""

    def __init__(self, size: int, layers: tuple[int, ...] = ()):
        self.scale = nnx.Param(jnp.ones((*layers, size)))
        self.shift = nnx.Param(jnp.zeros((*layers, size)))

    def __call__(self, x: jax.Array, eps: float) -> jax.Array:
        x32 = x.astype(jnp.float32)
        centred = x32 - x32.mean(-1, keepdims=True)
        spread = jnp.square(centred).mean(-1, keepdims=True)
        out = centred * jax.lax.rsqrt(spread + eps) * self.scale[...] + self.shift[...]
        return out.astype(x.dtype)


class Linear(nnx.Module):
    """Weights [in, out] and bias [out] of every layer, stacked."""

    def __init__(self, layers: int, size: int, out: int, rngs: nnx.Rngs):
        normal = jax.random.normal(rngs.params(), (layers, size, out)) * 0.02
        self.weight, self.bias = nnx.Param(normal), nnx.Param(jnp.zeros((layers, out)))

    def __call__(self, x: jax.Array) -> jax.Array:
        return x @ self.weight[...].astype(x.dtype) + self.bias[...].astype(x.dtype)


class Layers(nnx.Module):
    """Parameters of every layer, stacked; one layer once sliced."""

    def __init__(self, shape: EncoderShape, rngs: nnx.Rngs):
        L, M, F = shape.num_layers, shape.hidden_size, shape.intermediate_size
        self.q, self.k, self.v = (Linear(L, M, M, rngs) for _ in range(3))
        self.o = Linear(L, M, M, rngs)
        self.attention_norm = Norm(M, (L,))
        self.up, self.down = Linear(L, M, F, rngs), Linear(L, F, M, rngs)
        self.mlp_norm = Norm(M, (L,))


class Encoder(nnx.Module):
    """Embeddings and layers; `__call__` gives one vector a text."""

    def __init__(self, shape: EncoderShape, rngs: nnx.Rngs, dtype: str = "float32"):
        self.shape, self.dtype = shape, dtype

        def table(rows: int) -> nnx.Param:
            return nnx.Param(jax.random.normal(rngs.params(), (rows, shape.hidden_size)) * 0.02)

        self.words, self.positions = table(shape.vocab_size), table(shape.max_position)
        self.types = table(shape.token_types)
        self.norm = Norm(shape.hidden_size)
        self.layers = Layers(shape, rngs)

    def __call__(self, ids: jax.Array, lengths: jax.Array) -> jax.Array:
        """float32 vectors [B, M] of ids int32 [B, T], of which lengths int32 [B] count.

        A row of length 0 is padding and gets zeros.
        """
        real = jnp.arange(ids.shape[1]) < lengths[:, None]
        counted = self.shape.pooling == "mean"
        taken = real if counted else real & (jnp.arange(ids.shape[1]) == 0)
        types = self.types[...][0]
        x = jnp.where(taken[..., None], self.hidden(ids, real, types).astype(jnp.float32), 0.0)
        pooled = x.sum(1)
        if counted:
            pooled /= jnp.maximum(lengths, 1).astype(jnp.float32)[:, None]
        if not self.shape.normalised:
            return pooled
        return pooled / jnp.maximum(jnp.linalg.norm(pooled, axis=-1, keepdims=True), 1e-12)

    def hidden(self, ids: jax.Array, real: jax.Array, types: jax.Array) -> jax.Array:
        """The last layer's states [B, T, M]; types: the vectors [M] or [B, T, M] of token types."""
        shape, time = self.shape, ids.shape[1]
        x = self.words[...][ids] + self.positions[...][:time] + types
        x = self.norm(x.astype(self.dtype), shape.norm_eps)
        heads = shape.num_heads
        # A row without a real token attends to its padding, rather than to nothing: that is NaN.
        bias = jnp.where(real, 0.0, jnp.finfo(jnp.float32).min)[:, None, None]

        def layer(x: jax.Array, block: Layers) -> tuple[jax.Array, None]:
            q, k, v = (
                project(x).reshape(*x.shape[:2], heads, -1)
                for project in (block.q, block.k, block.v)
            )
            logits = jnp.einsum("BTHD,BSHD->BHTS", q, k, preferred_element_type=jnp.float32)
            weights = jax.nn.softmax(logits * q.shape[-1] ** -0.5 + bias, axis=-1)
            seen = jnp.einsum("BHTS,BSHD->BTHD", weights.astype(x.dtype), v)
            x = block.attention_norm(x + block.o(seen.reshape(x.shape)), shape.norm_eps)
            hidden = ACTIVATIONS[shape.activation](block.up(x))
            return block.mlp_norm(x + block.down(hidden), shape.norm_eps), None

        return jax.lax.scan(layer, x, self.layers)[0]


class CrossEncoder(nnx.Module):
    """An encoder that reads two texts at once, and a head that scores the second for the first."""

    def __init__(self, shape: EncoderShape, rngs: nnx.Rngs, dtype: str = "float32"):
        M = shape.hidden_size
        self.encoder = Encoder(shape, rngs, dtype)
        self.pool_weight, self.pool_bias = nnx.Param(jnp.zeros((M, M))), nnx.Param(jnp.zeros(M))
        self.score_weight, self.score_bias = nnx.Param(jnp.zeros((M, 1))), nnx.Param(jnp.zeros(1))

    def __call__(self, ids: jax.Array, types: jax.Array, lengths: jax.Array) -> jax.Array:
        """float32 scores [B] of ids and token types int32 [B, T], of which lengths int32 [B] count.

        The score is the logit of one label: higher is more relevant.
        """
        real = jnp.arange(ids.shape[1]) < lengths[:, None]
        hidden = self.encoder.hidden(ids, real, self.encoder.types[...][types])
        first = hidden[:, 0].astype(jnp.float32)
        pooled = jnp.tanh(first @ self.pool_weight[...] + self.pool_bias[...])
        return (pooled @ self.score_weight[...] + self.score_bias[...])[:, 0]

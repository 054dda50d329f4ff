"""One token per row from its logits: temperature, filters, and randomness of its own.

Log-probabilities are raw: of the whole distribution at the sampling temperature, whatever the
filters left out. A filter therefore breaks the ratio to the trainer's own log-probabilities, and
training refuses it unless asked by name.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from masksearch_jax.config import RolloutConfig


class Sampler(NamedTuple):
    """How a token is drawn; hashable, since it is a part of the program.

    A token is kept if it is among the `top_k` likeliest (0: all), in the smallest set of them that
    holds `top_p` of the probability (1: all), and at least `min_p` times as likely as the likeliest
    (0: all). Temperature 0 takes the likeliest.
    """

    temperature: float
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0

    @property
    def filters(self) -> bool:
        return bool(self.top_k) or self.top_p < 1.0 or self.min_p > 0.0


def sampler_of(cfg: RolloutConfig) -> Sampler:
    return Sampler(cfg.temperature, cfg.top_k, cfg.top_p, cfg.min_p)


def sample(
    logits: jax.Array, stream: jax.Array, position: jax.Array, seed: jax.Array, sampler: Sampler
) -> tuple[jax.Array, jax.Array]:
    """Tokens and their raw log-probabilities at the sampling temperature: int32[B], float32[B].

    logits float32[B, V], stream uint32[B, 2], position int32[B], seed uint32[]. Each row draws one
    uniform from `fold_in(seed, stream, position)` and inverts the cumulative distribution: its
    token depends on its own logits and stream alone. At temperature 0 log-probabilities are those
    at 1.
    """
    logprobs = jax.nn.log_softmax(logits / (sampler.temperature or 1.0), axis=-1)
    likeliest = jnp.argmax(logits, axis=-1).astype(jnp.int32)
    if sampler.temperature == 0.0:
        ids = likeliest
    else:
        uniform = jax.vmap(_uniform, in_axes=(None, 0, 0))(seed, stream, position)
        kept = keep(logprobs, sampler)
        cumulative = jnp.cumsum(jnp.where(kept, jnp.exp(logprobs), 0.0), axis=-1)
        # Rounding may lift the sum over tokens left out, so these are asked for again.
        above = kept & (cumulative > uniform[:, None] * cumulative[:, -1:])
        ids = jnp.where(above.any(axis=-1), jnp.argmax(above, axis=-1), likeliest)
        ids = ids.astype(jnp.int32)
    return ids, jnp.take_along_axis(logprobs, ids[:, None], axis=-1)[:, 0]


def keep(logprobs: jax.Array, sampler: Sampler) -> jax.Array:
    """Which tokens pass the filters, bool[B, V]; the likeliest always does, ties pass together."""
    passing = jnp.ones_like(logprobs, jnp.bool_)
    if sampler.min_p > 0.0:
        floor = jnp.max(logprobs, axis=-1, keepdims=True) + jnp.log(sampler.min_p)
        passing &= logprobs >= floor
    if sampler.top_k or sampler.top_p < 1.0:
        ranked = -jnp.sort(-logprobs, axis=-1)
        if sampler.top_k:
            passing &= logprobs >= ranked[:, sampler.top_k - 1, None]
        if sampler.top_p < 1.0:
            probability = jnp.exp(ranked)
            before = jnp.cumsum(probability, axis=-1) - probability  # of all that are likelier
            inside = jnp.where(before < sampler.top_p, ranked, jnp.inf)
            passing &= logprobs >= jnp.min(inside, axis=-1, keepdims=True)
    return passing


def _uniform(seed, stream, position):
    key = jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), stream[0]), stream[1])
    return jax.random.uniform(jax.random.fold_in(key, position))

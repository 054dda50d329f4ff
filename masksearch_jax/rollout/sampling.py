"""One token per row from its logits: temperature, filters, and randomness of its own.

Log-probabilities are raw: of the whole distribution at the sampling temperature, whatever the
filters left out. A filter therefore breaks the ratio to the trainer's own log-probabilities, and
training refuses it unless asked by name.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from masksearch_jax.core.rollout_config import RolloutConfig

BLOCK = 512  # tokens of the vocabulary whose weights are summed first
COLDEST = 1e-5  # temperature that logits of float32 can be divided by, as vLLM has it


class Sampler(NamedTuple):
    """How a token is drawn; hashable, since it is a part of the program.

    A token is kept if it is among the `top_k` likeliest (0: all), in the smallest set of them that
    holds `top_p` of the probability (1: all), and at least `min_p` times as likely as the likeliest
    (0: all). Temperature 0, and any below COLDEST, takes the likeliest.
    """

    temperature: float
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0

    @property
    def is_greedy(self) -> bool:
        return self.temperature < COLDEST

    @property
    def has_filters(self) -> bool:
        return bool(self.top_k) or self.top_p < 1.0 or self.min_p > 0.0


def sampler_of(cfg: RolloutConfig) -> Sampler:
    return Sampler(cfg.temperature, cfg.top_k, cfg.top_p, cfg.min_p)


def sample(
    logits: jax.Array, stream: jax.Array, position: jax.Array, seed: jax.Array, sampler: Sampler
) -> tuple[jax.Array, jax.Array]:
    """Tokens and their raw log-probabilities at the sampling temperature: int32[B], float32[B].

    logits float32[B, V], stream uint32[B, 2], position int32[B], seed uint32[]. Each row draws one
    uniform from `fold_in(seed, stream, position)` and inverts the cumulative distribution: its
    token depends on its own logits and stream alone. Of a greedy sampler log-probabilities are
    those at temperature 1.
    """
    scaled = logits / (1.0 if sampler.is_greedy else sampler.temperature)
    top = jnp.max(scaled, axis=-1, keepdims=True)
    blocks = _blocks(jnp.exp(scaled - top))
    log_total = jnp.log(jnp.sum(jnp.sum(blocks, axis=-1), axis=-1, keepdims=True))
    if sampler.is_greedy:
        ids = jnp.argmax(logits, axis=-1).astype(jnp.int32)
    else:
        uniform = jax.vmap(_uniform, in_axes=(None, 0, 0))(seed, stream, position)
        if sampler.has_filters:
            kept = keep(scaled - top - log_total, *sampler[1:])
            blocks = _blocks(jnp.where(kept, jnp.exp(scaled - top), 0.0))
        ids = _invert(blocks, uniform)
    logprobs = jnp.take_along_axis(scaled, ids[:, None], axis=-1) - top - log_total
    return ids, logprobs[:, 0]


def sample_by_row(
    logits: jax.Array,
    stream: jax.Array,
    position: jax.Array,
    seed: jax.Array,
    samplers: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    """As `sample`, each row by a sampler of its own: float32[B, 4], the fields of Sampler in order.

    One program for all. The vocabulary is sorted in the steps in which a row has a filter.
    """
    temperature, top_k, top_p, min_p = (column[:, None] for column in samplers.T)
    is_greedy = temperature < COLDEST
    scaled = logits / jnp.where(is_greedy, 1.0, temperature)
    top = jnp.max(scaled, axis=-1, keepdims=True)
    weights = jnp.exp(scaled - top)
    log_total = jnp.log(jnp.sum(jnp.sum(_blocks(weights), axis=-1), axis=-1, keepdims=True))
    kept = jax.lax.cond(
        jnp.any(~is_greedy & ((top_k > 0) | (top_p < 1.0) | (min_p > 0.0))),
        lambda: jnp.where(keep(scaled - top - log_total, top_k, top_p, min_p), weights, 0),
        lambda: weights,
    )
    uniform = jax.vmap(_uniform, in_axes=(None, 0, 0))(seed, stream, position)
    drawn = _invert(_blocks(kept), uniform)
    ids = jnp.where(is_greedy[:, 0], jnp.argmax(logits, axis=-1).astype(jnp.int32), drawn)
    logprobs = jnp.take_along_axis(scaled, ids[:, None], axis=-1) - top - log_total
    return ids, logprobs[:, 0]


def _blocks(weights: jax.Array) -> jax.Array:
    """[B, V] as [B, V / BLOCK, BLOCK], the last block filled up with zeros."""
    batch, size = weights.shape
    return jnp.pad(weights, [(0, 0), (0, -size % BLOCK)]).reshape(batch, -1, BLOCK)


def _invert(blocks: jax.Array, uniform: jax.Array) -> jax.Array:
    """The token int32[B] at which the sum of the weights passes `uniform` of the whole.

    First the block in which it does, then the place in it: a sum along all of V is slow anywhere.
    """
    sums = jnp.sum(blocks, axis=-1)
    ends = jnp.cumsum(sums, axis=-1)
    goal = uniform[:, None] * ends[:, -1:]
    block = _first((ends > goal) & (sums > 0), sums > 0)
    before = jnp.take_along_axis(ends, jnp.maximum(block - 1, 0)[:, None], axis=-1)
    before = jnp.where(block[:, None] > 0, before, 0.0)
    inside = jnp.take_along_axis(blocks, block[:, None, None], axis=1)[:, 0]
    passed = before + jnp.cumsum(inside, axis=-1) > goal
    return block * BLOCK + _first(passed & (inside > 0), inside > 0)


def _first(passed: jax.Array, possible: jax.Array) -> jax.Array:
    """The first place [B] that has passed; where rounding let none, the last possible one."""
    last = possible.shape[-1] - 1 - jnp.argmax(possible[:, ::-1], axis=-1)
    return jnp.where(passed.any(axis=-1), jnp.argmax(passed, axis=-1), last).astype(jnp.int32)


def keep(
    logprobs: jax.Array,
    top_k: jax.Array | int,
    top_p: jax.Array | float,
    min_p: jax.Array | float,
) -> jax.Array:
    """Which tokens pass the filters, bool[B, V]; the likeliest always does, ties pass together.

    A filter is one number for all rows, or [B, 1] of each.
    """
    passing = logprobs >= jnp.max(logprobs, axis=-1, keepdims=True) + jnp.log(min_p)
    ranked = -jnp.sort(-logprobs, axis=-1)
    last = jnp.clip(jnp.asarray(top_k, jnp.int32) - 1, 0, logprobs.shape[-1] - 1)
    last = jnp.broadcast_to(last, (len(logprobs), 1))
    passing &= (top_k == 0) | (logprobs >= jnp.take_along_axis(ranked, last, axis=-1))
    probability = jnp.exp(ranked)
    before = jnp.cumsum(probability, axis=-1) - probability  # of all that are likelier
    inside = jnp.where((before < top_p) | (before == 0.0), ranked, jnp.inf)
    return passing & ((top_p >= 1.0) | (logprobs >= jnp.min(inside, axis=-1, keepdims=True)))


def _uniform(seed: jax.Array, stream: jax.Array, position: jax.Array) -> jax.Array:
    key = jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), stream[0]), stream[1])
    return jax.random.uniform(jax.random.fold_in(key, position))

"""The LM head: logits, and log-probabilities of given tokens without all logits at once.

Axis key: B row, T time, M model, V vocabulary.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import NamedTuple, Protocol

import jax
import jax.numpy as jnp

from masksearch_jax.models import shared_weights
from masksearch_jax.parallel import sharding


class LanguageModel(Protocol):
    """What a score of tokens asks of a model."""

    @property
    def head_table(self) -> jax.Array:
        """[V, M]."""
        ...

    def hidden(self, ids: jax.Array, positions: jax.Array, segment_ids: jax.Array) -> jax.Array:
        """Final hidden states [B, T, M] of packed rows; all int [B, T]."""
        ...


class _Score(NamedTuple):
    """float32 of each token; log Σ e^logit with the temperature in it."""

    logprob: jax.Array
    entropy: jax.Array
    log_total: jax.Array


def token_logprobs(
    model: LanguageModel, hidden: jax.Array, targets: jax.Array, temperature: float, chunk: int
) -> tuple[jax.Array, jax.Array]:
    """Log-probability of each target and entropy of its distribution, float32 [B, T] each, nats.

    hidden [B, T, M], targets int [B, T]; logits are divided by `temperature` (0, greedy, counts as
    1). A device scores about `chunk` of its tokens at a time and, where these are not all, again in
    the backward pass, so that [B, T, V] never exists. Each gathers the head's table once and adds
    up its gradient on its own: the compiler would do both over all devices for every chunk.
    """
    score = functools.partial(_token_logprobs, temperature=temperature or 1.0, chunk=chunk)
    rows = ("batch", "time")
    return sharding.on_shards(score, (shared_weights.COLUMNS, rows, rows), rows)(
        model.head_table, hidden, targets
    )


def batch_logprobs(
    model: LanguageModel, batch: Mapping[str, jax.Array], temperature: float, chunk: int
) -> tuple[jax.Array, jax.Array]:
    """`token_logprobs` of the targets of a batch of packed rows, after a forward pass over it."""
    hidden = model.hidden(batch["ids"], batch["positions"], batch["segment_ids"])
    return token_logprobs(model, hidden, batch["targets"], temperature, chunk)


@functools.partial(jax.custom_vjp, nondiff_argnames=("temperature", "chunk"))
def _token_logprobs(
    table: jax.Array, hidden: jax.Array, targets: jax.Array, temperature: float, chunk: int
) -> tuple[jax.Array, jax.Array]:
    return _forward(table, hidden, targets, temperature, chunk)[0]


def _forward(table, hidden, targets, temperature, chunk):
    batch, time, _ = hidden.shape
    chunks = _Chunks(batch, time, chunk)
    weight = shared_weights.whole(table.astype(hidden.dtype), 1)
    if chunks.count == 1:
        scaled = logits(weight, hidden) / temperature
        score = _score(scaled, targets)
    else:
        scaled = None
        split = (chunks.split(hidden), chunks.split(targets))
        score = jax.lax.map(lambda xs: _score(logits(weight, xs[0]) / temperature, xs[1]), split)
        score = _Score(*map(chunks.join, score))
    kept = (jnp.zeros((), table.dtype), weight, hidden, targets, score, scaled)
    return (score.logprob, score.entropy), kept


def _backward(temperature, chunk, kept, cotangents):
    """Products in the dtype of the hidden states, sums over chunks in float32."""
    kind, weight, hidden, targets, score, scaled = kept
    chunks = _Chunks(*targets.shape, chunk)

    def gradients(scaled, h, t, score, upstream):
        """Of one chunk's hidden states and of the table."""
        logprob, entropy = (x[..., None] for x in upstream)
        log_p = scaled - score.log_total[..., None]
        p = jnp.exp(log_p)
        hit = jnp.arange(scaled.shape[-1])[None, None] == t[..., None]
        slope = jnp.where(hit, logprob, 0.0) - p * (
            logprob + entropy * (log_p + score.entropy[..., None])
        )
        slope = (slope / temperature).astype(h.dtype)
        of_table = shared_weights.summed(slope, h, jnp.float32)
        return jnp.einsum("btv,vm->btm", slope, weight), of_table

    if scaled is not None:
        of_hidden, of_table = gradients(scaled, hidden, targets, score, cotangents)
    else:

        def add(total, xs):
            h, *rest = xs
            of_hidden, of_table = gradients(logits(weight, h) / temperature, h, *rest)
            return total + of_table, of_hidden

        start = jnp.zeros(weight.shape, jnp.float32)
        split = jax.tree.map(chunks.split, (hidden, targets, score, cotangents))
        of_table, of_hidden = jax.lax.scan(add, start, split)
        of_hidden = chunks.join(of_hidden)
    return shared_weights.own_sum_of_table(of_table).astype(kind.dtype), of_hidden, None


_token_logprobs.defvjp(_forward, _backward)


class _Chunks(NamedTuple):
    """How `chunk` tokens at a time make [B, T, ...]: all rows, so much of the time."""

    batch: int
    time: int
    chunk: int

    @property
    def width(self) -> int:
        return min(self.time, max(1, self.chunk // self.batch))

    @property
    def count(self) -> int:
        return -(-self.time // self.width)

    def split(self, x: jax.Array) -> jax.Array:
        pad = self.count * self.width - self.time
        padded = jnp.pad(x, [(0, 0), (0, pad)] + [(0, 0)] * (x.ndim - 2))
        return jnp.moveaxis(padded.reshape(self.batch, -1, self.width, *x.shape[2:]), 1, 0)

    def join(self, x: jax.Array) -> jax.Array:
        whole = jnp.moveaxis(x, 0, 1)
        return whole.reshape(self.batch, -1, *x.shape[3:])[:, : self.time]


def _score(scaled: jax.Array, targets: jax.Array) -> _Score:
    top = jnp.max(scaled, axis=-1, keepdims=True)
    shifted = scaled - top
    exp = jnp.exp(shifted)
    total = jnp.sum(exp, axis=-1)
    # A comparison, not a gather: V may be sharded.
    hit = jnp.arange(scaled.shape[-1])[None, None] == targets[..., None]
    target = jnp.sum(jnp.where(hit, shifted, 0.0), axis=-1)
    log_total = jnp.log(total)
    entropy = log_total - jnp.sum(exp * shifted, axis=-1) / total
    return _Score(target - log_total, entropy, top[..., 0] + log_total)


def logits(table: jax.Array, hidden: jax.Array) -> jax.Array:
    """float32 logits [..., V] of hidden [..., M] against a head [V, M]."""
    weight = table.astype(hidden.dtype)
    return jnp.einsum("...m,vm->...v", hidden, weight, preferred_element_type=jnp.float32)

"""The LM head: logits, and log-probabilities of given tokens without all logits at once.

Axis key: B row, T time, M model, V vocabulary.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp

from masksearch_jax import sharding


def token_logprobs(
    model: Any, hidden: jax.Array, targets: jax.Array, temperature: float, chunk: int
) -> tuple[jax.Array, jax.Array]:
    """Log-probability of each target and entropy of its distribution, float32 [B, T] each, nats.

    hidden [B, T, M], targets int [B, T]; logits are divided by `temperature` (0, greedy, counts as
    1). A device scores about `chunk` of its tokens at a time and, where these are not all, again in
    the backward pass, so that [B, T, V] never exists. Each has the head's table whole and adds up
    its gradient on its own: the compiler would gather the one and sum the other over all devices
    for every chunk.
    """
    score = functools.partial(_token_logprobs, temperature=temperature, chunk=chunk)
    rows = ("batch",)
    return sharding.on_shards(score, (("any",), rows, rows), rows)(
        model.head_table, hidden, targets
    )


def _token_logprobs(
    table: jax.Array, hidden: jax.Array, targets: jax.Array, *, temperature: float, chunk: int
) -> tuple[jax.Array, jax.Array]:
    batch, time, _ = hidden.shape
    width = min(time, max(1, chunk // batch))
    pad = -time % width

    def split(x: jax.Array) -> jax.Array:
        padded = jnp.pad(x, [(0, 0), (0, pad)] + [(0, 0)] * (x.ndim - 2))
        return jnp.moveaxis(padded.reshape(batch, -1, width, *x.shape[2:]), 1, 0)

    def score(table: jax.Array, h: jax.Array, t: jax.Array) -> tuple[jax.Array, jax.Array]:
        scaled = logits(table, h) / (temperature or 1.0)
        top = jax.lax.stop_gradient(jnp.max(scaled, axis=-1, keepdims=True))
        shifted = scaled - top
        exp = jnp.exp(shifted)
        total = jnp.sum(exp, axis=-1)
        # A comparison, not a gather: its gradient is no scatter, and V may be sharded.
        hit = jnp.arange(scaled.shape[-1])[None, None] == t[..., None]
        target = jnp.sum(jnp.where(hit, shifted, 0.0), axis=-1)
        log_total = jnp.log(total)
        return target - log_total, log_total - jnp.sum(exp * shifted, axis=-1) / total

    if width < time:
        score = jax.checkpoint(score)
    _, scored = jax.lax.scan(
        lambda carry, xs: (carry, score(table, *xs)), None, (split(hidden), split(targets))
    )
    logprobs, entropy = (jnp.moveaxis(x, 0, 1).reshape(batch, -1)[:, :time] for x in scored)
    return logprobs, entropy


def logits(table: jax.Array, hidden: jax.Array) -> jax.Array:
    """float32 logits [..., V] of hidden [..., M] against a head [V, M]."""
    weight = table.astype(hidden.dtype)
    return jnp.einsum("...m,vm->...v", hidden, weight, preferred_element_type=jnp.float32)

"""How likely a model finds texts: teacher-forced, many short rows in one program.

Axis key: B row, T time.
"""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from masksearch_jax.models import head
from masksearch_jax.models.transformer import Transformer

_STEP = 128  # lengths are rounded up to multiples of it, so that few programs are compiled


def losses(
    model: Transformer,
    rows: Sequence[tuple[Sequence[int], Sequence[int]]],
    batch: int,
    longest: int,
) -> list[float]:
    """Mean negative log-likelihood of each row's target after its context, in nats per token.

    rows: (context ids, target ids). A row of more than `longest` tokens loses the beginning of its
    context. Raises ValueError for a row without a target, or one that leaves no context.
    """
    scored: list[float] = []
    for start in range(0, len(rows), batch):
        block = rows[start : start + batch]
        ids, mask = _arrays(block, batch, longest)
        scored += np.asarray(_mean_losses(model, ids, mask))[: len(block)].tolist()
    return scored


def _arrays(
    block: Sequence[tuple[Sequence[int], Sequence[int]]], batch: int, longest: int
) -> tuple[np.ndarray, np.ndarray]:
    """ids int32[B, T], padded with 0, and bool[B, T], True on targets."""
    cut = []
    for context, target in block:
        if not target or not context or len(target) >= longest:
            raise ValueError(
                f"a row has {len(context)} tokens of context and {len(target)} of target; it needs "
                f"some of both, and room for both in {longest}"
            )
        cut.append((list(context)[-(longest - len(target)) :], list(target)))
    size = max(len(c) + len(t) for c, t in cut)
    shape = (batch, min(longest, -(-size // _STEP) * _STEP))
    ids, mask = np.zeros(shape, np.int32), np.zeros(shape, bool)
    for row, (context, target) in enumerate(cut):
        end = len(context) + len(target)
        ids[row, :end] = [*context, *target]
        mask[row, len(context) : end] = True
    return ids, mask


@jax.jit
def _mean_losses(model: Transformer, ids: jax.Array, mask: jax.Array) -> jax.Array:
    """float32[B]; rows without a target are 0. Padding follows the targets and is never seen."""
    time = jnp.arange(ids.shape[1])
    positions = jnp.broadcast_to(time, ids.shape)
    hidden = model.hidden(ids, positions, jnp.ones_like(ids))
    targets = jnp.roll(ids, -1, axis=1)
    logprobs, _ = head.token_logprobs(model, hidden, targets, 1.0, model.compute.loss_chunk)
    wanted = jnp.roll(mask, -1, axis=1).at[:, -1].set(False)
    total = jnp.sum(jnp.where(wanted, -logprobs, 0.0), axis=1)
    return total / jnp.maximum(jnp.sum(wanted, axis=1, dtype=jnp.float32), 1.0)

"""Bad updates kept out of the weights: of a loss or gradient not finite, or of a spike in the loss.

The decision is part of the update's program and its history part of the optimizer's state, so that
all processes decide alike and a resumed run decides as if it had not stopped.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from masksearch_jax.core.config import SurvivalConfig
from masksearch_jax.core.errors import UserError
from masksearch_jax.parallel.sharding import PyTree


class GuardError(UserError):
    """Training has gone wrong: the message says in which steps and how."""


class GuardState(NamedTuple):
    """The optimizer's state and, of the good losses, their number, mean and mean square."""

    inner: PyTree
    good: jax.Array  # int32
    mean: jax.Array
    square: jax.Array
    skipped: jax.Array  # int32: updates left out, all in all
    skipped_in_a_row: jax.Array  # int32
    skipped_longest: jax.Array  # int32: most in a row, all in all


def guarded(
    tx: optax.GradientTransformation, config: SurvivalConfig
) -> optax.GradientTransformationExtraArgs:
    """`tx`, whose update is nothing, and its state as before, where loss or gradient are bad.

    `update` wants the loss as `value`. A spike is more than `spike_sigma` deviations above the mean
    of the good losses, weighted exponentially over `spike_window`; none is one before so many.
    """

    inner_update = optax.with_extra_args_support(tx).update

    def init(params: PyTree) -> GuardState:
        good, skipped, in_a_row, longest = (jnp.zeros((), jnp.int32) for _ in range(4))
        mean, square = (jnp.zeros((), jnp.float32) for _ in range(2))
        return GuardState(tx.init(params), good, mean, square, skipped, in_a_row, longest)

    def update(
        grads: PyTree, state: GuardState, params: PyTree = None, *, value: jax.Array, **more: object
    ) -> tuple[PyTree, GuardState]:
        value = value.astype(jnp.float32)
        # Known before the update is computed: else old and new state would be held at once.
        ok = jnp.isfinite(value) & jnp.isfinite(optax.tree.norm(grads))
        ok &= ~_is_spike(value, state, config)
        updates, inner = inner_update(grads, state.inner, params, **more)
        # Minus zero is the number that leaves every other as it is, zeros of both signs included.
        updates = jax.tree.map(lambda u: jnp.where(ok, u, jnp.full_like(u, -0.0)), updates)
        inner = jax.tree.map(lambda new, old: jnp.where(ok, new, old), inner, state.inner)
        return updates, _remember(value, ok, state._replace(inner=inner), config)

    return optax.GradientTransformationExtraArgs(init, update)


def _is_spike(value: jax.Array, state: GuardState, config: SurvivalConfig) -> jax.Array:
    if not config.spike_sigma:
        return jnp.zeros((), jnp.bool_)
    deviation = jnp.sqrt(jnp.maximum(state.square - state.mean**2, 0.0))
    high = value - state.mean > config.spike_sigma * deviation
    return high & (state.good >= config.spike_window)


def _remember(
    value: jax.Array, ok: jax.Array, state: GuardState, config: SurvivalConfig
) -> GuardState:
    """The state with this loss counted: all weigh alike until there are many."""
    share = 1.0 / (state.good + 1).astype(jnp.float32)
    share = jnp.maximum(share, 2.0 / (config.spike_window + 1))
    bad = (~ok).astype(jnp.int32)
    in_a_row = (state.skipped_in_a_row + bad) * bad
    return GuardState(
        state.inner,
        state.good + 1 - bad,
        jnp.where(ok, state.mean + share * (value - state.mean), state.mean),
        jnp.where(ok, state.square + share * (value**2 - state.square), state.square),
        state.skipped + bad,
        in_a_row,
        jnp.maximum(state.skipped_longest, in_a_row),
    )


def figures(opt_state: PyTree) -> dict[str, jax.Array]:
    """`skipped…` of a guarded optimizer's state; of another, nothing."""
    if not isinstance(opt_state, GuardState):
        return {}
    names = ("skipped", "skipped_in_a_row", "skipped_longest")
    return {name: getattr(opt_state, name) for name in names}


def updates(opt_state: PyTree) -> int:
    """How many updates the weights have had in all, of a guarded optimizer's state."""
    return int(opt_state.good)


def counts(opt_state: PyTree) -> dict[str, int]:
    """`all_updates` that the weights have had, and `skipped`, those left out, in all."""
    return {"all_updates": updates(opt_state), "skipped": int(opt_state.skipped)}


class Guard:
    """Reads what the updates say of themselves, and stops the run or warns, as configured."""

    def __init__(self, config: SurvivalConfig, opt_state: PyTree, step: int):
        self._config, self._step = config, step
        before = figures(opt_state)
        self._skipped, self._longest = (
            int(before.get(name, 0)) for name in ("skipped", "skipped_longest")
        )

    def check_figures(self, step: int, metrics: Mapping[str, jax.Array | float]) -> None:
        """To be called with the figures after `step` updates. Raises GuardError, see the config."""
        more, self._skipped = int(metrics["skipped"]) - self._skipped, int(metrics["skipped"])
        first, self._step = self._step + 1, step
        longest, self._longest = self._longest, int(metrics["skipped_longest"])
        bad = {k: float(v) for k, v in metrics.items() if not math.isfinite(float(v))}
        if not more and not bad:
            return
        steps = f"step {step}" if first == step else f"steps {first} to {step}"
        what = f"{steps}: {more} updates had a loss or gradient that is not finite, or a spike"
        what += f" (loss {metrics['loss']:.4g}, gradient norm {metrics['grad_norm']:.4g})"
        if bad:
            what += f"; not finite: {', '.join(bad)}"
        # A row of them may have ended since the last look.
        row = self._longest if self._longest > longest else metrics["skipped_in_a_row"]
        if self._config.guard == "stop" or row >= self._config.max_skips:
            raise GuardError(
                f"{what}; go on from the last checkpoint with a lower learning rate or other data "
                "(with config.survival.changed=accept), or set config.survival.guard=skip to leave "
                "such updates out"
            )
        print(f"  warning: {what}; they were left out", file=sys.stderr, flush=True)

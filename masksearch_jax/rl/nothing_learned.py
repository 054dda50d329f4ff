"""Runs that learn nothing: what is said of them, and the error that ends them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from masksearch_jax.core.errors import UserError

_LEFT_OUT = "the guard left out every update"
_MANY_LOST = 0.25  # of the samples, for no fault of the policy; far more are an outage
_INSTEAD = "begin with other weights (init), a lower learning rate or other data"


class NothingLearnedError(UserError):
    """A run that is done and has never updated its weights, or has not for too many steps."""


def check_updates(found: Mapping[str, Any], steps: int, otherwise: str) -> None:
    """Raises NothingLearnedError where a run of `steps` is done and never updated the weights.

    found: `all_updates` that these have had, and `skipped`, those that the guard left out.
    otherwise: why, where it left out none.
    """
    if not found["all_updates"]:
        why = f"{_LEFT_OUT}; {_INSTEAD}" if found.get("skipped") else otherwise
        raise NothingLearnedError(f"{steps} steps are done and none updated the weights: {why}")


def no_spread(steps: int, metrics: Mapping[str, float], overlong_filter: bool = False) -> str:
    """What a run learns nothing from, in figures, and the keys that change it.

    overlong_filter: whether truncated samples are left out.
    """
    if metrics.get("skipped_in_a_row"):
        loss, norm = (metrics.get(name, math.nan) for name in ("loss", "grad_norm"))
        return (
            f"nothing to learn from in {steps} steps: {_LEFT_OUT} (loss {loss:.4g}, gradient norm "
            f"{norm:.4g}); {_INSTEAD}"
        )
    if metrics.get("groups_kept"):
        return (
            f"nothing to learn from in {steps} steps: groups had spread, but what is left out took "
            f"all their tokens (masked_sequences {metrics.get('masked_sequences', 0.0):.3f}, "
            "dropped tokens); raise dapo.sequence_gap, or look why trainer and sampler differ "
            "(sampler_gap)"
        )
    late, failed = (metrics.get(name, 0.0) for name in ("out_of_time", "tool_failures"))
    if late + failed >= _MANY_LOST:
        return (
            f"nothing to learn from in {steps} steps: rollout.deadline ended {late:.3f} of the "
            f"samples (out_of_time) and failed calls {failed:.3f} (tool_failures), for no fault of "
            "the policy, and no group had right and wrong ones among the others; raise "
            "rollout.deadline or search.workers, or look why tools are slow or fail"
        )
    truncated = metrics.get("truncated", 0.0)
    if overlong_filter and truncated >= 0.5:
        return (
            f"nothing to learn from in {steps} steps: dapo.overlong_filter leaves out truncated "
            f"samples, {truncated:.3f} of all, and no group had right and wrong ones among the "
            "others; raise rollout.max_new_tokens, turn dapo.overlong_filter off, or start from a "
            "model trained longer (init)"
        )
    task, threshold = "harder (dapo.curriculum)", "raise"
    accuracy, reward, spread = (
        metrics.get(name, math.nan) for name in ("accuracy", "reward", "reward_spread")
    )
    if not accuracy >= 0.5:
        task = "easier (dapo.curriculum), or start from a model trained longer (init)"
        threshold = "lower"
    short = ""
    if truncated >= 0.5:
        short = f"; {truncated:.3f} of the samples were truncated: raise rollout.max_new_tokens"
    return (
        f"nothing to learn from in {steps} steps: no group had right and wrong samples (accuracy "
        f"{accuracy:.3f}, reward {reward:.3f}, deviation within groups {spread:.4f}); make "
        f"the task {task}, {threshold} "
        "dapo.accuracy_threshold, set dapo.keep_by to spread, raise dapo.group_size, "
        f"dapo.max_refills or rollout.temperature{short}"
    )

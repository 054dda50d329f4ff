"""Groups of samples of one prompt: which of them teach something, and the tokens they train."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from masksearch_jax.core.config import DapoConfig, RolloutConfig
from masksearch_jax.core.rows import Tokens
from masksearch_jax.core.types import NOT_ITS_DOING, Example, Trajectory
from masksearch_jax.rl import advantages
from masksearch_jax.rl.rewards import RewardParts

# Of a token: its id, the next one, whether the policy sampled that, its log-probability when it was
# sampled and under the policy that the step began with, and its sample's advantage.
DAPO_FIELDS = {
    "ids": np.int32,
    "targets": np.int32,
    "loss_mask": np.bool_,
    "logp_sampler": np.float32,
    "logp_old": np.float32,
    "advantages": np.float32,
}


class Group(NamedTuple):
    """One prompt's samples, in sample order, and their rewards."""

    example: Example
    trajectories: list[Trajectory]
    rewards: list[RewardParts]
    stream: int = 0  # the prompt's number in the run


def score_groups(
    groups: Sequence[Group], cfg: DapoConfig, rollout: RolloutConfig
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Totals with the overlong penalty and which samples count [G, n], groups with spread [G].

    Those that ended for no fault of the policy never count; with `overlong_filter`, nor do
    truncated samples.
    """
    shape = (len(groups), cfg.group_size)  # no group is a batch too, of a process that has none

    def table(rows: list[list], dtype: type) -> np.ndarray:
        return np.asarray(rows, dtype).reshape(shape)

    total = table([[r.total for r in g.rewards] for g in groups], np.float32)
    accuracy = table([[r.accuracy for r in g.rewards] for g in groups], np.float32)
    lengths = table([[int(t.sampled.sum()) for t in g.trajectories] for g in groups], np.int64)
    status = table([[t.status for t in g.trajectories] for g in groups], np.str_)
    total = total + advantages.overlong_penalty(
        lengths, rollout.max_new_tokens, cfg.overlong_buffer, cfg.overlong_penalty
    )
    valid = ~np.isin(status, NOT_ITS_DOING)
    if cfg.overlong_filter:
        valid &= status != "out_of_tokens"
    keep = advantages.keep_groups(accuracy, cfg.accuracy_threshold, total, valid=valid)
    return total, valid, keep


def lacking(counts: Sequence[tuple[int, int]], wanted: int) -> int:
    """Prompts per process to sample so that each is likely to get `wanted` groups with spread.

    counts: groups with spread, and all, of each process so far. 0: all have theirs. At most
    `wanted`, whatever share of groups had spread.
    """
    short = max(wanted - min(kept for kept, _ in counts), 0)
    kept, seen = (sum(column) for column in zip(*counts, strict=True))
    return min(math.ceil(short * max(seen, 1) / max(kept, 1)), wanted)


def to_tokens(
    groups: Sequence[Group], advantage: np.ndarray, valid: np.ndarray, count: int
) -> list[Tokens]:
    """`count` sequences of DAPO_FIELDS, group by group; advantage and valid are [G, n].

    Each is a sample's ids and, as targets, those that follow them. Samples of which nothing is to
    be learned, and those beyond the groups, are empty: they have neither loss nor tokens.
    """
    empty: Tokens = {name: np.zeros(0, kind) for name, kind in DAPO_FIELDS.items()}
    samples = [t for g in groups for t in g.trajectories]
    found: list[Tokens] = []
    for sample, counts, gain in zip(samples, valid.flat, advantage.flat, strict=True):
        loss_mask = sample.sampled[1:] & counts
        tokens = {
            "ids": sample.ids[:-1],
            "targets": sample.ids[1:],
            "loss_mask": loss_mask,
            "logp_sampler": sample.logprobs[1:],
            "logp_old": np.zeros(len(loss_mask), np.float32),
            "advantages": np.full(len(loss_mask), gain),
        }
        found.append(tokens if loss_mask.any() else empty)
    return found + [empty] * (count - len(found))

"""Groups of samples of one prompt: which of them teach something, and the batch they make."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from masksearch_jax.core.config import DapoConfig, RolloutConfig
from masksearch_jax.core.types import NOT_ITS_DOING, Example, Trajectory
from masksearch_jax.rl import advantages
from masksearch_jax.rl.rewards import RewardParts


class Group(NamedTuple):
    """One prompt's samples, in sample order, and their rewards."""

    example: Example
    trajectories: list[Trajectory]
    rewards: list[RewardParts]
    stream: int = 0  # the prompt's number in the run


def score_groups(groups: Sequence[Group], cfg: DapoConfig, rollout: RolloutConfig):
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


def to_batch(
    groups: Sequence[Group], advantage: np.ndarray, valid: np.ndarray, rows: int, length: int
) -> dict[str, np.ndarray]:
    """Rows [rows, length] of next-token targets, group by group; advantage and valid are [G, n].

    Samples that do not count, and rows beyond the groups, have mask 0: neither loss nor tokens.
    """
    trajectories = [t for g in groups for t in g.trajectories]
    shape = (rows, length)
    batch = {
        "ids": np.zeros(shape, np.int32),
        "targets": np.zeros(shape, np.int32),
        "positions": np.zeros(shape, np.int32),
        "segment_ids": np.zeros(shape, np.int32),
        "mask": np.zeros(shape, np.bool_),
        "logp_sampler": np.zeros(shape, np.float32),
        "logp_old": np.zeros(shape, np.float32),
        "advantages": np.zeros(shape, np.float32),
    }
    own = zip(trajectories, valid.reshape(-1), advantage.reshape(-1), strict=True)
    for row, (trajectory, counts, gain) in enumerate(own):
        n = len(trajectory.ids) - 1
        batch["ids"][row, :n] = trajectory.ids[:-1]
        batch["targets"][row, :n] = trajectory.ids[1:]
        batch["positions"][row, :n] = np.arange(n)
        batch["segment_ids"][row, :n] = 1
        batch["mask"][row, :n] = trajectory.sampled[1:] & counts
        batch["logp_sampler"][row, :n] = trajectory.logprobs[1:]
        batch["advantages"][row, :n] = gain
    return batch

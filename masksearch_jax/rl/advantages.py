"""Group-relative advantages, which groups train, the overlong penalty. NumPy."""

from __future__ import annotations

from typing import Literal, NamedTuple

import numpy as np

STD_EPS = 1e-6


class Moments(NamedTuple):
    """Sum of squares of rewards less their group's mean, and how many; of a process or of all."""

    squares: float
    number: int


def group_advantages(
    rewards: np.ndarray,
    valid: np.ndarray | None = None,
    kind: Literal["group", "group_no_std", "rloo", "batch"] = "group",
    moments: Moments | None = None,
) -> np.ndarray:
    """Rewards compared within each group: float32[G, n] from [G, n].

    With mean R̄ and unbiased deviation s of the n rewards of a group:

    - group: (R - R̄) / (s + 1e-6) (GRPO, arXiv 2402.03300; DAPO)
    - group_no_std: R - R̄ (Dr. GRPO, arXiv 2503.20783)
    - rloo: R less the mean of the others, n / (n - 1) · (R - R̄) (arXiv 2402.14740)
    - batch: (R - R̄) / (deviation of all R - R̄ of a step + 1e-6) (REINFORCE++ with a baseline,
      arXiv 2501.03262); `moments` are those of all processes, None: this one's

    `valid` bool[G, n] leaves samples out of the group's statistics (a tool failure is not the
    policy's doing); their advantage is 0. With fewer than two valid samples nothing can be compared
    and the whole group gets 0.
    """
    valid = _all_valid(np.asarray(rewards)) if valid is None else np.asarray(valid, bool)
    count = valid.sum(axis=1, keepdims=True)
    centred = _centred(rewards, valid)
    if kind == "batch":
        squares, number = moments or own_moments(rewards, valid)
        scaled = centred / (np.sqrt(squares / max(number - 1, 1)) + STD_EPS)
    elif kind == "rloo":
        scaled = centred * count / np.maximum(count - 1, 1)
    elif kind == "group":
        std = np.sqrt((centred**2).sum(axis=1, keepdims=True) / np.maximum(count - 1, 1))
        scaled = centred / (std + STD_EPS)
    else:
        scaled = centred
    return np.where(valid & (count > 1), scaled, 0.0).astype(np.float32)


def own_moments(rewards: np.ndarray, valid: np.ndarray) -> Moments:
    """Of the groups, [G, n], with at least two valid samples."""
    compared = valid & (valid.sum(axis=1, keepdims=True) > 1)
    return Moments(float((_centred(rewards, compared) ** 2).sum()), int(compared.sum()))


def _centred(rewards: np.ndarray, valid: np.ndarray) -> np.ndarray:
    """float64[G, n]: valid rewards less their group's mean, 0 for others."""
    kept = np.where(valid, np.asarray(rewards, np.float64), 0.0)
    count = valid.sum(axis=1, keepdims=True)
    return np.where(valid, kept - kept.sum(axis=1, keepdims=True) / np.maximum(count, 1), 0.0)


def keep_groups(
    accuracy: np.ndarray,
    threshold: float | None,
    rewards: np.ndarray | None = None,
    tolerance: float = 1e-6,
    valid: np.ndarray | None = None,
) -> np.ndarray:
    """bool[G]: groups to learn from (DAPO's dynamic sampling).

    A group stays when some but not all of its valid samples reach `threshold`; None: whatever they
    reach. Recall is continuous, so that comparing floats would keep groups whose spread is noise,
    which 1/std then blows up; given `rewards` [G, n], their range must also exceed `tolerance`.
    """
    accuracy = np.asarray(accuracy)
    valid = _all_valid(accuracy) if valid is None else np.asarray(valid, bool)
    keep = np.ones(len(accuracy), bool)
    if threshold is not None:
        right = accuracy >= threshold
        keep = (right & valid).any(axis=1) & (~right & valid).any(axis=1)
    if rewards is not None:
        highest = np.where(valid, rewards, -np.inf).max(axis=1)
        lowest = np.where(valid, rewards, np.inf).min(axis=1)
        keep &= highest - lowest > tolerance
    return keep


def overlong_penalty(lengths: np.ndarray, max_len: int, buffer: int, penalty: float) -> np.ndarray:
    """Soft overlong punishment in [-penalty, 0] of DAPO (arXiv 2503.14476, eq. 13).

    lengths: sampled tokens, observations not counted. 0 up to `max_len - buffer`, then linear to
    `-penalty` at `max_len`. `buffer` 0 turns it off. Raises ValueError when buffer exceeds max_len.
    """
    if not 0 <= buffer <= max_len:
        raise ValueError(f"overlong buffer is {buffer}; it must lie in 0..max_len={max_len}")
    lengths = np.asarray(lengths, np.float64)
    if buffer == 0:
        return np.zeros(lengths.shape, np.float32)
    excess = np.clip((lengths - (max_len - buffer)) / buffer, 0.0, 1.0)
    return (-penalty * excess).astype(np.float32)


def _all_valid(x: np.ndarray) -> np.ndarray:
    return np.ones(x.shape, bool)

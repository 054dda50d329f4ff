"""Group-relative advantages, which groups train, the overlong penalty. NumPy."""

from __future__ import annotations

import numpy as np

STD_EPS = 1e-6


def group_advantages(rewards: np.ndarray, valid: np.ndarray | None = None) -> np.ndarray:
    """(R - mean) / (std + 1e-6) within each group, unbiased std: float32[G, n] from [G, n].

    `valid` bool[G, n] leaves samples out of the group's statistics (a tool failure is not the
    policy's doing); their advantage is 0. With fewer than two valid samples nothing can be compared
    and the whole group gets 0.
    """
    rewards = np.asarray(rewards, np.float64)
    valid = _all_valid(rewards) if valid is None else np.asarray(valid, bool)
    count = valid.sum(axis=1, keepdims=True)
    kept = np.where(valid, rewards, 0.0)
    centred = np.where(valid, kept - kept.sum(axis=1, keepdims=True) / np.maximum(count, 1), 0.0)
    std = np.sqrt((centred**2).sum(axis=1, keepdims=True) / np.maximum(count - 1, 1))
    return np.where(valid & (count > 1), centred / (std + STD_EPS), 0.0).astype(np.float32)


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

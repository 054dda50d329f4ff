"""Measures of answers to questions, and bootstrap intervals of their means."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from masksearch_jax.core import scoring

_CELLS = 4_000_000  # resampled values held at once


class Interval(NamedTuple):
    """A mean with its bootstrap interval over `n` items."""

    value: float
    low: float
    high: float
    n: int


def answer_metrics(answer: str | None, golds: Sequence[str]) -> dict[str, float]:
    """em, f1, recall, precision, each the best over the accepted answers; no answer scores 0."""
    if answer is None:
        return {"em": 0.0, "f1": 0.0, "recall": 0.0, "precision": 0.0}
    best = scoring.best_overlap(answer, golds)
    em = float(any(scoring.is_exact_match(answer, gold) for gold in golds))
    return {"em": em, "f1": best.f1, "recall": best.recall, "precision": best.precision}


def bootstrap(values: Sequence[float], resamples: int, seed: int, level: float = 0.95) -> Interval:
    """The mean and its percentile bootstrap interval, the same for the same seed.

    Raises ValueError on no values, fewer than one resample, or a level outside 0..1.
    """
    array = np.asarray(values, np.float64)
    if array.size == 0 or resamples < 1 or not 0 < level < 1:
        raise ValueError(
            f"bootstrap needs values, resamples >= 1 and 0 < level < 1; got {array.size} values, "
            f"{resamples} resamples, level {level}"
        )
    rng = np.random.default_rng(seed)
    at_once = max(1, _CELLS // array.size)
    means = []
    for done in range(0, resamples, at_once):
        shape = (min(at_once, resamples - done), array.size)
        means.append(array[rng.integers(0, array.size, shape)].mean(axis=1))
    tail = (1 - level) / 2
    low, high = np.quantile(np.concatenate(means), [tail, 1 - tail])
    return Interval(float(array.mean()), float(low), float(high), int(array.size))

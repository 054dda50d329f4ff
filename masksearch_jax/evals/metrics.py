"""Measures of answers to questions, by the rules of each set's authors, and bootstrap intervals.

Each set's own script decides what its exact match and F1 are; recall and precision are of the same
words. `RULES` names the scripts.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from masksearch_jax.core import scoring
from masksearch_jax.core.scoring import CLOSED, Rules

_CELLS = 4_000_000  # resampled values held at once

# SQuAD 1.1 (evaluate-v1.1.py): two texts of which nothing is left share nothing.
SQUAD = Rules(empty=0.0, is_chinese=False)
# HotpotQA (hotpot_evaluate_v1.py), 2WikiMultihopQA (2wikimultihop_evaluate_v1.1.py): the same, and
# yes, no, noanswer are all or nothing.
HOTPOTQA = Rules(CLOSED, empty=0.0, is_chinese=False)
# MuSiQue (metrics/answer.py): two texts of which nothing is left agree.
MUSIQUE = Rules(empty=1.0, is_chinese=False)
# SQuAD 2.0 (evaluate-v2.0.py): the same; such accepted answers do not count beside others.
SQUAD_V2 = MUSIQUE._replace(drops_blank=True)
RULES = {
    "squad": SQUAD,
    "hotpotqa": HOTPOTQA,
    "2wiki": HOTPOTQA,
    "musique": MUSIQUE,
    "squad_v2": SQUAD_V2,
}
_OTHERS = "squad"  # rules of a set whose authors publish no script of their own
# Names that a set has elsewhere, as letters and digits.
_NAMES = {
    "hotpot": "hotpotqa",
    "2wikimultihopqa": "2wiki",
    "2wikimultihop": "2wiki",
    "squad2": "squad_v2",
    "squad20": "squad_v2",
    "squadv2": "squad_v2",
    "squadv20": "squad_v2",
}


class Interval(NamedTuple):
    """A mean with its bootstrap interval over `n` items."""

    value: float
    low: float
    high: float
    n: int


@functools.cache
def rules_name(dataset: str, default: str = _OTHERS) -> str:
    """The key in RULES of what a set's answers are compared by; `default` where none is known.

    The name of a set may have more after it, but no letter at once: hotpotqa_dev, 2wiki-500.
    """
    known = _NAMES | {re.sub(r"[\W_]", "", name): name for name in RULES}
    for name in sorted(known, key=len, reverse=True):
        end = r"(?![^\W_])" if name[-1].isdecimal() else r"(?![^\W\d_])"
        if re.match(r"[\W_]*".join(name) + end, dataset.strip().casefold()):
            return known[name]
    return default


def answer_metrics(answer: str | None, golds: Sequence[str], rules: Rules) -> dict[str, float]:
    """recall, precision, f1, em, each the best over the accepted answers; no answer scores 0.

    recall: share of an accepted answer's words that the answer has, precision: share of its words
    that the accepted one has, both counted with repetition, f1: their harmonic mean (Rajpurkar et
    al. 2016). em: 1 where the normal forms are equal. Of two texts of which nothing is left, and
    where golds have no words, `rules.empty` decides. Raises ValueError where there are no golds.
    """
    if answer is None:
        return {"recall": 0.0, "precision": 0.0, "f1": 0.0, "em": 0.0}
    if rules.drops_blank:
        language = bool(rules.is_chinese)
        golds = [gold for gold in golds if scoring.normalise(gold, language)] or [""]
    best = scoring.best_overlap(answer, golds, rules)
    em = float(any(scoring.is_exact_match(answer, gold, rules) for gold in golds))
    return {"recall": best.recall, "precision": best.precision, "f1": best.f1, "em": em}


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
    means = resampled_means(array[:, None], resamples, seed)[:, 0]
    return interval_of(float(array.mean()), means, array.size, level)


def interval_of(value: float, means: np.ndarray, n: int, level: float = 0.95) -> Interval:
    """A value with the percentile interval of its resampled ones."""
    tail = (1 - level) / 2
    low, high = np.quantile(means, [tail, 1 - tail])
    return Interval(value, float(low), float(high), n)


def resampled_means(
    values: np.ndarray, resamples: int, seed: int, counts: np.ndarray | None = None
) -> np.ndarray:
    """float64[R, M], the means of R resamples of the rows of values float64[n, M].

    The rows of a resample depend on n, R and seed alone, so that equal ones are paired. counts
    float64[n]: each row is the sum of so many, which are drawn together; None: of one each.
    """
    n = values.shape[0]
    rng = np.random.default_rng(seed)
    at_once = max(1, _CELLS // n)
    means = []
    for done in range(0, resamples, at_once):
        rows = min(at_once, resamples - done)
        drawn = rng.integers(0, n, (rows, n)) + n * np.arange(rows)[:, None]
        times = np.bincount(drawn.ravel(), minlength=rows * n).reshape(rows, n)
        means.append(times @ values / (n if counts is None else (times @ counts)[:, None]))
    return np.concatenate(means)


def intervals(
    items: Sequence[Mapping[str, float]], resamples: int, seed: int
) -> dict[str, Interval]:
    """Metric → its mean with interval over the items that have it, in the order they are met."""
    names = dict.fromkeys(name for item in items for name in item)
    having: dict[tuple[int, ...], list[str]] = {}
    for name in names:
        rows = tuple(i for i, item in enumerate(items) if name in item)
        having.setdefault(rows, []).append(name)
    found: dict[str, Interval] = {}
    for rows, together in having.items():
        values = np.asarray([[items[i][name] for name in together] for i in rows], np.float64)
        means = resampled_means(values, resamples, seed)
        of = functools.partial(interval_of, n=len(rows))
        for column, name in enumerate(together):
            found[name] = of(float(values[:, column].mean()), means[:, column])
    return {name: found[name] for name in names}


def grouped_intervals(
    groups: Sequence[Sequence[Mapping[str, float]]], resamples: int, seed: int
) -> dict[str, Interval]:
    """Metric → its mean over the members of all groups, which have the same metrics; `n` members.

    Whole groups are resampled: members of one, such as the spans of a paragraph, fare alike, and
    an interval that took each for an item of its own would be too narrow.
    """
    names = list(groups[0][0])
    counts = np.asarray([len(group) for group in groups], np.float64)
    sums = np.asarray([[sum(one[name] for one in group) for name in names] for group in groups])
    means = resampled_means(sums, resamples, seed, counts)
    values, total = sums.sum(axis=0) / counts.sum(), int(counts.sum())
    return {name: interval_of(float(values[i]), means[:, i], total) for i, name in enumerate(names)}

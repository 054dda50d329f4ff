"""Several rankings of one query made into one: by rank, or by scores."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Sequence
from typing import TypeVar

Item = TypeVar("Item", bound=Hashable)
Ranking = Sequence[tuple[Item, float]]


def by_rank(rankings: Sequence[Ranking[Item]], k: float) -> list[tuple[Item, float]]:
    """Reciprocal rank fusion: Σ 1 / (k + rank), ranks from 1 (Cormack et al., SIGIR 2009)."""
    total: dict[Item, float] = defaultdict(float)
    for ranking in rankings:
        for rank, (item, _) in enumerate(ranking, start=1):
            total[item] += 1.0 / (k + rank)
    return _best_first(total)


def by_score(
    rankings: Sequence[Ranking[Item]], weights: Sequence[float]
) -> list[tuple[Item, float]]:
    """The weighted sum of scores, of which each ranking's reach from 0 (its last) to 1 (its first).

    What a ranking lacks counts as its last there.
    """
    total: dict[Item, float] = defaultdict(float)
    for ranking, weight in zip(rankings, weights, strict=True):
        scores = [score for _, score in ranking]
        low, spread = min(scores, default=0.0), max(scores, default=0.0) - min(scores, default=0.0)
        for item, score in ranking:
            total[item] += weight * ((score - low) / spread if spread > 0 else 1.0)
    return _best_first(total)


def _best_first(total: dict[Item, float]) -> list[tuple[Item, float]]:
    """Equal scores in the order in which the rankings named them."""
    return sorted(total.items(), key=lambda found: -found[1])

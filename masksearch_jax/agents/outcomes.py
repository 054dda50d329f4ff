"""What became of attempts at demonstrations, by example and in words."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

from masksearch_jax.agents.scripted_teacher import Rejection
from masksearch_jax.agents.teachers import Outcome
from masksearch_jax.core.types import Example

_QUOTED = 3  # rejections that an error quotes


def grouped(outcomes: Sequence[Outcome]) -> dict[str, list[Outcome]]:
    """By the ids of their examples."""
    found: dict[str, list[Outcome]] = {}
    for outcome in outcomes:
        found.setdefault(outcome.example_id, []).append(outcome)
    return found


def unanswerable(example: Example, attempts: int) -> list[Outcome]:
    """The outcomes of an example that no answer could be compared with: no teacher is asked."""
    return [Rejection(example.id, "no_known_answer")] * attempts


def named(rejections: Iterator[Rejection]) -> tuple[Counter[str], str]:
    """How many there are by reason, and the first of them in words."""
    reasons: Counter[str] = Counter()
    first: list[str] = []
    for rejected in rejections:
        reasons[rejected.reason] += 1
        if len(first) < _QUOTED:
            first.append(f"{rejected.example_id}: {rejected.reason} {rejected.detail}".rstrip())
    return reasons, "; ".join(first)


def listed(counted: Counter[str]) -> str:
    """Counts in words, the largest first."""
    return ", ".join(f"{n} {reason}" for reason, n in counted.most_common())

"""What a suite reports: per-item scores of a trajectory, and their means with intervals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from masksearch_jax.core import markup, scoring
from masksearch_jax.core.types import Example, RampExample, Trajectory
from masksearch_jax.evals.metrics import answer_metrics, bootstrap

METRICS = ("span_recall", "em", "f1", "format_rate", "searches")


def score(example: Example, trajectory: Trajectory) -> dict[str, float]:
    """The suite's metrics for one trajectory.

    RAMP: `span_recall` by slot, `em` 1 when every fill is its span, `f1` the mean of the slots' F1.
    QA: `span_recall` the answer's token recall, `em` and `f1` over the accepted answers. Both:
    `format_rate` 1 when well-formed, `searches` the number of search turns.
    """
    answer = markup.extract_answer(trajectory.text_by("policy")) or None
    if isinstance(example, RampExample):
        scores = _score_fills(example, answer)
    else:
        measured = answer_metrics(answer, example.answers)
        scores = {"span_recall": measured["recall"], "em": measured["em"], "f1": measured["f1"]}
    scores["format_rate"] = float(markup.is_well_formed(trajectory.segments))
    scores["searches"] = float(len(trajectory.turns))
    return scores


def summarise(
    items: Sequence[Mapping[str, float]], resamples: int, seed: int, lost: Mapping[str, int]
) -> dict[str, dict[str, Any]]:
    """{metric: {value, low, high, n, lost}}, 95% bootstrap intervals.

    lost: by reason, those that are not among the `n` items. Raises ValueError on no items.
    """
    if not items:
        raise ValueError(
            "a suite without items has no summary; check its examples and their filter"
        )
    return {
        name: bootstrap([item[name] for item in items], resamples, seed)._asdict()
        | {"lost": dict(lost)}
        for name in items[0]
    }


def table(results: Mapping[str, Any]) -> str:
    """Results as lines of text, one per suite and condition, with what their means leave out."""
    lines = []
    for suite, conditions in results.items():
        for condition, metrics in conditions.items():
            cells = "  ".join(
                f"{name} {m['value']:.3f} [{m['low']:.3f}, {m['high']:.3f}]"
                for name, m in metrics.items()
            )
            first = next(iter(metrics.values()))
            lost = "".join(f", without {n} {reason}" for reason, n in first["lost"].items())
            lines.append(f"{suite:8} {condition:10} {cells}  n {first['n']}{lost}")
    return "\n".join(lines)


def _score_fills(example: RampExample, answer: str | None) -> dict[str, float]:
    fills = scoring.fill_slots(example, answer or "")
    pairs = [(fill or "", span.text) for fill, span in zip(fills, example.spans, strict=True)]
    return {
        "span_recall": scoring.span_recall(example, answer),
        "em": float(all(scoring.is_exact_match(fill, gold) for fill, gold in pairs)),
        "f1": sum(scoring.overlap(fill, gold).f1 for fill, gold in pairs) / example.k,
    }

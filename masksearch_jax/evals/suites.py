"""What a suite reports: per-item scores of a trajectory, and their means with intervals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

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
    items: Sequence[Mapping[str, float]], resamples: int, seed: int
) -> dict[str, dict[str, float]]:
    """{metric: {value, low, high, n}}, 95% bootstrap intervals. Raises ValueError on no items."""
    if not items:
        raise ValueError(
            "a suite without items has no summary; check its examples and their filter"
        )
    return {
        name: bootstrap([item[name] for item in items], resamples, seed)._asdict()
        for name in items[0]
    }


def _score_fills(example: RampExample, answer: str | None) -> dict[str, float]:
    fills = scoring.fill_slots(example, answer or "")
    pairs = [(fill or "", span.text) for fill, span in zip(fills, example.spans, strict=True)]
    return {
        "span_recall": scoring.span_recall(example, answer),
        "em": float(all(scoring.exact(fill, gold) for fill, gold in pairs)),
        "f1": sum(scoring.overlap(fill, gold).f1 for fill, gold in pairs) / example.k,
    }

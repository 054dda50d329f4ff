"""What a suite reports: per-item scores of a trajectory, and their means with intervals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from masksearch_jax.core import markup, scoring
from masksearch_jax.core.types import Example, RampExample, Trajectory
from masksearch_jax.evals.metrics import answer_metrics, bootstrap

# Measures of a suite's items by the kind of example; `source_hit` where the source is known.
RAMP_METRICS = ("span_recall", "em", "f1", "format_rate", "searches", "source_hit")
QA_METRICS = ("recall", *RAMP_METRICS[1:])


def score(example: Example, trajectory: Trajectory) -> dict[str, float]:
    """The suite's metrics for one trajectory.

    RAMP: `span_recall` by slot, `em` 1 when every fill is its span, `f1` the mean of the slots' F1.
    QA: `recall` of the answer's tokens, `em` and `f1`, each the best over the accepted answers.
    Both: `format_rate` 1 when well-formed, `searches` the number of search turns, `source_hit` 1
    when a search showed the passage that the example masks, or a gold passage of the question;
    absent where neither is known.
    """
    answer = markup.extract_answer(trajectory.text_by("policy")) or None
    if isinstance(example, RampExample):
        scores, sources = _score_fills(example, answer), {example.passage_id}
    else:
        measured = answer_metrics(answer, example.answers)
        scores, sources = {name: measured[name] for name in QA_METRICS[:3]}, set(example.gold)
    scores["format_rate"] = float(markup.is_well_formed(trajectory.segments))
    scores["searches"] = float(len(trajectory.turns))
    if sources:
        shown = {shown for turn in trajectory.turns for shown in turn.passage_ids}
        scores["source_hit"] = float(bool(shown & sources))
    return scores


def type_of(example: Example) -> str:
    """What results are shown by: the number of masks, k1 to k4, or the question's type."""
    return f"k{example.k}" if isinstance(example, RampExample) else example.type


def summarise(
    items: Sequence[Mapping[str, float]], resamples: int, seed: int, lost: Mapping[str, int]
) -> dict[str, dict[str, Any]]:
    """{metric: {value, low, high, n, lost}}, 95% bootstrap intervals.

    lost: by reason, those that are not among the items. `n` counts the items that have the metric.
    Raises ValueError on no items.
    """
    if not items:
        raise ValueError(
            "a suite without items has no summary; check its examples and their filter"
        )
    names = dict.fromkeys(name for item in items for name in item)
    return {
        name: bootstrap([i[name] for i in items if name in i], resamples, seed)._asdict()
        | {"lost": dict(lost)}
        for name in names
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
        "em": float(scoring.exact_match(example, answer or "")),
        "f1": sum(scoring.overlap(fill, gold).f1 for fill, gold in pairs) / example.k,
    }

"""Curves of a study: what its trainings measured over their updates, the seeds of an arm together.

A band is from the least to the greatest of the seeds. What grows is told from a curve's first and
last quarter.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from masksearch_jax.core.types import JsonObject

# What the page shows, in this order, as far as a training has measured it.
METRICS = (
    *("heldout_span_recall", "heldout_questions_recall", "reward", "answer", "accuracy"),
    *("answer_length", "sampled_tokens", "searches", "entropy", "loss", "agent_nll"),
)
LENGTH = "answer_length"  # words of answers / of the right ones
LONGER = 0.1  # an answer that is longer by this share of the right one's length has grown

Rows = Sequence[Mapping[str, float]]


def read(path: Path) -> list[JsonObject]:
    """The rows of a training's metrics.jsonl in order of their steps.

    The last one of each step: a training that was stopped has written some steps twice, and may
    have left a line half written.
    """
    latest: dict[int, JsonObject] = {}
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else ():
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            continue
        latest[row["step"]] = row
    return [latest[step] for step in sorted(latest)]


def over_seeds(by_seed: Sequence[Rows], metrics: Iterable[str] = METRICS) -> JsonObject:
    """{metric: {steps, mean, low, high}}, at the steps at which every seed has a finite value."""
    found: JsonObject = {}
    for metric in metrics:
        values = [_values(rows, metric) for rows in by_seed]
        steps = sorted(set.intersection(*map(set, values))) if values else []
        if not steps:
            continue
        table = np.asarray([[own[step] for step in steps] for own in values])
        parts = {"mean": table.mean(0), "low": table.min(0), "high": table.max(0)}
        found[metric] = {"steps": steps} | {name: part.tolist() for name, part in parts.items()}
    return found


def change(by_seed: Sequence[Rows], metric: str) -> JsonObject:
    """How a metric moved: `first` and `last`, means over seeds of a curve's first and last quarter.

    `low` and `high`: the least and the greatest change of a seed. Empty where a seed has fewer than
    two values.
    """
    ends = []
    for rows in by_seed:
        values = list(_values(rows, metric).values())
        if len(values) < 2:
            return {}
        quarter = max(1, len(values) // 4)
        ends.append((float(np.mean(values[:quarter])), float(np.mean(values[-quarter:]))))
    if not ends:
        return {}
    first, last = np.asarray(ends).T
    moved = (last - first).tolist()
    return {
        "first": float(first.mean()),
        "last": float(last.mean()),
        "low": min(moved),
        "high": max(moved),
    }


def lengthened(by_seed: Sequence[Rows]) -> JsonObject:
    """What reinforcement learning did to the length of answers, and the reward beside it.

    {"length": a change, "reward": a change, "has_grown"}: grown where every seed's answers are
    longer by `LONGER`. Empty where lengths were not measured.
    """
    length = change(by_seed, LENGTH)
    if not length:
        return {}
    grown = length["low"] > LONGER
    return {"length": length, "reward": change(by_seed, "reward"), "has_grown": grown}


def _values(rows: Rows, metric: str) -> dict[float, float]:
    """Step → value, where there is a finite one."""
    found = {row["step"]: row[metric] for row in rows if metric in row}
    return {s: v for s, v in found.items() if isinstance(v, int | float) and np.isfinite(v)}

"""Means of an evaluation with intervals: by suite and method, broken down, compared; as a table."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from masksearch_jax.core.types import JsonObject
from masksearch_jax.evals.metrics import (
    Interval,
    grouped_intervals,
    interval_of,
    intervals,
    resampled_means,
)

RESULTS = "eval.json"  # in the folder of an evaluation
Cell = JsonObject  # value, low, high, n and, where some are left out, lost: their number by reason


class Bootstrap(NamedTuple):
    """How intervals are made: resamples, and the seed of them."""

    resamples: int
    seed: int


class Scored(NamedTuple):
    """An item that has a score. slots: type and recall of each masked span of a RAMP example."""

    id: str
    scores: Mapping[str, float]
    labels: Mapping[str, str]
    slots: Sequence[tuple[str, float]] = ()


Place = tuple[str, str]  # suite, method
Items = Mapping[Place, Sequence[Scored]]


def summarise(
    items: Sequence[Mapping[str, float]], how: Bootstrap, lost: Mapping[str, int]
) -> dict[str, Cell]:
    """{metric: {value, low, high, n, lost}}, 95% bootstrap intervals.

    lost: by reason, those that are not among the items. `n` counts the items that have the metric.
    Raises ValueError on no items.
    """
    if not items:
        raise ValueError(
            "a suite without items has no summary; check its examples and their filter"
        )
    found = intervals(items, how.resamples, how.seed)
    return {name: cell._asdict() | {"lost": dict(lost)} for name, cell in found.items()}


def failures(items: Items, suite: str) -> dict[str, int]:
    """By method, attempts that a failing tool ended before the one that counts."""
    own = {method: scored for (name, method), scored in items.items() if name == suite}
    return {m: int(sum(i.scores["tool_failures"] for i in scored)) for m, scored in own.items()}


def breakdown(items: Sequence[Scored], how: Bootstrap) -> dict[str, dict[str, dict[str, Cell]]]:
    """{by: {label: {metric: {value, low, high, n}}}}: by dataset, type, hops, masks, span_type, …

    By span_type `n` counts masked spans, of which several are of one item; intervals are over items
    there too. What all items share is left out, such as the one data set of a suite.
    """
    found: dict[str, dict[str, list[Mapping[str, float]]]] = {}
    spans: dict[str, list[list[Mapping[str, float]]]] = {}
    for item in items:
        for by, label in item.labels.items():
            found.setdefault(by, defaultdict(list))[label].append(item.scores)
        own: dict[str, list[Mapping[str, float]]] = defaultdict(list)
        for kind, recall in item.slots:
            own[kind].append({"span_recall": recall})
        for kind, recalls in own.items():
            spans.setdefault(kind, []).append(recalls)
    parts = {
        by: {label: _cells(intervals(s, *how)) for label, s in sorted(by_label.items())}
        for by, by_label in found.items()
        if len(by_label) > 1 or by in ("masks", "type", "status")
    }
    if len(spans) > 1:
        told = {kind: _cells(grouped_intervals(s, *how)) for kind, s in sorted(spans.items())}
        parts["span_type"] = told
    return parts


def _cells(found: Mapping[str, Interval]) -> dict[str, Cell]:
    return {name: cell._asdict() for name, cell in found.items()}


def average(items: Items, metric_of: Mapping[str, str], how: Bootstrap) -> dict[str, Cell]:
    """{method: cell}: the mean over suites of each suite's own metric, where a method has them all.

    metric_of: suite → its metric. The suites are resampled apart. `n` counts suites.
    """
    found: dict[str, Cell] = {}
    for method in dict.fromkeys(method for _, method in items):
        values, means = [], []
        for number, (suite, metric) in enumerate(metric_of.items()):
            own = [i.scores[metric] for i in items.get((suite, method), ())]
            if not own:
                break
            values.append(float(np.mean(own)))
            column = np.asarray(own, np.float64)[:, None]
            means.append(resampled_means(column, how.resamples, how.seed + number)[:, 0])
        if values and len(values) == len(metric_of):
            mean = float(np.mean(values))
            found[method] = interval_of(mean, np.mean(means, axis=0), len(values))._asdict()
    return found


def differences(mine: Items, others: Items, how: Bootstrap) -> dict[str, dict[str, dict]]:
    """{suite: {method: {metric: {value, low, high, n}}}}: paired, mine minus the others'.

    Over the items that both have, by id.
    """
    found: dict[str, dict[str, dict]] = {}
    for (suite, method), items in mine.items():
        theirs = {item.id: item.scores for item in others.get((suite, method), ())}
        pairs = [(item.scores, theirs[item.id]) for item in items if item.id in theirs]
        apart = [{name: a[name] - b[name] for name in a if name in b} for a, b in pairs]
        if apart:
            cells = intervals(apart, *how)
            told = {name: cell._asdict() for name, cell in cells.items()}
            found.setdefault(suite, {})[method] = told
    return found


def by_condition(summary: JsonObject) -> tuple[JsonObject, JsonObject]:
    """Of eval.json, what a recipe's summary.json says: {suite: {condition: …}}, twice.

    The results, and the same by number of masks or type of question. The agent's condition is
    `search`: with the configured search, as no_search and random are without and with another.
    """
    whole: JsonObject = {}
    typed: JsonObject = {}
    for suite, by_method in summary["results"].items():
        for method, cells in by_method.items():
            condition = "search" if method == "agent" else method
            parts = summary["breakdown"][suite][method]
            whole.setdefault(suite, {})[condition] = cells
            by_type = parts.get("masks") or parts.get("type") or {}
            typed.setdefault(suite, {})[condition] = by_type
    return whole, typed


# ---- as text


def table(summary: JsonObject) -> str:
    """eval.json as lines of text: methods down, suites across, and their average (Table 2).

    Below it what means leave out, and where they were asked for a user's measures, the judges, the
    results without items that were trained on, and paired differences.
    """
    results, suites = summary["results"], summary["suites"]
    metrics = {name: suite["metric"] for name, suite in suites.items()}
    lines = [["", *metrics, "average"], ["", *metrics.values(), ""]]
    for method in _methods(results):
        cells = [results[s].get(method, {}).get(metric) for s, metric in metrics.items()]
        lines.append([method, *map(_shown, cells), _shown(summary["average"].get(method))])
    told = _aligned(lines)
    told += list(_counts(results, metrics))
    for measure, function in summary.get("metrics", {}).items():
        told += _own(results, list(metrics), measure, function)
    for judge in summary.get("judges", ()):
        told += _judged(judge, list(metrics))
    if leakage := summary.get("leakage"):
        told += _unshared(leakage, metrics)
    if compared := summary.get("compare"):
        told.append(f"paired differences to {compared['run']}:")
        rows = [["", *metrics]]
        for method in _methods(compared["differences"]):
            cells = [
                compared["differences"].get(s, {}).get(method, {}).get(m)
                for s, m in metrics.items()
            ]
            rows.append([method, *(_shown(c, "+") for c in cells)])
        told += _aligned(rows)
    return "\n".join(told)


def _own(
    results: Mapping[str, Any], suites: Sequence[str], measure: str, function: str
) -> list[str]:
    """A measure of a user's function."""
    rows = [["", *suites]]
    for method in _methods(results):
        cells = [results.get(suite, {}).get(method, {}).get(measure) for suite in suites]
        rows.append([method, *map(_shown, cells)])
    return [f"{measure} by {function}:", *_aligned(rows)]


def _judged(judge: JsonObject, suites: Sequence[str]) -> list[str]:
    """What a judge finds right, how much of it exact match agrees with, and what is unreadable."""
    rows = [["", *suites]]
    for method in _methods(judge["results"]):
        cells = [judge["results"].get(suite, {}).get(method) for suite in suites]
        rows.append([method, *map(_verdict, cells)])
    return [f"judged right by {judge['model']}:", *_aligned(rows)]


def _verdict(cell: JsonObject | None) -> str:
    if cell is None:
        return "–"
    agreement = cell["agreement"]["value"] if cell["agreement"] else None
    agreeing = "" if agreement is None else f", em agrees {agreement:.3f}"
    return f"{_shown(cell)}{agreeing}, unreadable {cell['unreadable']}"


def _unshared(leakage: JsonObject, metrics: Mapping[str, str]) -> list[str]:
    """The results over the items that share nothing with what was trained on."""
    own = {suite: told["without"] for suite, told in leakage["suites"].items()}
    counts = {s: sum(told["shared"].values()) for s, told in leakage["suites"].items()}
    rows = [["", *metrics], ["", *(f"{counts.get(s, 0)} items left out" for s in metrics)]]
    for method in _methods(own):
        cells = [own.get(s, {}).get(method, {}).get(metric) for s, metric in metrics.items()]
        rows.append([method, *map(_shown, cells)])
    head = f"without items that share a passage, title or text with {leakage['path']}:"
    return [head, *_aligned(rows), *_unknown(leakage)]


def _unknown(leakage: JsonObject) -> list[str]:
    """Of which items no more than the words could be compared with what was trained on."""
    return [
        f"{suite}: {told['unknown']} of {told['items']} items name passages by id alone, and "
        f"{leakage['path']} has none of them: their words alone were compared"
        for suite, told in leakage["suites"].items()
        if told.get("unknown")
    ]


def _methods(results: Mapping[str, Mapping[str, Any]]) -> list[str]:
    return list(dict.fromkeys(method for by_method in results.values() for method in by_method))


def _shown(cell: Mapping[str, float] | None, sign: str = "") -> str:
    if cell is None:
        return "–"
    value, low, high = (f"{cell[key]:{sign}.3f}" for key in ("value", "low", "high"))
    return f"{value} [{low}, {high}]"


def _counts(results: Mapping[str, Mapping[str, Any]], metrics: Mapping[str, str]) -> Iterable[str]:
    """n of each suite and method, and what it is without."""
    for suite, by_method in results.items():
        same: dict[str, list[str]] = {}
        for method, cells in by_method.items():
            cell = cells[metrics[suite]]
            lost = "".join(f", without {n} {reason}" for reason, n in cell["lost"].items())
            same.setdefault(f"n {cell['n']}{lost}", []).append(method)
        for told, methods in same.items():
            which = f" {', '.join(methods)}" if len(same) > 1 else ""
            yield f"{suite}{which}: {told}"


def _aligned(lines: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    rows = (
        "  ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)) for line in lines
    )
    return [row.rstrip() for row in rows]

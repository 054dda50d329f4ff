"""What evaluations found, one entry for each folder, suite and method."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

from masksearch_jax.core.types import JsonObject
from masksearch_jax.viewer import facts, load, names
from masksearch_jax.viewer.load import Run, as_dict, as_list, is_number

# Parts of eval.json that have a place of their own on the page, in the folder's config, or in a
# picture beside it.
_FIGURES = {
    *("version", "results", "average", "breakdown", "compare", "config", "difficulty", "judges"),
}
_LISTED = {"shared_ids", "without"}  # of leakage: one entry an item, results once more


def read(run: Run, number: int) -> tuple[list[JsonObject], list[JsonObject]]:
    """Entries of all evaluations of a run; and of each evaluation what made it.

    An entry has its metrics as [value, low, high, n], in all and by each breakdown.
    """
    entries: list[JsonObject] = []
    origins: list[JsonObject] = []
    for folder in run.folders:
        if load.EVALUATION in folder.files:
            found = load.read_object(folder.path / load.EVALUATION)
            place = {"run": number, "place": names.place(folder.parts, is_evaluation=True)}
            entries += [place | entry for entry in _entries(found)]
            origins.append(place | _origin(found))
    return entries, origins


def main_metrics(run: Run) -> dict[str, str]:
    """The metric that each suite is read by."""
    folders = [f for f in run.folders if load.EVALUATION in f.files]
    suites = itertools.chain(*(load.suites(f).items() for f in folders))
    return {name: suite["metric"] for name, suite in suites if as_dict(suite).get("metric")}


def _entries(found: JsonObject) -> list[JsonObject]:
    parts = as_dict(found.get("breakdown"))
    return [
        {
            "suite": suite,
            "method": method,
            "metrics": _cells(metrics),
            "by": {
                by: {str(label): _cells(cells) for label, cells in as_dict(labels).items()}
                for by, labels in as_dict(as_dict(parts.get(suite)).get(method)).items()
            },
            "lost": _lost(metrics),
            "judges": list(_judges(found, suite, method)),
        }
        for suite, methods in as_dict(found.get("results")).items()
        for method, metrics in as_dict(methods).items()
        if isinstance(metrics, dict)
    ]


def _origin(found: JsonObject) -> JsonObject:
    """Averages over the suites by method, differences to another run, and all else as pairs."""
    compared = as_dict(found.get("compare"))
    differences = as_dict(compared.get("differences"))
    others = {k: v for k, v in found.items() if k not in _FIGURES}
    made_by = {k: v for k, v in as_dict(others.pop("provenance", None)).items() if k != "config"}
    leakage = as_dict(others.get("leakage"))
    if leakage:
        suites = as_dict(leakage.get("suites")).items()
        counted = {s: {k: v for k, v in as_dict(t).items() if k not in _LISTED} for s, t in suites}
        others["leakage"] = leakage | {"suites": counted}
    return {
        "average": _cells(found.get("average")),
        "compare": {
            "run": str(compared.get("run", "")),
            "differences": {
                suite: {method: _cells(cells) for method, cells in as_dict(methods).items()}
                for suite, methods in differences.items()
            },
        },
        "leakage": _leakage(leakage),
        "difficulty": {
            suite: {
                factor: [_bin(as_dict(one)) for one in as_list(bins)]
                for factor, bins in as_dict(factors).items()
            }
            for suite, factors in as_dict(found.get("difficulty")).items()
        },
        "pairs": [[k, v] for k, v in facts.flatten(others | made_by) if v not in ({}, None, "")],
    }


def _judges(found: JsonObject, suite: str, method: str) -> Iterator[JsonObject]:
    """What each judge says of a suite and method."""
    for judge in map(as_dict, as_list(found.get("judges"))):
        cell = as_dict(as_dict(judge.get("results")).get(suite)).get(method)
        cells = _cells({"cell": cell, "agreement": as_dict(cell).get("agreement")})
        if "cell" in cells:
            unreadable = as_dict(cell).get("unreadable")
            yield {"model": str(judge.get("model")), "unreadable": unreadable} | cells


def _leakage(found: JsonObject) -> JsonObject:
    """Of each suite how many items there are, how many share something, and results without."""
    suites: JsonObject = {}
    for suite, told in as_dict(found.get("suites")).items():
        counts = as_dict(as_dict(told).get("shared")).values()
        without = as_dict(as_dict(told).get("without"))
        suites[suite] = {
            "items": as_dict(told).get("items"),
            "shared": sum(n for n in counts if is_number(n)),
            "without": {method: _cells(cells) for method, cells in without.items()},
        }
    return {"suites": suites}


def _bin(found: JsonObject) -> JsonObject:
    """A bin of a factor of difficulty: its label, its spans, and what came of these."""
    return {"label": str(found.get("label")), "n": found.get("n"), "cells": _cells(found)}


def _cells(metrics: Any) -> dict[str, list[float | None]]:
    """A value with its interval and the number of items; None where one is not known."""
    cells = {name: as_dict(cell) for name, cell in as_dict(metrics).items()}
    return {
        name: [c[k] if is_number(c.get(k)) else None for k in ("value", "low", "high", "n")]
        for name, c in cells.items()
        if is_number(c.get("value"))
    }


def _lost(metrics: JsonObject) -> dict[str, int]:
    """Items without a score, by reason."""
    lost = (as_dict(as_dict(cell).get("lost")) for cell in metrics.values())
    return {names.words(why): n for why, n in next(lost, {}).items() if is_number(n)}

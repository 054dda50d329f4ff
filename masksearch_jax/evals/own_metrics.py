"""Measures of a user's own functions, added to a finished evaluation: trajectories and results."""

from __future__ import annotations

import inspect
import json
import math
import numbers
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from etils import epath

from masksearch_jax.core.errors import ConfigError, UserError
from masksearch_jax.core.files import writing
from masksearch_jax.core.types import Example, JsonObject, Trajectory
from masksearch_jax.core.user_code import import_function
from masksearch_jax.evals import results, rows
from masksearch_jax.evals.results import Bootstrap, Scored
from masksearch_jax.evals.scores import CALLS, FANOUTQA_METRICS, QA_METRICS, RAMP_METRICS

KEY = "config.eval.metrics"
JUDGE = "judge"  # the measure that a judge adds
_KEPT = "; the evaluation is kept, and the same command adds the measures once this is mended"
_OURS = {*RAMP_METRICS, *QA_METRICS, *FANOUTQA_METRICS, JUDGE}

# A measure of an item, or named ones; a name that is left out says nothing of the item.
OwnMetric = Callable[[Example, Trajectory], Any]


class MetricError(UserError):
    """A user's function gives no measure of an item."""


def functions(specs: Sequence[str]) -> dict[str, OwnMetric]:
    """What the config names, by that. Raises ConfigError."""
    found = {spec: import_function(spec, KEY, ("example", "trajectory")) for spec in specs}
    for spec, function in found.items():
        if inspect.iscoroutinefunction(function):
            raise ConfigError(f"{KEY} has {spec!r}, an async function; it must be an ordinary one")
    return found


def add(specs: Sequence[str], path: epath.Path, summary: JsonObject, how: Bootstrap) -> None:
    """Adds measures to the lines of trajectories.jsonl, and to eval.json what comes of them.

    `metrics` of the latter names the function of each. What the same functions gave before is
    replaced. Raises MetricError, and nothing is changed then.
    """
    measures = functions(specs)
    known = summary.get("metrics", {})
    stale = {name for name, spec in known.items() if spec in measures}
    given: dict[str, str] = {}
    by_place: dict[results.Place, list[Scored]] = {}
    with writing(path) as file:
        for line in _lines(path):
            row = rows.row_of(line)
            own = _measured(measures, line, row.example, given)
            kept = {name: x for name, x in line["scores"].items() if name not in stale}
            line["scores"] = kept | own
            file.write(json.dumps(line) + "\n")
            scored = row.scored._replace(scores=own, slots=())
            by_place.setdefault(row.place, []).append(scored)
    given = {name: given[name] for name in sorted(given, key=lambda n: specs.index(given[n]))}
    summary["metrics"] = {n: spec for n, spec in known.items() if n not in stale} | given
    for (suite, method), items in by_place.items():
        cells = summary["results"][suite][method]
        lost = next(iter(cells.values()))["lost"]
        _replace(cells, stale, results.summarise([i.scores for i in items], how, lost))
        parts = results.breakdown(items, how)
        for by, labels in summary["breakdown"][suite][method].items():
            for label, own_cells in labels.items():
                _replace(own_cells, stale, parts.get(by, {}).get(label, {}))


def _lines(path: epath.Path) -> Iterator[JsonObject]:
    with path.open() as file:
        yield from map(json.loads, file)


def _replace(cells: JsonObject, stale: set[str], new: Mapping[str, Any]) -> None:
    for name in stale & cells.keys():
        del cells[name]
    cells |= new


def _measured(
    measures: Mapping[str, OwnMetric], line: JsonObject, example: Example, given: dict[str, str]
) -> dict[str, float]:
    """What the functions give for a line, by name; `given` learns whose each name is."""
    trajectory = rows.trajectory_of(line)
    found: dict[str, float] = {}
    for spec, function in measures.items():
        said = f"{KEY} has {spec!r}, which for {' '.join((*rows.place_of(line), example.id))}"
        try:
            returned = function(example, trajectory)
        except Exception as error:
            raise MetricError(f"{said} raised {type(error).__name__}: {error}{_KEPT}") from error
        named = returned if isinstance(returned, Mapping) else {spec.rpartition(":")[2]: returned}
        for name, value in named.items():
            _check_name(name, said)
            _check_value(value, f"{said} gave {name}")
            if given.setdefault(name, spec) != spec:
                raise MetricError(f"{said} gave {name}, as {given[name]!r} does{_KEPT}")
            found[name] = float(value)
    return found


def _check_name(name: Any, said: str) -> None:
    """Raises MetricError for a name of ours, or what is no name."""
    if not isinstance(name, str) or not name.isidentifier():
        raise MetricError(
            f"{said} gave a measure the name {name!r}; it must be of letters, digits and '_'{_KEPT}"
        )
    if name in _OURS or name.startswith(CALLS):
        raise MetricError(
            f"{said} gave {name}, which evaluate measures itself; give it another name{_KEPT}"
        )


def _check_value(value: Any, said: str) -> None:
    """Raises MetricError for what is no finite number."""
    if not isinstance(value, numbers.Real):
        kind = type(value).__name__
        raise MetricError(f"{said} as {value!r:.80} ({kind}), which is no number{_KEPT}")
    if not math.isfinite(value):
        raise MetricError(f"{said} as {float(value)}, which is not finite{_KEPT}")

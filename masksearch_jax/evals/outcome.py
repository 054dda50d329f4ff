"""The folder of an evaluation: whether it was begun or is finished, and what it ends with."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from etils import epath

from masksearch_jax.core.config import EvalRun
from masksearch_jax.core.files import write_json, write_lines, writing
from masksearch_jax.core.types import JsonObject
from masksearch_jax.evals import provenance, results, rows
from masksearch_jax.evals.items import Item
from masksearch_jax.evals.lost import Lost
from masksearch_jax.evals.results import RESULTS, Bootstrap, Scored
from masksearch_jax.evals.rows import TRAJECTORIES
from masksearch_jax.evals.suites import Suite
from masksearch_jax.runtime import run_record
from masksearch_jax.runtime.row_log import RowLog

VERSION = 2  # of the form of eval.json


class Worklist(NamedTuple):
    """What is asked: suites with the places of their items, the items, and those lost before."""

    places: Sequence[tuple[Suite, Sequence[int]]]
    items: list[Item]
    lost: list[Lost]


def is_finished(workdir: epath.Path) -> bool:
    """Whether the folder holds an evaluation that is finished, this one or another."""
    return (workdir / RESULTS).exists() and run_record.read(workdir) is not None


def is_begun(workdir: epath.Path, log: RowLog) -> bool:
    """Whether the folder holds an evaluation of which an item is done, this one or another."""
    return is_finished(workdir) or (len(log) > 0 and run_record.read(workdir) is not None)


def write(
    cfg: EvalRun,
    workdir: epath.Path,
    worklist: Worklist,
    made_by: JsonObject,
    log: RowLog,
    more: Callable[[], JsonObject],
) -> None:
    """Writes trajectories.jsonl in the order of the items, lost.jsonl and eval.json.

    more: what else eval.json has, made of trajectories.jsonl. eval.json comes last: with it the
    evaluation is whole.
    """
    scored = [i for i in worklist.items if i.name in log]
    by_place: dict[tuple[str, str], list[Scored]] = {}
    with writing(workdir / TRAJECTORIES) as file:
        for item, line in zip(scored, log.lines(i.name for i in scored), strict=True):
            file.write(line)
            place = item.suite, item.method
            by_place.setdefault(place, []).append(rows.row_of(json.loads(line)).scored)
    write_lines(workdir / "lost.jsonl", (json.dumps(i._asdict()) for i in worklist.lost))
    whole = summary(cfg, worklist, by_place) | {"provenance": made_by} | more()
    write_json(workdir / RESULTS, whole)


def summary(
    cfg: EvalRun, worklist: Worklist, by_place: Mapping[tuple[str, str], Sequence[Scored]]
) -> JsonObject:
    """eval.json without what made it."""
    how = Bootstrap(cfg.eval.bootstrap, cfg.eval.seed)
    found: JsonObject = {"version": VERSION, "results": {}, "average": {}, "breakdown": {}}
    for (suite, method), items in by_place.items():
        lost = Counter(i.reason for i in worklist.lost if i[:2] == (suite, method))
        cells = results.summarise([i.scores for i in items], how, lost)
        found["results"].setdefault(suite, {})[method] = cells
        found["breakdown"].setdefault(suite, {})[method] = results.breakdown(items, how)
    named_metrics = {s.name: s.metric for s, _ in worklist.places}
    found["average"] = results.average(by_place, named_metrics, how)
    found["suites"] = {
        suite.name: provenance.suite_of(
            suite, len(numbers), worklist.lost, results.failures(by_place, suite.name)
        )
        for suite, numbers in worklist.places
    }
    return found

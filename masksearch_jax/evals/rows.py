"""Lines of trajectories.jsonl, read back for what is made of a finished evaluation."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from etils import epath

from masksearch_jax.core.errors import UserError
from masksearch_jax.core.types import Example, QAExample, RampExample, Trajectory, from_json
from masksearch_jax.evals import scores, suites
from masksearch_jax.evals.results import Place, Scored

TRAJECTORIES = "trajectories.jsonl"  # in the folder of an evaluation


class Row(NamedTuple):
    """An item that has a score, and the answer that was scored, None where it gave none."""

    place: Place
    example: Example
    answer: str | None
    scored: Scored


class Rows:
    """The rows of a trajectories.jsonl, read anew by each loop: memory may not hold them all."""

    def __init__(self, path: epath.Path):
        self._path = path

    def __iter__(self) -> Iterator[Row]:
        with self._path.open() as file:
            for line in file:
                yield row_of(json.loads(line))


def row_of(line: Mapping[str, Any]) -> Row:
    """The row of a line of trajectories.jsonl.

    Raises UserError for one that an earlier version wrote.
    """
    if "answer" not in line:
        raise UserError(
            f"a line of {TRAJECTORIES} has no `answer`, as lines of earlier versions have none: "
            f"its keys are {', '.join(line)}; evaluate again in a new folder"
        )
    kind = RampExample if "spans" in line["example"] else QAExample
    example, slots = from_json(kind, line["example"]), []
    if isinstance(example, RampExample):
        slots = [(s.type, r) for s, r in zip(example.spans, line["slots"], strict=True)]
    labels = suites.labels(example, line["status"])
    return Row(
        place=place_of(line),
        example=example,
        answer=line["answer"],
        scored=Scored(example.id, line["scores"], labels, slots),
    )


def place_of(line: Mapping[str, Any]) -> Place:
    return line["suite"], line["method"]


def trajectory_of(line: Mapping[str, Any]) -> Trajectory:
    """The trajectory of a line of trajectories.jsonl; its text begins with what the prompt wrote of
    the answer."""
    names = [f.name for f in dataclasses.fields(Trajectory)]
    found = from_json(Trajectory, {name: line[name] for name in names if name in line})
    segments = tuple(scores.opened(found, line["opening"]))
    return dataclasses.replace(found, segments=segments)


def by_place(rows: Iterable[Row]) -> dict[Place, list[Scored]]:
    found: dict[Place, list[Scored]] = {}
    for row in rows:
        found.setdefault(row.place, []).append(row.scored)
    return found

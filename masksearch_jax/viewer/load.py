"""Reads what a run has written so far; a missing or half-written piece is noted, not fatal."""

from __future__ import annotations

import dataclasses
import json
import math
import pathlib
from typing import Any

SUMMARY = "summary.json"
CURVES = ("sft", "dapo")
TRAJECTORIES = "trajectories.jsonl"


class RunFilesError(ValueError):
    """A folder or file that no report can be made of."""


@dataclasses.dataclass(frozen=True)
class Run:
    """Everything the report shows. `notes` says in words what is missing or could not be read."""

    name: str
    summary: dict[str, Any]
    curves: dict[str, list[dict[str, Any]]]
    trajectories: list[dict[str, Any]]
    notes: tuple[str, ...]


def read_run(run_dir: str | pathlib.Path) -> Run:
    """The contents of RUN/summary.json, RUN/{sft,dapo}/metrics.jsonl and RUN/trajectories.jsonl.

    Raises RunFilesError when the folder holds none of them, or when summary.json is not a JSON
    object (it is written whole or not at all).
    """
    root = pathlib.Path(run_dir)
    paths = {
        SUMMARY: root / SUMMARY,
        **{f"{c}/metrics.jsonl": root / c / "metrics.jsonl" for c in CURVES},
        TRAJECTORIES: root / TRAJECTORIES,
    }
    missing = [name for name, path in paths.items() if not path.is_file()]
    if len(missing) == len(paths):
        raise RunFilesError(f"{root} is not the folder of a run: it has none of {', '.join(paths)}")
    summary = {} if SUMMARY in missing else _read_object(paths[SUMMARY])
    if summary.get("evolution"):  # a run of self-evolution has no reinforcement learning
        missing = [name for name in missing if name != "dapo/metrics.jsonl"]
    notes = [f"{name} is not there: what it would show is left out." for name in missing]
    curves = {}
    for curve in CURVES:
        rows, note = _read_lines(paths[f"{curve}/metrics.jsonl"], root)
        curves[curve] = _by_step(rows)
        notes += note
    trajectories, note = _read_lines(paths[TRAJECTORIES], root)
    return Run(root.resolve().name, summary, curves, trajectories, tuple(notes + note))


def _read_object(path: pathlib.Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8", errors="replace"))
    except json.JSONDecodeError as error:
        raise RunFilesError(f"{path} is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise RunFilesError(f"{path} must hold a JSON object, not a {type(value).__name__}")
    return value


def _read_lines(path: pathlib.Path, root: pathlib.Path) -> tuple[list[dict[str, Any]], list[str]]:
    """The JSON objects of a file, one per line, and a note naming the lines that are not."""
    if not path.is_file():
        return [], []
    rows, bad = [], []
    text = path.read_text(encoding="utf-8", errors="replace")
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            row = None
        if isinstance(row, dict):
            rows.append(row)
        else:
            bad.append(number)
    if not bad:
        return rows, []
    shown = ", ".join(map(str, bad[:5])) + (", …" if len(bad) > 5 else "")
    return rows, [f"{path.relative_to(root)}: {len(bad)} unreadable line(s) skipped ({shown})."]


def _by_step(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows in step order, the last one of each step: a resumed run writes some steps again."""
    latest = {row["step"]: row for row in rows if is_number(row.get("step"))}
    return [latest[step] for step in sorted(latest)]


def as_dict(value: Any) -> dict[str, Any]:
    """The value where it is a dict, else an empty one: an interrupted run may lack parts."""
    return value if isinstance(value, dict) else {}


def as_list(value: Any) -> list[Any]:
    """The value where it is a list, else an empty one."""
    return value if isinstance(value, list) else []


def is_number(value: Any) -> bool:
    """True for a finite number; bools are not numbers here."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)

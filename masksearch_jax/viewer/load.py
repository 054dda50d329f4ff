"""Reads what a run has written so far; a missing or half-written piece is noted, not fatal."""

from __future__ import annotations

import dataclasses
import json
import math
import pathlib
from typing import Any

SUMMARY = "summary.json"
EVALUATIONS = "eval/*/eval.json"  # of a folder of several chains of trainings, each with its name
# Curve → the folders of trainings that it joins, one after the other; the first that is there of
# each step of the recipe. A run of a single stage has sft/ and dapo/.
CURVES = {
    "sft": ("sft", "ramp_sft", "qa_sft"),
    "dapo": ("dapo", "ramp_dapo", "qa_dapo"),
    "control": ("control_sft", "control_dapo"),
}
TRAJECTORIES = "trajectories.jsonl"
_STAGES = ("ramp_sft", "ramp_dapo", "qa_sft", "qa_dapo")


class RunFilesError(ValueError):
    """A folder or file that no report can be made of."""


@dataclasses.dataclass(frozen=True)
class Run:
    """Everything the report shows. `notes` says in words what is missing or could not be read.

    trainings: by curve, the folders that it joins, each with the step that it begins after.
    """

    name: str
    summary: dict[str, Any]
    curves: dict[str, list[dict[str, Any]]]
    trainings: dict[str, list[tuple[str, int]]]
    trajectories: list[dict[str, Any]]
    notes: tuple[str, ...]


def read_run(run_dir: str | pathlib.Path) -> Run:
    """The contents of RUN/summary.json, metrics.jsonl of each training and RUN/trajectories.jsonl.

    Raises RunFilesError when the folder holds none of them, or when summary.json is not a JSON
    object (it is written whole or not at all).
    """
    root = pathlib.Path(run_dir)
    if not (root / SUMMARY).is_file() and any(root.glob(EVALUATIONS)):
        return _read_cells(root)
    curves: dict[str, list[dict[str, Any]]] = {}
    trainings: dict[str, list[tuple[str, int]]] = {}
    missing, notes = [], []
    for curve, folders in CURVES.items():
        curves[curve], trainings[curve], unread = _join(root, folders)
        notes += unread
        if not trainings[curve] and curve != "control":
            missing.append(f"{curve}/metrics.jsonl")
    missing += [name for name in (SUMMARY, TRAJECTORIES) if not (root / name).is_file()]
    if len(missing) == 4:
        raise RunFilesError(
            f"{root} is not the folder of a run: it has none of {', '.join(sorted(missing))}"
        )
    summary = {} if SUMMARY in missing else _read_object(root / SUMMARY)
    if summary.get("evolution"):  # a run of self-evolution has no reinforcement learning
        missing = [name for name in missing if name != "dapo/metrics.jsonl"]
    absent = [f"{name} is not there: what it would show is left out." for name in missing]
    trajectories, unread = _read_lines(root / TRAJECTORIES, root)
    notes = (*absent, *notes, *unread)
    return Run(root.resolve().name, summary, curves, trainings, trajectories, notes)


def _read_cells(root: pathlib.Path) -> Run:
    """The evaluations of chains of trainings beside each other, and the curves of each chain."""
    summary: dict[str, Any] = {"eval": {}, "eval_by_type": {}}
    for path in sorted(root.glob(EVALUATIONS)):
        found = _read_object(path)
        whole, by_type = (as_dict(found.get(part)) for part in ("results", "breakdown"))
        summary["eval"][path.parent.name] = {s: _by_condition(m) for s, m in whole.items()}
        typed = {s: _by_condition(m) for s, m in by_type.items()}
        summary["eval_by_type"][path.parent.name] = {
            s: {c: as_dict(by.get("masks") or by.get("type")) for c, by in conditions.items()}
            for s, conditions in typed.items()
        }
    curves, trainings, notes = {}, {}, []
    for cell in summary["eval"]:
        folders = tuple(f"{cell}/{stage}" for stage in _STAGES)
        curves[cell], trainings[cell], unread = _join(root, folders)
        notes += unread
    return Run(root.resolve().name, summary, curves, trainings, [], tuple(notes))


def _by_condition(by_method: Any) -> dict[str, dict[str, Any]]:
    """The agent's condition is called `search`, as a recipe's summary.json calls it."""
    found = as_dict(by_method).items()
    return {"search" if m == "agent" else m: as_dict(cells) for m, cells in found}


def _join(
    root: pathlib.Path, folders: tuple[str, ...]
) -> tuple[list[dict[str, Any]], list[tuple[str, int]], list[str]]:
    """The rows of trainings one after the other, where each begins, and what was unreadable."""
    joined: list[dict[str, Any]] = []
    begins: list[tuple[str, int]] = []
    notes: list[str] = []
    for folder in folders:
        path = root / folder / "metrics.jsonl"
        if not path.is_file():
            continue
        rows, unread = _read_lines(path, root)
        before = joined[-1]["step"] if joined else 0
        begins.append((folder, before))
        joined += [row | {"step": before + row["step"]} for row in _by_step(rows)]
        notes += unread
    return joined, begins, notes


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

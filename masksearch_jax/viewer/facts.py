"""What a run is, in words: its config with what was decided, versions, stages, counts of data."""

from __future__ import annotations

import re
import shlex
from typing import Any

from masksearch_jax.core.types import JsonObject
from masksearch_jax.viewer import load, names
from masksearch_jax.viewer.load import Folder, Run, as_dict, as_list, is_number

_FLAG = re.compile(r"--?config\.([^=\s]+)(?:=(.*))?")
_COUNTS = ("in", "out", "dropped", "example")


def records(run: Run) -> list[JsonObject]:
    """Of each folder with a run.json: its config by dotted key, and its starts."""
    found = []
    for folder in run.folders:
        if load.RECORD not in folder.files:
            continue
        record = load.read_object(folder.path / load.RECORD)
        sessions = [as_dict(s) for s in as_list(record.get("sessions"))]
        found.append({
            "place": names.place(folder.parts),
            "keys": [[k, v] for k, v in flatten(as_dict(record.get("config")))],
            "defaults": as_dict(record.get("defaults")),
            "given": sorted({k for s in sessions for k in given(str(s.get("command") or ""))}),
            "sessions": sessions,
        })  # fmt: skip
    return found


def given(command: str) -> list[str]:
    """The keys that a command line sets."""
    try:
        words = shlex.split(command)
    except ValueError:  # a quote that is not closed: of a file written by hand
        return []
    return [match[1] for word in words if (match := _FLAG.fullmatch(word))]


def flatten(value: Any, prefix: str = "") -> list[tuple[str, Any]]:
    """Leaves of nested dicts as (dotted key, value), in order."""
    if not isinstance(value, dict) or not value:
        return [(prefix, value)] if prefix else []
    return [
        leaf
        for key, inner in value.items()
        for leaf in flatten(inner, f"{prefix}.{key}" if prefix else str(key))
    ]


def stages(run: Run) -> list[JsonObject]:
    """Stages in order with their seconds, and where a training's time went."""
    times = as_dict(run.summary.get("time"))
    return [
        {
            "name": names.stage(name),
            "seconds": stage.get("seconds") if is_number(stage.get("seconds")) else None,
            "time": as_dict(times.get(name)),
        }
        for name, stage in as_dict(run.summary.get("stages")).items()
        if isinstance(stage, dict)
    ]


def data(run: Run) -> list[JsonObject]:
    """Steps of a build: how many went in and were kept, and in words what was left out."""
    counts = as_dict(run.summary.get("data"))
    root = run.folders[0]
    if not counts and "counts.json" in root.files:
        counts = load.read_object(root.path / "counts.json")
    return [
        {
            "name": names.STEPS.get(name) or names.words(name),
            "in": step.get("in"),
            "out": step.get("out"),
            "said": in_words(step),
            "more": [
                [names.words(k), v]
                for k, v in flatten({k: v for k, v in step.items() if k not in _COUNTS})
            ],
        }
        for name, step in counts.items()
        if isinstance(step, dict) and ("in" in step or "out" in step)
    ]


def in_words(step: JsonObject) -> str:
    """`kept 20,023; left out: 531 same masks again`."""
    kept = f"kept {step['out']:,}" if is_number(step.get("out")) else "not counted"
    dropped = [
        f"{n:,} {names.words(str(why))}"
        for why, n in as_dict(step.get("dropped")).items()
        if is_number(n) and n
    ]
    return f"{kept}; left out: {', '.join(dropped)}" if dropped else f"{kept}; nothing left out"


def marks(folder: Folder, rows: list[JsonObject]) -> list[list[Any]]:
    """[step, mixture] at which a training's curriculum comes to its next mixture.

    Where a gate opens lessons, it is the step of the first of the `rows` that has the lesson.
    """
    if load.RECORD not in folder.files:
        return []
    config = as_dict(load.read_object(folder.path / load.RECORD).get("config"))
    texts = (as_dict(config.get(section)).get("curriculum") for section in ("sft", "dapo"))
    text = next((t for t in texts if isinstance(t, str)), "")
    planned = [[int(step), name.strip()] for step, name in re.findall(r"(\d+):([^,]+)", text)]
    if as_dict(config.get("lessons")).get("by") != "gated":
        return planned
    firsts = {row["lesson"]: row["step"] for row in reversed(rows) if is_number(row.get("lesson"))}
    later = [[firsts[i], name] for i, (_, name) in enumerate(planned) if i and i in firsts]
    return planned[:1] + later


def alarms(rows: list[JsonObject]) -> list[list[Any]]:
    """[step, "alarm: NAMES"] of the alarms of a training that did not ring in the row before."""
    found: list[list[Any]] = []
    before: set[str] = set()
    for row in rows:
        ringing = {name for name in as_list(row.get("alarms")) if isinstance(name, str)}
        if new := sorted(ringing - before):
            found.append([row["step"], f"alarm: {', '.join(new)}"])
        before = ringing
    return found


def rollbacks(folder: Folder) -> list[list[Any]]:
    """[step, "rollback from step N"] at the step that each rollback of a training went back to.

    The rows in which its alarm rang are no longer there: the run wrote these steps again.
    """
    if load.ROLLBACKS not in folder.files:
        return []
    rows = load.read_list(folder.path / load.ROLLBACKS)
    return [
        [row["to"], f"rollback from step {row['from']}"]
        for row in rows
        if is_number(row.get("to")) and is_number(row.get("from"))
    ]

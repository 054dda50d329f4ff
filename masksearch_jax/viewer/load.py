"""Finds what runs have written so far; a missing or half-written piece is noted, not fatal."""

from __future__ import annotations

import dataclasses
import gzip
import json
import math
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

from masksearch_jax.core.types import JsonObject
from masksearch_jax.viewer import names

T = TypeVar("T")

SUMMARY, METRICS, EVALUATION, RECORD = "summary.json", "metrics.jsonl", "eval.json", "run.json"
ROLLBACKS = "rollbacks.json"  # a list, of a training that went back
TRAJECTORIES, ROLLOUTS, VERDICTS = "trajectories.jsonl", "rollouts", "verdicts.jsonl"
_PARTIAL = re.compile(r"trajectories\.partial(\.\d+)?\.jsonl")  # of an evaluation not finished
_MOST_DEEP = 5
# Folders of weights, records and indexes, where they hold no results: large, and nothing that the
# report shows.
_CLOSED = {"checkpoints", "cache", "index", "data", "hf", "tokenizer", "stages", "tensorboard"}


class RunFilesError(ValueError):
    """A folder or file that no report can be made of."""


@dataclasses.dataclass(frozen=True)
class Folder:
    """A folder of a run in which a training or an evaluation wrote; parts: its path in the run."""

    path: Path
    parts: tuple[str, ...]
    files: frozenset[str]

    @property
    def is_evaluation(self) -> bool:
        return EVALUATION in self.files or bool(self.partial)

    @property
    def partial(self) -> list[str]:
        """The files of an evaluation that is not finished, one of each process."""
        if TRAJECTORIES in self.files:
            return []
        found = (name for name in self.files if _PARTIAL.fullmatch(name))
        return sorted(found, key=lambda name: (len(name), name))

    @property
    def has_results(self) -> bool:
        """Whether there is anything in it that the report shows."""
        shown = {SUMMARY, METRICS, EVALUATION, TRAJECTORIES, ROLLOUTS}
        return bool(self.files & shown or self.partial)

    @property
    def has_rollouts(self) -> bool:
        return ROLLOUTS in self.files


@dataclasses.dataclass(frozen=True)
class Run:
    """A run: its folders in the order of the recipe, its summary, {} where it has none."""

    name: str
    root: Path
    folders: tuple[Folder, ...]
    summary: JsonObject
    notes: list[str]


def run_names(folders: Sequence[str | os.PathLike]) -> list[str]:
    """What the folders are called: as much of the end of their paths as tells them apart."""
    paths = [Path(folder).resolve() for folder in folders]
    most = max(len(path.parts) for path in paths)
    ends = (["/".join(path.parts[-n:]) for path in paths] for n in range(1, most + 1))
    return next((e for e in ends if len(set(e)) == len(set(paths))), list(map(str, paths)))


def read_run(root: str | os.PathLike, name: str) -> Run:
    """What a folder holds, under a name.

    Raises RunFilesError for a folder without anything to show, or where summary.json is no JSON
    object (it is written whole or not at all).
    """
    root = Path(root)
    folders = sorted(_walk(root, ()), key=lambda f: names.place_order(f.parts))
    if not any(folder.has_results for folder in folders):
        wanted = ", ".join((SUMMARY, METRICS, EVALUATION, TRAJECTORIES))
        raise RunFilesError(f"{root} is not the folder of a run: neither it nor a folder in it has "
                            f"one of {wanted}")  # fmt: skip
    summary = read_object(root / SUMMARY) if (root / SUMMARY).is_file() else {}
    return Run(name, root, tuple(folders), summary, [])


def _walk(folder: Path, parts: tuple[str, ...]) -> Iterator[Folder]:
    """The folder and those in it, as far as the report reads them."""
    try:
        entries = list(os.scandir(folder))
    except (FileNotFoundError, NotADirectoryError):
        return
    found = Folder(folder, parts, frozenset(e.name for e in entries))
    if parts and parts[-1] in _CLOSED and not found.has_results:
        return
    yield found
    for entry in entries:
        is_open = entry.is_dir(follow_symlinks=False) and entry.name != ROLLOUTS
        if is_open and not entry.name.startswith(".") and len(parts) < _MOST_DEEP:
            yield from _walk(folder / entry.name, (*parts, entry.name))


def read_object(path: Path) -> JsonObject:
    """Raises RunFilesError for a file that is no JSON object."""
    return _read(path, dict, "object")


def read_list(path: Path) -> list[JsonObject]:
    """The objects of a JSON list. Raises RunFilesError for a file that is no JSON list."""
    return [row for row in _read(path, list, "list") if isinstance(row, dict)]


def _read(path: Path, kind: type[T], name: str) -> T:
    try:
        value = json.loads(path.read_text(encoding="utf-8", errors="replace"))
    except (ValueError, RecursionError) as error:
        raise RunFilesError(f"{path} is not JSON: {error}") from error
    if not isinstance(value, kind):
        raise RunFilesError(f"{path} must hold a JSON {name}, not a {type(value).__name__}")
    return value


def suites(folder: Folder) -> JsonObject:
    """What an evaluation says of its suites, by name; {} of one that is not finished.

    Raises RunFilesError as `read_object`.
    """
    if EVALUATION not in folder.files:
        return {}
    return as_dict(read_object(folder.path / EVALUATION).get("suites"))


def read_lines(path: Path, run: Run) -> Iterator[tuple[str, JsonObject]]:
    """Each line of a file, packed by gzip or not, that is a JSON object; a note of the others."""
    bad: list[int] = []
    opened = gzip.open if path.suffix == ".gz" else open
    try:
        with opened(path, "rt", encoding="utf-8", errors="replace") as file:
            for number, line in enumerate(file, 1):
                row = _parsed(line)
                if isinstance(row, dict):
                    yield line, row
                elif line.strip():
                    bad.append(number)
    except (EOFError, gzip.BadGzipFile):  # the file of a run that was cut off, or still writes
        run.notes.append(f"{path.relative_to(run.root)} ends in the middle.")
    if bad:
        shown = ", ".join(map(str, bad[:5])) + (", …" if len(bad) > 5 else "")
        lines = "line" if len(bad) == 1 else "lines"
        run.notes.append(
            f"{path.relative_to(run.root)}: {len(bad)} unreadable {lines} left out ({shown})."
        )


def _parsed(line: str) -> Any:
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        return None


def read_metrics(folder: Folder, run: Run) -> list[JsonObject]:
    """Rows in step order, the last one of each step: a resumed run writes some steps again."""
    rows = (row for _, row in read_lines(folder.path / METRICS, run))
    latest = {row["step"]: row for row in rows if is_number(row.get("step"))}
    return [latest[step] for step in sorted(latest)]


def as_dict(value: Any) -> JsonObject:
    """The value where it is a dict, else an empty one: an interrupted run may lack parts."""
    return value if isinstance(value, dict) else {}


def as_list(value: Any) -> list[Any]:
    """The value where it is a list, else an empty one."""
    return value if isinstance(value, list) else []


def is_number(value: Any) -> bool:
    """True for a finite number; bools are not numbers here."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)

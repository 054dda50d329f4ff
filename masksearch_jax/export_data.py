"""Writes examples and trajectories as plain files: JSON lines, parquet with a data card, ATIF.

    python -m masksearch_jax.export_data --config=configs/export_data.py --config.data=runs/ramp \\
        --config.runs=runs/evaluate,runs/ramp_dapo --config.folder=runs/published

Of `data`, RAMP examples, questions, statements and demonstrations by split. Of each run, a document
of the Agent Trajectory Interchange Format v1.7 for each trajectory in trajectories.jsonl and
rollouts/, one a line. Each document is read back before it is written. The folder appears whole or
not at all.
"""

from __future__ import annotations

import dataclasses
import gzip
import importlib.util
import itertools
import json
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from masksearch_jax import __version__
from masksearch_jax.core import atif, files
from masksearch_jax.core.atif_schema import Document
from masksearch_jax.core.errors import ConfigError, UserError, check_given
from masksearch_jax.core.schema import key, required, section
from masksearch_jax.core.types import SPLITS, STATEMENTS, JsonObject, Trajectory, from_json
from masksearch_jax.data.folder import KINDS, Folder
from masksearch_jax.data.publish import DataCard, Subset, card_text, write_records
from masksearch_jax.runtime import cli, output_folder, run_record
from masksearch_jax.runtime.progress import Progress

SAID = {
    "ramp": "masked paragraphs",
    "questions": "questions with their answers",
    STATEMENTS: "statements with their verdicts",
    "demonstrations": "trajectories of a teacher, as text",
}
_FIELDS = {f.name for f in dataclasses.fields(Trajectory)}
_FACTS = ("suite", "method", "scores", "step", "version", "group", "trained", "advantage", "reward")


class ExportDataError(UserError):
    """Records that cannot be written as they are."""


@dataclasses.dataclass(frozen=True)
class ExportDataRun:
    """`export_data`: examples and trajectories as files that other stacks read."""

    folder: str = required(
        "Folder to write, apart from what is read; an earlier export of that name is replaced."
    )
    data: str = key("", "Folder that build_ramp wrote; empty: no examples are written.")
    runs: tuple[str, ...] = key(
        (), "Folders of runs with trajectories.jsonl or rollouts/; none: no trajectories."
    )
    model: str = key("", "Name of the model whose trajectories these are; empty: not told.")
    card: DataCard = section(DataCard)


def check_config(cfg: ExportDataRun) -> None:
    """Raises ConfigError where there is nothing to write, or two runs have one name.

    And for a folder that meets what is read, or that holds something else than an earlier export.
    """
    check_given(cfg, folder="the folder to write")
    if not cfg.data and not cfg.runs:
        raise ConfigError(
            "config.data and config.runs are empty; one must name what is written: the folder that "
            "build_ramp wrote, or folders of runs"
        )
    if len(set(map(_name_of, cfg.runs))) < len(cfg.runs):
        raise ConfigError(f"config.runs has two folders of one name: {', '.join(cfg.runs)}")
    runs = {f"config.runs[{i}]": run for i, run in enumerate(cfg.runs)}
    output_folder.check_apart(cfg.folder, {"config.data": cfg.data} | runs)
    output_folder.check_replaceable(cfg.folder, ("runs", "data", "card"))


def run(cfg: ExportDataRun) -> dict[str, dict[str, int]]:
    """Records by subset and split. Raises ConfigError where there is nothing to write."""
    check_config(cfg)
    if cfg.data and importlib.util.find_spec("pyarrow") is None:
        raise ConfigError("pyarrow is not installed; pip install 'masksearch_jax[ramp]'")
    runs = {_name_of(folder): _files_of(Path(folder)) for folder in cfg.runs}
    total = len(KINDS) * bool(cfg.data) + len(runs)
    run_record.begin(
        cfg.folder,
        cfg,
        replaces="the export of other settings will be",
        stands=True,  # the folder appears whole or not at all
        harmless={"folder"},
    )
    with files.writing_folder(cfg.folder) as folder, Progress("export", total) as progress:
        run_record.write(folder, cfg)
        subsets = _write_examples(cfg.data, folder, progress) if cfg.data else []
        if runs:
            rows = {
                name: _write_documents(cfg, name, paths, folder, progress)
                for name, paths in runs.items()
            }
            columns = tuple(Document.model_fields)
            said = "trajectories, as ATIF v1.7"
            subsets.append(Subset("trajectories", said, columns, rows, suffix="jsonl"))
        made_from = ", ".join(filter(None, (cfg.data, *cfg.runs)))
        text = card_text(cfg.card, Path(cfg.folder).name, subsets, made_from, __version__)
        files.write_text(folder / "README.md", text)
    return {subset.name: dict(subset.rows) for subset in subsets}


def _write_examples(data: str, folder: Path, progress: Progress) -> list[Subset]:
    """The subsets of a folder that build_ramp wrote. Raises ConfigError where it has none."""
    found, subsets = Folder(data), []
    for kind, record in KINDS.items():
        rows = {}
        for split in SPLITS:
            records = found.read(kind, split)
            if (first := next(records, None)) is not None:
                progress.update(len(subsets), subset=kind, split=split)
                whole = itertools.chain([first], records)
                rows[split] = write_records(folder / kind, split, record, whole)
        if rows:
            columns = tuple(f.name for f in dataclasses.fields(record))
            subsets.append(Subset(kind, SAID[kind], columns, rows))
    if not subsets:
        raise ConfigError(
            f"config.data is {data!r}, which holds none of {', '.join(KINDS)}; it must name the "
            "folder that build_ramp wrote"
        )
    return subsets


# ---- trajectories


def _name_of(folder: str) -> str:
    """What a run's file is called: a split's name has letters, digits and _ alone."""
    return re.sub(r"\W", "_", Path(folder).resolve().name)


def _files_of(folder: Path) -> list[Path]:
    """The files of a run that hold trajectories, in order. Raises ConfigError for none."""
    steps = sorted(folder.glob("rollouts/*.jsonl.gz"), key=lambda p: int(p.name.partition(".")[0]))
    found = [p for p in (folder / "trajectories.jsonl", *steps) if p.is_file()]
    if not found:
        raise ConfigError(
            f"config.runs: {folder} holds neither trajectories.jsonl nor rollouts/; evaluate "
            "writes the one, and train_dapo the other with dapo.keep_rollouts"
        )
    return found


def _write_documents(
    cfg: ExportDataRun, name: str, paths: list[Path], folder: Path, progress: Progress
) -> int:
    """FOLDER/trajectories/NAME.jsonl of a run's files; the number of documents."""

    def lines() -> Iterator[str]:
        for path in paths:
            progress.update(0, run=name, file=path.name)
            for place, row in _rows(path):
                yield _line(row, name, cfg.model, place)

    return files.write_lines(folder / "trajectories" / f"{name}.jsonl", lines())


def _rows(path: Path) -> Iterator[tuple[str, JsonObject]]:
    """Place and object of each line."""
    opened = gzip.open if path.suffix == ".gz" else open
    with opened(path, "rt", encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            place = f"{path}:{number}"
            try:
                yield place, json.loads(line)
            except ValueError as error:
                raise ExportDataError(f"{place}: not JSON: {error}") from error


def _line(row: JsonObject, run: str, model: str, place: str) -> str:
    """The document of a line, as JSON, after it was read back and compared."""
    try:
        trajectory = from_json(Trajectory, {k: v for k, v in row.items() if k in _FIELDS})
    except (ValueError, TypeError) as error:
        raise ExportDataError(f"{place}: not a trajectory: {error}") from error
    facts = {name: row[name] for name in _FACTS if name in row} | {"example": row.get("example")}
    text = atif.dumps(atif.to_atif(trajectory, run=run, model=model, facts=facts))
    back = atif.from_atif(Document.model_validate_json(text))
    if lost := [name for name in _FIELDS if not _is_same(trajectory, back, name)]:
        raise ExportDataError(f"{place}: {', '.join(sorted(lost))} would not come back from ATIF")
    return text


def _is_same(one: Trajectory, other: Trajectory, name: str) -> bool:
    a, b = getattr(one, name), getattr(other, name)
    if isinstance(a, np.ndarray):
        return a.dtype == b.dtype and np.array_equal(a, b, equal_nan=a.dtype.kind == "f")
    return bool(a == b)


def _print(written: dict[str, dict[str, int]], folder: str) -> None:
    for subset, rows in written.items():
        print(f"{subset}: {', '.join(f'{name} {count:,}' for name, count in rows.items())}")
    print(f"card: {folder}/README.md")


if __name__ == "__main__":
    cli.run(lambda cfg: _print(run(cfg), cfg.folder), ExportDataRun)

"""What a folder of records holds: RAMP examples, questions and demonstrations, by task and split.

    FOLDER/ramp/SPLIT.jsonl            RampExample   tasks ramp_k1, ramp_k2, …
    FOLDER/ramp/kN/VERSION/            RampExample   the same, as the TFDS dataset `ramp/kN`
    FOLDER/questions/SPLIT.jsonl       QAExample     tasks qa_DATASET
    FOLDER/statements/SPLIT.jsonl      QAExample     task qa_statements
    FOLDER/demonstrations/SPLIT.jsonl  Demonstration tasks ramp_sft_k1, …, qa_sft_DATASET

SPLIT is train, rl or heldout. RAMP examples are in one of the two forms, never both.
"""

from __future__ import annotations

import functools
import itertools
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from masksearch_jax.core.types import (
    SPLITS,
    STATEMENTS,
    Demonstration,
    Example,
    QAExample,
    RampExample,
    from_json,
)
from masksearch_jax.data.demonstrations import parse_example
from masksearch_jax.ramp import tfds_records

# What is asked; and what was shown of it.
EXAMPLES = {"ramp": RampExample, "questions": QAExample, STATEMENTS: QAExample}
KINDS = {**EXAMPLES, "demonstrations": Demonstration}


class RecordError(ValueError):
    """Records that no task can be made of; the message names file and line, or the record."""


class Folder:
    """The records of a folder. Nothing is read before it is asked for."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    @functools.cached_property
    def dataset(self) -> dict[int, dict[str, tfds_records.RampRecords]]:
        """Masks → split → examples of the TFDS dataset. Raises RecordError beside JSONL."""
        found = tfds_records.records_of(self.path)
        lines = self.file("ramp", "*").parent.glob("*.jsonl")
        if found and (other := next(lines, None)):
            raise RecordError(
                f"{self.path} holds RAMP examples twice, as a TFDS dataset and in {other}; "
                "remove one of them"
            )
        return found

    def file(self, kind: str, split: str) -> Path:
        """The JSONL file of a kind's split, there or not."""
        return self.path / kind / f"{split}.jsonl"

    def files(self) -> list[Path]:
        """The files that decide all records; of the dataset its checksums."""
        return [*sorted(self.path.glob("*/*.jsonl")), *self._checksums()]

    def files_of(self, task: str, split: str) -> list[Path]:
        """The files that decide the records of a task's split; of the dataset its checksums."""
        if task.startswith("ramp_k"):
            return self._checksums() or [self.file("ramp", split)]
        if not is_sft(task):
            own = STATEMENTS if task == f"qa_{STATEMENTS}" else "questions"
            return [self.file(own, split)]
        examples = (self.file(kind, s) for kind in EXAMPLES for s in SPLITS)
        present = [p for p in examples if p.is_file()]
        return [self.file("demonstrations", split), *present, *self._checksums()]

    def _checksums(self) -> list[Path]:
        return [self.path / "ramp" / tfds_records.CHECKSUMS] if self.dataset else []

    def read(self, kind: str, split: str) -> Iterator[Any]:
        """The records of a kind's split in the order they are kept, none where it has none.

        Raises RecordError naming file and line of a malformed one.
        """
        if kind == "ramp":
            for by_split in self.dataset.values():
                yield from by_split.get(split, ())
        path = self.file(kind, split)
        for _, record in _lines(path, kind) if path.is_file() else ():
            yield from_json(KINDS[kind], record)

    def counts(self) -> dict[str, dict[str, dict[str, int]]]:
        """Records of each kind, task and split: kind → task → split → count, what is there.

        Raises RecordError for a malformed record, and for a demonstration of an example not there.
        """
        counts: dict[str, dict[str, dict[str, int]]] = {}
        for k, by_split in self.dataset.items():
            counts.setdefault("ramp", {})[f"ramp_k{k}"] = {s: len(r) for s, r in by_split.items()}
        for kind, split in itertools.product(KINDS, SPLITS):
            path = self.file(kind, split)
            for number, record in _lines(path, kind) if path.is_file() else ():
                if kind == "demonstrations" and record["example_id"] not in self.examples:
                    raise RecordError(
                        f"{path}:{number}: a demonstration of example {record['example_id']!r}, "
                        f"which is not among the {len(self.examples)} examples and questions of "
                        f"{str(self.path)!r}"
                    )
                by_split = counts.setdefault(kind, {}).setdefault(task_of(kind, record), {})
                by_split[split] = by_split.get(split, 0) + 1
        return counts

    @functools.cached_property
    def examples(self) -> Examples:
        """RAMP examples and questions by id."""
        return Examples(self)


class Examples(Mapping[str, Example]):
    """Examples of a folder by id, read from disk when asked for; only their places are kept."""

    def __init__(self, folder: Folder) -> None:
        self._folder = folder

    @functools.cached_property
    def _places(self) -> dict[str, tuple[Any, int]]:
        """Id → where it is: a file and an offset in bytes, or records and a number."""
        places: dict[str, tuple[Any, int]] = {}
        for records in (r for splits in self._folder.dataset.values() for r in splits.values()):
            places.update((e.id, (records, number)) for number, e in enumerate(records))
        for kind, split in itertools.product(EXAMPLES, SPLITS):
            path = self._folder.file(kind, split)
            places.update((n, (path, o)) for n, o in (_offsets(path) if path.is_file() else ()))
        return places

    def __getitem__(self, example_id: str) -> Example:
        place, start = self._places[example_id]
        if not isinstance(place, Path):
            return place[start]
        with place.open("rb") as file:
            file.seek(start)
            return parse_example(file.readline())

    def __contains__(self, example_id: object) -> bool:
        return example_id in self._places

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)


def task_of(kind: str, record: Mapping[str, Any]) -> str:
    """The name of the task that a record, as JSON, belongs to."""
    if kind == "ramp":
        return f"ramp_k{len(record['spans'])}"
    if kind in ("questions", STATEMENTS):
        return f"qa_{_word(record['dataset'])}"
    ramp = re.fullmatch(r"ramp_k(\d+)", record["task"])
    return f"ramp_sft_k{ramp[1]}" if ramp else f"qa_sft_{_word(record['task'])}"


def is_sft(task: str) -> bool:
    return "_sft_" in task


def _word(name: str) -> str:
    """A dataset's name with the characters that seqio allows in a task's."""
    return re.sub(r"\W", "_", name)


def _lines(path: Path, kind: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """Line numbers and JSON records of a file. Raises RecordError for one not of its kind."""
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            try:
                record = json.loads(line)
                from_json(KINDS[kind], record)
            except (ValueError, TypeError, AttributeError) as error:
                name = KINDS[kind].__name__
                raise RecordError(f"{path}:{number}: not a {name}: {error}") from error
            yield number, record


def _offsets(path: Path) -> Iterator[tuple[str, int]]:
    """Id and byte offset of each line of a JSONL file."""
    start = 0
    with path.open("rb") as file:
        for line in file:
            yield json.loads(line)["id"], start
            start += len(line)

"""RAMP examples of a TFDS dataset by number, read from ArrayRecord without TensorFlow.

FOLDER/ramp/kN/VERSION/   the dataset `ramp/kN`: examples of N masks, splits train, rl, heldout
FOLDER/ramp/SHA256SUMS    of all its files; written last: with it the dataset is whole
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from masksearch_jax.core.types import RampExample, Span

NAME = "ramp"
CHECKSUMS = "SHA256SUMS"


class RampRecords(Sequence[RampExample]):
    """The examples of one split of `ramp/kN`: `len(records)`, `records[i]`; opened on first use.

    Safe to read from several threads.
    """

    def __init__(self, builder: Any, split: str) -> None:
        self._builder, self.split = builder, split
        self._rows: Sequence[dict[str, Any]] | None = None

    def __len__(self) -> int:
        return self._builder.info.splits[self.split].num_examples

    def __getitem__(self, index: int) -> RampExample:
        if self._rows is None:
            self._rows = self._builder.as_data_source(self.split)
        return from_features(self._rows[int(index)])

    def __iter__(self) -> Iterator[RampExample]:
        return (self[i] for i in range(len(self)))


def records_of(folder: str | Path) -> dict[int, dict[str, RampRecords]]:
    """Number of masks → split → its examples, of the dataset under `folder`; {} where is none.

    Raises FileNotFoundError for one whose build did not finish.
    """
    root = Path(folder) / NAME
    configs = {int(p.name[1:]): p for p in root.glob("k*") if p.name[1:].isdecimal()}
    if configs and not (root / CHECKSUMS).is_file():
        raise FileNotFoundError(
            f"{root} has no {CHECKSUMS}: the dataset's build did not finish; run "
            "`python -m masksearch_jax.build_dataset` again to resume it"
        )
    found = {}
    for k in sorted(configs):
        builder = _builder(configs[k])
        found[k] = {split: RampRecords(builder, split) for split in builder.info.splits}
    return found


def _builder(config: Path) -> Any:
    import tensorflow_datasets as tfds

    return tfds.builder(f"{NAME}/{config.name}", data_dir=config.parent.parent)


def to_features(example: RampExample) -> dict[str, Any]:
    """The example as the dataset's features hold it."""
    names = ("id", "passage_id", "title", "masked", "paragraph")
    spans = [dataclasses.asdict(span) for span in example.spans]
    return {name: getattr(example, name) for name in names} | {"spans": spans}


def from_features(row: dict[str, Any]) -> RampExample:
    """The inverse of `to_features`, of a row as TFDS decodes it: bytes, spans as columns."""
    spans = row["spans"]
    columns = (spans["start"], spans["end"], spans["text"], spans["type"])
    return RampExample(
        id=row["id"].decode(),
        passage_id=row["passage_id"].decode(),
        title=row["title"].decode(),
        masked=row["masked"].decode(),
        paragraph=row["paragraph"].decode(),
        spans=tuple(
            Span(int(start), int(end), text.decode(), kind.decode())
            for start, end, text, kind in zip(*columns, strict=True)
        ),
    )

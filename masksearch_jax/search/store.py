"""Passages on disk by row: a JSONL file, its line offsets, and a table from id to row.

Opening maps the two tables and reads nothing; memory in use does not grow with the corpus.
"""

from __future__ import annotations

import hashlib
import json
import os
import weakref
from array import array
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from masksearch_jax.core.retrieval import SearchError
from masksearch_jax.core.types import Passage

_TEXTS, _OFFSETS, _IDS = "passages.jsonl", "offsets.npy", "ids.npy"
_ROWS = 256  # read at once by an iteration
_ID_TYPE = np.dtype([("digest", "<u8"), ("row", "<i8")])


class PassageWriter:
    """Appends passages to a new store in `folder`; nothing may read it before `finish` returns."""

    def __init__(self, folder: Path):
        self._folder = folder
        self._file = open(folder / _TEXTS, "xb")  # noqa: SIM115, closed by __exit__
        self._offsets = array("Q", [0])
        self._digests = array("Q")
        self._hash = hashlib.blake2b(digest_size=16)

    @property
    def contents(self) -> str:
        """A hash of all passages so far, in their order."""
        return self._hash.hexdigest()

    def __enter__(self) -> PassageWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def add(self, passage: Passage) -> None:
        """Appends one passage. Raises SearchError when its text is not valid Unicode."""
        record = {"id": passage.id, "title": passage.title, "text": passage.text}
        try:
            line = json.dumps(record, ensure_ascii=False).encode() + b"\n"
        except UnicodeEncodeError as error:
            raise SearchError(f"passage {passage.id!r} is not valid Unicode: {error}") from None
        self._file.write(line)
        self._hash.update(line)
        self._offsets.append(self._offsets[-1] + len(line))
        self._digests.append(_digest(passage.id))

    def finish(self) -> int:
        """Writes the tables; the number of passages. Raises SearchError for none or an id twice."""
        if not self._digests:
            raise SearchError("there are no passages to index")
        self._file.flush()
        ids = np.empty(len(self._digests), _ID_TYPE)
        ids["digest"] = self._digests
        ids["row"] = np.arange(len(ids))
        ids.sort(order=("digest", "row"))
        for name, table in ((_OFFSETS, np.asarray(self._offsets)), (_IDS, ids)):
            with open(self._folder / name, "xb") as file:
                np.save(file, table, allow_pickle=False)
        _refuse_duplicates(PassageStore(self._folder), ids)
        return len(ids)


class PassageStore(Sequence[Passage]):
    """The passages of a folder that `PassageWriter` finished, for any number of threads.

    Raises OSError, ValueError or EOFError for files that are missing, damaged or of two stores.
    """

    def __init__(self, folder: Path):
        self._offsets = np.load(folder / _OFFSETS, mmap_mode="r", allow_pickle=False)
        self._ids = np.load(folder / _IDS, mmap_mode="r", allow_pickle=False)
        self._fd = os.open(folder / _TEXTS, os.O_RDONLY)
        weakref.finalize(self, os.close, self._fd)
        if len(self._ids) != len(self) or os.fstat(self._fd).st_size != self._offsets[-1]:
            raise ValueError("the passages and their tables disagree")

    def __len__(self) -> int:
        return len(self._offsets) - 1

    def __getitem__(self, row: int) -> Passage:
        if not 0 <= row < len(self):
            raise IndexError(f"row {row} of a store of {len(self)} passages")
        start, end = int(self._offsets[row]), int(self._offsets[row + 1])
        return _passage(os.pread(self._fd, end - start, start))

    def __iter__(self) -> Iterator[Passage]:
        # By the open descriptor, not by the path: the folder may have been replaced since.
        for start in range(0, len(self), _ROWS):
            ends = self._offsets[start : start + _ROWS + 1]
            lines = os.pread(self._fd, int(ends[-1] - ends[0]), int(ends[0]))
            yield from map(_passage, lines.split(b"\n")[:-1])

    def find(self, passage_id: str) -> Passage | None:
        """The passage of this id, or None."""
        digest = _digest(passage_id)
        i = int(np.searchsorted(self._ids["digest"], np.uint64(digest)))
        while i < len(self._ids) and int(self._ids["digest"][i]) == digest:
            passage = self[int(self._ids["row"][i])]
            if passage.id == passage_id:
                return passage
            i += 1
        return None


def _refuse_duplicates(store: PassageStore, ids: np.ndarray) -> None:
    for i in np.flatnonzero(ids["digest"][1:] == ids["digest"][:-1]):
        first, second = int(ids["row"][i]), int(ids["row"][i + 1])
        if store[first].id == store[second].id:
            raise SearchError(
                f"passage id {store[first].id!r} occurs twice (passages {first + 1} and "
                f"{second + 1}); ids must be unique"
            )


def _digest(passage_id: str) -> int:
    raw = passage_id.encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.blake2b(raw, digest_size=8).digest(), "little")


def _passage(line: bytes) -> Passage:
    record = json.loads(line)
    return Passage(record["id"], record["title"], record["text"])

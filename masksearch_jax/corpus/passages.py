"""Passage files: JSON lines of id, title, text, plain or gzipped, read strictly and written whole.

Rows of the wiki-18 kind, `{"id": ..., "contents": "\\"Title\\"\\ntext"}`, are read too, and those
of paragraphs, with `wiki_id` and `par` in place of `id`; other keys are ignored. A bad line is
dropped, counted and named; too many of them stop the reading.
"""

from __future__ import annotations

import contextlib
import dataclasses
import gzip
import hashlib
import json
import logging
import os
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np

from masksearch_jax.core import files
from masksearch_jax.core.types import Passage
from masksearch_jax.corpus.tally import Tally

_log = logging.getLogger(__name__)
EARLY = 100  # bad lines before a fraction over the limit stops the reading at once


class CorpusError(ValueError):
    """A passage file that cannot be used; the message names the file and, if any, the line."""


class BadRow(Exception):
    """A row that is no passage; `reason` is what it is counted by."""

    def __init__(self, reason: str, detail: str = ""):
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason = reason


Row = tuple[str, dict[str, Any] | BadRow]  # where it stands, and what it holds


@dataclasses.dataclass
class CorpusStats:
    """Counts of one reading: rows read, passages kept, bad rows by reason, share done.

    first_bad: the first bad row. left_out: of whole articles, what is no prose, by reason.
    """

    read: int = 0
    kept: int = 0
    dropped: dict[str, int] = dataclasses.field(default_factory=dict)
    done: float = 0.0
    first_bad: str = dataclasses.field(default="", compare=False)
    left_out: Tally = dataclasses.field(default_factory=Tally)

    @property
    def bad(self) -> int:
        return sum(self.dropped.values())

    def note(self, bad: BadRow, where: str) -> str:
        """Counts a bad row; the line to log."""
        self.dropped[bad.reason] = self.dropped.get(bad.reason, 0) + 1
        message = f"{where}: {bad}"
        self.first_bad = self.first_bad or message
        return message

    def check(self, path: str | os.PathLike[str], max_bad_fraction: float) -> None:
        """Raises CorpusError when more than the fraction is bad."""
        if self.bad > max_bad_fraction * self.read:
            raise CorpusError(
                f"{path}: {self.bad} of the first {self.read} lines are bad ({self.dropped}), more "
                f"than max_bad_fraction {max_bad_fraction:g} allows; the first is {self.first_bad}"
            )


def read_passages(
    path: str | os.PathLike[str],
    *,
    limit: int = 0,
    max_bad_fraction: float = 0.01,
    log: Callable[[str], None] = _log.warning,
    stats: CorpusStats | None = None,
) -> Iterator[Passage]:
    """Yields the passages of a file, at most `limit` (0: all); `stats` is kept up to date.

    Bad lines go to `log` as "file:line: reason". Raises CorpusError at once for a missing or empty
    file, and while reading for more than `max_bad_fraction` bad lines, no good one, or broken gzip.
    """
    stats = CorpusStats() if stats is None else stats
    rows = read_rows(path, stats)
    return from_rows(rows, path, limit, max_bad_fraction, log, stats)


def read_rows(path: str | os.PathLike[str], stats: CorpusStats) -> Iterator[Row]:
    """The lines of a file as ("file:line", object or BadRow). Raises CorpusError as above."""
    path = Path(path)
    try:
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
    except OSError as error:
        raise CorpusError(f"cannot read the corpus {path}: {error.strerror}") from None
    if not size:
        raise CorpusError(f"the corpus {path} is empty")
    return _read_rows(path, stats)


def _read_rows(path: Path, stats: CorpusStats) -> Iterator[Row]:
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        for number, line in _lines(path, file):
            if number % 1000 == 1:
                stats.done = min(1.0, file.tell() / size)
            try:
                yield f"{path}:{number}", parse_line(line)
            except BadRow as bad:
                yield f"{path}:{number}", bad


def from_rows(
    rows: Iterable[Row],
    path: str | os.PathLike[str],
    limit: int,
    max_bad_fraction: float,
    log: Callable[[str], None],
    stats: CorpusStats,
) -> Iterator[Passage]:
    """Yields the passages of rows, each id once; errors and counts as in `read_passages`."""
    seen = Ids()
    for where, row in rows:
        stats.read += 1
        try:
            if isinstance(row, BadRow):
                raise row
            passage = to_passage(row)
            if not seen.add(passage.id):
                raise BadRow("duplicate id", repr(passage.id))
        except BadRow as bad:
            log(stats.note(bad, where))
            if stats.bad > EARLY:
                stats.check(path, max_bad_fraction)
            continue
        stats.kept += 1
        yield passage
        if stats.kept == limit:
            break
    stats.done = 1.0
    stats.check(path, max_bad_fraction)
    if not stats.kept:
        raise CorpusError(f"the corpus {path} has no passages")


def write_passages(path: str | os.PathLike[str], passages: Iterable[Passage]) -> int:
    """Writes passages as JSON lines, gzipped for a name in .gz, all or nothing; their number."""
    count = 0
    with contextlib.ExitStack() as stack:
        lines = stack.enter_context(files.writing(path, "wb"))
        if os.fspath(path).endswith(".gz"):
            lines = stack.enter_context(gzip.GzipFile("", "wb", 6, lines, mtime=0))
        for passage in passages:
            record = dataclasses.asdict(passage)
            lines.write(json.dumps(record, ensure_ascii=False).encode() + b"\n")
            count += 1
    return count


def _lines(path: Path, file: IO[bytes]) -> Iterator[tuple[int, bytes]]:
    """(line number, line) of the lines that are not blank; gzip is told by its first bytes."""
    zipped = file.read(2) == b"\x1f\x8b"
    file.seek(0)
    number = 0
    try:
        for number, line in enumerate(gzip.GzipFile(fileobj=file) if zipped else file, 1):
            if line.strip():
                yield number, line
    except (EOFError, OSError, zlib.error) as error:
        raise CorpusError(f"{path}: unreadable after line {number}: {error}") from error


class Ids:
    """A set of ids in 16 bytes each: open addressing over 64-bit hashes."""

    def __init__(self) -> None:
        self._table = np.zeros(1 << 12, np.uint64)
        self._count = 0

    def add(self, name: str) -> bool:
        """Whether it is new. Two of ten million differ and hash alike with a chance of 3e-6."""
        digest = hashlib.blake2b(name.encode("utf-8", "surrogatepass"), digest_size=8).digest()
        value = int.from_bytes(digest) or 1  # 0 marks an empty slot
        if not self._insert(value):
            return False
        self._count += 1
        if 2 * self._count > len(self._table):
            old = self._table
            self._table = np.zeros(2 * len(old), np.uint64)
            for kept in old[old > 0].tolist():
                self._insert(kept)
        return True

    def _insert(self, value: int) -> bool:
        table, mask = self._table, len(self._table) - 1
        slot = value & mask
        while found := int(table[slot]):
            if found == value:
                return False
            slot = (slot + 1) & mask
        table[slot] = value
        return True


def parse_line(line: bytes) -> dict[str, Any]:
    """The object of one line. Raises BadRow."""
    try:
        record = json.loads(line.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise BadRow("not UTF-8", str(error)) from None
    except (ValueError, RecursionError) as error:
        raise BadRow("not JSON", str(error)) from None
    if not isinstance(record, dict):
        raise BadRow("not a JSON object", type(record).__name__)
    return record


def to_passage(record: dict[str, Any]) -> Passage:
    """The passage of a row: id, title, text; or id, contents; or wiki_id and, if any, par for id.

    Raises BadRow.
    """
    if "text" not in record and isinstance(record.get("contents"), str):
        title, _, text = record["contents"].partition("\n")
        record = {"title": title.strip().strip('"'), "text": text, **record}
    if "id" not in record and "wiki_id" in record and isinstance(record.get("text"), str):
        record = {**record, "id": _paragraph_id(record)}
    for key in ("id", "title", "text"):
        if key not in record:
            raise BadRow(f"no {key}", f"keys are {', '.join(record) or 'none'}")
        whole = key == "id" and type(record[key]) is int
        if not whole and not isinstance(record[key], str):
            raise BadRow(f"{key} is not a string", repr(record[key])[:80])
    passage = Passage(str(record["id"]), record["title"], record["text"])
    if not passage.id or not passage.text.strip():
        raise BadRow("empty text" if passage.id else "empty id")
    try:
        f"{passage.id}{passage.title}{passage.text}".encode()
    except UnicodeEncodeError as error:
        raise BadRow("not valid Unicode", error.reason) from None
    return passage


def _paragraph_id(record: dict[str, Any]) -> str:
    """The article's id and the paragraph's number, or else a hash of its text."""
    digest = hashlib.blake2b(record["text"].encode("utf-8", "surrogatepass"), digest_size=6)
    return f"{record['wiki_id']}-{record.get('par', digest.hexdigest())}"

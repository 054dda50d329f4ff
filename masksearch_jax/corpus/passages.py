"""Passage files: JSON lines of id, title, text, read strictly and written whole.

Read too: one JSON array of such objects, or objects spread over lines; a tab-separated file whose
header names id, text and title (DPR); WikiExtractor's files. Each may be packed, as `packed` says.
Rows of the wiki-18 kind, `{"id": ..., "contents": "\\"Title\\"\\ntext"}`, are read, and those of
paragraphs, with `wiki_id` and `par` in place of `id`; other keys are ignored. A bad row is dropped,
counted and named; too many of them stop the reading.
"""

from __future__ import annotations

import codecs
import contextlib
import csv
import dataclasses
import gzip
import hashlib
import io
import json
import logging
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np

from masksearch_jax.core import contents, files
from masksearch_jax.core.types import Passage
from masksearch_jax.corpus import json_values, wikiextractor
from masksearch_jax.corpus.packed import DAMAGE, unpack
from masksearch_jax.corpus.tally import Tally

_log = logging.getLogger(__name__)
FORMS = (
    "JSON lines (.jsonl) or one JSON array (.json) of objects with id, title, text or id, "
    "contents; tab-separated with a header of id, text, title (.tsv); parquet or arrow files; "
    "Wikipedia's dump (.xml); WikiExtractor's wiki_00 files; a prepared TFDS dataset; a folder of "
    "one of these"
)
EARLY = 100  # bad lines before a fraction over the limit stops the reading at once


class CorpusError(ValueError):
    """A passage file that cannot be used; the message names the file and, if any, the line."""


class BadRow(Exception):
    """A row that is no passage; `reason` is what it is counted by."""

    def __init__(self, reason: str, detail: str = ""):
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason = reason


_HEAD = 4096  # bytes that tell the kind of a file
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

    def check_share(self, path: str | os.PathLike[str], max_bad_fraction: float) -> None:
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


def read_rows(
    path: str | os.PathLike[str],
    stats: CorpusStats,
    form: str = "jsonl",
    extent: tuple[float, float] = (0.0, 1.0),
) -> Iterator[Row]:
    """The rows of a file of the form jsonl | tsv | wikiextractor: where each stands, and itself.

    extent: where in the whole corpus the file begins and how much of it the file is, for
    `stats.done`. Raises CorpusError at once for a missing or empty file, and while reading for
    damage and for a file of another form; PackingError.
    """
    path = Path(path)
    try:
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
    except OSError as error:
        raise CorpusError(f"cannot read the corpus {path}: {error.strerror}") from None
    if not size:
        raise CorpusError(f"the corpus {path} is empty")
    return _read_rows(path, size, stats, form, extent)


def _read_rows(
    path: Path, size: int, stats: CorpusStats, form: str, extent: tuple[float, float]
) -> Iterator[Row]:
    last = "its start"
    with open(path, "rb") as file:
        try:
            for count, (where, row) in enumerate(_rows(path, unpack(file, path), form)):
                if count % 1000 == 0:
                    stats.done = extent[0] + extent[1] * min(1.0, file.tell() / size)
                numbered = isinstance(where, int)
                last = f"line {where}" if numbered else where
                yield f"{path}:{where}" if numbered else f"{path}: {where}", row
        except DAMAGE as error:
            raise CorpusError(f"{path}: unreadable after {last}: {error}") from error


def _rows(
    path: Path, file: IO[bytes], form: str
) -> Iterator[tuple[int | str, dict[str, Any] | BadRow]]:
    """(line number or the like, row) of a file, unpacked, that its first bytes tell the kind of."""
    start = file.peek(_HEAD)[:_HEAD]
    if start[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE) or b"\0" in start[:4]:
        raise CorpusError(
            f"{path} is UTF-16; a corpus must be UTF-8, as `iconv -f UTF-16 -t UTF-8` writes it"
        )
    head = start.decode("utf-8-sig", "replace")
    if form == "tsv":
        return _tsv_rows(path, _lines(file))
    if form == "wikiextractor" and wikiextractor.is_document(head):
        return _documents(file)
    if json_values.is_array(head) or json_values.is_spread(head):
        return _values(path, file)
    if head.strip() and not any(line.lstrip()[:1] in ("{", "[") for line in head.split("\n")):
        raise CorpusError(f"{path} begins with {head[:40]!r}, as no form does: {FORMS}")
    if form == "wikiextractor":
        return ((n, _or_bad(_untitled_line, line)) for n, line in _lines(file))
    return ((number, _or_bad(parse_line, line)) for number, line in _lines(file))


def _lines(file: IO[bytes]) -> Iterator[tuple[int, bytes]]:
    """(line number, line) of the lines that are not blank."""
    for number, line in enumerate(file, 1):
        if line.strip():
            yield number, line


def _or_bad(read: Callable[[bytes], dict[str, Any]], line: bytes) -> dict[str, Any] | BadRow:
    try:
        return read(line)
    except BadRow as bad:
        return bad


def _untitled_line(line: bytes) -> dict[str, Any]:
    return wikiextractor.without_title(parse_line(line))


def _values(path: Path, file: IO[bytes]) -> Iterator[tuple[str, dict[str, Any] | BadRow]]:
    """The objects of a file that is no JSON lines. Raises CorpusError where its JSON breaks."""
    text = io.TextIOWrapper(file, encoding="utf-8-sig")
    try:
        for number, value in enumerate(json_values.values(text), 1):
            yield f"item {number}", _as_object(value)
    except UnicodeDecodeError as error:
        raise CorpusError(f"{path} is not UTF-8: {error}") from None
    except ValueError as error:
        raise CorpusError(f"{path}: {error}") from None
    finally:
        text.detach()  # or the file would be closed with it


def _as_object(value: Any) -> dict[str, Any] | BadRow:
    if isinstance(value, dict):
        return value
    return BadRow("not a JSON object", type(value).__name__)


def _tsv_rows(
    path: Path, lines: Iterator[tuple[int, bytes]]
) -> Iterator[tuple[int, dict[str, Any] | BadRow]]:
    """Rows of a tab-separated file, one a line, with CSV's quotes. Raises CorpusError."""
    names: list[str] = []
    for number, line in lines:
        try:
            fields = _fields(_decoded(line))
        except BadRow as bad:
            yield number, bad
            continue
        if not names:
            names = [field.strip().casefold() for field in fields]
            if not {"id", "text", "title"} <= set(names):
                raise CorpusError(
                    f"{path}:{number}: a header line of id, text and title is needed, with tabs "
                    f"between them; the line is {line[:60]!r}"
                )
        elif len(fields) != len(names):
            yield number, BadRow("wrong number of columns", f"{len(fields)}, not {len(names)}")
        else:
            yield number, dict(zip(names, fields, strict=True))


def _fields(line: str) -> list[str]:
    """The fields of one line; quotes that do not pair up are taken as they stand."""
    line = line.rstrip("\r\n")
    try:
        return next(csv.reader([line], delimiter="\t", strict=True))
    except csv.Error:
        return line.split("\t")


def _documents(file: IO[bytes]) -> Iterator[tuple[int, dict[str, Any] | BadRow]]:
    lines = ((number, line.decode("utf-8-sig", "replace")) for number, line in enumerate(file, 1))
    for number, row in wikiextractor.rows(lines):
        if row is None:
            yield number, BadRow("a document without an end")
        else:
            yield number, wikiextractor.without_title(row)


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
                stats.check_share(path, max_bad_fraction)
            continue
        stats.kept += 1
        yield passage
        if stats.kept == limit:
            break
    stats.done = 1.0
    stats.check_share(path, max_bad_fraction)
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
        record = json.loads(_decoded(line))
    except (ValueError, RecursionError) as error:
        raise BadRow("not JSON", str(error)) from None
    if not isinstance(record, dict):
        raise BadRow("not a JSON object", type(record).__name__)
    return record


def _decoded(line: bytes) -> str:
    try:
        return line.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise BadRow("not UTF-8", str(error)) from None


def to_passage(record: dict[str, Any]) -> Passage:
    """The passage of a row: id, title, text; or id, contents; or wiki_id and, if any, par for id.

    Contents without a title line are the text of a passage without a title. Raises BadRow.
    """
    if "text" not in record and isinstance(record.get("contents"), str):
        record = _split(record)
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


def _split(record: dict[str, Any]) -> dict[str, Any]:
    """A row of contents with its title and text; a title of its own stays, and all text with it."""
    title, text = contents.split(record["contents"])
    if record.get("title", title) != title:
        title, text = record["title"], record["contents"]
    return {**record, "title": title, "text": text}


def _paragraph_id(record: dict[str, Any]) -> str:
    """The article's id and the paragraph's number, or else a hash of its text."""
    digest = hashlib.blake2b(record["text"].encode("utf-8", "surrogatepass"), digest_size=6)
    return f"{record['wiki_id']}-{record.get('par', digest.hexdigest())}"

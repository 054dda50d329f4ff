"""Passage files: JSON lines of id, title, text, plain or gzipped, read strictly and written whole.

Rows of the wiki-18 kind, `{"id": ..., "contents": "\\"Title\\"\\ntext"}`, are read too; other keys
are ignored. A bad line is dropped, counted and named; too many of them stop the reading.
"""

from __future__ import annotations

import dataclasses
import gzip
import json
import logging
import os
import tempfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import IO

from masksearch_jax.types import Passage

_log = logging.getLogger(__name__)
_EARLY = 100  # bad lines before a fraction over the limit stops the reading at once


class CorpusError(ValueError):
    """A passage file that cannot be used; the message names the file and, if any, the line."""


@dataclasses.dataclass
class CorpusStats:
    """Counts of one reading: lines read, passages kept, lines dropped by reason, share done."""

    read: int = 0
    kept: int = 0
    dropped: dict[str, int] = dataclasses.field(default_factory=dict)
    done: float = 0.0

    @property
    def bad(self) -> int:
        return sum(self.dropped.values())


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
    path = Path(path)
    try:
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
    except OSError as error:
        raise CorpusError(f"cannot read the corpus {path}: {error.strerror}") from None
    if not size:
        raise CorpusError(f"the corpus {path} is empty")
    stats = CorpusStats() if stats is None else stats
    return _read(path, limit, max_bad_fraction, log, stats)


def write_passages(path: str | os.PathLike[str], passages: Iterable[Passage]) -> int:
    """Writes passages as JSON lines, gzipped for a name in .gz, all or nothing; their number."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    count = 0
    fd, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with open(fd, "wb") as file:
            lines = gzip.GzipFile("", "wb", 6, file, mtime=0) if path.suffix == ".gz" else file
            for passage in passages:
                record = dataclasses.asdict(passage)
                lines.write(json.dumps(record, ensure_ascii=False).encode() + b"\n")
                count += 1
            if lines is not file:
                lines.close()
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise
    return count


def _read(
    path: Path,
    limit: int,
    max_bad_fraction: float,
    log: Callable[[str], None],
    stats: CorpusStats,
) -> Iterator[Passage]:
    seen: set[str] = set()
    first_bad = ""
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        for number, line in _lines(path, file):
            if number % 1000 == 1:
                stats.done = min(1.0, file.tell() / size)
            stats.read += 1
            try:
                passage = _parse(line)
                if passage.id in seen:
                    raise _BadLine("duplicate id", repr(passage.id))
            except _BadLine as bad:
                stats.dropped[bad.reason] = stats.dropped.get(bad.reason, 0) + 1
                message = f"{path}:{number}: {bad}"
                log(message)
                first_bad = first_bad or message
                if stats.bad > _EARLY:
                    _check(path, stats, max_bad_fraction, first_bad)
                continue
            seen.add(passage.id)
            stats.kept += 1
            yield passage
            if stats.kept == limit:
                break
    stats.done = 1.0
    _check(path, stats, max_bad_fraction, first_bad)
    if not stats.kept:
        raise CorpusError(f"the corpus {path} has no passages")


def _check(path: Path, stats: CorpusStats, max_bad_fraction: float, first_bad: str) -> None:
    if stats.bad > max_bad_fraction * stats.read:
        raise CorpusError(
            f"{path}: {stats.bad} of the first {stats.read} lines are bad ({stats.dropped}), "
            f"more than max_bad_fraction {max_bad_fraction:g} allows; the first is {first_bad}"
        )


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


class _BadLine(Exception):
    def __init__(self, reason: str, detail: str = ""):
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason = reason


def _parse(line: bytes) -> Passage:
    """The passage of one line. Raises _BadLine."""
    try:
        record = json.loads(line.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise _BadLine("not UTF-8", str(error)) from None
    except (ValueError, RecursionError) as error:
        raise _BadLine("not JSON", str(error)) from None
    if not isinstance(record, dict):
        raise _BadLine("not a JSON object", type(record).__name__)
    if "text" not in record and isinstance(record.get("contents"), str):
        title, _, text = record["contents"].partition("\n")
        record = {"title": title.strip().strip('"'), "text": text, **record}
    for key in ("id", "title", "text"):
        if key not in record:
            raise _BadLine(f"no {key}", f"keys are {', '.join(record) or 'none'}")
        whole = key == "id" and type(record[key]) is int
        if not whole and not isinstance(record[key], str):
            raise _BadLine(f"{key} is not a string", repr(record[key])[:80])
    passage = Passage(str(record["id"]), record["title"], record["text"])
    if not passage.id or not passage.text.strip():
        raise _BadLine("empty text" if passage.id else "empty id")
    try:
        f"{passage.id}{passage.title}{passage.text}".encode()
    except UnicodeEncodeError as error:
        raise _BadLine("not valid Unicode", error.reason) from None
    return passage

"""A JSONL file that grows row by row, so that a process that was killed goes on with what it had.

What a kill cut off is dropped when the file is opened again. A row is in the file when `add`
returns; in a bucket, whose objects are written whole, up to a minute later, or once it takes them.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from etils import epath

from masksearch_jax.core.bucket import StorageOutageError
from masksearch_jax.core.files import is_bucket
from masksearch_jax.core.types import JsonObject
from masksearch_jax.runtime import storage

_BUCKET_SECONDS = 60.0

Row = JsonObject


class RowLog:
    """The rows of the file at `path`, each under the name that `name_of` gives it."""

    def __init__(self, path: epath.Path, name_of: Callable[[Row], Any]):
        self._path, self._name_of = path, name_of
        self._places: dict[Any, tuple[int, int]] = {}  # name → first byte, number of bytes
        self._size, self._pending, self._written = 0, "", time.monotonic()
        self._every = _BUCKET_SECONDS if is_bucket(path) else 0.0
        for line, row in _whole_rows(path):
            self._places[name_of(row)] = (self._size, len(line))
            self._size += len(line)
        storage.truncate(path, self._size)

    def __enter__(self) -> RowLog:
        return self

    def __exit__(self, *_: object) -> None:
        self.write()

    def __len__(self) -> int:
        return len(self._places)

    def __contains__(self, name: Any) -> bool:
        return name in self._places

    def add(self, row: Row) -> None:
        """Appends a row, whose name is new."""
        self._append(self._name_of(row), json.dumps(row) + "\n")  # ASCII

    def absorb(self, path: epath.Path) -> None:
        """Appends the whole rows of another such file whose names are new, and removes that."""
        for line, row in _whole_rows(path):
            if (name := self._name_of(row)) not in self._places:
                self._append(name, line.decode())
        self.write()
        path.unlink()

    def lines(self, names: Iterable[Any]) -> Iterator[str]:
        """The rows of these names, in this order, as they are in the file."""
        self.write()
        with self._path.open("rb") as file:
            for name in names:
                start, length = self._places[name]
                file.seek(start)
                yield file.read(length).decode()

    def delete(self) -> None:
        """Removes the file."""
        self._places.clear()
        self._path.unlink(missing_ok=True)

    def write(self) -> None:
        """Brings all rows into the file."""
        if self._pending:
            storage.append(self._path, self._pending)
            self._pending = ""
        self._written = time.monotonic()

    def _append(self, name: Any, line: str) -> None:
        self._places[name] = (self._size, len(line))
        self._size += len(line)
        self._pending += line
        if time.monotonic() - self._written >= self._every:
            try:
                self.write()
            except StorageOutageError as error:
                self._written = time.monotonic()
                print(f"  warning: rows are not written yet: {error}", file=sys.stderr, flush=True)


def _whole_rows(path: epath.Path) -> Iterator[tuple[bytes, Row]]:
    """Each line with its row, up to the first that is not whole JSON with its line break."""
    if not path.exists():
        return
    with path.open("rb") as file:
        for line in file:
            if not line.endswith(b"\n"):
                return
            try:
                row = json.loads(line)
            except ValueError:
                return
            yield line, row

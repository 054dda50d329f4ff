"""The rows that a build leaves out, named in a file: a log shows their number, never the rows."""

from __future__ import annotations

import os
from pathlib import Path
from typing import IO


class DroppedRows:
    """A text file with one dropped row a line; where no row is dropped there is no file.

    The file of an earlier build at `path` is deleted. What was added is on disk once the `with`
    block is left, by an error too.
    """

    def __init__(self, path: str | os.PathLike[str]):
        self.path = Path(path)
        self.path.unlink(missing_ok=True)
        self._file: IO[str] | None = None

    def __enter__(self) -> DroppedRows:
        return self

    def __exit__(self, *failure: object) -> None:
        if self._file:
            self._file.close()

    def add(self, row: str) -> None:
        """Writes one row, such as `corpus.jsonl:7: not JSON`; line breaks in it become spaces."""
        if self._file is None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = open(  # noqa: SIM115, closed by __exit__
                self.path, "w", encoding="utf-8", errors="backslashreplace"
            )
        self._file.write(" ".join(row.splitlines()) + "\n")

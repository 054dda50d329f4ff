"""Rows of figures in a JSON file, written one by one, so that a stopped measurement goes on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from masksearch_jax.core.files import write_json

Row = dict[str, Any]


class KeptRows:
    """The rows of the file `path`, measured with `settings`; without a path they are only kept.

    Ends the program for a file of other settings, which another measurement wrote.
    """

    def __init__(self, path: str | None, settings: Row):
        self._path = Path(path) if path else None
        self._settings = settings
        self.rows: list[Row] = []
        if self._path and self._path.exists():
            told = json.loads(self._path.read_text())
            if told["settings"] != settings:
                raise SystemExit(
                    f"{path} was measured with {told['settings']}, not {settings}: name another"
                )
            self.rows = told["rows"]

    def find(self, **key: Any) -> Row | None:
        """The row with these values, if it is measured."""
        return next((r for r in self.rows if key.items() <= _plain(r).items()), None)

    def add(self, row: Row) -> Row:
        self.rows.append(row)
        if self._path:
            write_json(self._path, {"settings": self._settings, "rows": self.rows})
        return row


def _plain(row: Row) -> Row:
    return {name: value for name, value in row.items() if not isinstance(value, dict | list)}

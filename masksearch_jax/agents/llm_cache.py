"""The record of every reply paid for: SQLite, one file, written before a reply is used.

A process that is killed loses the replies on their way to it and no other. What was asked is kept
beside what came back, so that a run can be read, and run again with no network.
"""

from __future__ import annotations

import hashlib
import json
import pathlib
import sqlite3
from collections.abc import Mapping
from typing import Any, NamedTuple

_SCHEMA = """
create table if not exists replies (
    key text primary key, request text, text text, prompt_tokens integer, completion_tokens integer
);
create table if not exists cut (key text primary key);
create table if not exists served (model text primary key, fingerprint text);
create table if not exists failures (key text primary key, request text, error text);
create table if not exists paid (
    one integer primary key check (one = 1),
    calls integer, prompt_tokens integer, completion_tokens integer
);
insert or ignore into paid values (1, 0, 0, 0);
"""
_ADD = (
    "update paid set calls = calls + 1, "
    "prompt_tokens = prompt_tokens + ?, completion_tokens = completion_tokens + ?"
)


class RepliesError(RuntimeError):
    """The file cannot be opened, read or written."""


class Paid(NamedTuple):
    """Replies ever paid for into one file, by any process, those of no use included."""

    calls: int
    prompt_tokens: int
    completion_tokens: int


class Stored(NamedTuple):
    text: str
    prompt_tokens: int
    completion_tokens: int
    is_cut: bool = False  # it ended at the limit of tokens, not by itself


def key_of(request: Mapping[str, Any], sample: int, served: str = "") -> str:
    """A digest of all that is sent, and of which of several independent replies is meant.

    served: what tells the weights behind the model's name from others, where the endpoint does.
    """
    text = json.dumps([request, sample, *([served] if served else [])], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


class Replies:
    """The file at `path`, shared by any number of processes. Raises RepliesError."""

    def __init__(self, path: str):
        self.path = path
        try:
            pathlib.Path(path).parent.mkdir(parents=True, exist_ok=True)
            self._database = sqlite3.connect(path, timeout=30, isolation_level=None)
            self._database.execute("pragma journal_mode=wal")
            self._database.executescript(_SCHEMA)
        except (sqlite3.Error, OSError) as error:
            raise RepliesError(f"cannot open the cache of replies {path}: {error}") from error

    def close(self) -> None:
        self._database.close()

    def find(self, key: str) -> Stored | None:
        select = (
            "select text, prompt_tokens, completion_tokens, key in (select key from cut) "
            "from replies where key = ?"
        )
        row = self._row(select, key)
        return Stored(*row[:3], bool(row[3])) if row else None

    def has_any(self, model: str) -> bool:
        """Whether a reply of this model is kept, to whatever it was asked."""
        select = "select 1 from replies where json_extract(request, '$.model') = ? limit 1"
        return self._row(select, model) is not None

    def served(self, model: str) -> str:
        """What was told last of the weights behind a model's name, for a replay; "" for nothing."""
        row = self._row("select fingerprint from served where model = ?", model)
        return row[0] if row else ""

    def keep_served(self, model: str, fingerprint: str) -> None:
        self._write(("insert or replace into served values (?, ?)", [model, fingerprint]))

    def forget(self, key: str) -> None:
        """Removes a reply, which is asked for and paid for anew; what it cost stays counted."""
        self._write(
            ("delete from replies where key = ?", [key]), ("delete from cut where key = ?", [key])
        )

    def failure(self, key: str) -> str | None:
        """What became of a request that never got a reply, for a replay."""
        row = self._row("select error from failures where key = ?", key)
        return row[0] if row else None

    def paid(self) -> Paid:
        return Paid(*self._row("select calls, prompt_tokens, completion_tokens from paid"))

    def keep(self, key: str, request: Mapping[str, Any], reply: Stored) -> None:
        """Writes a reply and adds its cost, both or neither."""
        *row, is_cut = reply
        insert = "insert or replace into replies values (?, ?, ?, ?, ?)"
        mark = [("insert or replace into cut values (?)", [key])] if is_cut else []
        self._write(
            (insert, [key, _json(request), *row]),
            (_ADD, [reply.prompt_tokens, reply.completion_tokens]),
            *mark,
        )

    def add_cost(self, prompt_tokens: int, completion_tokens: int) -> None:
        """Of a reply that is of no use."""
        self._write((_ADD, [prompt_tokens, completion_tokens]))

    def keep_failure(self, key: str, request: Mapping[str, Any], error: str) -> None:
        insert = "insert or replace into failures values (?, ?, ?)"
        self._write((insert, [key, _json(request), error]))

    def _row(self, statement: str, *values: str) -> tuple | None:
        try:
            return self._database.execute(statement, values).fetchone()
        except sqlite3.Error as error:
            raise RepliesError(f"cannot read the cache of replies {self.path}: {error}") from error

    def _write(self, *statements: tuple[str, list[Any]]) -> None:
        try:
            self._database.execute("begin immediate")
            try:
                for statement, values in statements:
                    self._database.execute(statement, values)
                self._database.execute("commit")
            except BaseException:
                self._database.execute("rollback")
                raise
        except sqlite3.Error as error:
            raise RepliesError(f"cannot write the cache of replies {self.path}: {error}") from error


def _json(request: Mapping[str, Any]) -> str:
    return json.dumps(request, sort_keys=True)  # ASCII: SQLite takes no lone surrogate

"""A disk cache around a search tool: what was asked once is never asked again, or only replayed."""

from __future__ import annotations

import dataclasses
import json
import os
import sqlite3
import threading
from collections.abc import Iterable, Sequence

from masksearch_jax.core.retrieval import SearchError, SearchTool
from masksearch_jax.core.types import Hits, Passage

MODES = ("use", "replay")
_TABLES = (
    """create table if not exists results (
    source text, query text, top_k integer, passages text, primary key (source, query, top_k)
    ) without rowid""",
    "create table if not exists versions (name text primary key, fingerprint text) without rowid",
)


class CachedSearch:
    """Remembers the results of (name, fingerprint, query, top_k) in the SQLite file `path`.

    mode "use" asks `tool` for what the file lacks and records it; "replay" never asks, so that a
    run can be repeated with no network, and raises SearchError for what was not recorded. Failures
    are not recorded. `name` says what is searched, so that one file can serve several tools, and
    `fingerprint` which version of it: results of an index that was rebuilt since are not used. A
    replay is of the version that was asked last.
    """

    def __init__(
        self,
        tool: SearchTool | None,
        path: str | os.PathLike[str],
        *,
        mode: str = "use",
        name: str = "",
        fingerprint: str = "",
    ):
        if mode not in MODES:
            raise SearchError(f"cache mode is {mode!r}, must be one of {', '.join(MODES)}")
        if mode == "use" and tool is None:
            raise SearchError('cache mode "use" needs a tool to ask for what is not recorded')
        if mode == "replay" and not os.path.isfile(path):
            raise SearchError(f"nothing to replay: no search cache at {path}")
        self._tool = tool
        self._path = os.fspath(path)
        self._mode = mode
        self._lock = threading.Lock()
        self.hits = 0  # queries answered from the file
        self.misses = 0  # queries that were not in it
        try:
            self._database = sqlite3.connect(self._path, timeout=30, check_same_thread=False)
            if mode == "use":
                self._database.execute("pragma journal_mode=wal")
                self._database.execute("pragma synchronous=normal")
                for table in _TABLES:
                    self._database.execute(table)
                newest = "insert or replace into versions values (?,?)"
                with self._database:
                    self._database.execute(newest, (name, fingerprint))
            else:
                asked = "select fingerprint from versions where name=?"
                fingerprint = (self._database.execute(asked, (name,)).fetchone() or ("",))[0]
        except sqlite3.Error as error:
            raise SearchError(f"cannot open the search cache {self._path}: {error}") from error
        self._source = f"{name}@{fingerprint}"

    def search(self, queries: Sequence[str], top_k: int) -> list[list[Passage]]:
        found = self._load(dict.fromkeys(queries), top_k)
        missing = [query for query in dict.fromkeys(queries) if query not in found]
        with self._lock:
            self.misses += len(missing)
            self.hits += len(queries) - len(missing)
        if missing and self._mode == "replay":
            raise SearchError(
                f"query {missing[0]!r} with top_k {top_k} is not recorded in {self._path}"
            )
        if missing:
            asked = dict(zip(missing, self._tool.search(missing, top_k), strict=True))
            self._save(asked, top_k)
            found |= asked
        return [found[query] for query in queries]

    def close(self) -> None:
        with self._lock:
            self._database.close()

    def _load(self, queries: Iterable[str], top_k: int) -> dict[str, list[Passage]]:
        select = "select passages from results where source=? and query=? and top_k=?"
        found: dict[str, list[Passage]] = {}
        try:
            with self._lock:
                for query in queries:
                    row = self._database.execute(select, self._key(query, top_k)).fetchone()
                    if row:
                        passages = (Passage(*fields) for fields in json.loads(row[0]))
                        found[query] = Hits(passages, cached=True)
        except (sqlite3.Error, ValueError, TypeError) as error:
            raise SearchError(f"cannot read the search cache {self._path}: {error}") from error
        return found

    def _save(self, results: dict[str, list[Passage]], top_k: int) -> None:
        rows = [
            (*self._key(query, top_k), json.dumps([dataclasses.astuple(p) for p in passages]))
            for query, passages in results.items()
        ]
        try:
            with self._lock, self._database:
                self._database.executemany("insert or replace into results values (?,?,?,?)", rows)
        except sqlite3.Error as error:
            raise SearchError(f"cannot write the search cache {self._path}: {error}") from error

    def _key(self, query: str, top_k: int) -> tuple[str, str, int]:
        # As JSON, since SQLite takes neither lone surrogates nor, whole, a NUL.
        return self._source, json.dumps(query), top_k

"""A disk cache around a search tool: what was asked once is never asked again, or only replayed."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import os
import sqlite3
import threading
import time
import urllib.parse
from collections.abc import Iterable, Sequence
from typing import Any

from masksearch_jax.core.retrieval import SearchError, SearchTool
from masksearch_jax.core.types import Hits, Passage

MODES = ("use", "replay")
LEAST_BYTES = 2**20  # that a bound must leave
_LAYOUT = 3  # of the tables, as SQLite's user_version
_SPARE = 0.1  # of the bound that is made free when it is passed
_TABLES = (
    """create table results (
    id integer primary key, searched text, query text, top_k integer, hits text, used integer,
    unique (searched, query, top_k))""",
    "create index by_use on results (used)",
    "create table versions (name text primary key, fingerprint text) without rowid",
    f"pragma user_version={_LAYOUT}",
)


class CachedSearch:
    """Remembers the results of (name, fingerprint, query, top_k) in the SQLite file `path`.

    mode "use" asks `tool` for what the file lacks and records it; "replay" never asks, so that a
    run can be repeated with no network, and raises SearchError for what was not recorded. Failures
    are not recorded. `name` says what is searched, so that one file can serve several tools, and
    `fingerprint` which version of it: results of an index that was rebuilt since are not used. A
    replay is of the version that was asked last. Several processes may share a file.

    max_bytes: that the file's results may take; those that were used longest ago go first. 0: any.
    """

    def __init__(
        self,
        tool: SearchTool | None,
        path: str | os.PathLike[str],
        *,
        mode: str = "use",
        name: str = "",
        fingerprint: str = "",
        max_bytes: int = 0,
    ):
        if mode not in MODES:
            raise SearchError(f"cache mode is {mode!r}, must be one of {', '.join(MODES)}")
        if mode == "use" and tool is None:
            raise SearchError('cache mode "use" needs a tool to ask for what is not recorded')
        if mode == "replay" and not os.path.isfile(path):
            raise SearchError(f"nothing to replay: no search cache at {path}")
        if 0 < max_bytes < LEAST_BYTES:
            raise SearchError(
                f"search.cache_bytes is {max_bytes}, must be 0 for no bound or at least "
                f"{LEAST_BYTES}"
            )
        self._tool = tool
        self._path = os.fspath(path)
        self._mode = mode
        self._max_bytes = max_bytes
        self._lock = threading.Lock()
        self.hits = 0  # queries answered from the file
        self.misses = 0  # queries that were not in it
        try:
            fingerprint = self._open(name, fingerprint)
        except sqlite3.Error as error:
            raise SearchError(f"cannot open the search cache {self._path}: {error}") from error
        self._searched = f"{name}@{fingerprint}"
        self.fingerprint = fingerprint

    @property
    def uncached(self) -> SearchTool:
        """What is asked for results that the file lacks; where nothing is, itself."""
        return self._tool or self

    def __getattr__(self, name: str) -> Any:
        """All else is the tool's own."""
        if name.startswith("_"):
            raise AttributeError(name)
        return getattr(self._tool, name)

    def _open(self, name: str, fingerprint: str) -> str:
        """Opens the file; the fingerprint whose results are used."""
        self._database = self._connect()
        if self._mode == "replay":
            self._check_layout()
            asked = "select fingerprint from versions where name=?"
            return (self._database.execute(asked, (name,)).fetchone() or ("",))[0]
        self._database.execute("pragma journal_mode=wal")
        self._database.execute("pragma synchronous=normal")
        with self._database:
            # All tables or none, whoever else begins the file now and wherever this is cut off.
            self._database.execute("begin immediate")
            if not self._has_table("results"):
                for table in _TABLES:
                    self._database.execute(table)
            self._check_layout()
            newest = "insert or replace into versions values (?,?)"
            self._database.execute(newest, (name, fingerprint))
            self._evict()
        return fingerprint

    def _check_layout(self) -> None:
        """Raises SearchError for a file of another layout."""
        layout = self._pragma("user_version")
        if layout != _LAYOUT and self._has_table("results"):
            raise SearchError(
                f"the search cache {self._path} has layout {layout}, must be {_LAYOUT}: remove it "
                "or name another file as search.cache"
            )

    def _connect(self) -> sqlite3.Connection:
        """Raises SearchError for a file on a disk that takes no writes and that was not closed."""
        options: dict[str, Any] = {"timeout": 30, "check_same_thread": False}
        folder = os.path.dirname(os.path.abspath(self._path))
        if self._mode == "use" or os.access(folder, os.W_OK):
            return sqlite3.connect(self._path, **options)
        log = f"{self._path}-wal"
        if os.path.exists(log) and os.path.getsize(log):
            raise SearchError(
                f"the search cache {self._path} was not closed, and its folder takes no writes: "
                f"copy it with {os.path.basename(log)} to another folder"
            )
        address = urllib.parse.quote(os.path.abspath(self._path))
        return sqlite3.connect(f"file:{address}?immutable=1", uri=True, **options)

    def search(self, queries: Sequence[str], top_k: int) -> list[list[Passage]]:
        found = self._load(dict.fromkeys(queries), top_k)
        missing = [query for query in dict.fromkeys(queries) if query not in found]
        with self._lock:
            self.misses += len(missing)
            self.hits += len(queries) - len(missing)
        if missing and (self._tool is None or self._mode == "replay"):
            raise SearchError(
                f"query {missing[0]!r} with top_k {top_k} is not recorded in {self._path}"
            )
        if missing and self._tool is not None:
            asked = dict(zip(missing, self._tool.search(missing, top_k), strict=True))
            self._save(asked, top_k)
            found |= asked
        return [found[query] for query in queries]

    def close(self) -> None:
        with self._lock:
            self._database.close()

    def _load(self, queries: Iterable[str], top_k: int) -> dict[str, list[Passage]]:
        select = "select id, hits from results where searched=? and query=? and top_k=?"
        found: dict[str, list[Passage]] = {}
        used: list[tuple[int, int]] = []
        try:
            with self._lock:
                for query in queries:
                    row = self._database.execute(select, self._key(query, top_k)).fetchone()
                    if row:
                        used.append((time.time_ns(), row[0]))
                        found[query] = _hits(row[1])
                self._note_use(used)
        except (sqlite3.Error, ValueError, TypeError, LookupError) as error:
            raise SearchError(f"cannot read the search cache {self._path}: {error}") from error
        return found

    def _note_use(self, used: list[tuple[int, int]]) -> None:
        """Writes down when rows were used; where that fails, they only go earlier."""
        if not (used and self._max_bytes and self._mode == "use"):
            return
        with contextlib.suppress(sqlite3.Error), self._database:
            self._database.executemany("update results set used=? where id=?", used)

    def _save(self, results: dict[str, list[Passage]], top_k: int) -> None:
        now = time.time_ns()
        rows = [(*self._key(q, top_k), _as_json(hits), now) for q, hits in results.items()]
        insert = (
            "insert or replace into results (searched, query, top_k, hits, used) values (?,?,?,?,?)"
        )
        try:
            with self._lock, self._database:
                self._database.executemany(insert, rows)
                self._evict()
        except sqlite3.Error as error:
            raise SearchError(f"cannot write the search cache {self._path}: {error}") from error

    def _evict(self) -> None:
        """Removes the results used longest ago, in the open transaction, where there are too many.

        Pages that become free are used again: the file stays about as large as its bound.
        """
        while self._max_bytes and (size := self._size()) > self._max_bytes:
            (count,) = self._database.execute("select count(*) from results").fetchone()
            if not count:
                return
            share = (size - self._max_bytes) / size + _SPARE
            oldest = "select id from results order by used, id limit ?"
            gone = f"delete from results where id in ({oldest})"
            self._database.execute(gone, (math.ceil(count * share),))

    def _size(self) -> int:
        """Bytes of the file's pages that hold anything."""
        pages = self._pragma("page_count") - self._pragma("freelist_count")
        return pages * self._pragma("page_size")

    def _pragma(self, name: str) -> int:
        return int(self._database.execute(f"pragma {name}").fetchone()[0])

    def _has_table(self, name: str) -> bool:
        asked = "select 1 from sqlite_master where type='table' and name=?"
        return self._database.execute(asked, (name,)).fetchone() is not None

    def _key(self, query: str, top_k: int) -> tuple[str, str, int]:
        # As JSON, since SQLite takes neither lone surrogates nor, whole, a NUL.
        return self._searched, json.dumps(query), top_k


def _as_json(hits: Sequence[Passage]) -> str:
    told = hits if isinstance(hits, Hits) else Hits()
    kept = {"passages": [dataclasses.astuple(p) for p in hits], "scores": told.scores}
    return json.dumps(kept | ({"answered_by": told.answered_by} if told.answered_by else {}))


def _hits(text: str) -> Hits:
    found = json.loads(text)
    passages = (Passage(*fields) for fields in found["passages"])
    by = found.get("answered_by", "")  # "" of a tool in process, whose index is in the key
    return Hits(passages, scores=found["scores"], cached=True, answered_by=by)

"""Searches that trajectories recorded, answered again: a run is repeated without its tools."""

from __future__ import annotations

import collections
import gzip
import json
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from masksearch_jax.core.eval_config import CONTROLS
from masksearch_jax.core.retrieval import SearchError
from masksearch_jax.core.types import (
    SEARCH,
    Hits,
    JsonObject,
    Passage,
    QueryRecord,
    Turn,
    from_json,
)
from masksearch_jax.search.store import PassageStore

_INDEX = re.compile(r"(?:^| )([0-9a-f]{16})(?:\+|$)")  # in what a record says of who answered
_PATTERNS = ("*.jsonl", "*.jsonl.gz")


class _Result(NamedTuple):
    """The passages that a query got, and the number of passages that were asked for."""

    depth: int
    passage_ids: tuple[str, ...]

    def has_all_of(self, top_k: int) -> bool:
        """Whether so many passages are known, or all that there are."""
        return len(self.passage_ids) != self.depth or self.depth >= top_k


class RecordedSearch:
    """Answers what the turns of trajectories recorded, with the passages that `passages` has.

    path: a file of JSON lines, plain or gzipped, or a folder of such files; a line is a trajectory.
    control: the method of an evaluation whose trajectories alone are read; "": those of all
    methods but the controls, which other passages answered. Of a query that was recorded several
    times the records with the number of passages that is asked for count, or else all with enough.
    Raises SearchError for a query that none asked, for one that got several results, for more
    passages than it was asked with, and for a passage that is not there.
    """

    def __init__(self, path: str, passages: PassageStore, fingerprint: str = "", control: str = ""):
        self.passages, self.fingerprint, self._path = passages, fingerprint, path
        self._found: dict[str, dict[_Result, QueryRecord]] = collections.defaultdict(dict)

        def is_read(row: JsonObject) -> bool:
            method = row.get("method")
            return method == control if control else method not in CONTROLS

        for turn in _turns(path, SEARCH, is_read):
            for query, record in zip(turn.queries, turn.found, strict=False):
                result = _Result(record.depth, record.passage_ids)
                self._found[query].setdefault(result, record)
        if not self._found:
            by = f" by method {control}; leave {control} out of config.eval.methods"
            said = by if control else ""
            raise SearchError(f"nothing to replay: no trajectory in {path} recorded a search{said}")
        if others := self._other_indexes():
            print(
                f"  {path} recorded searches of index {', '.join(others)}, and search.index is "
                f"{fingerprint}: texts that differ there are answered as search.index has them",
                file=sys.stderr,
                flush=True,
            )

    def _other_indexes(self) -> list[str]:
        """The indexes that answered, by the records that name one, but the one of `passages`."""
        named = (
            _INDEX.search(record.answered_by)
            for records in self._found.values()
            for record in records.values()
        )
        return sorted({match[1] for match in named if match} - {self.fingerprint})

    def search(self, queries: Sequence[str], top_k: int) -> list[list[Passage]]:
        return [self._one(query, top_k) for query in queries]

    def _one(self, query: str, top_k: int) -> Hits:
        record = self._record(query, top_k)
        scores, by = record.scores[:top_k], record.answered_by
        passages = [self._passage(name) for name in record.passage_ids[:top_k]]
        return Hits(passages, scores=scores, cached=True, answered_by=by)

    def _record(self, query: str, top_k: int) -> QueryRecord:
        """What answers a query. Raises SearchError where nothing does, or more than one result."""
        found = self._found.get(query)
        if not found:
            raise SearchError(f"query {query!r} is not recorded in {self._path}")
        enough = {r: record for r, record in found.items() if r.has_all_of(top_k)}
        if not enough:
            raise SearchError(
                f"query {query!r} wants {top_k} passages, and {max(r.depth for r in found)} were "
                f"asked for when {self._path} was recorded"
            )
        exact = {r: record for r, record in enough.items() if r.depth == top_k} or enough
        if len({r.passage_ids[:top_k] for r in exact}) > 1:
            raise SearchError(f"query {query!r} has several results in {self._path}")
        return next(iter(exact.values()))

    def _passage(self, name: str) -> Passage:
        passage = self.passages.find(name)
        if passage is None:
            raise SearchError(f"passage {name!r}, recorded in {self._path}, is not in search.index")
        return passage


class RecordedAnswers:
    """Answers what trajectories recorded of the tool with the tag `tag`; path: as `RecordedSearch`.

    said: how messages call the tool. Raises SearchError for a request that none asked, and for one
    that got several answers.
    """

    def __init__(self, path: str, tag: str, said: str):
        self._path, self._said = path, said
        self._found: dict[str, set[Passage]] = collections.defaultdict(set)
        for turn in _turns(path, tag):
            for query, record in zip(turn.queries, turn.found, strict=False):
                if record.answer is not None:
                    self._found[query].add(Passage("".join(record.passage_ids), "", record.answer))
        if not self._found:
            raise SearchError(f"nothing to replay: no trajectory in {path} has an answer of {said}")

    def search(self, queries: Sequence[str], top_k: int) -> list[list[Passage]]:
        return [self._one(query) for query in queries]

    def _one(self, query: str) -> Hits:
        found = self._found.get(query, ())
        if len(found) != 1:
            many = "has several answers in" if found else "is not recorded in"
            raise SearchError(f"request {query!r} {many} {self._path}, for {self._said}")
        return Hits(found, cached=True)


def _turns(
    path: str, tool: str, is_read: Callable[[JsonObject], bool] = lambda row: True
) -> Iterator[Turn]:
    """A tool's calls of the trajectories that are read. SearchError names a line that is none."""
    place = Path(path)
    files = sorted(f for p in _PATTERNS for f in place.rglob(p)) if place.is_dir() else [place]
    for file in files:
        for number, line in enumerate(_lines(file), start=1):
            try:
                row: JsonObject = json.loads(line)
                turns = [from_json(Turn, turn) for turn in row.get("turns", ())]
                if is_read(row):
                    yield from (turn for turn in turns if turn.tool == tool)
            except (ValueError, TypeError, AttributeError, LookupError) as error:
                raise SearchError(f"{file}:{number} is no trajectory: {error}") from error


def _lines(file: Path) -> Iterator[str]:
    try:
        with gzip.open(file, "rt") if file.suffix == ".gz" else open(file) as lines:
            yield from lines
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise SearchError(f"cannot read the recorded searches {file}: {error}") from error

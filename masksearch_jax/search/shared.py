"""Searches that are made once: what is asked while it is under way, or was asked lately, is shared.

A group of trajectories asks the same first query all at once. What a tick of a rollout asks is
begun as one search, before its calls have threads that wait for it.
"""

from __future__ import annotations

import collections
import contextlib
import threading
from collections.abc import Sequence
from concurrent.futures import Future
from typing import Any

from masksearch_jax.core.retrieval import SearchError, SearchTool
from masksearch_jax.core.types import Hits, Passage
from masksearch_jax.search import gather

Key = tuple[str, int]  # query and top_k

MOST_CHARACTERS = 2**28  # of the passages that are kept


class _OfSeveralError(SearchError):
    """A search of several queries failed, for one of them it may be."""


class SharedSearch:
    """Asks `tool` for what is neither under way nor among the last `size` results.

    Fewer are kept where they have more than MOST_CHARACTERS.

    A failure is that of all who wait for the search, and is not kept. Where it was of several
    queries, those who wait for one of them search for that one, since another may have been the
    reason. `misses` counts queries that were searched for. All else is the tool's own.
    """

    def __init__(self, tool: SearchTool, size: int):
        self._tool, self._size = tool, size
        self._lock = threading.Lock()
        self._under_way: dict[Key, Future[Hits]] = {}
        self._kept: collections.OrderedDict[Key, Hits] = collections.OrderedDict()
        self._begun: set[Key] = set()  # searched before the call that it is for
        self._shared = self._searched = self._characters = 0

    @property
    def hits(self) -> int:
        """Queries that needed no search, or were in the tool's own cache."""
        return self._shared + getattr(self._tool, "hits", 0)

    @property
    def misses(self) -> int:
        return getattr(self._tool, "misses", self._searched)

    @property
    def uncached(self) -> SearchTool:
        """What is asked for results that nothing has kept."""
        return getattr(self._tool, "uncached", self._tool)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._tool, name)

    def begin(self, calls: Sequence[Sequence[str]], top_k: int) -> None:
        """Begins one search for all calls that are about to come; returns at once.

        Of a tool that gathers calls into requests, where results are kept until their calls come;
        else nothing is begun. Its failure is that of each call, which searches on its own where
        another's query may have been the reason.
        """
        if not (self._size and getattr(self._tool, "gathers", False)):
            return
        with self._lock:
            wanted = dict.fromkeys(query for queries in calls for query in queries)
            places = {query: self._place((query, top_k)) for query in wanted}
            own = [query for query, (_, is_own) in places.items() if is_own]
            self._searched += len(own)
            self._begun.update((query, top_k) for query in own)
        for start in range(0, len(own), gather.MAX_BATCH):
            part = own[start : start + gather.MAX_BATCH]
            futures = [places[query][0] for query in part]
            given = (part, top_k, futures, min(len(calls), len(part)))
            threading.Thread(target=self._begin, args=given, name="search", daemon=True).start()

    def _begin(
        self, queries: Sequence[str], top_k: int, futures: Sequence[Future[Hits]], calls: int
    ) -> None:
        reasons = (gather.RefusedError, gather.FailingBatchError)
        with contextlib.suppress(Exception), gather.of_calls(calls):  # the futures tell it
            self._ask(queries, top_k, futures, reasons)

    def search(self, queries: Sequence[str], top_k: int) -> list[list[Passage]]:
        with self._lock:
            places = {query: self._place((query, top_k)) for query in dict.fromkeys(queries)}
            own = {query for query, (_, is_own) in places.items() if is_own}
            first = own | {query for query in places if (query, top_k) in self._begun}
            self._begun.difference_update((query, top_k) for query in first)
            self._searched += len(own)
            self._shared += len(queries) - len(first)
        if own:
            asked = [query for query in places if query in own]
            self._ask(asked, top_k, [places[query][0] for query in asked])
        return [self._told(query, top_k, places[query][0], query not in first) for query in queries]

    def _place(self, key: Key) -> tuple[Future[Hits], bool]:
        """The future of a result, and whether this call has to search for it."""
        if key in self._kept:
            self._kept.move_to_end(key)
            done: Future[Hits] = Future()
            done.set_result(self._kept[key])
            return done, False
        if key in self._under_way:
            return self._under_way[key], False
        self._under_way[key] = Future()
        return self._under_way[key], True

    def _ask(
        self,
        queries: Sequence[str],
        top_k: int,
        futures: Sequence[Future[Hits]],
        of_one: tuple[type[Exception], ...] = (Exception,),
    ) -> None:
        """of_one: failures of a search of several queries of which one may be the reason."""
        try:
            found = [_as_hits(hits) for hits in self._tool.search(queries, top_k)]
            if len(found) != len(queries):
                raise SearchError(f"{len(queries)} queries got {len(found)} results")
        except BaseException as error:  # a panic of a Rust library is no Exception
            with self._lock:
                for query in queries:
                    del self._under_way[query, top_k]
                    self._begun.discard((query, top_k))
            told = error
            if not isinstance(error, Exception):  # such as a Ctrl-C, which is this thread's alone
                told = SearchError(f"the search was interrupted: {error!r}")
            elif len(queries) > 1 and isinstance(error, of_one):
                told = _OfSeveralError(str(error))
            for future in futures:
                future.set_exception(told)
            raise
        with self._lock:
            for query, hits in zip(queries, found, strict=True):
                del self._under_way[query, top_k]
                self._kept[query, top_k] = hits
                self._characters += _characters(hits)
            while len(self._kept) > self._size or self._characters > MOST_CHARACTERS:
                gone, hits = self._kept.popitem(last=False)
                self._characters -= _characters(hits)
                self._begun.discard(gone)
        for future, hits in zip(futures, found, strict=True):
            future.set_result(hits)

    def _told(self, query: str, top_k: int, future: Future[Hits], is_shared: bool) -> Hits:
        try:
            hits = future.result()
        except _OfSeveralError:  # only who shares it: a caller's own was raised to it
            (found,) = self.search([query], top_k)
            return _as_hits(found)
        if not is_shared:
            return hits
        return Hits(hits, scores=hits.scores, cached=True, answered_by=hits.answered_by)


def _characters(hits: Sequence[Passage]) -> int:
    return sum(len(passage.title) + len(passage.text) for passage in hits)


def _as_hits(hits: Sequence[Passage]) -> Hits:
    return hits if isinstance(hits, Hits) else Hits(hits)

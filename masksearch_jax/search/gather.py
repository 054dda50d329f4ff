"""Searches that begin together, put into one call: what a tick of a rollout asks is one request."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future

from masksearch_jax.core.retrieval import SearchError
from masksearch_jax.core.types import Hits

MAX_BATCH = 512  # queries of one call

Ask = Callable[[Sequence[str], int], list[Hits]]


class RefusedError(SearchError):
    """The service takes no such request, which another try would not change."""


class _Batch:
    def __init__(self) -> None:
        self.queries: list[str] = []
        self.calls = 0
        self.found: Future[list[Hits]] = Future()


class Gatherer:
    """Calls `ask` once for all calls of the same top_k that begin within `window` seconds.

    The first call waits out the window and asks for all; a failure is every call's. Where a batch
    is refused, each call asks on its own, so that one bad query harms no other call.
    """

    def __init__(self, ask: Ask, window: float):
        self._ask, self._window = ask, window
        self._lock = threading.Lock()
        self._open: dict[int, _Batch] = {}  # by top_k

    def search(self, queries: Sequence[str], top_k: int) -> list[Hits]:
        if self._window <= 0 or len(queries) > MAX_BATCH:
            return self._ask_in_parts(queries, top_k)
        batch, start, is_first = self._join(queries, top_k)
        if is_first:
            self._run(batch, top_k)
        try:
            return batch.found.result()[start : start + len(queries)]
        except RefusedError:
            if batch.calls == 1:
                raise
        return self._ask(queries, top_k)

    def _join(self, queries: Sequence[str], top_k: int) -> tuple[_Batch, int, bool]:
        """The batch that the call is part of, where in it, and whether the call leads it."""
        with self._lock:
            batch = self._open.get(top_k)
            is_first = batch is None or len(batch.queries) + len(queries) > MAX_BATCH
            if batch is None or is_first:
                batch = self._open[top_k] = _Batch()
            start = len(batch.queries)
            batch.queries += queries
            batch.calls += 1
            return batch, start, is_first

    def _run(self, batch: _Batch, top_k: int) -> None:
        try:
            try:
                time.sleep(self._window)
            finally:
                self._close(batch, top_k)
            batch.found.set_result(self._ask(batch.queries, top_k))
        except Exception as error:
            batch.found.set_exception(error)
        except BaseException as error:  # the first call is interrupted; the others are told why
            batch.found.set_exception(SearchError(f"the search was interrupted: {error!r}"))
            raise

    def _close(self, batch: _Batch, top_k: int) -> None:
        """No further call joins."""
        with self._lock:
            if self._open.get(top_k) is batch:
                del self._open[top_k]

    def _ask_in_parts(self, queries: Sequence[str], top_k: int) -> list[Hits]:
        found: list[Hits] = []
        for start in range(0, len(queries), MAX_BATCH):
            found += self._ask(queries[start : start + MAX_BATCH], top_k)
        return found

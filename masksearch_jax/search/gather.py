"""Searches that begin together, put into one call: what a tick of a rollout asks is one request."""

from __future__ import annotations

import contextlib
import contextvars
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from typing import NamedTuple

from masksearch_jax.core.retrieval import SearchError
from masksearch_jax.core.types import Hits

MAX_BATCH = 512  # queries of one call


class Batch(NamedTuple):
    """What queries are asked together. deadline: of them all, by `time.monotonic`."""

    calls: int
    deadline: float


Ask = Callable[[Sequence[str], int, Batch], list[Hits]]

_CALLS = contextvars.ContextVar("calls", default=1)  # that a search is made for, in this thread


@contextlib.contextmanager
def of_calls(count: int) -> Iterator[None]:
    """A search within the block is made for so many calls, each of which may ask on its own.

    A batch of several that is refused, or fails again and again, is left to them.
    """
    before = _CALLS.set(count)
    try:
        yield
    finally:
        _CALLS.reset(before)


class RefusedError(SearchError):
    """The service takes no such request, which another try would not change."""


class FailingBatchError(SearchError):
    """A batch of several calls fails again and again, for one of its queries it may be."""


class _Gathered:
    def __init__(self, deadline: float) -> None:
        self.queries: list[str] = []
        self.calls = 0
        self.deadline = deadline  # of the first call
        self.found: Future[list[Hits]] = Future()


class Gatherer:
    """Calls `ask` once for all calls of the same top_k that begin within `window` seconds.

    The first call waits out the window and asks for all; a failure is every call's. Where a batch
    is refused, or fails again and again, each call asks on its own, so that one bad query harms no
    other call. timeout: seconds of a call, with the batch that it was in.
    """

    def __init__(self, ask: Ask, window: float, timeout: float):
        self._ask, self._window, self._timeout = ask, window, timeout
        self._lock = threading.Lock()
        self._open: dict[int, _Gathered] = {}  # by top_k

    def search(self, queries: Sequence[str], top_k: int) -> list[Hits]:
        if self._window <= 0 or len(queries) > MAX_BATCH:
            return self._ask_in_parts(queries, top_k)
        deadline = time.monotonic() + self._timeout
        batch, start, is_first = self._join(queries, top_k, deadline)
        if is_first:
            self._run(batch, top_k)
        try:
            return batch.found.result()[start : start + len(queries)]
        except (RefusedError, FailingBatchError):
            if batch.calls == 1 or _CALLS.get() > 1:
                raise
        return self._ask(queries, top_k, Batch(1, deadline))

    def _join(
        self, queries: Sequence[str], top_k: int, deadline: float
    ) -> tuple[_Gathered, int, bool]:
        """The batch that the call is part of, where in it, and whether the call leads it."""
        with self._lock:
            batch = self._open.get(top_k)
            is_first = batch is None or len(batch.queries) + len(queries) > MAX_BATCH
            if batch is None or is_first:
                batch = self._open[top_k] = _Gathered(deadline)
            start = len(batch.queries)
            batch.queries += queries
            batch.calls += _CALLS.get()
            return batch, start, is_first

    def _run(self, batch: _Gathered, top_k: int) -> None:
        try:
            try:
                time.sleep(self._window)
            finally:
                self._close(batch, top_k)
            told = Batch(batch.calls, batch.deadline)
            batch.found.set_result(self._ask(batch.queries, top_k, told))
        except Exception as error:
            batch.found.set_exception(error)
        except BaseException as error:  # the first call is interrupted; the others are told why
            batch.found.set_exception(SearchError(f"the search was interrupted: {error!r}"))
            raise

    def _close(self, batch: _Gathered, top_k: int) -> None:
        """No further call joins."""
        with self._lock:
            if self._open.get(top_k) is batch:
                del self._open[top_k]

    def _ask_in_parts(self, queries: Sequence[str], top_k: int) -> list[Hits]:
        found: list[Hits] = []
        for start in range(0, len(queries), MAX_BATCH):
            alone = Batch(1, time.monotonic() + self._timeout)
            found += self._ask(queries[start : start + MAX_BATCH], top_k, alone)
        return found

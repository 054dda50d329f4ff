"""A bound on the rate of requests, for services that allow so many a second."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence

from masksearch_jax.core.retrieval import SearchError, SearchTool
from masksearch_jax.core.types import Passage


class RateLimit:
    """Lets one request begin every 1 / `per_second` seconds; safe for threads. 0: no limit."""

    def __init__(self, per_second: float):
        self.per_second = per_second
        self._lock = threading.Lock()
        self._next = 0.0  # by `time.monotonic`

    def wait(self, seconds: float) -> bool:
        """Waits for the request's turn; False, at once, where it comes later than in `seconds`."""
        if self.per_second <= 0:
            return True
        with self._lock:
            now = time.monotonic()
            turn = max(now, self._next)
            if turn > now + seconds:
                return False
            self._next = turn + 1.0 / self.per_second
        time.sleep(turn - now)
        return True


class LimitedSearch:
    """Asks `tool` at most so often a second, as `key` says; all else is the tool's own.

    A call whose turn does not come within `timeout` seconds raises SearchError.
    """

    def __init__(
        self,
        tool: SearchTool,
        limit: RateLimit,
        timeout: float,
        key: str = "search.requests_per_second",
    ):
        self._tool, self._limit, self._timeout, self._key = tool, limit, timeout, key

    def __getattr__(self, name: str) -> object:
        return getattr(self._tool, name)

    def search(self, queries: Sequence[str], top_k: int) -> list[list[Passage]]:
        if not self._limit.wait(self._timeout):
            raise SearchError(
                f"no turn within {self._timeout:g} s at {self._key}={self._limit.per_second:g}"
            )
        return self._tool.search(queries, top_k)

"""Search tools that need no index: the controls, and a scripted one."""

from __future__ import annotations

import hashlib
import random
import threading
import time
from collections.abc import Callable, Collection, Mapping, Sequence

from masksearch_jax.core.retrieval import SearchError
from masksearch_jax.core.types import Passage


class NoSearch:
    """Finds nothing: the control that tells what a policy knows by heart."""

    def search(self, queries: Sequence[str], top_k: int) -> list[list[Passage]]:
        return [[] for _ in queries]


class RandomSearch:
    """Draws passages from `pool` by a hash of (seed, query): the control for blind searching.

    The same seed, query and pool give the same passages in any process; those of a smaller `top_k`
    lead those of a larger one.
    """

    def __init__(self, pool: Sequence[Passage], seed: int = 0, fingerprint: str = ""):
        if not len(pool):
            raise SearchError("RandomSearch needs a pool of at least one passage, got none")
        self.fingerprint = fingerprint  # of the index that the pool is of
        self._pool = pool
        self._seed = seed

    def search(self, queries: Sequence[str], top_k: int) -> list[list[Passage]]:
        return [self._draw(query, top_k) for query in queries]

    def _draw(self, query: str, top_k: int) -> list[Passage]:
        key = f"{self._seed}\n{query}".encode("utf-8", "replace")
        rng = random.Random(hashlib.sha256(key).digest())
        rows: dict[int, None] = {}
        while len(rows) < min(top_k, len(self._pool)):
            rows.setdefault(rng.randrange(len(self._pool)))
        return [self._pool[row] for row in rows]


class FakeSearch:
    """Returns scripted results after a scripted wait, or fails as told; records what it was asked.

    results: query → passages, or a function of the query; a query unknown to it finds nothing.
    latency: seconds per call, or a function of the call's queries. failing: queries that always
    raise SearchError. fail_first: this many calls raise before the first may succeed.
    """

    def __init__(
        self,
        results: Mapping[str, Sequence[Passage]] | Callable[[str], Sequence[Passage]],
        *,
        latency: float | Callable[[Sequence[str]], float] = 0.0,
        failing: Collection[str] = (),
        fail_first: int = 0,
    ):
        self._find = results if callable(results) else lambda query: results.get(query, ())
        self._latency = latency if callable(latency) else lambda queries: latency
        self._failing = frozenset(failing)
        self._fail_first = fail_first
        self._lock = threading.Lock()
        self.calls: list[tuple[str, ...]] = []  # queries of each call, in order of arrival

    def search(self, queries: Sequence[str], top_k: int) -> list[list[Passage]]:
        with self._lock:
            self.calls.append(tuple(queries))
            number = len(self.calls)
        time.sleep(self._latency(queries))
        if number <= self._fail_first:
            raise SearchError(f"scripted failure of call {number} of the first {self._fail_first}")
        for query in queries:
            if query in self._failing:
                raise SearchError(f"scripted failure of query {query!r}")
        return [list(self._find(query))[:top_k] for query in queries]

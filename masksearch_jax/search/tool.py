"""What a search tool is, those that need no index, and `open_tool`, which makes one from config."""

from __future__ import annotations

import hashlib
import random
import threading
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Protocol, runtime_checkable

from masksearch_jax.core.config import SearchConfig
from masksearch_jax.core.types import Example, Passage, RampExample

KINDS = ("bm25", "http", "none", "random")
_PROBES, _PROBE_DEPTH = 8, 10  # examples searched for, and how deep


class SearchError(RuntimeError):
    """A search could not be made: the tool's failure, never the policy's."""


@runtime_checkable
class SearchTool(Protocol):
    """Finds passages. Calls may come from many threads at once."""

    def search(self, queries: Sequence[str], top_k: int) -> list[list[Passage]]:
        """One list per query, best passage first, at most `top_k` long. Raises SearchError."""
        ...


class NoSearch:
    """Finds nothing: the control that tells what a policy knows by heart."""

    def search(self, queries: Sequence[str], top_k: int) -> list[list[Passage]]:
        return [[] for _ in queries]


class RandomSearch:
    """Draws passages from `pool` by a hash of (seed, query): the control for blind searching.

    The same seed, query and pool give the same passages in any process; those of a smaller `top_k`
    lead those of a larger one.
    """

    def __init__(self, pool: Sequence[Passage], seed: int = 0):
        if not len(pool):
            raise SearchError("RandomSearch needs a pool of at least one passage, got none")
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


def open_tool(cfg: SearchConfig) -> SearchTool:
    """The search tool that `cfg` describes, with its cache. Raises SearchError if there is none."""
    # Imported here, so that each kind loads only its own dependencies (and those import this file).
    if not cfg.cache:
        if cfg.replay:
            raise SearchError("search.replay answers from a cache, and search.cache names none")
        return _open(cfg)
    from masksearch_jax.search.cache import CachedSearch

    tool = None if cfg.replay else _open(cfg)
    source = cfg.url if cfg.kind == "http" else f"{cfg.kind}:{cfg.index}"
    return CachedSearch(tool, cfg.cache, mode="replay" if cfg.replay else "use", source=source)


def check_sources(tool: SearchTool, cfg: SearchConfig, examples: Sequence[Example]) -> None:
    """Raises SearchError where `cfg.exclude_source` would hide nothing, else does nothing.

    A tool that numbers its passages otherwise than the examples do hides none of them, and nobody
    would notice. So paragraphs of the first few RAMP examples are searched for, and one of them at
    least must come back as the passage that it is of. A replayed run was checked when recorded.
    """
    if not cfg.exclude_source or cfg.replay or cfg.kind in ("none", "random"):
        return
    asked = [e for e in examples if isinstance(e, RampExample)][:_PROBES]
    depth = max(_PROBE_DEPTH, cfg.top_k + 1)
    found = tool.search([e.paragraph for e in asked], depth) if asked else []
    ids = [[p.id for p in hits] for hits in found]
    if asked and not any(e.passage_id in hits for e, hits in zip(asked, ids, strict=True)):
        raise SearchError(
            "search.exclude_source can hide nothing: the search tool knows passages by other ids "
            f"than the examples. {len(asked)} paragraphs were searched for; that of passage "
            f"{asked[0].passage_id!r} gave {ids[0][:3]}. Search the corpus that the examples were "
            "made of, or turn search.exclude_source off"
        )


def _open(cfg: SearchConfig) -> SearchTool:
    """The tool itself, of the kind that the config names."""
    if cfg.kind == "bm25":
        from masksearch_jax.search.bm25 import BM25

        return BM25.open(cfg.index)
    if cfg.kind == "random":
        from masksearch_jax.search.bm25 import BM25

        return RandomSearch(BM25.open(cfg.index).passages)
    if cfg.kind == "http":
        from masksearch_jax.search.remote import RemoteSearch

        return RemoteSearch(cfg.url, timeout=cfg.timeout)
    if cfg.kind == "none":
        return NoSearch()
    raise SearchError(f"search.kind is {cfg.kind!r}, must be one of {', '.join(KINDS)}")

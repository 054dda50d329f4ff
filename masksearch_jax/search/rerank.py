"""Results ordered anew by a model that reads query and passage together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from masksearch_jax.core.retrieval import SearchTool
from masksearch_jax.core.types import Hits, Passage
from masksearch_jax.search.vectors import text_of

MAX_QUERY_CHARS = 20_000  # of a query; the rest is ignored


class Scorer(Protocol):
    """Scores pairs of texts."""

    fingerprint: str

    def score(self, pairs: Sequence[tuple[str, str]]) -> np.ndarray:
        """float32 [B]: how relevant each pair's second text is for its first."""
        ...


class RerankedSearch:
    """Asks `tool` for `depth` passages, or as many as are wanted, and shows the best by `scorer`.

    The scores of its `Hits` are the scorer's; equal ones are in the tool's order. All else is the
    tool's own.
    """

    def __init__(self, tool: SearchTool, scorer: Scorer, depth: int):
        self._tool, self._scorer, self._depth = tool, scorer, depth

    @property
    def fingerprint(self) -> str:
        own = getattr(self._tool, "fingerprint", "")
        return f"{own}+{self._scorer.fingerprint}.{self._depth}"

    def __getattr__(self, name: str) -> Any:
        return getattr(self._tool, name)

    def search(self, queries: Sequence[str], top_k: int) -> list[list[Passage]]:
        found = self._tool.search(queries, max(top_k, self._depth))
        pairs = [
            (query[:MAX_QUERY_CHARS], text_of(passage))
            for query, hits in zip(queries, found, strict=True)
            for passage in hits
        ]
        scores = self._scorer.score(pairs) if pairs else np.zeros(0, np.float32)
        ends = np.cumsum([len(hits) for hits in found])
        parts = np.split(scores, ends[:-1]) if found else []
        return [_ordered(hits, own, top_k) for hits, own in zip(found, parts, strict=True)]


def _ordered(hits: Sequence[Passage], scores: np.ndarray, top_k: int) -> Hits:
    best = np.argsort(-scores, kind="stable")[:top_k]
    told = hits if isinstance(hits, Hits) else Hits()
    return Hits(
        [hits[i] for i in best],
        scores=scores[best].tolist(),
        attempts=told.attempts,
        seconds=told.seconds,
        cached=told.cached,
        answered_by=told.answered_by,
    )

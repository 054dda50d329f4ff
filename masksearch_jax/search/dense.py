"""Search by vectors, and by vectors and words together."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence

from masksearch_jax.core.retrieval import SearchError
from masksearch_jax.core.search_config import MAX_TOP_K
from masksearch_jax.core.types import Hits, Passage
from masksearch_jax.search import fusion
from masksearch_jax.search.bm25 import BM25, MAX_QUERY_CHARS
from masksearch_jax.search.nearest import Nearest
from masksearch_jax.search.vectors import Encoder, Vectors

Ranking = list[tuple[int, float]]  # rows and scores


class DenseSearch:
    """Passages whose vectors are nearest to the query's by inner product; safe for threads."""

    def __init__(self, index: BM25, vectors: Vectors, encoder: Encoder, nearest: Nearest):
        """Raises SearchError for vectors of another encoder."""
        vectors.check_encoder(encoder)
        self.passages = index.passages
        way = "" if nearest.way == "exact" else f"+{nearest.way}"
        self.fingerprint = f"{index.fingerprint}+{encoder.fingerprint}{way}"
        self._encoder, self._nearest = encoder, nearest

    def __len__(self) -> int:
        return len(self.passages)

    def search(self, queries: Sequence[str], top_k: int) -> list[list[Passage]]:
        """The scores of its `Hits` are inner products; equal ones in the corpus's order."""
        return _hits(self.passages, self.search_rows(queries, top_k))

    def search_rows(self, queries: Sequence[str], top_k: int) -> list[Ranking]:
        """As `search`, with each passage's row and score."""
        _check_top_k(top_k)
        if not queries:
            return []
        asked = self._encoder.encode_queries([query[:MAX_QUERY_CHARS] for query in queries])
        rows, scores = self._nearest(asked, min(top_k, len(self)))
        pairs = (
            zip(r, s, strict=True) for r, s in zip(rows.tolist(), scores.tolist(), strict=True)
        )
        found = ([hit for hit in hits if hit[1] > -math.inf] for hits in pairs)
        return [sorted(hits, key=lambda hit: (-hit[1], hit[0])) for hits in found]


class HybridSearch:
    """BM25's and the vectors' rankings, `depth` deep, fused by rank or by score."""

    def __init__(
        self,
        words: BM25,
        dense: DenseSearch,
        *,
        fuse: str,
        rank_constant: float,
        dense_weight: float,
        depth: int,
    ):
        """dense_weight: of the vectors' scores, between 0 and 1; BM25's get the rest."""
        if fuse not in ("rank", "score"):
            raise SearchError(f"search.fusion is {fuse!r}, must be rank or score")
        self.passages = words.passages
        self._words, self._dense = words, dense
        self._fuse, self._rank_constant, self._depth = fuse, rank_constant, depth
        self._weights = (1.0 - dense_weight, dense_weight)
        rule = f"{fuse} {rank_constant} {dense_weight} {depth}".encode()
        self.fingerprint = f"{dense.fingerprint}+{hashlib.sha256(rule).hexdigest()[:8]}"

    def __len__(self) -> int:
        return len(self.passages)

    def search(self, queries: Sequence[str], top_k: int) -> list[list[Passage]]:
        """The scores of its `Hits` are the fused ones."""
        _check_top_k(top_k)
        depth = max(top_k, self._depth)
        words = self._words.search_rows(queries, depth)
        dense = self._dense.search_rows(queries, depth)
        fused = [self._fused(pair)[:top_k] for pair in zip(words, dense, strict=True)]
        return _hits(self.passages, fused)

    def _fused(self, rankings: Sequence[Ranking]) -> Ranking:
        if self._fuse == "rank":
            return fusion.by_rank(rankings, self._rank_constant)
        return fusion.by_score(rankings, self._weights)


def _check_top_k(top_k: int) -> None:
    if not 1 <= top_k <= MAX_TOP_K:
        raise SearchError(f"top_k is {top_k}, must be 1 to {MAX_TOP_K}")


def _hits(passages: Sequence[Passage], found: Sequence[Ranking]) -> list[list[Passage]]:
    return [
        Hits((passages[row] for row, _ in hits), scores=[score for _, score in hits])
        for hits in found
    ]

"""The nearest of many vectors by inner product, on the host: exactly, or by a graph (usearch)."""

from __future__ import annotations

from typing import Protocol

import numpy as np
from usearch.index import Index, MetricKind, search

from masksearch_jax.core.retrieval import SearchError
from masksearch_jax.search.vectors import GRAPH, Vectors

Found = tuple[np.ndarray, np.ndarray]  # rows int [B, k], scores float32 [B, k], best first


class Nearest(Protocol):
    way: str  # as `search.nearest` names it

    def __call__(self, queries: np.ndarray, k: int) -> Found:
        """The k rows of the largest inner products with each query, float32 [B, dim].

        Where fewer are found, the last scores are -inf and their rows mean nothing.
        """
        ...


class Exact:
    """Compares with every vector."""

    way = "exact"

    def __init__(self, vectors: Vectors):
        self._table = vectors.table

    def __call__(self, queries: np.ndarray, k: int) -> Found:
        queries = np.ascontiguousarray(queries, self._table.dtype)
        found = search(self._table, queries, k, MetricKind.IP, exact=True)
        return _rows_and_scores(found, len(queries))


class Graph:
    """Follows an HNSW graph: faster, and misses some."""

    way = "graph"

    def __init__(self, vectors: Vectors):
        path = vectors.folder / GRAPH
        if not path.is_file():
            raise SearchError(
                f"{vectors.folder} has no graph: build the vectors with config.vectors.graph, or "
                "set search.nearest to exact"
            )
        self._graph = Index.restore(str(path), view=True)

    def __call__(self, queries: np.ndarray, k: int) -> Found:
        return _rows_and_scores(self._graph.search(queries.astype(np.float16), k), len(queries))


def _rows_and_scores(found: object, count: int) -> Found:
    """Of one query usearch gives a row, of several a table; its distance is 1 - product."""
    keys, distances = np.asarray(found.keys), np.asarray(found.distances)  # type: ignore[attr-defined]
    rows = keys.reshape(count, -1).astype(np.int64)
    counts = np.reshape(getattr(found, "counts", rows.shape[1]), (-1, 1))  # one query is not filled
    is_found = np.arange(rows.shape[1]) < counts
    distances = np.where(is_found, distances.reshape(count, -1), np.inf)
    return rows, 1.0 - distances.astype(np.float32)

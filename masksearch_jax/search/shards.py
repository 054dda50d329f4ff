"""Several term indexes searched as one, with the statistics of all: sharding costs no quality.

The engine scores by a shard's own statistics and takes none from outside:

    idf(N, n) · (K1 + 1) · tf / (tf + K1 · (1 - B + B · length / average))

Here a term's weight makes its idf that of the whole. The average length of a field is made that of
the whole when the index is written: each shard gets documents without a passage, empty ones and one
of some terms, by which its average is the whole's to half a term of all its terms, at most 1 in
2·LEAST_TERMS. Scores of passages are so those of one index, to that and the rounding of float32.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

from masksearch_jax.search.term_index import FIELDS, Clause, Ranking, TermIndex, TermWriter

LEAST_TERMS = 10_000  # of a field in a shard


def level(writers: Sequence[TermWriter]) -> list[int]:
    """Makes the average lengths of all shards those of the whole; the documents of each then.

    The writers have committed their passages, and have when this returns.
    """
    lengths = [writer.lengths() for writer in writers]
    count = sum(writer.count for writer in writers)
    whole = {field: sum(own[field] for own in lengths) / count for field in FIELDS}
    averages = {field: average for field, average in whole.items() if average}
    for writer, own in zip(writers, lengths, strict=True):
        least = (max(own[f], LEAST_TERMS) / average for f, average in averages.items())
        documents = max(math.ceil(max(least, default=0.0)), writer.count + 1)
        terms = {f: round(average * documents - own[f]) for f, average in averages.items()}
        writer.fill(documents - writer.count, terms)
    return [writer.count for writer in writers]


class ShardedTerms:
    """Term indexes of parts of one corpus of `count` passages, searched in parallel.

    Safe for threads.
    """

    def __init__(self, shards: Sequence[TermIndex], count: int):
        self._shards, self.count = shards, count
        self._pool = ThreadPoolExecutor(len(shards), "search shard")

    def frequency(self, field: str, term: str) -> int:
        return sum(shard.frequency(field, term) for shard in self._shards)

    def search(self, terms: Sequence[str], top_k: int) -> Ranking:
        """As `TermIndex.search` of one index of all passages, to the rounding of its scores."""
        weights = {
            (field, term): weight * _idf(found, self.count)
            for term in terms
            for field, weight in FIELDS.items()
            if (found := self.frequency(field, term))
        }
        depth = top_k + 1  # one document of a shard that has terms may have no passage
        asked = [
            self._pool.submit(shard.weighted, _clauses(shard, weights), depth)
            for shard in self._shards
        ]
        found = (hit for one in asked for hit in one.result() if hit[0] >= 0)
        return heapq.nsmallest(top_k, found, key=_rank)


def _rank(hit: tuple[int, float]) -> tuple[float, int]:
    """Equal scores by row: those of two shards are equal to rounding only."""
    row, score = hit
    return -float(f"{score:.5g}"), row


def _clauses(shard: TermIndex, weights: Mapping[tuple[str, str], float]) -> list[Clause]:
    """The terms that a shard has, with weights that make its idf the whole's."""
    known = ((key, shard.frequency(*key), w) for key, w in weights.items())
    return [(*key, w / _idf(found, shard.count)) for key, found, w in known if found]


def _idf(found: int, count: int) -> float:
    return math.log(1 + (count - found + 0.5) / (found + 0.5))

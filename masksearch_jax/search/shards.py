"""Several term indexes searched as one, with the statistics of all: sharding costs no quality.

The engine scores by its own shard's statistics and takes none from outside. A term's idf is made
that of the whole by the term's weight. What is left is the average length of a field, by which a
shard's score of a passage and the whole's differ by a factor between 1 and the two averages' ratio:

    idf·(K1+1)·tf / (tf + K1·(1 - B + B·length/average)),  r = shard's average / whole's average:
    min(1, r) ≤ shard's score / whole's score ≤ max(1, r), over the fields' r.

So a shard's ranking tells how high any passage below its end can score. Passages that may be among
the best are scored anew from their text, exactly, and a shard is searched deeper while one below
its end might be among them.
"""

from __future__ import annotations

import heapq
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

from masksearch_jax.core.types import Passage
from masksearch_jax.search.term_index import (
    FIELDS,
    K1,
    B,
    Clause,
    Ranking,
    TermIndex,
    analysers,
    texts_of,
)

MAX_DEPTH = 10_000  # of a shard's search, where the bound ends
_ROUNDING = 1e-5  # of the engine's scores, which are float32, to either side
_EXACT_LENGTHS = 24  # up to here lengths are stored as they are; beyond, by four leading bits


class ShardedTerms:
    """Term indexes of parts of one corpus, searched in parallel; safe for threads.

    lengths: terms per passage of each shard, by field. passages: by row, of all shards.
    """

    def __init__(
        self,
        shards: Sequence[TermIndex],
        lengths: Mapping[str, Sequence[float]],
        passages: Sequence[Passage],
        language: str,
    ):
        self._shards, self._passages = shards, passages
        self._analysers = analysers(language)
        self.count = sum(shard.count for shard in shards)
        self._averages = {
            field: sum(a * s.count for a, s in zip(lengths[field], shards, strict=True))
            / self.count
            for field in FIELDS
        }
        ratios = [
            [own[i] / self._averages[field] for field, own in lengths.items() if own[i]]
            for i in range(len(shards))
        ]
        self._lowest = [min([1.0, *r]) * (1 - _ROUNDING) for r in ratios]
        self._highest = [max([1.0, *r]) * (1 + _ROUNDING) for r in ratios]
        self._pool = ThreadPoolExecutor(len(shards), "search shard")

    def frequency(self, field: str, term: str) -> int:
        return sum(shard.frequency(field, term) for shard in self._shards)

    def search(self, terms: Sequence[str], top_k: int) -> Ranking:
        """As `TermIndex.search` of one index of all passages, to the rounding of its scores."""
        weights = {
            (field, term): weight * self._idf(found)
            for term in terms
            for field, weight in FIELDS.items()
            if (found := self.frequency(field, term))
        }
        clauses = [self._clauses(shard, weights) for shard in self._shards]
        hits: list[Ranking] = [[] for _ in self._shards]
        depths = [top_k] * len(hits)
        scores: dict[int, float] = {}
        deeper = list(range(len(hits)))
        while deeper:
            asked = (
                self._pool.submit(self._shards[i].weighted, clauses[i], depths[i]) for i in deeper
            )
            for i, found in zip(deeper, list(asked), strict=True):
                hits[i] = found.result()
            self._score(hits, weights, scores, top_k)
            best = heapq.nsmallest(top_k, scores.items(), key=lambda hit: (-hit[1], hit[0]))
            least = best[-1][1] if len(best) == top_k else 0.0
            deeper = [i for i in range(len(hits)) if self._may_hide(i, hits[i], depths[i], least)]
            for i in deeper:
                depths[i] = min(2 * depths[i], MAX_DEPTH)
        return best

    def _may_hide(self, shard: int, hits: Ranking, depth: int, least: float) -> bool:
        """Whether a passage below the end of the shard's hits might score more than `least`."""
        if len(hits) < depth or depth >= min(MAX_DEPTH, self._shards[shard].count):
            return False
        return hits[-1][1] / self._lowest[shard] > least

    def _idf(self, found: int) -> float:
        return _idf(found, self.count)

    def _clauses(self, shard: TermIndex, weights: Mapping[tuple[str, str], float]) -> list[Clause]:
        """The terms that a shard has, with weights that make its idf the whole's."""
        known = ((key, shard.frequency(*key), w) for key, w in weights.items())
        return [(*key, w / _idf(count, shard.count)) for key, count, w in known if count]

    def _score(
        self,
        hits: Sequence[Ranking],
        weights: Mapping[tuple[str, str], float],
        scores: dict[int, float],
        top_k: int,
    ) -> None:
        """Adds the exact scores of all hits that may be among the best."""
        low = (s / self._highest[i] for i, found in enumerate(hits) for _, s in found)
        best = heapq.nlargest(top_k, low)
        least = best[-1] if len(best) == top_k else 0.0
        for i, found in enumerate(hits):
            for row, score in found:
                if row not in scores and score / self._lowest[i] >= least:
                    scores[row] = self._exact(self._passages[row], weights)

    def _exact(self, passage: Passage, weights: Mapping[tuple[str, str], float]) -> float:
        """BM25 of a passage by the statistics of all shards."""
        total = 0.0
        for field, text in texts_of(passage).items():
            found = self._analysers[field].analyze(text)
            counts, length = Counter(found), stored_length(len(found))
            for (name, term), weight in weights.items():
                if name == field and (count := counts[term]):
                    norm = K1 * (1 - B + B * length / self._averages[field])
                    total += weight * (K1 + 1) * count / (count + norm)
        return total


def _idf(found: int, count: int) -> float:
    return math.log(1 + (count - found + 0.5) / (found + 0.5))


def stored_length(terms: int) -> int:
    """A field's length as the engine keeps it, in a byte: rounded down."""
    over = terms - _EXACT_LENGTHS
    shift = max(0, over.bit_length() - 4) if over > 0 else 0
    return terms if not shift else ((over >> shift) << shift) + _EXACT_LENGTHS

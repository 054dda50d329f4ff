"""How different trajectories are from each other: n-grams, self-BLEU, queries, plan shapes.

What is measured is what the agent thought and asked; its answers copy the task.
"""

from __future__ import annotations

import itertools
import math
import random
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence

from masksearch_jax.core import chinese
from masksearch_jax.core.types import Demonstration

Tokens = Sequence[str]

_ANSWER = re.compile(r"<answer>.*?</answer>", re.DOTALL)
_TAG = re.compile(r"</?(?:think|search)>")
_WORD = re.compile(r"\w+|[^\w\s]")
_BLEU_N = 4
_EPSILON = 0.1  # matches counted where there is none, as NLTK's smoothing method 1


def measure(demonstrations: Iterable[Demonstration], most: int, seed: int) -> dict[str, float]:
    """Every measure of this module, on at most `most` of the demonstrations, drawn by `seed`.

    distinct_1, distinct_2: see `distinct_n`. self_bleu, and novelty = 1 - self_bleu. query_overlap.
    shapes: how many plan shapes there are; shape_entropy: of their counts, in bits. distinct_n
    falls and self-BLEU rises with the number of texts: compare only equal numbers (`texts`).
    """
    drawn = sorted(demonstrations, key=lambda d: d.id)
    if len(drawn) > most:
        drawn = random.Random(f"{seed}/diversity").sample(drawn, most)
    texts = [words_of(d) for d in drawn]
    shapes = Counter(map(search_shape, drawn))
    bleu = self_bleu(texts)
    return {
        "texts": len(texts),
        "distinct_1": distinct_n(texts, 1),
        "distinct_2": distinct_n(texts, 2),
        "self_bleu": bleu,
        "novelty": 1.0 - bleu,
        "query_overlap": query_overlap(drawn),
        "shapes": len(shapes),
        "shape_entropy": entropy(shapes),
    }


def words_of(demonstration: Demonstration) -> list[str]:
    """Lower-case words and signs of its thoughts and queries."""
    said = " ".join(s.text for s in demonstration.segments if s.author == "policy")
    return _words(_TAG.sub(" ", _ANSWER.sub(" ", said)))


def _words(text: str) -> list[str]:
    return _WORD.findall(chinese.spaced(text).lower())


def distinct_n(texts: Iterable[Tokens], n: int) -> float:
    """Different n-grams over all n-grams of all texts (Li et al. 2016), 0 where there are none."""
    grams = list(itertools.chain.from_iterable(_ngrams(text, n) for text in texts))
    return len(set(grams)) / len(grams) if grams else 0.0


def self_bleu(texts: Sequence[Tokens]) -> float:
    """Mean BLEU-4 of each text against all others as references (Zhu et al. 2018), in 0..1.

    Clipped precisions of n = 1..4, or as many as the text has words; their geometric mean with
    equal weights; a precision of no match counts 0.1 matches; brevity penalty by the reference
    nearest in length, the shorter of two. Fewer than two texts, or one without words: 0 for it.
    """
    if len(texts) < 2:
        return 0.0
    best = [_two_best([Counter(_ngrams(t, n)) for t in texts]) for n in range(1, _BLEU_N + 1)]
    sizes = [len(text) for text in texts]
    return sum(_bleu(i, text, sizes, best) for i, text in enumerate(texts)) / len(texts)


def query_overlap(demonstrations: Iterable[Demonstration]) -> float:
    """How alike the queries of an example's trajectories are: mean Jaccard index of their words.

    Over all pairs of each example, then over the examples that have a pair; 0 where none has.
    """
    asked: dict[str, list[set[str]]] = defaultdict(list)
    for d in demonstrations:
        queries = " ".join(q for turn in d.turns for q in turn.queries)
        asked[d.example_id].append(set(_words(queries)))
    means = []
    for sets in asked.values():
        pairs = [len(a & b) / len(a | b) for a, b in itertools.combinations(sets, 2) if a | b]
        if pairs:
            means.append(sum(pairs) / len(pairs))
    return sum(means) / len(means) if means else 0.0


def search_shape(demonstration: Demonstration) -> str:
    """Its searches by their number of queries: `2+1` is two queries, then one, then the answer."""
    return "+".join(str(len(turn.queries)) for turn in demonstration.turns) or "0"


def entropy(counts: Mapping[str, int]) -> float:
    """In bits; 0 for one kind or none."""
    total = sum(counts.values())
    shares = [count / total for count in counts.values() if count]
    return -sum(p * math.log2(p) for p in shares) + 0.0  # no -0.0


def _ngrams(text: Tokens, n: int) -> list[tuple[str, ...]]:
    return [tuple(text[i : i + n]) for i in range(len(text) - n + 1)]


def _two_best(counts: Sequence[Counter]) -> dict[tuple, tuple[tuple[int, int], int]]:
    """n-gram → ((most in a text, that text), most in any other): the references of all texts."""
    best: dict[tuple, tuple[tuple[int, int], int]] = {}
    for i, grams in enumerate(counts):
        for gram, count in grams.items():
            (first, owner), second = best.get(gram, ((0, -1), 0))
            if count > first:
                best[gram] = ((count, i), first)
            elif count > second:
                best[gram] = ((first, owner), count)
    return best


def _bleu(i: int, text: Tokens, sizes: Sequence[int], best: Sequence[dict]) -> float:
    """BLEU of text `i` against the others."""
    orders = min(_BLEU_N, len(text))
    if not orders:
        return 0.0
    logs = 0.0
    for n in range(1, orders + 1):
        grams = Counter(_ngrams(text, n))
        matched = 0
        for gram, count in grams.items():
            (first, owner), second = best[n - 1][gram]
            matched += min(count, second if owner == i else first)
        logs += math.log((matched or _EPSILON) / grams.total()) / orders
    others = (size for j, size in enumerate(sizes) if j != i)
    nearest = min(others, key=lambda size: (abs(size - len(text)), size))
    brevity = min(0.0, 1.0 - nearest / len(text))
    return math.exp(brevity + logs)

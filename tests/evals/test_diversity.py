"""Measures of diversity against values by hand and against a BLEU written another way."""

import math
import random

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from masksearch_jax.core.types import Demonstration, Segment, Turn
from masksearch_jax.evals import diversity


def demonstration(name, *turns, thought="Look.", answer="A whole paragraph."):
    """`turns` are the queries of each search."""
    segments = [
        Segment("policy", f"<think>{thought}</think><search>{chr(10).join(t)}</search>")
        for t in turns
    ]
    segments.append(Segment("policy", f"<think>Found.</think><answer>{answer}</answer>"))
    made = tuple(Turn(tuple(t), (), (), 0.0) for t in turns)
    return Demonstration(name, name.partition("/")[0], "ramp_k1", "t", tuple(segments), made)


def test_distinct_n_by_hand():
    texts = [["a", "b", "a", "b"], ["a", "b", "c"]]
    assert diversity.distinct_n(texts, 1) == 3 / 7
    assert diversity.distinct_n(texts, 2) == 3 / 5  # ab ba ab, ab bc
    assert diversity.distinct_n(texts, 4) == 1.0  # the first has one, the second none
    assert diversity.distinct_n(texts, 5) == 0.0
    assert diversity.distinct_n([], 1) == 0.0


def test_self_bleu_by_hand():
    same = ["the", "cat", "sat", "on", "the", "mat"]
    assert diversity.self_bleu([same, same]) == pytest.approx(1.0)
    assert diversity.self_bleu([same]) == 0.0
    assert diversity.self_bleu([]) == 0.0
    assert diversity.self_bleu([[], same]) == pytest.approx(
        math.exp(1 / 4 * sum(math.log(0.1 / n) for n in (6, 5, 4, 3))) / 2
    )
    # Two words, one shared: precisions 1/2 and 0.1/1, as long as each other.
    assert diversity.self_bleu([["a", "b"], ["a", "c"]]) == pytest.approx(math.sqrt(0.5 * 0.1))
    # A count is clipped at the most in any one reference.
    texts = [["a", "a", "a"], ["a", "b", "b"], ["b", "a", "a"]]
    first = (2 / 3 * 1 / 2 * 0.1 / 1) ** (1 / 3)
    assert slow_bleu(texts[0], texts[1:]) == pytest.approx(first)


def slow_bleu(text, references):
    """BLEU from its definition: counts looked up anew for each n-gram, in NumPy."""
    if not text:
        return 0.0
    precisions = []
    for n in range(1, min(4, len(text)) + 1):
        grams = [tuple(text[i : i + n]) for i in range(len(text) - n + 1)]
        matched = 0
        for gram in set(grams):
            inside = [
                sum(tuple(r[i : i + n]) == gram for i in range(len(r) - n + 1)) for r in references
            ]
            matched += min(grams.count(gram), max(inside))
        precisions.append(max(matched, 0.1) / len(grams))
    lengths = np.asarray(sorted(map(len, references)))
    nearest = lengths[np.argmin(np.abs(lengths - len(text)))]
    brevity = 1.0 if len(text) >= nearest else float(np.exp(1 - nearest / len(text)))
    return brevity * float(np.exp(np.mean(np.log(precisions))))


WORDS = st.lists(st.lists(st.sampled_from("abc"), max_size=7), min_size=2, max_size=6)


@hypothesis.settings(max_examples=150)
@hypothesis.given(WORDS)
def test_self_bleu_is_the_mean_bleu_against_all_others(texts):
    each = [slow_bleu(t, texts[:i] + texts[i + 1 :]) for i, t in enumerate(texts)]
    assert diversity.self_bleu(texts) == pytest.approx(np.mean(each))


def test_query_overlap_by_hand():
    """One example: {a b} {b c} {d} share 1 of 3, 0 and 0; another has two alike."""
    made = [
        demonstration("e1/0", ["a b"]),
        demonstration("e1/1", ["B"], ["c"]),
        demonstration("e1/2", ["d"]),
        demonstration("e2/0", ["x", "y"]),
        demonstration("e2/1", ["Y x"]),
        demonstration("e3/0", ["alone"]),
    ]
    assert diversity.query_overlap(made) == pytest.approx((1 / 9 + 1) / 2)
    assert diversity.query_overlap(made[-1:]) == 0.0


def test_search_shapes_and_their_entropy():
    assert diversity.search_shape(demonstration("e", ["a", "b"], ["c"])) == "2+1"
    assert diversity.search_shape(demonstration("e")) == "0"
    assert diversity.entropy({"1": 2, "2": 1, "1+1": 1}) == 1.5
    assert diversity.entropy({"1": 9}) == 0.0
    assert diversity.entropy({}) == 0.0


def test_what_is_measured_is_what_was_thought_and_asked():
    made = demonstration("e", ["Oslo", "capital of Norway"], thought="Look it up!")
    assert diversity.words_of(made) == [
        "look",
        "it",
        "up",
        "!",
        "oslo",
        "capital",
        "of",
        "norway",
        "found",
        ".",
    ]


def test_the_same_drawing_whatever_the_order():
    rng = random.Random(0)
    made = [demonstration(f"e{i}/0", [rng.choice("abcdef")] * rng.randint(1, 2)) for i in range(40)]
    found = diversity.measure(made, 25, 3)
    assert found["texts"] == 25
    assert found["novelty"] == 1 - found["self_bleu"]
    assert 1 <= found["shapes"] <= 2
    rng.shuffle(made)
    assert diversity.measure(made, 25, 3) == found
    assert diversity.measure(made, 25, 4) != found
    assert diversity.measure([], 25, 3)["texts"] == 0

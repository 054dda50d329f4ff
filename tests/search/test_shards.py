"""Shards of an index find what one index finds, with its scores."""

import random
from collections import Counter

import pytest

from masksearch_jax.core.retrieval import SearchError
from masksearch_jax.core.types import Passage
from masksearch_jax.search.bm25 import BM25, build
from masksearch_jax.search.shards import LEAST_TERMS
from tests.search.fruit import FRUIT, SPECIAL

WORDS = [f"{a}{b}{c}" for a in "bdgkmt" for b in "aeiou" for c in ("lor", "nim", "rus", "th")]


def written(seed, count):
    """Passages of words by Zipf's law whose lengths differ widely, and questions about them."""
    rng = random.Random(seed)
    weights = [1 / rank for rank in range(1, len(WORDS) + 1)]

    def text(words):
        return " ".join(rng.choices(WORDS, weights, k=words))

    passages = [
        Passage(str(i), text(rng.choice((0, 1, 2, 9))), text(int(rng.lognormvariate(3.5, 1.2))))
        for i in range(count)
    ]
    return passages, [text(rng.choice((1, 2, 5, 12, 30))) for _ in range(60)]


@pytest.fixture(scope="module", params=[2, 5])
def both(request, tmp_path_factory):
    """One index, the same in shards whose passages differ in length, and questions."""
    folder = tmp_path_factory.mktemp("shards")
    passages, questions = written(7, 1200)
    # Lengths differ most between shards where passages of one length have rows of one remainder.
    passages.sort(key=lambda p: len(p.text))
    size = len(passages) // request.param
    order = [passages[i * size + j] for j in range(size) for i in range(request.param)]
    build(order, folder / "one")
    build(order, folder / "many", shards=request.param)
    return BM25.open(folder / "one"), BM25.open(folder / "many"), questions


@pytest.mark.parametrize("top_k", [1, 5, 40])
def test_results_are_those_of_one_index(both, top_k):
    one, many, questions = both
    for query in questions:
        (expected,), (found,) = one.search([query], top_k), many.search([query], top_k)
        assert found.scores == pytest.approx(expected.scores, rel=1e-4)
        # A passage may only stand where another of the same score, to rounding, would.
        by_one = dict(zip((p.id for p in expected), expected.scores, strict=True))
        for place, passage in enumerate(found):
            score = by_one.get(passage.id, expected.scores[-1])
            assert score == pytest.approx(expected.scores[place], rel=1e-4)
        assert len({p.id for p in found}) == len(found)


def test_ties_come_in_the_order_of_the_corpus(tmp_path):
    passages = [Passage(f"p{i}", "same", "some words " * (2 + i % 2)) for i in range(40)]
    for folder, shards in (("one", 1), ("many", 3)):
        build(passages, tmp_path / folder, shards=shards)
    one, many = (BM25.open(tmp_path / name) for name in ("one", "many"))
    for top_k in (5, 25, 40):
        assert many.search(["words"], top_k) == one.search(["words"], top_k)


def test_all_of_them_are_found(both):
    one, many, questions = both
    for query in questions[:10]:
        expected, found = (tool.search_rows([query], 1200)[0] for tool in (one, many))
        assert Counter(row for row, _ in found) == Counter(row for row, _ in expected)


def test_a_shard_by_itself_scores_otherwise(both):
    """So that the tests above can fail."""
    _, many, questions = both
    terms = many.terms(questions[3])
    apart = [hit for shard in many._terms._shards for hit in shard.search(terms, 40)]
    apart.sort(key=lambda hit: -hit[1])
    (found,) = many.search_rows([questions[3]], 40)
    assert [row for row, _ in apart[:40]] != [row for row, _ in found]


def test_all_shards_have_the_average_lengths_of_the_whole(both):
    one, many, questions = both
    for field in ("title", "text"):
        term = next(t for t in many.terms(" ".join(questions)) if one._terms.frequency(field, t))
        expected = one._terms.average_length(field, term)
        shards = many._terms._shards
        found = [s.average_length(field, term) for s in shards if s.frequency(field, term)]
        assert found
        assert found == pytest.approx([expected] * len(found), rel=0.5 / LEAST_TERMS)


def test_what_fills_a_shard_is_never_found(both):
    _, many, _ = both
    assert many.terms("\ua500") == ["\ua500"]
    assert many.search(["\ua500"], 9) == [[]]


def test_it_is_the_same_index_but_for_its_files(both, tmp_path):
    one, many, _ = both
    assert many.fingerprint == one.fingerprint
    assert list(many.passages) == list(one.passages)


@pytest.mark.parametrize("shards", [9])  # some are empty
def test_any_query_is_searched(tmp_path, fruit, shards):
    build(FRUIT, tmp_path / "i", shards=shards)
    tool = BM25.open(tmp_path / "i")
    queries = [*SPECIAL, "red fruit", "", "who", "tropic smell", "nosuchword"]
    for query in queries:
        (expected,), (found,) = fruit.search([query], 6), tool.search([query], 6)
        assert sorted(p.id for p in found) == sorted(p.id for p in expected)
        assert found.scores == pytest.approx(expected.scores, rel=1e-4)


@pytest.mark.parametrize(
    "titles", [[""], ["水", "水星", "水的历史", "中国", "江"], ["水"] * 3 + ["", "水星"]]
)
@pytest.mark.parametrize("shards", [2, 3])
def test_chinese_with_titles_of_any_length_and_none(titles, shards, tmp_path):
    passages = [
        Passage(str(i), titles[i % len(titles)], "北京是中国首都" * (1 + i % 7)) for i in range(31)
    ]
    for folder, number in (("one", 1), ("many", shards)):
        build(passages, tmp_path / folder, language="zh", shards=number)
    one, many = (BM25.open(tmp_path / name) for name in ("one", "many"))
    for query in ("中国的首都", "水", "水星是"):
        (expected,), (found,) = one.search([query], 9), many.search([query], 9)
        assert bool(expected) == (query == "中国的首都" or "水" in titles)
        assert sorted(p.id for p in found) == sorted(p.id for p in expected)
        assert found.scores == pytest.approx(expected.scores, rel=1e-4)
    terms = {"title": "水水", "text": "中国"}
    for field, term in terms.items():
        if not one._terms.frequency(field, term):
            continue
        expected = one._terms.average_length(field, term)
        parts = [s for s in many._terms._shards if s.frequency(field, term)]
        found = [s.average_length(field, term) for s in parts]
        assert found == pytest.approx([expected] * len(found), rel=0.5 / LEAST_TERMS)


def test_a_shard_that_is_gone_is_damage(tmp_path):
    build(FRUIT, tmp_path / "i", shards=2)
    for file in (tmp_path / "i" / "terms-00001-of-00002").iterdir():
        file.unlink()
    with pytest.raises(SearchError, match=r"damaged \(terms-00001-of-00002/.* is missing"):
        BM25.open(tmp_path / "i")

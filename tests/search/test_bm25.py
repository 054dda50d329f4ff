"""BM25 on real indexes: exact scores, stop words, any text as a query, threads, recall."""

import gzip
import json
import math
import re
from collections import Counter, defaultdict
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from masksearch_jax.core.retrieval import SearchError
from masksearch_jax.core.types import Passage
from masksearch_jax.corpus.passages import read_passages
from masksearch_jax.search.bm25 import BM25, MAX_TERMS, build
from masksearch_jax.search.manifest import seal
from masksearch_jax.search.term_index import TermIndex, TermWriter
from tests.search.fruit import FRUIT, SPECIAL, ids


@pytest.fixture(scope="module")
def numbered(tmp_path_factory):
    """60 passages; the word `w<i>` is in the last i of them, so that w1 is the rarest."""
    folder = tmp_path_factory.mktemp("numbered") / "index"
    build(
        [
            Passage(str(row), "", " ".join(f"w{i}" for i in range(60 - row, 60)) or "none")
            for row in range(60)
        ],
        folder,
    )
    return BM25.open(folder)


def bm25_by_hand(passages, terms):
    """Okapi BM25 (k1 1.2, b 0.75) of title·0.4 plus title-and-text, in plain Python."""
    total = defaultdict(float)
    for boost, texts in (
        (0.4, [p.title for p in passages]),
        (1.0, [f"{p.title} {p.text}" for p in passages]),
    ):
        bags = [Counter(text.lower().split()) for text in texts]
        mean = sum(map(Counter.total, bags)) / len(bags)
        for term in terms:
            n = sum(term in bag for bag in bags)
            idf = math.log(1 + (len(bags) - n + 0.5) / (n + 0.5))
            for passage, bag in zip(passages, bags, strict=True):
                norm = 1.2 * (0.25 + 0.75 * bag.total() / mean)
                total[passage.id] += boost * idf * 2.2 * bag[term] / (bag[term] + norm)
    return {key: score for key, score in total.items() if score}


def test_scores_are_those_of_bm25_by_hand(tmp_path):
    # Words that the English stemmer leaves as they are; lengths below 40 are stored exactly.
    passages = [
        Passage("1", "red dog", "red red fox jump"),
        Passage("2", "fox", "dog dog dog dog"),
        Passage("3", "cat", "fox red cat bird cat lamp"),
        Passage("4", "lamp", "lamp"),
    ]
    build(passages, tmp_path / "i")
    tool = BM25.open(tmp_path / "i")
    for terms in (["red"], ["dog", "fox"], ["lamp", "cat", "red"], ["bird"]):
        (hits,) = tool.search([" ".join(terms)], 10)
        found = {p.id: score for p, score in zip(hits, hits.scores, strict=True)}
        assert found == pytest.approx(bm25_by_hand(passages, terms), rel=1e-5)


def test_the_best_come_first_and_ties_in_the_order_of_the_corpus(tmp_path):
    build([Passage(f"p{i}", "same", "same words") for i in range(9)], tmp_path / "i")
    assert ids(BM25.open(tmp_path / "i"), "words", 4) == ["p0", "p1", "p2", "p3"]


def test_equal_scores_are_cut_by_row_whatever_order_the_engine_holds_them_in(tmp_path):
    with TermWriter(tmp_path / "terms", "en", 1) as writer:
        for row in (*range(99, 49, -1), *range(50)):
            text = "a green pear" if row in (7, 70) else "a red apple"
            writer.add(row, Passage(str(row), "Fruit", text))
            if row % 20 == 0:
                writer.commit()  # a segment of its own
        writer.commit()
    index = TermIndex(tmp_path / "terms")
    assert [row for row, _ in index.search(["appl"], 4)] == [0, 1, 2, 3]
    assert [row for row, _ in index.search(["fruit"], 98)] == list(range(98))
    assert [row for row, _ in index.search(["pear", "appl"], 3)] == [7, 70, 0]
    assert [row for row, _ in index.search(["pear"], 3)] == [7, 70]


def test_one_list_per_query_at_most_top_k_long(fruit):
    found = fruit.search(["fruit", "", "nosuchword", "red fruit"], 2)
    assert [len(hits) for hits in found] == [2, 0, 0, 2]
    assert {p.id for p in found[3]} == {"a", "c"}
    assert fruit.search([], 2) == []
    with pytest.raises(SearchError, match="top_k is 0"):
        fruit.search(["fruit"], 0)


def test_a_word_of_the_title_counts_more_than_one_of_the_text(tmp_path):
    build([Passage("t", "x", "kiwi x x"), Passage("u", "kiwi", "x x x")], tmp_path / "i")
    assert ids(BM25.open(tmp_path / "i"), "kiwi") == ["u", "t"]


def test_english_words_are_stemmed_and_accents_folded(fruit):
    assert ids(fruit, "FRUITS trees")[0] == "a"
    assert ids(fruit, "sao paulo") == ["e"]
    assert ids(fruit, "cafe") == ids(fruit, "CAFÉ") == ["e"]


def test_question_words_are_dropped_unless_nothing_else_is_left(fruit):
    assert fruit.terms("Who was the band that is named rock?") == fruit.terms("band named rock")
    assert ids(fruit, "Who is who?") == ["f"]
    assert ids(fruit, "the") == ["f"]
    assert ids(fruit, "who nosuchword") == []


def test_a_long_query_keeps_its_rarest_terms(numbered):
    query = " ".join(f"w{i}" for i in range(60))
    expected = [f"w{i}" for i in range(1, MAX_TERMS + 1)]
    assert numbered.terms(f"absent {query} {query}") == expected
    assert numbered.terms("w9 w3 w50 w3") == ["w3", "w9", "w50"]


def test_chinese_is_found_by_pairs_of_characters(tmp_path):
    passages = [
        Passage("1", "北京", "北京是中华人民共和国的首都。"),
        Passage("2", "上海", "上海是中国最大的城市。"),
        Passage("3", "Python", "Python是一种编程语言。"),
    ]
    build(passages, tmp_path / "i", language="zh")
    tool = BM25.open(tmp_path / "i")
    assert tool.language == "zh"
    assert ids(tool, "中国最大城市是哪里")[0] == "2"
    assert ids(tool, "共和国首都") == ["1"]
    assert ids(tool, "python") == ["3"]
    assert ids(tool, "京") == []


@pytest.mark.parametrize(("language", "other"), [("zh", 2), ("en", 1), ("en", 3)])
def test_an_index_whose_text_was_analysed_otherwise_is_refused(language, other, tmp_path):
    build([Passage("1", "水", "水是化合物。")], tmp_path / "i", language=language)
    BM25.open(tmp_path / "i")
    told = json.loads((tmp_path / "i" / "manifest.json").read_text())
    earlier = told | {"format": other}
    earlier |= {"seal": seal(earlier)}
    (tmp_path / "i" / "manifest.json").write_text(json.dumps(earlier))
    said = (
        rf"was built as \{{'format': {other}, .*reads \{{'format': {told['format']}, .*rebuild it"
    )
    with pytest.raises(SearchError, match=said):
        BM25.open(tmp_path / "i")


def test_a_chinese_title_of_one_character_is_found(tmp_path):
    passages = [
        Passage("1", "水星", "水星是离太阳最近的行星。"),
        Passage("2", "水", "水是由氢和氧组成的化合物。"),
        Passage("3", "氢", "氢是最轻的元素，见于水。"),
        Passage("4", "𩷶", "𩷶是一种鱼。"),
    ]
    build(passages, tmp_path / "i", language="zh")
    tool = BM25.open(tmp_path / "i")
    for query, expected in (("水", "2"), (" 氢 ", "3"), ("𩷶", "4"), ("水星", "1")):
        assert ids(tool, query) == [expected]


@pytest.mark.parametrize(
    "query", [*SPECIAL, "of the and", "", " ", "\0\0", "\ud800 red", "😀", "ｆｕｌｌ"]
)
def test_no_query_is_read_as_syntax(fruit, query):
    assert set(ids(fruit, f"{query} banana")) >= {"b"}
    assert len(ids(fruit, query)) <= 6


def test_queries_of_a_megabyte_are_answered(fruit):
    assert ids(fruit, "red " * 250_000)[0] in "ac"
    assert ids(fruit, "x" * 1_000_000) == []
    assert len(fruit.terms(" ".join(f"{p.title} {p.text}" for p in FRUIT) * 9000)) <= MAX_TERMS


@given(st.text(st.characters(), max_size=200), st.integers(1, 8))
@settings(max_examples=300)
def test_any_text_is_a_query(fruit, query, top_k):
    hits = fruit.search([query], top_k)[0]
    assert len(hits) <= top_k
    assert set(hits) <= set(FRUIT)


@given(
    st.lists(
        st.builds(Passage, *[st.text(st.characters(exclude_categories=["Cs"]), max_size=30)] * 3),
        min_size=1,
        max_size=6,
        unique_by=lambda p: p.id,
    )
)
@settings(max_examples=15)
def test_any_passages_are_stored_and_found_by_id(tmp_path_factory, passages):
    folder = tmp_path_factory.mktemp("any") / "i"
    assert build(passages, folder) == len(passages)
    tool = BM25.open(folder)
    assert len(tool) == len(passages)
    assert list(tool.passages) == passages
    assert [tool.get(p.id) for p in passages] == passages
    assert [tool.passages[row] for row in range(len(passages))] == passages


def test_an_unknown_id_or_row_is_an_error(fruit):
    with pytest.raises(KeyError, match="'zzz'"):
        fruit.get("zzz")
    for row in (-1, 6):
        with pytest.raises(IndexError):
            fruit.passages[row]


def test_many_threads_get_what_one_gets(numbered):
    queries = [f"w{i} w{(i * 7) % 60} w{(i * 13) % 60}" for i in range(60)]
    expected = numbered.search(queries, 5)
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda query: numbered.search([query], 5)[0], queries * 5))
    assert found == expected * 5


def is_same_passage(found, gold):
    """By id, or by title and 80% of the shorter one's words: the same text cut elsewhere."""
    if found.id == gold.id or found.title != gold.title:
        return found.id == gold.id
    one, two = (set(re.findall(r"\w+", p.text.lower())) for p in (found, gold))
    return len(one & two) >= 0.8 * min(len(one), len(two))


def test_recall_on_multi_hop_questions(shared_data, tmp_path):
    """Share of gold passages among the first five of 54,533, as percent, by question set."""
    folder = shared_data / "multihop"
    assert build(read_passages(folder / "passages.jsonl.gz"), tmp_path / "i") == 54_533
    tool = BM25.open(tmp_path / "i")
    recalls = defaultdict(list)
    with gzip.open(folder / "questions.jsonl.gz") as lines:
        for question in map(json.loads, lines):
            found = tool.search([question["question"]], 5)[0]
            gold = [tool.get(str(name)) for name in question["gold"]]
            hits = sum(any(is_same_passage(f, g) for f in found) for g in gold)
            recalls[question["dataset"]].append(100 * hits / len(gold))
    mean = {name: sum(values) / len(values) for name, values in recalls.items()}
    assert {name: len(values) for name, values in recalls.items()} == {
        "hotpotqa": 300,
        "2wiki": 215,
        "musique": 798,
    }
    assert mean["hotpotqa"] >= 75
    assert mean["2wiki"] >= 67
    assert mean["musique"] >= 44


@pytest.mark.slow
def test_a_piece_of_a_chinese_paragraph_finds_it(shared_data, tmp_path):
    """24 characters out of a paragraph, searched for among 31,482."""
    with gzip.open(shared_data / "wiki_zh" / "paragraphs.jsonl.gz") as lines:
        records = list(map(json.loads, lines))
    passages = [Passage(str(i), r["title"], r["text"]) for i, r in enumerate(records)]
    build(passages, tmp_path / "i", language="zh")
    tool = BM25.open(tmp_path / "i")
    probes = [(p, len(p.text) // 3) for p in passages[::150] if len(p.text) >= 60]
    assert len(probes) > 150
    found = [tool.search([p.text[start : start + 24]], 1)[0] for p, start in probes]
    right = sum(f[:1] == [p] for f, (p, _) in zip(found, probes, strict=True))
    assert right >= 0.9 * len(probes)


@pytest.mark.parametrize("top_k", [0, -1, 10_001, 2**31, 2**63])
def test_a_depth_that_the_engine_cannot_take_is_refused(tmp_path, top_k):
    """At 2³¹ the engine aborts the process, for want of memory."""
    build([Passage("a", "Apple", "red fruit")], tmp_path / "i")
    with pytest.raises(SearchError, match=rf"top_k is {top_k}, must be 1 to 10000"):
        BM25.open(tmp_path / "i").search(["fruit"], top_k)


def test_a_panic_of_the_engine_is_a_search_error(tmp_path, monkeypatch, capfd):
    """By its class a panic is no Exception: it would end the thread that searches for a run."""
    build([Passage("a", "Apple", "red fruit"), Passage("b", "Pear", "green fruit")], tmp_path / "i")
    monkeypatch.setattr("masksearch_jax.search.bm25.verify", lambda *_: None)
    for part in (tmp_path / "i" / "terms").glob("*.idx"):
        part.write_bytes(bytes(len(part.read_bytes())))
    with pytest.raises(SearchError):
        BM25.open(tmp_path / "i").search(["fruit", "red", "green"], 2)


def test_of_a_large_index_the_ends_of_each_file_are_compared(tmp_path, monkeypatch):
    build([Passage("a", "Apple", "red fruit"), Passage("b", "Pear", "green fruit")], tmp_path / "i")
    monkeypatch.setattr("masksearch_jax.search.manifest.VERIFIED_BYTES", 0)
    path = tmp_path / "i" / "passages.jsonl"
    written = path.read_bytes()
    for place in (0, len(written) - 1):
        changed = bytearray(written)
        changed[place] ^= 1
        path.write_bytes(changed)
        with pytest.raises(SearchError, match=r"damaged \(passages\.jsonl has another content"):
            BM25.open(tmp_path / "i")
    path.write_bytes(written)
    assert len(BM25.open(tmp_path / "i")) == 2

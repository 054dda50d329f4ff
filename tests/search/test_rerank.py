"""Results that a scorer of pairs orders anew."""

import dataclasses

import numpy as np
import pytest

from masksearch_jax.core.config import SearchConfig
from masksearch_jax.core.retrieval import SearchError
from masksearch_jax.search import protocol
from masksearch_jax.search.bm25 import build
from masksearch_jax.search.open import open_tool
from masksearch_jax.search.rerank import RerankedSearch
from masksearch_jax.search.tool import FakeSearch
from tests.search.fruit import FRUIT


class CountLetters:
    """Scores a text by how often it has the query's first letter."""

    fingerprint = "letters"

    def __init__(self):
        self.pairs = []

    def score(self, pairs):
        self.pairs += pairs
        return np.asarray([text.count(query[0]) for query, text in pairs], np.float32)


def test_the_best_of_a_deeper_search_are_shown():
    tool = FakeSearch({"e": FRUIT[:4], "zz": FRUIT[:2]})
    scorer = CountLetters()
    found = RerankedSearch(tool, scorer, 4).search(["e", "unknown", "zz"], 2)
    assert [[p.id for p in hits] for hits in found] == [["a", "c"], [], ["a", "b"]]
    assert [hits.scores for hits in found] == [(4.0, 4.0), (), (0.0, 0.0)]
    assert scorer.pairs[0] == ("e", "Apple\nred fruit tree")
    assert len(scorer.pairs) == 6
    (deeper,) = RerankedSearch(tool, scorer, 1).search(["e"], 3)  # as many as are wanted
    assert deeper.scores == (4.0, 4.0, 1.0)
    assert RerankedSearch(tool, scorer, 1).search([], 3) == []


def test_all_else_is_the_tool_s_own(fruit):
    tool = RerankedSearch(fruit, CountLetters(), 3)
    assert tool.passages is fruit.passages
    assert tool.fingerprint == f"{fruit.fingerprint}+letters.3"
    told = protocol.health(tool)
    assert told == {"status": "ok", "passages": 6, "fingerprint": tool.fingerprint}


@pytest.mark.slow
def test_a_config_names_the_reranker(tmp_path):
    from masksearch_jax.models.cross_encoder_folder import PairScorer
    from tests.models.bert_folders import write_cross_encoder

    build(FRUIT, tmp_path / "i")
    write_cross_encoder(tmp_path / "m")
    cfg = SearchConfig("bm25", str(tmp_path / "i"), "", 2, 2, 1, timeout=5.0, workers=1)
    cfg = dataclasses.replace(cfg, rerank=str(tmp_path / "m"), rerank_depth=3)
    tool, plain = open_tool(cfg), open_tool(dataclasses.replace(cfg, rerank=""))
    (hits,) = tool.search(["red fruit tropic"], 2)
    (first,) = plain.search(["red fruit tropic"], 3)
    scores = PairScorer(tmp_path / "m").score(
        [("red fruit tropic", f"{p.title}\n{p.text}") for p in first]
    )
    assert hits == [first[i] for i in np.argsort(-scores, kind="stable")[:2]]
    np.testing.assert_allclose(hits.scores, np.sort(scores)[::-1][:2], atol=1e-5)
    assert tool.search(["red fruit tropic"], 2)[0].cached
    none = dataclasses.replace(cfg, kind="none", rerank=str(tmp_path / "gone"))
    assert open_tool(none).search(["red"], 2) == [[]]
    with pytest.raises(SearchError, match=r"reranker cannot be opened: no config\.json in"):
        open_tool(dataclasses.replace(cfg, rerank=str(tmp_path / "i")))

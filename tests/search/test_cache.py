"""The search cache: what is recorded, replayed without a tool, and refused."""

import dataclasses
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest

from masksearch_jax.core.config import SearchConfig
from masksearch_jax.core.retrieval import SearchError
from masksearch_jax.core.types import Passage
from masksearch_jax.search.bm25 import build
from masksearch_jax.search.cache import CachedSearch
from masksearch_jax.search.open import open_tool
from masksearch_jax.search.tool import FakeSearch, NoSearch
from tests.search.fruit import FRUIT


@contextmanager
def cached(*args, **options):
    cache = CachedSearch(*args, **options)
    try:
        yield cache
    finally:
        cache.close()


def test_nothing_is_asked_twice_and_a_run_is_replayed_without_a_tool(tmp_path):
    path = tmp_path / "cache.sqlite"
    tool = FakeSearch(lambda query: FRUIT)
    queries = ["a", "b\0b", "a", "\ud800"]
    with cached(tool, path) as cache:
        first = cache.search(queries, 2)
        assert (cache.hits, cache.misses) == (1, 3)
        assert cache.search(["b\0b", "c"], 2) == [list(FRUIT[:2])] * 2
        assert cache.search(["a"], 3) == [list(FRUIT[:3])]
        assert tool.calls == [("a", "b\0b", "\ud800"), ("c",), ("a",)]
    with cached(None, path, mode="replay") as cache:
        assert cache.search(queries, 2) == first
        assert (cache.hits, cache.misses) == (4, 0)
        for query, top_k in (("new", 2), ("a", 4), ("b", 2)):
            with pytest.raises(SearchError, match=rf"'{query}' with top_k {top_k} is not recorded"):
                cache.search(["a", query], top_k)


def test_sources_are_kept_apart(tmp_path):
    path = tmp_path / "cache.sqlite"
    with cached(FakeSearch({"q": FRUIT[:1]}), path, name="one") as one:
        one.search(["q"], 1)
    with cached(FakeSearch({"q": FRUIT[1:2]}), path, name="two") as two:
        assert two.search(["q"], 1) == [[FRUIT[1]]]


def test_a_failure_is_not_recorded(tmp_path):
    with cached(FakeSearch({"q": FRUIT[:1]}, fail_first=1), tmp_path / "c") as cache:
        with pytest.raises(SearchError, match="scripted"):
            cache.search(["q"], 1)
        assert cache.search(["q"], 1) == [[FRUIT[0]]]


def test_the_cache_serves_many_threads(tmp_path):
    tool = FakeSearch(lambda query: [Passage(query, "", "")])
    with cached(tool, tmp_path / "c") as cache, ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda i: cache.search([f"q{i % 20}"], 1)[0][0].id, range(200)))
        assert found == [f"q{i % 20}" for i in range(200)]
        assert cache.hits + cache.misses == 200
        assert cache.misses == len(tool.calls)


def test_a_cache_that_cannot_be_used_is_an_error(tmp_path):
    (tmp_path / "text").write_text("not a database, but long enough to be looked at" * 100)
    with pytest.raises(SearchError, match="cannot open the search cache"):
        CachedSearch(NoSearch(), tmp_path / "text")
    with pytest.raises(SearchError, match="cannot open the search cache"):
        CachedSearch(NoSearch(), tmp_path / "none" / "c")
    with pytest.raises(SearchError, match="nothing to replay"):
        CachedSearch(None, tmp_path / "none", mode="replay")
    with pytest.raises(SearchError, match="'off', must be one of use, replay"):
        CachedSearch(NoSearch(), tmp_path / "c", mode="off")
    with pytest.raises(SearchError, match="needs a tool"):
        CachedSearch(None, tmp_path / "c")


def test_a_rebuilt_index_answers_with_its_own_passages(tmp_path):
    """At the same path, through the same cache file; a replay is of the newest."""
    cfg = SearchConfig(
        "bm25", str(tmp_path / "i"), "", 2, 2, 1, 1.0, 1, cache=str(tmp_path / "cache")
    )
    for passages in (FRUIT[:1], FRUIT[2:3]):
        build(passages, tmp_path / "i")
        tool = open_tool(cfg)
        assert tool.search(["red fruit"], 2) == [list(passages)]
        tool.close()
    replayed = open_tool(dataclasses.replace(cfg, replay=True))
    assert replayed.search(["red fruit"], 2) == [[FRUIT[2]]]
    replayed.close()

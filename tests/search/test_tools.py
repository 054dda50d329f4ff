"""Search tools that need no index, and the way from a config to a tool."""

import contextlib
import dataclasses
import os
import shutil
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from masksearch_jax.core.config import SearchConfig
from masksearch_jax.core.retrieval import SearchError, SearchTool
from masksearch_jax.core.types import Passage
from masksearch_jax.search.bm25 import BM25, build
from masksearch_jax.search.open import open_tool
from masksearch_jax.search.remote import RemoteSearch
from masksearch_jax.search.server import SearchServer
from masksearch_jax.search.shared import SharedSearch
from masksearch_jax.search.tool import FakeSearch, NoSearch, RandomSearch
from masksearch_jax.testing.services import serving
from tests.search.fruit import FRUIT, ids


def config(kind="bm25", index="", url=""):
    return SearchConfig(kind, index, url, 5, 5, 2, timeout=2.0, workers=2)


def test_every_tool_is_a_search_tool(fruit):
    for tool in (
        NoSearch(),
        RandomSearch(FRUIT),
        FakeSearch({}),
        fruit,
        RemoteSearch("http://x", timeout=1),
    ):
        assert isinstance(tool, SearchTool)


def test_no_search_finds_nothing():
    assert NoSearch().search(["a", "b"], 3) == [[], []]


def test_random_search_depends_on_seed_and_query_alone(fruit):
    tool = RandomSearch(fruit.passages, seed=1)
    queries = [f"q{i}" for i in range(40)]
    drawn = tool.search(queries, 3)
    assert drawn == RandomSearch(FRUIT, seed=1).search(queries[::-1], 3)[::-1]
    assert drawn != RandomSearch(FRUIT, seed=2).search(queries, 3)
    assert all(len({p.id for p in hits}) == 3 for hits in drawn)
    assert {p.id for hits in drawn for p in hits} == {p.id for p in FRUIT}
    assert [hits[:2] for hits in drawn] == tool.search(queries, 2)
    assert sorted(p.id for p in tool.search(["x"], 99)[0]) == list("abcdef")
    with pytest.raises(SearchError, match="at least one"):
        RandomSearch([])


def test_random_search_draws_the_same_in_another_process(repository):
    code = (
        "from masksearch_jax.search.tool import RandomSearch;"
        "from masksearch_jax.core.types import Passage;"
        "print([p.id for p in RandomSearch([Passage(str(i), '', '') for i in range(999)], 7)"
        ".search(['une \\u00e9tude'], 5)[0]])"
    )
    pool = [Passage(str(i), "", "") for i in range(999)]
    expected = [p.id for p in RandomSearch(pool, 7).search(["une étude"], 5)[0]]
    for salt in "12":
        env = {**os.environ, "PYTHONHASHSEED": salt}
        out = subprocess.run(
            [sys.executable, "-c", code], env=env, capture_output=True, check=True, cwd=repository
        )
        assert out.stdout.decode().strip() == str(expected)


def test_fake_search_follows_its_script():
    tool = FakeSearch({"q": FRUIT[:3]}, failing={"bad"}, fail_first=1)
    with pytest.raises(SearchError, match="call 1"):
        tool.search(["q"], 2)
    assert tool.search(["q", "unknown"], 2) == [list(FRUIT[:2]), []]
    with pytest.raises(SearchError, match="'bad'"):
        tool.search(["q", "bad"], 2)
    assert tool.calls == [("q",), ("q", "unknown"), ("q", "bad")]
    waited = []
    FakeSearch(lambda q: FRUIT, latency=lambda queries: waited.append(queries) or 0.0).search(
        ["z"], 1
    )
    assert waited == [["z"]]


def test_open_tool_opens_each_kind(fruit, tmp_path):
    build(FRUIT, tmp_path / "i")
    index = str(tmp_path / "i")
    assert ids(open_tool(config(index=index)), "banana") == ["b"]
    assert open_tool(config("random", index)).search(["q"], 3) == RandomSearch(FRUIT).search(
        ["q"], 3
    )
    assert open_tool(config("none")).search(["q"], 3) == [[]]
    with serving(SearchServer(BM25.open(index), "127.0.0.1", 0)) as server:
        tool = open_tool(config("http", url=server.url))
        assert isinstance(tool, SharedSearch)
        assert isinstance(tool._tool, RemoteSearch)
        assert ids(tool, "banana") == ["b"]
    with pytest.raises(SearchError, match=r"does not answer: .*http://localhost:1/.*refused"):
        open_tool(config("http", url="http://localhost:1/retrieve"))


@pytest.mark.parametrize("memory", [0, 10])
@pytest.mark.parametrize("kind", ["bm25", "http", "a cache"])
def test_equal_searches_under_way_are_one_with_any_tool(tmp_path, monkeypatch, kind, memory):
    build(FRUIT, tmp_path / "i")
    begun, go, calls = threading.Event(), threading.Event(), []
    search = BM25.search

    def gated(index, queries, top_k):
        calls.append(tuple(queries))
        begun.set()
        assert go.wait(10)
        return search(index, queries, top_k)

    with contextlib.ExitStack() as stack:
        service = SearchServer(BM25.open(tmp_path / "i"), "127.0.0.1", 0)
        url = stack.enter_context(serving(service)).url
        cfg = config("http" if kind == "http" else "bm25", str(tmp_path / "i"), url)
        cache = str(tmp_path / "cache.sqlite") if kind == "a cache" else ""
        cfg = dataclasses.replace(cfg, memory=memory, cache=cache, timeout=10.0)
        tool, pool = open_tool(cfg), stack.enter_context(ThreadPoolExecutor(2))
        monkeypatch.setattr(BM25, "search", gated)
        first = pool.submit(tool.search, ["red"], 2)
        assert begun.wait(10)
        second = pool.submit(tool.search, ["red"], 2)
        for _ in range(2000):
            if tool.hits:
                break
            threading.Event().wait(0.005)
        go.set()
        found = first.result()
        assert second.result() == found == search(BM25.open(tmp_path / "i"), ["red"], 2)
    assert calls == [("red",)]


def test_results_of_words_alone_are_not_kept(tmp_path):
    build(FRUIT, tmp_path / "i")
    tool = open_tool(config(index=str(tmp_path / "i")))
    found = [tool.search(["red"], 2)[0] for _ in range(2)]
    assert found[0] == found[1]
    assert [hits.cached for hits in found] == [False, False]
    assert (tool.hits, tool.misses) == (0, 2)


def test_open_tool_says_what_is_wrong(tmp_path):
    with pytest.raises(SearchError, match=r"'bm52', must be one of bm25, dense, hybrid, http"):
        open_tool(config("bm52"))
    for kind in ("bm25", "random"):
        with pytest.raises(SearchError, match=r"no search index in .*build_index"):
            open_tool(config(kind, str(tmp_path / "none")))
    with pytest.raises(SearchError, match="http://host:port"):
        open_tool(config("http", url="localhost:80"))


def test_the_room_starts_without_jax(repository):
    code = (
        "import sys, masksearch_jax.build_index, masksearch_jax.serve_search,"
        " masksearch_jax.search.remote, masksearch_jax.search.cache;"
        " sys.exit(int(bool({'jax', 'tensorflow', 'torch', 'seqio'} & set(sys.modules))))"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=repository).returncode == 0


def test_a_configured_cache_remembers_and_replays(fruit, tmp_path):
    folder = tmp_path / "index"
    build(FRUIT, folder)
    cfg = dataclasses.replace(config(index=str(folder)), cache=str(tmp_path / "cache.sqlite"))
    with contextlib.closing(open_tool(cfg)) as first:
        found = first.search(["red"], 2)
        assert (first.hits, first.misses) == (0, 1)
    shutil.rmtree(folder)
    with contextlib.closing(open_tool(dataclasses.replace(cfg, replay=True))) as again:
        assert again.search(["red"], 2) == found
        assert again.hits == 1
        with pytest.raises(SearchError, match="'yellow' with top_k 2 is not recorded"):
            again.search(["yellow"], 2)
    with pytest.raises(SearchError, match=r"search\.cache names none"):
        open_tool(dataclasses.replace(config(), replay=True))

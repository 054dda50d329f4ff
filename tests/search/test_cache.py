"""The search cache: what is recorded, replayed without a tool, and refused."""

import dataclasses
import json
import shutil
import sqlite3
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest

from masksearch_jax.core.config import SearchConfig
from masksearch_jax.core.retrieval import SearchError, find_recorded
from masksearch_jax.core.types import Passage
from masksearch_jax.search import cache
from masksearch_jax.search.bm25 import build
from masksearch_jax.search.cache import LEAST_BYTES, CachedSearch
from masksearch_jax.search.open import open_tool
from masksearch_jax.search.tool import FakeSearch, NoSearch
from masksearch_jax.testing.services import SearchEndpoint
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
    with cached(tool, path, mode="replay") as cache, pytest.raises(SearchError, match="'new'"):
        cache.search(["new"], 2)  # nor is a tool that is there
    assert len(tool.calls) == 3
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


def test_what_a_tool_tells_of_its_index_is_told(fruit, tmp_path):
    tool = CachedSearch(fruit, tmp_path / "c", fingerprint=fruit.fingerprint)
    assert (tool.fingerprint, len(tool.passages)) == (fruit.fingerprint, len(fruit))
    replayed = CachedSearch(None, tmp_path / "c", mode="replay")
    assert replayed.fingerprint == fruit.fingerprint
    assert not hasattr(replayed, "passages")


def test_scores_are_remembered(fruit, tmp_path):
    with cached(fruit, tmp_path / "c") as cache:
        (first,) = cache.search(["red"], 2)
        (again,) = cache.search(["red"], 2)
    assert (first, first.scores) == (again, again.scores)
    assert (first.cached, again.cached) == (False, True)


def test_a_stored_answer_keeps_who_gave_it(tmp_path):
    with SearchEndpoint(FakeSearch({"q": FRUIT[:1]})) as service:
        cfg = SearchConfig("http", url=service.url, cache=str(tmp_path / "cache"), timeout=5.0)
        tool = open_tool(cfg)
        for is_cached in (False, True):  # as shared in memory
            (hits,) = tool.search(["q"], 1)
            assert (hits.answered_by, hits.cached) == (service.url, is_cached)
    elsewhere = dataclasses.replace(cfg, replay=True, memory=0)
    _, (record,) = find_recorded(open_tool(elsewhere), ["q"], dataclasses.replace(cfg, top_k=1), "")
    assert (record.answered_by, record.cached) == (service.url, True)


def test_the_results_used_longest_ago_make_room(tmp_path):
    path = tmp_path / "c"
    tool = FakeSearch(lambda query: [Passage(query, "", "x" * 20_000)])
    with cached(tool, path, max_bytes=LEAST_BYTES) as cache:
        for number in range(200):
            cache.search(["kept"], 1)
            cache.search([f"q{number}"], 1)
        assert cache._size() <= LEAST_BYTES
        assert path.stat().st_size <= 1.1 * LEAST_BYTES
        asked = len(tool.calls)
        assert asked == 201
        newest = [f"q{number}" for number in range(170, 200)]
        cache.search([*newest, "kept"], 1)
        assert len(tool.calls) == asked
        cache.search(["q0"], 1)
        assert len(tool.calls) == asked + 1
    with cached(tool, path) as whole:  # without a bound nothing goes
        for number in range(100):
            whole.search([f"more{number}"], 1)
        assert whole._size() > 2 * LEAST_BYTES
    with cached(tool, path, max_bytes=LEAST_BYTES) as again:
        assert again._size() <= LEAST_BYTES


FILL = """
import sys
from masksearch_jax.core.types import Passage
from masksearch_jax.search.cache import LEAST_BYTES, CachedSearch
from masksearch_jax.search.tool import FakeSearch
path, name = sys.argv[1:]
tool = FakeSearch(lambda query: [Passage(query, "", "x" * 20_000)])
cache = CachedSearch(tool, path, max_bytes=LEAST_BYTES)
for number in range(150):
    queries = [f"{name}{number}", f"shared{number % 40}"]
    assert [hits[0].id for hits in cache.search(queries, 1)] == queries
assert cache._size() <= LEAST_BYTES
"""


def test_several_processes_share_a_bounded_cache(tmp_path, repository):
    commands = [[sys.executable, "-c", FILL, str(tmp_path / "c"), name] for name in "ab"]
    running = [subprocess.Popen(command, cwd=repository) for command in commands]
    assert [process.wait(60) for process in running] == [0, 0]
    found = sqlite3.connect(tmp_path / "c").execute("select query, hits from results").fetchall()
    assert found
    assert all(json.loads(q) == json.loads(f)["passages"][0][0] for q, f in found)


def test_a_bound_that_is_too_small_and_another_layout_are_refused(tmp_path):
    with pytest.raises(SearchError, match=r"cache_bytes is 7, must be 0 for no bound or at least"):
        CachedSearch(NoSearch(), tmp_path / "c", max_bytes=7)
    old = sqlite3.connect(tmp_path / "old")
    old.execute("create table results (source text)")
    old.close()
    for mode in ("use", "replay"):
        with pytest.raises(SearchError, match=r"old has layout 0, must be 3: remove it"):
            CachedSearch(NoSearch(), tmp_path / "old", mode=mode)


def test_a_file_that_was_cut_off_as_it_began_is_begun_anew(tmp_path, monkeypatch):
    with monkeypatch.context() as patched:
        patched.setattr(cache, "_TABLES", (*cache._TABLES[:2], "no sql"))
        with pytest.raises(SearchError, match=r"cannot open the search cache .*syntax error"):
            CachedSearch(FakeSearch({}), tmp_path / "c.sqlite", name="x")
    with cached(FakeSearch({"red": FRUIT[:1]}), tmp_path / "c.sqlite", name="x") as again:
        assert again.search(["red"], 1) == [list(FRUIT[:1])]


def test_a_replay_needs_no_right_to_write(small_disk):
    path = small_disk / "a #1?%" / "c"
    path.parent.mkdir()
    tool = CachedSearch(FakeSearch({"q": FRUIT[:1]}), path, max_bytes=2**20)
    tool.search(["q"], 1)

    def mount(how):
        subprocess.run(["mount", "-o", f"remount,{how}", small_disk], check=True)

    copy = small_disk / "copy"
    copy.mkdir()
    for file in path.parent.iterdir():  # as a killed run leaves it
        shutil.copy(file, copy)
    tool.close()
    mount("ro")
    try:
        with cached(None, path, mode="replay") as replayed:
            assert replayed.search(["q"], 1) == [[FRUIT[0]]]
        with pytest.raises(SearchError, match="was not closed, and its folder takes no writes"):
            CachedSearch(None, copy / "c", mode="replay")
    finally:
        mount("rw")


def test_a_disk_that_is_full_is_an_error_of_the_tool(small_disk):
    tool = FakeSearch(lambda query: [Passage(query, "", "x" * 400_000)])
    with cached(tool, small_disk / "c") as cache:
        queries = [f"q{number}" for number in range(9)]
        with pytest.raises(SearchError, match=r"cannot write the search cache .*full"):
            list(map(lambda query: cache.search([query], 1), queries))  # noqa: C417
        assert cache.search(["q0"], 1)[0].cached  # what was written is whole

"""Equal searches are made once: while one is under way, and of the last results."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from masksearch_jax.core.retrieval import SearchError
from masksearch_jax.core.types import Hits, Passage
from masksearch_jax.search import protocol
from masksearch_jax.search import shared as shared_module
from masksearch_jax.search.gather import MAX_BATCH, RefusedError
from masksearch_jax.search.shared import SharedSearch
from masksearch_jax.search.tool import FakeSearch
from tests.search.fruit import FRUIT


def test_equal_searches_at_once_are_one_call():
    begun, go = threading.Event(), threading.Event()

    def find(query):
        begun.set()
        assert go.wait(10)
        return FRUIT[:2]

    tool = FakeSearch(find)
    shared = SharedSearch(tool, 10)
    with ThreadPoolExecutor(16) as pool:
        first = pool.submit(shared.search, ["q"], 2)
        assert begun.wait(10)
        others = [pool.submit(shared.search, ["q", "q"], 2) for _ in range(15)]
        while shared.hits < 30:
            threading.Event().wait(0.005)
        go.set()
        assert first.result() == [list(FRUIT[:2])]
        found = [other.result() for other in others]
    assert found == [[list(FRUIT[:2])] * 2] * 15
    assert tool.calls == [("q",)]
    assert all(hits.cached for hits in found[0])
    assert not first.result()[0].cached
    assert (shared.hits, shared.misses) == (30, 1)


def test_the_last_results_are_kept():
    tool = FakeSearch(lambda query: FRUIT[:1])
    shared = SharedSearch(tool, 2)
    for query in "abacb":  # at c, b is the one that was used longest ago
        shared.search([query], 1)
    assert tool.calls == [("a",), ("b",), ("c",), ("b",)]
    shared.search(["b", "z"], 1)
    shared.search(["b"], 2)  # another top_k is another search
    assert tool.calls[4:] == [("z",), ("b",)]


def test_fewer_results_are_kept_of_many_characters(monkeypatch):
    monkeypatch.setattr(shared_module, "MOST_CHARACTERS", 20)
    tool = FakeSearch(lambda query: [Passage("1", "", "x" * int(query))])
    shared = SharedSearch(tool, 9)
    for query in ("6", "7", "8", "7", "8", "6", "21", "8", "0", "8", "0"):
        shared.search([query], 1)
    asked = [query for (query,) in tool.calls]
    # 6 goes for 8, and comes again for 7; of 21 none is kept, nor what was there before.
    assert asked == ["6", "7", "8", "6", "21", "8", "0"]


def test_a_failure_is_shared_and_not_kept():
    tool = FakeSearch(lambda query: FRUIT[:1], fail_first=1)
    shared = SharedSearch(tool, 9)
    with pytest.raises(SearchError, match="call 1"):
        shared.search(["a", "b"], 1)
    assert shared.search(["a", "b"], 1) == [[FRUIT[0]]] * 2
    assert len(tool.calls) == 2


def test_what_a_tool_told_stays_with_its_results(fruit):
    shared = SharedSearch(fruit, 9)
    (first,), (again,) = shared.search(["red"], 2), shared.search(["red"], 2)
    assert isinstance(first, Hits)
    assert (first, first.scores) == (again, again.scores)
    assert (first.cached, again.cached) == (False, True)
    told = {"status": "ok", "passages": 6, "fingerprint": fruit.fingerprint}
    assert protocol.health(shared) == protocol.health(fruit) == told
    assert (shared.fingerprint, shared.passages) == (fruit.fingerprint, fruit.passages)


@pytest.mark.parametrize("kind", [RefusedError, SearchError])
def test_a_query_that_fails_harms_none_that_shares_another(kind):
    begun, go_on = threading.Event(), threading.Event()

    class Picky:
        def search(self, queries, top_k):
            if "bad" in queries:
                begun.set()
                assert go_on.wait(10)
                raise kind("no such query")
            return [FRUIT[:1] for _ in queries]

    shared = SharedSearch(Picky(), 10)
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(shared.search, ["good", "bad"], 1)
        assert begun.wait(10)
        second = pool.submit(shared.search, ["good"], 1)
        while shared.hits < 1:
            threading.Event().wait(0.005)
        go_on.set()
        with pytest.raises(kind, match="no such query"):
            first.result()
        assert second.result() == [list(FRUIT[:1])]


class Gathering(FakeSearch):
    """A tool whose calls become one request, which it waits to be let go on with."""

    gathers = True

    def __init__(self, results):
        super().__init__(results)
        self.go_on = threading.Event()

    def search(self, queries, top_k):
        assert self.go_on.wait(10)
        return super().search(queries, top_k)


def test_calls_that_are_about_to_come_are_one_search():
    tool = Gathering(lambda query: [FRUIT["abc".index(query)]])
    shared = SharedSearch(tool, 10)
    shared.begin([("a", "b"), ("b", "c"), ()], 1)
    shared.begin([("a", "c")], 1)  # under way
    tool.go_on.set()
    found = [shared.search(queries, 1) for queries in (["a", "b"], ["b", "c"], ["a"])]
    a, b, c = ([passage] for passage in FRUIT[:3])
    assert found == [[a, b], [b, c], [a]]
    assert [[hits.cached for hits in one] for one in found] == [
        [False, False],
        [True, False],
        [True],
    ]
    assert tool.calls == [("a", "b", "c")]
    assert (shared.hits, shared.misses) == (2, 3)


@pytest.mark.parametrize(("kind", "size"), [(FakeSearch, 10), (Gathering, 0)])
def test_nothing_is_begun_where_a_tool_gathers_no_calls_or_no_result_is_kept(kind, size):
    tool = kind(lambda query: FRUIT[:1])
    shared = SharedSearch(tool, size)
    before = threading.active_count()
    shared.begin([("a",), ("b",)], 1)
    assert threading.active_count() == before
    if kind is Gathering:
        tool.go_on.set()
    shared.search(["a"], 1)
    assert tool.calls == [("a",)]


def test_begun_searches_have_the_bound_of_a_request():
    tool = Gathering(lambda query: FRUIT[:1])
    SharedSearch(tool, 10).begin([(f"q{i}",) for i in range(MAX_BATCH + 3)], 1)
    tool.go_on.set()
    while len(tool.calls) < 2:
        threading.Event().wait(0.005)
    assert sorted(map(len, tool.calls)) == [3, MAX_BATCH]

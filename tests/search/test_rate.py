"""A bound on requests a second: turns in order, those that come too late refused."""

import dataclasses

import pytest

from masksearch_jax.core.config import SearchConfig
from masksearch_jax.core.retrieval import SearchError
from masksearch_jax.search import rate, replicas
from masksearch_jax.search.bm25 import build
from masksearch_jax.search.open import open_tool
from masksearch_jax.search.rate import LimitedSearch, RateLimit
from masksearch_jax.search.remote import RemoteSearch
from masksearch_jax.search.tool import FakeSearch
from masksearch_jax.testing.services import Answer, SearchEndpoint
from tests.search.fruit import FRUIT


@pytest.fixture
def clock(monkeypatch):
    """Time that passes only in waits; the waits so far."""

    class Clock:
        now = 100.0
        waits: list[float] = []  # noqa: RUF012

        def monotonic(self):
            return self.now

        def sleep(self, seconds):
            self.waits.append(round(seconds, 6))
            self.now += seconds

    clock = Clock()
    clock.waits = []
    monkeypatch.setattr(rate, "time", clock)
    return clock


def test_requests_begin_so_many_a_second(clock):
    limit = RateLimit(4.0)
    assert [limit.wait(9.0) for _ in range(3)] == [True] * 3
    assert clock.waits == [0, 0.25, 0.25]
    clock.now += 10  # idle time is not saved up
    assert limit.wait(9.0)
    assert limit.wait(9.0)
    assert clock.waits[3:] == [0, 0.25]
    assert not limit.wait(0.2)
    assert clock.waits[5:] == []
    assert all(RateLimit(0.0).wait(0.0) for _ in range(9))


def test_a_tool_is_asked_no_more_often(clock):
    tool = FakeSearch(lambda query: FRUIT)
    limited = LimitedSearch(tool, RateLimit(0.5), 3.0)
    assert limited.search(["a"], 1) == [[FRUIT[0]]]
    assert limited.search(["b"], 1) == [[FRUIT[0]]]
    assert clock.waits == [0, 2.0]
    clock.now -= 2  # as for a call that comes at the same time as the second
    with pytest.raises(SearchError, match=r"within 3 s at search\.requests_per_second=0\.5"):
        limited.search(["c"], 1)
    assert limited.calls == [("a",), ("b",)]


def test_attempts_of_a_remote_search_wait_their_turn(fruit, clock, monkeypatch):
    monkeypatch.setattr(replicas, "time", clock)
    with SearchEndpoint(fruit, Answer(status=503)) as service:
        limit = RateLimit(0.5)
        remote = RemoteSearch(service.url, timeout=5.0, backoff=0.001, limit=limit)
        with pytest.raises(SearchError, match=r"no turn at 0\.5 requests a second, after: .*503"):
            remote.search(["red"], 2)
        turns = [seconds for seconds in clock.waits if not 0 < seconds < 0.1]  # else backoff
        assert turns == pytest.approx([0, 2.0, 2.0], abs=0.01)
        assert len(service.calls) == 3


def test_what_is_cached_takes_no_turn(tmp_path):
    build(FRUIT, tmp_path / "i")
    cfg = SearchConfig("bm25", str(tmp_path / "i"), "", 2, 2, 1, timeout=0.5, workers=1)
    cfg = dataclasses.replace(cfg, requests_per_second=1e-3, cache=str(tmp_path / "c"))
    tool = open_tool(dataclasses.replace(cfg, requests_per_second=0.0))
    found = tool.search(["red"], 2)
    tool.close()
    tool = open_tool(cfg)  # which takes the one turn
    assert tool.search(["red"], 2) == found
    with pytest.raises(SearchError, match="no turn within"):
        tool.search(["yellow"], 2)
    tool.close()

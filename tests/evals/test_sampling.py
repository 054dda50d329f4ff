"""Items asked: an outage of retrieval ends them early."""

import dataclasses
import threading

import numpy as np
import pytest

from masksearch_jax.core.config import SearchConfig
from masksearch_jax.core.retrieval import SearchError
from masksearch_jax.core.types import QAExample, Turn
from masksearch_jax.evals import metrics, sampling
from masksearch_jax.evals.items import Item
from masksearch_jax.evals.lost import LostItemsError
from masksearch_jax.evals.scores import Scorer
from masksearch_jax.parallel import hosts
from masksearch_jax.search.tool import FakeSearch

ITEMS = 2000


def items():
    nothing, scorer = np.zeros(0, np.int32), Scorer(metrics.SQUAD)
    examples = (QAExample(f"q{i}", "d", f"Which is {i}?", ("o",)) for i in range(ITEMS))
    return [Item("d", "rag", i, e, nothing, "", scorer) for i, e in enumerate(examples)]


def nothing_asked(asked, each):
    raise AssertionError("a sampler was called")


def no_sample(sampled, attempts):
    raise AssertionError("an item was sampled")


def test_a_search_that_is_down_is_not_asked_for_all_items(monkeypatch):
    monkeypatch.setattr(sampling, "OUTAGE_SECONDS", 0.0)
    queries = []

    def down(query):
        queries.append(query)
        raise SearchError("down")

    def prepared(own, most, goes_on):
        how = FakeSearch(down), SearchConfig(workers=4), lambda item, block: True, lambda: None
        return sampling.prepare("rag", *how, own, most, goes_on)

    heard = []
    how = 3, 20.0, no_sample, hosts.gather, lambda *told: heard.append(told)
    with pytest.raises(LostItemsError, match=r"32 items in a row .* down"):
        sampling.ask(nothing_asked, prepared, items(), *how)
    assert len(queries) < 100
    assert heard[:32] == [(n, "SearchError: down") for n in range(1, 33)]  # as they failed


def test_a_short_outage_of_many_items_in_flight_is_outlasted(monkeypatch):
    """All of the first attempt fail at once, half a minute after the first; then all is well."""
    monkeypatch.setattr(sampling.time, "monotonic", iter(range(10**6)).__next__)
    monkeypatch.setattr(sampling, "OUTAGE_SECONDS", 10_000.0)
    heard, kept = [], []
    failed = Turn(("q",), (), (), 0.0, "SearchError: down")
    is_down = True

    def sampler(asked, each):
        nonlocal is_down
        for one in asked:
            made = sampling.ended(one.item, failed)
            answered = dataclasses.replace(made, status="answered", turns=())
            each(sampling.Sampled(one.item, made if is_down else answered))
        is_down = False

    own = items()[:40]
    prepared = lambda items, most, goes_on: map(sampling.Asked, items)  # noqa: E731
    keep = lambda sampled, attempts: kept.append((sampled.item.number, attempts))  # noqa: E731
    how = 3, 2.0, keep, hosts.gather, lambda *told: heard.append(told)
    assert sampling.ask(sampler, prepared, own, *how) == []
    assert kept == [(i, 1) for i in range(40)]
    assert heard == [(n, "SearchError: down") for n in range(1, 41)] + [(0, "")]


def test_a_retrieval_that_hangs_is_the_tools_failure():
    release = threading.Event()

    def hang(query):
        return [] if "0" in query else release.wait(30) and []

    how = FakeSearch(hang), SearchConfig(workers=2, timeout=0.1), lambda item, block: True
    found = list(sampling.prepare("rag", *how, lambda: None, items()[:3], 3, lambda: True))
    release.set()
    assert isinstance(found[0], sampling.Asked)
    for item in found[1:]:
        assert item.trajectory.status == "tool_failure"
        assert item.trajectory.turns[0].error == "TimeoutError: no result in 0.1 s"


def test_a_preemption_is_heard_between_retrievals():
    class Stopped(Exception):
        pass

    def stop():
        raise Stopped

    how = FakeSearch(lambda query: []), SearchConfig(), lambda item, block: True, stop
    with pytest.raises(Stopped):
        next(sampling.prepare("rag", *how, items(), ITEMS, lambda: True))

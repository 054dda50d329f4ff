"""What rollouts ask of a search service: one request a tick, whatever the number of threads."""

from __future__ import annotations

import dataclasses
import gc
import warnings

import pytest

from benchmarks import rollout_model as stand_in
from masksearch_jax.core.tools import search_alone
from masksearch_jax.core.types import Passage
from masksearch_jax.rollout.engine import Engine
from masksearch_jax.search.open import open_tool
from masksearch_jax.search.tool import FakeSearch
from masksearch_jax.testing.services import WELL, Answer, SearchEndpoint
from tests.rollout.word_engine import MODEL

SLOTS, SEARCHES, PROMPT, TURN, OBSERVATION = 24, 2, 8, 16, 12
WORDS = stand_in.Words(MODEL.vocab_size * 4)
TOOL = FakeSearch(lambda query: [Passage(query, "w0001", "w0001" * 6)])


@pytest.fixture(scope="module")
def model():
    script = stand_in.search_script(
        WORDS, prompt=PROMPT, searches=SEARCHES, turn=TURN, observation=OBSERVATION, query=4
    )
    shape = dataclasses.replace(MODEL, vocab_size=WORDS.size)
    return stand_in.Scripted(stand_in.transformer(shape), script, WORDS.first_word)


@pytest.fixture(autouse=True)
def connections_end_here():
    """Those of a service that has ended are let go in these tests, not in one that collects."""
    yield
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        gc.collect()


def rollouts(model, service, **search):
    """The trajectories, the ticks, and the queries of each request but the first, of the start."""
    cfg = dataclasses.replace(stand_in.SEARCH, kind="http", url=service.url, workers=2, **search)
    rollout = dataclasses.replace(
        stand_in.ROLLOUT,
        slots=SLOTS,
        tick_tokens=TURN,
        max_turns=SEARCHES,
        max_observation_tokens=OBSERVATION,
    )
    requests = stand_in.requests(WORDS.size, [PROMPT] * SLOTS, first_word=WORDS.first_word, seed=1)
    with Engine(WORDS, search_alone(open_tool(cfg), cfg), rollout, cfg, strict=True) as engine:
        done = list(engine.run(model, requests))
        return done, engine.stats, [request["queries"] for request in service.requests[1:]]


def test_the_searches_of_a_tick_are_one_request(model):
    with SearchEndpoint(TOOL) as service:
        done, stats, asked = rollouts(model, service)
    assert {(t.status, len(t.turns)) for t in done} == {("answered", SEARCHES)}
    queries = [query for t in done for turn in t.turns for query in turn.queries]
    assert len(queries) == stats.queries == SLOTS * SEARCHES
    assert sorted(query for one in asked for query in one) == sorted(set(queries))
    assert len(asked[0]) == len({t.turns[0].queries for t in done})  # all begin together
    assert len(asked) <= stats.ticks
    records = [record for t in done for turn in t.turns for record in turn.found]
    assert sum(record.attempts for record in records) == len(set(queries))
    assert [r.cached for r in records].count(False) == len(set(queries))
    assert {r.answered_by for r in records} == {service.url}


def test_a_query_that_is_refused_ends_its_own_trajectory_alone(model):
    with SearchEndpoint(TOOL) as service:
        _, _, asked = rollouts(model, service)
    bad = asked[0][3]
    refused = Answer(status=422, message="no such query")
    with SearchEndpoint(TOOL, lambda body: refused if bad in body["queries"] else WELL) as service:
        done, *_ = rollouts(model, service)
    for t in done:
        failed = t.turns[0].queries == (bad,)
        assert t.status == ("tool_failure" if failed else "answered")
        assert ("no such query" in t.turns[-1].error) == failed

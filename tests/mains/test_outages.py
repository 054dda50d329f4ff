"""What is not the model's doing never becomes data: endpoints and search tools that are down."""

import dataclasses

import pytest

from masksearch_jax import build_trajectories
from masksearch_jax.agents import attempts
from masksearch_jax.agents.llm_client import JobError
from masksearch_jax.agents.scripted_teacher import Rejection
from masksearch_jax.core.jsonl import read_jsonl, write_jsonl
from masksearch_jax.core.retrieval import SearchError
from masksearch_jax.core.types import Demonstration, RampExample
from masksearch_jax.search import open as opening
from masksearch_jax.search.tool import FakeSearch
from masksearch_jax.testing.services import Answer, Endpoint, SearchEndpoint
from tests.mains.trajectory_job import (
    agent,
    llm_config,
    number_of,
    outcomes,
    run,
    town,
    write_towns,
)


@pytest.fixture(scope="module")
def towns(tmp_path_factory):
    folder = tmp_path_factory.mktemp("towns")
    write_towns(folder, 20)
    return folder


@pytest.fixture
def folder(towns, tmp_path):
    for name in ("index", "ramp"):
        (tmp_path / name).symlink_to(towns / name)
    return tmp_path


def own_folder(folder, examples):
    """A folder of these examples, with the same index."""
    own = folder / "own"
    write_jsonl(own / "ramp" / "train.jsonl", examples)
    (own / "index").symlink_to(folder / "index")
    return own


def refusing(status, wanted=lambda n: True):
    """A good model that refuses the towns that are `wanted`."""
    return lambda body: Answer(status=status) if wanted(number_of(body)) else Answer(agent(body))


def asked_of(endpoint):
    """The towns that requests were about."""
    return {f"e{number_of(body)}" for body in endpoint.requests}


# ---- build_trajectories


@pytest.mark.parametrize("status", [402, 400, 403, 404])
def test_an_endpoint_that_refuses_all_stops_the_job_with_its_sentence(folder, status):
    with Endpoint(refusing(status)) as endpoint:
        llm = llm_config(endpoint, folder, concurrency=2)
        with pytest.raises(JobError, match=rf"HTTP {status}: scripted {status}"):
            run(folder, llm)
    assert len(endpoint.requests) < 8 + 2 * 3  # and what was on its way by then
    assert not (folder / "demonstrations" / "train.jsonl").exists()
    with Endpoint(refusing(status, lambda n: False)) as endpoint:
        summary = run(
            folder, dataclasses.replace(llm, base_url=llm_config(endpoint, folder).base_url)
        )
    assert summary["demonstrations"] == 20
    assert asked_of(endpoint) == {f"e{n}" for n in range(20)}


def test_an_endpoint_that_is_gone_stops_the_job(folder):
    with Endpoint(refusing(500)) as endpoint:
        llm = llm_config(endpoint, folder, retries=0)
    with pytest.raises(JobError, match="does not say what it serves: APIConnectionError"):
        run(folder, llm)


def test_what_failed_is_asked_again_and_nothing_else(folder):
    """5 of 20: more than allowed. Then all of these are done, and the job with them."""
    wanted = {f"e{n}" for n in range(0, 20, 4)}
    with Endpoint(refusing(400, lambda n: n % 4 == 0)) as endpoint:
        llm = llm_config(endpoint, folder)
        with pytest.raises(attempts.FailedError) as error:
            run(folder, llm)
    said = str(error.value)
    assert said.startswith("5 of 20 attempts failed (5 llm_failed), more than config.max_failed")
    assert "e0: llm_failed HTTP 400: scripted 400" in said
    assert not (folder / "demonstrations" / "train.counts.json").exists()
    with Endpoint(refusing(400, lambda n: n == 8)) as endpoint:
        llm = dataclasses.replace(llm, base_url=llm_config(endpoint, folder).base_url)
        summary = run(folder, llm, max_failed=0.05)
        assert asked_of(endpoint) == wanted
        assert summary["rejected"] == {"llm_failed": 1}
        assert outcomes(folder)["e8"] == "llm_failed"
        # Done, but for one that is still not final.
        run(folder, llm, max_failed=0.05)
        assert {f"e{number_of(b)}" for b in endpoint.requests[-1:]} == {"e8"}
    with Endpoint(refusing(400, lambda n: False)) as endpoint:
        llm = dataclasses.replace(llm, base_url=llm_config(endpoint, folder).base_url)
        summary = run(folder, llm)
        assert asked_of(endpoint) == {"e8"}
        before = len(endpoint.requests)
        assert run(folder, llm) == summary
        assert len(endpoint.requests) == before
    assert outcomes(folder) == dict.fromkeys((f"e{n}" for n in range(20)), "")
    made = read_jsonl(folder / "demonstrations" / "train.jsonl", Demonstration)
    assert [d.example_id for d in made] == [f"e{n}" for n in range(20)]
    assert not (folder / "demonstrations" / "train.parts").exists()


def test_a_job_in_which_all_failed_never_ends_well(folder):
    """Fewer examples than it takes to tell that an endpoint is of no use."""
    few = own_folder(folder, [town(n)[1] for n in range(6)])
    with Endpoint(refusing(400)) as endpoint:
        llm = llm_config(endpoint, folder)
        with pytest.raises(attempts.FailedError, match=r"6 of 6 .*scripted 400"):
            run(few, llm, max_failed=1.0)
    with Endpoint(refusing(400, lambda n: False)) as endpoint:
        llm = llm_config(endpoint, folder)
        assert run(few, llm)["demonstrations"] == 6


def test_a_search_tool_that_is_down_loses_no_example(folder, monkeypatch):
    """It answers at the start and fails for good after; all that the endpoint said is kept."""
    found = {}
    for passage, _ in map(town, range(20)):
        found[passage.title] = [passage]
    down = FakeSearch(found, failing=set(found) - {"Town 3"})
    with Endpoint(refusing(400, lambda n: False)) as endpoint:
        llm = llm_config(endpoint, folder)
        monkeypatch.setattr(build_trajectories, "open_tool", lambda cfg: down)
        with pytest.raises(attempts.FailedError, match=r"19 of 20.*19 search_failed"):
            run(folder, llm)
        monkeypatch.undo()
        before = len(endpoint.requests)
        summary = run(folder, llm)
        assert (summary["demonstrations"], summary["rejected"]) == (20, {})
        asked = {f"e{number_of(b)}" for b in endpoint.requests[before:]}
        assert asked == {f"e{n}" for n in range(20)} - {"e3"}


def test_an_outage_stops_a_long_job_early(folder, monkeypatch):
    monkeypatch.setattr(attempts, "OUTAGE", 4)
    with Endpoint(refusing(400, lambda n: n >= 8)) as endpoint:
        llm = llm_config(endpoint, folder, concurrency=1)
        with pytest.raises(attempts.FailedError, match=r"[4-9] of 1\d attempts failed"):
            run(folder, llm)


def test_an_example_without_an_answer_is_counted_and_not_asked(folder):
    examples = read_jsonl(folder / "ramp" / "train.jsonl", RampExample)
    examples[3] = dataclasses.replace(examples[3], spans=(), masked=examples[3].paragraph)
    own = own_folder(folder, examples)
    with Endpoint(refusing(400, lambda n: False)) as endpoint:
        summary = run(own, llm_config(endpoint, folder))
        assert "e3" not in asked_of(endpoint)
    assert (summary["tried"], summary["rejected"]) == (20, {"no_known_answer": 1})
    [lost] = read_jsonl(own / "demonstrations" / "train.rejected.jsonl", Rejection)
    assert lost == Rejection("e3", "no_known_answer")


def test_a_search_tool_that_is_down_is_found_at_the_start(folder):
    with SearchEndpoint(FakeSearch({})) as server:
        settings = {"kind": "http", "url": server.url, "timeout": 2.0}
    with Endpoint(refusing(400, lambda n: False)) as endpoint:
        llm = llm_config(endpoint, folder)
        search = build_trajectories.SearchConfig("bm25", "", "", 2, 2, 3, 10.0, 2)
        with pytest.raises(SearchError, match=r"does not answer: .*http://.*Connection refused"):
            run(folder, llm, search=dataclasses.replace(search, **settings))
    assert not endpoint.requests


# ---- the search tool at the start


def test_a_tool_is_asked_once_before_it_is_used(monkeypatch):
    down = FakeSearch({}, fail_first=1)
    monkeypatch.setattr(opening, "_open", lambda cfg: down)
    cfg = build_trajectories.SearchConfig("bm25", "index", "", 2, 2, 3, 10.0, 2)
    with pytest.raises(SearchError, match="the search tool does not answer: scripted failure"):
        opening.open_tool(cfg)
    tool = opening.open_tool(cfg)
    assert len(down.calls) == 2
    assert tool.search(["q"], 2) == [[]]
    assert down.calls[2:] == [("q",)]

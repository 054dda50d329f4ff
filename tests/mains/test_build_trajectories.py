"""The whole job of the LLM agents, against a real HTTP endpoint that fails in every way it can."""

from __future__ import annotations

import collections
import dataclasses
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
import zlib

import pytest

from masksearch_jax import build_trajectories
from masksearch_jax.agents import attempts
from masksearch_jax.agents.llm_client import BudgetError, JobError
from masksearch_jax.agents.scripted_teacher import Rejection
from masksearch_jax.core.config import SearchConfig
from masksearch_jax.core.errors import ConfigError
from masksearch_jax.core.jsonl import read_jsonl
from masksearch_jax.core.types import Passage
from masksearch_jax.search import bm25
from masksearch_jax.testing.services import Answer, Endpoint
from tests.mains.trajectory_job import agent, llm_config, number_of, outcomes, run, write_towns

PROSE = "Of course! I would begin by looking for the town, and then for its river."
FAULTS = (
    lambda: Answer(status=429, headers={"retry-after": "0.05"}),
    lambda: Answer(status=500),
    lambda: Answer("cut short", cut=60),
    lambda: Answer(body=b'{"choices": [{"mess'),
    lambda: Answer(""),
)


class Faulty:
    """The good model behind a bad line: every third request fails at first, in turn in each way.

    One in 25 items gets prose for a plan, always, another in 25 once; one in 50 is refused, and one
    in 50 waits for its plan longer than anybody would.
    """

    def __init__(self):
        self.lock, self.seen = threading.Lock(), collections.Counter()

    def __call__(self, body):
        key = json.dumps(body, sort_keys=True)
        with self.lock:
            self.seen[key] += 1
            attempt = self.seen[key]
        n, plans = number_of(body), '"the plan"' in body["messages"][0]["content"]
        if n % 50 == 2:
            return Answer(status=400)
        if n % 50 == 3 and plans and attempt == 1:
            return Answer("late", hang=60)
        draw = zlib.crc32(key.encode()) % (3 * len(FAULTS))
        if attempt == 1 and draw < len(FAULTS):
            return FAULTS[draw]()
        if plans and (n % 25 == 0 or (n % 25 == 1 and len(body["messages"]) == 2)):
            return Answer(PROSE)
        return Answer(agent(body))


def expected(count):
    def reason(n):
        if n % 50 == 2:
            return "llm_failed"
        return "unreadable_planner" if n % 25 == 0 else ""

    return {f"e{n}": reason(n) for n in range(count)}


@pytest.fixture(scope="module")
def towns(tmp_path_factory):
    folder = tmp_path_factory.mktemp("towns")
    write_towns(folder, 40)
    return folder


@pytest.fixture
def folder(towns, tmp_path):
    for name in ("index", "ramp"):
        os.symlink(towns / name, tmp_path / name)
    return tmp_path


def test_every_item_has_an_outcome_whatever_fails(folder):
    with Endpoint(Faulty()) as endpoint:
        llm = llm_config(endpoint, folder, timeout=2.0)
        summary = run(folder, llm, max_failed=0.05)
        assert outcomes(folder) == expected(40)
        assert summary["rejected"] == {"llm_failed": 1, "unreadable_planner": 2}
        assert summary["by_task"] == {"ramp_k1": 37}
        paid = summary["paid"]
        assert paid["calls"] >= 4 * 37
        assert paid["retries"] > 15
        assert paid["repairs"] == 2 + 2
        assert (paid["parsed"], paid["unreadable"]) == (4 * 37, 2 * 2 + 2)
        asked = len(endpoint.requests)
        assert run(folder, llm, max_failed=0.05)["rejected"] == summary["rejected"]
        assert {number_of(body) for body in endpoint.requests[asked:]} == {2}  # the one that failed
    lost = read_jsonl(folder / "demonstrations" / "train.rejected.jsonl", Rejection)
    assert {r.detail for r in lost if r.reason != "llm_failed"} == {"there is no JSON object"}


def test_the_first_examples_alone_are_tried_and_what_was_parsed_is_told(folder, capsys):
    with Endpoint(Faulty()) as endpoint:
        made = run(folder, llm_config(endpoint, folder, timeout=2.0), examples=2)
    assert (made["examples"], made["tried"]) == (2, 2)
    assert outcomes(folder) == expected(2)
    build_trajectories._print_summary(made, str(folder))
    said = capsys.readouterr().out
    assert "2 examples, 2 tried, 1 demonstrations (1 ramp_k1)" in said
    assert "rejected: 1 unreadable_planner" in said
    assert "4 of 7 replies held what was asked for (57%)" in said


def test_a_finished_job_is_replayed_with_no_network(folder, tmp_path):
    with Endpoint(Faulty()) as endpoint:
        llm = llm_config(endpoint, folder, timeout=2.0)
        run(folder, llm, max_failed=0.05)
    names = ("train.jsonl", "train.rejected.jsonl")
    whole = [(folder / "demonstrations" / name).read_bytes() for name in names]
    (folder / "demonstrations" / "train.jsonl").unlink()
    run(folder, dataclasses.replace(llm, replay=True), max_failed=0.05)
    assert [(folder / "demonstrations" / name).read_bytes() for name in names] == whole
    (folder / "demonstrations" / "train.jsonl").unlink()
    with pytest.raises(JobError, match="is not recorded"):
        run(folder, dataclasses.replace(llm, replay=True), max_searches=1)


def test_a_job_of_prose_stops_before_it_has_paid_for_all(folder):
    """Of 40 items 4 may be rejected: the fifth ends the job, which names what it dropped."""
    with Endpoint(lambda body: Answer(PROSE)) as endpoint:
        llm = llm_config(endpoint, folder, concurrency=1)
        with pytest.raises(attempts.RejectedError) as error:
            run(folder, llm, max_rejected=0.1)
    said = str(error.value)
    assert said.startswith("5 of 5 attempts gave no demonstration (5 unreadable_planner)")
    assert re.search(r"e\d+: unreadable_planner there is no JSON object; e\d+: ", said)
    assert len(endpoint.requests) <= 2 * (5 + 2)  # with those in progress at its end
    [path] = (folder / "demonstrations").glob("train.parts/*/ramp-*.rejected.jsonl")
    assert len(read_jsonl(path, Rejection)) in (5, 6)
    assert not (folder / "demonstrations" / "train.jsonl").exists()


def test_a_page_in_the_place_of_all_replies_is_kept_nowhere(folder):
    """What stands stays, the command fails, and once the endpoint is well it asks for all anew."""
    is_well = True
    with Endpoint(lambda body: Answer(agent(body) if is_well else PROSE)) as endpoint:
        llm = llm_config(endpoint, folder)
        run(folder, llm)
        before = (folder / "demonstrations" / "train.jsonl").read_bytes()
        is_well = False
        for _ in range(2):
            asked = len(endpoint.requests)
            with pytest.raises(attempts.RejectedError) as error:
                run(folder, dataclasses.replace(llm, model="other"))
            assert len(endpoint.requests) == asked + 2 * 40
            assert (folder / "demonstrations" / "train.jsonl").read_bytes() == before
        is_well = True
        made = run(folder, dataclasses.replace(llm, model="other"))
    said = str(error.value)
    assert said.startswith("none of 40 attempts gave a demonstration (40 unreadable_planner); the ")
    assert said.endswith(
        f"; not one of 80 replies of config.llm.model 'other' at {endpoint.url} held what was "
        f"asked for; the first: {PROSE!r}; once this is mended, the same command asks for all of "
        "them anew"
    )
    assert made["demonstrations"] == 40


def test_a_teacher_that_solves_nothing_fails_and_replaces_nothing(folder):
    with Endpoint(lambda body: Answer(agent(body))) as endpoint:
        run(folder, llm_config(endpoint, folder))
    before = (folder / "demonstrations" / "train.jsonl").read_bytes()
    bm25.build([Passage("x", "Elsewhere", "Nobody lives here.")], folder / "other")
    search = SearchConfig("bm25", str(folder / "other"), "", 2, 2, 3, 10.0, 2)
    for _ in range(2):
        with pytest.raises(attempts.RejectedError, match=r"^none of 40 .*40 spans_not_found"):
            run(folder, None, teacher="scripted", search=search)
    assert (folder / "demonstrations" / "train.jsonl").read_bytes() == before


def test_another_model_of_the_same_name_is_asked(folder):
    """Through one cache, and by the same command; a replay is of the last one that was asked."""

    def slow(body):
        said = agent(body)
        return Answer(
            json.dumps({"thought": "No.", "action": "give_up"}) if "Here" in said else said
        )

    good = lambda body: Answer(agent(body))  # noqa: E731
    with Endpoint(good, {"hf": "1"}) as one, Endpoint(slow, {"hf": "2"}) as other:
        assert run(folder, llm_config(one, folder, model="hf"))["demonstrations"] == 40
        with pytest.raises(attempts.RejectedError, match=r"^none of 40 .*40 gave_up"):
            run(folder, llm_config(other, folder, model="hf"))
        assert len(other.requests) == 3 * 40
        asked = len(one.requests)
        assert run(folder, llm_config(one, folder, model="hf"))["demonstrations"] == 40
        assert len(one.requests) == asked
    replay = llm_config(other, folder, model="hf", replay=True)
    assert run(folder, replay)["demonstrations"] == 40
    with pytest.raises(JobError, match="does not say what it serves"):
        run(folder, dataclasses.replace(replay, replay=False))


def test_the_share_is_of_what_was_tried(folder):
    """Exactly the share is allowed: of 40, 2 are rejected and 1 fails."""
    with Endpoint(Faulty()) as endpoint:
        llm = llm_config(endpoint, folder, timeout=2.0)
        with pytest.raises(attempts.RejectedError, match="2 of"):
            run(folder, llm, max_rejected=1.9 / 40)
        with pytest.raises(attempts.FailedError, match="1 of 40"):
            run(folder, llm, max_rejected=2 / 40, max_failed=0.9 / 40)
        made = run(folder, llm, max_rejected=2 / 40, max_failed=1 / 40)
        assert made["demonstrations"] == 37


def test_a_spent_budget_stops_the_job_and_more_lets_it_go_on(folder):
    with Endpoint(lambda body: Answer(agent(body), tokens=(90, 10))) as endpoint:
        llm = llm_config(endpoint, folder, max_tokens=10, budget=10_000)
        with pytest.raises(BudgetError, match="start the same command again"):
            run(folder, llm)
        before = len(endpoint.paid)
        assert 10_000 <= 100 * before + 10 <= 10_000 + 100 * 8  # prompts in flight may pass it
        summary = run(folder, dataclasses.replace(llm, budget=0))
    assert summary["demonstrations"] == 40
    assert summary["paid"]["calls"] == len(endpoint.paid) == 4 * 40
    assert summary["paid"]["prompt_tokens"] == 90 * 4 * 40


def test_agents_need_an_endpoint(folder):
    with pytest.raises(ConfigError, match=r"teacher 'agents' needs the section config\.llm"):
        run(folder, None)


# ---- kill -9


def start(repository, folder, endpoint, count):
    llm = dataclasses.asdict(llm_config(endpoint, folder, concurrency=count, timeout=5.0))
    settings = {f"llm.{k}": v for k, v in llm.items()} | {
        "folder": folder,
        "search.index": folder / "index",
        "teacher": "agents",
        "max_rejected": 0.5,
        "max_failed": 0.02,
    }
    command = [sys.executable, "-m", "masksearch_jax.build_trajectories"]
    command.append(f"--config={repository / 'configs' / 'build_trajectories.py'}")
    command += [f"--config.{k}={v}" for k, v in settings.items()]
    with open(folder / "said.txt", "a") as said:
        return subprocess.Popen(command, cwd=repository, stdout=said, stderr=said)


@pytest.mark.slow  # three processes
def test_hundreds_of_items_survive_two_kills(repository, tmp_path):
    """What is paid twice was in flight at a kill: at most the concurrency, each time."""
    write_towns(tmp_path, 250)
    with Endpoint(Faulty()) as endpoint:
        for reached in (150, 500):
            process = start(repository, tmp_path, endpoint, 16)
            while len(endpoint.paid) < reached:
                assert process.poll() is None, (tmp_path / "said.txt").read_text()
                time.sleep(0.01)
            process.send_signal(signal.SIGKILL)
            assert process.wait() == -signal.SIGKILL
        process = start(repository, tmp_path, endpoint, 16)
        assert process.wait() == 0, (tmp_path / "said.txt").read_text()
    assert outcomes(tmp_path) == expected(250)
    counts = collections.Counter(json.dumps(body, sort_keys=True) for body in endpoint.paid)
    again = sum(counts.values()) - len(counts)
    assert again <= 2 * 16
    summary = json.loads((tmp_path / "demonstrations" / "train.counts.json").read_text())
    assert summary["demonstrations"] == 235
    assert summary["rejected"] == {"llm_failed": 5, "unreadable_planner": 10}

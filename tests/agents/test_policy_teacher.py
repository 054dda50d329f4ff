"""A model of ours as the teacher: every sample has an outcome, the same in any order."""

from __future__ import annotations

import contextlib
import dataclasses
import json

import jax
import pytest

from masksearch_jax import build_trajectories
from masksearch_jax.agents import agent_teacher, attempts, policy_teacher, selection
from masksearch_jax.agents.scripted_teacher import Rejection
from masksearch_jax.core import markup
from masksearch_jax.core.config import MeshConfig, PromptConfig
from masksearch_jax.core.errors import ConfigError
from masksearch_jax.core.jsonl import read_jsonl, write_jsonl
from masksearch_jax.core.llm_config import LLMConfig
from masksearch_jax.core.tokenizer import Vocab
from masksearch_jax.core.tools import search_alone
from masksearch_jax.core.types import Demonstration, RampExample
from masksearch_jax.parallel import sharding
from masksearch_jax.search.open import open_tool
from masksearch_jax.testing.services import Answer, Endpoint
from tests.agents.scripted_student import LENIENT, SAID, THEN, scripted


@pytest.fixture
def setting(miniature, monkeypatch):
    """The student's section; its model searches once and answers `o`."""
    vocab = Vocab.load(miniature.tokenizer)
    mesh = sharding.make_mesh(MeshConfig(1, 1, 1), jax.devices()[:1])
    monkeypatch.setattr(policy_teacher, "make_mesh", lambda config: mesh)
    monkeypatch.setattr(policy_teacher, "initial", lambda *args: scripted(vocab))
    cfg = miniature.cfg
    rollout = dataclasses.replace(cfg.rollout, slots=4, max_new_tokens=24, temperature=0.0)
    return selection.StudentConfig(
        init="scripted",
        tokenizer=str(miniature.tokenizer),
        samples=2,
        rules=LENIENT,
        model=cfg.model,
        compute=cfg.compute,
        mesh=cfg.mesh,
        prompt=PromptConfig("minimal"),
        rollout=rollout,
    )


@pytest.fixture
def examples(miniature):
    return read_jsonl(miniature.data / "ramp" / "train.jsonl", RampExample)[:5]


def solve(miniature, setting, examples, llm=None):
    tool = open_tool(miniature.search)
    limits = agent_teacher.TeacherConfig("en", 2, miniature.search)
    heard = []
    teacher = policy_teacher.Student(
        setting, search_alone(tool, limits.search), limits, llm, seed=0
    )
    try:
        outcomes = teacher.solve(examples, heard.append)
        assert sorted(map(repr, heard)) == sorted(map(repr, outcomes))
        return outcomes, teacher.figures()
    finally:
        teacher.close()


def test_each_sample_of_each_example_is_a_demonstration(miniature, setting, examples):
    outcomes, _ = solve(miniature, setting, examples)
    assert [o.id for o in outcomes] == [f"{e.id}/local/{i}" for e in examples for i in range(2)]
    for made in outcomes:
        assert [s.author for s in made.segments] == ["policy", "tool", "policy"]
        assert made.segments[0].text == "".join(SAID)
        assert made.segments[2].text == "".join(THEN[1:])
        assert made.turns[0].queries == ("e",)
        assert made.turns[0].seconds == 0.0
    backwards, _ = solve(miniature, setting, examples[::-1])
    assert sorted(backwards, key=lambda o: o.id) == sorted(outcomes, key=lambda o: o.id)


def test_outcomes_are_heard_of_as_they_come(miniature, setting, examples, monkeypatch):
    log = []
    sample = policy_teacher.Engine.run

    def run(engine, *args):
        for trajectory in sample(engine, *args):
            log.append("sampled")
            yield trajectory

    monkeypatch.setattr(policy_teacher.Engine, "run", run)
    limits = agent_teacher.TeacherConfig("en", 2, miniature.search)
    tool = open_tool(miniature.search)
    with contextlib.closing(
        policy_teacher.Student(setting, search_alone(tool, limits.search), limits, None, seed=0)
    ) as teacher:
        teacher.solve(examples, lambda _: log.append("heard"))
    assert log == ["sampled", "heard"] * 2 * len(examples)


def test_rules_refuse_each_sample_by_name(miniature, setting, examples):
    strict = dataclasses.replace(setting, rules=selection.Rules(1.0, grounded=True))
    outcomes, _ = solve(miniature, strict, examples)
    assert outcomes == [Rejection(e.id, "spans_wrong", "0.000") for e in examples for _ in range(2)]
    short = dataclasses.replace(setting.rollout, max_new_tokens=3)
    outcomes, _ = solve(miniature, dataclasses.replace(setting, rollout=short), examples)
    assert {o.reason for o in outcomes} == {"out_of_tokens"}


def test_a_judge_may_have_the_last_word(miniature, setting, examples, tmp_path):
    """Both samples of an example say the same: each example is judged, and paid for, once."""

    def verdict(body):
        wrong = examples[0].masked in body["messages"][1]["content"]
        said = {"reason": "so it is", "verdict": "incorrect" if wrong else "correct"}
        return Answer(json.dumps(said))

    with Endpoint(verdict) as endpoint:
        address = endpoint.url
        settings = {"base_url": address, "cache": str(tmp_path / "replies.sqlite")}
        llm = LLMConfig(**settings)
        judged = dataclasses.replace(setting, judge="llm")
        outcomes, figures = solve(miniature, judged, examples, llm)
    assert outcomes[:2] == [Rejection(examples[0].id, "judged_incorrect", "so it is")] * 2
    assert all(isinstance(o, Demonstration) for o in outcomes[2:])
    assert figures["calls"] == len(endpoint.requests) == 5


def run_of(folder, miniature, setting, examples, llm=None):
    """The main's config: `examples` are attempted in a folder of their own."""
    write_jsonl(folder / "ramp" / "train.jsonl", examples)
    return build_trajectories.BuildTrajectoriesRun(
        str(folder), ("ramp",), miniature.search, 2, teacher="local", student=setting, llm=llm
    )


def test_a_student_of_whom_nothing_is_accepted_ends_no_job_well(
    miniature, setting, examples, tmp_path
):
    cfg = run_of(tmp_path, miniature, setting, examples)
    build_trajectories.run(cfg)
    stood = (tmp_path / "demonstrations" / "train.jsonl").read_bytes()
    strict = dataclasses.replace(setting, rules=selection.Rules(1.0, grounded=True))
    cfg = dataclasses.replace(cfg, student=strict)
    said = r"none of 10 attempts gave a demonstration \(10 spans_wrong\)"
    with pytest.raises(attempts.RejectedError, match=said):
        build_trajectories.run(cfg)
    assert (tmp_path / "demonstrations" / "train.jsonl").read_bytes() == stood
    summary = build_trajectories.run(cfg, may_be_empty=True)  # of whoever decides what comes of it
    assert (summary["demonstrations"], summary["rejected"]) == (0, {"spans_wrong": 10})
    assert (tmp_path / "demonstrations" / "train.jsonl").read_bytes() == b""


@pytest.mark.parametrize("may_be_empty", [False, True])
def test_pages_of_a_proxy_are_no_verdicts_and_are_asked_for_anew(
    miniature, setting, examples, tmp_path, capsys, may_be_empty
):
    is_down = True

    def verdict(body):
        right = {"reason": "so it is", "verdict": "correct"}
        return Answer("<html>busy</html>" if is_down else json.dumps(right))

    judged = dataclasses.replace(setting, judge="llm")
    with Endpoint(verdict) as endpoint:
        llm = LLMConfig(base_url=endpoint.url, cache=str(tmp_path / "replies.sqlite"))
        cfg = run_of(tmp_path, miniature, judged, examples, llm)
        with pytest.raises(attempts.RejectedError, match="<html>busy</html>"):
            build_trajectories.run(cfg, may_be_empty=may_be_empty)
        is_down = False
        summary = build_trajectories.run(cfg, may_be_empty=may_be_empty)
    assert summary["demonstrations"] == 10
    build_trajectories._print_summary(summary, str(tmp_path))
    assert "10 of 10 replies held what was asked for (100%)" in capsys.readouterr().out


def test_the_main_takes_it_for_a_teacher(miniature, setting, examples, tmp_path):
    cfg = run_of(tmp_path, miniature, setting, examples)
    summary = build_trajectories.run(cfg)
    assert (summary["examples"], summary["tried"], summary["demonstrations"]) == (5, 10, 10)
    made = read_jsonl(tmp_path / "demonstrations" / "train.jsonl", Demonstration)
    assert markup.is_well_formed(made[0].segments)
    assert build_trajectories.run(cfg) == summary
    for missing in ({"student": None}, {"student": dataclasses.replace(setting, judge="llm")}):
        with pytest.raises(ConfigError, match=r"needs the section config\.(student|llm)"):
            build_trajectories.check_sections(dataclasses.replace(cfg, **missing))

"""Evaluation counts exactly, is repeatable, and leaves one line per trajectory."""

import dataclasses
import itertools
import json
import os
import signal

import numpy as np
import pytest

from masksearch_jax import evaluate
from masksearch_jax.core.config import EvalRun
from masksearch_jax.core.errors import ConfigError
from masksearch_jax.core.jsonl import write_jsonl
from masksearch_jax.core.retrieval import SearchError
from masksearch_jax.core.tokenizer import Vocab
from masksearch_jax.core.types import (
    Passage,
    QAExample,
    RampExample,
    Segment,
    Span,
    Trajectory,
    Turn,
    from_json,
)
from masksearch_jax.evals import suites
from masksearch_jax.evals.suites import QA_METRICS, RAMP_METRICS
from masksearch_jax.models.load import InitError
from masksearch_jax.runtime.progress import Progress
from masksearch_jax.search.tool import FakeSearch
from masksearch_jax.training.supervisor import Preempted

EXAMPLES = 7


@pytest.fixture(scope="session")
def run_config(miniature):
    cfg = miniature.cfg
    return EvalRun(
        workdir="",
        data=str(miniature.data),
        tokenizer=str(miniature.tokenizer),
        init="",
        model=cfg.model,
        compute=cfg.compute,
        mesh=cfg.mesh,
        prompt=cfg.prompt,
        search=miniature.search,
        rollout=dataclasses.replace(cfg.rollout, slots=4, max_new_tokens=12),
        eval=dataclasses.replace(
            cfg.eval,
            suites=("ramp", "two_hop"),
            examples=EXAMPLES,
            baseline_examples=EXAMPLES - 2,
            bootstrap=20,
        ),
    )


def read_rows(workdir):
    return list(map(json.loads, (workdir / "trajectories.jsonl").read_text().splitlines()))


@pytest.mark.usefixtures("one_device")
def test_every_example_is_counted_once_in_every_condition(run_config, tmp_path):
    cfg = dataclasses.replace(run_config, workdir=str(tmp_path / "a"))
    results = evaluate.run(cfg)
    assert json.loads((tmp_path / "a" / "eval.json").read_text()) == results
    assert set(results) == {"ramp", "two_hop"}
    rows = read_rows(tmp_path / "a")
    seen = [(r["suite"], r["condition"], r["example"]["id"]) for r in rows]
    wanted = itertools.product(cfg.eval.conditions, evaluate.load_suites(cfg).items())
    assert seen == [
        (s, c, e.id) for c, (s, examples) in wanted for e in examples[: evaluate.count(cfg, c)]
    ]
    assert len(set(seen)) == len(seen) == 6 * EXAMPLES - 8
    for suite, condition in itertools.product(cfg.eval.suites, cfg.eval.conditions):
        measured = results[suite][condition]
        assert tuple(measured) == (RAMP_METRICS if suite == "ramp" else QA_METRICS)
        own = [r["scores"] for r in rows if (r["suite"], r["condition"]) == (suite, condition)]
        for name, m in measured.items():
            assert m["n"] == len(own) == evaluate.count(cfg, condition)
            assert m["low"] <= m["value"] <= m["high"]
            assert m["value"] == pytest.approx(sum(s[name] for s in own) / len(own))
    assert len(suites.table(results).splitlines()) == 6

    # The same again: the same tokens, whatever searches took.
    evaluate.run(dataclasses.replace(cfg, workdir=str(tmp_path / "b")))
    assert [r["ids"] for r in read_rows(tmp_path / "b")] == [r["ids"] for r in rows]
    files = ("by_type.json", "eval.json", "lost.jsonl", "run.json", "trajectories.jsonl")
    assert sorted(p.name for p in (tmp_path / "a").iterdir()) == list(files)
    assert (tmp_path / "a" / "lost.jsonl").read_text() == ""

    # A line holds the whole trajectory and its example.
    vocab = Vocab.load(cfg.tokenizer)
    for row in rows:
        fields = {f.name: row[f.name] for f in dataclasses.fields(Trajectory)}
        trajectory = from_json(Trajectory, fields)
        example = from_json(RampExample if row["suite"] == "ramp" else QAExample, row["example"])
        assert trajectory.example_id == example.id
        assert [vocab.decode([i]) for i in trajectory.ids.tolist()] == row["tokens"]
        assert trajectory.sampled.sum() == (trajectory.logprobs != 0).sum()


@pytest.mark.usefixtures("one_device")
def test_results_come_by_number_of_masks_and_by_type_of_question_too(run_config, tmp_path):
    results = evaluate.run(dataclasses.replace(run_config, workdir=str(tmp_path)))
    by_type = json.loads((tmp_path / evaluate.BY_TYPE).read_text())
    rows = read_rows(tmp_path)
    for suite, condition in itertools.product(results, run_config.eval.conditions):
        whole, parts = results[suite][condition], by_type[suite][condition]
        own = [r for r in rows if (r["suite"], r["condition"]) == (suite, condition)]
        types = [f"k{len(r['example']['spans'])}" if suite == "ramp" else r["example"]["type"]
                 for r in own]  # fmt: skip
        assert list(parts) == sorted(set(types))
        for name, cells in parts.items():
            scores = [r["scores"]["f1"] for r, t in zip(own, types, strict=True) if t == name]
            assert cells["f1"]["n"] == len(scores)
            assert cells["f1"]["value"] == pytest.approx(sum(scores) / len(scores))
        total = sum(cells["f1"]["value"] * cells["f1"]["n"] for cells in parts.values())
        assert total / whole["f1"]["n"] == pytest.approx(whole["f1"]["value"])


def turn(*passages):
    return Turn(("q",), passages, passages, 0.0)


@pytest.mark.parametrize(
    ("turns", "ramp", "question"),
    [((), 0.0, 0.0), ((turn("a", "p"),), 1.0, 0.0), ((turn("a"), turn("g2", "b")), 0.0, 1.0)],
)
def test_a_search_that_shows_the_source_is_a_hit(turns, ramp, question):
    ids = np.zeros(0, np.int32)
    segments = (Segment("policy", "<answer>x</answer>"),)
    trajectory = Trajectory("e", 0, ids, ids, ids, ids, 0, segments, turns, "answered")
    masked = RampExample("e", "p", "T", "[mask]", "x", (Span(0, 1, "x", "TERM"),))
    asked = QAExample("e", "d", "Which?", ("x",), ("g1", "g2"))
    assert suites.score(masked, trajectory)["source_hit"] == ramp
    assert suites.score(asked, trajectory)["source_hit"] == question
    nowhere = suites.score(dataclasses.replace(asked, gold=()), trajectory)
    assert nowhere.keys() == set(QA_METRICS) - {"source_hit"}
    found = suites.summarise([suites.score(asked, trajectory), nowhere], 10, 0, {})
    assert (found["source_hit"]["n"], found["f1"]["n"]) == (1, 2)


LINKED = [
    Passage("p", "Oslo", "Oslo is a city in Norway with 700,000 people."),
    Passage("q", "Bergen", "Bergen is a city in Norway. The nearest larger city is Oslo."),
    Passage("r", "Lagos", "Lagos has 700,000 people."),
]


@pytest.mark.parametrize(("span", "told"), [("Norway", True), ("700,000", False)])
def test_facts_that_another_article_on_the_subject_tells_are_repeated(span, told):
    start = LINKED[0].text.index(span)
    masked = LINKED[0].text.replace(span, "[mask]")
    spans = (Span(start, start + len(span), span, "TERM"),)
    example = RampExample("p@0", "p", "Oslo", masked, LINKED[0].text, spans)
    assert evaluate.is_repeated(example, FakeSearch(lambda query: LINKED)) == told


@pytest.mark.usefixtures("one_device")
def test_a_hidden_source_is_asked_for_with_search_alone_and_never_shown(run_config, tmp_path):
    section = dataclasses.replace(run_config.eval, suites=("source_hidden", "ramp"))
    cfg = dataclasses.replace(run_config, workdir=str(tmp_path), eval=section)
    loaded = evaluate.load_suites(cfg)
    tool = evaluate.tools(cfg)["search"]
    repeated = evaluate.with_repeated_facts(cfg, loaded["source_hidden"], tool)
    assert all(evaluate.is_repeated(e, tool) for e in repeated)
    vocab = Vocab.load(cfg.tokenizer)
    items, lost = evaluate.items_of(cfg, loaded | {"source_hidden": repeated}, vocab)
    assert lost == []
    by_suite = {s: [i for i in items if i.suite == s] for s in section.suites}
    assert {i.condition for i in by_suite["source_hidden"]} == {"search"}
    assert {i.condition for i in by_suite["ramp"]} == set(section.conditions)
    assert all(i.request().source == i.example.passage_id for i in by_suite["source_hidden"])
    assert all(i.request().source == "" for i in by_suite["ramp"])
    results = evaluate.run(cfg)
    assert results["source_hidden"]["search"]["source_hit"]["value"] == 0.0


def test_without_search_and_at_random_are_what_they_say(run_config):
    tools = evaluate.tools(run_config)
    assert tools["no_search"].search(["Berlin"], 2) == [[]]
    (found,), (drawn,) = (tools[c].search(["Berlin"], 2) for c in ("search", "random"))
    assert len(drawn) == 2
    assert {p.id for p in drawn} != {p.id for p in found}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"suites": ("ramps",)}, r"config\.eval\.suites has 'ramps'; did you mean ramp"),
        ({"conditions": ("nosearch",)}, r"config\.eval\.conditions has 'nosearch'; .*no_search"),
    ],
)
def test_unknown_suites_and_conditions_are_named(run_config, tmp_path, change, message):
    section = dataclasses.replace(run_config.eval, **change)
    with pytest.raises(ConfigError, match=message):
        evaluate.run(dataclasses.replace(run_config, workdir=str(tmp_path), eval=section))
    assert list(tmp_path.iterdir()) == []


def test_sources_that_cannot_be_hidden_are_refused(run_config, tmp_path):
    found = evaluate.load_suites(run_config)["ramp"][:3]
    other = [dataclasses.replace(e, passage_id=f"wiki-{e.passage_id}") for e in found]
    write_jsonl(tmp_path / "data" / "ramp" / "heldout.jsonl", other)
    cfg = dataclasses.replace(
        run_config,
        workdir=str(tmp_path / "work"),
        data=str(tmp_path / "data"),
        search=dataclasses.replace(run_config.search, exclude_source=True),
        eval=dataclasses.replace(run_config.eval, suites=("ramp",)),
    )
    with pytest.raises(SearchError, match="can hide nothing"):
        evaluate.run(cfg)


def test_a_tokenizer_of_another_model_is_refused(run_config, tmp_path):
    model = dataclasses.replace(run_config.model, vocab_size=100)
    with pytest.raises(InitError, match=r"ids up to 511, but config\.model\.vocab_size is 100"):
        evaluate.run(dataclasses.replace(run_config, workdir=str(tmp_path), model=model))


@pytest.mark.usefixtures("one_device")
def test_an_evaluation_that_is_told_to_stop_does(run_config, tmp_path, monkeypatch):
    class Stopped(Progress):
        def update(self, done, **figures):
            assert done == 1, "nothing goes on after the first answer"
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(evaluate, "Progress", Stopped)
    few = dataclasses.replace(run_config.rollout, slots=1)
    cfg = dataclasses.replace(run_config, workdir=str(tmp_path), rollout=few)
    with pytest.raises(Preempted):
        evaluate.run(cfg)
    assert not (tmp_path / "eval.json").exists()
    monkeypatch.undo()
    [kept] = (tmp_path / "trajectories.partial.jsonl").read_text().splitlines()
    evaluate.run(cfg)
    assert (tmp_path / "trajectories.jsonl").read_text().splitlines().count(kept) == 1
    # What an item draws does not depend on which others were done before.
    evaluate.run(dataclasses.replace(cfg, workdir=str(tmp_path / "whole")))
    assert [r["ids"] for r in read_rows(tmp_path / "whole")] == [
        r["ids"] for r in read_rows(tmp_path)
    ]

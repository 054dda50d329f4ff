"""Evaluation counts exactly, is repeatable, and leaves one line per trajectory."""

import collections
import dataclasses
import hashlib
import itertools
import json
import os
import re
import runpy
import signal
import sys
from pathlib import Path

import pytest

from masksearch_jax import evaluate
from masksearch_jax.core.config import EvalRun
from masksearch_jax.core.errors import ConfigError
from masksearch_jax.core.files import BeingWrittenError
from masksearch_jax.core.jsonl import write_jsonl
from masksearch_jax.core.retrieval import SearchError
from masksearch_jax.core.tokenizer import EOS, Vocab
from masksearch_jax.core.types import (
    Passage,
    QAExample,
    QueryRecord,
    RampExample,
    Span,
    Trajectory,
    Turn,
    from_json,
    to_json,
)
from masksearch_jax.data import methods
from masksearch_jax.evals import items, outcome, results, suites
from masksearch_jax.evals.scores import QA_METRICS, RAMP_METRICS
from masksearch_jax.models.load import InitError
from masksearch_jax.runtime import cli, storage
from masksearch_jax.runtime.progress import Progress
from masksearch_jax.search.bm25 import BM25
from masksearch_jax.search.tool import FakeSearch
from masksearch_jax.training.supervisor import Preempted
from tests.parallel.lock_holder import held

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
            suites=("ramp", "questions"),
            methods=methods.METHODS,
            examples=EXAMPLES,
            suite_examples=(f"questions={EXAMPLES - 2}",),
            bootstrap=20,
        ),
    )


def test_an_agent_is_evaluated_as_it_was_trained(repository, tmp_path, monkeypatch, capsys):
    """As its folder says, but for what the command says; a model behind an endpoint has none."""
    told = {"prompt": {"style": "minimal"}, "search": {"top_k": 2, "max_queries": 1}}
    (tmp_path / "agent.json").write_text(json.dumps(told))
    asked = []

    def parsed(fn, schema, argv, *readers, read_defaults, resumes):
        asked.append(cli.parse(schema, sys.argv, *readers, read_defaults))

    monkeypatch.setattr(cli, "run", parsed)

    def settings(*flags):
        config = f"--config={repository / 'configs' / 'evaluate.py'}:tiny"
        monkeypatch.setattr("sys.argv", ["evaluate", config, *flags])
        runpy.run_path(evaluate.__file__, run_name="__main__")
        return asked[-1].prompt.style, asked[-1].search.top_k, asked[-1].search.max_queries

    init = f"--config.init={tmp_path}"
    assert settings(init) == ("minimal", 2, 1)
    assert settings(init, "--config.search.top_k=4") == ("minimal", 4, 1)
    said = capsys.readouterr().err.splitlines()
    assert said == [
        f"  read from {tmp_path}: prompt.style=minimal search.max_queries=1 search.top_k=2",
        f"  read from {tmp_path}: prompt.style=minimal search.max_queries=1",
    ]
    file = tmp_path / "with_an_init.py"
    file.write_text(
        "from configs import evaluate\n\n\ndef get_config():\n"
        f"    c = evaluate.get_config('tiny')\n    c.init = {str(tmp_path)!r}\n    return c\n"
    )
    config = f"--config={file}"
    assert settings(config)[0] == "minimal"
    assert settings(config, "--config.endpoint.base_url=http://h/v1")[0] == "chat"


def read_rows(workdir):
    return list(map(json.loads, (workdir / "trajectories.jsonl").read_text().splitlines()))


def own_scores(rows, suite, method):
    return [r["scores"] for r in rows if (r["suite"], r["method"]) == (suite, method)]


@pytest.fixture(scope="module")
def evaluated(run_config, one_device, tmp_path_factory):
    """Every method on both suites: the config, eval.json and the rows of trajectories.jsonl."""
    folder = tmp_path_factory.mktemp("evaluated")
    cfg = dataclasses.replace(run_config, workdir=str(folder / "a"))
    found = evaluate.run(cfg)
    assert json.loads((folder / "a" / "eval.json").read_text()) == found
    return cfg, found, read_rows(folder / "a")


def test_every_method_is_asked_the_same_items_once(evaluated):
    _, found, rows = evaluated
    asked = {}
    for row in rows:
        asked.setdefault((row["suite"], row["method"]), []).append(row["example"]["id"])
    places = itertools.product(("ramp", "questions"), methods.METHODS)
    assert asked.keys() == set(places)
    for suite, count in (("ramp", EXAMPLES), ("questions", EXAMPLES - 2)):
        ids = asked[suite, "agent"]
        assert len(set(ids)) == len(ids) == count
        assert all(asked[suite, method] == ids for method in methods.METHODS)
        for method in methods.METHODS:
            measured = found["results"][suite][method]
            assert tuple(measured) == (RAMP_METRICS if suite == "ramp" else QA_METRICS)
            own = own_scores(rows, suite, method)
            for name, m in measured.items():
                assert m["n"] == count
                assert m["low"] <= m["value"] <= m["high"]
                assert m["value"] == pytest.approx(sum(s[name] for s in own) / count)
        assert found["suites"][suite]["items"] == count


def test_one_retrieval_is_in_the_prompt_and_no_tool_is(evaluated):
    _, _, rows = evaluated
    for row in rows:
        prompt, example = row["segments"][0]["text"], row["example"]
        if row["method"] == "rag":
            ((query, shown),) = ((t["queries"], t["titles"]) for t in row["turns"])
            words = example.get("question") or example["masked"].replace("[mask]", " ")
            assert query == [" ".join(words.split())]
            assert "<information>" in prompt
            assert all(title in prompt for title in shown)
        elif row["method"] == "closed_book":
            assert row["turns"] == []
            assert "<information>" not in prompt
        single = row["method"] in methods.SINGLE_TURN
        assert row["opening"] == ("<answer>" if single else "")
        assert prompt.endswith(row["opening"])
        if single:
            assert row["scores"]["turns"] <= 1


def test_the_same_again_is_the_same(evaluated, tmp_path):
    cfg, found, rows = evaluated
    again = dataclasses.replace(cfg, workdir=str(tmp_path / "b"))
    same = evaluate.run(again)
    assert [r["ids"] for r in read_rows(tmp_path / "b")] == [r["ids"] for r in rows]
    assert {k: same[k] for k in ("results", "average", "breakdown", "suites")} == {
        k: found[k] for k in ("results", "average", "breakdown", "suites")
    }
    files = ("eval.json", "lost.jsonl", "run.json", "trajectories.jsonl")
    assert sorted(p.name for p in (tmp_path / "b").iterdir()) == list(files)
    assert (tmp_path / "b" / "lost.jsonl").read_text() == ""


def test_a_line_holds_the_whole_trajectory_and_its_example(evaluated):
    cfg, _, rows = evaluated
    vocab = Vocab.load(cfg.tokenizer)
    for row in rows:
        fields = {f.name: row[f.name] for f in dataclasses.fields(Trajectory) if f.name in row}
        trajectory = from_json(Trajectory, fields)
        example = from_json(RampExample if row["suite"] == "ramp" else QAExample, row["example"])
        assert trajectory.example_id == example.id
        assert [vocab.decode([i]) for i in trajectory.ids.tolist()] == row["tokens"]
        assert trajectory.sampled.sum() == (trajectory.logprobs != 0).sum()
        assert row["scores"]["tokens"] == trajectory.sampled.sum()
        assert len(row.get("slots", ())) == len(row["example"].get("spans", ()))


def test_results_are_broken_down(evaluated):
    _, found, rows = evaluated
    for suite, method in itertools.product(("ramp", "questions"), methods.METHODS):
        whole, parts = found["results"][suite][method], found["breakdown"][suite][method]
        by = "masks" if suite == "ramp" else "type"
        assert parts.keys() == {"status", by} | ({"span_type"} if suite == "ramp" else set())
        for cells in (parts[by], parts["status"]):
            assert sum(c["f1"]["n"] for c in cells.values()) == whole["f1"]["n"]
            total = sum(c["f1"]["value"] * c["f1"]["n"] for c in cells.values())
            assert total / whole["f1"]["n"] == pytest.approx(whole["f1"]["value"])
        own = [r for r in rows if (r["suite"], r["method"]) == (suite, method)]
        if suite == "ramp":
            spans = [s["type"] for r in own for s in r["example"]["spans"]]
            counted = {t: c["span_recall"]["n"] for t, c in parts["span_type"].items()}
            assert counted == collections.Counter(spans)


def test_the_table_has_methods_down_suites_across_and_their_average(evaluated):
    _, found, _ = evaluated
    lines = results.table(found).splitlines()
    assert lines[0].split() == ["ramp", "questions", "average"]
    assert lines[1].split() == ["span_recall", "recall"]
    for line, method in zip(lines[2:7], methods.METHODS, strict=True):
        cells = [found["results"]["ramp"][method]["span_recall"]]
        cells += [found["results"]["questions"][method]["recall"], found["average"][method]]
        assert cells[2]["value"] == pytest.approx((cells[0]["value"] + cells[1]["value"]) / 2)
        shown = [f"{c['value']:.3f} [{c['low']:.3f}, {c['high']:.3f}]" for c in cells]
        assert re.split(r"  +", line) == [method, *shown]
    assert lines[7:] == [f"ramp: n {EXAMPLES}", f"questions: n {EXAMPLES - 2}"]


def test_what_made_it_stands_beside_the_results(evaluated):
    cfg, found, _ = evaluated
    made = found["provenance"]
    assert found["version"] == outcome.VERSION == 2
    assert made["model"]["is_random"]
    assert made["tokenizer"]["fingerprint"] == Vocab.load(cfg.tokenizer).fingerprint
    manifest = json.loads((Path(cfg.search.index) / "manifest.json").read_text())
    assert made["search"]["fingerprint"] == manifest["fingerprint"]
    assert made["config"]["eval"]["methods"] == list(methods.METHODS)
    assert made["versions"].keys() >= {"jax", "python", "masksearch_jax"}
    for name, file in suites.FILES.items():
        if name in found["suites"]:
            content = (Path(cfg.data) / file).read_bytes()
            suite = found["suites"][name]
            assert suite["sha256"] == hashlib.sha256(content).hexdigest()
            assert suite["rows"] == content.count(b"\n")
            assert suite["tool_failures"] == dict.fromkeys(methods.METHODS, 0)


LINKED = [
    Passage("p", "Oslo", "Oslo is a city in Norway with 700,000 people."),
    Passage("q", "Bergen", "Bergen is a city in Norway. The nearest larger city is Oslo."),
    Passage("r", "Lagos", "Lagos has 700,000 people."),
]


def test_whole_replies_are_of_the_methods_that_write_one(run_config):
    section = dataclasses.replace(
        run_config.eval, suites=("questions",), methods=methods.METHODS, whole_replies=True
    )
    cfg = dataclasses.replace(run_config, eval=section)
    (suite,) = suites.load(section, cfg.data)
    made, _ = items.items_of(cfg, [(suite, [0])], None, lambda ids: "")
    assert [i.method for i in made if i.scorer.takes_whole] == ["closed_book", "rag"]
    assert len(made) == len(methods.METHODS)
    assert {i.scorer.ends for i in made} == {()}
    vocab = Vocab.load(cfg.tokenizer)
    made, _ = items.items_of(cfg, [(suite, [0])], vocab, lambda ids: "")
    assert {i.scorer.ends for i in made} == {(EOS,)}


@pytest.mark.parametrize(("span", "told"), [("Norway", True), ("700,000", False)])
def test_facts_that_another_article_on_the_subject_tells_are_repeated(span, told):
    start = LINKED[0].text.index(span)
    masked = LINKED[0].text.replace(span, "[mask]")
    spans = (Span(start, start + len(span), span, "TERM"),)
    example = RampExample("p@0", "p", "Oslo", masked, LINKED[0].text, spans)
    assert items.is_repeated(example, FakeSearch(lambda query: LINKED)) == told


def test_a_search_that_fails_for_once_ends_no_choice_of_examples(run_config):
    section = dataclasses.replace(run_config.eval, suites=("source_hidden",), suite_examples=())
    cfg = dataclasses.replace(run_config, eval=section)
    (suite,) = suites.load(section, cfg.data)
    real, refused = evaluate.tools_of(cfg, [suite])["agent"], set()

    def find(query):
        if query not in refused:
            refused.add(query)
            raise SearchError("refused")
        return real.search([query], 20)[0]

    assert items.chosen(suite, cfg, FakeSearch(find)) == items.chosen(suite, cfg, real)
    assert refused


@pytest.mark.usefixtures("one_device")
def test_a_hidden_source_is_asked_for_by_what_searches_and_never_shown(run_config, tmp_path):
    section = dataclasses.replace(
        run_config.eval, suites=("source_hidden", "ramp"), suite_examples=()
    )
    cfg = dataclasses.replace(run_config, workdir=str(tmp_path), eval=section)
    loaded = suites.load(cfg.eval, cfg.data)
    tools = evaluate.tools_of(cfg, loaded)
    choices = evaluate.choose_once(cfg, storage.path(tmp_path), loaded, tools, begun=False)
    # One that goes on keeps them, whatever a search would find now: it makes none.
    assert evaluate.choose_once(cfg, storage.path(tmp_path), loaded, {}, begun=True) == choices
    worklist = evaluate.worklist_of(cfg, loaded, choices, Vocab.load(cfg.tokenizer))
    assert worklist.lost == []
    by_suite = {s: [i for i in worklist.items if i.suite == s] for s in section.suites}
    assert {i.method for i in by_suite["source_hidden"]} == {"rag", "agent"}
    assert {i.method for i in by_suite["ramp"]} == set(methods.METHODS)
    hidden = by_suite["source_hidden"]
    assert all(i.hidden == i.example.passage_id for i in hidden)
    assert all(items.is_repeated(i.example, tools["agent"]) for i in hidden)
    assert all(i.hidden == "" for i in by_suite["ramp"])
    found = evaluate.run(cfg)["results"]["source_hidden"]
    assert all(found[method]["source_hit"]["value"] == 0.0 for method in ("rag", "agent"))


def test_the_controls_search_for_what_they_say(run_config):
    loaded = suites.load(run_config.eval, run_config.data)
    tools = evaluate.tools_of(run_config, loaded)
    assert tools["no_search"].search(["Berlin"], 2) == [[]]
    (found,), (drawn,) = (tools[c].search(["Berlin"], 2) for c in ("agent", "random"))
    assert len(drawn) == 2
    assert {p.id for p in drawn} != {p.id for p in found}


@pytest.mark.parametrize("kind", ["http", "web", "opensearch"])
def test_random_passages_need_no_index_where_search_is_remote(run_config, monkeypatch, kind):
    opened = []

    def find(query):
        return [Passage(query, query, query)]

    def open_tool(search):
        opened.append(search.kind)
        return FakeSearch(find)

    monkeypatch.setattr(evaluate, "open_tool", open_tool)
    search = dataclasses.replace(run_config.search, kind=kind, url="http://h/x", index="")
    cfg = dataclasses.replace(run_config, search=search)
    loaded = suites.load(cfg.eval, cfg.data)
    tool = evaluate.tools_of(cfg, loaded)["random"]
    assert opened == [kind]
    texts = {methods.query_of(e) for suite in loaded for e in suite.examples}
    drawn = [tool.search([f"q{i}"], 1)[0][0].id for i in range(20)]
    assert set(drawn) <= texts
    assert len(set(drawn)) > 15
    assert drawn == [tool.search([f"q{i}"], 1)[0][0].id for i in range(20)]


def test_random_passages_of_a_service_are_replayed_as_they_were_recorded(run_config, tmp_path):
    index = BM25.open(run_config.search.index)
    rows = {"agent": index.get("country:DE"), "random": index.get("country:FR")}
    for method, passage in rows.items():
        record = QueryRecord((passage.id,), depth=1)
        turn = Turn(("Berlin",), (passage.id,), (passage.title,), 0.1, found=(record,))
        row = {"method": method, "turns": [to_json(turn)]}
        (tmp_path / f"{method}.jsonl").write_text(json.dumps(row) + "\n")
    search = dataclasses.replace(
        run_config.search, kind="http", url="http://h/x", replay=True, recorded=str(tmp_path)
    )
    section = dataclasses.replace(run_config.eval, methods=("agent", "random"))
    tools = evaluate.tools_of(dataclasses.replace(run_config, search=search, eval=section), [])
    assert {method: tools[method].search(["Berlin"], 1) for method in rows} == {
        method: [[passage]] for method, passage in rows.items()
    }


def test_an_evaluation_that_another_process_makes_is_left_alone(run_config, tmp_path):
    cfg = dataclasses.replace(run_config, workdir=str(tmp_path))
    with held(tmp_path) as other, pytest.raises(BeingWrittenError, match=f"process {other.pid} on"):
        evaluate.run(cfg)
    assert [p.name for p in tmp_path.iterdir()] == [".lock"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"suites": ("ramps",)}, r"suites has 'ramps'; did you mean ramp\?; .* is NAME=PATH"),
        ({"suites": ("ramp", "ramp=x")}, r"suites has 'ramp' twice"),
        ({"suites": ("hotpotqa=",)}, r"suites has 'hotpotqa=', which is not NAME=PATH"),
        ({"methods": ("nosearch",)}, r"config\.eval\.methods has 'nosearch'; .*no_search"),
        (
            {"suite_examples": ("question=3",)},
            r"suite_examples has 'question'; did you mean questi",
        ),
        ({"suite_examples": ("ramp:3",)}, r"suite_examples has 'ramp:3'; it must be NAME=NUMBER"),
        (
            {"suites": ("ramp", "source_hidden"), "methods": ("closed_book", "random")},
            r"methods is 'closed_book, random', by which source_hidden is not asked",
        ),
        ({"difficulty": True, "methods": ("rag",)}, r"difficulty is True, and no RAMP suite is as"),
        ({"examples": 0}, r"config\.eval\.examples is 0; it must be at least 1"),
        ({"bootstrap": 0}, r"config\.eval\.bootstrap is 0; it must be at least 1"),
    ],
)
def test_settings_that_cannot_be_are_told(run_config, tmp_path, change, message):
    section = dataclasses.replace(run_config.eval, **change)
    cfg = dataclasses.replace(run_config, workdir=str(tmp_path / "run"), eval=section)
    with pytest.raises(ConfigError, match=message):
        evaluate.run(cfg)
    assert not (tmp_path / "run").exists()


def test_sources_that_cannot_be_hidden_are_refused(run_config, tmp_path):
    ramp = dataclasses.replace(run_config.eval, suites=("ramp",), suite_examples=())
    found = suites.load(ramp, run_config.data)[0].examples[:3]
    other = [dataclasses.replace(e, passage_id=f"wiki-{e.passage_id}") for e in found]
    write_jsonl(tmp_path / "data" / "ramp" / "heldout.jsonl", other)
    cfg = dataclasses.replace(
        run_config,
        workdir=str(tmp_path / "work"),
        data=str(tmp_path / "data"),
        search=dataclasses.replace(run_config.search, exclude_source=True),
        eval=ramp,
    )
    with pytest.raises(SearchError, match="can hide nothing"):
        evaluate.run(cfg)


def test_a_tokenizer_of_another_model_is_refused(run_config, tmp_path):
    model = dataclasses.replace(run_config.model, vocab_size=100)
    with pytest.raises(InitError, match=r"ids up to 511, but config\.model\.vocab_size is 100"):
        evaluate.run(dataclasses.replace(run_config, workdir=str(tmp_path), model=model))


@pytest.mark.slow
@pytest.mark.usefixtures("one_device")
def test_an_evaluation_that_is_told_to_stop_does(run_config, tmp_path, monkeypatch):
    class Stopped(Progress):
        def update(self, done, **figures):
            assert done == 1, "nothing goes on after the first answer"
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(evaluate, "Progress", Stopped)
    few = dataclasses.replace(run_config.rollout, slots=1)
    section = dataclasses.replace(run_config.eval, methods=("agent", "no_search"))
    cfg = dataclasses.replace(run_config, workdir=str(tmp_path), rollout=few, eval=section)
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

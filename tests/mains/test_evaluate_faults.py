"""Faults that meet an evaluation: they cost no item its score, and none is asked twice."""

import collections
import dataclasses
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from masksearch_jax import evaluate
from masksearch_jax.core.config import EvalRun
from masksearch_jax.core.errors import ConfigError
from masksearch_jax.core.jsonl import write_jsonl
from masksearch_jax.core.retrieval import SearchError
from masksearch_jax.core.tokenizer import Vocab
from masksearch_jax.core.types import Passage, QAExample
from masksearch_jax.evals import results, sampling
from masksearch_jax.evals.lost import LostItemsError
from masksearch_jax.ramp.question_files import QuestionsError
from masksearch_jax.search import bm25
from masksearch_jax.search.open import open_tool
from masksearch_jax.testing.services import SearchEndpoint
from tests.agents.scripted_student import scripted
from tests.mains.unsteady_search import Unsteady

RIGHT = "o"  # what the scripted model answers, after a search for "e"
ITEMS = 40


def questions(count):
    """Of ten, six whose answer is the one that the model gives."""
    return [
        QAExample(f"q{i}", "towns", f"Which town is number {i}?", (RIGHT if i % 10 < 6 else "x",))
        for i in range(count)
    ]


@pytest.fixture
def cfg(miniature, tmp_path):
    """Of ITEMS questions, with search alone."""
    c = miniature.cfg
    write_jsonl(tmp_path / "data" / "questions" / "heldout.jsonl", questions(ITEMS))
    return EvalRun(
        workdir=str(tmp_path / "work"),
        data=str(tmp_path / "data"),
        tokenizer=str(miniature.tokenizer),
        init="",
        model=c.model,
        compute=c.compute,
        mesh=c.mesh,
        prompt=c.prompt,
        search=miniature.search,
        rollout=dataclasses.replace(c.rollout, slots=4, max_new_tokens=24),
        eval=dataclasses.replace(
            c.eval, suites=("questions",), methods=("agent",), examples=ITEMS, temperature=0.0
        ),
    )


def evaluating(cfg, **changes):
    return dataclasses.replace(cfg, eval=dataclasses.replace(cfg.eval, **changes))


@pytest.fixture
def run(monkeypatch, miniature, one_device):
    """Runs an evaluation of the scripted model with a tool in place of the configured one."""
    model = scripted(Vocab.load(miniature.tokenizer))

    def run(cfg, tool):
        monkeypatch.setattr(evaluate, "open_tool", lambda search: tool)
        return evaluate.run(cfg, model)["results"]["questions"]["agent"]

    return run


def workdir(cfg, name):
    return Path(cfg.workdir) / name


# ---- the search tool fails


def recall_of(found):
    cell = found["recall"]
    return cell["value"], cell["n"], cell["lost"]


def test_failing_searches_cost_no_item_its_score(run, cfg, tmp_path):
    """A thousand items, a fifth of the searches fail."""
    count = 1000
    write_jsonl(tmp_path / "data" / "questions" / "heldout.jsonl", questions(count))
    cfg = evaluating(cfg, examples=count)
    cfg = dataclasses.replace(cfg, rollout=dataclasses.replace(cfg.rollout, slots=64))
    whole = run(cfg, Unsteady())
    assert recall_of(whole) == (0.6, count, {})
    low, high = whole["recall"]["low"], whole["recall"]["high"]

    again = dataclasses.replace(cfg, workdir=str(tmp_path / "retried"))
    value, scored, lost = recall_of(run(again, Unsteady(0.2)))
    assert low <= value <= high
    assert 0 <= count - scored == lost.get("tool_failure", 0) <= 0.01 * count

    once = evaluating(cfg, retries=0, max_tool_failures=0.3)
    once = dataclasses.replace(once, workdir=str(tmp_path / "once"))
    value, scored, lost = recall_of(run(once, Unsteady(0.2)))
    assert low <= value <= high
    assert lost == {"tool_failure": count - scored}
    assert 150 < count - scored < 250
    found = json.loads(workdir(once, "eval.json").read_text())
    told = results.table(found)
    assert told.endswith(f"questions: n {scored}, without {count - scored} tool_failure")
    failed = found["suites"]["questions"]
    assert failed["lost"] == {"agent": {"tool_failure": count - scored}}
    named = [json.loads(line) for line in workdir(once, "lost.jsonl").read_text().splitlines()]
    rows = workdir(once, "trajectories.jsonl").read_text().splitlines()
    assert len(named) + len(rows) == count
    assert {row["detail"] for row in named} == {"SearchError: scripted failure"}


def test_above_the_share_the_run_fails_and_the_same_command_asks_for_the_rest(run, cfg):
    cfg = evaluating(cfg, retries=1)
    unsteady = Unsteady(0.5, seed=2)
    with pytest.raises(LostItemsError) as error:
        run(cfg, unsteady)
    said = str(error.value)
    kept = workdir(cfg, "trajectories.partial.jsonl").read_text().splitlines()
    lost = ITEMS - len(kept)
    assert 0 < lost < ITEMS / 2
    assert said.startswith(
        f"questions agent: {lost} of 40 items ended for no fault of the model, 2 times each, more "
        "than config.eval.max_tool_failures=0.01 allows: q"
    )
    assert "(tool_failure: SearchError: scripted failure)" in said
    assert not workdir(cfg, "eval.json").exists()
    tool = Unsteady()
    assert recall_of(run(cfg, tool)) == (0.6, ITEMS, {})
    assert tool.calls == lost
    rows = workdir(cfg, "trajectories.jsonl").read_text().splitlines()
    assert set(kept) < set(rows)
    assert {json.loads(r)["example_id"] for r in rows} == {f"q{i}" for i in range(ITEMS)}


def test_a_tool_that_goes_down_stops_the_run(run, cfg, tmp_path, monkeypatch):
    """A few ticks after the sixth item that is lost in a row, of which each loses four more."""
    monkeypatch.setattr(sampling, "OUTAGE", 6)
    monkeypatch.setattr(sampling, "OUTAGE_SECONDS", 0.0)
    count = 120
    write_jsonl(tmp_path / "data" / "questions" / "heldout.jsonl", questions(count))
    cfg = evaluating(cfg, examples=count)
    tool = Unsteady(1.0, sound=20)
    with pytest.raises(LostItemsError, match="items in a row ended for no fault of the model: q"):
        run(cfg, tool)
    assert tool.calls < count
    tool = Unsteady()
    assert recall_of(run(cfg, tool)) == (0.6, count, {})
    assert tool.calls == count - 20


def test_a_tool_that_is_down_is_found_before_anything_is_loaded(cfg, monkeypatch):
    monkeypatch.setattr(evaluate, "initial", None)
    search = dataclasses.replace(
        cfg.search, kind="http", url="http://127.0.0.1:1/retrieve", timeout=2.0
    )
    with pytest.raises(SearchError, match=r"the search tool does not answer: .*refused"):
        evaluate.run(dataclasses.replace(cfg, search=search))
    assert not workdir(cfg, "run.json").exists()


def test_an_evaluation_does_not_go_on_with_another_index_of_its_service(
    cfg, tmp_path, miniature, one_device, monkeypatch
):
    """The index is built anew while the evaluation is stopped, behind the same address."""
    model, rows, make_row = scripted(Vocab.load(miniature.tokenizer)), [], evaluate._row

    def interrupted(*args):
        rows.append(make_row(*args))
        if len(rows) == 8:
            raise KeyboardInterrupt
        return rows[-1]

    one = open_tool(cfg.search)
    bm25.build([Passage("p", "Oslo", "Oslo is a town.")], tmp_path / "other")
    other = bm25.BM25.open(tmp_path / "other")
    with SearchEndpoint(one) as server:
        http = dataclasses.replace(cfg.search, kind="http", url=server.url)
        cfg = dataclasses.replace(cfg, search=http)
        with monkeypatch.context() as patch:
            patch.setattr(evaluate, "_row", interrupted)
            with pytest.raises(KeyboardInterrupt):
                evaluate.run(cfg, model)
        server.tool = other
        said = f"search.url: {server.url!r} searches another index than before"
        with pytest.raises(ConfigError, match=re.escape(said)):
            evaluate.run(cfg, model)
        server.tool = one
        found = evaluate.run(cfg, model)
    assert recall_of(found["results"]["questions"]["agent"]) == (0.6, ITEMS, {})
    assert evaluate.run(cfg, model) == found  # it is finished: its service may have gone
    content = json.loads(workdir(cfg, "run.json").read_text())["content"]
    assert content["search.url"] == one.fingerprint != other.fingerprint


# ---- items that cannot be run


def test_items_that_cannot_be_run_are_left_out_by_name(run, cfg, capsys, tmp_path):
    items = questions(ITEMS)
    items[3] = dataclasses.replace(items[3], question="town " * 3000)
    items[4] = dataclasses.replace(items[4], question="town " * 4000)
    items[7] = dataclasses.replace(items[7], answers=())
    items[8] = dataclasses.replace(items[8], answers=("",))
    items[9] = dataclasses.replace(items[9], id="q2")
    heldout = tmp_path / "data" / "questions" / "heldout.jsonl"
    write_jsonl(heldout, items)
    with pytest.raises(QuestionsError, match=r"3 of 40 rows of .* the first is .*:8: no answers"):
        evaluate.run(cfg)
    write_jsonl(heldout, items[:7])
    with pytest.raises(LostItemsError) as error:
        evaluate.run(cfg)  # random weights would be loaded only now
    said = str(error.value)
    assert said.startswith(
        "questions agent: 2 of 7 items cannot be run, more than config.eval.max_"
    )
    assert re.search(r"q3 \(prompt_too_long: \d{4} tokens; rollout\.max_len is 336\)", said)
    write_jsonl(heldout, items)
    tool = Unsteady()
    found = run(evaluating(cfg, max_bad_fraction=0.1), tool)
    assert "left out 2 items: " in capsys.readouterr().err
    value, scored, lost = recall_of(found)
    assert lost == {"prompt_too_long": 2}
    assert (value, scored) == ((24 - 2) / 35, 35)
    assert tool.calls == 35
    told = json.loads(workdir(cfg, "eval.json").read_text())["suites"]["questions"]
    assert told["left_out"] == {"no answers": 2, "id is there already": 1}
    assert (told["rows"], told["items"]) == (40, 37)


def test_a_suite_without_items_is_named(cfg, tmp_path):
    write_jsonl(tmp_path / "data" / "questions" / "heldout.jsonl", [])
    with pytest.raises(QuestionsError, match=r"questions/heldout\.jsonl holds no questions"):
        evaluate.run(cfg)


# ---- the same command again


def test_of_a_finished_evaluation_the_table_is_printed_and_no_more(run, cfg, monkeypatch):
    found = {"questions": {"agent": run(cfg, Unsteady())}}
    before = workdir(cfg, "trajectories.jsonl").stat().st_mtime_ns
    for name in ("initial", "open_tool", "Vocab", "Engine"):
        monkeypatch.setattr(evaluate, name, None)
    assert evaluate.run(cfg)["results"] == found
    assert workdir(cfg, "trajectories.jsonl").stat().st_mtime_ns == before
    assert evaluate.run(evaluating(cfg, retries=9))["results"] == found  # changes no figure


def test_other_settings_do_not_mix(run, cfg, tmp_path, monkeypatch):
    monkeypatch.setattr(sampling, "OUTAGE", 6)
    monkeypatch.setattr(sampling, "OUTAGE_SECONDS", 0.0)
    with pytest.raises(LostItemsError):
        run(cfg, Unsteady(1.0))
    hotter = evaluating(cfg, temperature=0.5)  # nothing was done yet: it is welcome
    with pytest.raises(LostItemsError):
        run(hotter, Unsteady(1.0, sound=9))
    with pytest.raises(ConfigError, match=r"other settings \(eval\.temperature: 0\.5 → 0\.0\)"):
        run(cfg, Unsteady())
    run(hotter, Unsteady())
    with pytest.raises(ConfigError, match=r"other settings \(eval\.temperature: 0\.5 → 0\.0\)"):
        run(cfg, Unsteady())
    write_jsonl(tmp_path / "data" / "questions" / "heldout.jsonl", questions(ITEMS + 1))
    with pytest.raises(ConfigError, match=r"other settings \(data: .* holds other files than"):
        run(hotter, Unsteady())


# ---- kill -9

CHILD = """
import dataclasses, json, os, sys
import jax
from masksearch_jax import evaluate
from masksearch_jax.core.config import EvalRun
from masksearch_jax.core.schema import to_dataclass
from masksearch_jax.core.tokenizer import Vocab
from masksearch_jax.parallel import sharding
from masksearch_jax.rollout.episode import Rules
from ml_collections import ConfigDict
from masksearch_jax.search import bm25
from masksearch_jax.search.open import open_tool
from masksearch_jax.testing.services import SearchEndpoint
from tests.agents.scripted_student import scripted
from tests.mains.unsteady_search import Unsteady
from tests.mains.unsteady_search import Slow

cfg = to_dataclass(EvalRun, ConfigDict(json.load(open(sys.argv[1]))))
evaluate.make_mesh = lambda config: sharding.make_mesh(config, jax.devices()[:1])
evaluate.open_tool = lambda search: Slow()
opened = Rules.open

def opening(rules, request):
    os.write(3, f"{request.example_id}\\n".encode())
    return opened(rules, request)

Rules.open = opening
print(evaluate.results.table(evaluate.run(cfg, scripted(Vocab.load(cfg.tokenizer)))))
"""


def lines_of(path):
    return path.read_text().splitlines() if path.exists() else []


@pytest.mark.slow  # five processes
def test_five_kills_ask_no_item_again_but_those_in_flight(repository, cfg, tmp_path):
    count = 320
    write_jsonl(tmp_path / "data" / "questions" / "heldout.jsonl", questions(count))
    cfg = evaluating(cfg, examples=count)
    (tmp_path / "cfg.json").write_text(json.dumps(dataclasses.asdict(cfg)))
    asked, said = tmp_path / "asked.txt", tmp_path / "said.txt"

    def start():
        with asked.open("a") as log, said.open("a") as out:
            command = f'exec {sys.executable} -c "$CHILD" {tmp_path / "cfg.json"} 3>&{log.fileno()}'
            return subprocess.Popen(
                ["bash", "-c", command],
                cwd=repository,
                env=os.environ | {"CHILD": CHILD, "PYTHONPATH": str(repository)},
                stdout=out,
                stderr=out,
                pass_fds=[log.fileno()],
            )

    partial = workdir(cfg, "trajectories.partial.jsonl")
    for reached in range(50, 300, 50):
        process = start()
        while len(lines_of(partial)) < reached:
            assert process.poll() is None, said.read_text()
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
    process = start()
    assert process.wait() == 0, said.read_text()
    counts = collections.Counter(lines_of(asked))
    assert counts.keys() == {f"q{i}" for i in range(count)}
    assert sum(counts.values()) - count <= 5 * cfg.rollout.slots
    rows = [json.loads(line) for line in lines_of(workdir(cfg, "trajectories.jsonl"))]
    assert sorted(r["example_id"] for r in rows) == sorted(f"q{i}" for i in range(count))
    assert said.read_text().splitlines()[-2].split()[:2] == ["agent", "0.600"]
    before = len(lines_of(asked))
    assert start().wait() == 0
    assert len(lines_of(asked)) == before

"""What is made of an evaluation: paired differences, verdicts, leakage, difficulty."""

import dataclasses
import json
import xml.etree.ElementTree as ET
from collections import Counter

import pytest

from masksearch_jax import evaluate
from masksearch_jax.agents.judge import JudgeError
from masksearch_jax.core.config import EvalRun
from masksearch_jax.core.errors import ConfigError, UserError
from masksearch_jax.core.jsonl import write_jsonl
from masksearch_jax.core.llm_config import JudgeConfig
from masksearch_jax.core.tokenizer import Vocab
from masksearch_jax.core.types import Passage, QAExample
from masksearch_jax.evals import results
from masksearch_jax.evals.lost import LostItemsError
from masksearch_jax.testing.services import Answer, Endpoint
from masksearch_jax.viewer import evaluations, load
from tests.agents.scripted_student import scripted
from tests.mains.unsteady_search import Unsteady

RIGHT = "o"  # what the scripted model answers
ITEMS = 10


def questions():
    """Six of ten have the answer that the model gives."""
    return [
        QAExample(f"q{i}", "towns", f"Which town is number {i}?", (RIGHT if i < 6 else "x",))
        for i in range(ITEMS)
    ]


@pytest.fixture
def cfg(miniature, tmp_path, monkeypatch, one_device):
    c = miniature.cfg
    write_jsonl(tmp_path / "towns.jsonl", questions())
    monkeypatch.setattr(evaluate, "open_tool", lambda search: Unsteady())
    return EvalRun(
        workdir=str(tmp_path / "run"),
        data="",
        tokenizer=str(miniature.tokenizer),
        model=c.model,
        compute=c.compute,
        mesh=c.mesh,
        prompt=c.prompt,
        search=miniature.search,
        rollout=dataclasses.replace(c.rollout, slots=4, max_new_tokens=24),
        eval=dataclasses.replace(
            c.eval, suites=(f"towns={tmp_path / 'towns.jsonl'}",), methods=("agent",),
            examples=ITEMS, bootstrap=50, temperature=0.0,
        ),
    )  # fmt: skip


def asking(cfg, **changes):
    return dataclasses.replace(cfg, eval=dataclasses.replace(cfg.eval, **changes))


def run(cfg):
    return evaluate.run(cfg, scripted(Vocab.load(cfg.tokenizer)))


# ---- measures of users


def test_a_users_measure_is_added_compared_and_shown(cfg, tmp_path):
    """To a finished evaluation; of the two the second alone is told by another function."""
    own, other = "tests.evals.own_metrics", dataclasses.replace(cfg, workdir=str(tmp_path / "two"))
    first = run(cfg)
    assert "metrics" not in first
    run(asking(other, metrics=(f"{own}:of_few",)))
    path = tmp_path / "two" / "trajectories.jsonl"
    path.write_text(path.read_text().replace('"half": 0.5', '"half": 0.25'))
    found = run(asking(cfg, metrics=(f"{own}:of_few", f"{own}:opened"), compare=other.workdir))
    assert found["provenance"] == first["provenance"]
    apart = found["compare"]["differences"]["towns"]["agent"]
    assert apart["half"] == {"value": 0.25, "low": 0.25, "high": 0.25, "n": 4}
    assert apart.keys() - first["results"]["towns"]["agent"].keys() == {"half", "ids"}
    assert json.loads((tmp_path / "run" / "eval.json").read_text()) == found
    told = results.table(found).splitlines()
    assert told[-6:-3] == [f"opened by {own}:opened:", *told[-5:-3]]
    assert told[-4] == "agent  1.000 [1.000, 1.000]"
    (entries, _) = evaluations.read(load.read_run(tmp_path / "run", "run"), 0)
    assert entries[0]["metrics"]["half"] == [0.5, 0.5, 0.5, 4]
    with pytest.raises(ConfigError, match=r"eval\.metrics is 'nowhere:f', but there is no module"):
        run(asking(cfg, metrics=("nowhere:f",)))


# ---- paired differences


def test_a_finished_evaluation_is_compared_with_another(cfg, tmp_path):
    run(cfg)
    other = dataclasses.replace(cfg, workdir=str(tmp_path / "other"))
    run(asking(other, examples=5))
    path = tmp_path / "other" / "trajectories.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    for row in rows[:2]:
        row["scores"]["recall"] = 1.0 - row["scores"]["recall"]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = run(asking(cfg, compare=str(tmp_path / "other")))
    cell = found["compare"]["differences"]["towns"]["agent"]["recall"]
    before = [1.0 - row["scores"]["recall"] for row in rows[:2]]
    assert cell["n"] == 5
    assert cell["value"] == pytest.approx(sum(2 * b - 1 for b in before) / 5)
    assert json.loads((tmp_path / "run" / "eval.json").read_text()) == found
    told = results.table(found).splitlines()
    assert told[-3] == f"paired differences to {tmp_path / 'other'}:"
    assert told[-1].split()[:2] == ["agent", f"{cell['value']:+.3f}"]


def test_what_cannot_be_compared_is_refused(cfg, tmp_path):
    with pytest.raises(ConfigError, match=r"compare is '.*nowhere', which holds no eval\.json"):
        run(asking(cfg, compare=str(tmp_path / "nowhere")))
    other = dataclasses.replace(cfg, workdir=str(tmp_path / "other"))
    write_jsonl(tmp_path / "others.jsonl", questions()[1:])
    run(asking(other, suites=(f"towns={tmp_path / 'others.jsonl'}",)))
    with pytest.raises(UserError, match=r"the suite towns of .* is of another file"):
        run(asking(cfg, compare=other.workdir))
    run(asking(dataclasses.replace(cfg, workdir=str(tmp_path / "third")), compare=""))
    named = asking(cfg, suites=(f"cities={tmp_path / 'towns.jsonl'}",))
    named = dataclasses.replace(named, workdir=str(tmp_path / "fourth"))
    with pytest.raises(UserError, match="there is nothing to compare"):
        run(asking(named, compare=str(tmp_path / "third")))


# ---- the judge


def verdict(request):
    """Finds every answer right but that to question 1; of 9 what it says cannot be read."""
    asked = str(request["messages"])
    if "number 9?" in asked:
        return Answer("Hm.")
    said = "incorrect" if "number 1?" in asked else "correct"
    return Answer(json.dumps({"reason": "so", "verdict": said}))


def judging(cfg, endpoint, tmp_path, **changes):
    settings = {"retries": 0, "backoff": 0.0, "cache": str(tmp_path / "judge.sqlite")} | changes
    return dataclasses.replace(cfg, judge=JudgeConfig(base_url=endpoint.url, **settings))


def test_a_judge_scores_answers_once(cfg, tmp_path):
    with Endpoint(verdict) as endpoint:
        found = run(judging(cfg, endpoint, tmp_path))
        assert run(judging(cfg, endpoint, tmp_path)) == found
        assert len(endpoint.requests) == ITEMS
        assert all(r["temperature"] == 0.0 for r in endpoint.requests)
    cell = found["results"]["towns"]["agent"]["judge"]
    assert (cell["value"], cell["n"], cell["unreadable"]) == (8 / 9, ITEMS - 1, 1)
    # em says 1 of 0 to 5 and 0 of the others: it agrees on 0 and 2 to 5 alone.
    assert cell["agreement"]["value"] == pytest.approx(5 / 9)
    rows = map(json.loads, (tmp_path / "run" / "verdicts.jsonl").read_text().splitlines())
    assert Counter(r["verdict"] for r in rows) == {"correct": 8, "incorrect": 1, "unreadable": 1}
    assert found["judge"]["model"] == JudgeConfig().model


def test_a_second_judge_stands_beside_the_first(cfg, tmp_path):
    """Of the same trajectories: a judge's name and address bind none."""
    with Endpoint(verdict) as endpoint:
        first = run(judging(cfg, endpoint, tmp_path))
    before = (tmp_path / "run" / "trajectories.jsonl").read_bytes()

    def strict(request):
        said = "correct" if "number 0?" in str(request["messages"]) else "incorrect"
        return Answer(json.dumps({"reason": "so", "verdict": said}))

    with Endpoint(strict) as endpoint:
        found = run(judging(cfg, endpoint, tmp_path, model="strict"))
        run(judging(cfg, endpoint, tmp_path, model="strict"))  # in place of its own
    assert (tmp_path / "run" / "trajectories.jsonl").read_bytes() == before
    values = {j["model"]: j["results"]["towns"]["agent"]["value"] for j in found["judges"]}
    assert values == {JudgeConfig().model: 8 / 9, "strict": 0.1}
    assert found["judges"][0] == first["judges"][0]
    assert found["judge"]["model"] == "strict"
    assert found["results"]["towns"]["agent"]["judge"]["value"] == 0.1
    rows = map(json.loads, (tmp_path / "run" / "verdicts.jsonl").read_text().splitlines())
    assert Counter((r["model"], r["verdict"]) for r in rows) == {
        (JudgeConfig().model, "correct"): 8,
        (JudgeConfig().model, "incorrect"): 1,
        (JudgeConfig().model, "unreadable"): 1,
        ("strict", "correct"): 1,
        ("strict", "incorrect"): ITEMS - 1,
    }
    told = results.table(found).splitlines()
    at = told.index(f"judged right by {JudgeConfig().model}:")
    assert told[at + 2].startswith("agent  0.889 [")
    assert told[at + 2].endswith("], em agrees 0.556, unreadable 1")
    at = told.index("judged right by strict:")
    assert told[at + 2].endswith("em agrees 0.500, unreadable 0")


def test_judges_of_one_name_and_other_weights_stand_side_by_side(cfg, tmp_path):
    wrong = json.dumps({"reason": "so", "verdict": "incorrect"})

    def strict(request):
        return verdict(request) if "number 0?" in str(request["messages"]) else Answer(wrong)

    with Endpoint(verdict, {"hf": "1"}) as one, Endpoint(strict, {"hf": "2"}) as other:
        run(judging(cfg, one, tmp_path, model="hf"))
        for _ in range(2):
            found = run(judging(cfg, other, tmp_path, model="hf"))
        assert (len(one.requests), len(other.requests)) == (ITEMS, ITEMS)
    judges = [(j["model"], j["fingerprint"]) for j in found["judges"]]
    assert judges == [("hf", "1"), ("hf", "2")]
    values = [j["results"]["towns"]["agent"]["value"] for j in found["judges"]]
    assert values == [8 / 9, 0.1]
    assert found["judge"]["fingerprint"] == "2"


def test_a_judge_that_is_down_scores_nothing(cfg, tmp_path):
    def sick(request):
        return Answer(status=500) if "number 3?" in str(request["messages"]) else verdict(request)

    with Endpoint(sick) as endpoint, pytest.raises(LostItemsError, match="no reply of the judge"):
        run(judging(cfg, endpoint, tmp_path))
    unjudged = json.loads((tmp_path / "run" / "eval.json").read_text())
    assert "judge" not in unjudged["results"]["towns"]["agent"]
    with Endpoint(verdict) as endpoint:
        found = run(judging(cfg, endpoint, tmp_path))
        assert len(endpoint.requests) == 1  # the others are paid for
        assert found["results"]["towns"]["agent"]["judge"]["n"] == ITEMS - 1  # one cannot be read
    with Endpoint(Answer(status=401)) as endpoint, pytest.raises(JudgeError, match="401"):
        run(judging(cfg, endpoint, tmp_path, cache=str(tmp_path / "new.sqlite")))
    with Endpoint(Answer("It is.")) as endpoint, pytest.raises(JudgeError, match="no verdict"):
        run(judging(cfg, endpoint, tmp_path, cache=str(tmp_path / "new.sqlite")))
    own = dataclasses.replace(cfg, judge=JudgeConfig(own_model=True))
    with pytest.raises(ConfigError, match=r"config\.judge\.own_model is for training"):
        run(own)


# ---- leakage


def test_items_that_were_trained_on_are_told_apart(cfg, tmp_path):
    rows = questions()
    rows[0] = dataclasses.replace(rows[0], titles=("Oslo",))
    long = "one two three four five six seven eight nine ten eleven twelve thirteen fourteen"
    rows[7] = dataclasses.replace(rows[7], question=f"Which of {long}?")
    write_jsonl(tmp_path / "towns.jsonl", rows)
    trained_on = [Passage("a", "oslo", "Nothing."), Passage("b", "Numbers", f"It is {long}.")]
    write_jsonl(tmp_path / "passages.jsonl", trained_on)
    found = run(asking(cfg, leakage=str(tmp_path / "passages.jsonl")))
    told = found["leakage"]["suites"]["towns"]
    assert (told["items"], told["shared"]) == (ITEMS, {"title": 1, "text": 1})
    assert told["shared_ids"] == ["q0", "q7"]
    cell = told["without"]["agent"]["recall"]
    assert (cell["value"], cell["n"]) == (5 / 8, 8)
    head, left_out, agent = results.table(found).splitlines()[-3:]
    assert (head.split(), left_out.split()) == (["towns"], ["2", "items", "left", "out"])
    assert agent.startswith("agent  0.625 [")
    with pytest.raises(ConfigError, match=r"eval\.leakage is '.*nowhere', which is not there"):
        run(asking(cfg, leakage=str(tmp_path / "nowhere")))
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match=r"leakage is '.*empty', which holds no text that was tr"):
        run(asking(cfg, leakage=str(tmp_path / "empty")))


# ---- difficulty


@pytest.mark.slow
@pytest.mark.usefixtures("one_device")
def test_what_makes_a_span_hard(miniature, cfg, tmp_path, monkeypatch, capsys):
    monkeypatch.undo()
    monkeypatch.setattr(evaluate, "make_mesh", lambda config: one_device_mesh(config))
    cfg = dataclasses.replace(cfg, data=str(miniature.data), search=miniature.search)
    cfg = asking(cfg, suites=("ramp",), examples=6, difficulty=True)
    found = evaluate.run(cfg)
    rows = (tmp_path / "run" / "trajectories.jsonl").read_text().splitlines()
    spans = [s for row in map(json.loads, rows) for s in row["example"]["spans"]]
    bins = found["difficulty"]["ramp"]
    assert bins.keys() == {"words", "type", "rarity", "perplexity"}
    for cells in bins.values():
        assert sum(cell["n"] for cell in cells) == len(spans)
        assert all(0 <= c["source_first"]["value"] <= c["source_found"]["value"] for c in cells)
    assert {c["label"]: c["n"] for c in bins["type"]} == Counter(s["type"] for s in spans)
    assert max(c["source_found"]["value"] for c in bins["words"]) > 0.5
    picture = ET.parse(tmp_path / "run" / "difficulty.ramp.svg").getroot()
    shown = [t.text for t in picture.iter("{http://www.w3.org/2000/svg}text")]
    assert {"words", "type", "rarity", "perplexity", "span recall"} <= set(shown)
    assert "ramp, by what makes a span hard:" in capsys.readouterr().out


def one_device_mesh(config):
    import jax

    from masksearch_jax.parallel import sharding

    return sharding.make_mesh(config, jax.devices()[:1])

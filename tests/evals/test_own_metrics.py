"""Measures by a user's functions: added to trajectories and results, or nothing is changed."""

import copy
import json

import numpy as np
import pytest
from etils import epath

from masksearch_jax.core.errors import ConfigError
from masksearch_jax.core.types import QAExample, Segment, Trajectory, Turn, to_json
from masksearch_jax.evals import own_metrics, results, rows
from masksearch_jax.evals.own_metrics import MetricError
from masksearch_jax.evals.results import Bootstrap

OWN = "tests.evals.own_metrics"
HOW = Bootstrap(50, 0)
PLACES = (("towns", "agent"), ("towns", "closed_book"))


def line(number, method):
    """Of an item that found its source by the second search, where it is even."""
    opening = "<answer>" if method == "closed_book" else ""
    none = np.zeros(0)
    turns = tuple(
        Turn((query,), ids, ids, 0.0) for query, ids in (("a", ("x",)), ("b", ("s", "x")))
    )
    said = Segment("policy", f"{'' if opening else '<answer>'}Oslo</answer>")
    status = "answered" if number else "out_of_tokens"
    ids = np.arange(number, dtype=np.int32)
    searches = turns[: 2 - number % 2]
    one = Trajectory(f"q{number}", 0, ids, none, none, none, 0, (said,), searches, status)
    example = QAExample(f"q{number}", "towns", "Which?", ("Oslo",), gold=("s",))
    scores = {"recall": number / 8, "em": 1.0}
    made = {"suite": "towns", "method": method, "scores": scores, "opening": opening}
    made["answer"] = "Oslo"
    return made | to_json(one) | {"example": to_json(example), "tokens": []}


@pytest.fixture
def finished(tmp_path):
    """The trajectories of a finished evaluation, and its eval.json."""
    path = epath.Path(tmp_path / "trajectories.jsonl")
    lines = [line(number, method) for _, method in PLACES for number in range(8)]
    path.write_text("".join(json.dumps(one) + "\n" for one in lines))
    summary = {"results": {"towns": {}}, "breakdown": {"towns": {}}}
    for (suite, method), items in rows.by_place(rows.Rows(path)).items():
        cells = results.summarise([i.scores for i in items], HOW, {"tool_failure": 1})
        summary["results"][suite][method] = cells
        summary["breakdown"][suite][method] = results.breakdown(items, HOW)
    return path, summary


def added(path, summary, *names):
    found = copy.deepcopy(summary)
    own_metrics.add([name if ":" in name else f"{OWN}:{name}" for name in names], path, found, HOW)
    return found


def test_measures_stand_beside_those_that_there_are(finished):
    path, summary = finished
    before = [json.loads(one) for one in path.read_text().splitlines()]
    found = added(path, summary, "of_few", "opened")
    for suite, method in PLACES:
        cells, old = found["results"][suite][method], summary["results"][suite][method]
        assert cells.keys() - old.keys() == {"half", "ids", "opened"}
        assert {name: cells[name] for name in old} == old
        assert cells["half"] == {"value": 0.5, "low": 0.5, "high": 0.5, "n": 4} | {
            "lost": {"tool_failure": 1}
        }
        ids = results.summarise([{"ids": float(i)} for i in range(8)], HOW, {"tool_failure": 1})
        assert cells["ids"] == ids["ids"]
        assert cells["opened"]["value"] == 1.0  # whoever wrote the tag of the answer
        by_status = found["breakdown"][suite][method]["status"]
        assert by_status["out_of_tokens"].keys() == {"recall", "em", "half", "ids", "opened"}
        assert by_status["answered"]["half"] == {"value": 0.5, "low": 0.5, "high": 0.5, "n": 3}
    assert found["metrics"] == {
        "half": f"{OWN}:of_few", "ids": f"{OWN}:of_few", "opened": f"{OWN}:opened"
    }  # fmt: skip
    for row, old in zip(map(json.loads, path.read_text().splitlines()), before, strict=True):
        number = len(old["ids"])
        own = ({"half": 0.5} if number < 4 else {}) | {"ids": float(number), "opened": 1.0}
        assert row == old | {"scores": old["scores"] | own}


def test_the_example_of_the_documents(finished):
    path, summary = finished
    found = added(path, summary, "examples.my_metric:searching")
    cells = found["results"]["towns"]["agent"]
    told = {name: (cells[name]["value"], cells[name]["n"]) for name in found["metrics"]}
    assert told == {"passages_shown": (1.5, 8), "source_search": (2.0, 4)}


def test_measures_asked_for_again_take_the_place_of_their_own(finished, monkeypatch):
    path, summary = finished
    first = added(path, summary, "of_few", "opened")
    text = path.read_text()
    assert added(path, first, "of_few") == first
    assert sorted(path.read_text()) == sorted(text)
    monkeypatch.setattr("tests.evals.own_metrics.of_few", lambda example, trajectory: {"third": 3})
    found = added(path, first, "of_few")
    assert found["metrics"] == {"opened": f"{OWN}:opened", "third": f"{OWN}:of_few"}
    cells = found["results"]["towns"]["agent"]
    by_status = found["breakdown"]["towns"]["agent"]["status"]["answered"]
    scores = json.loads(path.read_text().partition("\n")[0])["scores"]
    for has in (cells, by_status, scores):
        assert has.keys() == {"recall", "em", "opened", "third"}


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("raises", r"for towns agent q0 raised KeyError: 'town'; the evaluation is kept"),
        ("late", r"for towns agent q7 raised RuntimeError: no more"),
        ("no_number", r"gave no_number as None \(NoneType\), which is no number"),
        ("infinite", r"gave ratio as inf, which is not finite"),
        ("ours", r"gave recall, which evaluate measures itself; give it another name"),
        ("a_tools", r"gave calls_date, which evaluate measures itself"),
        ("unnamed", r"gave a measure the name 'two words'; it must be of letters"),
        ("same", rf"{OWN}:same'.* gave opened, as '{OWN}:opened' does"),
    ],
)
def test_a_measure_that_fails_changes_nothing(finished, name, said):
    path, summary = finished
    kept, found = path.read_bytes(), copy.deepcopy(summary)
    with pytest.raises(MetricError, match=said):
        own_metrics.add([f"{OWN}:opened", f"{OWN}:{name}"], path, found, HOW)
    assert [p.name for p in path.parent.iterdir()] == ["trajectories.jsonl"]
    assert (path.read_bytes(), found) == (kept, summary)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("no_such", r"module 'tests.evals.own_metrics' has no 'no_such'"),
        ("NOT_A_FUNCTION", r"which is float, not a function"),
        ("of_one", r"cannot be called as of_one\(example, trajectory\)"),
        ("later", r"an async function; it must be an ordinary one"),
    ],
)
def test_what_cannot_measure_is_refused_before_anything_is_asked(name, said):
    with pytest.raises(ConfigError, match=said):
        own_metrics.functions([f"{OWN}:{name}"])

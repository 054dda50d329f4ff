"""Suites: files of another kind than a suite's name says."""

import json
import re

import pytest

from masksearch_jax.core.errors import ConfigError, UserError
from masksearch_jax.core.eval_config import EvalConfig
from masksearch_jax.evals import metrics, suites


@pytest.mark.parametrize("name", ["ramp", "source_hidden"])
def test_a_file_of_questions_under_a_name_of_ramp_is_one_line_with_the_choices(tmp_path, name):
    path = tmp_path / "nq.jsonl"
    path.write_text(json.dumps({"question": "Who?", "answers": ["Ann"]}) + "\n")
    with pytest.raises(ConfigError) as error:
        suites.load(EvalConfig(suites=(f"{name}={path}",)), "")
    assert re.fullmatch(
        rf"config\.eval\.suites has {name}={path}, which is no file of RAMP examples \({path}:1: "
        r"not a RampExample: [^\n]*\); a suite named ramp or source_hidden must be one that "
        r"build_ramp wrote, such as DATA/ramp/heldout\.jsonl; a file of questions takes another "
        r"name",
        str(error.value),
    )


def test_a_suite_of_which_nothing_was_held_out_is_named_with_the_choices(tmp_path):
    asked = EvalConfig(suites=("ramp", "questions"))

    def said():
        with pytest.raises(UserError) as error:
            suites.load(asked, str(tmp_path))
        return str(error.value)

    unbuilt = "the folder has no counts.json, which build_ramp writes"
    assert f"by 'ramp': {unbuilt} ({tmp_path}/counts.json)" in said()
    assert "as in --config.eval.suites=NAME=PATH, or name" in said()
    (tmp_path / "counts.json").write_text("{}")
    (tmp_path / "ramp").mkdir()
    (tmp_path / "ramp" / "heldout.jsonl").write_text("")
    assert said() == (
        f"{tmp_path}/questions/heldout.jsonl is not there, which config.eval.suites asks for by "
        f"'questions': build_ramp held out no such example ({tmp_path}/counts.json); leave the "
        "suite out, as in --config.eval.suites=ramp, or name a file of yours, as in NAME=PATH"
    )


def aliased(tmp_path, *lines):
    """A suite of 2WikiMultihopQA's form, and a file of aliases of these lines."""
    row = {"_id": "x", "question": "Which country?", "evidences": [], "answer": "United States"}
    rows = [row | {"answer_id": "Q30"}, row | {"_id": "y"}, row | {"_id": "z", "answer_id": "Q1"}]
    (tmp_path / "dev.json").write_text(json.dumps(rows))
    (tmp_path / "id_aliases.json").write_text("\n".join(lines) + "\n")
    asked = (f"2wiki_dev={tmp_path / 'dev.json'}",)
    return suites.load(EvalConfig(suites=asked, aliases=str(tmp_path / "id_aliases.json")), "")[0]


def test_other_names_of_2wikis_answers_are_accepted(tmp_path):
    names = {"Q_id": "Q30", "aliases": ["USA", "United States"], "demonyms": ["American"]}
    other = {"Q_id": "Q2", "aliases": ["Earth"], "demonyms": []}
    suite = aliased(tmp_path, json.dumps(names), json.dumps(other))
    known = ("United States",)
    assert [e.answers for e in suite.examples] == [(*known, "USA", "American"), known, known]
    assert suite.renamed == 1
    first, second, _ = suite.examples
    rules = suite.rules(first)
    assert metrics.answer_metrics("the USA", first.answers, rules)["em"] == 1.0
    assert metrics.answer_metrics("the USA", second.answers, rules)["em"] == 0.0


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('{"Q_id": "Q2", "aliases": ["Earth"], "demonyms": []}', "has no name of an answer of 2w"),
        ('{"Q30": ["USA"]}', r"line 1 is not as those of .*KeyError\('aliases'\)"),
        ('{"Q_id": "Q30", "aliases": "USA", "demonyms": []}', "line 1 .*'USA' is no list of texts"),
        ("[", "line 1 is not as those of .*it must be an object of Q_id, aliases and demonyms"),
    ],
)
def test_aliases_that_name_nothing_are_refused(tmp_path, line, said):
    with pytest.raises(ConfigError, match=said):
        aliased(tmp_path, line)
    (tmp_path / "id_aliases.json").unlink()
    nowhere = EvalConfig(suites=(f"2wiki={tmp_path / 'dev.json'}",), aliases=f"{tmp_path}/none")
    with pytest.raises(
        ConfigError, match=r"cannot read config\.eval\.aliases=.*none: No such file"
    ):
        suites.load(nowhere, "")


def test_an_evaluation_of_no_suite_is_refused_with_the_choices():
    with pytest.raises(ConfigError) as error:
        suites.paths(EvalConfig(suites=()), "data")
    assert str(error.value) == (
        "config.eval.suites is empty; it must name some of ramp, questions, source_hidden, "
        "statements, or files of questions as NAME=PATH"
    )

"""Suites: files of another kind than a suite's name says."""

import json
import re

import pytest

from masksearch_jax.core.errors import ConfigError, UserError
from masksearch_jax.core.eval_config import EvalConfig
from masksearch_jax.evals import suites


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
    with pytest.raises(UserError) as error:
        suites.load(EvalConfig(suites=("questions",)), str(tmp_path))
    assert str(error.value) == (
        f"{tmp_path}/questions/heldout.jsonl is not there, which config.eval.suites asks for by "
        f"'questions': build_ramp held out no such example ({tmp_path}/counts.json); leave the "
        "suite out, as in --config.eval.suites=ramp, or name a file of yours, as in NAME=PATH"
    )


def test_an_evaluation_of_no_suite_is_refused_with_the_choices():
    with pytest.raises(ConfigError) as error:
        suites.paths(EvalConfig(suites=()), "data")
    assert str(error.value) == (
        "config.eval.suites is empty; it must name some of ramp, questions, source_hidden, "
        "statements, or files of questions as NAME=PATH"
    )

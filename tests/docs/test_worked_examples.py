"""The documentation's build runs the worked examples: how it compares, and what the page shows."""

import re
import sys

import pytest

from tests.docs.shown import ROOT

sys.path.insert(0, str(ROOT / "docs"))

import check_examples

FOLDER = ROOT / "examples" / "worked"


@pytest.mark.parametrize(
    ("said", "within", "agrees"),
    [
        ("step 1: reward 0.52\n", None, False),
        ("step 1: reward 0.50\n", None, True),
        ("step 1: reward 0.52\n", 0.05, True),
        ("step 1: reward 0.66\n", 0.05, False),  # neither near nor within a fifth
        ("step 1: reward 0.59\n", 0.0, True),  # within a fifth
        ("step 1:  reward 0.50\n", 0.05, True),
        ("step 1: rewards 0.50\n", 0.05, False),
        ("step 1: reward 0.50\nstep 2: reward 0.50\n", 0.05, False),
        ("step 1: reward -0.50\n", 0.05, False),
    ],
)
def test_outputs_agree_in_words_and_nearly_in_numbers(said, within, agrees):
    assert check_examples.agree(said, "step 1: reward 0.50\n", within) == agrees


def script(tmp_path, monkeypatch, text, shown):
    """A worked example of its own package, as the only one."""
    folder = tmp_path / "examples" / "worked"
    folder.mkdir(parents=True)
    (folder / "mine.py").write_text(text)
    (folder / "mine.txt").write_text(shown)
    for name, value in {"ROOT": tmp_path, "FOLDER": folder, "NAMES": ["mine"]}.items():
        monkeypatch.setattr(check_examples, name, value)


@pytest.mark.parametrize(
    ("text", "status", "said"),
    [
        ("print('two', 1 + 1)", 0, ""),
        ("print('two', 1 + 2)", 1, "-two 2\n+two 3\n"),
        ("raise SystemExit('no index')", 1, "mine ended with 1:\nno index\n"),
    ],
)
def test_an_example_that_prints_something_else_is_named(
    text, status, said, tmp_path, monkeypatch, capfd
):
    script(tmp_path, monkeypatch, text, "two 2\n")
    assert check_examples.main() == status
    out, err = capfd.readouterr()
    assert re.fullmatch(r"mine: \d+ s\n", out)
    assert said in err if said else not err


def test_an_example_that_hangs_is_named(tmp_path, monkeypatch, capsys):
    script(tmp_path, monkeypatch, "import time\ntime.sleep(60)", "")
    monkeypatch.setattr(check_examples, "SECONDS", 0.01)
    assert check_examples.main() == 1
    assert capsys.readouterr().err == "mine has not ended after 0.01 s\n"


def test_every_tolerance_is_of_an_example():
    assert check_examples.WITHIN.keys() <= set(check_examples.NAMES)


def test_a_plan_fits_a_terminal():
    lines = (FOLDER / "read_plan.txt").read_text(encoding="utf-8").splitlines()
    assert [line for line in lines if len(line) > 80] == []


def test_the_reward_of_ten_steps_rises():
    """On the page, whose figures a run comes near to."""
    rows = (FOLDER / "ten_steps.txt").read_text(encoding="utf-8").splitlines()[1:]
    rewards = [float(row.split()[1]) for row in rows]
    assert len(rewards) == 10
    assert rewards[-1] > rewards[0] + 0.3


def test_the_page_shows_every_example():
    page = (ROOT / "docs" / "worked_examples.md").read_text(encoding="utf-8")
    shown = set(re.findall(r"literalinclude\} \.\./examples/worked/(\w+\.\w+)", page))
    assert shown >= {f"{name}.txt" for name in check_examples.NAMES}
    assert {name for name in shown if not (FOLDER / name).is_file()} == set()

"""The worked examples print what their page shows."""

import importlib
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "examples" / "worked"
NAMES = sorted(p.stem for p in FOLDER.glob("*.py") if p.stem != "__init__")
_NUMBER = re.compile(r"[-+]?\d+(?:\.\d+)?")
# How far a printed number may lie from the page's: processors round otherwise, and where tokens are
# sampled by a model that is trained, a last bit may choose another one.
WITHIN = {"token_by_token": 0.011, "ten_steps": 0.15}
SLOW = {"ten_steps", "token_by_token"}


def shape(text: str) -> list[list[str]]:
    """The words of each line, with # for each number."""
    return [_NUMBER.sub("#", line).split() for line in text.splitlines()]


def numbers(text: str) -> list[float]:
    return [float(found) for found in _NUMBER.findall(text)]


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=pytest.mark.slow) if n in SLOW else n for n in NAMES],
)
def test_it_prints_what_the_page_shows(name, capsys, one_device, optimised):
    importlib.import_module(f"examples.worked.{name}").main()
    said, kept = capsys.readouterr().out, (FOLDER / f"{name}.txt").read_text(encoding="utf-8")
    if name not in WITHIN:
        assert said == kept
        return
    assert shape(said) == shape(kept)
    assert numbers(said) == pytest.approx(numbers(kept), abs=WITHIN[name], rel=0.2)


def test_a_plan_fits_a_terminal():
    lines = (FOLDER / "read_plan.txt").read_text(encoding="utf-8").splitlines()
    assert [line for line in lines if len(line) > 80] == []


def test_the_reward_of_ten_steps_rises():
    """On the page, whose figures the run above has too."""
    rows = (FOLDER / "ten_steps.txt").read_text(encoding="utf-8").splitlines()[1:]
    rewards = [float(row.split()[1]) for row in rows]
    assert len(rewards) == 10
    assert rewards[-1] > rewards[0] + 0.3


def test_the_page_shows_every_example():
    page = (ROOT / "docs" / "worked_examples.md").read_text(encoding="utf-8")
    shown = set(re.findall(r"literalinclude\} \.\./examples/worked/(\w+\.\w+)", page))
    assert shown >= {f"{name}.txt" for name in NAMES}
    assert {name for name in shown if not (FOLDER / name).is_file()} == set()

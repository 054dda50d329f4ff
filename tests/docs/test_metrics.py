"""docs/metrics.md has a row for each name that a log or table prints, read from what writes it."""

import ast
import functools
import re
from pathlib import Path

import pytest

from masksearch_jax.evals import iterations, scores
from masksearch_jax.rl.reward_figures import KINDS
from masksearch_jax.rollout.stats import EngineStats
from masksearch_jax.runtime import goodput
from masksearch_jax.training import alarms
from masksearch_jax.viewer import names

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "masksearch_jax"
PAGE = (ROOT / "docs" / "metrics.md").read_text(encoding="utf-8")

# Rooms whose functions are known by what they return, as figures by name.
ROOMS = ("data", "rl", "rollout", "training")
FIGURES = re.compile(
    r"\b(dict|Mapping)\[str, (float|jax\.Array|list\[float\]|tuple\[float, \.\.\.\])\]"
    r"|\b(Metrics|Loss|RewardTerms)\b"
)
# Functions that write figures and return something else, or are elsewhere, by module.
WRITERS = {
    "train_sft.py": {"run"},
    "train_dapo.py": {"run"},
    "rl/watch.py": {"look"},
    "runtime/metric_writer.py": {"write"},
    "recipes/stage_folder.py": {"figures"},
}
# Keys of the same functions that are no figures: of checkpoints, sums and the like.
NOT_LOGGED = {
    *("prompts", "sampler", "step_", "watch", "pass_rates", "measured", "data", "extra"),
    *("all_updates", "masked", "samples", "idle", "total"),
}


def told() -> set[str]:
    """The names in the first column of the tables of figures; builds have a test of their own."""
    figures = PAGE.partition("\n## Demonstrations\n")[0]
    rows = re.findall(r"^\|([^|]+)\|", figures, re.MULTILINE)
    return {name for row in rows for name in re.findall(r"`(\w+)`", row)}


def keys(tree: ast.AST) -> set[str]:
    """Written keys of dicts, and of what is assigned by key; `{kind}_…` for each kind."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Dict):
            found += [key for key in node.keys if key is not None]
        if isinstance(node, ast.Subscript) and isinstance(node.ctx, ast.Store):
            found.append(node.slice)
        if isinstance(node, ast.Call) and ast.unparse(node.func).endswith(".setdefault"):
            found.append(node.args[0])
        if isinstance(node, ast.Subscript) and ast.unparse(node.value) == "values":
            found.append(node.slice)
    named = {key.value for key in found if isinstance(key, ast.Constant)}
    for key in found:
        if isinstance(key, ast.JoinedStr) and ast.unparse(key).startswith("f'{kind}"):
            named |= {kind + key.values[1].value for kind in KINDS}
    return {key for key in named if isinstance(key, str)}


def functions(tree: ast.AST) -> list[ast.FunctionDef | ast.AsyncFunctionDef]:
    return [n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)]


def returned(tree: ast.AST) -> set[str]:
    """The keys that functions write which return figures, as their annotation says."""
    found = (f for f in functions(tree) if f.returns and FIGURES.search(ast.unparse(f.returns)))
    return set().union(*map(keys, found))


@functools.cache
def written() -> frozenset[str]:
    """The figures of the trainers."""
    found = set(EngineStats().figures()) | {"step", "lr"}
    for path in (p for room in ROOMS for p in (PACKAGE / room).glob("*.py")):
        found |= returned(ast.parse(path.read_text(encoding="utf-8")))
    for module, own in WRITERS.items():
        defined = functions(ast.parse((PACKAGE / module).read_text(encoding="utf-8")))
        assert own <= {f.name for f in defined}, module
        found |= set().union(*(keys(f) for f in defined if f.name in own))
    return frozenset(found - NOT_LOGGED)


def test_a_function_of_figures_is_found_by_what_it_returns():
    new = """
def one(step: int) -> dict[str, float]:
    return {"a": 1.0}
class Of:
    async def two(self) -> tuple[int, Mapping[str, jax.Array]]:
        found["b"] = 2.0
def three() -> dict[str, int]:
    return {"c": 3}
"""
    assert returned(ast.parse(new)) == {"a", "b"}


def test_the_page_has_every_figure_that_a_trainer_writes():
    found = written()
    assert {"loss", "ramp_reward", "heldout_lost", "kl_penalty", "gate", "step"} <= found
    assert sorted(found - told() - {"tok_s"}) == []


@pytest.mark.parametrize(
    "known",
    [
        {key for group in names.GROUPS.values() for key in group},
        set(names.ITERATIONS) | set(iterations.SHOWN),
        set(names.SCORES),
        {figure for figure, _ in alarms.FIGURES.values()},
        {*scores.RAMP_METRICS, *scores.QA_METRICS, *scores.FANOUTQA_METRICS},
        {*goodput.BUCKETS, "lost", "down", "wall", "goodput", "sessions"},
    ],
    ids=["curves", "iterations", "scores", "alarms", "measures", "goodput"],
)
def test_the_page_has_every_name_of_a_table(known):
    assert known
    assert sorted(known - told()) == []


def test_the_report_has_words_for_every_figure_of_a_curve():
    """Those of the code, of the page, and of what is counted by a number, a kind or a tool."""
    tables = {*names.SCORES, *names.ITERATIONS, *iterations.SHOWN, *goodput.BUCKETS, "alarms"}
    tables |= {"lost", "down", "wall", "goodput", "sessions", "wall_seconds", "peak_memory_bytes"}
    shown = (written() | told()) - tables - {"step", "wall_time", "tok_s", "tokens"}
    assert {"heldout_lost", "refills", "calls_NAME", "heldout_kN_span_recall"} <= shown
    shown = {key.replace("kN", "k2").replace("NAME", "date") for key in shown}
    assert sorted(key for key in shown if names.metric(key)[0] == names.OTHER) == []
    assert names.metric("heldout_k2_span_recall")[1] == "Held-out span recall, 2 masks"
    assert names.metric("reward_my_part") == (
        "Reward and answers", "Reward: my part", "mean per trajectory"
    )  # fmt: skip


def test_the_page_has_every_status():
    assert all(f"`{status}`" in PAGE for status in names.STATUSES)


def test_the_page_names_files_that_there_are():
    files = set(re.findall(r"`(\w+(?:/\w+)*\.py)`", PAGE))
    assert files
    assert all((PACKAGE / file).is_file() for file in files)


def test_a_name_in_a_row_is_one_that_something_writes():
    known = written() | {key for group in names.GROUPS.values() for key in group}
    known |= set(names.ITERATIONS) | set(names.SCORES) | set(iterations.SHOWN)
    known |= {*goodput.BUCKETS, "lost", "down", "wall", "goodput", "sessions"}
    known |= {"heldout_kN_span_recall", "heldout_questions_recall"}  # of rl/heldout.py's kinds
    known |= {"calls_NAME", "failures_NAME", "unreadable_NAME"}  # of each tool
    assert sorted(told() - known) == []

"""The API reference: what the examples import is on it, as the code has it."""

import ast
import dataclasses
import importlib
import inspect
import re
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from masksearch_jax import train_dapo

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "docs"))

import api_reference as reference  # noqa: E402


@pytest.fixture(scope="module")
def page():
    return reference.page()


def test_the_page_has_what_the_examples_import(page):
    missing = []
    for path in sorted((ROOT / "examples").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.ImportFrom) or not node.module.startswith("masksearch_jax"):
                continue
            module = node.module.removeprefix("masksearch_jax").removeprefix(".")
            for name in (alias.name for alias in node.names):
                thing = getattr(importlib.import_module(node.module), name)
                is_config = name.endswith(("Config", "Run"))  # in the configuration's reference
                if not inspect.ismodule(thing) and not is_config:
                    missing += [] if f"### `{module}.{name}`" in page else [f"{path.name}: {name}"]
    assert not missing


def test_the_page_has_what_other_pages_name(page):
    """Classes by their whole name, and functions of modules that a block of Python imports."""
    named = set()
    for path in (ROOT / "docs").glob("*.md"):
        text = path.read_text(encoding="utf-8")
        named |= set(re.findall(r"`masksearch_jax\.((?:\w+\.)+[A-Z]\w+)`", text))
        for block in re.findall(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
            for module, alias in re.findall(r"from masksearch_jax\.(\w+) import (\w+)", block):
                called = re.findall(rf"\b{alias}\.(\w+)\(", block)
                named |= {f"{module}.{alias}.{name}" for name in called}
    assert {"data.tasks.register", "data.agent_lm.AgentLMFeatureConverter"} <= named
    assert [name for name in sorted(named) if f"### `{name}`" not in page] == []


def test_every_entry_says_what_it_is(page):
    entries = page.split("\n### ")[1:]
    assert len(entries) == len(
        [n for ms in reference.OBJECTS.values() for names in ms.values() for n in names.split()]
    )
    for entry in entries:
        title, _, text = entry.partition("\n")
        assert title == "`core.types.Example`" or text.rpartition("```")[2].strip(), title


@dataclasses.dataclass(frozen=True)
class Made:
    """Of `a*` and <b>."""

    name: "str"
    parts: "tuple[int, ...]" = (1, 2)
    scale: "Callable[[], None]" = print

    def grown(self, by: "int") -> "Made":
        """Longer."""

    def _own(self) -> None:
        """Not shown."""


def test_signatures_are_as_the_source_has_them():
    assert reference.signature("Made", Made) == (
        "Made(name: str, parts: tuple[int, ...] = (1, 2), scale: Callable[[], None] = ...)"
    )
    assert reference.methods(Made) == ["```python\ngrown(by: int) -> Made\n```", "Longer."]
    assert reference.text_of(Made) == "Of `a*` and \\<b>."
    shown = reference.signature("run", train_dapo.run)
    assert shown == "run(cfg: DapoRun, search: SearchTool | None = None) -> dict[str, Any]"


def test_the_script_of_the_page_makes_a_run(page, monkeypatch):
    made = []
    monkeypatch.setattr(train_dapo, "run", made.append)
    script = page.partition("```python\n")[2].partition("```")[0]
    exec(compile(script, "page", "exec"), {})
    (config,) = made
    assert (config.tokenizer, config.workdir) == ("tokenizer", "runs/qa_dapo")

"""Writes the API reference: what code of users imports, with signatures and docstrings.

    python docs/api_reference.py FOLDER

The build of the documentation calls `write`; nothing that it writes is committed. By a test the
page has what the modules of `examples/` import of the package.
"""

from __future__ import annotations

import importlib
import inspect
import sys
from pathlib import Path
from typing import Any

import generated_page

OBJECTS = {
    "Records": {
        "core.types": "Passage Hits Span RampExample QAExample Example Segment Turn QueryRecord "
        "Trajectory Demonstration to_json from_json",
        "core.jsonl": "read_jsonl write_jsonl",
        "core.errors": "UserError ConfigError",
    },
    "Text and scores": {
        "core.markup": "extract_answer parse_queries is_well_formed merge_results "
        "render_information",
        "core.scoring": "span_recall slot_recalls strict_f1 best_overlap is_exact_answer",
    },
    "Spans, masks and demonstrations": {
        "ramp.spans": "Extractor Candidates RulesExtractor",
        "ramp.examples": "build_examples",
        "agents.scripted_teacher": "demonstrate",
    },
    "Search and tools": {
        "core.retrieval": "SearchTool SearchError",
        "search.open": "open_tool",
        "search.server": "SearchServer",
        "core.tools": "TextTool Unreadable Toolbox search_alone",
        "tools.registry": "open_tools",
    },
    "Tokens and batches": {
        "core.tokenizer": "Vocab train_bpe",
        "data.prompt": "render wording",
        "data.demonstrations": "tokenise",
        "data.batches": "sft_tokens",
        "core.rows": "lay",
        "data.cache": "Manifest write_split",
        "data.tasks": "register",
        "data.agent_lm": "AgentLMFeatureConverter",
    },
    "Rollouts and training": {
        "rollout.engine": "Engine",
        "rollout.episode": "Request",
        "rl.advantages": "group_advantages",
        "models.families": "Family",
    },
    "Mains from Python": {
        "runtime.cli": "load_config call",
        "core.schema": "to_dataclass",
        "train_sft": "run",
        "train_dapo": "run",
        "evaluate": "run",
        "runtime.metric_writer": "read_metrics",
        "planning.page": "page update_of",
    },
    "Interchange": {"core.atif": "to_atif from_atif dumps"},
    "Stand-ins for tests": {
        "search.tool": "FakeSearch NoSearch RandomSearch",
        "testing.models": "WordVocab ScriptedModel scripted_model",
    },
}
FIRST = """\
# API

This page is for whoever writes Python against this project: a reward, a tool, a script.

It is made from the code, and has what the [modules](../extending.md#the-modules), the
[worked examples](../worked_examples.md) and a
[script with seqio](../your_model_and_text.md#from-your-own-seqio-script) import.
Other functions may change without a word.
Each `run` takes the dataclass of its [configuration](configuration.md):

```python
from masksearch_jax import train_dapo
from masksearch_jax.core.config import DapoRun
from masksearch_jax.core.schema import to_dataclass
from masksearch_jax.runtime import cli

config = cli.load_config("qa_dapo:tiny,runlocal")
config.tokenizer = "tokenizer"
train_dapo.run(to_dataclass(DapoRun, config))
```"""
WIDTH = 88  # characters of a signature in a line


class Shown(str):
    """What stands in a signature as it is, without quotes."""

    __slots__ = ()

    def __repr__(self) -> str:
        return str(self)


def _annotation(said: Any) -> Any:
    text = getattr(said, "__forward_arg__", said)
    return Shown(text) if isinstance(text, str) else said


def _default(value: Any) -> Any:
    """A default that a reader can type; `...` for any other."""
    is_plain = value is None or isinstance(value, bool | int | float | str)
    is_row = type(value) is tuple and all(isinstance(v, int | float | str) for v in value)
    return value if is_plain or is_row or value is inspect.Parameter.empty else Shown("...")


def signature(name: str, thing: Any) -> str:
    """`name(parameter: type = default, …) -> type`; a parameter in each line where it is long."""
    found = inspect.signature(thing)
    shown = [
        p.replace(annotation=_annotation(p.annotation), default=_default(p.default))
        for p in found.parameters.values()
        if p.name not in ("self", "_cls")
    ]
    result = found.return_annotation
    has_result = result is not inspect.Signature.empty and not inspect.isclass(thing)
    ending = f") -> {result}" if has_result else ")"
    line = f"{name}({', '.join(map(str, shown))}{ending}"
    if len(line) <= WIDTH:
        return line
    return "\n".join([f"{name}(", *(f"    {p}," for p in shown), ending])


def text_of(thing: Any) -> str:
    """A docstring as Markdown."""
    return generated_page.escaped(inspect.cleandoc(thing.__doc__ or ""))


def methods(thing: type) -> list[str]:
    """The public methods of a class that have a docstring: signature and docstring."""
    out = []
    for name, method in vars(thing).items():
        if inspect.isfunction(method) and method.__doc__ and not name.startswith("_"):
            out += [f"```python\n{signature(name, method)}\n```", text_of(method)]
    return out


def _is_of_built_in(thing: Any) -> bool:
    """Whether a class is made as a text, a list or an exception is."""
    return inspect.isclass(thing) and issubclass(thing, str | list | Exception)


def entry(module: str, name: str) -> list[str]:
    thing = getattr(importlib.import_module(f"masksearch_jax.{module}"), name)
    out = [f"### `{module}.{name}`"]
    if not (inspect.isclass(thing) or inspect.isfunction(thing)):
        return [*out, f"```python\n{name} = {' | '.join(k.__name__ for k in thing.__args__)}\n```"]
    if not getattr(thing, "_is_protocol", False) and not _is_of_built_in(thing):
        out.append(f"```python\n{signature(name, thing)}\n```")
    out.append(text_of(thing))
    return out + (methods(thing) if inspect.isclass(thing) else [])


def page() -> str:
    """The whole reference as Markdown."""
    out = [FIRST]
    for title, modules in OBJECTS.items():
        out.append(f"## {title}")
        for module, names in modules.items():
            for name in names.split():
                out += entry(module, name)
    return "\n\n".join(part for part in out if part) + "\n"


def write(folder: Path) -> None:
    """Writes FOLDER/api.md."""
    generated_page.write(folder / "api.md", page())


if __name__ == "__main__":
    write(Path(sys.argv[1]))

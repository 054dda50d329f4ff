"""Ask a trained agent one question and watch it search.

    python -m masksearch_jax.ask --config=configs/ask.py --config.init=runs/quickstart/hf \\
        --config.question="Which currency is used in the country whose capital is Oslo?"

A question with `[mask]` in it is a paragraph to fill. The architecture is read from the folder.
"""

from __future__ import annotations

import dataclasses
import os
import sys
from collections.abc import Sequence
from typing import TextIO

import jax
import numpy as np

from masksearch_jax.core import markup
from masksearch_jax.core.config import ComputeConfig, MeshConfig, PromptConfig, SearchConfig
from masksearch_jax.core.errors import ConfigError
from masksearch_jax.core.retrieval import SearchError, SearchTool
from masksearch_jax.core.rollout_config import RolloutConfig
from masksearch_jax.core.schema import key, required, section
from masksearch_jax.core.types import Example, Passage, QAExample, RampExample, Segment, Trajectory
from masksearch_jax.data import prompt
from masksearch_jax.models.load import describe, initial
from masksearch_jax.parallel.sharding import make_mesh
from masksearch_jax.rollout.engine import Engine
from masksearch_jax.rollout.episode import Request
from masksearch_jax.runtime import cli
from masksearch_jax.search.open import open_tool

_STYLES = {"search": "36", "found": "2", "answer": "1;32", "failed": "31"}  # ANSI codes


@dataclasses.dataclass(frozen=True)
class AskRun:
    """`ask`: one trajectory of a model, with live search."""

    init: str = required("Folder in HF format, or of checkpoints.")
    question: str = key("", "A question, or a paragraph with [mask] in it; needed.")
    tokenizer: str = key("", "Folder with tokenizer.json; empty: that of init.")
    base: str = key("", "Where init holds adapters: their base model; empty: where they say it is.")
    compute: ComputeConfig = section(ComputeConfig)
    mesh: MeshConfig = section(MeshConfig)
    prompt: PromptConfig = section(PromptConfig, "Its style must be that of the training.")
    search: SearchConfig = section(SearchConfig)
    rollout: RolloutConfig = section(RolloutConfig)


class Screen:
    """Lines with a label in front; coloured on a terminal, unless NO_COLOR is set."""

    def __init__(self, file: TextIO):
        self._file, self._open = file, False
        self._colour = file.isatty() and not os.environ.get("NO_COLOR")

    def say(self, text: str) -> None:
        """Text as it comes, until the next line is shown."""
        if text:
            print(text, end="", file=self._file, flush=True)
            self._open = True

    def show(self, label: str, text: str, style: str) -> None:
        if self._open:
            print(file=self._file)
            self._open = False
        codes = _STYLES[style]
        shown = f"\x1b[{codes}m{text}\x1b[0m" if self._colour else text
        print(f"{label:>8}  {shown}", file=self._file, flush=True)


class Stream:
    """Writes what the agent says as it says it; for `Engine(watch=…)`."""

    def __init__(self, screen: Screen):
        self._screen, self._written = screen, 0

    def __call__(self, request: Request, segments: Sequence[Segment]) -> None:
        said = "".join(s.text for s in segments if s.author == "policy")
        whole = said.rstrip("\ufffd")  # a character whose last bytes are not there yet
        self._screen.say(whole[self._written :])
        self._written = len(whole)


class ShownSearch:
    """A search tool that shows each call: its queries, then the titles that the agent reads."""

    def __init__(self, tool: SearchTool, screen: Screen, max_passages: int):
        self._tool, self._screen, self._max = tool, screen, max_passages

    def search(self, queries: Sequence[str], top_k: int) -> list[list[Passage]]:
        for i, query in enumerate(queries):
            self._screen.show("" if i else "search", query, "search")
        found = self._tool.search(queries, top_k)
        passages = markup.merge_results(found, self._max)
        for passage in passages:
            self._screen.show("", passage.title, "found")
        if not passages:
            self._screen.show("", "nothing found", "found")
        return found


def run(cfg: AskRun) -> Trajectory:
    """The trajectory, shown on stdout while it is sampled.

    Raises ConfigError for no question or an `init` that is no folder, SearchError when a search
    failed.
    """
    if not cfg.question.strip():
        raise ConfigError("config.question is empty; it must be a question, or hold a [mask]")
    mesh = make_mesh(cfg.mesh)  # before anything that reads a checkpoint, for which JAX begins
    config, vocab = describe(cfg.init, cfg.tokenizer)
    prompt.check_style(cfg.prompt.style, vocab)
    screen = Screen(sys.stdout)
    tool = ShownSearch(open_tool(cfg.search), screen, cfg.search.max_passages)
    model = initial(cfg.init, config, cfg.compute, mesh, 0, cfg.base)
    engine = Engine(
        vocab,
        tool,
        cfg.rollout,
        cfg.search,
        watch=Stream(screen),
    )
    text = prompt.render(as_example(cfg.question), cfg.prompt.style, vocab)
    request = Request("question", np.asarray(vocab.encode(text), np.int32), stream=0)
    with jax.set_mesh(mesh), engine:
        (trajectory,) = engine.run(model, [request])
    show_end(screen, trajectory)
    return trajectory


def as_example(question: str) -> Example:
    """A paragraph to fill where there is a `[mask]`, else a question; neither with an answer."""
    question = question.strip()
    if markup.MASK in question:
        return RampExample("question", "", "", masked=question, paragraph="", spans=())
    return QAExample("question", "", question, ())


def show_end(screen: Screen, trajectory: Trajectory) -> None:
    """The answer, or how it ended without one. Raises SearchError when the search tool failed."""
    if trajectory.status == "tool_failure":
        raise SearchError(f"the search failed: {trajectory.turns[-1].error}")
    answer = markup.extract_answer(trajectory.text_by("policy"))
    if answer is None:
        screen.show("", f"no answer ({trajectory.status.replace('_', ' ')})", "failed")
    else:
        screen.show("answer", answer, "answer")
    screen.show(
        "",
        f"{len(trajectory.turns)} searches, {int(trajectory.sampled.sum())} tokens, "
        f"{trajectory.seconds:.1f} s",
        "found",
    )


if __name__ == "__main__":
    cli.run(lambda cfg: run(cfg) and None, AskRun)

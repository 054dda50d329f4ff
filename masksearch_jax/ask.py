"""Ask a trained agent, and watch it search: at a prompt line, or on a page of this machine.

    python -m masksearch_jax.ask --config=configs/ask.py --config.init=runs/quickstart/hf
    ... --config.question="Which currency is used in the country whose capital is Oslo?"
    ... --config.web=True

Without a question it reads one from each line of its input. A question with `[mask]` in it is a
paragraph to fill. The folder tells the architecture, and how its agent was trained to be asked.
Ctrl-C stops the answer, a second one the program.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import os
import sys
from collections.abc import Callable, Iterator
from importlib import resources
from typing import TextIO

import jax
import numpy as np

from masksearch_jax.core.config import ComputeConfig, MeshConfig, PromptConfig, SearchConfig
from masksearch_jax.core.errors import ConfigError
from masksearch_jax.core.rollout_config import RolloutConfig
from masksearch_jax.core.schema import key, required, section
from masksearch_jax.core.search_config import tools_key
from masksearch_jax.core.tokenizer import Vocabulary
from masksearch_jax.core.types import NOT_ITS_DOING, JsonObject, Trajectory
from masksearch_jax.data import prompt
from masksearch_jax.models.load import check_context, describe, initial
from masksearch_jax.parallel.sharding import make_mesh
from masksearch_jax.rollout import narration
from masksearch_jax.rollout.engine import Engine
from masksearch_jax.rollout.episode import Episode, Request
from masksearch_jax.rollout.model import Policy
from masksearch_jax.rollout.narration import NOTHING, Narrator
from masksearch_jax.rollout.server import ChatServer, serve_until_told
from masksearch_jax.runtime import agent_settings, cli
from masksearch_jax.runtime.http_service import Call, Page, Route
from masksearch_jax.search.open import check_named, open_tool
from masksearch_jax.tools.registry import instructions_of, open_tools

_STYLES = {  # ANSI codes
    "plan": "2",
    "search": "36",
    "found": "2",
    "answer": "1;32",
    "failed": "31",
}
_PROMPT = "question> "
_HOSTS = ("127.0.0.1", "localhost", "[::1]")
_PAGE = {"/": "ask.html", "/ask.css": "ask.css", "/ask.js": "ask.js"}

Tell = Callable[[JsonObject], None]


@dataclasses.dataclass(frozen=True)
class AskRun:
    """`ask`: questions to a model, with live search."""

    init: str = required("Folder in HF format or of checkpoints, or a GGUF file.")
    question: str = key("", "A question, or a paragraph with [mask]; empty: one a line of input.")
    web: bool = key(False, "Asked on a page of this machine instead.")
    port: int = key(0, "Port of the page; 0: any free one.", least=0, most=65_535)
    tokenizer: str = key("", "Folder with tokenizer.json; empty: that of init.")
    base: str = key("", "Where init holds adapters: their base model; empty: where they say it is.")
    compute: ComputeConfig = section(ComputeConfig)
    mesh: MeshConfig = section(MeshConfig)
    prompt: PromptConfig = section(PromptConfig, "Its style must be that of the training.")
    tools: tuple[str, ...] = tools_key()
    search: SearchConfig = section(SearchConfig)
    rollout: RolloutConfig = section(RolloutConfig)

    def idle(self) -> Iterator[tuple[str, str]]:
        """See `Switched`."""
        if self.web:
            yield "question", "questions are asked on the page of config.web"
        else:
            yield "port", "it is read with config.web"


class Screen:
    """Lines with a label in front; coloured on a terminal, unless NO_COLOR is set."""

    def __init__(self, file: TextIO):
        self._file, self._open = file, False
        self._colour = file.isatty() and not os.environ.get("NO_COLOR")

    def tell(self, event: JsonObject) -> None:
        """Shows an event of `narration`."""
        for kind, content in event.items():
            if kind == "plan":
                self._say(content)
            elif kind == "search":
                for i, query in enumerate(content):
                    self.show("" if i else "search", query, "search")
            elif kind == "call":
                for i, request in enumerate(content["requests"]):
                    self.show("" if i else content["tool"], request, "search")
            elif kind == "documents":
                for title in [d["title"] for d in content] or ["nothing found"]:
                    self.show("", title, "found")
            else:
                label, style = {"answer": ("answer", "answer"), "failed": ("", "failed")}.get(
                    kind, ("", "found")
                )
                self.show(label, content, style)

    def _say(self, text: str) -> None:
        """Text as it comes, until the next line is shown."""
        label = "" if self._open else f"{'plan':>8}  "
        self._open = True
        print(label + self._styled(text, "plan"), end="", file=self._file, flush=True)

    def show(self, label: str, text: str, style: str) -> None:
        if self._open:
            print(file=self._file)
            self._open = False
        print(f"{label:>8}  {self._styled(text, style)}", file=self._file, flush=True)

    def _styled(self, text: str, style: str) -> str:
        # What a model or a document says may not steer the terminal.
        text = "".join(c if c.isprintable() or c in "\n\t" else "\ufffd" for c in text)
        return f"\x1b[{_STYLES[style]}m{text}\x1b[0m" if self._colour else text


class Agent:
    """A model that stays loaded from one question to the next."""

    def __init__(self, cfg: AskRun, vocab: Vocabulary, engine: Engine, model: Policy):
        self.cfg, self.vocab, self.engine, self.model = cfg, vocab, engine, model
        engine.watch = self._watch
        self._narrator, self._seen = Narrator(engine.tools.limits), NOTHING
        self._tell: Tell = print

    def prompt(self, question: str) -> str:
        tools = self.engine.tools.instructions
        return prompt.render(prompt.as_example(question), self.cfg.prompt.style, self.vocab, tools)

    def ask(self, question: str, tell: Tell) -> Trajectory:
        """One trajectory; `tell` is called with its events as they come, the last an answer or not.

        After a Ctrl-C it may be asked again. Raises ValueError for a question that is too long, or
        no text.
        """
        if _has_other_bytes(question):
            raise ValueError(f"the question {question.strip()!r:.80} is not valid UTF-8")
        self._narrator, self._seen = Narrator(self.engine.tools.limits), NOTHING
        self._tell = tell
        ids = np.asarray(self.vocab.encode(self.prompt(question)), np.int32)
        (found,) = self.engine.run(self.model, [Request("question", ids, stream=0)])
        failed = (found.turns[-1].error, found.turns[-1].tool) if found.turns else ()
        for event in self._narrator.end(self._seen, found.status, *failed):
            tell(event)
        return found

    def _watch(self, episode: Episode) -> None:
        self._seen = narration.seen_of(episode)
        for event in self._narrator.tell(self._seen):
            self._tell(event)


def check_config(cfg: AskRun) -> None:
    """Raises ConfigError for tools that there are not, a question that is no text.

    SearchError for the search.
    """
    if _has_other_bytes(cfg.question):
        raise ConfigError(
            f"config.question is {cfg.question!r:.80}, whose bytes are not valid UTF-8; it must be "
            "text in UTF-8"
        )
    instructions_of(cfg.tools)
    check_named(cfg.search)


@contextlib.contextmanager
def opened(cfg: AskRun) -> Iterator[Agent]:
    """The agent, its programs compiled.

    Raises ConfigError for an `init` that is no folder, SearchError for an index that is not there.
    """
    check_config(cfg)
    mesh = make_mesh(cfg.mesh)  # before anything that reads a checkpoint, for which JAX begins
    config, vocab = describe(cfg.init, cfg.tokenizer)
    check_context(config, cfg.rollout.max_len, "config.rollout.max_len")
    prompt.check_style(cfg.prompt.style, vocab)
    rollout = dataclasses.replace(cfg.rollout, in_flight="keep" if cfg.web else "drop")
    tools = open_tools(cfg.tools, open_tool(cfg.search), cfg.search)
    with (
        jax.set_mesh(mesh),
        Engine(vocab, tools, rollout, cfg.search, by_row=cfg.web) as engine,
    ):
        model = initial(cfg.init, config, cfg.compute, mesh, 0, cfg.base)
        for _ in engine.run(model):
            pass
        yield Agent(cfg, vocab, engine, model)


def run(cfg: AskRun) -> int:
    """Answers until there is no further question.

    1 where one ended for no fault of the model, or was none that can be asked; else 0.
    """
    with opened(cfg) as agent:
        if cfg.web:
            with page_server(agent) as server:
                print(f"ask at {server.address}", flush=True)
                serve_until_told(server, agent.model)
            return 0
        screen = Screen(sys.stdout)
        if cfg.question.strip():
            return int(answer(agent, cfg.question, screen).status in NOT_ITS_DOING)
        return converse(agent, screen)


def answer(agent: Agent, question: str, screen: Screen) -> Trajectory:
    """One question, shown with its answer and what that took."""
    found = agent.ask(question, screen.tell)
    took = f"{int(found.sampled.sum())} tokens, {found.seconds:.1f} s"
    others = len(found.turns) - found.searches
    calls = f"{found.searches} searches" + (f", {others} other calls" if others else "")
    screen.show("", f"{calls}, {took}", "found")
    return found


def converse(agent: Agent, screen: Screen) -> int:
    """A question from each line of the input, until its end; status as of `run`."""
    failures = 0
    for question in _questions(sys.stdin):
        try:
            failures += answer(agent, question, screen).status in NOT_ITS_DOING
        except KeyboardInterrupt:
            screen.show("", "stopped", "failed")
        except ValueError as error:  # a question that is too long, or no text
            screen.show("", str(error), "failed")
            failures += 1
    return int(failures > 0)


def _questions(file: TextIO) -> Iterator[str]:
    """The lines that say something; at a terminal they can be edited, and have a history.

    Bytes that are no text are in them as surrogates: the lines behind them can still be read.
    """
    if isinstance(file, io.TextIOWrapper):
        file.reconfigure(errors="surrogateescape")
    if not file.isatty():
        yield from filter(str.strip, file)
        return
    import readline  # noqa: F401  # `input` uses it from here on

    with contextlib.suppress(EOFError):
        while True:
            if line := input(_PROMPT).strip():
                yield line


def _has_other_bytes(text: str) -> bool:
    """Whether bytes were in the text's place that are no UTF-8; Python keeps them as surrogates."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return True
    return False


def page_server(agent: Agent) -> ChatServer:
    """The page's service, on the loopback; its port is bound."""
    return ChatServer(
        agent.engine,
        agent.vocab,
        os.path.basename(os.path.realpath(agent.cfg.init)),
        "127.0.0.1",
        agent.cfg.port,
        deadline=600.0,
        grace=0.0,
        agent_prompt=agent.prompt,
        routes={("GET", path): _page_route(name) for path, name in _PAGE.items()},
        hosts=_HOSTS,
    )


def _page_route(name: str) -> Route:
    text = resources.files("masksearch_jax.rollout").joinpath("page", name).read_text("utf-8")

    def page(_: Call) -> Page:
        return Page(text, name.rpartition(".")[2])

    return page


if __name__ == "__main__":
    cli.run(run, AskRun, read_defaults=agent_settings.read)

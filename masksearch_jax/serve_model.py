"""Serve a model, or an agent with its search, to OpenAI-compatible clients.

    python -m masksearch_jax.serve_model --config=configs/serve_model.py --config.init=FOLDER

POST /v1/chat/completions, POST /v1/completions and GET /v1/models are OpenAI's; GET /health says
how many requests are in flight. /v1/models tells a fingerprint of what decides the replies, too.
It has no access control: bind it to a private address.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import jax

from masksearch_jax.core import stamp
from masksearch_jax.core.config import ComputeConfig, MeshConfig, PromptConfig, SearchConfig
from masksearch_jax.core.errors import ConfigError
from masksearch_jax.core.retrieval import SearchError, SearchTool
from masksearch_jax.core.rollout_config import RolloutConfig
from masksearch_jax.core.schema import Section, harmless_keys, key, required, section
from masksearch_jax.core.search_config import tools_key
from masksearch_jax.core.tokenizer import Vocab, VocabError
from masksearch_jax.core.tools import Toolbox
from masksearch_jax.data import prompt
from masksearch_jax.models.load import check_context, describe, initial, pinned
from masksearch_jax.models.transformer import Transformer
from masksearch_jax.parallel.sharding import make_mesh
from masksearch_jax.rollout import chat
from masksearch_jax.rollout.engine import Engine
from masksearch_jax.rollout.server import ChatServer, serve_until_told
from masksearch_jax.runtime import agent_settings, cli, storage
from masksearch_jax.runtime.config_text import leaves
from masksearch_jax.search.open import check_named, open_tool
from masksearch_jax.tools.registry import instructions_of, open_tools


@dataclasses.dataclass(frozen=True)
class ServeModelRun:
    """`serve_model`: a model as an OpenAI-compatible HTTP service."""

    init: str = required("Folder in HF format or of checkpoints, or a GGUF file.")
    tokenizer: str = key("", "Folder with tokenizer.json and a chat template; empty: that of init.")
    base: str = key("", "Where init holds adapters: their base model; empty: where they say it is.")
    name: str = key("", "What clients call the model; empty: as the folder init is called.")
    host: str = key("127.0.0.1", "Address to bind; 127.0.0.1: this machine only.")
    port: int = key(8000, "Port to bind; 0: any free one.", least=0, most=65_535)
    agent: bool = key(False, "Also serve the model with its search, as NAME:agent.")
    deadline: float = key(600.0, "Seconds of a request, its wait for a slot included.", least=0.001)
    grace: float = key(
        20.0, "Seconds that requests in flight have once it is told to stop.", least=0.0
    )
    compute: ComputeConfig = section(ComputeConfig)
    mesh: MeshConfig = section(MeshConfig)
    prompt: PromptConfig = section(PromptConfig, "Of the agent.")
    tools: tuple[str, ...] = tools_key()
    search: SearchConfig = section(SearchConfig, "Of the agent.")
    rollout: RolloutConfig = section(RolloutConfig, "Its sampler is that of requests without one.")

    def idle(self) -> Iterator[tuple[str, str]]:
        """See `Switched`."""
        if not self.agent:
            for name in ("prompt", "tools", "search"):
                yield name, "it is read with config.agent"


def check_config(cfg: ServeModelRun) -> None:
    """Raises ConfigError for a rollout that drops what is in flight, and for tools of an agent.

    SearchError for its search.
    """
    if cfg.rollout.in_flight == "drop":
        raise ConfigError(
            "config.rollout.in_flight is 'drop', which loses requests that come as others end; it "
            "must be 'keep'"
        )
    if cfg.agent:
        instructions_of(cfg.tools)
        check_named(cfg.search)


def tell_style(cfg: ServeModelRun) -> None:
    """A line on stderr for a model that was trained with prompts that no chat template writes."""
    style = agent_settings.read(cfg.init).get("prompt", {}).get("style", "chat")
    if style != "chat":
        name = cfg.name or Path(cfg.init).resolve().name
        instead = f"ask {name}{chat.AGENT}" if cfg.agent else "ask its agent, by config.agent=True"
        print(
            f"  {cfg.init} was trained with prompts of style {style!r}: a chat template is "
            f"strange to it; {instead}",
            file=sys.stderr,
            flush=True,
        )


@contextlib.contextmanager
def opened(cfg: ServeModelRun) -> Iterator[tuple[ChatServer, Transformer]]:
    """The service, its port bound and all programs compiled, and the model to `serve` with it.

    Raises ConfigError for an `init` that is no folder, a tokenizer without a chat template that
    works, and a rollout that drops what is in flight; OSError for a taken port.
    """
    check_config(cfg)
    mesh = make_mesh(cfg.mesh)  # before anything that reads a checkpoint, for which JAX begins
    config, vocab = describe(cfg.init, cfg.tokenizer)
    check_context(config, cfg.rollout.max_len, "config.rollout.max_len")
    tell_style(cfg)
    try:
        vocab.check_chat_template()
    except VocabError as error:
        raise ConfigError(
            f"{error}; chat completions need one: give the folder of another as config.tokenizer"
        ) from error
    name = cfg.name or Path(cfg.init).resolve().name
    init = pinned(cfg.init, config)  # what is told of the weights is of those that are read
    search = cfg.search if cfg.agent else dataclasses.replace(cfg.search, kind="none")
    tools = open_tools(cfg.tools if cfg.agent else (), open_tool(search), search)
    with (
        jax.set_mesh(mesh),
        Engine(vocab, tools, cfg.rollout, search, by_row=True) as engine,
        ChatServer(
            engine,
            vocab,
            name,
            cfg.host,
            cfg.port,
            deadline=cfg.deadline,
            grace=cfg.grace,
            agent_prompt=_agent_prompt(cfg, vocab, tools) if cfg.agent else None,
            fingerprints=_fingerprints(cfg, init, vocab, tools.search),
        ) as server,
    ):
        model = initial(init, config, cfg.compute, mesh, 0, cfg.base)
        collections.deque(engine.run(model), maxlen=0)
        yield server, model


def _fingerprints(
    cfg: ServeModelRun, init: str, vocab: Vocab, search: SearchTool
) -> tuple[str, str]:
    """What tells the replies of the model, and those of the agent, from others of the same name.

    The model's: weights, tokenizer, number formats, and what a request may leave out. The agent's:
    besides, how it is asked, its tools, and what it searches.
    """
    weights = storage.fingerprint(init).hex()
    decides = [_deciding(cfg.compute), _deciding(cfg.rollout)]
    of_model = stamp.hash_of([weights, vocab.fingerprint, *decides])
    try:
        searched = getattr(search, "fingerprint", "")
    except SearchError:  # it is down, which those who ask the agent will be told
        searched = ""
    how = [_deciding(cfg.prompt), cfg.tools, _deciding(cfg.search), searched]
    return of_model, stamp.hash_of([of_model, *how])


def _deciding(section: Section) -> dict[str, object]:
    """The keys of a section that decide a reply, by their dotted names."""
    given = leaves(type(section), dataclasses.asdict(section))
    return {
        name: value for name, value in given.items() if name not in harmless_keys(type(section))
    }


def _agent_prompt(cfg: ServeModelRun, vocab: Vocab, tools: Toolbox) -> Callable[[str], str]:
    style, about = cfg.prompt.style, tools.instructions
    prompt.check_style(style, vocab)
    return lambda question: prompt.render(prompt.as_example(question), style, vocab, about)


def run(cfg: ServeModelRun) -> None:
    """Serves until SIGINT or SIGTERM; a second one ends it at once. Raises what `opened` raises."""
    with opened(cfg) as (server, model):
        print(f"serving {server.name} at {server.url}", flush=True)
        serve_until_told(server, model)


if __name__ == "__main__":
    cli.run(run, ServeModelRun, read_defaults=agent_settings.read)

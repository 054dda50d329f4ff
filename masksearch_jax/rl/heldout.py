"""Held-out examples measured while a run trains: the same ones, asked alike, at every step.

So steps are compared in pairs. What ends for no fault of the policy is in no mean.
"""

from __future__ import annotations

import collections
import dataclasses
import random
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

from masksearch_jax.core import markup, retrieval, scoring
from masksearch_jax.core.config import SearchConfig
from masksearch_jax.core.errors import ConfigError
from masksearch_jax.core.jsonl import read_jsonl
from masksearch_jax.core.rollout_config import RolloutConfig
from masksearch_jax.core.tokenizer import Vocab
from masksearch_jax.core.tools import Toolbox
from masksearch_jax.core.types import (
    NOT_ITS_DOING,
    Example,
    QAExample,
    RampExample,
    Trajectory,
)
from masksearch_jax.core.watch_config import HeldoutConfig
from masksearch_jax.data import prompt
from masksearch_jax.data.gate import QUESTIONS, figure_of
from masksearch_jax.parallel import hosts
from masksearch_jax.rollout.engine import Engine
from masksearch_jax.rollout.episode import Request, lacks_room
from masksearch_jax.rollout.model import Policy

_FILES: dict[str, type[RampExample] | type[QAExample]] = {
    "ramp/heldout.jsonl": RampExample,
    "questions/heldout.jsonl": QAExample,
}


class Item(NamedTuple):
    """An example, its kind and its prompt. number: its stream, the same at every step."""

    number: int
    kind: str
    example: Example
    ids: np.ndarray


def kind_of(example: Example) -> str:
    """k1, k2, … by the number of masks, or `questions`."""
    return f"k{example.k}" if isinstance(example, RampExample) else QUESTIONS


def choose(cfg: HeldoutConfig) -> list[Example]:
    """`examples` of each kind of the folder's held-out files, chosen by `seed`.

    Raises ConfigError for a folder without any.
    """
    by_kind: dict[str, list[Example]] = collections.defaultdict(list)
    for name, kind in _FILES.items():
        path = Path(cfg.data) / name
        examples: list[Example] = read_jsonl(path, kind) if path.is_file() else []
        for example in examples:
            by_kind[kind_of(example)].append(example)
    if not by_kind or cfg.examples < 1:
        raise ConfigError(
            f"config.eval.every is {cfg.every}, and config.eval.data is {cfg.data!r} with "
            f"config.eval.examples {cfg.examples}: it must be a folder that build_ramp wrote, with "
            f"an example in {' or '.join(_FILES)}, and at least 1 of each kind must be asked"
        )
    found: list[Example] = []
    for name, examples in sorted(by_kind.items()):
        draw = random.Random(f"{cfg.seed}/{name}")
        found += draw.sample(examples, min(cfg.examples, len(examples)))
    return found


class Heldout:
    """Measures a policy on the examples that `cfg` chooses; a context manager.

    Its engine has a KV cache of its own, of as many slots as it has examples, at most
    `rollout.slots`. `check` is called between ticks, and ends a measurement by raising. A
    measurement that loses a share of `tool_failures` of its items is none. Raises ConfigError for a
    folder without examples, or examples that all leave no room to answer.
    """

    def __init__(
        self,
        cfg: HeldoutConfig,
        vocab: Vocab,
        style: str,
        tools: Toolbox,
        search_config: SearchConfig,
        rollout: RolloutConfig,
        check: Callable[[], None],
        tool_failures: float,
    ):
        self.cfg, self._tool_failures = cfg, tool_failures
        prompt.check_style(style, vocab)
        chosen = choose(cfg)
        texts = [prompt.render(e, style, vocab, tools.instructions) for e in chosen]
        ids = [np.asarray(vocab.encode(text), np.int32) for text in texts]
        self.items = [
            Item(number, kind_of(example), example, tokens)
            for number, (example, tokens) in enumerate(zip(chosen, ids, strict=True))
            if not lacks_room(tokens, rollout)
        ]
        if not self.items:
            raise ConfigError(
                f"config.eval.data is {cfg.data!r}, whose examples leave no room to answer in "
                f"config.rollout.max_len, {rollout.max_len}"
            )
        self._hides = search_config.exclude_source
        parts = max(jax.device_count(), 1)
        slots = min(rollout.slots, -(-len(self.items) // parts) * parts)
        whole = slots * rollout.max_len
        own = dataclasses.replace(
            rollout,
            slots=slots,
            kv_tokens=min(rollout.kv_tokens, whole),
            temperature=cfg.temperature,
            in_flight="drop",
        )
        self._engine = Engine(vocab, tools, own, search_config, check=check)

    def __enter__(self) -> Heldout:
        return self

    def __exit__(self, *_: object) -> None:
        self._engine.close()

    def is_due(self, step: int, last: int) -> bool:
        return step % self.cfg.every == 0 or step == last

    def kinds(self) -> list[str]:
        return sorted({item.kind for item in self.items})

    def measure(self, model: Policy) -> dict[str, float]:
        """`heldout_…` figures, means over all processes' items; all must call it.

        A kind of which nothing was measured has no figure. `heldout_lost`: the share of items that
        ended for no fault of the policy; the only figure where so many are that the others would
        be of a chosen few, such as those that did not search.
        """
        own = self.items[jax.process_index() :: jax.process_count()]
        by_name = {str(item.number): item for item in own}
        values: dict[str, list[float]] = collections.defaultdict(list)
        for trajectory in self._engine.run(model, [self._request(item) for item in own]):
            lost = trajectory.status in NOT_ITS_DOING
            values["heldout_lost"].append(float(lost))
            if not lost:
                item = by_name[trajectory.example_id]
                for name, value in scores(item, trajectory).items():
                    values[name].append(value)
        return _means(values, self._tool_failures)

    def _request(self, item: Item) -> Request:
        source = retrieval.source_of(item.example) if self._hides else ""
        return Request(str(item.number), item.ids, item.number, source=source)


def scores(item: Item, trajectory: Trajectory) -> dict[str, float]:
    """What a trajectory adds to each figure."""
    tools = trajectory.tools
    answer = markup.extract_answer(trajectory.text_by("policy"), tools) or None
    example = item.example
    found = {
        "heldout_format_rate": float(markup.is_well_formed(trajectory.segments, tools)),
        "heldout_searches": float(trajectory.searches),
    }
    shown = retrieval.sources_shown(example, trajectory.turns)
    found |= {f"heldout_{name}": value for name, value in shown.items()}
    if isinstance(example, RampExample):
        recall = scoring.span_recall(example, answer)
        return found | {figure_of(item.kind): recall, "heldout_span_recall": recall}
    recall = 0.0
    if answer:
        rules = scoring.rules_of(example)
        recall = scoring.best_overlap(answer, example.answers, rules).recall
    return found | {figure_of(item.kind): recall}


def _means(values: dict[str, list[float]], tool_failures: float) -> dict[str, float]:
    """Over all processes; all must call it. `heldout_lost` alone from `tool_failures` on."""
    means = dict(sorted(hosts.means(values).items()))
    lost = means["heldout_lost"]
    return {"heldout_lost": lost} if 0 < lost >= tool_failures else means

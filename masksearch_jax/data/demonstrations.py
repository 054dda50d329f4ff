"""Demonstrations as training sequences: ids, and which of them the agent wrote."""

from __future__ import annotations

import json
from typing import Any

import numpy as np

from masksearch_jax.core.tokenizer import Vocab
from masksearch_jax.core.types import Demonstration, Example, QAExample, RampExample, from_json
from masksearch_jax.data import methods


def tokenise(
    prompt: str, demonstration: Demonstration, vocab: Vocab
) -> tuple[np.ndarray, np.ndarray]:
    """The SFT sequence of a demonstration: ids int32[T] and agent bool[T].

    The prompt, then every segment tokenised alone (so that no token crosses authors, as in a
    rollout), then the end-of-sequence token, which the agent writes. A prompt segment in the
    demonstration is left out: prompts are rendered in the style of the run.
    """
    parts = [(vocab.encode(prompt), False)]
    for segment in demonstration.segments:
        if segment.author != "prompt":
            parts.append((vocab.encode(segment.text, literal=True), segment.author == "policy"))
    return _joined(parts, vocab)


def tokenise_single_turn(
    example: Example, demonstration: Demonstration, style: str, vocab: Vocab
) -> tuple[np.ndarray, np.ndarray]:
    """As `tokenise`, of a demonstration whose prompt holds what its one retrieval has shown.

    What the prompt has written of the answer already is left out of what the agent writes.
    """
    shown = "".join(s.text for s in demonstration.segments if s.author == "tool")
    said = "".join(s.text for s in demonstration.segments if s.author == "policy")
    written = methods.opening(demonstration.method, style)
    asked = methods.prompt_ids(demonstration.method, example, style, vocab, shown)
    answer = said.partition(written)[2] if written else said
    return _joined([(asked, False), (vocab.encode(answer, literal=True), True)], vocab)


def _joined(parts: list[tuple[Any, bool]], vocab: Vocab) -> tuple[np.ndarray, np.ndarray]:
    """Ids of all parts and the end-of-sequence token, and of each whether the agent wrote it."""
    parts = [*parts, ([vocab.eos_ids[0]], True)]
    ids = np.concatenate([np.asarray(p, np.int32) for p, _ in parts])
    return ids, np.repeat([agent for _, agent in parts], [len(p) for p, _ in parts])


def parse_example(text: str | bytes) -> Example:
    """The example that a line of JSON holds: with `spans` a RampExample, else a QAExample."""
    obj = json.loads(text)
    return from_json(RampExample if "spans" in obj else QAExample, obj)

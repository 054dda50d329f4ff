"""Demonstrations as training sequences: ids, and which of them the agent wrote."""

from __future__ import annotations

import json

import numpy as np

from masksearch_jax.core.tokenizer import Vocab
from masksearch_jax.core.types import Demonstration, Example, QAExample, RampExample, from_json


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
    parts.append(([vocab.eos_ids[0]], True))
    ids = np.concatenate([np.asarray(p, np.int32) for p, _ in parts])
    return ids, np.repeat([agent for _, agent in parts], [len(p) for p, _ in parts])


def parse_example(text: str | bytes) -> Example:
    """The example that a line of JSON holds: with `spans` a RampExample, else a QAExample."""
    obj = json.loads(text)
    return from_json(RampExample if "spans" in obj else QAExample, obj)

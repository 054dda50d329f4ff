"""Demonstrations as training sequences: ids, and which of them the agent wrote."""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from masksearch_jax.data.vocab import Vocab
from masksearch_jax.types import Demonstration, Example, QAExample, RampExample, from_json


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


class Examples:
    """Examples of JSONL files by id, read from disk when asked for; only their places are kept."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self._paths = tuple(paths)

    @functools.cached_property
    def _places(self) -> dict[str, tuple[Path, int]]:
        return {name: (path, start) for path in self._paths for name, start in _offsets(path)}

    def __getitem__(self, example_id: str) -> Example:
        path, start = self._places[example_id]
        with path.open("rb") as file:
            file.seek(start)
            return parse_example(file.readline())


def parse_example(text: str | bytes) -> Example:
    """The example that a line of JSON holds: with `spans` a RampExample, else a QAExample."""
    obj = json.loads(text)
    return from_json(RampExample if "spans" in obj else QAExample, obj)


def _offsets(path: Path) -> Iterator[tuple[str, int]]:
    """Id and byte offset of each line of a JSONL file."""
    start = 0
    with path.open("rb") as file:
        for line in file:
            yield json.loads(line)["id"], start
            start += len(line)

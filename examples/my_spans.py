"""A span extractor of your own: years, and nothing else.

    python -m examples.my_spans runs/ramp

An extractor has one method. It gives the spans of each passage in text order without overlaps, and
counts by reason what it refused. `build_examples` takes it and makes the examples of each split.
"""

from __future__ import annotations

import re
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from masksearch_jax.core.corpus_config import RampConfig
from masksearch_jax.core.errors import ConfigError
from masksearch_jax.core.jsonl import read_jsonl, write_jsonl
from masksearch_jax.core.types import Passage, RampExample, Span
from masksearch_jax.ramp.examples import build_examples
from masksearch_jax.ramp.spans import Candidates
from masksearch_jax.runtime import cli

_YEAR = re.compile(r"\b[12]\d{3}\b")


class YearExtractor:
    def find(self, passages: Sequence[Passage]) -> list[Candidates]:
        found = [
            [Span(*m.span(), m.group(), "DATE") for m in _YEAR.finditer(p.text)] for p in passages
        ]
        return [Candidates(spans, Counter()) for spans in found]


def build(passages: Sequence[Passage], cfg: RampConfig) -> dict[str, list[RampExample]]:
    """Examples by split (train, rl, heldout)."""
    examples, _ = build_examples(passages, cfg, print, extractor=YearExtractor())
    return examples


def main() -> None:
    """FOLDER/ramp/SPLIT.jsonl from the passages that `build_ramp` wrote to FOLDER."""
    if len(sys.argv) != 2:
        raise ConfigError("usage: python -m examples.my_spans FOLDER, which build_ramp wrote")
    folder = Path(sys.argv[1])
    passages = read_jsonl(folder / "passages.jsonl", Passage)
    (folder / "ramp").mkdir(exist_ok=True)
    for split, examples in build(passages, RampConfig()).items():
        write_jsonl(folder / "ramp" / f"{split}.jsonl", examples)


if __name__ == "__main__":
    cli.call(main)  # an error is one line

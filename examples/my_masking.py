"""A masking strategy of your own: long spans are masked more often, single words never.

    python -m examples.my_masking runs/ramp

The strategy `ppl` asks a scorer how hard each span is. Below `min_nll` and above `max_nll` none is
masked. Between them a span is drawn in proportion to its score. Any function may be the scorer.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path

from masksearch_jax.core.corpus_config import RampConfig
from masksearch_jax.core.errors import ConfigError
from masksearch_jax.core.jsonl import read_jsonl, write_jsonl
from masksearch_jax.core.types import Passage, RampExample
from masksearch_jax.ramp.examples import build_examples
from masksearch_jax.runtime import cli


def words(asked: Sequence[tuple[str, str]]) -> list[float]:
    """A score for each (text before the span, span): here the words of the span."""
    return [float(len(span.split())) for _, span in asked]


def build(passages: Sequence[Passage], cfg: RampConfig) -> dict[str, list[RampExample]]:
    """Examples by split (train, rl, heldout)."""
    cfg = dataclasses.replace(cfg, strategy="ppl", min_nll=2.0, max_nll=6.0)
    examples, _ = build_examples(passages, cfg, print, scorer=words)
    return examples


def main() -> None:
    """FOLDER/ramp/SPLIT.jsonl from the passages that `build_ramp` wrote to FOLDER."""
    if len(sys.argv) != 2:
        raise ConfigError("usage: python -m examples.my_masking FOLDER, which build_ramp wrote")
    folder = Path(sys.argv[1])
    passages = read_jsonl(folder / "passages.jsonl", Passage)
    (folder / "ramp").mkdir(exist_ok=True)
    for split, examples in build(passages, RampConfig()).items():
        write_jsonl(folder / "ramp" / f"{split}.jsonl", examples)


if __name__ == "__main__":
    cli.call(main)  # an error is one line

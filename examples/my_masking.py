"""A masking strategy of your own: long spans are masked more often, single words never.

The strategy `ppl` asks a scorer how hard each span is. Below `min_nll` and above `max_nll` none is
masked. Between them a span is drawn in proportion to its score. Any function may be the scorer.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from masksearch_jax.core.corpus_config import RampConfig
from masksearch_jax.core.types import Passage, RampExample
from masksearch_jax.ramp.examples import build_examples


def words(asked: Sequence[tuple[str, str]]) -> list[float]:
    """A score for each (text before the span, span): here the words of the span."""
    return [float(len(span.split())) for _, span in asked]


def build(passages: Sequence[Passage], cfg: RampConfig) -> dict[str, list[RampExample]]:
    """Examples by split (train, rl, heldout)."""
    cfg = dataclasses.replace(cfg, strategy="ppl", min_nll=2.0, max_nll=6.0)
    examples, _ = build_examples(passages, cfg, print, scorer=words)
    return examples

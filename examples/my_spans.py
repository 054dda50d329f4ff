"""A span extractor of your own: years, and nothing else.

An extractor has one method. It gives the spans of each passage in text order without overlaps, and
counts by reason what it refused. `build_examples` takes it and makes the examples of each split.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

from masksearch_jax.core.corpus_config import RampConfig
from masksearch_jax.core.types import Passage, RampExample, Span
from masksearch_jax.ramp.examples import build_examples
from masksearch_jax.ramp.spans import Candidates

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

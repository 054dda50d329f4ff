"""Spans that another passage of the corpus holds: those that can be found with the source hidden.

A span is looked for as an agent would who sees the masked paragraph: by the article's title and by
the words around the mask.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence

from masksearch_jax.core import chinese
from masksearch_jax.core.retrieval import SearchTool
from masksearch_jax.core.types import Passage, Span
from masksearch_jax.ramp import spans

DEPTH = 5  # passages in which a span may stand, beside its own
_NEAR = 60  # characters on either side of a span that a query is made of
_WORD = re.compile(r"\w+")
UNSUPPORTED = "unsupported"  # the reason of a span that no other passage found holds


class SupportedExtractor:
    """The spans of another extractor that a search finds in another passage; refusals counted."""

    def __init__(self, extractor: spans.Extractor, search: SearchTool, depth: int = DEPTH) -> None:
        self._extractor, self._search, self._depth = extractor, search, depth

    def find(self, passages: Sequence[Passage]) -> list[spans.Candidates]:
        proposed = self._extractor.find(passages)
        asked = [
            query(passage, span)
            for passage, found in zip(passages, proposed, strict=True)
            for span in found.spans
        ]
        results = iter(self._search.search(asked, self._depth + 1) if asked else [])
        return [
            self._supported(passage, found, results)
            for passage, found in zip(passages, proposed, strict=True)
        ]

    def _supported(
        self, passage: Passage, found: spans.Candidates, results: Iterator[Sequence[Passage]]
    ) -> spans.Candidates:
        own = passage.id.partition("#")[0]  # a rewording's passage
        kept = []
        for span in found.spans:
            others = [p for p in next(results) if p.id != own][: self._depth]
            if any(chinese.is_within(span.text, f"{p.title} {p.text}") for p in others):
                kept.append(span)
        lost = len(found.spans) - len(kept)
        return spans.Candidates(kept, found.refused + Counter({UNSUPPORTED: lost}))


def query(passage: Passage, span: Span) -> str:
    """What to search for: the title, and the words around the span without it."""
    before = passage.text[max(0, span.start - _NEAR) : span.start]
    around = f"{before} {passage.text[span.end : span.end + _NEAR]}"
    return f"{passage.title} {' '.join(_WORD.findall(around))}"

"""Spans that another passage of the corpus holds: those that can be found with the source hidden.

A span is looked for as an agent would who sees the masked paragraph: by the article's title and by
the words around the mask. Two spans are linked where one search leads to the next: a passage that
holds the first names an article that holds the second, and that the paragraph does not name.
"""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

from masksearch_jax.core import chinese
from masksearch_jax.core.retrieval import SearchTool
from masksearch_jax.core.types import Passage, Span
from masksearch_jax.corpus import rewordings
from masksearch_jax.ramp import spans

DEPTH = 5  # passages in which a span may stand, beside its own
_NEAR = 60  # characters on either side of a span that a query is made of
_WORD = re.compile(r"\w+")
UNSUPPORTED = "unsupported"  # the reason of a span that no other passage found holds


class SupportedExtractor:
    """The spans of another extractor that a search finds in another passage; refusals counted.

    is_linking: the links of these spans are told too. has_rewordings: as in `PassageRules`.
    """

    def __init__(
        self,
        extractor: spans.Extractor,
        search: SearchTool,
        depth: int = DEPTH,
        is_linking: bool = False,
        has_rewordings: bool = False,
    ) -> None:
        self._extractor, self._search, self._depth = extractor, search, depth
        self._is_linking, self._has_rewordings = is_linking, has_rewordings

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
        own = rewordings.passage_id(passage.id) if self._has_rewordings else passage.id
        evidence: dict[Span, list[Passage]] = {}
        for span in found.spans:
            others = [p for p in next(results) if p.id != own][: self._depth]
            if holding := [p for p in others if _is_held(span.text, p)]:
                evidence[span] = holding
        lost = Counter({UNSUPPORTED: len(found.spans) - len(evidence)})
        linked = links(passage, evidence) if self._is_linking else ()
        return spans.Candidates(list(evidence), found.refused + lost, linked)


def _is_held(text: str, passage: Passage) -> bool:
    return chinese.is_within(text, f"{passage.title} {passage.text}")


def links(
    passage: Passage, evidence: Mapping[Span, Sequence[Passage]]
) -> tuple[tuple[Span, Span], ...]:
    """Pairs of spans of which what tells the first leads to what tells the second.

    evidence: of each span the passages that hold it. One of the first's names the title of one of
    the second's, which it does not make needless by holding the second too. The title stands
    neither in the passage, both spans masked, nor is it the passage's own.
    """
    found = []
    for first, second in itertools.permutations(evidence, 2):
        a, b = sorted((first, second), key=lambda span: span.start)
        text = passage.text
        left = f"{passage.title}\n{text[: a.start]} | {text[a.end : b.start]} | {text[b.end :]}"
        steps = itertools.product(evidence[first], evidence[second])
        if any(_is_needed_step(one, other, second, left) for one, other in steps):
            found.append((first, second))
    return tuple(found)


def _is_needed_step(one: Passage, other: Passage, second: Span, left: str) -> bool:
    """Whether the reader of `one` comes to know of `other`, and has to read it."""
    title = other.title
    if not title or title.casefold() not in one.text.casefold():  # the quick question first
        return False
    if one.title == title or chinese.is_within(title, left) or _is_held(second.text, one):
        return False
    return chinese.is_within(title, one.text)


def query(passage: Passage, span: Span) -> str:
    """What to search for: the title, and the words around the span without it."""
    before = passage.text[max(0, span.start - _NEAR) : span.start]
    around = f"{before} {passage.text[span.end : span.end + _NEAR]}"
    return f"{passage.title} {' '.join(_WORD.findall(around))}"

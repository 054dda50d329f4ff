"""Masking and its inverse: chosen spans become `[mask]`, and fills make the paragraph whole again.

k distinct spans that do not overlap, drawn without replacement (MaskSearch, section 3.1).
"""

from __future__ import annotations

import random
from collections.abc import Sequence

from masksearch_jax import markup
from masksearch_jax.types import Span


def reserved(text: str) -> bool:
    """True when a text already holds `[mask]` or a tag of the grammar, and so cannot be masked."""
    return markup.MASK in text.casefold() or markup.escape(text) != text


def disjoint(spans: Sequence[Span]) -> list[Span]:
    """As many of the spans as can stand without overlap, in text order."""
    kept: list[Span] = []
    for span in sorted(spans, key=lambda s: (s.end, s.start)):
        if not kept or span.start >= kept[-1].end:
            kept.append(span)
    return kept


def mask(
    paragraph: str, spans: Sequence[Span], k: int, rng: random.Random
) -> tuple[str, tuple[Span, ...]]:
    """The paragraph with `k` of the spans masked, and those spans in text order.

    ValueError for fewer than `k` disjoint spans, a span that is not where it says, or a paragraph
    that already holds `[mask]` or our tags.
    """
    if reserved(paragraph):
        raise ValueError(f"the paragraph already holds {markup.MASK} or a tag: {paragraph[:80]!r}")
    for span in spans:
        if not span.text or paragraph[span.start : span.end] != span.text:
            raise ValueError(f"{span} is not at its place in {paragraph[:80]!r}")
    choices = disjoint(spans)
    if not 1 <= k <= len(choices):
        raise ValueError(f"k is {k}; it must be 1 to {len(choices)}, the number of disjoint spans")
    chosen = tuple(sorted(rng.sample(choices, k), key=lambda s: s.start))
    return _replace(paragraph, chosen), chosen


def _replace(paragraph: str, spans: Sequence[Span]) -> str:
    pieces, position = [], 0
    for span in spans:
        pieces += [paragraph[position : span.start], markup.MASK]
        position = span.end
    return "".join([*pieces, paragraph[position:]])


def unmask(masked: str, fills: Sequence[str]) -> str:
    """The text with its masks filled in order. ValueError unless there is one fill per mask."""
    pieces = masked.split(markup.MASK)
    if len(pieces) - 1 != len(fills):
        raise ValueError(f"{len(fills)} fills for {len(pieces) - 1} masks in {masked[:80]!r}")
    return pieces[0] + "".join(f + p for f, p in zip(fills, pieces[1:], strict=True))

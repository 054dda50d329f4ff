"""Masking and its inverse: chosen spans become `[mask]`, and fills make the paragraph whole again.

k distinct spans that do not overlap, drawn without replacement (MaskSearch, section 3.1): evenly,
by type and rarity, or by how hard the current model finds them.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence

from masksearch_jax.core import markup
from masksearch_jax.core.types import Span

STRATEGIES = ("random", "weighted", "ppl")
# How worth searching for a type is; a year or a count is often one of many that would do.
TYPE_WEIGHTS = {"PERSON": 3.0, "ORG": 3.0, "PLACE": 2.0, "TERM": 2.0, "DATE": 1.5, "NUMBER": 1.0}

# Mean negative log-likelihoods, in nats per token, of targets after their contexts.
Scorer = Callable[[Sequence[tuple[str, str]]], Sequence[float]]


def has_reserved(text: str) -> bool:
    """True when a text already holds `[mask]` or a tag of the grammar, and so cannot be masked."""
    return markup.has_mask(text) or markup.escape(text) != text


def disjoint(spans: Sequence[Span]) -> list[Span]:
    """As many of the spans as can stand without overlap, in text order."""
    kept: list[Span] = []
    for span in sorted(spans, key=lambda s: (s.end, s.start)):
        if not kept or span.start >= kept[-1].end:
            kept.append(span)
    return kept


def mask(
    paragraph: str,
    spans: Sequence[Span],
    k: int,
    rng: random.Random,
    weights: Mapping[Span, float] | None = None,
    together: Sequence[Span] = (),
) -> tuple[str, tuple[Span, ...]]:
    """The paragraph with `k` of the spans masked, and those spans in text order.

    together: of these spans, at most k, that are masked in any case.

    weights: of each span, above 0; a span of twice the weight is as likely as two. ValueError
    for fewer than `k` disjoint spans, a span that is not where it says, or a paragraph that already
    holds `[mask]` or our tags.
    """
    if has_reserved(paragraph):
        raise ValueError(f"the paragraph already holds {markup.MASK} or a tag: {paragraph[:80]!r}")
    for span in spans:
        if not span.text or paragraph[span.start : span.end] != span.text:
            raise ValueError(f"{span} is not at its place in {paragraph[:80]!r}")
    choices = disjoint(spans)
    if not 1 <= k <= len(choices):
        raise ValueError(f"k is {k}; it must be 1 to {len(choices)}, the number of disjoint spans")
    open_choices = [s for s in choices if s not in together]
    more = k - len(together)
    if weights is None:
        drawn = rng.sample(open_choices, more)
    else:  # Efraimidis and Spirakis 2006: a weighted sample without replacement
        keyed = [(rng.random() ** (1 / weights[s]), s) for s in open_choices]
        drawn = [s for _, s in sorted(keyed, key=lambda pair: -pair[0])[:more]]
    chosen = tuple(sorted([*together, *drawn], key=lambda s: s.start))
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


def texts(spans: Iterable[Span]) -> set[str]:
    """The distinct texts of a paragraph's spans: what `by_type_and_rarity` wants counted."""
    return {span.text for span in spans}


def by_type_and_rarity(spans: Sequence[Span], common: Mapping[str, int]) -> dict[Span, float]:
    """Weights of a paragraph's spans: their type's, over how many paragraphs have their text.

    common: those numbers by `texts`; a text that is not there stands in one paragraph.
    """
    return {s: TYPE_WEIGHTS[s.type] / common.get(s.text, 1) for s in spans}


def questions(paragraph: str, spans: Sequence[Span]) -> list[tuple[str, str]]:
    """For each span, what a model is asked: the paragraph with it masked, then written up to it.

    (context, span): the teacher-forced likelihood of the span is how hard the mask is.
    """
    asked = []
    for span in spans:
        context = f"{_replace(paragraph, [span])}\n\n{paragraph[: span.start]}"
        asked.append((context, span.text))
    return asked


def by_difficulty(
    spans: Sequence[Span], losses: Sequence[float], low: float, high: float
) -> tuple[dict[Span, float], Counter[str]]:
    """The spans whose loss is within [low, high], with it as weight; the others counted.

    too_easy: the model knows them without searching. too_hard: nothing tells them, often a mistake
    of the text or of the extractor.
    """
    kept: dict[Span, float] = {}
    refused: Counter[str] = Counter()
    for span, loss in zip(spans, losses, strict=True):
        if low <= loss <= high:
            kept[span] = max(loss, 1e-6)
        else:
            refused["too_easy" if loss < low else "too_hard"] += 1
    return kept, refused


def token_rows(
    asked: Sequence[tuple[str, str]], encode: Callable[[str], list[int]]
) -> list[tuple[list[int], list[int]]]:
    """Contexts and targets as ids of the whole text; a token across the border is the target's."""
    rows = []
    for context, target in asked:
        whole, before = encode(context + target), encode(context)
        same = 0
        while same < min(len(before), len(whole) - 1) and whole[same] == before[same]:
            same += 1
        rows.append((whole[:same], whole[same:]))
    return rows

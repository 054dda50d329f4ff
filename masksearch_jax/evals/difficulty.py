"""What makes a masked span hard: its length, type, rarity and perplexity, against what came of it.

What came of it: the rank at which a search with the masked paragraph finds the source passage, and
the recall of the span in its slot.
"""

from __future__ import annotations

import dataclasses
import html
import math
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence

import numpy as np

from masksearch_jax.core import chinese, retrieval, scoring
from masksearch_jax.core.config import SearchConfig
from masksearch_jax.core.retrieval import SearchTool
from masksearch_jax.core.types import Example, JsonObject, RampExample
from masksearch_jax.data.methods import query_of
from masksearch_jax.evals.metrics import grouped_intervals
from masksearch_jax.evals.results import Bootstrap
from masksearch_jax.evals.retried_search import RetriedSearch
from masksearch_jax.evals.rows import Row
from masksearch_jax.ramp import masking

DEPTH = 20  # passages among which the source is looked for
_BINS = 4  # of numbers, as many spans in each
FACTORS = ("words", "type", "rarity", "perplexity")

Losses = Callable[[Sequence[tuple[str, str]]], Sequence[float]]  # nats per token of (context, text)


@dataclasses.dataclass(frozen=True)
class SpanFacts:
    """A masked span: its factors, the rank of its source (None: not among DEPTH), its recall.

    example: the id of its paragraph. rarity: different paragraphs of the suite's file that hold its
    text, masked there or not, as whole words. perplexity: None without a model.
    """

    example: str
    words: int
    type: str
    rarity: int
    perplexity: float | None
    rank: int | None
    recall: float


def ranks(
    examples: Sequence[RampExample], tool: SearchTool, search: SearchConfig, retries: int
) -> dict[str, int | None]:
    """Example id → the rank of its source passage, from 1, by a search with the masked text.

    retries: of a search that failed. Raises what the tool raises then.
    """
    tool = RetriedSearch(tool, retries)
    found: dict[str, int | None] = {}
    for example in examples:
        (hits,) = tool.search([query_of(example)], max(DEPTH, search.top_k))
        ids = [passage.id for passage in hits]
        source = retrieval.source_of(example)
        found[example.id] = ids.index(source) + 1 if source in ids else None
    return found


def spans_of(
    rows: Sequence[Row],
    everything: Sequence[Example],
    rank_of: Mapping[str, int | None],
    losses: Losses | None,
) -> list[SpanFacts]:
    """The masked spans of the rows of one suite and method. everything: the suite's file."""
    examples = [row.example for row in rows if isinstance(row.example, RampExample)]
    paragraphs = {e.paragraph for e in everything if isinstance(e, RampExample)}
    holding = _holding({span.text for e in examples for span in e.spans}, paragraphs)
    asked = [q for e in examples for q in masking.questions(e.paragraph, e.spans)]
    nats = iter(losses(asked) if losses else [])
    found: list[SpanFacts] = []
    for row, example in zip(rows, examples, strict=True):
        for span, (_, recall) in zip(example.spans, row.scored.slots, strict=True):
            found.append(
                SpanFacts(
                    example=example.id,
                    words=len(scoring.tokenise(span.text)),
                    type=span.type,
                    rarity=holding[span.text],
                    perplexity=math.exp(next(nats)) if losses else None,
                    rank=rank_of[example.id],
                    recall=recall,
                )
            )
    return found


def _holding(texts: Collection[str], paragraphs: Iterable[str]) -> Counter[str]:
    """Text → the paragraphs that hold it as whole words, masked there or not."""
    holding: Counter[str] = Counter()
    for paragraph in paragraphs:
        there = (text for text in texts if text in paragraph)
        holding.update(t for t in there if next(chinese.places(t, paragraph), None) is not None)
    return holding


def told(spans: Sequence[SpanFacts], how: Bootstrap) -> dict[str, list[JsonObject]]:
    """Factor → its bins: label, n, source_first, source_found, reciprocal_rank, span_recall.

    source_first: share of spans whose source passage is found first. reciprocal_rank: its mean, 0
    where the source is not found. Numbers are binned into parts of as many spans each. `n` counts
    spans; intervals are over paragraphs, whose spans have one rank.
    """
    found: dict[str, list[JsonObject]] = {}
    for factor in FACTORS:
        values = [getattr(span, factor) for span in spans]
        if any(value is None for value in values):
            continue
        bins: dict[str, dict[str, list[dict[str, float]]]] = {}
        for label, span in sorted(zip(_labels(values), spans, strict=True), key=lambda p: p[0]):
            bins.setdefault(label[1], {}).setdefault(span.example, []).append(_outcome(span))
        found[factor] = [
            {"label": label, "n": sum(map(len, own.values()))}
            | {name: c._asdict() for name, c in grouped_intervals([*own.values()], *how).items()}
            for label, own in bins.items()
        ]
    return found


def _outcome(span: SpanFacts) -> dict[str, float]:
    return {
        "span_recall": span.recall,
        "source_first": float(span.rank == 1),
        "source_found": float(span.rank is not None),
        "reciprocal_rank": 1.0 / span.rank if span.rank else 0.0,
    }


def _labels(values: Sequence) -> list[tuple[int, str]]:
    """Of each value its bin, by number and name; a text is its own bin."""
    if isinstance(values[0], str):
        order = {value: i for i, value in enumerate(sorted(set(values)))}
        return [(order[value], value) for value in values]
    edges = np.unique(np.quantile(values, np.linspace(0, 1, _BINS + 1)[1:-1]))
    places = np.searchsorted(edges, values, side="left")
    named: dict[int, str] = {}
    for place in set(places.tolist()):
        own = [value for value, at in zip(values, places, strict=True) if at == place]
        low, high = min(own), max(own)
        named[place] = f"{low:.3g}" if low == high else f"{low:.3g}–{high:.3g}"
    return [(place, named[place]) for place in places.tolist()]


# ---- shown


def table(bins: Mapping[str, Sequence[JsonObject]]) -> list[str]:
    """Factors and bins down, what came of them across."""
    lines = [f"{'':24}{'n':>6}  {'source first':24}{'1/rank':24}span recall"]
    for factor, cells in bins.items():
        for cell in cells:
            shown = "".join(
                f"{'{value:.3f} [{low:.3f}, {high:.3f}]'.format(**cell[name]):24}"
                for name in ("source_first", "reciprocal_rank", "span_recall")
            )
            lines.append(f"{factor:12}{cell['label']:12}{cell['n']:6}  {shown}".rstrip())
    return lines


_PANEL, _HEIGHT, _LEFT, _TOP = 230, 190, 34, 34  # pixels
_COLOURS = {"span_recall": "#2563eb", "source_first": "#d97706"}


def plot(bins: Mapping[str, Sequence[JsonObject]], title: str) -> str:
    """An SVG: a panel a factor, span recall and the share of sources found first."""
    width, bottom = _PANEL * max(len(bins), 1) + _LEFT, _TOP + _HEIGHT
    size = f'viewBox="0 0 {width} {bottom + 52}" font-family="sans-serif" font-size="10"'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" {size} fill="#666"><title>{title}</title>'
    parts = [head]
    for i, (name, colour) in enumerate(_COLOURS.items()):
        at = _LEFT + 130 * i
        parts.append(f'<circle cx="{at}" cy="12" r="4" fill="{colour}"/>')
        parts.append(f'<text x="{at + 8}" y="16">{name.replace("_", " ")}</text>')
    for number, (factor, cells) in enumerate(bins.items()):
        left = _LEFT + number * _PANEL
        for share in (0.0, 0.5, 1.0):
            y = bottom - share * _HEIGHT
            parts.append(f'<path d="M{left} {y}h{_PANEL - 30}" stroke="#ccc"/>')
            parts.append(f'<text x="{left - 4}" y="{y + 3}" text-anchor="end">{share:g}</text>')
        step = (_PANEL - 30) / len(cells)
        for place, cell in enumerate(cells):
            x = left + step * (place + 0.5)
            parts.append(f'<text x="{x}" y="{bottom + 14}" text-anchor="middle">')
            parts.append(f"{html.escape(cell['label'])}</text>")
            for offset, (name, colour) in zip((-4, 4), _COLOURS.items(), strict=True):
                low, mean, high = (
                    bottom - cell[name][k] * _HEIGHT for k in ("low", "value", "high")
                )
                parts.append(f'<path d="M{x + offset} {low}V{high}" stroke="{colour}"/>')
                parts.append(f'<circle cx="{x + offset}" cy="{mean}" r="3.5" fill="{colour}"/>')
        middle = left + (_PANEL - 30) / 2
        parts.append(f'<text x="{middle}" y="{bottom + 34}" text-anchor="middle">{factor}</text>')
    return "".join([*parts, "</svg>\n"])

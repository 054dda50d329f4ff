"""One search of an agent, whoever the agent is: queries to the passages that it is shown."""

from __future__ import annotations

import dataclasses
import re
import time
from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from masksearch_jax.core import markup
from masksearch_jax.core.config import SearchConfig
from masksearch_jax.core.types import Example, Hits, Passage, QueryRecord, RampExample, Turn

# Controls but tab and newline, bidirectional overrides, what is no character or half of one.
_NO_TEXT = re.compile(
    r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ufdd0-\ufdef\ufffe\uffff\ud800-\udfff]"
)

_DEEPEST = 50  # passages beyond which a hidden one's pieces are not looked for


class SearchError(RuntimeError):
    """A search could not be made: the tool's failure, never the policy's."""


@runtime_checkable
class SearchTool(Protocol):
    """Finds passages. Calls may come from many threads at once."""

    def search(self, queries: Sequence[str], top_k: int) -> list[list[Passage]]:
        """One list per query, best passage first, at most `top_k` long. Raises SearchError."""
        ...


def source_of(example: Example) -> str:
    """The id of the passage that a RAMP example masks; "" for a question, which is of none."""
    return example.passage_id if isinstance(example, RampExample) else ""


def sources_shown(example: Example, turns: Sequence[Turn]) -> dict[str, float]:
    """What searches showed of the passages that tell an example's answer; {} where none are known.

    They are the passage that it masks, or those that support a question's answer, by id, or by
    title where the question names articles alone. `source_hit` 1 when one of them was shown,
    `source_first` when it was the first passage shown, `source_reciprocal_rank` 1 / the place of
    the first of them among all that were shown, 0 where none was; of a question `gold_recall`, the
    share of them that were.
    """
    shown = [passage for turn in turns for passage in turn.passage_ids]
    if isinstance(example, RampExample):
        return _places({example.passage_id}, shown)
    wanted = set(example.gold)
    if not wanted:
        wanted = {title.casefold() for title in example.titles}
        shown = [title.casefold() for turn in turns for title in turn.titles]
    if not wanted:
        return {}
    return _places(wanted, shown) | {"gold_recall": len(wanted.intersection(shown)) / len(wanted)}


def _places(wanted: set[str], shown: Sequence[str]) -> dict[str, float]:
    first = next((place for place, name in enumerate(shown, 1) if name in wanted), 0)
    return {
        "source_hit": float(first > 0),
        "source_first": float(first == 1),
        "source_reciprocal_rank": 1 / first if first else 0.0,
    }


def find(
    tool: SearchTool, queries: Sequence[str], cfg: SearchConfig, source: str
) -> tuple[Passage, ...]:
    """The passages that a search shows: results of all queries by rank, at most `max_passages`.

    With `cfg.exclude_source` they are those of a corpus without the passage `source`. One more is
    asked for and that passage left out, so that any tool can hide any passage, and a cache of
    results serves all examples alike. Characters that are no text (controls, halves of surrogate
    pairs) are left out of titles and texts. Raises what the tool raises.
    """
    return find_recorded(tool, queries, cfg, source)[0]


def find_recorded(
    tool: SearchTool, queries: Sequence[str], cfg: SearchConfig, source: str
) -> tuple[tuple[Passage, ...], tuple[QueryRecord, ...]]:
    """As `find`, with a record of what the tool gave for each query, before any was left out.

    A tool that tells no seconds took those of the call.
    """
    hidden = source if cfg.exclude_source else ""
    depth = first_depth(cfg, source)
    started = time.monotonic()
    found = tool.search(queries, depth)
    # A tool whose index has a passage cut in several has its id several times.
    while hidden and any(_has_more(hits, hidden, cfg.top_k, depth) for hits in found):
        depth *= 2
        found = tool.search(queries, depth)
    seen = [[p for p in hits if not hidden or p.id != hidden][: cfg.top_k] for hits in found]
    seconds = time.monotonic() - started
    shown = tuple(map(as_text, markup.merge_results(seen, cfg.max_passages)))
    return shown, tuple(_record(tool, hits, seconds, depth) for hits in found)


def first_depth(cfg: SearchConfig, source: str) -> int:
    """Passages that are asked for at first, one more where the passage `source` is hidden."""
    return cfg.top_k + bool(cfg.exclude_source and source)


def _has_more(hits: Sequence[Passage], hidden: str, top_k: int, depth: int) -> bool:
    """Whether a deeper search would show more: all were found that were asked for, too few stay."""
    return len(hits) == depth <= _DEEPEST and sum(p.id != hidden for p in hits) < top_k


def _record(tool: SearchTool, hits: Sequence[Passage], seconds: float, depth: int) -> QueryRecord:
    told = hits if isinstance(hits, Hits) else Hits()
    return QueryRecord(
        passage_ids=tuple(p.id for p in hits),
        scores=told.scores,
        attempts=told.attempts,
        seconds=told.seconds or (0.0 if told.cached else seconds),
        cached=told.cached,
        depth=depth,
        answered_by=told.answered_by or getattr(tool, "fingerprint", ""),
    )


def as_text(passage: Passage) -> Passage:
    """The passage without characters that are no text; a carriage return is a newline."""
    title, text = (_NO_TEXT.sub("", t.replace("\r\n", "\n")) for t in (passage.title, passage.text))
    if (title, text) == (passage.title, passage.text):
        return passage
    return dataclasses.replace(passage, title=title, text=text)

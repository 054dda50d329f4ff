"""One search of an agent, whoever the agent is: queries to the passages that it is shown."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from masksearch_jax.core import markup
from masksearch_jax.core.config import SearchConfig
from masksearch_jax.core.types import Example, Passage, RampExample

# Controls but tab and newline, bidirectional overrides, what is no character or half of one.
_NO_TEXT = re.compile(
    r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ufdd0-\ufdef\ufffe\uffff\ud800-\udfff]"
)


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


def find(
    tool: SearchTool, queries: Sequence[str], cfg: SearchConfig, source: str
) -> tuple[Passage, ...]:
    """The passages that a search shows: results of all queries by rank, at most `max_passages`.

    With `cfg.exclude_source` they are those of a corpus without the passage `source`. One more is
    asked for and that passage left out, so that any tool can hide any passage, and a cache of
    results serves all examples alike. Characters that are no text (controls, halves of surrogate
    pairs) are left out of titles and texts. Raises what the tool raises.
    """
    hidden = source if cfg.exclude_source else ""
    found = tool.search(queries, cfg.top_k + bool(hidden))
    seen = [[p for p in hits if not hidden or p.id != hidden][: cfg.top_k] for hits in found]
    return tuple(map(_as_text, markup.merge_results(seen, cfg.max_passages)))


def _as_text(passage: Passage) -> Passage:
    """The passage without characters that are no text; a carriage return is a newline."""
    title, text = (_NO_TEXT.sub("", t.replace("\r\n", "\n")) for t in (passage.title, passage.text))
    if (title, text) == (passage.title, passage.text):
        return passage
    return dataclasses.replace(passage, title=title, text=text)

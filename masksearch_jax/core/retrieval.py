"""One search of an agent, whoever the agent is: queries to the passages that it is shown."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from masksearch_jax.core import markup
from masksearch_jax.core.config import SearchConfig
from masksearch_jax.core.types import Example, Passage, RampExample


class Search(Protocol):
    """The part of `search.tool.SearchTool` that agents use."""

    def search(self, queries: Sequence[str], top_k: int) -> list[list[Passage]]: ...


def source_of(example: Example) -> str:
    """The id of the passage that a RAMP example masks; "" for a question, which is of none."""
    return example.passage_id if isinstance(example, RampExample) else ""


def find(
    tool: Search, queries: Sequence[str], cfg: SearchConfig, source: str
) -> tuple[Passage, ...]:
    """The passages that a search shows: results of all queries by rank, at most `max_passages`.

    With `cfg.exclude_source` they are those of a corpus without the passage `source`. One more is
    asked for and that passage left out, so that any tool can hide any passage, and a cache of
    results serves all examples alike. Raises what the tool raises.
    """
    hidden = source if cfg.exclude_source else ""
    found = tool.search(queries, cfg.top_k + bool(hidden))
    seen = [[p for p in hits if not hidden or p.id != hidden][: cfg.top_k] for hits in found]
    return markup.merge_results(seen, cfg.max_passages)

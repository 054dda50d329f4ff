"""A search tool that asks again where a search fails, for what an evaluation asks itself."""

from __future__ import annotations

from collections.abc import Sequence

from masksearch_jax.core.retrieval import SearchError, SearchTool
from masksearch_jax.core.types import Passage


class RetriedSearch:
    """`tool`, whose failed searches are made again, `retries` times at most.

    As often as a failed search of an item is; each attempt has the tool's own waits.
    """

    def __init__(self, tool: SearchTool, retries: int):
        self._tool, self._retries = tool, retries

    def search(self, queries: Sequence[str], top_k: int) -> list[list[Passage]]:
        """Raises what the last attempt raises."""
        for _ in range(self._retries):
            try:
                return self._tool.search(queries, top_k)
            except (SearchError, OSError):
                continue
        return self._tool.search(queries, top_k)

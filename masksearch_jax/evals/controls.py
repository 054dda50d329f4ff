"""Controls of the agent: searches that find something else than what was asked for."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence

from masksearch_jax.core.retrieval import SearchTool
from masksearch_jax.core.types import Passage


class ShuffledSearch:
    """Finds for each query what `tool` finds for another text: random passages of any tool.

    The text is drawn by a hash of (seed, query), so that the same query finds the same anywhere.
    """

    def __init__(self, tool: SearchTool, texts: Sequence[str], seed: int = 0):
        self._tool, self._texts, self._seed = tool, list(texts), seed

    @property
    def fingerprint(self) -> str:
        """Of the index that is searched, "" where the tool tells none."""
        return getattr(self._tool, "fingerprint", "")

    def search(self, queries: Sequence[str], top_k: int) -> list[list[Passage]]:
        return self._tool.search([self._other(query) for query in queries], top_k)

    def _other(self, query: str) -> str:
        key = f"{self._seed}\n{query}".encode("utf-8", "replace")
        return random.Random(hashlib.sha256(key).digest()).choice(self._texts)

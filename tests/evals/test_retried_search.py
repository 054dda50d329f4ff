"""What an evaluation searches for itself: failures are asked again, and a dead tool ends it."""

from collections import Counter

import pytest

from masksearch_jax.core.config import SearchConfig
from masksearch_jax.core.retrieval import SearchError
from masksearch_jax.core.types import Passage, RampExample, Span
from masksearch_jax.evals import difficulty
from masksearch_jax.evals.retried_search import RetriedSearch
from masksearch_jax.search.tool import FakeSearch

FOUND = Passage("p", "Oslo", "Oslo is a city in Norway.")


def failing(times: int) -> FakeSearch:
    """Each query fails so often, and then finds."""
    asked: Counter[str] = Counter()

    def find(query: str) -> list[Passage]:
        asked[query] += 1
        if asked[query] <= times:
            raise SearchError(f"attempt {asked[query]} is refused")
        return [FOUND]

    return FakeSearch(find)


def test_a_search_is_made_again_as_often_as_told():
    assert RetriedSearch(failing(3), 3).search(["Oslo"], 2) == [[FOUND]]
    with pytest.raises(SearchError, match="attempt 3 is refused"):
        RetriedSearch(failing(3), 2).search(["Oslo"], 2)
    with pytest.raises(SearchError, match="attempt 1 is refused"):
        RetriedSearch(failing(1), 0).search(["Oslo"], 2)


def test_a_failed_search_loses_no_rank():
    span = Span(18, 24, "Norway", "PLACE")
    text = FOUND.text
    example = RampExample("e", "p", "Oslo", text.replace("Norway", "[mask]"), text, (span,))
    search = SearchConfig()
    assert difficulty.ranks([example], failing(2), search, 2) == {"e": 1}
    with pytest.raises(SearchError, match="attempt 2 is refused"):
        difficulty.ranks([example], failing(2), search, 1)

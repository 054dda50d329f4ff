"""Six passages, and queries that are special to a query parser."""

from masksearch_jax.core.types import Passage

FRUIT = (
    Passage("a", "Apple", "red fruit tree"),
    Passage("b", "Banana", "yellow fruit tropic"),
    Passage("c", "Cherry", "red fruit stone stone"),
    Passage("d", "Durian", "tropic smell"),
    Passage("e", "Café de Flore", "São Paulo bar"),
    Passage("f", "The Who", "rock band"),
)
SPECIAL = (
    '"unclosed',
    "((((",
    ")))",
    "a:b:c",
    "AND OR NOT",
    "title:x^5 ~ * [a TO b] {",
    "\\",
    "+-!",
)


def ids(tool, query, top_k=10):
    return [p.id for p in tool.search([query], top_k)[0]]

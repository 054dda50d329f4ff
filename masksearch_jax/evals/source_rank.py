"""Where the passage that a paragraph was made from stood among the results of demonstrations."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping

from masksearch_jax.core.types import Demonstration


def counts(demonstrations: Iterable[Demonstration], sources: Mapping[str, str]) -> dict[str, int]:
    """Of masked paragraphs, how often each rank of the first search was the source passage's.

    "later": a further search showed it; "never": none did.
    """
    ranks: Counter[str] = Counter()
    for demonstration in demonstrations:
        if (source := sources.get(demonstration.example_id)) is None:
            continue
        shown = [turn.passage_ids for turn in demonstration.turns]
        if shown and source in shown[0]:
            ranks[str(shown[0].index(source) + 1)] += 1
        else:
            ranks["later" if any(source in ids for ids in shown) else "never"] += 1
    return dict(sorted(ranks.items()))

"""The rewriter: turns one need into several search queries (at least three, as in MaskSearch)."""

from __future__ import annotations

from collections.abc import Sequence

from masksearch_jax.agents import dialogue
from masksearch_jax.agents.llm_client import Message

MIN_QUERIES = 3


def messages(task: str, need: str, asked: Sequence[str], language: str) -> list[Message]:
    """`asked`: the queries of earlier turns, not to be repeated."""
    values = {"task": task, "need": need, "asked": "\n".join(asked) or "-"}
    return dialogue.render("rewriter", language, minimum=str(MIN_QUERIES), **values)


def parse(text: str) -> tuple[str, ...]:
    """Distinct queries, each on one line. Raises dialogue.ReplyError for fewer than three."""
    queries = dialogue.parse_object(text).get("queries")
    if not isinstance(queries, list) or not all(isinstance(q, str) for q in queries):
        raise dialogue.ReplyError(f'"queries" must be a list of strings, not {queries!r:.80}')
    lines = (" ".join(dialogue.clean(query).split()) for query in queries)
    distinct = tuple(dict.fromkeys(line for line in lines if line))
    if len(distinct) < MIN_QUERIES:
        raise dialogue.ReplyError(
            f'"queries" must hold at least {MIN_QUERIES} different queries, not {len(distinct)}'
        )
    return distinct

"""The agent that names the salient spans of a paragraph, the paper's way, as strict JSON."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from masksearch_jax.agents import dialogue
from masksearch_jax.agents.llm_client import LLM, LLMError
from masksearch_jax.core.types import Passage
from masksearch_jax.ramp.llm_spans import Named, Names, NoReply

REPAIRS = 2  # replies shown back with what is wrong before a paragraph is given up


def parse(text: str) -> Names:
    """(text, type) of each span of a reply. Raises dialogue.ReplyError."""
    rows = dialogue.parse_object(text).get("spans")
    if not isinstance(rows, list):
        raise dialogue.ReplyError('"spans" must be a list of objects with "text" and "type"')
    named = []
    for row in rows:
        if not isinstance(row, dict):
            raise dialogue.ReplyError(f"a span must be an object, not {row!r:.80}")
        kind = dialogue.text_field(row, "type").upper()
        named.append((dialogue.text_field(row, "text"), kind))
    return named


async def name_spans(llm: LLM, passages: Sequence[Passage], language: str) -> list[Named]:
    """What the model names in each passage; `unreadable_reply` or NoReply where it does not.

    All are asked at once, within the client's limit. Raises llm.JobError when asking is useless,
    once those in flight have ended: what they are paid for is kept.
    """

    async def name(passage: Passage) -> Named:
        messages = dialogue.render("salient", language, paragraph=passage.text, title=passage.title)
        try:
            return await dialogue.ask(llm, messages, parse, language, REPAIRS)
        except dialogue.ReplyError:
            return "unreadable_reply"
        except LLMError as error:
            return NoReply(str(error))

    found = await asyncio.gather(*map(name, passages), return_exceptions=True)
    if errors := [f for f in found if isinstance(f, BaseException)]:
        raise errors[0]
    return found

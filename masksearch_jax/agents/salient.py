"""The agent that names the salient spans of a paragraph, the paper's way, as strict JSON."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from masksearch_jax.agents import dialogue
from masksearch_jax.agents.llm_client import LLM, OUTAGE, JobError, LLMError
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


class Failures:
    """Counts the passages of a job that got no reply; max_failed: the share that may get none."""

    def __init__(self, max_failed: float):
        self.max_failed = max_failed
        self.asked = self.failed = self.in_a_row = 0

    def count(self, named: Named) -> None:
        """Raises llm.JobError where so many in a row, and too many, failed: a service is down."""
        if not isinstance(named, NoReply):
            self.in_a_row = 0
            return
        self.in_a_row += 1
        self.failed += 1
        if self.in_a_row >= OUTAGE and self.failed > self.max_failed * self.asked:
            raise JobError(
                f"{self.in_a_row} passages in a row got no reply, {self.failed} in all, more than "
                f"config.max_failed={self.max_failed:g} allows; the last: {named.error}; once this "
                "is mended, the same command asks about these again and no others"
            )


async def name_spans(
    llm: LLM, passages: Sequence[Passage], language: str, failures: Failures
) -> list[Named]:
    """What the model names in each passage; `unreadable_reply` or NoReply where it does not.

    As many are asked about at once as keep the endpoint busy. Raises llm.JobError when asking is
    useless, once those in flight have ended: what they are paid for is kept.
    """
    failures.asked += len(passages)
    gate = asyncio.Semaphore(2 * llm.cfg.concurrency)
    errors: list[Exception] = []

    async def name(passage: Passage) -> Named:
        messages = dialogue.render("salient", language, paragraph=passage.text, title=passage.title)
        try:
            return await dialogue.ask(llm, messages, parse, language, REPAIRS)
        except dialogue.ReplyError:
            return "unreadable_reply"
        except LLMError as error:
            return NoReply(str(error))

    async def one(passage: Passage) -> Named:
        async with gate:
            if errors:
                return NoReply(str(errors[0]))
            try:
                named = await name(passage)
                failures.count(named)
            except Exception as error:
                errors.append(error)
                return NoReply(str(error))
            return named

    found = await asyncio.gather(*map(one, passages))
    if errors:
        raise errors[0]
    return found

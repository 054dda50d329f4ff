"""The judge: says whether an answer agrees with the known one; only a clear yes counts."""

from __future__ import annotations

import dataclasses

from masksearch_jax.agents import dialogue
from masksearch_jax.agents.llm_client import Message

VERDICTS = ("correct", "incorrect")


@dataclasses.dataclass(frozen=True)
class Verdict:
    correct: bool
    reason: str


def messages(task: str, known: str, answer: str, language: str) -> list[Message]:
    """`known`: the accepted answers, or the masked spans in order."""
    return dialogue.render("judge", language, task=task, known=known, answer=answer)


def parse(text: str) -> Verdict:
    """Raises dialogue.ReplyError for anything but one of the two verdicts, spelled exactly."""
    fields = dialogue.parse_object(text)
    verdict = fields.get("verdict")
    if not isinstance(verdict, str) or verdict not in VERDICTS:
        raise dialogue.ReplyError(
            f'"verdict" must be one of {", ".join(VERDICTS)}, not {verdict!r:.80}'
        )
    return Verdict(verdict == "correct", dialogue.text_field(fields, "reason"))

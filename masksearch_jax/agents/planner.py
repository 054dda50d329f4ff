"""The planner: takes a task apart and names what to find out first."""

from __future__ import annotations

import dataclasses

from masksearch_jax.agents import dialogue
from masksearch_jax.agents.llm_client import Message


@dataclasses.dataclass(frozen=True)
class Plan:
    thought: str  # the whole plan, as the agent would think it
    need: str  # the first thing to find out, one question


def messages(task: str, language: str) -> list[Message]:
    return dialogue.render("planner", language, task=task)


def parse(text: str) -> Plan:
    """Raises dialogue.ReplyError."""
    fields = dialogue.parse_object(text)
    return Plan(dialogue.text_field(fields, "thought"), dialogue.text_field(fields, "need"))

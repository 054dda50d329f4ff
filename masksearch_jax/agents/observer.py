"""The observer: reads what a search returned and decides what comes next."""

from __future__ import annotations

import dataclasses
from typing import Any

from masksearch_jax.agents import dialogue
from masksearch_jax.agents.llm import Message

# The field that carries an action's object; giving up needs none.
ACTIONS = {"answer": "answer", "next": "need", "revise": "need", "give_up": ""}


@dataclasses.dataclass(frozen=True)
class Decision:
    """`action`: answer (`text` is the answer), next (`text` is the next need of the same plan),
    revise (`text` is the first need of another plan), give_up (`text` is empty)."""

    action: str
    thought: str
    text: str


def messages(
    task: str, plan: str, history: str, need: str, documents: str, last: bool, language: str
) -> list[Message]:
    """`last`: no search is left, so the observer is told to answer or give up."""
    values: dict[str, Any] = {"task": task, "plan": plan, "history": history or "-"}
    name = "observer_last" if last else "observer"
    return dialogue.render(name, language, need=need, documents=documents, **values)


def parse(text: str) -> Decision:
    """Raises dialogue.ReplyError."""
    fields = dialogue.parse_object(text)
    action = fields.get("action")
    if not isinstance(action, str) or action not in ACTIONS:
        raise dialogue.ReplyError(
            f'"action" must be one of {", ".join(ACTIONS)}, not {action!r:.80}'
        )
    field = ACTIONS[action]
    value = dialogue.text_field(fields, field) if field else ""
    return Decision(action, dialogue.text_field(fields, "thought"), value)

"""The observer: reads what a search returned and decides what comes next."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection
from typing import Any

from masksearch_jax.agents import dialogue
from masksearch_jax.agents.llm_client import Message

# The field that carries an action's object; giving up needs none.
ACTIONS = {"answer": "answer", "next": "need", "revise": "need", "give_up": ""}
# After so many searches in a row that found nothing of use, memory is asked (MaskSearch, 3.2).
MAX_FAILURES = 2


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


def knowledge_messages(
    task: str, plan: str, history: str, need: str, documents: str, language: str
) -> list[Message]:
    """Asks for what the observer knows by heart, once searching has failed often enough."""
    values = {"task": task, "plan": plan, "history": history or "-", "need": need}
    failures = str(MAX_FAILURES)
    return dialogue.render(
        "observer_knowledge", language, failures=failures, documents=documents, **values
    )


def parse_knowledge(text: str) -> Decision:
    """As `parse`, without another plan to choose."""
    return parse(text, ("answer", "next", "give_up"))


def parse(text: str, actions: Collection[str] = tuple(ACTIONS)) -> Decision:
    """Raises dialogue.ReplyError."""
    fields = dialogue.parse_object(text)
    action = fields.get("action")
    if not isinstance(action, str) or action not in actions:
        raise dialogue.ReplyError(
            f'"action" must be one of {", ".join(actions)}, not {action!r:.80}'
        )
    field = ACTIONS[action]
    value = dialogue.text_field(fields, field) if field else ""
    return Decision(action, dialogue.text_field(fields, "thought"), value)

"""The observer: reads what a search, or a tool, returned and decides what comes next."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from masksearch_jax.agents import dialogue
from masksearch_jax.agents.llm_client import Message
from masksearch_jax.core.markup import SEARCH
from masksearch_jax.core.tools import Instructions

# The field that carries an action's object; giving up needs none.
ACTIONS = {"answer": "answer", "next": "need", "revise": "need", "give_up": "", "call": "request"}
_OF_SEARCH = ("answer", "next", "revise", "give_up")
# After so many searches in a row that found nothing of use, memory is asked (MaskSearch, 3.2).
MAX_FAILURES = 2


@dataclasses.dataclass(frozen=True)
class Decision:
    """`action`: answer (`text` is the answer), next (`text` is the next need of the same plan),
    revise (`text` is the first need of another plan), give_up (`text` is empty), call (`text` is
    the request of `tool`)."""

    action: str
    thought: str
    text: str
    tool: str = SEARCH  # what is asked next


def messages(
    task: str,
    plan: str,
    history: str,
    need: str,
    documents: str,
    last: bool,
    language: str,
    tools: Sequence[Instructions] = (),
) -> list[Message]:
    """`last`: no search is left, so the observer is told to answer or give up.

    tools: those that it may call besides search.
    """
    values: dict[str, Any] = {"task": task, "plan": plan, "history": history or "-"}
    name = "observer_last" if last else "observer"
    rendered = dialogue.render(name, language, need=need, documents=documents, **values)
    if tools:
        told = "\n".join(f"- {tool.name}: {tool.offers}; {tool.usage}" for tool in tools)
        also = dialogue.fill("observer_tools", language, tools=told)
        rendered[0]["content"] += f"\n\n{also}"
    return rendered


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


def parse(text: str, actions: Sequence[str] = _OF_SEARCH, tools: Sequence[str] = ()) -> Decision:
    """tools: names of those that may be called. Raises dialogue.ReplyError."""
    actions = (*actions, "call") if tools else actions
    fields = dialogue.parse_object(text)
    action = fields.get("action")
    if not isinstance(action, str) or action not in actions:
        raise dialogue.ReplyError(
            f'"action" must be one of {", ".join(actions)}, not {action!r:.80}'
        )
    field = ACTIONS[action]
    value = dialogue.text_field(fields, field) if field else ""
    tool = fields.get("tool") if action == "call" else SEARCH
    if action == "call" and tool not in tools:
        raise dialogue.ReplyError(f'"tool" must be one of {", ".join(tools)}, not {tool!r:.80}')
    return Decision(action, dialogue.text_field(fields, "thought"), value, str(tool))

"""What an OpenAI-compatible endpoint answers: a reply, an error in its place, the models it serves.

Servers differ in what they send; nothing here asks.
"""

from __future__ import annotations

from typing import Any

from masksearch_jax.agents.llm_cache import Stored
from masksearch_jax.core.retry_after import retry_after

_CUT = ("length", "max_tokens")  # finish_reason of a reply that ended at a limit
_LONGEST = 366 * 86400.0  # seconds; what asks for more is no pause but a mistake
_MOST_TOKENS = 10**12  # that a reply may be said to have cost
# finish_reason of a reply that a fault or a filter ended, not the model; `abort` is an engine's.
_NOT_THE_MODELS = ("error", "abort", "cancelled", "content_filter")
_TEXT = ("text", "output_text")  # type of a part of the content that is said, not thought


class UselessError(Exception):
    """The endpoint answered with nothing to use: worth asking again, not worth keeping."""


def read_reply(answer: Any) -> Stored:
    """Text and cost of whatever the endpoint sent as JSON; raises UselessError for no reply."""
    choices = answer.get("choices") if isinstance(answer, dict) else None
    if not isinstance(choices, list) or not choices:
        raise UselessError("a reply without choices")
    choice, used = as_object(choices[0]), as_object(answer.get("usage"))
    message, reason = choice.get("message"), choice.get("finish_reason")
    if not isinstance(message, dict):
        raise UselessError("a reply without a message")
    if isinstance(reason, str) and reason in _NOT_THE_MODELS:
        raise UselessError(f"a reply that the endpoint broke off (finish_reason {reason})")
    if not isinstance(message.get("content"), str | list | None):
        raise UselessError("a message whose content is neither text nor a list of parts")
    text = _text(message.get("content")) or _text(message.get("refusal"))
    counts = [used.get(name) for name in ("prompt_tokens", "completion_tokens")]
    paid = (n if type(n) is int and 0 <= n <= _MOST_TOKENS else 0 for n in counts)
    is_cut = reason in _CUT
    return Stored(text.encode("utf-8", "replace").decode(), *paid, is_cut)  # no lone surrogates


def as_object(value: Any) -> dict[str, Any]:
    """The value where it is an object, else an empty one."""
    return value if isinstance(value, dict) else {}


def _text(content: Any) -> str:
    """The text of a message's content, a string or a list of parts; thoughts are left out."""
    parts = content if isinstance(content, list) else [content]
    parts = ({"text": part} if isinstance(part, str) else as_object(part) for part in parts)
    texts = (part.get("text") for part in parts if part.get("type", "text") in _TEXT)
    return "".join(text for text in texts if isinstance(text, str))


def fingerprint_of(answer: Any, model: str) -> str:
    """What tells the weights behind a model's name from others, of /models; "" where nothing does.

    `serve_model` tells it, most others do not.
    """
    listed = as_object(answer).get("data")
    for about in map(as_object, listed if isinstance(listed, list) else ()):
        found = about.get("fingerprint")
        if about.get("id") == model and isinstance(found, str):
            return found
    return ""


def pause_of(header: str) -> float:
    """Seconds that a Retry-After header asks for; 0 for longer than a year, as for none."""
    seconds = retry_after(header)
    return seconds if seconds <= _LONGEST else 0.0

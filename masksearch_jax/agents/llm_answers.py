"""What an OpenAI-compatible endpoint answers: a reply, an error in its place, the models it serves.

Servers differ in what they send; nothing here asks.
"""

from __future__ import annotations

import json
import re
from typing import Any

from etils import epy

from masksearch_jax.agents.llm_cache import Stored

with epy.lazy_imports():  # it takes more than a second, and the other teachers do without
    import openai

_CUT = ("length", "max_tokens")  # finish_reason of a reply that ended at a limit
# finish_reason of a reply that a fault or a filter ended, not the model; `abort` is an engine's.
_NOT_THE_MODELS = ("error", "abort", "cancelled", "content_filter")
_TEXT = ("text", "output_text")  # type of a part of the content that is said, not thought
_HOPELESS = frozenset({401, 402})  # wrong key, no money: no call will get a reply
# The same, as OpenAI says it with other statuses: a 429 that no wait can help, a 400.
_HOPELESS_CODES = frozenset(
    {"insufficient_quota", "billing_not_active", "billing_hard_limit_reached"}
)


class UselessError(Exception):
    """The endpoint answered with nothing to use: worth asking again, not worth keeping."""


def read_reply(answer: Any) -> Stored:
    """Text and cost of whatever the endpoint sent as JSON; raises UselessError for no reply."""
    choices = answer.get("choices") if isinstance(answer, dict) else None
    if not isinstance(choices, list) or not choices:
        raise UselessError("a reply without choices")
    choice, used = _object(choices[0]), _object(answer.get("usage"))
    message, reason = choice.get("message"), choice.get("finish_reason")
    if not isinstance(message, dict):
        raise UselessError("a reply without a message")
    if isinstance(reason, str) and reason in _NOT_THE_MODELS:
        raise UselessError(f"a reply that the endpoint broke off (finish_reason {reason})")
    if not isinstance(message.get("content"), str | list | None):
        raise UselessError("a message whose content is neither text nor a list of parts")
    text = _text(message.get("content")) or _text(message.get("refusal"))
    counts = [used.get(name) for name in ("prompt_tokens", "completion_tokens")]
    paid = (count if type(count) is int else 0 for count in counts)
    is_cut = reason in _CUT
    return Stored(text.encode("utf-8", "replace").decode(), *paid, is_cut)  # no lone surrogates


def _object(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _text(content: Any) -> str:
    """The text of a message's content, a string or a list of parts; thoughts are left out."""
    parts = content if isinstance(content, list) else [content]
    parts = ({"text": part} if isinstance(part, str) else _object(part) for part in parts)
    texts = (part.get("text") for part in parts if part.get("type", "text") in _TEXT)
    return "".join(text for text in texts if isinstance(text, str))


def check_no_error(answer: Any, response: Any) -> None:
    """Raises what an error in the place of a reply, though sent with 200, says it is.

    With a status as its code, or one that says that no call will be answered, it is an
    APIStatusError; else worth another attempt.
    """
    answer = _object(answer)
    choices = answer.get("choices")
    first = _object(choices[0]) if isinstance(choices, list) and choices else {}
    error = answer.get("error") or first.get("error")
    is_error = answer.get("object") == "error" or not choices
    if not error and is_error and (answer.get("message") or answer.get("detail")):
        error = answer
    if not error:
        return
    found = _object(error)
    said = found.get("message") or found.get("detail") or error
    said = said if isinstance(said, str) else json.dumps(said)
    code = str(found.get("code") or found.get("status"))
    failure = openai.APIStatusError(said, response=response, body=error)
    if re.fullmatch("[45][0-9][0-9]", code):
        failure.status_code = int(code)
    elif not is_hopeless(failure):
        raise UselessError(f"an error in place of a reply: {said}")
    raise failure


def is_hopeless(error: Exception) -> bool:
    """Whether every other call would fail too."""
    return isinstance(error, openai.APIStatusError) and (
        error.status_code in _HOPELESS or not _HOPELESS_CODES.isdisjoint((error.code, error.type))
    )


def fingerprint_of(answer: Any, model: str) -> str:
    """What tells the weights behind a model's name from others, of /models; "" where nothing does.

    `serve_model` tells it, most others do not.
    """
    listed = _object(answer).get("data")
    for about in map(_object, listed if isinstance(listed, list) else ()):
        found = about.get("fingerprint")
        if about.get("id") == model and isinstance(found, str):
            return found
    return ""

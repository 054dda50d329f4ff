"""What an error of an OpenAI-compatible endpoint says: try again, call no more, or refused."""

from __future__ import annotations

import json
import random
import re
from typing import Any

from etils import epy

from masksearch_jax.agents.llm_answers import UselessError, as_object, pause_of

with epy.lazy_imports():  # it takes more than a second
    import openai

RETRIED = frozenset({408, 409, 425, 429, 500, 502, 503, 504, 529})  # statuses that may pass
_HOPELESS = frozenset({401, 402})  # wrong key, no money: no call will get a reply
# The same, as OpenAI says it with other statuses: a 429 that no wait can help, a 400.
_HOPELESS_CODES = frozenset(
    {"insufficient_quota", "billing_not_active", "billing_hard_limit_reached"}
)
_DETAIL = 300  # characters of an error without a sentence


def check_no_error(answer: Any, response: Any) -> None:
    """Raises what an error in the place of a reply, though sent with 200, says it is.

    With a status as its code, or one that says that no call will be answered, it is an
    APIStatusError; else worth another attempt.
    """
    answer = as_object(answer)
    choices = answer.get("choices")
    first = as_object(choices[0]) if isinstance(choices, list) and choices else {}
    error = answer.get("error") or first.get("error")
    is_error = answer.get("object") == "error" or not choices
    if not error and is_error and (answer.get("message") or answer.get("detail")):
        error = answer
    if not error:
        return
    found = as_object(error)
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


def refusal(error: Exception) -> int:
    """The status by which a call was refused for good; 0 for an error that may pass."""
    cause = error.__cause__
    if not isinstance(cause, openai.APIStatusError) or not 400 <= cause.status_code < 500:
        return 0
    return 0 if cause.status_code in RETRIED else cause.status_code


def is_worth_retrying(error: Exception) -> bool:
    if isinstance(error, openai.APIStatusError):
        return error.status_code in RETRIED
    return isinstance(error, openai.APIConnectionError | TimeoutError | UselessError)


def wait(error: Exception, backoff: float) -> tuple[float, float]:
    """Seconds before the next attempt (spread by up to a half), and those the endpoint asks for."""
    own, asked = backoff * random.uniform(1.0, 1.5), 0.0
    if isinstance(error, openai.APIStatusError):
        asked = pause_of(error.response.headers.get("retry-after", ""))
    return max(own, asked), asked


def name(error: Exception) -> str:
    if isinstance(error, openai.APIStatusError):
        return f"HTTP {error.status_code}: {_sentence(error)}"
    if isinstance(error, TimeoutError | openai.APITimeoutError):
        return "no reply in time"
    if isinstance(error, UselessError):
        return str(error)
    return f"{type(error).__name__}: {error}"


def _sentence(error: Any) -> str:
    """What the endpoint itself says of an error: its sentence, where the form is a usual one."""
    said = error.body
    for field in ("error", "message", "detail"):
        said = said.get(field, said) if isinstance(said, dict) else said
    if isinstance(said, str) and said.strip():
        return said
    return json.dumps(said)[:_DETAIL] if said else error.message

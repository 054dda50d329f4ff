"""How every LLM role speaks: a prompt file in, one JSON object out, or a rejection.

A prompt file is `prompts/NAME.LANGUAGE.txt`: the system message, a line `===`, the user message, or
a text alone; `$name` in it is a placeholder.
"""

from __future__ import annotations

import functools
import json
import re
import string
from collections.abc import Callable
from importlib import resources
from typing import Any, TypeVar

from masksearch_jax.agents.llm_client import LLM, Message
from masksearch_jax.core.types import Example, RampExample

T = TypeVar("T")

LANGUAGES = ("en", "zh")
# How models begin and end a thought.
_NAMES = "(think|thinking|thoughts?|reasoning|reflection|analysis|scratchpad|seed:think)"
_OPENED = re.compile(
    rf"<\s*{_NAMES}\s*>|\[think\]|◁think▷|<\|begin_of_thought\|>|<\|channel\|>analysis<\|message\|>",
    re.IGNORECASE,
)
_CLOSED = re.compile(
    rf"<\s*/\s*{_NAMES}\s*>|\[/think\]|◁/think▷|<\|end_of_thought\|>|<\|channel\|>final<\|message\|>",
    re.IGNORECASE,
)
_FENCE = re.compile(r"```[\w-]*\n(.*?)```", re.DOTALL)


class ReplyError(ValueError):
    """A reply that does not hold what was asked for; the message says what is wrong."""


def render(name: str, language: str, **values: str) -> list[Message]:
    """The messages of prompt `name`. Placeholders in `values` themselves are left as they are.

    Raises ValueError for an unknown language, KeyError for a placeholder without a value.
    """
    parts = _read(name, language).split("\n===\n")
    roles = ("system", "user")
    filled = [string.Template(part.strip()).substitute(values) for part in parts]
    return [{"role": r, "content": p} for r, p in zip(roles, filled, strict=True)]


def fill(name: str, language: str, **values: str) -> str:
    """The text `name`, filled in as in `render`."""
    return string.Template(_read(name, language).strip()).substitute(values)


def task_text(example: Example, language: str) -> str:
    """The task of an example as it is told to a role."""
    ramp = isinstance(example, RampExample)
    name, text = ("task_ramp", example.masked) if ramp else ("task_question", example.question)
    return fill(name, language, text=text)


@functools.cache
def _read(name: str, language: str) -> str:
    if language not in LANGUAGES:
        raise ValueError(f"language is {language!r}, must be one of {', '.join(LANGUAGES)}")
    folder = resources.files("masksearch_jax.agents").joinpath("prompts")
    return folder.joinpath(f"{name}.{language}.txt").read_text(encoding="utf-8")


def parse_object(text: str) -> dict[str, Any]:
    """The one JSON object of a reply; thoughts before it, prose and code fences around it are cut.

    Line breaks inside strings are let through, nothing else is mended. Raises ReplyError when
    there is no object, a broken one or more than one, and for a thought that does not end.
    """
    text = _after_thought(text)
    fences = _FENCE.findall(text)
    text = fences[0] if len(fences) == 1 else text
    value, end = _decode(text)
    if "{" in text[end:]:
        raise ReplyError("there is more than one JSON object")
    return value


def _after_thought(text: str) -> str:
    """What follows the last end of a thought, whose beginning may be left out.

    A tag inside the strings of an object is no end. Raises ReplyError for a thought without one.
    """
    start = 0
    for tag in _CLOSED.finditer(text):
        first, end = _object(text[start:])
        if not start + first < tag.start() < start + end:
            start = tag.end()
    rest = text[start:]
    first, end = _object(rest)
    if _OPENED.search(rest[:first]) or _OPENED.search(rest[end:]):
        raise ReplyError("a thought is opened and never closed")
    return rest


def _object(text: str) -> tuple[int, int]:
    """Where the first whole JSON object begins and ends; at the text's end where there is none."""
    try:
        return text.find("{"), _decode(text)[1]
    except ReplyError:
        return len(text), len(text)


def _decode(text: str) -> tuple[dict[str, Any], int]:
    """The JSON object at the first brace, and where it ends. Raises ReplyError."""
    start = text.find("{")
    if start < 0:
        raise ReplyError("there is no JSON object")
    try:
        return json.JSONDecoder(strict=False).raw_decode(text, start)
    except (ValueError, RecursionError) as error:  # ValueError: also of a number of many digits
        raise ReplyError(f"the JSON is broken: {error}") from error


def text_field(fields: dict[str, Any], name: str) -> str:
    """A non-empty string field, stripped. Raises ReplyError."""
    value = fields.get(name)
    if not isinstance(value, str) or not value.strip():
        raise ReplyError(f'"{name}" must be a non-empty string, not {value!r:.80}')
    return clean(value).strip()


def clean(text: str) -> str:
    """The text with lone surrogates, which JSON may hold and no file can, made U+FFFD."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


async def ask(
    llm: LLM, messages: list[Message], parse: Callable[[str], T], language: str, repairs: int = 1
) -> T:
    """The parsed reply; an unusable one is shown back with what is wrong, `repairs` times at most.

    Raises ReplyError when the last reply is still unusable, and at once where an unusable one was
    cut off, as the next would be; LLMError when there is none.
    """
    for left in range(repairs, -1, -1):
        reply = await llm.complete(messages)
        try:
            found = parse(reply.text)
            llm.count_read(messages, reply, True)
            return found
        except ReplyError as error:
            llm.count_read(messages, reply, False)
            if reply.is_cut:
                raise ReplyError(
                    f"cut off after {reply.completion_tokens} tokens (finish_reason length; "
                    f"{llm.section}.max_tokens is {llm.cfg.max_tokens}): {error}"
                ) from error
            if not left:
                raise
            llm.usage.repairs += 1
            again = fill("again", language, error=str(error))
            messages = [
                *messages,
                {"role": "assistant", "content": reply.text},
                {"role": "user", "content": again},
            ]
    raise AssertionError("unreachable: the last reply returns or raises")

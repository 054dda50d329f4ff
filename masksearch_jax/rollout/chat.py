"""OpenAI's chat and completion protocols: a request read. `replies` has what is written back."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Collection, Mapping
from http import HTTPStatus
from typing import Any

from masksearch_jax.core.rollout_config import RolloutConfig
from masksearch_jax.core.types import JsonObject
from masksearch_jax.rollout.sampling import Sampler, sampler_of
from masksearch_jax.runtime.http_service import Refusal

ROLES = ("system", "developer", "user", "assistant")
AGENT = ":agent"  # after a model's name: the model with live search
MOST_CHOICES = 128
# Fields that would change a reply, and the one value of each that is served: what absent means.
_SERVED: JsonObject = {
    "best_of": 1,
    "stop_token_ids": [],
    "tools": [],
    "functions": [],
    "tool_choice": "none",
    "top_logprobs": 0,
    "logit_bias": {},
    "presence_penalty": 0,
    "frequency_penalty": 0,
    "repetition_penalty": 1,
    "length_penalty": 1,
    "min_tokens": 0,
    "ignore_eos": False,
    "echo": False,
    "suffix": "",
    "use_beam_search": False,
    "add_generation_prompt": True,
    "continue_final_message": False,
    "skip_special_tokens": True,
    "chat_template_kwargs": {},
    "response_format": {"type": "text"},
    "modalities": ["text"],
}
# Fields that change no reply.
_HARMLESS = {
    "metadata",
    "parallel_tool_calls",
    "priority",
    "prompt_cache_key",
    "request_id",
    "safety_identifier",
    "service_tier",
    "store",
    "user",
}
_READ = {"model", "seed", "max_tokens", "n", "stop", "stream", "stream_options", "logprobs",
         "return_token_ids", "temperature", "top_p", "top_k", "min_p", *_SERVED}  # fmt: skip
_READ_OF_CHATS = {*_READ, "messages", "max_completion_tokens", "agent"}
_READ_OF_COMPLETIONS = {*_READ, "prompt"}


@dataclasses.dataclass(frozen=True)
class Asked:
    """What a request says of its replies, whatever they are of."""

    sampler: Sampler
    max_new_tokens: int  # 0: as many as the service allows
    seed: int | None  # of its randomness; None: one of its own
    choices: int  # of each prompt
    stop: tuple[str, ...]
    logprobs: bool
    token_ids: bool  # in the reply
    stream: bool
    usage: bool  # as the last event of a stream


@dataclasses.dataclass(frozen=True)
class Chat(Asked):
    """A request for replies to a conversation, or for an agent's answer to a question."""

    messages: tuple[Mapping[str, str], ...]  # of role and content
    agent: bool


@dataclasses.dataclass(frozen=True)
class Completion(Asked):
    """A request for continuations of prompts, each a text or token ids."""

    prompts: tuple[str | tuple[int, ...], ...]


def parse_chat(content: JsonObject, model: str, cfg: RolloutConfig, has_agent: bool) -> Chat:
    """The request in a JSON object, for a service that has `model`; cfg: what absent fields mean.

    Fields of null are absent. Raises Refusal: 404 for another model, 400 for all else that is amiss
    or cannot be served, fields that are not known included.
    """
    given = _given(content)
    names = [model, *([f"{model}{AGENT}"] if has_agent else [])]
    name = _model(given, names)
    agent = _is_set("agent", given) or (name.endswith(AGENT) and name != model)
    if agent and not has_agent:
        raise _bad(
            "`agent` is true, and this service has no search tool: start it with "
            "--config.agent=True"
        )
    asked = _asked(given, cfg, _READ_OF_CHATS, "max_completion_tokens")
    messages = _messages(given.get("messages"))
    if agent:
        _check_agent(messages, asked)
    return Chat(**_values(asked), messages=messages, agent=agent)


def parse_completion(
    content: JsonObject, model: str, cfg: RolloutConfig, vocab_size: int
) -> Completion:
    """As `parse_chat`. Token ids are below `vocab_size`."""
    given = _given(content)
    _model(given, [model])
    # The number of alternatives here; 0: the token's own alone.
    if (logprobs := given.get("logprobs")) is not None:
        if logprobs is True or logprobs not in (0, 1, False):
            raise _bad(f"`logprobs` is {_short(logprobs)}; this service knows only 0 and 1: a "
                       "token's own")  # fmt: skip
        given["logprobs"] = logprobs is not False
    asked = _asked(given, cfg, _READ_OF_COMPLETIONS, "max_tokens")
    return Completion(**_values(asked), prompts=_prompts(given.get("prompt"), vocab_size))


def _values(asked: Asked) -> dict[str, Any]:
    return {f.name: getattr(asked, f.name) for f in dataclasses.fields(asked)}


def _given(content: JsonObject) -> JsonObject:
    return {name: value for name, value in content.items() if value is not None}


def _model(given: JsonObject, names: Collection[str]) -> str:
    there = " and ".join(map(repr, names))
    if "model" not in given:
        raise _bad(f"`model` is missing; this service has {there}")
    if given["model"] not in names:
        raise Refusal(
            HTTPStatus.NOT_FOUND,
            f"`model` is {_short(given['model'])}; this service has {there}",
            "model_not_found",
        )
    return given["model"]


def _asked(given: JsonObject, cfg: RolloutConfig, known: Collection[str], limit: str) -> Asked:
    for name, served in _SERVED.items():
        if given.get(name, served) != served:
            unknown = ", which this service does not know: leave it out"
            said = unknown if served in ([], {}) else f"; this service knows only {served!r}"
            raise _bad(f"`{name}` is {_short(given[name])}{said}")
    if strange := sorted(given.keys() - known - _HARMLESS):
        raise _bad(
            f"`{strange[0][:80]}` is {_short(given[strange[0]])}, which this service does "
            "not know: leave it out, or the reply may not be what you ask for"
        )
    options = given.get("stream_options", {})
    if not isinstance(options, dict):
        raise _bad(f"`stream_options` is {_short(options)}, must be an object")
    tokens = given.get(limit, given.get("max_tokens"))
    return Asked(
        sampler=_sampler(given, sampler_of(cfg)),
        max_new_tokens=0 if tokens is None else _whole("max_tokens", tokens, 1, math.inf),
        seed=_whole("seed", given["seed"], -math.inf, math.inf) if "seed" in given else None,
        choices=_whole("n", given.get("n", 1), 1, MOST_CHOICES),
        stop=_stop(given.get("stop", [])),
        logprobs=_is_set("logprobs", given),
        token_ids=_is_set("return_token_ids", given),
        stream=_is_set("stream", given),
        usage=bool(options.get("include_usage")),
    )


def _sampler(given: JsonObject, ours: Sampler) -> Sampler:
    top_k = given.get("top_k", ours.top_k)
    return Sampler(
        _number("temperature", given.get("temperature", ours.temperature), 0, 100),
        0 if top_k == -1 else _whole("top_k", top_k, 0, 2**24),  # -1 and 0: all
        _number("top_p", given.get("top_p", ours.top_p), 0, 1),
        _number("min_p", given.get("min_p", ours.min_p), 0, 1),
    )


def _number(name: str, value: object, least: float, most: float) -> float:
    if type(value) not in (int, float) or not least <= value <= most:  # type: ignore[operator]
        raise _bad(f"`{name}` is {_short(value)}, must be a number from {least} to {most}")
    return float(value)  # type: ignore[arg-type]


def _whole(name: str, value: object, least: float, most: float) -> int:
    if type(value) is int and least <= value <= most:
        return value
    above = f" above {least - 1}" if most == math.inf else f" from {least} to {most}"
    raise _bad(
        f"`{name}` is {_short(value)}, must be a whole number{'' if least == -math.inf else above}"
    )


def _is_set(name: str, given: JsonObject) -> bool:
    value = given.get(name, False)
    if type(value) is not bool:
        raise _bad(f"`{name}` is {_short(value)}, must be true or false")
    return value


def _stop(value: object) -> tuple[str, ...]:
    stops = [value] if isinstance(value, str) else value
    if not isinstance(stops, list) or not all(isinstance(s, str) and s for s in stops):
        raise _bad(f"`stop` is {_short(value)}, must be a text, or a list of texts, none empty")
    return tuple(map(_whole_text, stops))


def _check_agent(messages: tuple[Mapping[str, str], ...], asked: Asked) -> None:
    """Raises Refusal for what an agent was not trained to read, or cannot say."""
    if len(messages) != 1 or messages[0]["role"] != "user":
        raise _bad(
            f"`messages` has {len(messages)}; an agent reads one question: a message of the user, "
            "without any other"
        )
    for name in ("logprobs", "token_ids"):
        if getattr(asked, name):
            raise _bad(f"`{name}` is of plain replies; an agent's answer has none")


def _messages(given: object) -> tuple[Mapping[str, str], ...]:
    if not isinstance(given, list) or not given:
        raise _bad("`messages` must be a list of at least one {role, content}")
    found = []
    for i, message in enumerate(given):
        role, content = (
            message.get(k) if isinstance(message, dict) else None for k in ("role", "content")
        )
        if role not in ROLES:
            choices = ", ".join(ROLES)
            raise _bad(f"`messages[{i}].role` is {_short(role)}, must be one of {choices}")
        role = "system" if role == "developer" else role
        text = _text(content, f"messages[{i}].content")
        found.append({"role": role, "content": _whole_text(text)})
    return tuple(found)


def _whole_text(text: str) -> str:
    """JSON may hold lone surrogates, which are in no text."""
    return text.encode("utf-8", "replace").decode()


def _text(content: object, where: str) -> str:
    """The text of a message: a string, or text parts one after the other."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list) or not content:
        raise _bad(f"`{where}` is {_short(content)}, must be a string or a list of text parts")
    texts = []
    for i, part in enumerate(content):
        kind = part.get("type") if isinstance(part, dict) else None
        if kind != "text" or not isinstance(part.get("text"), str):
            raise _bad(
                f"`{where}[{i}]` is {_short(part)}; this service reads text parts alone: "
                '{"type": "text", "text": "..."}'
            )
        texts.append(part["text"])
    return "".join(texts)


def _prompts(given: object, vocab_size: int) -> tuple[str | tuple[int, ...], ...]:
    """A text, token ids, or a list of either."""

    def is_ids(value: object) -> bool:
        if not isinstance(value, list) or not value:
            return False
        return all(type(i) is int and 0 <= i < vocab_size for i in value)

    several = [given] if isinstance(given, str) or is_ids(given) else given
    is_known: Callable[[object], bool] = lambda p: isinstance(p, str) or is_ids(p)  # noqa: E731
    if not isinstance(several, list) or not several or not all(map(is_known, several)):
        raise _bad(
            f"`prompt` is {_short(given)}, must be a text, a list of token ids from 0 to "
            f"{vocab_size - 1}, or a list of either"
        )
    return tuple(_whole_text(p) if isinstance(p, str) else tuple(p) for p in several)


def _bad(message: str) -> Refusal:
    return Refusal(HTTPStatus.BAD_REQUEST, message)


def _short(value: object) -> str:
    return f"{value!r:.80}"

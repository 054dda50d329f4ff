"""OpenAI's chat protocol, as far as one sampler for all goes: a request read, a reply written."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping
from http import HTTPStatus

from masksearch_jax.core.rollout_config import RolloutConfig
from masksearch_jax.core.types import JsonObject, Trajectory
from masksearch_jax.runtime.http_service import Refusal

ROLES = ("system", "user", "assistant")
_SAMPLER = ("temperature", "top_p", "top_k", "min_p")
# Fields that would change a reply, and the one value of each that is served: what absent means.
_SERVED: JsonObject = {
    "stream": False,
    "n": 1,
    "best_of": 1,
    "stop": [],
    "stop_token_ids": [],
    "tools": [],
    "functions": [],
    "tool_choice": "none",
    "logprobs": False,
    "top_logprobs": 0,
    "logit_bias": {},
    "presence_penalty": 0,
    "frequency_penalty": 0,
    "repetition_penalty": 1,
    "length_penalty": 1,
    "min_tokens": 0,
    "ignore_eos": False,
    "echo": False,
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
    "stream_options",
    "user",
}
_READ = frozenset(
    ("model", "messages", "seed", "max_tokens", "max_completion_tokens", *_SAMPLER, *_SERVED)
)


@dataclasses.dataclass(frozen=True)
class Chat:
    """A request for one reply."""

    messages: tuple[Mapping[str, str], ...]  # of role and content
    max_new_tokens: int  # 0: as many as the service allows
    seed: int | None  # of its randomness; None: one of its own


def parse(content: JsonObject, model: str, cfg: RolloutConfig) -> Chat:
    """The request in a JSON object, for a service that has `model` and samples as `cfg` says.

    Fields of null are absent. Raises Refusal: 404 for another model, 400 for all else that is amiss
    or would have to be sampled in another way, fields that are not known included.
    """
    given = {name: value for name, value in content.items() if value is not None}
    _check_model(given, model)
    for name, served in _SERVED.items():
        if given.get(name, served) != served:
            raise _bad(f"`{name}` is {_short(given[name])}; this service knows only {served!r}")
    if strange := sorted(given.keys() - _READ - _HARMLESS):
        raise _bad(
            f"`{strange[0][:80]}` is {_short(given[strange[0]])}, which this service does "
            "not know: leave it out, or the reply may not be what you ask for"
        )
    for name in _SAMPLER:
        _check_sampler(name, given.get(name, getattr(cfg, name)), getattr(cfg, name))
    limit = given.get("max_completion_tokens", given.get("max_tokens"))
    if limit is not None and (type(limit) is not int or limit < 1):
        raise _bad(f"`max_tokens` is {_short(limit)}, must be a whole number above 0")
    seed = given.get("seed")
    if seed is not None and type(seed) is not int:
        raise _bad(f"`seed` is {_short(seed)}, must be a whole number")
    return Chat(_messages(given.get("messages")), limit or 0, seed)


def reply(trajectory: Trajectory, model: str) -> JsonObject:
    """The chat completion of a plain trajectory, which has ended by itself or at its limit."""
    sampled = int(trajectory.sampled.sum())
    message = {"role": "assistant", "content": trajectory.text_by("policy")}
    reason = "stop" if trajectory.status == "answered" else "length"
    return {
        "id": trajectory.example_id,
        "object": "chat.completion",
        "created": int(time.time()),
        "model": model,
        "choices": [{"index": 0, "message": message, "logprobs": None, "finish_reason": reason}],
        "usage": {
            "prompt_tokens": trajectory.prompt_len,
            "completion_tokens": sampled,
            "total_tokens": trajectory.prompt_len + sampled,
        },
    }


def error(refusal: Refusal) -> JsonObject:
    """A refusal in OpenAI's format."""
    ours = refusal.status >= HTTPStatus.INTERNAL_SERVER_ERROR
    kind = "server_error" if ours else "invalid_request_error"
    about = {"message": str(refusal), "type": kind, "param": None, "code": refusal.code or None}
    return {"error": about}


def _check_model(given: JsonObject, model: str) -> None:
    if "model" not in given:
        raise _bad(f"`model` is missing; this service has {model!r}")
    if given["model"] != model:
        raise Refusal(
            HTTPStatus.NOT_FOUND,
            f"`model` is {_short(given['model'])}; this service has {model!r}",
            "model_not_found",
        )


def _check_sampler(name: str, asked: object, ours: float) -> None:
    if type(asked) not in (int, float):
        raise _bad(f"`{name}` is {_short(asked)}, must be a number")
    if asked != ours:
        raise _bad(
            f"`{name}` is {_short(asked)}, and this service samples all with {ours!r}: leave it "
            f"out, or start the service with --config.rollout.{name}={asked!r}"
        )


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
        text = _text(content, f"messages[{i}].content")
        # JSON may hold lone surrogates, which are in no text.
        found.append({"role": role, "content": text.encode("utf-8", "replace").decode()})
    return tuple(found)


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


def _bad(message: str) -> Refusal:
    return Refusal(HTTPStatus.BAD_REQUEST, message)


def _short(value: object) -> str:
    return f"{value!r:.80}"

"""How an OpenAI-compatible endpoint is called: for agents, extractors, and the judge of rewards."""

from __future__ import annotations

import dataclasses
from typing import Literal

from masksearch_jax.core.schema import key, share

_USER = "a key goes into the environment variable that api_key_env names"


@dataclasses.dataclass(frozen=True)
class LLMConfig:
    """How one endpoint is called. Seconds are wall-clock, prices in any one currency."""

    base_url: str = key(
        "http://localhost:8000/v1", "Of an OpenAI-compatible endpoint.", harmless=True, user=_USER
    )
    model: str = key("Qwen2.5-72B-Instruct", "Name and pinned version, as the endpoint spells it.")
    api_key_env: str = key(
        "OPENAI_API_KEY",
        "Environment variable that holds the key; unset: none is needed.",
        harmless=True,
    )
    temperature: float = key(0.7, "Of sampling; 0: greedy.", least=0)
    max_tokens: int = key(1024, "Of one reply.", least=1)
    max_tokens_field: Literal["max_tokens", "max_completion_tokens"] = key(
        "max_tokens",
        "Name of max_tokens in a request; newer models of OpenAI take the second alone.",
        harmless=True,
    )
    send_temperature: bool = key(True, "False: left out, for models that refuse one.")
    concurrency: int = key(32, "Requests in flight.", harmless=True, least=1)
    timeout: float = key(120.0, "Seconds of one attempt.", harmless=True, least=0.001)
    deadline: float = key(
        600.0,
        "Seconds of one call from its turn on, its retries and waits included.",
        harmless=True,
        least=0.001,
    )
    retries: int = key(6, "Attempts after the first.", harmless=True, least=0)
    backoff: float = key(
        1.0, "Seconds before the first retry; doubles with each.", harmless=True, least=0
    )
    cache: str = key("", "SQLite file of the replies paid for.", harmless=True)
    replay: bool = key(
        False, "Answer from the cache alone, and stop where it lacks a reply.", harmless=True
    )
    budget: int = key(
        0,
        "Tokens ever paid for into this cache, prompts included; 0: no limit.",
        harmless=True,
        least=0,
    )
    max_cost: float = key(
        0.0,
        "Cost of the tokens ever paid for into this cache; 0: no limit.",
        harmless=True,
        least=0,
    )
    prompt_price: float = key(0.0, "Of a million prompt tokens.", harmless=True, least=0)
    completion_price: float = key(0.0, "Of a million completion tokens.", harmless=True, least=0)


@dataclasses.dataclass(frozen=True)
class JudgeConfig(LLMConfig):
    """The judge of `dapo.reward=judge`: an OpenAI-compatible endpoint, or the model itself."""

    base_url: str = key(
        "",
        "Address of the judge's endpoint; `dapo.reward=judge` needs it, or own_model.",
        harmless=True,
        user=_USER,
    )
    own_model: bool = key(
        False,
        (
            "The model that is trained judges, by the weights of each step, decoded by the run's "
            "engine at rollout.temperature; of the other keys max_tokens, language and "
            "max_unreadable alone count."
        ),
    )
    temperature: float = key(0.0, "Of sampling; 0: greedy, the same verdict each time.", least=0)
    max_tokens: int = key(256, "Of one verdict with its reason.", least=1)
    timeout: float = key(60.0, "Seconds of one attempt.", harmless=True, least=0.001)
    deadline: float = key(
        180.0,
        "Seconds of one verdict from its turn on, its retries and waits included.",
        harmless=True,
        least=0.001,
    )
    retries: int = key(4, "Attempts after the first.", harmless=True, least=0)
    cache: str = key("runs/judge.sqlite", "SQLite file of the verdicts paid for.", harmless=True)
    language: Literal["en", "zh"] = key("en", "Of its prompt.")
    max_unreadable: float = share(
        0.5,
        (
            "Share of its verdicts, of a step or a method's answers, that may be unreadable: these "
            "train nobody and are in no mean; beyond it the judge counts as down, or evaluate ends "
            "with 1."
        ),
        harmless=True,
    )


@dataclasses.dataclass(frozen=True)
class EndpointConfig(LLMConfig):
    """A model behind an OpenAI-compatible endpoint, evaluated in place of one of ours."""

    base_url: str = key(
        "", "Of the endpoint; empty: config.init is evaluated.", harmless=True, user=_USER
    )
    temperature: float = key(0.0, "Not read: eval.temperature is in its place.", least=0)
    cache: str = key(
        "", "SQLite file of the replies paid for; empty: WORKDIR/replies.sqlite.", harmless=True
    )

"""A client of any OpenAI-compatible chat endpoint that pays for no reply twice.

Every call has a deadline, bounded retries, a place in a concurrency limit, an entry in a cache on
disk and a share of a budget. A reply is in the cache before it is used: of a process that is killed
at most the requests in flight, `concurrency` of them, are asked and paid for again.
"""

from __future__ import annotations

import asyncio
import dataclasses
import datetime
import email.utils
import os
import random
import types
import weakref
from collections.abc import Sequence
from typing import Any

from etils import epy

from masksearch_jax.agents.llm_cache import Paid, Replies, RepliesError, Stored, key_of
from masksearch_jax.core.errors import check_given

with epy.lazy_imports():  # it takes more than a second, and the other teachers do without
    import openai

Message = dict[str, str]  # {"role": "system" | "user" | "assistant", "content": text}

_RETRIED = frozenset({408, 409, 425, 429, 500, 502, 503, 504, 529})
_HOPELESS = frozenset({401, 403, 404})  # wrong key, no permission, no such model or address


@dataclasses.dataclass(frozen=True)
class LLMConfig:
    """How one endpoint is called. Seconds are wall-clock, prices in any one currency."""

    base_url: str  # e.g. http://localhost:8000/v1
    model: str  # name and pinned version, as the endpoint spells it
    api_key_env: str  # environment variable that holds the key; unset: none is needed
    temperature: float
    max_tokens: int  # of one reply
    concurrency: int  # requests in flight
    timeout: float  # of one attempt
    deadline: float  # of one call, its retries and waits included
    retries: int  # attempts after the first
    backoff: float  # wait before the first retry; doubles with each
    cache: str  # SQLite file of the replies paid for
    replay: bool  # answer from the cache alone, and stop where it lacks a reply
    budget: int  # tokens ever paid for into this cache, prompts included; 0: no limit
    max_cost: float  # the same in money; 0: no limit
    prompt_price: float  # of a million prompt tokens
    completion_price: float  # of a million completion tokens


# Settings that change no reply: where, how fast and at what price one is asked for.
NO_MATTER = (
    *("base_url", "api_key_env", "concurrency", "timeout", "deadline", "retries", "backoff"),
    *("cache", "replay", "budget", "max_cost", "prompt_price", "completion_price"),
)


class LLMError(RuntimeError):
    """One call gave no reply: refused, out of retries, or past its deadline. Others may."""


class JobError(RuntimeError):
    """No call can succeed any more (key, model or quota refused, cache unusable): stop the job."""


class BudgetError(JobError):
    """The budget is spent: stop and keep what there is."""


@dataclasses.dataclass(frozen=True)
class Reply:
    text: str
    prompt_tokens: int
    completion_tokens: int
    cached: bool


@dataclasses.dataclass
class Usage:
    """What this process did. `repairs`: replies shown back to the model, since unusable."""

    calls: int = 0
    cached: int = 0
    retries: int = 0
    repairs: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0


class LLM:
    """Asks one endpoint. Use as `async with LLM(cfg) as llm: await llm.complete(messages)`.

    Raises JobError at once when the cache cannot be opened.
    """

    def __init__(self, cfg: LLMConfig):
        address = "the address of an OpenAI-compatible endpoint"
        file = "the SQLite file that keeps the replies paid for"
        check_given(cfg, "config.llm", base_url=address, model="the model to ask", cache=file)
        self.cfg = cfg
        self.usage = Usage()
        try:
            self._replies = Replies(cfg.cache)
        except RepliesError as error:
            raise JobError(str(error)) from error
        self._reserved = 0  # completion tokens that the requests in flight may still cost
        self._settled = asyncio.Event()  # set each time that one of them has ended
        self._gate = asyncio.Semaphore(cfg.concurrency)
        self._pause = 0.0  # until this time on the loop's clock nobody asks: the endpoint said so
        self._stopped: JobError | None = None
        # One lock per question, so that two who ask the same pay once.
        self._locks: weakref.WeakValueDictionary[str, asyncio.Lock] = weakref.WeakValueDictionary()
        self._client = openai.AsyncOpenAI(
            base_url=cfg.base_url,
            api_key=os.environ.get(cfg.api_key_env) or "none",
            max_retries=0,  # retries are ours: they share the deadline and are counted
            timeout=cfg.timeout,
        )

    async def __aenter__(self) -> LLM:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: types.TracebackType | None,
    ) -> None:
        await self._client.close()
        self._replies.close()

    @property
    def paid(self) -> Paid:
        """All that was ever paid for into this cache, by this process or another."""
        return self._replies.paid()

    async def complete(self, messages: Sequence[Message], sample: int = 0) -> Reply:
        """The reply to a conversation, from the cache if it was ever asked.

        `sample` tells apart independent replies to the same messages. Raises LLMError (with the
        cause) when there is no reply in time, BudgetError when the budget could not cover one,
        JobError when asking anything more is useless; after that every reply that is not in the
        cache raises the same, while those in flight come in and are kept.
        """
        request = self._request(messages)
        key = key_of(request, sample)
        lock = self._locks.setdefault(key, asyncio.Lock())
        async with lock:
            try:
                return await self._complete(key, request)
            except RepliesError as error:
                self._stopped = JobError(str(error))
                raise self._stopped from error
            except JobError as error:
                self._stopped = error
                raise

    def _request(self, messages: Sequence[Message]) -> dict[str, Any]:
        cfg = self.cfg
        return {
            "model": cfg.model,
            "messages": list(messages),
            "temperature": cfg.temperature,
            "max_tokens": cfg.max_tokens,
        }

    async def _complete(self, key: str, request: dict[str, Any]) -> Reply:
        if found := self._replies.find(key):
            self.usage.cached += 1
            return Reply(*found, cached=True)
        if self._stopped:
            raise self._stopped
        if self.cfg.replay:
            if failure := self._replies.failure(key):
                raise LLMError(failure)
            raise JobError(f"llm.replay: a request is not recorded in {self.cfg.cache}")
        try:
            reply = await self._with_retries(request)
        except LLMError as error:
            self._replies.keep_failure(key, request, str(error))
            raise
        self._replies.keep(key, request, reply)
        self.usage.calls += 1
        self._count(reply)
        return Reply(*reply, cached=False)

    def _count(self, reply: Stored) -> None:
        self.usage.prompt_tokens += reply.prompt_tokens
        self.usage.completion_tokens += reply.completion_tokens

    async def _with_retries(self, request: dict[str, Any]) -> Stored:
        clock = asyncio.get_running_loop().time
        end = clock() + self.cfg.deadline
        for attempt in range(self.cfg.retries + 1):
            try:
                async with asyncio.timeout_at(end), self._gate:
                    await self._wait_for_pause(end)
                    return await self._attempt(request)
            except (openai.APIError, TimeoutError, _UselessError) as error:
                if _hopeless(error):
                    raise JobError(f"{self.cfg.base_url}: {_name(error)}") from error
                if not _worth_retrying(error) or attempt == self.cfg.retries:
                    raise LLMError(f"{_name(error)} after {attempt + 1} attempt(s)") from error
                wait, asked = _wait(error, self.cfg.backoff * 2**attempt)
                self._pause = max(self._pause, clock() + asked)
                if clock() + wait >= end:
                    raise LLMError(
                        f"{_name(error)}; the next attempt in {wait:.1f} s would pass the "
                        f"deadline of {self.cfg.deadline:g} s"
                    ) from error
            self.usage.retries += 1
            await asyncio.sleep(wait)
        raise AssertionError("unreachable: the last attempt returns or raises")

    async def _wait_for_pause(self, end: float) -> None:
        """Until the time that a Retry-After named, to whichever call; LLMError if past `end`."""
        clock = asyncio.get_running_loop().time
        while (left := self._pause - clock()) > 0:
            if self._pause >= end:
                raise LLMError(
                    f"the endpoint asked for a pause of {left:.1f} s more, which would pass the "
                    f"deadline of {self.cfg.deadline:g} s"
                )
            await asyncio.sleep(left)

    async def _attempt(self, request: dict[str, Any]) -> Stored:
        """One request, its completion tokens reserved while it is in flight."""
        await self._reserve()
        try:
            async with asyncio.timeout(self.cfg.timeout):
                answer = await self._client.chat.completions.create(**request)
        except ValueError as error:  # a body that is no JSON
            raise _UselessError("a reply that is no JSON") from error
        finally:
            self._reserved -= self.cfg.max_tokens
            self._settled.set()
        reply = _read(answer)
        if not reply.text:
            self._replies.add_cost(reply.prompt_tokens, reply.completion_tokens)
            self._count(reply)
            raise _UselessError("an empty reply")
        return reply

    async def _reserve(self) -> None:
        """Sets the tokens of one reply aside, once those in flight leave room for them.

        Raises BudgetError when even then they would not fit. A prompt's tokens are known only when
        it is paid for: the prompts in flight may pass the budget.
        """
        cfg = self.cfg
        while True:
            if not self._fits(cfg.max_tokens):
                paid = self._replies.paid()
                cost = cost_of(cfg, paid.prompt_tokens, paid.completion_tokens)
                raise BudgetError(
                    f"the budget of {_budget(cfg)} cannot cover another reply: "
                    f"{paid.prompt_tokens + paid.completion_tokens} tokens ({cost:.4f} in money) "
                    f"spent, {cfg.max_tokens} tokens asked for; raise llm.budget or llm.max_cost "
                    "and start the same command again"
                )
            if self._fits(self._reserved + cfg.max_tokens):
                self._reserved += cfg.max_tokens
                return
            self._settled.clear()
            await self._settled.wait()

    def _fits(self, tokens: int) -> bool:
        cfg = self.cfg
        paid = self._replies.paid()
        in_tokens = paid.prompt_tokens + paid.completion_tokens + tokens
        in_money = cost_of(cfg, paid.prompt_tokens, paid.completion_tokens + tokens)
        return not (cfg.budget and in_tokens > cfg.budget) and not (
            cfg.max_cost and in_money > cfg.max_cost
        )


def cost_of(cfg: LLMConfig, prompt_tokens: int, completion_tokens: int) -> float:
    """By the configured prices."""
    return (prompt_tokens * cfg.prompt_price + completion_tokens * cfg.completion_price) / 1e6


def _budget(cfg: LLMConfig) -> str:
    limits = [f"{cfg.budget} tokens"] if cfg.budget else []
    limits += [f"{cfg.max_cost:g} in money"] if cfg.max_cost else []
    return " or ".join(limits)


class _UselessError(Exception):
    """The endpoint answered with nothing to use: worth asking again, not worth keeping."""


def _read(answer: Any) -> Stored:
    """Text and cost of whatever the endpoint sent as JSON; raises _UselessError for no reply."""
    choices = getattr(answer, "choices", None)
    if not isinstance(choices, list):
        raise _UselessError("a reply without choices")
    message = getattr(choices[0], "message", None) if choices else None
    text = getattr(message, "content", None)
    used = getattr(answer, "usage", None)
    counts = [getattr(used, name, 0) for name in ("prompt_tokens", "completion_tokens")]
    paid = (count if isinstance(count, int) else 0 for count in counts)
    text = text if isinstance(text, str) else ""
    return Stored(text.encode("utf-8", "replace").decode(), *paid)  # no lone surrogates


def _hopeless(error: Exception) -> bool:
    """Whether every other call would fail too; a spent quota is a 429 no wait can help."""
    return isinstance(error, openai.APIStatusError) and (
        error.status_code in _HOPELESS or error.code == "insufficient_quota"
    )


def _worth_retrying(error: Exception) -> bool:
    if isinstance(error, openai.APIStatusError):
        return error.status_code in _RETRIED
    return isinstance(error, openai.APIConnectionError | TimeoutError | _UselessError)


def _wait(error: Exception, backoff: float) -> tuple[float, float]:
    """Seconds before the next attempt (spread by up to a half), and those the endpoint asks for."""
    wait, asked = backoff * random.uniform(1.0, 1.5), 0.0
    if isinstance(error, openai.APIStatusError):
        asked = retry_after(error.response.headers.get("retry-after", ""))
    return max(wait, asked), asked


def retry_after(header: str) -> float:
    """Seconds that a Retry-After header asks for, as a number or an HTTP date; 0 if unreadable."""
    try:
        return max(0.0, float(header))
    except ValueError:
        pass
    try:
        date = email.utils.parsedate_to_datetime(header)
    except ValueError:
        return 0.0
    return max(0.0, (date - datetime.datetime.now(datetime.UTC)).total_seconds())


def _name(error: Exception) -> str:
    if isinstance(error, openai.APIStatusError):
        return f"HTTP {error.status_code}: {error.message}"
    if isinstance(error, TimeoutError | openai.APITimeoutError):
        return "no reply in time"
    if isinstance(error, _UselessError):
        return str(error)
    return f"{type(error).__name__}: {error}"

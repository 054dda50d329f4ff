"""A client of any OpenAI-compatible chat endpoint that pays for no reply twice.

Every call has a deadline, bounded retries, a place in a concurrency limit, an entry in a cache on
disk and a share of a budget. A reply is in the cache before it is used: of a process that is killed
at most the requests in flight, `concurrency` of them, are asked and paid for again.
"""

from __future__ import annotations

import asyncio
import dataclasses
import functools
import json
import math
import os
import weakref
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeVar

from etils import epy

from masksearch_jax.agents import llm_errors
from masksearch_jax.agents.llm_answers import UselessError, fingerprint_of, read_reply
from masksearch_jax.agents.llm_cache import Paid, Replies, RepliesError, Stored, key_of
from masksearch_jax.core.errors import ConfigError, check_given
from masksearch_jax.core.llm_config import LLMConfig

with epy.lazy_imports():  # it takes more than a second, and the other teachers do without
    import openai

T = TypeVar("T")
Message = dict[str, str]  # {"role": "system" | "user" | "assistant", "content": text}

_QUOTED = 200  # characters of a reply that an error shows
OUTAGE = 200  # failures of a job with no other outcome between them: a service is down
_FIRST = 8  # calls of a job; where none of them gets a reply, no other will
_REFUSALS = 8  # calls in a row that are refused; then all are
_OF_THE_REQUEST = frozenset({400, 413, 422})  # what is asked may be to blame: its words, its length


class LLMError(RuntimeError):
    """One call gave no reply: refused, out of retries, or past its deadline. Others may."""


class JobError(RuntimeError):
    """No call can succeed any more: stop the job.

    A key, quota or account that is refused, a cache that cannot be used, an endpoint that refuses
    call after call (no such model or address, a setting it does not take), or that gave none of the
    first calls a reply (nobody there).
    """


class BudgetError(JobError):
    """The budget is spent: stop and keep what there is."""


@dataclasses.dataclass(frozen=True)
class Reply:
    text: str
    prompt_tokens: int
    completion_tokens: int
    cached: bool
    is_cut: bool = False  # it ended at the limit of tokens, not by itself


@dataclasses.dataclass
class Usage:
    """What this process did.

    parsed, unreadable: replies that held what was asked for, and that did not, cached ones too.
    repairs: those shown back to the model, since unusable. cut_off: replies that ended at
    `max_tokens` or the model's own limit, cached ones too.
    """

    calls: int = 0
    cached: int = 0
    retries: int = 0
    parsed: int = 0
    unreadable: int = 0
    repairs: int = 0
    cut_off: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0


def check_endpoint(cfg: LLMConfig, section: str) -> None:
    """Raises ConfigError where `cfg`, at that path of the user's config, names no endpoint.

    Or where it limits a cost that has no price.
    """
    address = "the address of an OpenAI-compatible endpoint"
    file = "the SQLite file that keeps the replies paid for"
    check_given(cfg, section, base_url=address, model="the model to ask", cache=file)
    if cfg.max_cost and not cfg.prompt_price and not cfg.completion_price:
        raise ConfigError(
            f"{section}.max_cost is {cfg.max_cost:g}, and no token has a price, so that the limit "
            f"would never hold; give {section}.prompt_price and {section}.completion_price"
        )


class LLM:
    """Asks one endpoint. Use as `async with LLM(cfg) as llm: await llm.complete(messages)`.

    section: the path of `cfg` in the user's config, for messages. takes_empty: whether an empty
    reply is one, else it is asked for again. Raises JobError at once when the cache cannot be
    opened.
    """

    def __init__(self, cfg: LLMConfig, section: str = "config.llm", *, takes_empty: bool = False):
        check_endpoint(cfg, section)
        self.cfg, self.section, self._takes_empty = cfg, section, takes_empty
        self.usage = Usage()
        self._unread: dict[str, str] = {}  # by key, until one reply can be read
        try:
            self._replies = Replies(cfg.cache)
        except RepliesError as error:
            raise JobError(str(error)) from error
        self._reserved = 0  # completion tokens that the requests in flight may still cost
        self._settled = asyncio.Event()  # set each time that one of them has ended
        self._gate = asyncio.Semaphore(cfg.concurrency)
        self._pause = 0.0  # until this time on the loop's clock nobody asks: the endpoint said so
        self._stopped: JobError | None = None
        self._begun = self._first_failed = 0  # calls; and of the first ones, those without a reply
        self._refused = 0  # calls since the last good reply
        self._replied = -math.inf  # when any call last got a reply, on the loop's clock
        self._served: asyncio.Future[str] | None = None  # of `served`, once somebody asks
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

    async def __aexit__(self, *_: object) -> None:
        if self._served:
            self._served.cancel()
        await self._client.close()
        self._replies.close()

    @property
    def paid(self) -> Paid:
        """All that was ever paid for into this cache, by this process or another."""
        return self._replies.paid()

    async def served(self) -> str:
        """What tells the weights behind the model's name from others; "" where nobody does.

        It is asked once; in a replay it is what was told last. Raises JobError where it is down:
        replies of other weights could not be told from its own.
        """
        if self._served is None:
            self._served = asyncio.ensure_future(self._ask_served())
        return await asyncio.shield(self._served)

    async def _ask_served(self) -> str:
        try:
            if self.cfg.replay:
                return self._replies.served(self.cfg.model)
            found = await self._with_retries(self._list_models)
            self._replies.keep_served(self.cfg.model, found)
        except RepliesError as error:
            raise JobError(str(error)) from error
        except LLMError as error:
            raise JobError(f"{self.cfg.base_url} does not say what it serves: {error}") from error
        return found

    async def _list_models(self) -> str:
        """One request. Of an endpoint that refuses it, or sends no JSON, nothing is known."""
        try:
            async with asyncio.timeout(self.cfg.timeout):
                sent = await self._client.models.with_raw_response.list()
                return fingerprint_of(json.loads(sent.http_response.content), self.cfg.model)
        except openai.APIStatusError as error:
            if error.status_code in llm_errors.RETRIED:
                raise
        except (ValueError, RecursionError):
            pass
        return ""

    async def complete(self, messages: Sequence[Message], sample: int = 0) -> Reply:
        """The reply to a conversation, from the cache if it was ever asked.

        `sample` tells apart independent replies to the same messages. The deadline of a call begins
        with its turn among `concurrency`, for which it waits while others get replies. Raises
        LLMError (with the cause) when there is no reply in time, BudgetError when the budget could
        not cover one, JobError when asking anything more is useless; after that every reply that is
        not in the cache raises the same, while those in flight come in and are kept.
        """
        request = self._request(messages)
        try:
            key = key_of(request, sample, await self.served())
            lock = self._locks.setdefault(key, asyncio.Lock())
            async with lock:
                return await self._complete(key, request)
        except RepliesError as error:
            self._stopped = JobError(str(error))
            raise self._stopped from error
        except JobError as error:
            self._stopped = error
            raise

    def forget(self, messages: Sequence[Message], sample: int = 0) -> None:
        """The reply to a conversation is not taken from the cache again; a replay keeps it."""
        if not self.cfg.replay:
            self._replies.forget(self._key(messages, sample))

    def count_read(self, messages: Sequence[Message], reply: Reply, is_read: bool) -> None:
        """Counts whether the reply held what was asked for."""
        if is_read:
            self.usage.parsed += 1
            self._unread.clear()
            return
        self.usage.unreadable += 1
        if not self.usage.parsed:
            self._unread[self._key(messages, 0)] = reply.text

    def forget_unread(self) -> str:
        """Where there were replies and none could be read, has all asked for anew, and says so.

        So a page of a proxy, sent in the place of what a model says, is not kept. Else "".
        """
        if not self._unread or self.cfg.replay:
            return ""
        said = next(iter(self._unread.values()))
        for key in self._unread:
            self._replies.forget(key)
        count, self._unread = len(self._unread), {}
        return (
            f"not one of {count} replies of {self.section}.model {self.cfg.model!r} at "
            f"{self.cfg.base_url} held what was asked for; the first: {said[:_QUOTED]!r}; once "
            "this is mended, the same command asks for all of them anew"
        )

    def _key(self, messages: Sequence[Message], sample: int) -> str:
        """Of what was asked before, so that it is known who was."""
        served = self._served.result() if self._served and self._served.done() else ""
        return key_of(self._request(messages), sample, served)

    def _request(self, messages: Sequence[Message]) -> dict[str, Any]:
        cfg = self.cfg
        request = {"model": cfg.model, "messages": list(messages)}
        if cfg.send_temperature:
            request["temperature"] = cfg.temperature
        return request | {cfg.max_tokens_field: cfg.max_tokens}

    async def _complete(self, key: str, request: dict[str, Any]) -> Reply:
        if found := self._replies.find(key):
            self.usage.cached += 1
            self.usage.cut_off += found.is_cut
            return Reply(*found[:3], cached=True, is_cut=found.is_cut)
        if self._stopped:
            raise self._stopped
        if self.cfg.replay:
            if failure := self._replies.failure(key):
                raise LLMError(failure)
            raise JobError(f"{self.section}.replay: a request is not recorded in {self.cfg.cache}")
        self._begun += 1
        first = self._begun <= _FIRST
        try:
            reply = await self._with_retries(functools.partial(self._attempt, request))
        except LLMError as error:
            before = self._replies.failure(key)
            self._replies.keep_failure(key, request, str(error))
            self._first_failed += first
            status = llm_errors.refusal(error)
            self._refused += bool(status) and not (
                status in _OF_THE_REQUEST and before == str(error)
            )
            if first and self._first_failed == _FIRST and not self._replies.has_any(self.cfg.model):
                raise JobError(
                    f"{self.cfg.base_url}: none of the first {_FIRST} calls got a reply: {error}"
                ) from error
            if status and self._refused >= _REFUSALS:
                raise JobError(
                    f"{self.cfg.base_url}: {_REFUSALS} calls in a row were refused: {error}"
                ) from error
            raise
        self._refused = 0
        self._replies.keep(key, request, reply)
        self.usage.calls += 1
        self._count(reply)
        self.usage.cut_off += reply.is_cut
        return Reply(*reply[:3], cached=False, is_cut=reply.is_cut)

    def _count(self, reply: Stored) -> None:
        self.usage.prompt_tokens += reply.prompt_tokens
        self.usage.completion_tokens += reply.completion_tokens

    async def _with_retries(self, attempt_once: Callable[[], Awaitable[T]]) -> T:
        clock = asyncio.get_running_loop().time
        end = clock() + self.cfg.deadline
        for attempt in range(self.cfg.retries + 1):
            try:
                queued = clock()
                await self._take_turn()
                try:
                    end += clock() - queued  # waiting for its turn is our doing
                    async with asyncio.timeout_at(end):
                        await self._wait_for_pause(end)
                        found = await attempt_once()
                finally:
                    self._gate.release()
                self._replied = clock()
                return found
            except (openai.APIError, TimeoutError, UselessError) as error:
                said = llm_errors.name(error)
                if llm_errors.is_hopeless(error):
                    raise JobError(f"{self.cfg.base_url}: {said}") from error
                if not llm_errors.is_worth_retrying(error) or attempt == self.cfg.retries:
                    raise LLMError(f"{said} after {attempt + 1} attempt(s)") from error
                wait, asked = llm_errors.wait(error, self.cfg.backoff * 2**attempt)
                self._pause = max(self._pause, clock() + asked)
                if clock() + wait >= end:
                    raise LLMError(
                        f"{said}; the next attempt in {wait:.1f} s would pass the "
                        f"deadline of {self.cfg.deadline:g} s"
                    ) from error
            self.usage.retries += 1
            await asyncio.sleep(wait)
        raise AssertionError("unreachable: the last attempt returns or raises")

    async def _take_turn(self) -> None:
        """Acquires the gate; LLMError once no call has had a reply for as long as the deadline."""
        clock = asyncio.get_running_loop().time
        began = clock()
        while True:
            end = max(began, self._replied) + self.cfg.deadline
            try:
                async with asyncio.timeout_at(end):
                    await self._gate.acquire()
                    return
            except TimeoutError as error:
                if clock() >= max(began, self._replied) + self.cfg.deadline:
                    raise LLMError(
                        f"no call got a reply in {self.cfg.deadline:g} s, and this one waited for "
                        "its turn"
                    ) from error

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
                sent = await self._client.chat.completions.with_raw_response.create(**request)
                answer = json.loads(sent.http_response.content)
        except (ValueError, RecursionError) as error:
            raise UselessError("a reply that is no JSON") from error
        finally:
            self._reserved -= self.cfg.max_tokens
            self._settled.set()
        llm_errors.check_no_error(answer, sent.http_response)
        reply = read_reply(answer)
        if not (reply.text or reply.is_cut or self._takes_empty):
            self._replies.add_cost(reply.prompt_tokens, reply.completion_tokens)
            self._count(reply)
            raise UselessError("an empty reply")
        return reply

    async def _reserve(self) -> None:
        """Sets the tokens of one reply aside, once those in flight leave room for them.

        Raises BudgetError when even then they would not fit. A prompt's tokens are known only when
        it is paid for: the prompts in flight may pass the budget.
        """
        cfg = self.cfg
        while True:
            if not self._has_budget(cfg.max_tokens):
                paid = self._replies.paid()
                cost = cost_of(cfg, paid.prompt_tokens, paid.completion_tokens)
                raise BudgetError(
                    f"the budget of {_budget(cfg)} cannot cover another reply: "
                    f"{paid.prompt_tokens + paid.completion_tokens} tokens ({cost:.4f} in money) "
                    f"spent, {cfg.max_tokens} tokens asked for; raise {self.section}.budget or "
                    f"{self.section}.max_cost and start the same command again"
                )
            if self._has_budget(self._reserved + cfg.max_tokens):
                self._reserved += cfg.max_tokens
                return
            self._settled.clear()
            await self._settled.wait()

    def _has_budget(self, tokens: int) -> bool:
        cfg = self.cfg
        paid = self._replies.paid()
        in_tokens = paid.prompt_tokens + paid.completion_tokens + tokens
        in_money = cost_of(cfg, paid.prompt_tokens, paid.completion_tokens + tokens)
        return not (cfg.budget and in_tokens > cfg.budget) and not (
            cfg.max_cost and in_money > cfg.max_cost
        )


def served_by(cfg: LLMConfig, section: str = "config.llm") -> str:
    """`LLM.served` of an endpoint. Raises JobError where it is down."""

    async def ask() -> str:
        async with LLM(cfg, section) as llm:
            return await llm.served()

    return asyncio.run(ask())


def cost_of(cfg: LLMConfig, prompt_tokens: int, completion_tokens: int) -> float:
    """By the configured prices."""
    return (prompt_tokens * cfg.prompt_price + completion_tokens * cfg.completion_price) / 1e6


def _budget(cfg: LLMConfig) -> str:
    limits = [f"{cfg.budget} tokens"] if cfg.budget else []
    limits += [f"{cfg.max_cost:g} in money"] if cfg.max_cost else []
    return " or ".join(limits)

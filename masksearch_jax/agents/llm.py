"""A client of any OpenAI-compatible chat endpoint that pays for no call twice.

Every call has a deadline, bounded retries, a place in a concurrency limit, an entry in a cache on
disk and a share of a token budget.
"""

from __future__ import annotations

import asyncio
import dataclasses
import datetime
import email.utils
import hashlib
import json
import os
import pathlib
import random
import sqlite3
import types
import weakref
from collections.abc import Sequence

import openai

Message = dict[str, str]  # {"role": "system" | "user" | "assistant", "content": text}

_RETRIED = frozenset({408, 409, 425, 429, 500, 502, 503, 504, 529})
_HOPELESS = frozenset({401, 403, 404})  # wrong key, no permission, no such model or address
_TABLE = """create table if not exists replies (
    key text primary key, text text, prompt_tokens integer, completion_tokens integer
) without rowid"""


@dataclasses.dataclass(frozen=True)
class LLMConfig:
    """How one endpoint is called. Seconds are wall-clock."""

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
    budget: int  # tokens ever paid for into this cache, prompts included; 0: no limit


class LLMError(RuntimeError):
    """One call gave no reply: refused, out of retries, or past its deadline. Others may."""


class JobError(RuntimeError):
    """No call can succeed any more (key, model or quota refused, cache unusable): stop the job."""


class BudgetError(JobError):
    """The token budget is spent: stop and keep what there is."""


@dataclasses.dataclass(frozen=True)
class Reply:
    text: str
    prompt_tokens: int
    completion_tokens: int
    cached: bool


@dataclasses.dataclass
class Usage:
    """What this process did: replies from the network and the cache, retries, tokens paid for."""

    calls: int = 0
    cached: int = 0
    retries: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0


class LLM:
    """Asks one endpoint. Use as `async with LLM(cfg) as llm: await llm.complete(messages)`.

    Raises JobError at once when the cache cannot be opened.
    """

    def __init__(self, cfg: LLMConfig):
        self.cfg = cfg
        self.usage = Usage()
        self._cache = _open_cache(cfg.cache)
        self._reserved = 0  # completion tokens that the requests in flight may still cost
        self._gate = asyncio.Semaphore(cfg.concurrency)
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
        self._cache.close()

    @property
    def spent(self) -> int:
        """Tokens ever paid for into this cache, by this process or another."""
        row = self._cache.execute("select sum(prompt_tokens + completion_tokens) from replies")
        return row.fetchone()[0] or 0

    async def complete(self, messages: Sequence[Message], sample: int = 0) -> Reply:
        """The reply to a conversation, from the cache if it was ever asked.

        `sample` tells apart independent replies to the same messages. Raises LLMError (with the
        cause) when there is no reply in time, BudgetError when the budget could not cover one,
        JobError when asking anything more is useless.
        """
        key = self._key(messages, sample)
        lock = self._locks.setdefault(key, asyncio.Lock())
        async with lock:
            row = self._cache.execute(
                "select text, prompt_tokens, completion_tokens from replies where key = ?", [key]
            ).fetchone()
            if row:
                self.usage.cached += 1
                return Reply(*row, cached=True)
            reply = await self._with_retries(list(messages))
            self._keep(key, reply)
            self.usage.calls += 1
            self.usage.prompt_tokens += reply.prompt_tokens
            self.usage.completion_tokens += reply.completion_tokens
            return reply

    def _key(self, messages: Sequence[Message], sample: int) -> str:
        asked = [self.cfg.model, self.cfg.temperature, self.cfg.max_tokens, list(messages), sample]
        return hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()

    def _keep(self, key: str, reply: Reply) -> None:
        row = [key, reply.text, reply.prompt_tokens, reply.completion_tokens]
        try:
            self._cache.execute("insert or replace into replies values (?, ?, ?, ?)", row)
        except sqlite3.Error as error:
            raise JobError(
                f"cannot write the cache of replies {self.cfg.cache}: {error}"
            ) from error

    async def _with_retries(self, messages: list[Message]) -> Reply:
        clock = asyncio.get_running_loop().time
        end = clock() + self.cfg.deadline
        for attempt in range(self.cfg.retries + 1):
            try:
                async with asyncio.timeout_at(end), self._gate:
                    return await self._attempt(messages)
            except (openai.APIError, TimeoutError, _EmptyReplyError) as error:
                if _hopeless(error):
                    raise JobError(f"{self.cfg.base_url}: {_name(error)}") from error
                if not _worth_retrying(error) or attempt == self.cfg.retries:
                    raise LLMError(f"{_name(error)} after {attempt + 1} attempt(s)") from error
                wait = _wait(error, self.cfg.backoff * 2**attempt)
                if clock() + wait >= end:
                    raise LLMError(
                        f"{_name(error)}; the next attempt in {wait:.1f} s would pass the "
                        f"deadline of {self.cfg.deadline:g} s"
                    ) from error
            self.usage.retries += 1
            await asyncio.sleep(wait)
        raise AssertionError("unreachable: the last attempt returns or raises")

    async def _attempt(self, messages: list[Message]) -> Reply:
        """One request, its completion tokens reserved while it is in flight."""
        cfg = self.cfg
        if cfg.budget and self.spent + self._reserved + cfg.max_tokens > cfg.budget:
            raise BudgetError(
                f"the budget of {cfg.budget} tokens cannot cover another reply: {self.spent} "
                f"spent, {self._reserved} reserved by calls in flight, {cfg.max_tokens} asked for"
            )
        self._reserved += cfg.max_tokens
        try:
            async with asyncio.timeout(cfg.timeout):
                answer = await self._client.chat.completions.create(
                    model=cfg.model,
                    messages=messages,
                    temperature=cfg.temperature,
                    max_tokens=cfg.max_tokens,
                )
        finally:
            self._reserved -= cfg.max_tokens
        text = answer.choices[0].message.content if answer.choices else None
        if not text:
            raise _EmptyReplyError
        used = answer.usage
        paid = (used.prompt_tokens, used.completion_tokens) if used else (0, 0)
        return Reply(text, *paid, cached=False)


class _EmptyReplyError(Exception):
    """The endpoint answered without text: worth asking again, not worth keeping."""


def _open_cache(path: str) -> sqlite3.Connection:
    try:
        pathlib.Path(path).parent.mkdir(parents=True, exist_ok=True)
        database = sqlite3.connect(path, timeout=30, isolation_level=None)
        database.execute("pragma journal_mode=wal")
        database.execute(_TABLE)
    except (sqlite3.Error, OSError) as error:
        raise JobError(f"cannot open the cache of replies {path}: {error}") from error
    return database


def _hopeless(error: Exception) -> bool:
    """Whether every other call would fail too; a spent quota is a 429 no wait can help."""
    return isinstance(error, openai.APIStatusError) and (
        error.status_code in _HOPELESS or error.code == "insufficient_quota"
    )


def _worth_retrying(error: Exception) -> bool:
    if isinstance(error, openai.APIStatusError):
        return error.status_code in _RETRIED
    return isinstance(error, openai.APIConnectionError | TimeoutError | _EmptyReplyError)


def _wait(error: Exception, backoff: float) -> float:
    """Seconds before the next attempt: what Retry-After says at least, spread by up to a half."""
    wait = backoff * random.uniform(1.0, 1.5)
    if isinstance(error, openai.APIStatusError):
        wait = max(wait, retry_after(error.response.headers.get("retry-after", "")))
    return wait


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
    if isinstance(error, _EmptyReplyError):
        return "an empty reply"
    return f"{type(error).__name__}: {error}"

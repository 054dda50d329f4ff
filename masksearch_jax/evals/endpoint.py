"""Items asked of an OpenAI-compatible endpoint: the agent's loop on text, a conversation an item.

An endpoint gives text: a trajectory of one has segments and turns, and neither token ids nor
log-probabilities.
"""

from __future__ import annotations

import asyncio
import dataclasses
import functools
import os
import time
from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np

from masksearch_jax.agents.llm_client import LLM, JobError, LLMError, Message, served_by
from masksearch_jax.core import markup
from masksearch_jax.core.config import EvalRun
from masksearch_jax.core.errors import UserError
from masksearch_jax.core.llm_config import EndpointConfig
from masksearch_jax.core.retrieval import SearchError
from masksearch_jax.core.tools import Result, Toolbox, ToolError, budgets
from masksearch_jax.core.types import Segment, Status, Trajectory, Turn
from masksearch_jax.data import methods
from masksearch_jax.evals.results import RESULTS
from masksearch_jax.evals.sampling import Asked, Sampled
from masksearch_jax.runtime import run_record, storage
from masksearch_jax.runtime.call_pool import AsyncCalls

SERVED = "endpoint.model"  # the key whose content is told
STYLE = "chat"  # of its prompts: the endpoint applies its own template


class EndpointError(UserError):
    """No call of the endpoint can succeed any more; what is done is kept."""


def settings_of(cfg: EvalRun) -> EndpointConfig:
    """How the endpoint is called: at eval.temperature, its replies kept in the run's folder."""
    cache = cfg.endpoint.cache or os.path.join(cfg.workdir, "replies.sqlite")
    return dataclasses.replace(cfg.endpoint, temperature=cfg.eval.temperature, cache=cache)


def content_of(cfg: EvalRun) -> dict[str, str]:
    """{SERVED: what tells the weights behind the endpoint's model from others}; {} where none does.

    Of a finished evaluation what its record says: nothing is asked of its endpoint, which may have
    gone. Raises EndpointError for one that is down.
    """
    if not cfg.endpoint.base_url:
        return {}
    workdir = storage.path(cfg.workdir)
    before = run_record.read(workdir) if (workdir / RESULTS).exists() else None
    if before is not None:
        served = before["content"].get(SERVED, "")
    else:
        try:
            served = served_by(settings_of(cfg), "config.endpoint")
        except JobError as error:
            raise EndpointError(f"the endpoint: {error}") from error
    return {SERVED: served} if served else {}


class EndpointSampler:
    """Asks an endpoint, `endpoint.concurrency` items at once.

    A reply is read up to its first closing action, as the rollout engine stops there; what a tool
    finds is the user's next message. An empty reply is the model's: an item without an answer.
    `check` is called before each item is handed over.
    """

    def __init__(self, cfg: EvalRun, method: str, tools: Toolbox, check: Callable[[], None]):
        self._cfg, self._tools, self._check = cfg, tools, check
        self._budgets = budgets(cfg.rollout.tool_turns, tools.names)
        self._max_turns = 0 if method in methods.SINGLE_TURN else cfg.rollout.max_turns

    def __call__(self, asked: Sequence[Asked], each: Callable[[Sampled], bool]) -> None:
        """Raises EndpointError where no call can succeed, and what `each` and `check` raise."""
        try:
            asyncio.run(self._ask_all(asked, each))
        except JobError as error:
            raise EndpointError(f"the endpoint: {error}") from error

    async def _ask_all(self, asked: Sequence[Asked], each: Callable[[Sampled], bool]) -> None:
        gate = asyncio.Semaphore(self._cfg.endpoint.concurrency)
        search = self._cfg.search
        async with LLM(settings_of(self._cfg), takes_empty=True) as llm:
            calls = AsyncCalls(search.workers, search.timeout)

            async def one(item: Asked) -> Sampled:
                async with gate:
                    return await self._converse(llm, calls, item)

            tasks = [asyncio.ensure_future(one(item)) for item in asked]
            try:
                for done in asyncio.as_completed(tasks):
                    sampled = await done
                    self._check()
                    if not each(sampled):
                        break
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)
                calls.close()

    async def _converse(self, llm: LLM, tool_calls: AsyncCalls, asked: Asked) -> Sampled:
        """The trajectory of an item, and the tokens that its model wrote."""
        item, started = asked.item, time.perf_counter()
        information = asked.retrieved.information if asked.retrieved else ""
        text = methods.wording(
            item.method, item.example, STYLE, information, self._tools.instructions
        )
        segments = [Segment("prompt", text)]
        turns = [asked.retrieved.turn] if asked.retrieved else []
        messages: list[Message] = [{"role": "user", "content": text}]
        calls: Counter[str] = Counter()
        tokens = 0
        status: Status | None = None
        while status is None:
            try:
                reply = await llm.complete(messages, sample=self._cfg.rollout.seed)
            except LLMError as error:
                turns.append(Turn((), (), (), 0.0, f"the endpoint: {error}"))
                status = "tool_failure"
                break
            tokens += reply.completion_tokens
            stop = markup.find_stop(reply.text, self._tools.names)
            said = reply.text[: stop.end] if stop else reply.text
            segments.append(Segment("policy", said))
            if stop is None:
                status = "out_of_tokens" if reply.is_cut else "no_answer"
            elif stop.kind == "answer":
                status = "answered"
            elif not self._has_calls_left(calls, stop.kind):
                status = "out_of_turns"
            else:
                calls[stop.kind] += 1
                turn, found = await self._call(tool_calls, stop.kind, said, item.hidden)
                turns.append(turn)
                if turn.error:
                    status = "tool_failure"
                segments.append(Segment("tool", found))
                messages += [
                    {"role": "assistant", "content": said},
                    {"role": "user", "content": found},
                ]
        none = np.zeros(0, np.int32)
        trajectory = Trajectory(
            example_id=item.example.id,
            sample=0,
            ids=none,
            logprobs=none.astype(np.float32),
            sampled=none.astype(np.bool_),
            versions=none,
            prompt_len=0,
            segments=tuple(segments),
            turns=tuple(turns),
            status=status,
            seconds=time.perf_counter() - started,
            tools=self._tools.names,
        )
        return Sampled(item, trajectory, tokens)

    def _has_calls_left(self, calls: Counter[str], tool: str) -> bool:
        most = self._budgets.get(tool, self._max_turns)
        return calls.total() < self._max_turns and calls[tool] < most

    async def _call(self, calls: AsyncCalls, name: str, said: str, hidden: str) -> tuple[Turn, str]:
        """A call as a turn, and what it says; a failed one has its error."""
        tool, started = self._tools[name], time.perf_counter()
        queries = markup.parse_queries(said, tool.max_requests, name)
        try:
            found = Result()
            if queries:
                found = await calls(functools.partial(tool.call, queries, hidden))
        except (SearchError, ToolError, OSError) as error:
            seconds = time.perf_counter() - started
            told = f"{type(error).__name__}: {error}"
            return Turn(queries, (), (), seconds, told, tool=name), ""
        names = self._tools.names
        information, shown = markup.render_information(found.documents, tools=names)
        passages = () if found.texts else shown
        turn = Turn(
            queries,
            tuple(p.id for p in passages),
            tuple(p.title for p in passages),
            time.perf_counter() - started,
            found=found.records,
            tool=name,
            unreadable=found.unreadable,
        )
        return turn, information

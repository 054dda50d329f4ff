"""Rewards, computed beside the engine: it decodes on while functions run and judges are asked.

An event loop in a thread of its own runs what is asynchronous; all else runs on worker threads. A
reward is a function of its sample alone, so that nothing depends on which is done first.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import inspect
import threading
import time
from collections.abc import Callable, Coroutine, Sequence
from concurrent import futures
from typing import Any, TypeVar

import numpy as np

from masksearch_jax.core import markup
from masksearch_jax.core.errors import ConfigError, UserError
from masksearch_jax.core.reward_config import RewardConfig
from masksearch_jax.core.tokenizer import Vocabulary
from masksearch_jax.core.types import NOT_ITS_DOING, Example, RampExample, Segment, Trajectory
from masksearch_jax.data.batches import Prompt
from masksearch_jax.data.prompt import question_text
from masksearch_jax.parallel import hosts
from masksearch_jax.rl import rewards
from masksearch_jax.rl.rewards import RewardTerms
from masksearch_jax.runtime.call_pool import AsyncCalls

T = TypeVar("T")

_LOOK = 0.5  # seconds from one look whether to stop to the next


class RewardError(UserError):
    """Rewards cannot be had: too many samples without one, or a judge that does not answer."""


class UnreadableError(RewardError):
    """The judge says too much that is no verdict: what it says is no score."""


class RewardPool:
    """Scores trajectories as `cfg.reward` says; use as a context manager, or call `close`.

    judge: opens the judge of `cfg.reward` "judge", in the pool's event loop. A reward that raises,
    is no number or takes too long is a RewardTerms with its `failure`; a UserError of a judge, such
    as a spent budget, is raised by the future. `check` is called while rewards are waited for,
    twice a second and equally often on all processes, and ends the wait by raising. Raises
    ConfigError for a function that cannot be imported.
    """

    def __init__(
        self,
        cfg: RewardConfig,
        judge: contextlib.AbstractAsyncContextManager[rewards.Judge] | None = None,
        check: Callable[[], None] = lambda: None,
    ):
        self.check, self._is_closing = check, False
        self.cfg, self.seconds, self.wait_seconds = cfg, 0.0, 0.0
        self._own = rewards.own_reward(cfg) if ":" in cfg.reward else None
        self._is_own_async = is_async(self._own)
        self._threads = AsyncCalls(cfg.reward_workers, cfg.reward_timeout or None, "reward")
        self._gate = asyncio.Semaphore(cfg.reward_workers)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="rewards", daemon=True)
        self._thread.start()
        self._opened = contextlib.AsyncExitStack()
        self._judge: rewards.Judge | None = None
        try:
            if judge is not None:
                self._judge = self._run(self._opened.enter_async_context(judge))
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> RewardPool:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Drops what is not done."""
        self._is_closing = True
        self._run(self._end())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
        self._threads.close()

    def submit(self, example: Example, trajectory: Trajectory) -> futures.Future[RewardTerms]:
        """Its reward to come; none, at once, where its end is not the policy's doing."""
        if trajectory.status in NOT_ITS_DOING:
            there: futures.Future[RewardTerms] = futures.Future()
            there.set_result(rewards.no_reward(trajectory.status))
            return there
        work = self._reward(example, trajectory)
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    def check_sample(self, example: Example, trajectory: Trajectory) -> None:
        """Scores a right sample, at the start of a run. Raises ConfigError where it has no reward.

        Of a judge UserError, where it does not call the sample right.
        """
        if self._judge:
            self.ask_known(example).result()
            return
        if failure := self.submit(example, trajectory).result().failure:
            raise ConfigError(
                f"{rewards.KEY} is {self.cfg.reward!r}, which gives no reward for example "
                f"{example.id}: {failure}"
            )

    def ask_known(self, example: Example) -> futures.Future[None]:
        """Asks the judge of the known answer; its future raises UserError unless that is right."""
        assert self._judge, "there is no judge"
        return asyncio.run_coroutine_threadsafe(self._judge.check_known(example), self._loop)

    def check_readable(self, asked: int, unreadable: int) -> None:
        """Raises UnreadableError where more verdicts than allowed could not be read.

        The next time these are asked for anew.
        """
        if self._judge and unreadable > self._judge.max_unreadable * asked:
            why = self._run(self._judge.forget_unreadable())
            raise UnreadableError(
                f"{unreadable} of {asked} verdicts cannot be read, more than the share of "
                f"{self._judge.max_unreadable:g} that config.judge.max_unreadable allows"
                + (f": {why}" if why else "")
            )

    def wait(self, pending: Sequence[futures.Future[RewardTerms]]) -> None:
        """Until all of them are there, on all processes; counted as `wait_seconds`."""
        started = time.perf_counter()
        while hosts.is_on_any(not all(reward.done() for reward in pending)):
            self.check()
            futures.wait(pending, _LOOK)
        self.wait_seconds += time.perf_counter() - started

    def timing(self) -> dict[str, float]:
        """Seconds of this process since the last call: of all rewards, and waited for any."""
        found = {"reward_seconds": self.seconds, "reward_wait_seconds": self.wait_seconds}
        self.seconds = self.wait_seconds = 0.0
        return found

    def _run(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    async def _end(self) -> None:
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._opened.aclose()

    # ---- in the loop

    async def _reward(self, example: Example, trajectory: Trajectory) -> RewardTerms:
        started = time.perf_counter()
        try:
            return await self._score(example, trajectory)
        except UserError:
            raise
        except TimeoutError as error:
            limit = f"no reward in {self.cfg.reward_timeout:g} s"
            return rewards.no_reward(str(error) or limit)
        except BaseException as error:  # a user's function may even exit, or be cancelled
            if self._is_closing and isinstance(error, asyncio.CancelledError):
                raise
            return rewards.no_reward(f"{type(error).__name__}: {error}")
        finally:
            self.seconds += time.perf_counter() - started

    async def _score(self, example: Example, trajectory: Trajectory) -> RewardTerms:
        cfg = self.cfg
        if self._judge:
            verdict = await self._ask(self._judge, example, trajectory)
            work = functools.partial(rewards.judged_reward, example, trajectory, verdict, cfg)
            return await self._threads(work)
        if not self._own:
            work = functools.partial(rewards.reward, example, trajectory, cfg)
            return await self._threads(work)
        if self._is_own_async:
            async with self._gate, asyncio.timeout(cfg.reward_timeout or None):
                found = await self._own(example, trajectory)
        else:
            found = await self._threads(functools.partial(self._own, example, trajectory))
        return rewards.own_terms(found, example, trajectory, cfg)

    async def _ask(
        self, judge: rewards.Judge, example: Example, trajectory: Trajectory
    ) -> bool | None:
        """Its verdict; False where it is not asked."""
        answer = rewards.read_answer(trajectory)
        return await judge(example, answer) if rewards.is_to_judge(answer) else False


def is_async(function: object) -> bool:
    """Whether a call must be awaited: of a function, a partial one, or a callable object."""
    while isinstance(function, functools.partial):
        function = function.func
    called = getattr(function, "__call__", None)  # noqa: B004
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(called)


def right_answer(prompt: Prompt, vocab: Vocabulary) -> Trajectory:
    """A sample that answers at once what its example holds to be right, to try a reward on."""
    example = prompt.example
    right = example.paragraph if isinstance(example, RampExample) else example.answers[0]
    text = markup.wrap("answer", markup.escape(right))
    said = vocab.encode(text)
    ids = np.concatenate([prompt.ids, np.asarray(said, np.int32)])
    sampled = np.arange(len(ids)) >= len(prompt.ids)
    return Trajectory(
        example_id=example.id,
        sample=0,
        ids=ids,
        logprobs=np.zeros(len(ids), np.float32),
        sampled=sampled,
        versions=sampled.astype(np.int32) - 1,
        prompt_len=len(prompt.ids),
        segments=(Segment("prompt", question_text(example)), Segment("policy", text)),
        turns=(),
        status="answered",
    )

"""Teachers behind one protocol: examples in, a demonstration or a named rejection of each out."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol

from masksearch_jax.agents import agent_teacher, scripted_teacher
from masksearch_jax.agents.llm_client import LLM, cost_of
from masksearch_jax.agents.scripted_teacher import Rejection
from masksearch_jax.core.llm_config import LLMConfig
from masksearch_jax.core.tools import Toolbox
from masksearch_jax.core.types import Demonstration, Example

Outcome = Demonstration | Rejection


class Teacher(Protocol):
    """Attempts examples: `attempts` outcomes of each, in order; `done` hears of each at once."""

    attempts: int

    def solve(
        self, examples: Sequence[Example], done: Callable[[Outcome], None]
    ) -> list[Outcome]: ...

    def figures(self) -> dict[str, Any]:
        """What it cost so far."""
        ...

    def forget_unread(self) -> str:
        """Where not one reply could be read, has all asked for anew, and says so; else ""."""
        ...

    def close(self) -> None: ...


class Scripted:
    """`construct.demonstrate` in threads: no model, no network, the same for the same seed."""

    attempts = 1

    def __init__(
        self,
        tools: Toolbox,
        workers: int,
        max_searches: int,
        seed: int,
        thoughts: str,
        method: str,
    ):
        self._tools = tools
        self._settings = {"max_searches": max_searches, "thoughts": thoughts, "method": method}
        self._seed = seed
        self._pool = ThreadPoolExecutor(max(1, workers))

    def solve(self, examples: Sequence[Example], done: Callable[[Outcome], None]) -> list[Outcome]:
        solved = []
        for outcome in self._pool.map(self._solve, examples):
            done(outcome)
            solved.append(outcome)
        return solved

    def _solve(self, example: Example) -> Outcome:
        rng = random.Random(f"{self._seed}/{example.id}")
        return scripted_teacher.demonstrate(example, self._tools, rng, **self._settings)

    def figures(self) -> dict[str, Any]:
        return {}

    def forget_unread(self) -> str:
        return ""

    def close(self) -> None:
        self._pool.shutdown()


class Session:
    """An LLM with an event loop of its own, for callers that are not asynchronous."""

    def __init__(self, cfg: LLMConfig):
        self.cfg = cfg
        self._runner = asyncio.Runner()
        self.llm = self._runner.run(self._open())

    async def _open(self) -> LLM:
        return LLM(self.cfg)

    def run(self, work: Any) -> Any:
        return self._runner.run(work)

    def figures(self) -> dict[str, Any]:
        """Everything ever paid for into the cache, and what this process has seen of it."""
        paid, usage = self.llm.paid, self.llm.usage
        return paid._asdict() | {
            "cost": cost_of(self.cfg, paid.prompt_tokens, paid.completion_tokens),
            "from_cache": usage.cached,
            "retries": usage.retries,
            "parsed": usage.parsed,
            "unreadable": usage.unreadable,
            "repairs": usage.repairs,
            "cut_off": usage.cut_off,
        }

    def close(self) -> None:
        self._runner.run(self.llm.__aexit__(None, None, None))
        self._runner.close()


class Agents:
    """Planner, rewriter, observer and judge on one endpoint."""

    attempts = 1

    def __init__(self, llm: LLMConfig, tools: Toolbox, cfg: agent_teacher.TeacherConfig):
        self._tools, self._cfg = tools, cfg
        self._session = Session(llm)

    def solve(self, examples: Sequence[Example], done: Callable[[Outcome], None]) -> list[Outcome]:
        return self._session.run(
            agent_teacher.demonstrate_all(examples, self._session.llm, self._tools, self._cfg, done)
        )

    def figures(self) -> dict[str, Any]:
        return self._session.figures()

    def forget_unread(self) -> str:
        return self._session.llm.forget_unread()

    def close(self) -> None:
        self._session.close()

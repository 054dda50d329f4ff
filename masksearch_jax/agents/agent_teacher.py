"""The LLM teacher: planner, rewriter, search, observer and judge write a demonstration together.

As in MaskSearch, section 3.2; the prompts are ours, and only a demonstration that the judge clearly
calls correct is kept. Where the run has other tools than search, the observer may call them.
"""

from __future__ import annotations

import asyncio
import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import TypeVar

from masksearch_jax.agents import dialogue, judge, observer, planner, rewriter
from masksearch_jax.agents.llm_client import LLM, LLMError, Message
from masksearch_jax.agents.scripted_teacher import Rejection, task_name
from masksearch_jax.core import markup, retrieval
from masksearch_jax.core.config import SearchConfig
from masksearch_jax.core.markup import SEARCH
from masksearch_jax.core.tools import Instructions, Result, Toolbox
from masksearch_jax.core.types import (
    Demonstration,
    Example,
    RampExample,
    Segment,
    Turn,
)
from masksearch_jax.runtime.call_pool import AsyncCalls

T = TypeVar("T")

_DETAIL = 300  # characters of it that are kept
ROLES = ("planner", "rewriter", "observer", "judge")
REASONS = (
    *(f"unreadable_{role}" for role in ROLES),
    *("llm_failed", "search_failed", "gave_up", "out_of_searches"),
    *("reserved_text", "masks_left", "judged_incorrect"),
)


@dataclasses.dataclass(frozen=True)
class TeacherConfig:
    """What of a build's settings a teacher needs."""

    language: str  # of prompts and thoughts: en | zh
    max_searches: int  # per example, at least 1; calls of all tools together
    search: SearchConfig


class _RejectedError(Exception):
    """Ends an example early: `reason` is one of REASONS, `detail` says more."""

    def __init__(self, reason: str, detail: object = ""):
        self.reason, self.detail = reason, " ".join(str(detail).split())[:_DETAIL]


@dataclasses.dataclass
class _Work:
    """One example in progress: what was written, asked and noted so far."""

    task: str
    llm: LLM
    tools: Toolbox | None  # None, and no calls: for the judge alone
    cfg: TeacherConfig
    calls: AsyncCalls | None = None
    source: str = ""  # passage that the example masks, if any
    segments: list[Segment] = dataclasses.field(default_factory=list)
    turns: list[Turn] = dataclasses.field(default_factory=list)
    notes: list[str] = dataclasses.field(default_factory=list)

    @property
    def language(self) -> str:
        return self.cfg.language

    @property
    def toolbox(self) -> Toolbox:
        assert self.tools is not None
        return self.tools

    @property
    def others(self) -> tuple[Instructions, ...]:
        """What the tools but search tell of themselves."""
        return tuple(t for t in self.toolbox.instructions if t.name != SEARCH)

    async def ask(self, role: str, messages: list[Message], parse: Callable[[str], T]) -> T:
        try:
            return await dialogue.ask(self.llm, messages, parse, self.language)
        except dialogue.ReplyError as error:
            raise _RejectedError(f"unreadable_{role}", error) from error
        except LLMError as error:
            raise _RejectedError("llm_failed", error) from error


async def demonstrate_llm(
    example: Example, llm: LLM, tools: Toolbox, cfg: TeacherConfig, calls: AsyncCalls
) -> Demonstration | Rejection:
    """A solved example in the grammar of `markup`, or why there is none (one of REASONS).

    Each turn is the thought of the planner or observer, then the rewriter's queries (the first
    `search.max_queries` of three or more), a call of another tool or the answer. Raises
    llm.JobError when the budget is spent or the endpoint refuses; replies so far are cached, so a
    later call goes on from there. `calls` is how the tools are called.
    """
    task, source = dialogue.task_text(example, cfg.language), retrieval.source_of(example)
    work = _Work(task, llm, tools, cfg, calls, source)
    try:
        thought, answer = await _research(work)
        await _check(work, example, answer)
    except _RejectedError as rejected:
        return Rejection(example.id, rejected.reason, rejected.detail)
    final = markup.wrap("think", thought) + markup.wrap("answer", answer)
    return Demonstration(
        id=f"{example.id}/{llm.cfg.model}",
        example_id=example.id,
        task=task_name(example),
        teacher=llm.cfg.model,
        segments=(*work.segments, Segment("policy", final)),
        turns=tuple(work.turns),
    )


async def demonstrate_all(
    examples: Sequence[Example],
    llm: LLM,
    tools: Toolbox,
    cfg: TeacherConfig,
    done: Callable[[Demonstration | Rejection], None],
) -> list[Demonstration | Rejection]:
    """`demonstrate_llm` of each, in order; `done` hears of each when it is.

    As many examples are in progress as keep the endpoint busy, and `search.workers` calls of tools.
    Once one raises, or `done` does, no other begins, those in progress end, and the first error is
    raised.
    """
    gate = asyncio.Semaphore(2 * llm.cfg.concurrency)  # one searches while another asks
    calls = AsyncCalls(cfg.search.workers, cfg.search.timeout)
    errors: list[Exception] = []

    async def one(example: Example) -> Demonstration | Rejection | None:
        async with gate:
            if errors:
                return None
            try:
                outcome = await demonstrate_llm(example, llm, tools, cfg, calls)
                done(outcome)
            except Exception as error:
                errors.append(error)
                return None
            return outcome

    try:
        outcomes = await asyncio.gather(*map(one, examples))
    finally:
        calls.close()
    if errors:
        raise errors[0]
    return outcomes


async def _research(work: _Work) -> tuple[str, str]:
    """Searches, and calls tools, until the observer answers: its last thought and the answer."""
    plan = await work.ask("planner", planner.messages(work.task, work.language), planner.parse)
    course, thought, need = plan.thought, plan.thought, plan.need
    failures, tool = 0, SEARCH  # failures: in a row
    for left in range(work.cfg.max_searches - 1, -1, -1):
        if tool == SEARCH:
            documents = await _search(work, thought, need)
        else:
            documents = await _call(work, thought, tool, need)
        decision = await _observe(work, course, need, documents, last=not left)
        failures = failures + 1 if decision.action in ("revise", "give_up") else 0
        if failures >= observer.MAX_FAILURES:
            decision = await _recall(work, course, need, documents)
            failures = 0
        if decision.action == "answer":
            return _plain(work, decision.thought), _plain(work, decision.text)
        if decision.action == "give_up":
            raise _RejectedError("gave_up", decision.thought)
        work.notes.append(f"- {need} {decision.thought}")
        thought, need, tool = decision.thought, decision.text, decision.tool
        course = thought if decision.action == "revise" else course
    raise _RejectedError("out_of_searches", f"after {work.cfg.max_searches}")


async def _observe(
    work: _Work, course: str, need: str, documents: str, *, last: bool
) -> observer.Decision:
    others = () if last else work.others
    history = "\n".join(work.notes)
    messages = observer.messages(
        work.task, course, history, need, documents, last, work.language, others
    )
    parse = functools.partial(observer.parse, tools=[about.name for about in others])
    return await work.ask("observer", messages, parse)


async def _recall(work: _Work, course: str, need: str, documents: str) -> observer.Decision:
    """What the observer decides when it may rely on its own knowledge."""
    messages = observer.knowledge_messages(
        work.task, course, "\n".join(work.notes), need, documents, work.language
    )
    return await work.ask("observer", messages, observer.parse_knowledge)


async def _search(work: _Work, thought: str, need: str) -> str:
    """One search turn, written down; the text of its documents."""
    limits = work.cfg.search
    asked = [query for turn in work.turns for query in turn.queries]
    messages = rewriter.messages(work.task, need, asked, work.language)
    queries = (await work.ask("rewriter", messages, rewriter.parse))[: limits.max_queries]
    return await _turn(work, thought, SEARCH, queries)


async def _call(work: _Work, thought: str, tool: str, request: str) -> str:
    """One call of another tool, written down; what it says."""
    limit = work.toolbox[tool].max_requests
    return await _turn(
        work, thought, tool, markup.parse_queries(markup.wrap(tool, request), limit, tool)
    )


async def _turn(work: _Work, thought: str, tool: str, requests: Sequence[str]) -> str:
    action = markup.wrap("think", _plain(work, thought))
    action += markup.wrap(tool, "\n".join(_plain(work, request) for request in requests))
    found = await _ask_tool(work, tool, requests)
    names = work.toolbox.names
    text, shown = markup.render_information(found.documents, tools=names)
    work.segments += [Segment("policy", action), Segment("tool", text)]
    shown = () if found.texts else shown
    ids, titles = tuple(p.id for p in shown), tuple(p.title for p in shown)
    # 0 seconds, so that the same replies give the same file.
    made = Turn(tuple(requests), ids, titles, 0.0, tool=tool, unreadable=found.unreadable)
    work.turns.append(made)
    return text.removeprefix("<information>").removesuffix("</information>")


async def _ask_tool(work: _Work, tool: str, requests: Sequence[str]) -> Result:
    assert work.calls is not None
    call = functools.partial(work.toolbox[tool].call, requests, work.source)
    try:
        return await work.calls(call)
    except (RuntimeError, OSError) as error:  # SearchError, ToolError; TimeoutError is the other
        raise _RejectedError("search_failed", f"{type(error).__name__}: {error}") from error


async def judge_all(
    answers: Sequence[tuple[Example, str]], llm: LLM, cfg: TeacherConfig
) -> list[Rejection | None]:
    """What the judge says of answers from elsewhere: None for each that it calls correct.

    Raises llm.JobError as `demonstrate_llm` does.
    """

    async def one(example: Example, answer: str) -> Rejection | None:
        work = _Work(dialogue.task_text(example, cfg.language), llm, None, cfg)
        try:
            await _check(work, example, answer)
        except _RejectedError as rejected:
            return Rejection(example.id, rejected.reason, rejected.detail)
        return None

    found = await asyncio.gather(*(one(*a) for a in answers), return_exceptions=True)
    if errors := [f for f in found if isinstance(f, BaseException)]:
        raise errors[0]
    return found


async def _check(work: _Work, example: Example, answer: str) -> None:
    """Raises _RejectedError unless the judge reads the answer as correct."""
    if isinstance(example, RampExample) and markup.has_mask(answer):
        raise _RejectedError("masks_left", answer)
    messages = judge.messages(work.task, judge.known_text(example), answer, work.language)
    verdict = await work.ask("judge", messages, judge.parse)
    if not verdict.correct:
        raise _RejectedError("judged_incorrect", verdict.reason)


def _plain(work: _Work, text: str) -> str:
    """The text, if it holds none of the grammar's tags: those would act in a demonstration."""
    if markup.escape(text, work.toolbox.names) != text:
        raise _RejectedError("reserved_text", text)
    return text

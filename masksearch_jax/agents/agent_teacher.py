"""The LLM teacher: planner, rewriter, search, observer and judge write a demonstration together.

As in MaskSearch, section 3.2; the prompts are ours, and only a demonstration that the judge clearly
calls correct is kept.
"""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Callable, Sequence
from typing import TypeVar

from masksearch_jax.agents import dialogue, judge, observer, planner, rewriter
from masksearch_jax.agents.llm_client import LLM, LLMError, Message
from masksearch_jax.agents.scripted_teacher import Rejection, task_name
from masksearch_jax.core import markup, retrieval
from masksearch_jax.core.config import SearchConfig
from masksearch_jax.core.types import (
    SEARCH_ALONE,
    Demonstration,
    Example,
    Passage,
    RampExample,
    Segment,
    Turn,
)

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
    max_searches: int  # per example, at least 1
    search: SearchConfig
    tools: tuple[str, ...] = SEARCH_ALONE  # of the run, whose tags no document and no text may have


class _RejectedError(Exception):
    """Ends an example early: `reason` is one of REASONS, `detail` says more."""

    def __init__(self, reason: str, detail: object = ""):
        self.reason, self.detail = reason, " ".join(str(detail).split())[:_DETAIL]


@dataclasses.dataclass
class _Work:
    """One example in progress: what was written, asked and noted so far."""

    task: str
    llm: LLM
    search: retrieval.SearchTool | None  # None: for the judge alone
    cfg: TeacherConfig
    source: str = ""  # passage that the example masks, if any
    segments: list[Segment] = dataclasses.field(default_factory=list)
    turns: list[Turn] = dataclasses.field(default_factory=list)
    notes: list[str] = dataclasses.field(default_factory=list)

    @property
    def language(self) -> str:
        return self.cfg.language

    async def ask(self, role: str, messages: list[Message], parse: Callable[[str], T]) -> T:
        try:
            return await dialogue.ask(self.llm, messages, parse, self.language)
        except dialogue.ReplyError as error:
            raise _RejectedError(f"unreadable_{role}", error) from error
        except LLMError as error:
            raise _RejectedError("llm_failed", error) from error


async def demonstrate_llm(
    example: Example, llm: LLM, search: retrieval.SearchTool, cfg: TeacherConfig
) -> Demonstration | Rejection:
    """A solved example in the grammar of `markup`, or why there is none (one of REASONS).

    Each turn is the thought of the planner or observer, then the rewriter's queries (the first
    `search.max_queries` of three or more) or the answer. Raises llm.JobError when the budget is
    spent or the endpoint refuses; replies so far are cached, so a later call goes on from there.
    """
    work = _Work(
        dialogue.task_text(example, cfg.language), llm, search, cfg, retrieval.source_of(example)
    )
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
    search: retrieval.SearchTool,
    cfg: TeacherConfig,
    done: Callable[[Demonstration | Rejection], None],
) -> list[Demonstration | Rejection]:
    """`demonstrate_llm` of each, in order; `done` hears of each when it is.

    As many examples are in progress as keep the endpoint busy. Once one raises, or `done` does, no
    other begins, those in progress end, and the first error is raised.
    """
    gate = asyncio.Semaphore(2 * llm.cfg.concurrency)  # one searches while another asks
    errors: list[Exception] = []

    async def one(example: Example) -> Demonstration | Rejection | None:
        async with gate:
            if errors:
                return None
            try:
                outcome = await demonstrate_llm(example, llm, search, cfg)
                done(outcome)
            except Exception as error:
                errors.append(error)
                return None
            return outcome

    outcomes = await asyncio.gather(*map(one, examples))
    if errors:
        raise errors[0]
    return outcomes


async def _research(work: _Work) -> tuple[str, str]:
    """Searches until the observer answers: its last thought and the answer."""
    plan = await work.ask("planner", planner.messages(work.task, work.language), planner.parse)
    course, thought, need = plan.thought, plan.thought, plan.need
    failures = 0  # in a row
    for left in range(work.cfg.max_searches - 1, -1, -1):
        documents = await _search(work, thought, need)
        decision = await _observe(work, course, need, documents, last=not left)
        failures = failures + 1 if decision.action in ("revise", "give_up") else 0
        if failures >= observer.MAX_FAILURES:
            decision = await _recall(work, course, need, documents)
            failures = 0
        if decision.action == "answer":
            tools = work.cfg.tools
            return _plain(decision.thought, tools), _plain(decision.text, tools)
        if decision.action == "give_up":
            raise _RejectedError("gave_up", decision.thought)
        work.notes.append(f"- {need} {decision.thought}")
        thought, need = decision.thought, decision.text
        course = thought if decision.action == "revise" else course
    raise _RejectedError("out_of_searches", f"after {work.cfg.max_searches}")


async def _observe(
    work: _Work, course: str, need: str, documents: str, *, last: bool
) -> observer.Decision:
    messages = observer.messages(
        work.task, course, "\n".join(work.notes), need, documents, last, work.language
    )
    return await work.ask("observer", messages, observer.parse)


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
    tools = work.cfg.tools
    action = markup.wrap("think", _plain(thought, tools))
    action += markup.wrap("search", "\n".join(_plain(query, tools) for query in queries))
    text, shown = markup.render_information(await _find(work, queries), tools=tools)
    work.segments += [Segment("policy", action), Segment("tool", text)]
    ids, titles = tuple(p.id for p in shown), tuple(p.title for p in shown)
    # 0 seconds, so that the same replies give the same file.
    work.turns.append(Turn(queries, ids, titles, seconds=0.0))
    return text.removeprefix("<information>").removesuffix("</information>")


async def _find(work: _Work, queries: Sequence[str]) -> tuple[Passage, ...]:
    limits = work.cfg.search
    try:
        async with asyncio.timeout(limits.timeout):
            return await asyncio.to_thread(
                retrieval.find, work.search, queries, limits, work.source
            )
    except (RuntimeError, OSError) as error:  # SearchError is the one, TimeoutError the other
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


def _plain(text: str, tools: Sequence[str]) -> str:
    """The text, if it holds none of the grammar's tags: those would act in a demonstration."""
    if markup.escape(text, tools) != text:
        raise _RejectedError("reserved_text", text)
    return text

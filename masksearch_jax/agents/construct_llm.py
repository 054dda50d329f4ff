"""The LLM teacher: planner, rewriter, search, observer and judge write a demonstration together.

As in MaskSearch, section 3.2; the prompts are ours, and only a demonstration that the judge clearly
calls correct is kept.
"""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Callable, Sequence
from typing import TypeVar

from masksearch_jax import markup
from masksearch_jax.agents import dialogue, judge, observer, planner, rewriter
from masksearch_jax.agents.construct import Rejection, SearchTool
from masksearch_jax.agents.llm import LLM, LLMError, Message
from masksearch_jax.config import SearchConfig
from masksearch_jax.types import Demonstration, Example, Passage, RampExample, Segment, Turn

T = TypeVar("T")

ROLES = ("planner", "rewriter", "observer", "judge")
REASONS = (
    *(f"unreadable_{role}" for role in ROLES),
    *("llm_failed", "search_failed", "gave_up", "out_of_searches"),
    *("reserved_text", "masks_left", "judged_incorrect"),
)
_TASKS = {
    "en": (
        "Replace every [mask] in this paragraph by the right words; give it back whole:\n\n{}",
        "Answer this question with a short phrase:\n\n{}",
    ),
    "zh": (
        "把下面段落中的每个 [mask] 换成正确的内容,给出完整段落:\n\n{}",
        "用简短的词语回答这个问题:\n\n{}",
    ),
}


@dataclasses.dataclass(frozen=True)
class TeacherConfig:
    language: str  # of prompts and thoughts: en | zh
    max_searches: int  # per example, at least 1
    search: SearchConfig


class _RejectedError(Exception):
    """Ends an example early; the message is one of REASONS."""


@dataclasses.dataclass
class _Work:
    """One example in progress: what was written, asked and noted so far."""

    task: str
    llm: LLM
    search: SearchTool
    cfg: TeacherConfig
    segments: list[Segment] = dataclasses.field(default_factory=list)
    turns: list[Turn] = dataclasses.field(default_factory=list)
    notes: list[str] = dataclasses.field(default_factory=list)

    async def ask(self, role: str, messages: list[Message], parse: Callable[[str], T]) -> T:
        try:
            return await dialogue.ask(self.llm, messages, parse, self.cfg.language)
        except dialogue.ReplyError as error:
            raise _RejectedError(f"unreadable_{role}") from error
        except LLMError as error:
            raise _RejectedError("llm_failed") from error


async def demonstrate_llm(
    example: Example, llm: LLM, search: SearchTool, cfg: TeacherConfig
) -> Demonstration | Rejection:
    """A solved example in the grammar of `markup`, or why there is none (one of REASONS).

    Each turn is the thought of the planner or observer, then the rewriter's queries (the first
    `search.max_queries` of three or more) or the answer. Raises llm.JobError when the budget is
    spent or the endpoint refuses; replies so far are cached, so a later call goes on from there.
    """
    ramp = isinstance(example, RampExample)
    template = _TASKS[cfg.language][0 if ramp else 1]
    work = _Work(template.format(example.masked if ramp else example.question), llm, search, cfg)
    try:
        thought, answer = await _research(work)
        await _check(work, example, answer)
    except _RejectedError as rejected:
        return Rejection(example.id, str(rejected))
    final = markup.wrap("think", thought) + markup.wrap("answer", answer)
    return Demonstration(
        id=f"{example.id}/{llm.cfg.model}",
        example_id=example.id,
        task=f"ramp_k{example.k}" if ramp else example.dataset,
        teacher=llm.cfg.model,
        segments=(*work.segments, Segment("policy", final)),
        turns=tuple(work.turns),
    )


async def _research(work: _Work) -> tuple[str, str]:
    """Searches until the observer answers: its last thought and the answer."""
    language = work.cfg.language
    plan = await work.ask("planner", planner.messages(work.task, language), planner.parse)
    course, thought, need = plan.thought, plan.thought, plan.need
    for left in range(work.cfg.max_searches - 1, -1, -1):
        documents = await _search(work, thought, need)
        messages = observer.messages(
            work.task, course, "\n".join(work.notes), need, documents, not left, language
        )
        decision = await work.ask("observer", messages, observer.parse)
        if decision.action == "answer":
            return _plain(decision.thought), _plain(decision.text)
        if decision.action == "give_up":
            raise _RejectedError("gave_up")
        work.notes.append(f"- {need} {decision.thought}")
        thought, need = decision.thought, decision.text
        course = thought if decision.action == "revise" else course
    raise _RejectedError("out_of_searches")


async def _search(work: _Work, thought: str, need: str) -> str:
    """One search turn, written down; the text of its documents."""
    limits = work.cfg.search
    asked = [query for turn in work.turns for query in turn.queries]
    messages = rewriter.messages(work.task, need, asked, work.cfg.language)
    queries = (await work.ask("rewriter", messages, rewriter.parse))[: limits.max_queries]
    action = markup.wrap("think", _plain(thought))
    action += markup.wrap("search", "\n".join(map(_plain, queries)))
    text, shown = markup.render_information(await _find(work, queries))
    work.segments += [Segment("policy", action), Segment("tool", text)]
    ids, titles = tuple(p.id for p in shown), tuple(p.title for p in shown)
    # 0 seconds, so that the same replies give the same file.
    work.turns.append(Turn(queries, ids, titles, seconds=0.0))
    return text.removeprefix("<information>").removesuffix("</information>")


async def _find(work: _Work, queries: Sequence[str]) -> tuple[Passage, ...]:
    limits = work.cfg.search
    try:
        async with asyncio.timeout(limits.timeout):
            found = await asyncio.to_thread(work.search.search, queries, limits.top_k)
    except (
        RuntimeError,
        OSError,
    ) as error:  # SearchError is a RuntimeError, TimeoutError an OSError
        raise _RejectedError("search_failed") from error
    return markup.merge_results(found, limits.max_passages)


async def _check(work: _Work, example: Example, answer: str) -> None:
    """Raises _RejectedError unless the judge reads the answer as correct."""
    if isinstance(example, RampExample):
        if markup.MASK in answer:
            raise _RejectedError("masks_left")
        known = "\n".join(f"{i}. {span.text}" for i, span in enumerate(example.spans, start=1))
    else:
        known = "\n".join(example.answers)
    messages = judge.messages(work.task, known, answer, work.cfg.language)
    verdict = await work.ask("judge", messages, judge.parse)
    if not verdict.correct:
        raise _RejectedError("judged_incorrect")


def _plain(text: str) -> str:
    """The text, if it holds none of the grammar's tags: those would act in a demonstration."""
    if markup.escape(text) != text:
        raise _RejectedError("reserved_text")
    return text

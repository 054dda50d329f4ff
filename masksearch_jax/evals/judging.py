"""The judge as a measure: whether an LLM finds each answer right, and how often em agrees."""

from __future__ import annotations

import asyncio
import itertools
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from masksearch_jax.agents import judge as agents_judge
from masksearch_jax.agents.judge import Judge
from masksearch_jax.agents.llm_client import LLMError
from masksearch_jax.core import markup
from masksearch_jax.core.llm_config import JudgeConfig
from masksearch_jax.core.types import Example, JsonObject
from masksearch_jax.evals.lost import Lost, LostItemsError, check_share
from masksearch_jax.evals.metrics import bootstrap
from masksearch_jax.evals.results import Bootstrap, Place
from masksearch_jax.evals.rows import Row

_WAITING = 16  # rows in memory for each call in flight
_WRONG, _RIGHT, _UNREADABLE, _UNASKED = "incorrect", "correct", "unreadable", "no answer"


def judged(rows: Iterable[Row], cfg: JudgeConfig, max_failed: float) -> list[str]:
    """What the judge says of each row: correct, incorrect, unreadable; "no answer" is not asked.

    Nor is an answer that leaves a mask. "" where there was no reply. Raises JudgeError where no
    call can succeed any more, and LostItemsError where more than a share of a suite's items that
    were asked got no reply, or none that can be read: an outage is no score. Verdicts are in the
    judge's cache: the same command asks for the others alone.
    """
    said = asyncio.run(_judge_all(rows, cfg))
    lost = [Lost(*one.place, one.id, "no_verdict", one.why) for one in said if one.why]
    total = Counter(one.place for one in said if one.verdict != _UNASKED)
    check_share(lost, total, "got no reply of the judge", max_failed, "max_tool_failures")
    return [one.verdict for one in said]


class _Said(NamedTuple):
    """Of a row its verdict, or why there is none."""

    place: Place
    id: str
    verdict: str
    why: str


async def _judge_all(rows: Iterable[Row], cfg: JudgeConfig) -> list[_Said]:
    """What is said of each row, in their order; few rows are in memory at once."""
    gate = asyncio.Semaphore(cfg.concurrency)
    found: list[_Said] = []
    async with Judge(cfg) as judge:

        async def one(row: Row) -> _Said:
            if row.answer is None or markup.has_mask(row.answer):
                return _Said(row.place, row.example.id, _UNASKED, "")
            async with gate:
                try:
                    right = await judge(row.example, row.answer)
                except LLMError as error:
                    return _Said(row.place, row.example.id, "", str(error))
            verdict = _UNREADABLE if right is None else _RIGHT if right else _WRONG
            return _Said(row.place, row.example.id, verdict, "")

        left = iter(rows)
        while few := list(itertools.islice(left, _WAITING * cfg.concurrency)):
            found += await asyncio.gather(*map(one, few))
        await _check_readable(found, judge)
    return found


async def _check_readable(found: Iterable[_Said], judge: Judge) -> None:
    """Raises LostItemsError where more than a share of a method's verdicts, or all, are unread."""
    told = [one for one in found if one.verdict in (_WRONG, _RIGHT, _UNREADABLE)]
    asked = Counter(one.place for one in told)
    unreadable = Counter(one.place for one in told if one.verdict == _UNREADABLE)
    for place, count in unreadable.items():
        if count > judge.max_unreadable * asked[place]:
            said = f"more than config.judge.max_unreadable={judge.max_unreadable:g} allows"
        elif count == asked[place]:
            said = "so that there is no measure"
        else:
            continue
        why = await judge.forget_unreadable()
        raise LostItemsError(
            f"{' '.join(place)}: {count} of {asked[place]} verdicts cannot be read, {said}: {why}"
        )


def check_judge(cfg: JudgeConfig, example: Example) -> None:
    """Raises JudgeError where the judge does not call the known answer of an example right."""

    async def ask() -> None:
        async with Judge(cfg) as judge:
            await judge.check_known(example)

    asyncio.run(ask())


def cells(rows: Iterable[Row], verdicts: Sequence[str], how: Bootstrap) -> dict[Place, JsonObject]:
    """Of each suite and method {value, low, high, n, unreadable, agreement}.

    value: share of the readable verdicts that say right. agreement: share that em agrees with.
    """
    found: dict[Place, list[tuple[float, str]]] = {}
    lost: Counter[Place] = Counter()
    for row, verdict in zip(rows, verdicts, strict=True):
        own = found.setdefault(row.place, [])
        if verdict:
            own.append((row.scored.scores["em"], verdict))
        else:
            lost[row.place] += 1
    told: dict[Place, JsonObject] = {}
    for place, own in found.items():
        right = [float(verdict == _RIGHT) for _, verdict in own if verdict != _UNREADABLE]
        agreeing = [float((em == 1.0) == (v == _RIGHT)) for em, v in own if v in (_RIGHT, _WRONG)]
        told[place] = bootstrap(right, *how)._asdict() | {
            "lost": {"no_verdict": lost[place]} if lost[place] else {},
            "unreadable": sum(verdict == _UNREADABLE for _, verdict in own),
            "agreement": bootstrap(agreeing, *how)._asdict() if agreeing else None,
        }
    return told


def prompt_of(cfg: JudgeConfig) -> str:
    """The judge's prompt with its places unfilled: what a verdict depends on besides the model."""
    asked = agents_judge.messages("$task", "$known", "$answer", cfg.language)
    return "\n".join(message["content"] for message in asked)

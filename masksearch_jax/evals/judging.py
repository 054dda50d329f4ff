"""The judge as a measure: whether an LLM finds each answer right, and how often em agrees."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Sequence

from masksearch_jax.agents import judge as agents_judge
from masksearch_jax.agents.judge import Judge
from masksearch_jax.agents.llm_client import LLMError
from masksearch_jax.core import markup
from masksearch_jax.core.llm_config import JudgeConfig
from masksearch_jax.core.types import JsonObject
from masksearch_jax.evals.lost import Lost, check_share
from masksearch_jax.evals.metrics import bootstrap
from masksearch_jax.evals.results import Bootstrap, Place
from masksearch_jax.evals.rows import Row

_WRONG, _RIGHT, _UNREADABLE, _UNASKED = "incorrect", "correct", "unreadable", "no answer"


def judged(rows: Sequence[Row], cfg: JudgeConfig, max_failed: float) -> list[str]:
    """What the judge says of each row: correct, incorrect, unreadable; "no answer" is not asked.

    Nor is an answer that leaves a mask. "" where there was no reply. Raises JudgeError where no
    call can succeed any more, and LostItemsError where more than a share of a suite's items that
    were asked got no reply: an outage is no score. What was paid for is in the judge's cache: the
    same command asks for the others alone.
    """
    said = asyncio.run(_judge_all(rows, cfg))
    lost = [
        Lost(*row.place, row.example.id, "no_verdict", why)
        for row, (_, why) in zip(rows, said, strict=True)
        if why
    ]
    total = Counter(
        row.place for row, (verdict, _) in zip(rows, said, strict=True) if verdict != _UNASKED
    )
    check_share(lost, total, "got no reply of the judge", max_failed, "max_tool_failures")
    return [verdict for verdict, _ in said]


async def _judge_all(rows: Sequence[Row], cfg: JudgeConfig) -> list[tuple[str, str]]:
    """Of each row a verdict, or why there is none."""
    gate = asyncio.Semaphore(cfg.concurrency)
    async with Judge(cfg) as judge:

        async def one(row: Row) -> tuple[str, str]:
            if row.answer is None or markup.MASK in row.answer:
                return _UNASKED, ""
            async with gate:
                try:
                    found = await judge(row.example, row.answer)
                except LLMError as error:
                    return "", str(error)
            if found is None:
                return _UNREADABLE, ""
            return (_RIGHT if found else _WRONG), ""

        return await asyncio.gather(*map(one, rows))


def cells(rows: Sequence[Row], verdicts: Sequence[str], how: Bootstrap) -> dict[Place, JsonObject]:
    """Of each suite and method {value, low, high, n, unreadable, agreement}.

    value: share that is judged right; what is unreadable is not. agreement: share of the readable
    verdicts that em agrees with.
    """
    found: dict[Place, list[tuple[Row, str]]] = {}
    for row, verdict in zip(rows, verdicts, strict=True):
        found.setdefault(row.place, []).append((row, verdict))
    told: dict[Place, JsonObject] = {}
    for place, own in found.items():
        lost = sum(not verdict for _, verdict in own)
        own = [(row, verdict) for row, verdict in own if verdict]
        right = [float(verdict == _RIGHT) for _, verdict in own]
        read = [(r.scored.scores["em"], v == _RIGHT) for r, v in own if v in (_RIGHT, _WRONG)]
        agreeing = [float((em == 1.0) == is_right) for em, is_right in read]
        told[place] = bootstrap(right, *how)._asdict() | {
            "lost": {"no_verdict": lost} if lost else {},
            "unreadable": sum(verdict == _UNREADABLE for _, verdict in own),
            "agreement": bootstrap(agreeing, *how)._asdict() if agreeing else None,
        }
    return told


def prompt_of(cfg: JudgeConfig) -> str:
    """The judge's prompt with its places unfilled: what a verdict depends on besides the model."""
    asked = agents_judge.messages("$task", "$known", "$answer", cfg.language)
    return "\n".join(message["content"] for message in asked)

"""A job's attempts at demonstrations, in parts that outlast a stop, and what ends a job early."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from masksearch_jax.agents import teachers
from masksearch_jax.agents.llm_client import OUTAGE
from masksearch_jax.agents.outcomes import grouped, listed, named, unanswerable
from masksearch_jax.agents.scripted_teacher import NOT_FINAL, Rejection
from masksearch_jax.core import stamp
from masksearch_jax.core.errors import UserError
from masksearch_jax.core.jsonl import read_jsonl, write_jsonl
from masksearch_jax.core.types import Demonstration, Example, has_answer
from masksearch_jax.runtime.progress import Progress


class RejectedError(UserError):
    """More attempts gave no demonstration than `max_rejected` allows."""


class FailedError(UserError):
    """More attempts failed, by no fault of teacher or example, than `max_failed` allows."""


def failures(rejected: Mapping[str, int]) -> dict[str, int]:
    """Of attempts without a demonstration, by reason, those that are to be made again."""
    return {reason: count for reason, count in rejected.items() if reason in NOT_FINAL}


def _final(rejected: Mapping[str, int]) -> int:
    return sum(rejected.values()) - sum(failures(rejected).values())


def check_rejected(parts: Path, tried: int, rejected: Mapping[str, int], allowed: float) -> None:
    """Raises RejectedError where more than the share `allowed` of the attempts gave nothing."""
    if _final(rejected) > allowed * tried:
        raise RejectedError(_too_many_rejected(parts, tried))


def check_failures(parts: Path, counts: list[dict[str, Any]], allowed: float) -> None:
    """Raises FailedError where more than the share `allowed` of the attempts failed, or all did."""
    tried = sum(c["tried"] for c in counts)
    failed = sum(sum(failures(c["rejected"]).values()) for c in counts)
    if failed and (failed == tried or failed > allowed * tried):
        raise FailedError(_too_many_failed(parts, tried))


def check_some(parts: Path, counts: list[dict[str, Any]], output: Path) -> None:
    """Raises RejectedError where attempts were made, for a call of which not one gave anything."""
    if tried := sum(c["tried"] for c in counts):
        counted, first = named(rejected_in(parts))
        raise RejectedError(
            f"none of {tried} attempts gave a demonstration ({listed(counted)}); the first: "
            f"{first}; all are named in {parts}/*.rejected.jsonl, and {output} stays as it was"
        )


class Part:
    """One part of the work; its counts are written last, and tell that it has been gone through.

    before: what other parts of this kind rejected, by reason.
    """

    def __init__(
        self,
        counts_path: Path,
        max_rejected: float,
        max_failed: float,
        before: Mapping[str, int],
        progress: Progress,
    ):
        self._path, self._progress = counts_path, progress
        self._allowed = max_rejected * progress.total - _final(before)
        self._failures_allowed = max_failed * progress.total
        self._refused = 0  # attempts that are final and gave nothing
        self._failed, self._in_a_row = sum(failures(before).values()), 0
        self._rejected: list[Rejection] = []

    def solve(self, chunk: Sequence[Example], teacher: teachers.Teacher) -> dict[str, Any]:
        """Its counts, after the attempts that it lacks.

        Raises RejectedError as soon as more are rejected than allowed, FailedError as soon as more
        fail than allowed and a service seems to be down.
        """
        counts = stamp.read(self._path)
        if counts and not failures(counts["rejected"]):
            return counts
        known = self._known() if counts else {}
        known |= {e.id: unanswerable(e, teacher.attempts) for e in chunk if not has_answer(e)}
        self._rejected = [o for os in known.values() for o in os if isinstance(o, Rejection)]
        self._refused = len(self._rejected)
        self._progress.update(self._progress.done + sum(map(len, known.values())))
        try:
            left = [e for e in chunk if e.id not in known]
            # Those heard of came as they ended; the file is the same for the same outcomes.
            by_example = known | grouped(teacher.solve(left, self._hear) if left else ())
            outcomes = [o for i in dict.fromkeys(e.id for e in chunk) for o in by_example[i]]
            self._rejected = [o for o in outcomes if isinstance(o, Rejection)]
        finally:
            self._write_rejected()
        kept = [o for o in outcomes if isinstance(o, Demonstration)]
        write_jsonl(self._path.with_suffix(".jsonl"), kept)
        rejected = Counter(r.reason for r in self._rejected)
        counts = {"kept": len(kept), "rejected": dict(rejected)}
        stamp.write(self._path, counts)
        return counts

    def _known(self) -> dict[str, list[teachers.Outcome]]:
        """Outcomes of an earlier session of the examples of which no attempt failed."""
        found = [
            *read_jsonl(self._path.with_suffix(".jsonl"), Demonstration),
            *read_jsonl(self._path.with_suffix(".rejected.jsonl"), Rejection),
        ]
        return {
            example_id: outcomes
            for example_id, outcomes in grouped(found).items()
            if all(isinstance(o, Demonstration) or o.is_final for o in outcomes)
        }

    def _write_rejected(self) -> None:
        write_jsonl(self._path.with_suffix(".rejected.jsonl"), self._rejected)

    def _hear(self, outcome: teachers.Outcome) -> None:
        self._progress.update(self._progress.done + 1)
        rejected = isinstance(outcome, Rejection)
        failed = rejected and not outcome.is_final
        self._in_a_row = self._in_a_row + 1 if failed else 0
        self._failed += failed
        self._refused += rejected and not failed
        if not rejected:
            return
        self._rejected.append(outcome)
        done, parts = self._progress.done, self._path.parent
        if self._refused > self._allowed:
            self._write_rejected()
            raise RejectedError(_too_many_rejected(parts, done))
        if self._in_a_row >= OUTAGE and self._failed > self._failures_allowed:
            self._write_rejected()
            raise FailedError(_too_many_failed(parts, done))


def _too_many_rejected(parts: Path, tried: int) -> str:
    counted, first = named(r for r in rejected_in(parts) if r.is_final)
    return (
        f"{counted.total()} of {tried} attempts gave no demonstration ({listed(counted)}), more "
        f"than config.max_rejected allows; the first: {first}; all are named in "
        f"{parts}/*.rejected.jsonl"
    )


def _too_many_failed(parts: Path, tried: int) -> str:
    counted, first = named(r for r in rejected_in(parts) if not r.is_final)
    return (
        f"{counted.total()} of {tried} attempts failed ({listed(counted)}), more than "
        f"config.max_failed allows; the first: {first}; once this is mended, the same command "
        "makes these attempts again and no others"
    )


def rejected_in(parts: Path) -> Iterator[Rejection]:
    paths = sorted(parts.glob("*.rejected.jsonl"))
    return itertools.chain.from_iterable(read_jsonl(p, Rejection) for p in paths)

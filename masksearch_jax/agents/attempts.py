"""A job's attempts at demonstrations, in parts that outlast a stop, and what ends a job early."""

from __future__ import annotations

import itertools
import shutil
import sys
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
from masksearch_jax.core.files import write_text
from masksearch_jax.core.jsonl import read_jsonl, write_jsonl
from masksearch_jax.core.types import Demonstration, Example, has_answer
from masksearch_jax.runtime.progress import Progress

INDEX = "index.txt"  # beside parts: the fingerprint of the index that the service searched


class RejectedError(UserError):
    """More attempts gave no demonstration than `max_rejected` allows."""


class NoneKeptError(RejectedError):
    """Not one attempt gave a demonstration."""


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
        said = named(r for r in rejected_in(parts) if r.is_final)
        raise RejectedError(_too_many_rejected(parts, tried, *said))


def check_failures(parts: Path, counts: list[dict[str, Any]], allowed: float) -> None:
    """Raises FailedError where more than the share `allowed` of the attempts failed, or all did."""
    tried = sum(c["tried"] for c in counts)
    failed = sum(sum(failures(c["rejected"]).values()) for c in counts)
    if failed and (failed == tried or failed > allowed * tried):
        said = named(r for r in rejected_in(parts) if not r.is_final)
        raise FailedError(_too_many_failed(tried, *said))


def check_some(parts: Path, counts: list[dict[str, Any]], output: Path) -> None:
    """Raises NoneKeptError where attempts were made, for a call of which not one gave anything."""
    if tried := sum(c["tried"] for c in counts):
        counted, first = named(rejected_in(parts))
        raise NoneKeptError(
            f"none of {tried} attempts gave a demonstration ({listed(counted)}); the first: "
            f"{first}; all are named in {parts}/*.rejected.jsonl, and {output} stays as it was"
        )


def drop_of_other_index(parts: Path, served: Mapping[str, str]) -> None:
    """Deletes what an earlier session made by another index that the service searched."""
    path = parts / INDEX
    for name, fingerprint in served.items():
        before = path.read_text(encoding="utf-8") if path.is_file() else fingerprint
        if before != fingerprint:
            print(
                f"  config.{name} searches another index than before ({before} → {fingerprint}): "
                "what an earlier session has solved is solved again",
                file=sys.stderr,
                flush=True,
            )
            shutil.rmtree(parts)
        parts.mkdir(parents=True, exist_ok=True)
        write_text(path, fingerprint)


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
        self._path, self._progress, self._before = counts_path, progress, before
        self._allowed = max_rejected * progress.total - _final(before)
        self._failures_allowed = max_failed * progress.total
        self._refused = 0  # attempts that are final and gave nothing
        self._failed, self._in_a_row = sum(failures(before).values()), 0
        self._earlier: dict[str, list[teachers.Outcome]] = {}  # by example, of earlier sessions
        self._done: set[str] = set()  # of these examples, those without an attempt to repeat
        self._heard: dict[str, list[teachers.Outcome]] = {}  # of this session

    def solve(self, chunk: Sequence[Example], teacher: teachers.Teacher) -> dict[str, Any]:
        """Its counts, after the attempts that it lacks.

        Raises RejectedError as soon as more are rejected than allowed, FailedError as soon as more
        fail than allowed and a service seems to be down.
        """
        counts = stamp.read(self._path)
        if counts and not failures(counts["rejected"]):
            return counts
        self._earlier = self._read() if counts else {}
        self._earlier |= {
            e.id: unanswerable(e, teacher.attempts) for e in chunk if not has_answer(e)
        }
        self._done = {
            name for name, found in self._earlier.items() if _is_done(found, teacher.attempts)
        }
        done = [o for name in self._done for o in self._earlier[name]]
        self._refused = sum(isinstance(o, Rejection) for o in done)
        self._progress.update(self._progress.done + len(done))
        try:
            left = [e for e in chunk if e.id not in self._done]
            # Those heard of came as they ended; the file is the same for the same outcomes.
            self._heard = grouped(teacher.solve(left, self._hear) if left else ())
        finally:
            kept, rejected = self._write(chunk)
        counts = {"kept": kept, "rejected": dict(rejected)}
        stamp.write(self._path, counts)
        return counts

    def _read(self) -> dict[str, list[teachers.Outcome]]:
        """What an earlier session wrote, by example."""
        return grouped(
            [
                *read_jsonl(self._path.with_suffix(".jsonl"), Demonstration),
                *read_jsonl(self._path.with_suffix(".rejected.jsonl"), Rejection),
            ]
        )

    def _write(self, chunk: Sequence[Example]) -> tuple[int, Counter[str]]:
        """Writes what there is of each example, all of this session or all of an earlier one.

        The demonstrations it has written, and its rejections by reason. An example that this
        session was stopped in lacks attempts, and one that it did not come to has those that had
        failed: both are attempted again.
        """
        found = self._earlier | self._heard
        outcomes = [o for i in dict.fromkeys(e.id for e in chunk) for o in found.get(i, ())]
        kept = [o for o in outcomes if isinstance(o, Demonstration)]
        rejected = [o for o in outcomes if isinstance(o, Rejection)]
        # The failures that are repeated go last: until then their examples are not done.
        write_jsonl(self._path.with_suffix(".jsonl"), kept)
        write_jsonl(self._path.with_suffix(".rejected.jsonl"), rejected)
        return len(kept), Counter(r.reason for r in rejected)

    def _hear(self, outcome: teachers.Outcome) -> None:
        self._progress.update(self._progress.done + 1)
        rejected = isinstance(outcome, Rejection)
        failed = rejected and not outcome.is_final
        self._in_a_row = self._in_a_row + 1 if failed else 0
        self._failed += failed
        self._refused += rejected and not failed
        self._heard.setdefault(outcome.example_id, []).append(outcome)
        if not rejected:
            return
        done, parts = self._progress.done, self._path.parent
        if self._refused > self._allowed:
            raise RejectedError(_too_many_rejected(parts, done, *self._named(final=True)))
        if self._in_a_row >= OUTAGE and self._failed > self._failures_allowed:
            raise FailedError(_too_many_failed(done, *self._named(final=False)))

    def _named(self, *, final: bool) -> tuple[Counter[str], str]:
        """`named` of what was rejected, for good or not; without what is yet to be repeated."""
        known = [o for name in self._done for o in self._earlier[name]]
        heard = [o for found in self._heard.values() for o in found]
        own = (o for o in known + heard if isinstance(o, Rejection) and o.is_final == final)
        counted, first = named(own)
        counted.update({r: n for r, n in self._before.items() if (r not in NOT_FINAL) == final})
        return counted, first


def _is_done(outcomes: Sequence[teachers.Outcome], attempts: int) -> bool:
    """Whether an example has had all its attempts, and none of them failed."""
    failed = [o for o in outcomes if isinstance(o, Rejection) and not o.is_final]
    return len(outcomes) == attempts and not failed


def _too_many_rejected(parts: Path, tried: int, counted: Counter[str], first: str) -> str:
    return (
        f"{counted.total()} of {tried} attempts gave no demonstration ({listed(counted)}), more "
        f"than config.max_rejected allows; the first: {first}; all are named in "
        f"{parts}/*.rejected.jsonl"
    )


def _too_many_failed(tried: int, counted: Counter[str], first: str) -> str:
    return (
        f"{counted.total()} of {tried} attempts failed ({listed(counted)}), more than "
        f"config.max_failed allows; the first: {first}; once this is mended, the same command "
        "makes these attempts again and no others"
    )


def rejected_in(parts: Path) -> Iterator[Rejection]:
    paths = sorted(parts.glob("*.rejected.jsonl"))
    return itertools.chain.from_iterable(read_jsonl(p, Rejection) for p in paths)

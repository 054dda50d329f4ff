"""Write demonstrations: a teacher solves examples with the real search engine.

    python -m masksearch_jax.build_trajectories --config=configs/build_trajectories.py \\
        --config.folder=DATA --config.search.index=DATA/index

Reads FOLDER/ramp/train.jsonl and FOLDER/questions/train.jsonl, writes
FOLDER/demonstrations/train.jsonl and beside it train.rejected.jsonl, which names every attempt
without a demonstration and why. The teacher is a script, LLM agents on an endpoint, or a model of
ours. The work is kept in parts, so that the same command goes on where it was stopped; a finished
file made from the same inputs is kept.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import json
import shutil
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

from masksearch_jax.agents import agent_teacher, teachers
from masksearch_jax.agents.llm_client import NO_MATTER, LLMConfig
from masksearch_jax.agents.scripted_teacher import Rejection
from masksearch_jax.agents.selection import StudentConfig
from masksearch_jax.core import stamp
from masksearch_jax.core.config import SearchConfig
from masksearch_jax.core.errors import ConfigError, UserError, nearest
from masksearch_jax.core.types import Demonstration, Example, QAExample, RampExample, from_json
from masksearch_jax.ramp.examples import read_jsonl, write_jsonl
from masksearch_jax.runtime import cli, storage
from masksearch_jax.runtime.progress import Progress
from masksearch_jax.search.open import check_sources, open_tool

FORMAT = 2
KINDS = ("ramp", "questions")
PART = 2000  # examples per resumable part
_NAMED = 3  # rejections that an error quotes
# What does not change a demonstration: where and how fast it is made, what it may cost.
_NO_MATTER = {"search": ("timeout", "workers", "cache", "replay"), "llm": NO_MATTER}


@dataclasses.dataclass(frozen=True)
class BuildTrajectoriesRun:
    """`build_trajectories`: examples to demonstrations."""

    folder: str  # holds ramp/train.jsonl, questions/train.jsonl or both
    kinds: tuple[str, ...]  # of examples: ramp, questions
    search: SearchConfig
    max_searches: int  # searches in a demonstration
    demonstrations: int  # kept of each kind (RAMP, questions), 0: all
    seed: int
    teacher: Literal["scripted", "agents", "local"] = "scripted"
    language: str = "en"  # of the agents' prompts: en | zh
    max_rejected: float = 1.0  # share of attempts without a demonstration; beyond it the job fails
    llm: LLMConfig | None = None  # of the agents, and of the judge
    student: StudentConfig | None = None  # of teacher `local`


class RejectedError(UserError):
    """More attempts gave no demonstration than `max_rejected` allows."""


def make_teacher(cfg: BuildTrajectoriesRun) -> teachers.Teacher:
    """Raises ConfigError when a section that the teacher needs is missing."""
    needed = [("llm", cfg.llm)] if cfg.teacher == "agents" else []
    needed += [("student", cfg.student)] if cfg.teacher == "local" else []
    needed += [("llm", cfg.llm)] if cfg.student and cfg.student.judge == "llm" else []
    for name, section in needed:
        if section is None:
            raise ConfigError(f"config.teacher {cfg.teacher!r} needs the section config.{name}")
    search = open_tool(cfg.search)
    check_sources(search, cfg.search, _first_examples(cfg))
    if cfg.teacher == "scripted":
        return teachers.Scripted(search, cfg.search, cfg.max_searches, cfg.seed)
    limits = agent_teacher.TeacherConfig(cfg.language, cfg.max_searches, cfg.search)
    if cfg.teacher == "agents":
        return teachers.Agents(cfg.llm, search, limits)
    from masksearch_jax.agents.policy_teacher import Student  # JAX, which the others do without

    return Student(cfg.student, search, limits, cfg.llm, cfg.seed)


def _first_examples(cfg: BuildTrajectoriesRun) -> list[RampExample]:
    """A few of those that will be solved."""
    path = Path(cfg.folder) / "ramp" / "train.jsonl"
    if "ramp" not in cfg.kinds or not path.is_file():
        return []
    with path.open(encoding="utf-8") as file:
        return [from_json(RampExample, json.loads(line)) for line in itertools.islice(file, 8)]


def run(cfg: BuildTrajectoriesRun) -> dict[str, Any]:
    """Builds or resumes the demonstrations; counts in, kept by task, rejected by reason.

    Raises RejectedError when more was rejected than `max_rejected`, and llm.BudgetError when the
    budget is spent; what there is then is kept, and the same command goes on from it.
    """
    if not cfg.folder:
        raise ConfigError("config.folder is empty; it must name the folder of the examples")
    folder = Path(cfg.folder)
    for kind in cfg.kinds:
        if kind not in KINDS:
            raise ConfigError(f"config.kinds has {kind!r}; {nearest(kind, KINDS)}")
    sources = {kind: folder / kind / "train.jsonl" for kind in cfg.kinds}
    sources = {kind: path for kind, path in sources.items() if path.is_file()}
    if not sources:
        wanted = " nor ".join(f"{kind}/train.jsonl" for kind in cfg.kinds)
        raise FileNotFoundError(f"{folder} holds no {wanted}")
    output = folder / "demonstrations" / "train.jsonl"
    summary_path = output.with_suffix(".counts.json")
    made_from = _made_from(cfg, sources.values())
    written_files = output.name, output.with_suffix(".rejected.jsonl").name
    if (finished := stamp.read(summary_path, made_from, written_files)) is not None:
        return finished
    parts = output.with_suffix(".parts") / made_from
    _drop_others(parts)
    with contextlib.closing(make_teacher(cfg)) as teacher:
        counts = [_solve(cfg, kind, path, teacher, parts) for kind, path in sources.items()]
        figures = teacher.figures()
    written = write_jsonl(output, _kept(cfg, parts, sources))
    write_jsonl(output.with_suffix(".rejected.jsonl"), _rejected(parts))
    summary = _summary(counts, output, written) | ({"paid": figures} if figures else {})
    stamp.write(summary_path, summary, made_from, written_files)
    shutil.rmtree(parts.parent)
    return summary


def _made_from(cfg: BuildTrajectoriesRun, paths: Sequence[Path]) -> str:
    """A hash of all that decides the result: examples, index, weights, settings."""
    settings = dataclasses.asdict(cfg)
    del settings["folder"], settings["max_rejected"]
    for section, keys in _NO_MATTER.items():
        for key in keys if settings[section] else ():
            del settings[section][key]
    indexed = Path(cfg.search.index) / "passages.jsonl" if cfg.search.index else ""
    contents = [stamp.content(path) for path in (*paths, indexed)]
    weights = storage.fingerprint(cfg.student.init).hex() if cfg.student else ""
    return stamp.hash_of([FORMAT, settings, contents, weights])


def _drop_others(parts: Path) -> None:
    """Deletes the parts of an unfinished build from other inputs."""
    if parts.parent.is_dir():
        for other in parts.parent.iterdir():
            if other != parts:
                shutil.rmtree(other)


def _solve(
    cfg: BuildTrajectoriesRun, kind: str, path: Path, teacher: teachers.Teacher, parts: Path
) -> dict[str, Any]:
    """Writes the missing parts of one kind, until there are enough; its counts."""
    examples = read_jsonl(path, RampExample if kind == "ramp" else QAExample)
    total: Counter[str] = Counter()
    kept = tried = 0
    with Progress(f"{cfg.teacher} {kind}", len(examples) * teacher.attempts) as progress:
        for start in range(0, len(examples), PART):
            if cfg.demonstrations and kept >= cfg.demonstrations:
                break
            chunk = examples[start : start + PART]
            counts_path = parts / f"{kind}-{start:09d}.json"
            part = Part(counts_path, cfg.max_rejected * progress.total - total.total(), progress)
            counts = stamp.read(counts_path) or part.solve(chunk, teacher)
            total += Counter(counts["rejected"])
            kept, tried = kept + counts["kept"], tried + len(chunk) * teacher.attempts
            progress.update(tried, kept=kept, rejected=total.total())
    if total.total() > cfg.max_rejected * tried:
        raise RejectedError(_too_many(parts, tried))
    return {"kind": kind, "examples": len(examples), "tried": tried, "rejected": dict(total)}


class Part:
    """One part of the work; its counts are written last, and tell that it is whole."""

    def __init__(self, counts_path: Path, allowed: float, progress: Progress):
        self._path, self._allowed, self._progress = counts_path, allowed, progress
        self._rejected: list[Rejection] = []

    def solve(self, chunk: Sequence[Example], teacher: teachers.Teacher) -> dict[str, Any]:
        """Its counts. Raises RejectedError as soon as more than `allowed` are rejected."""
        try:
            outcomes = teacher.solve(chunk, self._hear)
            # Those heard of came as they ended; the file is the same for the same outcomes.
            self._rejected = [o for o in outcomes if isinstance(o, Rejection)]
        finally:
            write_jsonl(self._path.with_suffix(".rejected.jsonl"), self._rejected)
        kept = [o for o in outcomes if isinstance(o, Demonstration)]
        write_jsonl(self._path.with_suffix(".jsonl"), kept)
        rejected = Counter(r.reason for r in self._rejected)
        counts = {"kept": len(kept), "rejected": dict(rejected)}
        stamp.write(self._path, counts)
        return counts

    def _hear(self, outcome: teachers.Outcome) -> None:
        self._progress.update(self._progress.done + 1)
        if isinstance(outcome, Rejection):
            self._rejected.append(outcome)
            if len(self._rejected) > self._allowed:
                write_jsonl(self._path.with_suffix(".rejected.jsonl"), self._rejected)
                raise RejectedError(_too_many(self._path.parent, self._progress.done))


def _too_many(parts: Path, tried: int) -> str:
    """What was rejected, by reason, and the first of them by name."""
    reasons: Counter[str] = Counter()
    named: list[str] = []
    for rejected in _rejected(parts):
        reasons[rejected.reason] += 1
        if len(named) < _NAMED:
            named.append(f"{rejected.example_id}: {rejected.reason} {rejected.detail}".rstrip())
    counted = ", ".join(f"{n} {reason}" for reason, n in reasons.most_common())
    return (
        f"{reasons.total()} of {tried} attempts gave no demonstration ({counted}), more than "
        f"config.max_rejected allows; the first: {'; '.join(named)}; all are named in "
        f"{parts}/*.rejected.jsonl"
    )


def _rejected(parts: Path) -> Iterator[Rejection]:
    paths = sorted(parts.glob("*.rejected.jsonl"))
    return itertools.chain.from_iterable(read_jsonl(p, Rejection) for p in paths)


def _kept(cfg: BuildTrajectoriesRun, parts: Path, kinds: Sequence[str]) -> Iterator[Demonstration]:
    """The demonstrations of all parts in order, at most `cfg.demonstrations` of each kind."""
    for kind in kinds:
        paths = sorted(p.with_suffix(".jsonl") for p in parts.glob(f"{kind}-*.json"))
        found = itertools.chain.from_iterable(read_jsonl(p, Demonstration) for p in paths)
        yield from itertools.islice(found, cfg.demonstrations or None)


def _summary(counts: list[dict[str, Any]], output: Path, written: int) -> dict[str, Any]:
    demonstrations = read_jsonl(output, Demonstration)
    return {
        "examples": sum(c["examples"] for c in counts),
        "tried": sum(c["tried"] for c in counts),
        "demonstrations": written,
        "by_task": dict(sorted(Counter(d.task for d in demonstrations).items())),
        "by_searches": dict(sorted(Counter(str(len(d.turns)) for d in demonstrations).items())),
        "rejected": dict(sum((Counter(c["rejected"]) for c in counts), Counter())),
    }


def _print_summary(summary: dict[str, Any]) -> None:
    named = {
        k: ", ".join(f"{n} {r}" for r, n in summary[k].items()) or "none"
        for k in ("by_task", "by_searches", "rejected")
    }
    print(
        f"{summary['examples']} examples, {summary['tried']} tried, "
        f"{summary['demonstrations']} demonstrations ({named['by_task']}); "
        f"searches: {named['by_searches']}; rejected: {named['rejected']}",
        file=sys.stdout,
    )
    if paid := summary.get("paid"):
        print(", ".join(f"{name.replace('_', ' ')} {value}" for name, value in paid.items()))


if __name__ == "__main__":
    cli.run(lambda cfg: _print_summary(run(cfg)), BuildTrajectoriesRun, resumes=True)

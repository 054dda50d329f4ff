"""Write demonstrations: a teacher solves examples with the real search engine.

    python -m masksearch_jax.build_trajectories --config=configs/build_trajectories.py \\
        --config.folder=DATA --config.search.index=DATA/index

Reads FOLDER/ramp/train.jsonl and FOLDER/questions/train.jsonl, writes
FOLDER/demonstrations/train.jsonl and beside it train.rejected.jsonl, which names every attempt
without a demonstration and why. The teacher is a script, LLM agents on an endpoint, or a model of
ours. The work is kept in parts, so that the same command goes on where it was stopped; a finished
file made from the same inputs is kept, as are demonstrations of the other kind, which another call
wrote. An attempt that failed for want of an endpoint or a search
tool is never done: the same command makes it again.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import itertools
import json
import operator
import shutil
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from masksearch_jax.agents import agent_teacher, attempts, teachers
from masksearch_jax.agents.llm_client import check_endpoint, served_by
from masksearch_jax.agents.outcomes import listed
from masksearch_jax.agents.scripted_teacher import Rejection
from masksearch_jax.agents.selection import StudentConfig
from masksearch_jax.core import stamp
from masksearch_jax.core.config import SearchConfig
from masksearch_jax.core.errors import ConfigError, check_given, nearest
from masksearch_jax.core.jsonl import read_jsonl, write_jsonl
from masksearch_jax.core.llm_config import LLMConfig
from masksearch_jax.core.retrieval import SearchTool, source_of
from masksearch_jax.core.schema import (
    describe_keys,
    harmless_keys,
    key,
    required,
    section,
    seed_key,
    share,
)
from masksearch_jax.core.search_config import tools_key
from masksearch_jax.core.types import (
    Demonstration,
    RampExample,
    count_searches,
    from_json,
)
from masksearch_jax.data.folder import EXAMPLES
from masksearch_jax.data.methods import Taught
from masksearch_jax.evals import source_rank
from masksearch_jax.models.load import read_model
from masksearch_jax.runtime import cli, run_record, storage
from masksearch_jax.runtime.process_lock import ProcessLock
from masksearch_jax.runtime.progress import Progress
from masksearch_jax.search.open import (
    check_named,
    check_source_passages,
    index_served,
    open_tool,
)
from masksearch_jax.tools.registry import instructions_of, open_tools

FORMAT = 2
KINDS = tuple(EXAMPLES)
DEMONSTRATIONS = "demonstrations/train.jsonl"
PART = 2000  # examples per resumable part
# What does not change a demonstration: where and how fast it is made, what it may cost.
_NOT_COMPARED = ("folder", "kinds", "max_rejected", "max_failed")
_HARMLESS = {"search": harmless_keys(SearchConfig), "llm": harmless_keys(LLMConfig)}


@dataclasses.dataclass(frozen=True)
class BuildTrajectoriesRun:
    """`build_trajectories`: examples to demonstrations."""

    folder: str = required("Holds ramp/train.jsonl, questions/train.jsonl or both.")
    kinds: tuple[str, ...] = key(("ramp", "questions"), "Of examples: ramp, questions, statements.")
    search: SearchConfig = section(SearchConfig)
    max_searches: int = key(
        4, "Searches and calls of other tools in a demonstration, at most.", least=1
    )
    examples: int = key(
        0,
        "Tried of each kind, the first of its file; 0: as many as `demonstrations` needs.",
        least=0,
    )
    demonstrations: int = key(
        0, "Kept of each kind (RAMP, questions, statements); 0: all.", least=0
    )
    seed: int = seed_key("Of the script's choices and of what a student samples.")
    teacher: Literal["scripted", "agents", "local"] = key(
        "scripted",
        (
            "scripted: a script that knows the masked spans; agents: LLM agents on the endpoint "
            "`llm`; local: the model `student`."
        ),
    )
    thoughts: Literal["full", "short"] = key(
        "full",
        (
            "Of the script: what is missing and what was found, in many wordings (full), or stock "
            "phrases of a few words (short), for models of a short context."
        ),
    )
    method: Taught = key(
        "agent",
        (
            "Of the script: what it shows. agent: searches in turns; rag: one retrieval in the "
            "prompt, then the answer; closed_book: the answer alone."
        ),
    )
    language: str = key("en", "Of the agents' prompts: en or zh.")
    max_rejected: float = share(
        1.0, "Share of attempts without a demonstration; beyond it the job fails."
    )
    max_failed: float = share(
        0.01,
        (
            "Share of attempts that may fail for want of an endpoint or a search tool; beyond"
            " it the job ends with 1 and writes no demonstrations."
        ),
    )
    llm: LLMConfig | None = key(None, "Of the agents, and of the judge.")
    student: StudentConfig | None = key(None, "Of teacher `local`.")
    tools: tuple[str, ...] = tools_key()

    def idle(self) -> Iterator[tuple[str, str]]:
        """See `Switched`."""
        if self.teacher != "scripted":
            yield "thoughts", "it is read with config.teacher=scripted"
        if self.teacher != "local":
            yield "student", "it is read with config.teacher=local"
        if "llm" not in sections_of(self):
            for name in ("llm", "language"):
                yield name, "it is read with config.teacher=agents, or config.student.judge=llm"
        if self.teacher == "agents":
            yield "seed", "the endpoint of config.llm samples"


def check_sections(cfg: BuildTrajectoriesRun) -> None:
    """Raises ConfigError where a section that the teacher needs is missing or names no model."""
    if cfg.method != "agent" and cfg.teacher != "scripted":
        raise ConfigError(
            f"config.method is {cfg.method!r}, and teacher {cfg.teacher!r} shows an agent; method "
            "must be 'agent', or teacher 'scripted'"
        )
    for name in sections_of(cfg):
        if getattr(cfg, name) is None:
            raise ConfigError(f"config.teacher {cfg.teacher!r} needs the section config.{name}")
    if cfg.teacher == "local":
        init = "the HF folder, checkpoints or GGUF file of the model that samples"
        tokenizer = "the folder that holds tokenizer.json"
        check_given(cfg.student, "config.student", init=init, tokenizer=tokenizer)


def sections_of(cfg: BuildTrajectoriesRun) -> list[str]:
    """Of the sections `student` and `llm`, those that the teacher reads."""
    is_local = cfg.teacher == "local"
    is_judged = is_local and cfg.student is not None and cfg.student.judge == "llm"
    is_read = {"student": is_local, "llm": cfg.teacher == "agents" or is_judged}
    return [name for name, is_so in is_read.items() if is_so]


def check_config(cfg: BuildTrajectoriesRun) -> None:
    """Raises ConfigError for what no examples can mend: keys that are empty, and keys that clash.

    SearchError for those of search.
    """
    check_given(cfg, folder="the folder of the examples")
    check_sections(cfg)
    if "llm" in sections_of(cfg):
        check_endpoint(cfg.llm, "config.llm")
    for kind in cfg.kinds:
        if kind not in KINDS:
            raise ConfigError(f"config.kinds has {kind!r}; {nearest(kind, KINDS)}")
    instructions_of(cfg.tools)
    check_named(cfg.search)


def make_teacher(cfg: BuildTrajectoriesRun, search: SearchTool) -> teachers.Teacher:
    """The teacher that `cfg` names, who searches with `search`. Raises what loading it raises."""
    tools = open_tools(cfg.tools, search, cfg.search)
    check_source_passages(search, cfg.search, _first_examples(cfg))
    if cfg.teacher == "scripted":
        settings = cfg.search.workers, cfg.max_searches, cfg.seed, cfg.thoughts, cfg.method
        return teachers.Scripted(tools, *settings)
    limits = agent_teacher.TeacherConfig(cfg.language, cfg.max_searches, cfg.search)
    if cfg.teacher == "agents":
        return teachers.Agents(cfg.llm, tools, limits)
    from masksearch_jax.agents.policy_teacher import Student  # JAX, which the others do without

    return Student(cfg.student, tools, limits, cfg.llm, cfg.seed)


def _first_examples(cfg: BuildTrajectoriesRun) -> list[RampExample]:
    """A few of those that will be solved."""
    path = Path(cfg.folder) / "ramp" / "train.jsonl"
    if "ramp" not in cfg.kinds or not path.is_file():
        return []
    with path.open(encoding="utf-8") as file:
        return [from_json(RampExample, json.loads(line)) for line in itertools.islice(file, 8)]


def run(cfg: BuildTrajectoriesRun, *, may_be_empty: bool = False) -> dict[str, Any]:
    """Builds or resumes the demonstrations; counts in, kept by task, rejected by reason.

    may_be_empty: none accepted is an answer too, and no RejectedError.

    Raises RejectedError when more was rejected than `max_rejected`, or all, FailedError when more
    failed than `max_failed`, or no reply could be read, llm.JobError when the endpoint takes no
    more calls, and BeingWrittenError where another process works in the folder; what there is then
    is kept, and the same command goes on from it.
    """
    check_config(cfg)
    folder = Path(cfg.folder)
    inputs = {kind: folder / kind / "train.jsonl" for kind in cfg.kinds}
    inputs = {kind: path for kind, path in inputs.items() if path.is_file()}
    if not inputs:
        wanted = " nor ".join(f"{kind}/train.jsonl" for kind in cfg.kinds)
        raise FileNotFoundError(f"{folder} holds no {wanted}")
    output = folder / DEMONSTRATIONS
    made_from = _made_from(cfg, inputs.values())
    finished = stamp.read(_counts_path(output, cfg.kinds), made_from, _written(output))
    if finished is not None and not attempts.failures(finished["rejected"]):
        return finished
    with ProcessLock(folder):
        return _build(cfg, inputs, output, made_from, may_be_empty)


def _build(
    cfg: BuildTrajectoriesRun,
    inputs: Mapping[str, Path],
    output: Path,
    made_from: str,
    may_be_empty: bool,
) -> dict[str, Any]:
    folder = Path(cfg.folder)
    summary_path = _counts_path(output, cfg.kinds)
    written_files = _written(output)
    parts = output.with_suffix(".parts") / made_from
    search = open_tool(cfg.search)
    with contextlib.closing(make_teacher(cfg, search)) as teacher:
        _begin(cfg, output, made_from)
        stands = output.is_file()
        _drop_others(parts, cfg.kinds)
        attempts.drop_of_other_index(parts, index_served(search, cfg.search))
        try:
            counts = [_solve(cfg, kind, path, teacher, parts) for kind, path in inputs.items()]
            attempts.check_failures(parts, counts, cfg.max_failed)
            kept = list(_kept(cfg, parts, inputs))
            if not kept:
                attempts.check_some(parts, counts, output)
        except attempts.RejectedError as error:
            if unread := teacher.forget_unread():
                for path in parts.glob("*.json"):  # so that all attempts are made again
                    path.unlink()
                raise attempts.RejectedError(f"{error}; {unread}") from error
            if not (may_be_empty and isinstance(error, attempts.NoneKeptError)):
                raise
        figures = teacher.figures()
    summary = _summary(counts, kept, _sources(inputs)) | ({"paid": figures} if figures else {})
    others = [kind for kind in KINDS if kind not in cfg.kinds]
    standing = {kind: _standing(output, kind, written_files) for kind in others}
    for path in output.parent.glob("train*.counts.json"):
        path.unlink()
    _write_beside(output, kept, Demonstration, folder, others)
    _write_beside(
        rejected_path(folder), list(attempts.rejected_in(parts)), Rejection, folder, others
    )
    if stands:
        run_record.write(output.parent, cfg)
    stamp.write(summary_path, summary, made_from, written_files)
    for kind, found in standing.items():
        if found:
            stamp.write(_counts_path(output, [kind]), *found, written_files)
    if parts.is_dir() and not attempts.failures(summary["rejected"]):
        shutil.rmtree(parts)
        _remove_if_empty(parts.parent)
    return summary


def _begin(cfg: BuildTrajectoriesRun, output: Path, made_from: str) -> None:
    """Tells what will be replaced; an earlier output stands until then, and so does its record."""
    before = run_record.read(output.parent)
    last = KINDS if before is None else before["config"].get("kinds", ())
    others = [k for k in dict.fromkeys(cfg.kinds) if _has_others(output, k, made_from, k in last)]
    told = f"demonstrations of {', '.join(others)} of other settings will be" if others else ""
    is_known = before is None or bool({*last} & {*cfg.kinds})
    unread = {"student", "llm"} - {*sections_of(cfg)}
    keys = {k.name for k in describe_keys(type(cfg))}
    harmless = {*_NOT_COMPARED, *(k for k in keys if k.partition(".")[0] in unread)}
    why = "its inputs or the program" if is_known else "run.json is of other kinds since: settings"
    run_record.begin(
        output.parent,
        cfg,
        replaces=told,
        otherwise=f"{why} have changed",
        stands=output.is_file(),
        harmless=harmless if is_known else keys,
    )


def _has_others(output: Path, kind: str, made_from: str, is_last: bool) -> bool:
    """Whether there are demonstrations of a kind from other inputs, finished or not.

    is_last: the last call was for this kind, with or without others.
    """
    stamps = [_counts_path(output, [kind]), *([_counts_path(output, KINDS)] if is_last else [])]
    parts = output.with_suffix(".parts").glob(f"*/{kind}-*")
    return stamp.has_others(stamps, made_from) or any(p.parent.name != made_from for p in parts)


def _written(output: Path) -> tuple[str, str]:
    """The names of the files that a call writes beside its counts."""
    return output.name, output.with_suffix(".rejected.jsonl").name


def _counts_path(output: Path, kinds: Sequence[str]) -> Path:
    """The stamp of a call: train.counts.json, or train.KIND.counts.json of one for one kind."""
    return output.with_suffix(".counts.json" if len(set(kinds)) > 1 else f".{kinds[0]}.counts.json")


def _standing(output: Path, kind: str, files: Sequence[str]) -> tuple[dict[str, Any], str] | None:
    """The record of a finished call for one kind, and its inputs' hash; None for work to do."""
    path = _counts_path(output, [kind])
    made_from = stamp.inputs_of(path)
    record = stamp.read(path, made_from, files)
    return None if record is None else (record, made_from)


def _write_beside(
    path: Path, own: Sequence[Any], cls: type, folder: Path, others: Sequence[str]
) -> None:
    """Writes records of `cls`, those of RAMP first, and keeps those that the file has of `others`.

    Of examples that are no longer there it keeps none.
    """
    asked = {kind: folder / kind / "train.jsonl" for kind in others}
    ids = {e.id for k, p in asked.items() if p.is_file() for e in read_jsonl(p, EXAMPLES[k])}
    there = read_jsonl(path, cls) if ids and path.is_file() else []
    kept = [record for record in there if record.example_id in ids]
    write_jsonl(path, [*kept, *own] if "ramp" in others else [*own, *kept])


def _made_from(cfg: BuildTrajectoriesRun, paths: Sequence[Path]) -> str:
    """A hash of all that decides the result: examples, index, weights, settings.

    Of the settings those that the teacher reads. Raises JobError for an endpoint that is down.
    """
    settings, read = dataclasses.asdict(cfg), sections_of(cfg)
    settings |= {name: None for name in ("student", "llm") if name not in read}
    del settings["folder"], settings["max_rejected"], settings["max_failed"]
    for part, names in _HARMLESS.items():
        for name in names if settings[part] else ():
            *outer, last = name.split(".")
            del functools.reduce(operator.getitem, outer, settings[part])[last]
    indexed = Path(cfg.search.index) / "passages.jsonl" if cfg.search.index else ""
    contents = [stamp.content(path) for path in (*paths, indexed)]
    student = cfg.student if "student" in read else None
    weights = storage.fingerprint(student.init).hex() if student else ""
    served = served_by(cfg.llm) if cfg.llm and "llm" in read else ""
    return stamp.hash_of([FORMAT, settings, contents, weights, served])


def _drop_others(parts: Path, kinds: Sequence[str]) -> None:
    """Deletes the parts of unfinished builds of these kinds from other inputs."""
    for other in parts.parent.glob("*"):
        if other != parts:
            for path in itertools.chain.from_iterable(other.glob(f"{k}-*") for k in set(kinds)):
                path.unlink()
            _remove_if_empty(other)


def _remove_if_empty(folder: Path) -> None:
    """Removes a folder of parts, or of such folders, in which nothing is left that was made."""
    if all(path.name == attempts.INDEX for path in folder.iterdir()):
        shutil.rmtree(folder)


def _solve(
    cfg: BuildTrajectoriesRun, kind: str, path: Path, teacher: teachers.Teacher, parts: Path
) -> dict[str, Any]:
    """Writes the missing parts of one kind, until there are enough; its counts."""
    examples = read_jsonl(path, EXAMPLES[kind])[: cfg.examples or None]
    total: Counter[str] = Counter()
    kept = tried = 0
    with Progress(f"{cfg.teacher} {kind}", len(examples) * teacher.attempts) as progress:
        for start in range(0, len(examples), PART):
            if cfg.demonstrations and kept >= cfg.demonstrations:
                break
            chunk = examples[start : start + PART]
            path_of_part = parts / f"{kind}-{start:09d}.json"
            part = attempts.Part(path_of_part, cfg.max_rejected, cfg.max_failed, total, progress)
            counts = part.solve(chunk, teacher)
            total += Counter(counts["rejected"])
            kept, tried = kept + counts["kept"], tried + len(chunk) * teacher.attempts
            progress.update(tried, kept=kept, rejected=total.total())
    attempts.check_rejected(parts, tried, total, cfg.max_rejected)
    return {"kind": kind, "examples": len(examples), "tried": tried, "rejected": dict(total)}


def _kept(cfg: BuildTrajectoriesRun, parts: Path, kinds: Sequence[str]) -> Iterator[Demonstration]:
    """The demonstrations of all parts in order, at most `cfg.demonstrations` of each kind."""
    for kind in kinds:
        paths = sorted(p.with_suffix(".jsonl") for p in parts.glob(f"{kind}-*.json"))
        found = itertools.chain.from_iterable(read_jsonl(p, Demonstration) for p in paths)
        yield from itertools.islice(found, cfg.demonstrations or None)


def _sources(inputs: Mapping[str, Path]) -> dict[str, str]:
    """The passage that each masked paragraph was made from, by example."""
    if "ramp" not in inputs:
        return {}
    return {e.id: source_of(e) for e in read_jsonl(inputs["ramp"], RampExample)}


def _summary(
    counts: list[dict[str, Any]],
    demonstrations: Sequence[Demonstration],
    sources: Mapping[str, str],
) -> dict[str, Any]:
    """source_rank: of `evals.source_rank`; where it is mostly 1, what is learned is to copy."""
    searches = Counter(str(count_searches(d.turns)) for d in demonstrations)
    return {
        "examples": sum(c["examples"] for c in counts),
        "tried": sum(c["tried"] for c in counts),
        "demonstrations": len(demonstrations),
        "by_task": dict(sorted(Counter(d.task for d in demonstrations).items())),
        "by_searches": dict(sorted(searches.items())),
        "source_rank": source_rank.counts(demonstrations, sources),
        "rejected": dict(sum((Counter(c["rejected"]) for c in counts), Counter())),
    }


def failed_line(failed: Mapping[str, int]) -> str:
    """Of a job that is done but for a few attempts, what to do about these."""
    counted = listed(Counter(failed))
    return f"attempts that failed ({counted}) are made again by the same command, and no others"


def rejected_path(folder: str | Path) -> Path:
    """The file that names every attempt without a demonstration, and why."""
    return (Path(folder) / DEMONSTRATIONS).with_suffix(".rejected.jsonl")


def listed_counts(counts: Mapping[str, int]) -> str:
    """Numbers of searches, or ranks, and how many demonstrations have each."""
    return ", ".join(f"{name}: {count:,}" for name, count in sorted(counts.items())) or "none"


def _print_summary(summary: dict[str, Any], folder: str) -> None:
    named = {
        k: ", ".join(f"{n} {r}" for r, n in summary[k].items()) or "none"
        for k in ("by_task", "by_searches", "rejected")
    }
    if failed := attempts.failures(summary["rejected"]):
        print(failed_line(failed), file=sys.stderr)
    beyond = summary["tried"] - summary["demonstrations"] - sum(summary["rejected"].values())
    print(
        f"{summary['examples']} examples, {summary['tried']} tried, "
        f"{summary['demonstrations']} demonstrations ({named['by_task']})"
        f"{f', {beyond} more beyond config.demonstrations' if beyond else ''}; "
        f"searches: {named['by_searches']}; rank of the source passage in the first: "
        f"{listed_counts(summary['source_rank'])}; rejected: {named['rejected']}",
        file=sys.stdout,
    )
    if summary["rejected"]:
        print(f"each rejected attempt with its reason: {rejected_path(folder)}")
    if paid := summary.get("paid"):
        print(", ".join(f"{name.replace('_', ' ')} {value}" for name, value in paid.items()))
        if read := paid["parsed"] + paid["unreadable"]:
            share = paid["parsed"] / read
            print(f"{paid['parsed']} of {read} replies held what was asked for ({share:.0%})")


if __name__ == "__main__":
    cli.run(
        lambda cfg: _print_summary(run(cfg), cfg.folder),
        BuildTrajectoriesRun,
        resumes=True,
        read_model=read_model,
        check=check_config,
    )

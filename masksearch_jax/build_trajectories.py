"""Write demonstrations: the scripted teacher solves training examples with the real search engine.

    python -m masksearch_jax.build_trajectories --config=configs/build_trajectories.py \\
        --config.folder=DATA --config.search.index=DATA/index

Reads FOLDER/ramp/train.jsonl and FOLDER/questions/train.jsonl, writes
FOLDER/demonstrations/train.jsonl. The work is kept in parts, so that the same command goes on where
it was stopped; a finished file made from the same inputs is kept.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import random
import shutil
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from masksearch_jax import cli
from masksearch_jax.agents import construct
from masksearch_jax.config import SearchConfig
from masksearch_jax.data import records
from masksearch_jax.data.ramp import read_jsonl, write_jsonl
from masksearch_jax.progress import Progress
from masksearch_jax.search import tool
from masksearch_jax.types import Demonstration, Example, QAExample, RampExample

FORMAT = 1
KINDS = ("ramp", "questions")
PART = 2000  # examples per resumable part


@dataclasses.dataclass(frozen=True)
class BuildTrajectoriesRun:
    """`build_trajectories`: training examples to demonstrations."""

    folder: str  # holds ramp/train.jsonl, questions/train.jsonl or both
    kinds: tuple[str, ...]  # of examples: ramp, questions
    search: SearchConfig
    max_searches: int  # searches in a demonstration
    demonstrations: int  # kept of each kind (RAMP, questions), 0: all
    seed: int


def run(cfg: BuildTrajectoriesRun) -> dict[str, Any]:
    """Builds or resumes the demonstrations; counts in, kept by task, rejected by reason."""
    if not cfg.folder:
        raise cli.ConfigError("config.folder is empty; it must name the folder of the examples")
    folder = Path(cfg.folder)
    for kind in cfg.kinds:
        if kind not in KINDS:
            raise cli.ConfigError(f"config.kinds has {kind!r}; {cli.nearest(kind, KINDS)}")
    sources = {kind: folder / kind / "train.jsonl" for kind in cfg.kinds}
    sources = {kind: path for kind, path in sources.items() if path.is_file()}
    if not sources:
        wanted = " nor ".join(f"{kind}/train.jsonl" for kind in cfg.kinds)
        raise FileNotFoundError(f"{folder} holds no {wanted}")
    output = folder / "demonstrations" / "train.jsonl"
    summary_path = output.with_suffix(".counts.json")
    source = _source_hash(cfg, sources.values())
    finished = _read_json(summary_path)
    if output.is_file() and finished.get("source") == source:
        return finished
    parts = output.with_suffix(".parts") / source
    _drop_others(parts)
    search = tool.open_tool(cfg.search)
    counts = [_solve(cfg, kind, path, search, parts) for kind, path in sources.items()]
    written = write_jsonl(output, _kept(cfg, parts, sources))
    summary = _summary(source, counts, output, written)
    records.write_atomically(summary_path, json.dumps(summary, indent=1))
    shutil.rmtree(parts.parent)
    return summary


def _source_hash(cfg: BuildTrajectoriesRun, paths: Sequence[Path]) -> str:
    """A hash of all that decides the result: examples, index, settings."""
    settings = dataclasses.asdict(cfg)
    del settings["folder"], settings["search"]["timeout"], settings["search"]["workers"]
    digest = hashlib.sha256(json.dumps([FORMAT, settings], sort_keys=True).encode())
    indexed = Path(cfg.search.index) / "passages.jsonl" if cfg.search.index else None
    for path in (*paths, *([indexed] if indexed and indexed.is_file() else [])):
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()[:16]


def _read_json(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def _drop_others(parts: Path) -> None:
    """Deletes the parts of an unfinished build from other inputs."""
    if parts.parent.is_dir():
        for other in parts.parent.iterdir():
            if other != parts:
                shutil.rmtree(other)


def _solve(
    cfg: BuildTrajectoriesRun, kind: str, path: Path, search: tool.SearchTool, parts: Path
) -> dict[str, Any]:
    """Writes the missing parts of one kind, until there are enough; its counts."""
    examples = read_jsonl(path, RampExample if kind == "ramp" else QAExample)
    total: Counter[str] = Counter()
    kept = given = 0
    with (
        ThreadPoolExecutor(max(1, cfg.search.workers)) as pool,
        Progress(f"teacher {kind}", len(examples)) as progress,
    ):
        for start in range(0, len(examples), PART):
            if cfg.demonstrations and kept >= cfg.demonstrations:
                break
            chunk = examples[start : start + PART]
            counts_path = parts / f"{kind}-{start:09d}.json"
            counts = _read_json(counts_path) or _solve_part(cfg, chunk, search, pool, counts_path)
            total += Counter(counts["rejected"])
            kept, given = kept + counts["kept"], given + len(chunk)
            progress.update(given, kept=kept, rejected=total.total())
    return {"kind": kind, "examples": len(examples), "tried": given, "rejected": dict(total)}


def _solve_part(
    cfg: BuildTrajectoriesRun,
    chunk: Sequence[Example],
    search: tool.SearchTool,
    pool: ThreadPoolExecutor,
    counts_path: Path,
) -> dict[str, Any]:
    """Solves one part; its counts are written last, and tell that it is whole."""

    def solve(example: Example) -> Demonstration | construct.Rejection:
        rng = random.Random(f"{cfg.seed}/{example.id}")
        return construct.demonstrate(
            example, search, cfg.search, rng, max_searches=cfg.max_searches
        )

    solved = list(pool.map(solve, chunk))
    kept = [s for s in solved if isinstance(s, Demonstration)]
    rejected = Counter(s.reason for s in solved if isinstance(s, construct.Rejection))
    write_jsonl(counts_path.with_suffix(".jsonl"), kept)
    counts = {"kept": len(kept), "rejected": dict(rejected)}
    records.write_atomically(counts_path, json.dumps(counts))
    return counts


def _kept(cfg: BuildTrajectoriesRun, parts: Path, kinds: Sequence[str]) -> Iterator[Demonstration]:
    """The demonstrations of all parts in order, at most `cfg.demonstrations` of each kind."""
    for kind in kinds:
        paths = sorted(parts.glob(f"{kind}-*.jsonl"))
        found = itertools.chain.from_iterable(read_jsonl(p, Demonstration) for p in paths)
        yield from itertools.islice(found, cfg.demonstrations or None)


def _summary(
    source: str, counts: list[dict[str, Any]], output: Path, written: int
) -> dict[str, Any]:
    demonstrations = read_jsonl(output, Demonstration)
    return {
        "source": source,
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
        for k in summary
        if isinstance(summary[k], dict)
    }
    print(
        f"{summary['examples']} examples, {summary['tried']} tried, "
        f"{summary['demonstrations']} demonstrations ({named['by_task']}); "
        f"searches: {named['by_searches']}; rejected: {named['rejected']}",
        file=sys.stdout,
    )


if __name__ == "__main__":
    cli.run(lambda cfg: _print_summary(run(cfg)), BuildTrajectoriesRun)

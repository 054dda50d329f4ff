"""Tell which questions a corpus can answer at all.

    python -m masksearch_jax.coverage --config=configs/coverage.py \\
        --config.questions=hotpot_dev.json --config.search.index=DATA/index

Writes to OUT: coverage.json, the table; missing.jsonl, what each question lacks; answerable.jsonl,
the questions that can be answered, to train on. With config.complete, a file to write, the index's
passages and the gold documents that it lacks and the questions' file ships, to build an index of;
the ids of what was added begin with `added/`. OUT/complete.json says which file that is.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from masksearch_jax.core import stamp
from masksearch_jax.core.config import SearchConfig
from masksearch_jax.core.errors import ConfigError, check_given
from masksearch_jax.core.files import write_json, write_lines
from masksearch_jax.core.schema import key, section
from masksearch_jax.core.types import to_json
from masksearch_jax.corpus.passages import write_passages
from masksearch_jax.ramp.question_contexts import gold_documents
from masksearch_jax.ramp.question_files import read_questions
from masksearch_jax.runtime import cli, run_record, storage
from masksearch_jax.runtime.process_lock import ProcessLock
from masksearch_jax.runtime.progress import Progress
from masksearch_jax.search import coverage
from masksearch_jax.search.bm25 import BM25
from masksearch_jax.search.open import check_named, open_tool

CUTS = (2, 5, 10, 20)
COMPLETED = "complete.json"  # in OUT: the completed corpus that was written last
_AT_ONCE = 64  # questions of one search


@dataclasses.dataclass(frozen=True)
class CoverageRun:
    """`coverage`: questions and an index to what the index has for them."""

    questions: str = key("", "File of questions, of any form that build_ramp reads.")
    search: SearchConfig = section(SearchConfig)
    out: str = key("runs/coverage", "Folder to write.")
    complete: str = key(
        "", "File of the completed corpus to write, packed where its name ends in .gz; empty: none."
    )
    limit: int = key(0, "Questions that are looked at; 0: all.", least=0)

    def idle(self) -> Iterator[tuple[str, str]]:
        """See `Switched`."""
        for name in ("top_k", "max_passages", "max_queries"):
            yield f"search.{name}", "coverage looks as deep as its table says"


def check_config(cfg: CoverageRun) -> None:
    """Raises ConfigError for keys that are empty, SearchError for those of search that clash."""
    check_given(cfg, questions="a file of questions")
    check_given(cfg.search, "config.search", index="the folder that build_index wrote")
    check_named(cfg.search)


def run(cfg: CoverageRun) -> dict[str, dict[str, float]]:
    """The table, by data set. Raises BeingWrittenError where another process writes it."""
    check_config(cfg)
    _check_replaceable(cfg)
    with ProcessLock(cfg.out):
        return _run(cfg)


def _run(cfg: CoverageRun) -> dict[str, dict[str, float]]:
    asked = read_questions(cfg.questions).examples[: cfg.limit or None]
    out = Path(cfg.out)
    stands = (out / "coverage.json").is_file()
    run_record.begin(
        out,
        cfg,
        replaces=f"the table of other settings {'will be' if stands else 'is'}",
        stands=stands,
        harmless=("out", "complete"),
    )
    index, tool = BM25.open(cfg.search.index), open_tool(cfg.search)
    absent = coverage.missing_titles(index.passages, asked)
    covered: list[coverage.Covered] = []
    with Progress("coverage", len(asked)) as progress:
        for start in range(0, len(asked), _AT_ONCE):
            part = asked[start : start + _AT_ONCE]
            covered += coverage.cover(part, index.passages, tool, absent, CUTS[-1])
            progress.update(len(covered))
    table = coverage.summary(covered, CUTS)
    if stands:
        run_record.write(out, cfg)
    write_json(out / "coverage.json", table)
    lacking = (c for c in covered if not c.is_answerable)
    write_lines(out / "missing.jsonl", (json.dumps(dataclasses.asdict(c)) for c in lacking))
    kept = (q for q, c in zip(asked, covered, strict=True) if c.is_answerable)
    write_lines(out / "answerable.jsonl", (json.dumps(to_json(q)) for q in kept))
    if cfg.complete:
        added = coverage.additions(gold_documents(Path(cfg.questions)), index.passages)
        count = write_passages(cfg.complete, itertools.chain(index.passages, added))
        stamp.write(out / COMPLETED, {"bytes": _size(cfg.complete)}, cfg.complete)
        print(f"{cfg.complete}: {count:,} passages, {len(added):,} of them added")
    return table


def _check_replaceable(cfg: CoverageRun) -> None:
    """Raises ConfigError where `complete` is there and no run with the same `out` wrote it."""
    if not cfg.complete or not storage.path(cfg.complete).exists():
        return
    written = stamp.read(os.path.join(cfg.out, COMPLETED), cfg.complete)
    if written != {"bytes": _size(cfg.complete)}:
        raise ConfigError(
            f"config.complete is {cfg.complete!r}, which is there and which no run of config.out="
            f"{cfg.out!r} wrote; remove it or name another file"
        )


def _size(file: str) -> int:
    return int(storage.path(file).stat().length)


def render(table: dict[str, dict[str, float]]) -> str:
    """The table as text: percentages of questions by data set."""
    columns = list(next(iter(table.values())))
    lines: list[list[Any]] = [["data set", *columns]]
    for name, row in table.items():
        figures = [f"{row[c]:,.0f}" if c == "questions" else f"{row[c]:.1f}" for c in columns]
        lines.append([name, *figures])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join("  ".join(map(str.rjust, line, widths)) for line in lines)


if __name__ == "__main__":
    cli.run(lambda cfg: print(render(run(cfg))), CoverageRun, check=check_config)

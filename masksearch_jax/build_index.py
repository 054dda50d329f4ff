"""Index a corpus for searching.

    python -m masksearch_jax.build_index --config=configs/build_index.py \\
        --config.corpus.path=wiki.jsonl.gz --config.index=DATA/index

Reads what build_ramp reads, and gives each passage the same id. The index appears whole or not at
all, and replaces an older one. INDEX.dropped.txt beside it names the rows that could not be read.
"""

from __future__ import annotations

import contextlib
import dataclasses
import time
from pathlib import Path
from typing import Any

from masksearch_jax.core.corpus_config import CorpusConfig
from masksearch_jax.core.errors import check_given
from masksearch_jax.core.schema import key, section
from masksearch_jax.corpus import readers
from masksearch_jax.corpus.dropped_rows import DroppedRows
from masksearch_jax.corpus.passages import CorpusStats
from masksearch_jax.ramp import survey
from masksearch_jax.runtime import cli, run_record
from masksearch_jax.runtime.progress import Progress
from masksearch_jax.search import bm25


@dataclasses.dataclass(frozen=True)
class BuildIndexRun:
    """`build_index`: passages to a BM25 index."""

    corpus: CorpusConfig = section(CorpusConfig)
    index: str = key("runs/index", "Folder to write.")
    workers: int = key(1, "Processes that cut whole articles into passages.")


def run(cfg: BuildIndexRun) -> dict[str, Any]:
    """Builds the index; the counts in and out, every drop by reason, and what it cost.

    left_out: of whole articles, what is no prose, by reason.
    """
    check_given(cfg, index="the folder to write")
    readable = "a corpus that build_ramp reads, or the passages.jsonl that it wrote"
    check_given(cfg.corpus, "config.corpus", path=readable)
    started = time.monotonic()
    stats = CorpusStats()
    with contextlib.ExitStack() as stack:
        progress = stack.enter_context(Progress("index", cfg.corpus.limit))
        dropped = stack.enter_context(DroppedRows(dropped_path(cfg.index)))
        workers = cfg.workers if readers.has_articles(cfg.corpus) else 1
        passages = readers.read_corpus(
            cfg.corpus,
            log=dropped.add,
            stats=stats,
            mapper=stack.enter_context(survey.mapper(workers)),
        )

        def show(count: int) -> None:
            if not cfg.corpus.limit and stats.done:
                progress.total = max(count, round(count / stats.done))
            progress.update(count, dropped=stats.bad)

        count = bm25.build(passages, cfg.index, language=cfg.corpus.language, progress=show)
    files = [f for f in Path(cfg.index).rglob("*") if f.is_file()]
    run_record.write(cfg.index, cfg)
    return {
        "index": cfg.index,
        "read": stats.read,
        "dropped": dict(stats.dropped),
        "left_out": dict(stats.left_out.dropped),
        "passages": count,
        "bytes": sum(f.stat().st_size for f in files),
        "seconds": round(time.monotonic() - started, 1),
    }


def dropped_path(index: str) -> Path:
    """The file beside an index that names the rows which could not be read."""
    return Path(index).with_name(f"{Path(index).name}.dropped.txt")


def _print_summary(summary: dict[str, Any]) -> None:
    dropped, left_out = (
        ", ".join(f"{n:,} {reason}" for reason, n in summary[key].items())
        for key in ("dropped", "left_out")
    )
    print(
        f"{summary['index']}: {summary['passages']:,} passages of {summary['read']:,} rows "
        f"(dropped: {dropped or 'none'}), {summary['bytes'] / 1e6:.1f} MB, {summary['seconds']} s"
    )
    if dropped:
        print(f"rows that could not be read: {dropped_path(summary['index'])}")
    if left_out:
        print(f"left out of articles: {left_out}")


if __name__ == "__main__":
    cli.run(lambda cfg: _print_summary(run(cfg)), BuildIndexRun)

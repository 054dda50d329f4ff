"""Index a corpus for searching.

    python -m masksearch_jax.build_index --config=configs/build_index.py \\
        --config.corpus.path=wiki.jsonl.gz --config.index=DATA/index

The index appears whole or not at all, and replaces an older one.
"""

from __future__ import annotations

import dataclasses
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from masksearch_jax import cli
from masksearch_jax.config import CorpusConfig
from masksearch_jax.data import corpus
from masksearch_jax.progress import Progress
from masksearch_jax.search import bm25
from masksearch_jax.types import Passage


@dataclasses.dataclass(frozen=True)
class BuildIndexRun:
    """`build_index`: passages to a BM25 index."""

    corpus: CorpusConfig
    index: str  # folder to write
    language: str  # en | zh


def run(cfg: BuildIndexRun) -> dict[str, Any]:
    """Builds the index; the counts in and out, every drop by reason, and what it cost."""
    if not cfg.index:
        raise cli.ConfigError("config.index is empty; it must name the folder to write")
    if not cfg.corpus.path:
        raise cli.ConfigError(
            "config.corpus.path is empty; it must name a JSONL file of id, title, text, such as "
            "the passages.jsonl of build_ramp"
        )
    started = time.monotonic()
    stats = corpus.CorpusStats()
    with Progress("index", cfg.corpus.limit) as progress:

        def show(count: int) -> None:
            if not cfg.corpus.limit and stats.done:
                progress.total = max(count, round(count / stats.done))
            progress.update(count, dropped=stats.bad)

        count = bm25.build(_passages(cfg, stats), cfg.index, language=cfg.language, progress=show)
    files = [f for f in Path(cfg.index).rglob("*") if f.is_file()]
    return {
        "index": cfg.index,
        "read": stats.read,
        "dropped": dict(stats.dropped),
        "passages": count,
        "bytes": sum(f.stat().st_size for f in files),
        "seconds": round(time.monotonic() - started, 1),
    }


def _passages(cfg: BuildIndexRun, stats: corpus.CorpusStats) -> Iterator[Passage]:
    return corpus.read_passages(
        cfg.corpus.path,
        limit=cfg.corpus.limit,
        max_bad_fraction=cfg.corpus.max_bad_fraction,
        log=lambda message: print(f"  dropped {message}", file=sys.stderr),
        stats=stats,
    )


def _print_summary(summary: dict[str, Any]) -> None:
    dropped = ", ".join(f"{n:,} {reason}" for reason, n in summary["dropped"].items()) or "none"
    print(
        f"{summary['index']}: {summary['passages']:,} passages of {summary['read']:,} lines "
        f"(dropped: {dropped}), {summary['bytes'] / 1e6:.1f} MB, {summary['seconds']} s"
    )


if __name__ == "__main__":
    cli.run(lambda cfg: _print_summary(run(cfg)), BuildIndexRun)

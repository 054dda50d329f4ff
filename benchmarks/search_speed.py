"""BM25 as configured here, in one index and in shards, beside bm25s, SQLite's FTS5 and usearch.

    python -m benchmarks.search_speed --passages=passages.jsonl.gz --questions=questions.jsonl.gz \\
        --sizes=50000,200000,700000 --json=F

Told of each: passages built in a second, disk, milliseconds to open, resident memory after all
queries, and milliseconds a query and queries a second for questions and for masked paragraphs, by
one thread and by two. Every engine is built in one process and opened in another, which ends before
the next begins. Each engine's figures are written to F when they are measured: the same command
goes on after them. The time left is by the passages of engines that are done. Sizes beyond the
passages given are windows of as many words over neighbouring passages. bm25s takes part where it is
installed. usearch finds vectors: these are random, of 384 numbers, since its time does not depend
on what they say, and encoding a query is not in it. --engines=ours,bm25s measures those alone.
"""

from __future__ import annotations

import argparse
import gzip
import importlib
import importlib.util
import json
import math
import multiprocessing
import random
import re
import shutil
import sqlite3
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from itertools import islice
from pathlib import Path

import numpy as np
import psutil

from benchmarks.kept_rows import KeptRows, Row
from benchmarks.search import CUTS, Bm25s, Engine, Ours
from masksearch_jax.core.types import Passage
from masksearch_jax.corpus.passages import read_passages
from masksearch_jax.runtime.progress import Progress
from masksearch_jax.search import bm25

THREADS = (1, 2)
_MASKED = 4  # words of a paragraph
_DIM = 384
_LIBRARIES = {"bm25s": "bm25s", "usearch exact": "usearch.index", "usearch HNSW": "usearch.index"}
_WARM = 50  # queries before any is timed
Search = Callable[[str], list[int]]


class Sharded(Ours):
    """As ours, its terms in four shards."""

    def build(self, passages: Sequence[Passage], folder: Path) -> None:
        numbered = (Passage(str(row), p.title, p.text) for row, p in enumerate(passages))
        bm25.build(numbered, folder, shards=4)


class Fts5:
    """SQLite's full text search, Porter's stemmer, any word of the query, by its own BM25."""

    def build(self, passages: Sequence[Passage], folder: Path) -> None:
        folder.mkdir()
        with sqlite3.connect(folder / "fts.sqlite") as database:
            database.execute(
                "create virtual table texts using fts5(title, text, tokenize='porter')"
            )
            rows = ((row, p.title, p.text) for row, p in enumerate(passages))
            database.executemany("insert into texts(rowid, title, text) values (?, ?, ?)", rows)
        database.close()

    def open(self, folder: Path) -> Search:
        own = threading.local()
        asked = f"select rowid from texts where texts match ? order by rank limit {CUTS[-1]}"

        def search(text: str) -> list[int]:
            if not hasattr(own, "database"):
                own.database = sqlite3.connect(folder / "fts.sqlite")
            words = dict.fromkeys(re.findall(r"\w+", text.lower()))
            match = " OR ".join(f'"{word}"' for word in words)
            return [row for (row,) in own.database.execute(asked, (match,))] if match else []

        return search


class Vectors:
    """usearch among random vectors: all compared, or by its HNSW graph."""

    def __init__(self, is_exact: bool):
        self._is_exact = is_exact

    def build(self, passages: Sequence[Passage], folder: Path) -> None:
        from usearch.index import Index, MetricKind

        folder.mkdir()
        table = np.random.default_rng(0).standard_normal((len(passages), _DIM), np.float32)
        table = (table / np.linalg.norm(table, axis=1, keepdims=True)).astype(np.float16)
        np.save(folder / "table.npy", table)
        if not self._is_exact:
            graph = Index(ndim=_DIM, metric=MetricKind.IP, dtype="f16")
            graph.add(np.arange(len(table)), table)
            graph.save(str(folder / "graph"))

    def open(self, folder: Path) -> Search:
        from usearch.index import Index, MetricKind, search

        table = np.load(folder / "table.npy", mmap_mode="r")
        graph = None if self._is_exact else Index.restore(str(folder / "graph"), view=True)

        def ask(text: str) -> list[int]:
            asked = np.random.default_rng(len(text)).standard_normal(_DIM, np.float32)
            asked = asked.astype(np.float16)
            if graph is not None:
                return graph.search(asked, CUTS[-1], threads=1).keys.tolist()
            found = search(table, asked, CUTS[-1], MetricKind.IP, exact=True, threads=1)
            return found.keys.tolist()

        return ask


def engines() -> dict[str, Engine]:
    found: dict[str, Engine] = {"ours": Ours(), "ours in 4 shards": Sharded(), "FTS5": Fts5()}
    if importlib.util.find_spec("bm25s"):
        found["bm25s"] = Bm25s()
    return found | {"usearch exact": Vectors(True), "usearch HNSW": Vectors(False)}


def windows(passages: Sequence[Passage], count: int) -> Iterator[Passage]:
    """So many passages: those given, and then windows that begin within them."""
    passes = math.ceil(count / len(passages))

    def all_of() -> Iterator[Passage]:
        yield from passages
        for number in range(1, passes):
            for one, other in zip(passages, [*passages[1:], passages[0]], strict=True):
                words = one.text.split()
                start = number * len(words) // passes
                more = other.text.split()[:start] if other.title == one.title else []
                text = " ".join([*words[start:], *more])
                yield Passage(f"{one.id}+{number}", one.title, text)

    return islice(all_of(), count)


def masked(passages: Sequence[Passage], count: int, seed: int) -> list[str]:
    """Paragraphs with words masked, as a policy might search for them whole."""
    rng = random.Random(seed)
    found = []
    for passage in rng.sample(list(passages), min(count, len(passages))):
        words = passage.text.split()
        for place in rng.sample(range(len(words)), min(_MASKED, len(words))):
            words[place] = "[mask]"
        found.append(" ".join(words))
    return found


def build(name: str, passages: Sequence[Passage], folder: Path) -> Row:
    started = time.perf_counter()
    engines()[name].build(passages, folder)
    seconds = time.perf_counter() - started
    size = sum(f.stat().st_size for f in folder.rglob("*") if f.is_file())
    return {"build_passages_per_second": len(passages) / seconds, "disk_mb": size / 1e6}


def ask(name: str, folder: Path, queries: dict[str, list[str]]) -> Row:
    """Times of one engine that is opened anew; resident memory counts mapped pages."""
    if name in _LIBRARIES:  # whose import is not in the time to open
        importlib.import_module(_LIBRARIES[name])
    before = psutil.Process().memory_info().rss
    started = time.perf_counter()
    search = engines()[name].open(folder)
    row: Row = {"open_ms": 1e3 * (time.perf_counter() - started)}

    def timed(query: str) -> float:
        began = time.perf_counter()
        search(query)
        return time.perf_counter() - began

    for kind, asked in queries.items():
        for query in asked[:_WARM]:
            search(query)
        for threads in THREADS:
            with ThreadPoolExecutor(threads) as pool:
                began = time.perf_counter()
                seconds = list(pool.map(timed, asked))
                whole = time.perf_counter() - began
            p50, p99 = np.percentile(seconds, (50, 99)) * 1e3
            told = {"p50_ms": p50, "p99_ms": p99, "per_second": len(asked) / whole}
            row[f"{kind}, {threads}"] = {k: float(v) for k, v in told.items()}
    return row | {"resident_mb": (psutil.Process().memory_info().rss - before) / 1e6}


def measure(
    passages: Sequence[Passage],
    queries: dict[str, list[str]],
    sizes: Sequence[int],
    names: Sequence[str],
    kept: KeptRows,
) -> list[Row]:
    """Rows of all engines at all sizes; those that `kept` has are not measured again."""
    rows = []
    left = {s: [n for n in names if kept.find(engine=n, passages=s) is None] for s in sizes}
    total, done = sum(size * len(left[size]) for size in sizes), 0
    with Progress("passages of all engines", total) as progress:
        for size in sizes:
            taken = list(windows(passages, size)) if left[size] else []
            for name in names:
                row = kept.find(engine=name, passages=size) or kept.add(one(name, taken, queries))
                rows.append(row)
                print(line(row), flush=True)
                done += size * (name in left[size])
                progress.update(done)
    return rows


def one(name: str, passages: Sequence[Passage], queries: dict[str, list[str]]) -> Row:
    """What one engine takes and gives, each step in a process of its own."""
    processes = multiprocessing.get_context("spawn")
    row: Row = {"engine": name, "passages": len(passages)}
    folder = Path(tempfile.mkdtemp(prefix="search-speed-"))
    try:
        for step, given in ((build, (passages, folder / "it")), (ask, (folder / "it", queries))):
            said = f"{step.__name__}: {name}, {len(passages):,} passages"
            print(f"{time.strftime('%H:%M:%S')} {said}", file=sys.stderr, flush=True)
            with ProcessPoolExecutor(1, mp_context=processes) as pool:
                row |= pool.submit(step, name, *given).result()
    finally:
        shutil.rmtree(folder)
    return row


def line(row: Row) -> str:
    figures = [
        f"{row['engine']:>14}{row['passages']:>9,}",
        f"{row['build_passages_per_second']:,.0f} passages/s",
        f"{row['disk_mb']:,.0f} MB",
        f"opened in {row['open_ms']:,.0f} ms",
        f"{row['resident_mb']:,.0f} MB resident",
    ]
    for name, told in row.items():
        if isinstance(told, dict):
            each = f"{told['p50_ms']:.2f}/{told['p99_ms']:.2f} ms {told['per_second']:,.0f}/s"
            figures.append(f"{name}: {each}")
    return "  ".join(figures)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--passages", required=True, help="JSONL of id, title, text; .gz allowed")
    parser.add_argument("--questions", required=True, help="JSONL of question, gzipped")
    parser.add_argument("--sizes", default="50000,200000,700000", help="numbers of passages")
    parser.add_argument("--queries", type=int, default=1000, help="of each kind")
    parser.add_argument("--engines", default=",".join(engines()), help="those alone, by comma")
    parser.add_argument("--json", help="file of the figures, which a stopped run goes on from")
    args = parser.parse_args()
    passages = list(read_passages(args.passages))
    with gzip.open(args.questions) as lines:
        questions = [json.loads(text)["question"] for text in islice(lines, args.queries)]
    queries = {"questions": questions, "paragraphs": masked(passages, args.queries, seed=0)}
    sizes = [int(size) for size in args.sizes.split(",")]
    kept = KeptRows(args.json, {"passages": len(passages), "queries": len(questions)})
    names = args.engines.split(",")
    if unknown := set(names) - set(engines()):
        parser.error(
            f"no engine is called {', '.join(sorted(unknown))}; choose from {', '.join(engines())}"
        )
    measure(passages, queries, sizes, names, kept)


if __name__ == "__main__":
    main()

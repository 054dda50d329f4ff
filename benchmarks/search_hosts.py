"""Search for many hosts: a copy of the index on each, or servers that they share, as a table.

    python -m benchmarks.search_hosts --passages=passages.jsonl.gz \\
        --questions=questions.jsonl.gz --sizes=50000,200000 --speed=S --json=F
    python -m benchmarks.search_hosts --json=F --hosts=256 --corpus=21000000

The first measures BM25 in process at each size, by `benchmarks.search_speed`, usearch's HNSW graph
beside it, and one serve_search that two clients ask in batches. What that command wrote of these
sizes to S, on the same machine, is not measured again. The second reads what F has. The
table is computed: each figure is a straight line through those of all sizes, at --corpus passages.
A line tells too much of what grows less than the corpus, such as a query's time. `p99` waits for no
other query. A copy is searched by one thread of its host, a server as it was measured.
"""

from __future__ import annotations

import argparse
import gzip
import json
import math
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from benchmarks import search_speed
from benchmarks.kept_rows import KeptRows, Row
from benchmarks.search_faults import TOP_K, serving
from masksearch_jax.core.config import SearchConfig
from masksearch_jax.core.types import Passage
from masksearch_jax.corpus.passages import read_passages
from masksearch_jax.search import bm25
from masksearch_jax.search.open import open_tool

ENGINES = ("ours", "usearch HNSW")
SERVED = "served"  # the engine of a row of serve_search
_CLIENTS, _BATCH = 2, 32
_ASKED = "questions, 1"  # the figures of `search_speed` of one thread


def served(passages: Sequence[Passage], questions: Sequence[str]) -> Row:
    """Queries a second of a server that clients ask in batches, and the 99th percentile of one."""
    with tempfile.TemporaryDirectory(prefix="search-hosts-") as folder:
        index = Path(folder) / "index"
        bm25.build(passages, index)
        with serving(index) as (_, url):
            tool = open_tool(SearchConfig("http", url=url, memory=0))
            seconds = []
            for question in questions:
                started = time.perf_counter()
                tool.search([question], TOP_K)
                seconds.append(time.perf_counter() - started)
            batches = [questions[i : i + _BATCH] for i in range(0, len(questions), _BATCH)]
            started = time.perf_counter()
            with ThreadPoolExecutor(_CLIENTS) as pool:
                list(pool.map(lambda batch: tool.search(batch, TOP_K), batches))
            whole = time.perf_counter() - started
    p99 = float(np.percentile(seconds, 99)) * 1e3
    return {
        "engine": SERVED,
        "passages": len(passages),
        "p99_ms": p99,
        "per_second": len(questions) / whole,
    }


def take(path: str, sizes: Sequence[int], queries: int, kept: KeptRows) -> None:
    """Keeps what a file of `benchmarks.search_speed` has of these sizes and is not kept yet."""
    told = json.loads(Path(path).read_text())
    if (asked := told["settings"]["queries"]) != queries:
        raise SystemExit(f"{path} was measured with {asked} queries: give --queries={asked}")
    for row in told["rows"]:
        is_wanted = row["engine"] in ENGINES and row["passages"] in sizes
        if is_wanted and kept.find(engine=row["engine"], passages=row["passages"]) is None:
            kept.add(row)


def at(rows: Sequence[Row], passages: int, name: str) -> float:
    """A figure of so many passages, by the line through those measured; of one size, in proportion.

    It is at least the largest that was measured, since a figure does not fall as a corpus grows.
    """
    sizes, values = [r["passages"] for r in rows], [r[name] for r in rows]
    if len(set(sizes)) == 1:
        return float(np.mean(values)) * passages / sizes[0]
    slope, base = np.polyfit(sizes, values, 1)
    return max(float(slope * passages + base), *values)


def lines(rows: Sequence[Row], engine: str) -> list[Row]:
    """What grows with the corpus, of one engine: MB, seconds, milliseconds."""
    found = []
    for row in rows:
        if row["engine"] != engine:
            continue
        asked = row if engine == SERVED else row[_ASKED]
        told = {"passages": row["passages"], "p99": asked["p99_ms"]}
        told["query"] = 1e3 / asked["per_second"]
        if engine != SERVED:
            told |= {"disk": row["disk_mb"], "memory": row["resident_mb"]}
            told["build"] = row["passages"] / row["build_passages_per_second"]
        found.append(told)
    return found


def table(rows: Sequence[Row], corpus: int, hosts: int, demand: float, copying: float) -> list[Row]:
    """A row for each arrangement of `hosts` that search `demand` times a second each.

    copying: MB a second of a host that fetches its copy; all hosts fetch at once. Sizes are in GB.
    """
    told = []
    for engine in ENGINES:
        own = lines(rows, engine)
        if not own:
            continue
        disk, memory, build, p99, query = (
            at(own, corpus, name) for name in ("disk", "memory", "build", "p99", "query")
        )
        shared = {"engine": engine, "disk_each": disk / 1e3, "memory_each": memory / 1e3}
        shared |= {"build_hours": build / 3600}
        told.append(
            shared
            | {
                "arrangement": "a copy on each host",
                "copies": hosts,
                "fetch_minutes": disk / copying / 60,
                "p99_ms": p99,
                "per_second": hosts * 1e3 / query,
            }
        )
        remote = lines(rows, SERVED)
        if engine != "ours" or not remote:
            continue
        each = 1e3 / at(remote, corpus, "query")
        servers = max(1, math.ceil(hosts * demand / each))
        told.append(
            shared
            | {
                "arrangement": "shared servers",
                "copies": servers,
                "fetch_minutes": disk / copying / 60,
                "p99_ms": at(remote, corpus, "p99"),
                "per_second": servers * each,
            }
        )
    for row in told:
        row["disk_all"] = row["disk_each"] * row["copies"]
        row["memory_all"] = row["memory_each"] * row["copies"]
    return told


def render(told: Sequence[Row]) -> str:
    """The table as Markdown."""
    figures = {
        "copies": ",.0f",
        "disk_each": ",.1f",
        "disk_all": ",.0f",
        "memory_each": ",.1f",
        "memory_all": ",.0f",
        "build_hours": ".2f",
        "fetch_minutes": ".1f",
        "p99_ms": ",.1f",
        "per_second": ",.0f",
    }
    names = ("engine", "arrangement", *figures)
    head = [
        n.replace("_", " ") + (" GB" if n.startswith(("disk", "memory")) else "") for n in names
    ]
    body = [[r[n] if n not in figures else format(r[n], figures[n]) for n in names] for r in told]
    cells = [head, ["---"] * len(names), *body]
    return "\n".join(f"| {' | '.join(row)} |" for row in cells)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--passages", help="JSONL of id, title, text; .gz allowed; none: as F says")
    parser.add_argument("--questions", help="JSONL of question, gzipped")
    parser.add_argument("--sizes", default="2000,4000", help="numbers of passages measured")
    parser.add_argument("--queries", type=int, default=1000)
    parser.add_argument("--speed", help="file of figures of benchmarks.search_speed")
    parser.add_argument("--json", help="file of the figures, which a stopped run goes on from")
    parser.add_argument("--corpus", type=int, default=21_000_000, help="passages of the table")
    parser.add_argument("--hosts", type=int, default=256)
    parser.add_argument("--demand", type=float, default=50.0, help="searches a second of a host")
    parser.add_argument("--copying", type=float, default=500.0, help="MB a second to each host")
    args = parser.parse_args()
    kept = KeptRows(args.json, {"queries": args.queries})
    if args.passages:
        passages = list(read_passages(args.passages))
        with gzip.open(args.questions) as rows:
            questions = [json.loads(row)["question"] for row in rows][: args.queries]
        sizes = [int(size) for size in args.sizes.split(",")]
        if args.speed:
            take(args.speed, sizes, args.queries, kept)
        for size in sizes:
            search_speed.measure(passages, {"questions": questions}, [size], ENGINES, kept)
            if kept.find(engine=SERVED, passages=size) is None:
                kept.add(served(list(search_speed.windows(passages, size)), questions))
    if not kept.rows:
        parser.error("nothing is measured: give --passages and --questions, or --json of a file")
    print(f"{args.corpus:,} passages for {args.hosts} hosts of {args.demand:g} searches a second\n")
    print(render(table(kept.rows, args.corpus, args.hosts, args.demand, args.copying)))


if __name__ == "__main__":
    main()

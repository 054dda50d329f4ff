"""Searches that are lost when a search server is killed and restarted, and when it fails.

    python -m benchmarks.search_faults --passages=passages.jsonl.gz \\
        --questions=questions.jsonl.gz --searches=640000 --json=F

`server.lost`: of the searches of several clients, those that failed or found otherwise than in
process; with it the server's memory after a quarter of them and after all. `server.restart_lost`:
the same while serve_search is killed halfway and started again --down seconds later.
`server.faults_lost`: the same where a tenth of the requests is answered with status 500 and a tenth
never. All must be 0. Each is written to F when it is measured: the same command goes on after it.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import functools
import gzip
import json
import math
import re
import subprocess
import sys
import tempfile
import threading
import time
from array import array
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import psutil

from benchmarks.kept_rows import KeptRows, Row
from masksearch_jax.core.config import SearchConfig
from masksearch_jax.core.retrieval import SearchError, SearchTool
from masksearch_jax.core.types import Passage
from masksearch_jax.corpus.passages import read_passages
from masksearch_jax.runtime.progress import Progress
from masksearch_jax.search import bm25
from masksearch_jax.search.open import open_tool
from masksearch_jax.testing.services import WELL, Answer, SearchEndpoint, by_number

TOP_K = 5
_CONFIG = Path(__file__).parents[1] / "configs" / "serve_search.py"


@contextlib.contextmanager
def serving(index: Path, port: int = 0) -> Iterator[tuple[subprocess.Popen, str]]:
    """A serve_search of its own process, and its address; killed at the end."""
    command = [sys.executable, "-m", "masksearch_jax.serve_search", f"--config={_CONFIG}"]
    command += [f"--config.search.index={index}", f"--config.port={port}"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield process, re.search(r"at (http\S+)", process.stdout.readline())[1]
        finally:
            process.kill()


@dataclasses.dataclass(frozen=True)
class Load:
    """Searches one by one from `clients` threads: the `queries` in turn."""

    queries: Sequence[str]
    expected: Sequence[list[Passage]]
    clients: int
    searches: int


def lost(
    name: str, tool: SearchTool, load: Load, at: dict[int, Callable[[], None]] | None = None
) -> Row:
    """How many searches there were and how many were lost. at: what is done when so many are."""
    seconds, failures = array("d"), list[str]()
    lock, watched = threading.Lock(), at or {}

    def ask(number: int) -> bool:
        place = number % len(load.queries)
        started = time.monotonic()
        try:
            (hits,) = tool.search([load.queries[place]], TOP_K)
            is_lost = hits != load.expected[place]
        except SearchError as error:
            failures.append(str(error))
            is_lost = True
        with lock:
            seconds.append(time.monotonic() - started)
            progress.update(len(seconds), failed=len(failures))
            act = watched.get(len(seconds))
        if act:
            act()
        return is_lost

    numbers = iter(range(load.searches))  # its next is taken by one thread

    def client(_: int) -> int:
        return sum(map(ask, numbers))

    with Progress(name, load.searches) as progress, ThreadPoolExecutor(load.clients) as pool:
        count = sum(pool.map(client, range(load.clients)))
    return {
        "what": name,
        "searches": load.searches,
        "lost": count,
        "p50_ms": float(np.percentile(seconds, 50)) * 1e3,
        "p99_ms": float(np.percentile(seconds, 99)) * 1e3,
        "slowest_s": max(seconds),
        "failures": failures[:3],
    }


def steady(name: str, index: Path, load: Load) -> Row:
    with serving(index) as (process, url):
        memory: list[float] = []

        def note() -> None:
            memory.append(psutil.Process(process.pid).memory_info().rss / 1e6)

        tool = open_tool(SearchConfig("http", url=url, memory=0))
        at = dict.fromkeys((max(1, load.searches // 4), load.searches), note)
        row = lost(name, tool, load, at)
    return row | {"server_mb_at_a_quarter": memory[0], "server_mb_at_the_end": memory[-1]}


def restart(name: str, index: Path, load: Load, down: float) -> Row:
    with contextlib.ExitStack() as stack:
        process, url = stack.enter_context(serving(index))
        tool = open_tool(SearchConfig("http", url=url, memory=0))

        def start_again() -> None:
            time.sleep(down)
            port = int(url.rpartition(":")[2].partition("/")[0])
            stack.enter_context(serving(index, port))

        starter = threading.Thread(target=start_again)

        def kill() -> None:
            process.kill()
            process.wait()
            starter.start()

        try:
            return lost(name, tool, load, {max(1, load.searches // 2): kill})
        finally:
            starter.join()


def faults(name: str, index: Path, load: Load) -> Row:
    broken, stalled = Answer(status=500), Answer(hang=math.inf)
    script = by_number(lambda n: {3: broken, 7: stalled}.get(n % 10, WELL))
    with SearchEndpoint(bm25.BM25.open(index), script) as service:
        tool = open_tool(SearchConfig("http", url=service.url, memory=0, attempt_timeout=1.0))
        return lost(name, tool, load)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--passages", required=True, help="JSONL of id, title, text; .gz allowed")
    parser.add_argument("--questions", required=True, help="JSONL of question, gzipped")
    parser.add_argument("--searches", type=int, default=10_000, help="of all clients together")
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--down", type=float, default=10.0, help="seconds that no server runs")
    parser.add_argument("--json", help="file of the figures, which a stopped run goes on from")
    args = parser.parse_args()
    with gzip.open(args.questions) as lines:
        queries = [json.loads(line)["question"] for line in lines]
    counted = ("searches", "clients", "down")
    kept = KeptRows(args.json, {name: getattr(args, name) for name in counted})
    with tempfile.TemporaryDirectory(prefix="search-faults-") as folder:
        index = Path(folder) / "index"
        bm25.build(read_passages(args.passages), index)
        expected = bm25.BM25.open(index).search(queries, TOP_K)
        load = Load(queries, expected, args.clients, args.searches)
        down = functools.partial(restart, down=args.down)
        kinds: dict[str, Callable[[str, Path, Load], Row]] = {
            "server.lost": steady,
            "server.restart_lost": down,
            "server.faults_lost": faults,
        }
        for name, measure in kinds.items():
            row = kept.find(what=name) or kept.add(measure(name, index, load))
            print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()

"""Searches that are lost when a search server is killed and restarted, and when it fails.

    python -m benchmarks.search_faults --passages=passages.jsonl.gz --questions=questions.jsonl.gz

`server.restart_lost`: of the searches of several clients, those that failed or found otherwise than
in process, while serve_search is killed once and started again --down seconds later.
`server.faults_lost`: the same where a tenth of the requests is answered with status 500 and a tenth
never. Both must be 0.
"""

from __future__ import annotations

import argparse
import contextlib
import gzip
import json
import math
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from masksearch_jax.core.config import SearchConfig
from masksearch_jax.core.retrieval import SearchError, SearchTool
from masksearch_jax.core.types import Passage
from masksearch_jax.corpus.passages import read_passages
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


def lost(
    tool: SearchTool, queries: Sequence[str], expected: Sequence[list[Passage]], clients: int
) -> dict[str, Any]:
    """Searches one by one from `clients` threads: how many there were and how many were lost."""
    seconds, failures = [], []

    def ask(place: int) -> bool:
        started = time.monotonic()
        try:
            (hits,) = tool.search([queries[place]], TOP_K)
        except SearchError as error:
            failures.append(str(error))
            return True
        finally:
            seconds.append(time.monotonic() - started)
        return hits != expected[place]

    with ThreadPoolExecutor(clients) as pool:
        count = sum(pool.map(ask, range(len(queries))))
    return {
        "searches": len(queries),
        "lost": count,
        "p50_ms": float(np.percentile(seconds, 50)) * 1e3,
        "p99_ms": float(np.percentile(seconds, 99)) * 1e3,
        "slowest_s": max(seconds),
        "failures": failures[:3],
    }


def restart(
    index: Path,
    queries: Sequence[str],
    expected: Sequence[list[Passage]],
    clients: int,
    down: float,
) -> dict[str, Any]:
    with contextlib.ExitStack() as stack:
        process, url = stack.enter_context(serving(index))
        tool = open_tool(SearchConfig("http", url=url, memory=0))

        def kill_and_start() -> None:
            time.sleep(1.0)
            process.kill()
            process.wait()
            time.sleep(down)
            port = int(url.rpartition(":")[2].partition("/")[0])
            stack.enter_context(serving(index, port))

        killer = threading.Thread(target=kill_and_start)
        killer.start()
        try:
            return lost(tool, queries, expected, clients)
        finally:
            killer.join()


def faults(
    index: Path, queries: Sequence[str], expected: Sequence[list[Passage]], clients: int
) -> dict[str, Any]:
    broken, stalled = Answer(status=500), Answer(hang=math.inf)
    script = by_number(lambda n: {3: broken, 7: stalled}.get(n % 10, WELL))
    with SearchEndpoint(bm25.BM25.open(index), script) as service:
        tool = open_tool(SearchConfig("http", url=service.url, memory=0, attempt_timeout=1.0))
        return lost(tool, queries, expected, clients)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--passages", required=True, help="JSONL of id, title, text; .gz allowed")
    parser.add_argument("--questions", required=True, help="JSONL of question, gzipped")
    parser.add_argument("--searches", type=int, default=2000)
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--down", type=float, default=10.0, help="seconds that no server runs")
    parser.add_argument("--json", help="file to write the figures to")
    args = parser.parse_args()
    with gzip.open(args.questions) as lines:
        questions = [json.loads(line)["question"] for line in lines]
    queries = [f"{questions[i % len(questions)]} {i}" for i in range(args.searches)]
    with tempfile.TemporaryDirectory(prefix="search-faults-") as folder:
        index = Path(folder) / "index"
        bm25.build(read_passages(args.passages), index)
        expected = bm25.BM25.open(index).search(queries, TOP_K)
        given = (index, queries, expected, args.clients)
        found = {"server.restart_lost": restart(*given, args.down)}
        found["server.faults_lost"] = faults(*given)
    print(json.dumps(found, indent=1))
    if args.json:
        Path(args.json).write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()

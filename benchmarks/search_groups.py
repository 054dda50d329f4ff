"""What sharing and caches save of the searches of DAPO's groups, and of the time that these take.

    python -m benchmarks.search_groups --trajectories=runs/dapo/rollouts --json=F
    python -m benchmarks.search_groups --groups=32 --size=8

Trajectories that a run recorded, or made-up ones, make their searches again, each on a thread, one
after the other with --decode seconds before each. A search takes --latency seconds. Told for each
arrangement: calls of the tool, queries in these, and seconds until all have ended. Trajectories of
one question are begun together, as a group is. Of made-up groups a trajectory's queries are drawn
from --distinct of its question's, the first much more often than the last: the same for all
arrangements.
"""

from __future__ import annotations

import argparse
import collections
import gzip
import itertools
import json
import random
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from masksearch_jax.core.files import write_json
from masksearch_jax.core.retrieval import SearchTool
from masksearch_jax.core.types import SEARCH, Passage
from masksearch_jax.runtime.progress import Progress
from masksearch_jax.search.cache import CachedSearch
from masksearch_jax.search.shared import SharedSearch
from masksearch_jax.search.tool import FakeSearch

Row = dict[str, Any]
Searches = list[tuple[str, ...]]  # of a trajectory: the queries of each
TOP_K = 5


def recorded(path: str) -> list[list[Searches]]:
    """The searches of recorded trajectories by example: of a file of JSON lines or a folder."""
    place = Path(path)
    files = sorted(place.rglob("*.jsonl*")) if place.is_dir() else [place]
    groups: dict[str, list[Searches]] = collections.defaultdict(list)
    for file, row in itertools.chain.from_iterable(map(_rows, files)):
        turns = (t for t in row.get("turns", ()) if t.get("tool", SEARCH) == SEARCH)
        searches = [tuple(turn["queries"]) for turn in turns if turn["queries"]]
        if searches:
            groups[f"{file}/{row.get('example_id', row.get('id'))}"].append(searches)
    return list(groups.values())


def _rows(file: Path) -> Iterator[tuple[Path, Row]]:
    with gzip.open(file, "rt") if file.suffix == ".gz" else open(file) as lines:
        for line in lines:
            yield file, json.loads(line)


def made_up(groups: int, size: int, searches: int, distinct: int) -> list[list[Searches]]:
    rng = random.Random(0)
    weights = [1 / rank for rank in range(1, distinct + 1)]

    def one(group: int) -> Searches:
        drawn = rng.choices(range(distinct), weights, k=searches)
        return [(f"question {group} query {i}",) for i in dict.fromkeys(drawn)]

    return [[one(group) for _ in range(size)] for group in range(groups)]


def replay(
    tool: SearchTool, groups: Sequence[list[Searches]], at_once: int, decode: float, name: str
) -> float:
    """Seconds until all trajectories have made their searches, `at_once` of them side by side."""

    def one(searches: Searches) -> None:
        for queries in searches:
            time.sleep(decode)
            tool.search(queries, TOP_K)

    trajectories = list(itertools.chain.from_iterable(groups))
    started = time.perf_counter()
    with Progress(name, len(trajectories)) as progress, ThreadPoolExecutor(at_once) as pool:
        for done, _ in enumerate(pool.map(one, trajectories), start=1):
            progress.update(done)
    return time.perf_counter() - started


def measure(
    groups: Sequence[list[Searches]], at_once: int, decode: float, latency: float
) -> list[Row]:
    """A row for each arrangement; the last repeats the whole with the file that the third wrote."""
    rows = []
    with tempfile.TemporaryDirectory(prefix="search-groups-") as folder:
        path = Path(folder) / "cache"
        for name in ("none", "shared while under way", "in memory too", "on disk too", "again"):
            asked = FakeSearch(lambda query: [Passage(query, "", "text")], latency=latency)
            tool: SearchTool = asked
            if name in ("on disk too", "again"):
                tool = CachedSearch(asked, path)
            if name != "none":
                tool = SharedSearch(tool, 0 if name == "shared while under way" else 10_000)
            seconds = replay(tool, groups, at_once, decode, name)
            row = {"arrangement": name, "calls": len(asked.calls)}
            row |= {"queries": sum(map(len, asked.calls)), "seconds": seconds}
            print(f"{name:>24}  {row['calls']:,} calls  {seconds:.2f} s", flush=True)
            rows.append(row)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--trajectories", help="what a run recorded; none: made-up groups")
    parser.add_argument("--groups", type=int, default=32)
    parser.add_argument("--size", type=int, default=8, help="trajectories of a group")
    parser.add_argument("--searches", type=int, default=3, help="of a trajectory, at most")
    parser.add_argument("--distinct", type=int, default=6, help="queries that a group draws from")
    parser.add_argument("--at-once", type=int, default=64, help="trajectories side by side")
    parser.add_argument("--decode", type=float, default=0.05, help="seconds before each search")
    parser.add_argument("--latency", type=float, default=0.2, help="seconds of a search")
    parser.add_argument("--json", help="file to write the figures to")
    args = parser.parse_args()
    sizes = (args.groups, args.size, args.searches, args.distinct)
    groups = recorded(args.trajectories) if args.trajectories else made_up(*sizes)
    if not groups:
        parser.error(f"{args.trajectories} has no trajectory with a search")
    rows = measure(groups, args.at_once, args.decode, args.latency)
    if args.json:
        write_json(args.json, {"settings": vars(args), "rows": rows})


if __name__ == "__main__":
    main()

"""Rollouts with searches shared and kept, against none shared: tokens/s and calls saved.

    python -m benchmarks.search_rollouts --json=F

Model, slots, lengths and mesh are the quickstart's, as in `benchmarks.search_devices`. A search
takes a time drawn for its query, log-normal with a median of 0.5 s and a 99th percentile of 3 s,
and each open trajectory may search. As samples of a group do, trajectories ask the same again: each
query becomes one of --distinct, the first much more often than the last. Arrangements take turns
within each repeat, and a ratio is of one repeat; `shared`: while under way; `kept`: in memory too
(search.memory). Each repeat is written to F when it is measured: the same command goes on after it.
"""

from __future__ import annotations

import argparse
import dataclasses
import random
import zlib
from collections import defaultdict
from collections.abc import Sequence

import jax

from benchmarks import rollout_model as stand_in
from benchmarks.kept_rows import KeptRows, Row
from benchmarks.rollout import Values, table, versions
from benchmarks.search_devices import FULL, SMOKE, Rollouts, Size
from configs import quickstart
from masksearch_jax.core.retrieval import SearchTool
from masksearch_jax.core.schema import to_dataclass
from masksearch_jax.core.types import Passage
from masksearch_jax.parallel import sharding
from masksearch_jax.quickstart import QuickstartRun
from masksearch_jax.runtime.progress import Progress
from masksearch_jax.search.shared import SharedSearch
from masksearch_jax.search.tool import FakeSearch

MEDIAN, P99 = 0.5, 3.0  # seconds of a search
SIZES = {"none": None, "shared": 0, "kept": 10_000}  # results that are kept; None: none is shared


class Repeated:
    """Asks `tool` for one of `distinct` queries in place of each, always the same for the same."""

    def __init__(self, tool: SearchTool, distinct: int):
        self._tool, self._numbers = tool, range(distinct)
        self._weights = [1 / (number + 1) for number in self._numbers]

    def search(self, queries: Sequence[str], top_k: int) -> list[list[Passage]]:
        return self._tool.search([self._one(query) for query in queries], top_k)

    def _one(self, query: str) -> str:
        rng = random.Random(zlib.crc32(query.encode()))
        return f"query {rng.choices(self._numbers, self._weights)[0]}"


def run(one: Rollouts, kept: int | None, distinct: int, seed: int, median: float) -> Row:
    """Figures of the rollouts with one arrangement, and how many searches were made for them."""
    words = one.rollout.max_observation_tokens - 2
    at_once = stand_in.SlowSearch(words, lambda query: 0.0)
    seconds = stand_in.log_normal(seed, median, median * P99 / MEDIAN)
    asked = FakeSearch(
        lambda query: at_once.search([query], 1)[0],
        latency=lambda queries: max(map(seconds, queries)),
    )
    tool = asked if kept is None else SharedSearch(asked, kept)
    row = one.run(Repeated(tool, distinct))
    return row | {"calls": len(asked.calls)}


def measure(
    size: Size,
    distinct: int,
    repeats: int,
    kept: KeptRows,
    mesh: jax.sharding.Mesh,
    median: float = MEDIAN,
) -> Values:
    """Figures of each repeat, of which those in `kept` are not measured again."""
    wanted = [n for n in range(repeats) if kept.find(repeat=n) is None]
    if wanted:
        cfg = to_dataclass(QuickstartRun, quickstart.get_config())
        cfg = dataclasses.replace(cfg, search=dataclasses.replace(cfg.search, workers=size.slots))
        with jax.set_mesh(mesh):
            one = Rollouts(cfg, size, mesh)
            with one.engine, Progress("rollouts", len(wanted) * len(SIZES)) as progress:
                run(one, 10_000, 1, 0, 0.001)  # compiles
                for repeat in wanted:
                    row: Row = {"repeat": repeat, "versions": versions()}
                    for name, memory in SIZES.items():
                        row[name] = run(one, memory, distinct, repeat, median)
                        progress.update(progress.done + 1)
                    kept.add(row)
    values: Values = defaultdict(list)
    for row in kept.rows:
        for name in SIZES:
            for figure, value in row[name].items():
                values[f"{name}.{figure}"].append(value)
            speed = row[name]["tokens_per_second"] / row["none"]["tokens_per_second"]
            if name != "none":
                values[f"{name}.ratio_to_none"].append(speed)
    return values


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--distinct", type=int, default=150, help="queries of all trajectories")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--smoke", action="store_true", help="so small that no figure counts")
    parser.add_argument("--json", help="file of the figures, which a stopped run goes on from")
    args = parser.parse_args()
    sharding.split_cpu(quickstart.get_config().cpu_devices)
    mesh = sharding.make_mesh(to_dataclass(QuickstartRun, quickstart.get_config()).mesh)
    size = SMOKE if args.smoke else FULL
    print(*(f"{name} {value}" for name, value in versions().items()), sep=", ", flush=True)
    kept = KeptRows(args.json, dataclasses.asdict(size) | {"distinct": args.distinct})
    print(f"\n{table(measure(size, args.distinct, args.repeats, kept, mesh), {})}", flush=True)


if __name__ == "__main__":
    main()

"""A step of DAPO taken apart, and partial rollouts against synchronous ones where search is slow.

    bash launch/quickstart.sh
    python -m benchmarks.rl_step --run=runs/quickstart --json=FILE
        [--trajectories=runs/quickstart/eval/qa_dapo/trajectories.jsonl]

Trains from a checkpoint of the quickstart, at its size, by the trainer itself. Each search takes
longer by a time drawn for its queries: log-normal of this median and 99th percentile, or with
--trajectories one of those that the searches of these trajectories took. Synchronous: a step drops
nothing and carries nothing over. Partial: trajectories in flight go on in the next step. The two
take turns, once with each seed, which is that of the latencies too; a ratio is of one turn. The
first steps, which compile and fill the engine, are not timed.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import shutil
import tempfile
import time
import zlib
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.rollout import Values, nested, table, versions
from benchmarks.rollout_model import log_normal
from masksearch_jax import train_dapo
from masksearch_jax.core.config import DapoRun, SearchConfig
from masksearch_jax.core.retrieval import SearchTool
from masksearch_jax.core.schema import to_dataclass
from masksearch_jax.core.types import Passage
from masksearch_jax.parallel.sharding import split_cpu
from masksearch_jax.runtime.metric_writer import read_metrics
from masksearch_jax.search.open import open_tool

MEDIAN, P99 = 0.5, 3.0  # seconds of a search
INIT = {"ramp_dapo": "ramp_sft", "qa_dapo": "qa_sft"}  # what a stage begins with
MODES = ("synchronous", "partial")
SLOTS, ROWS = 256, 64  # open at once, and of these decoding: the others wait for search
TARGETS = {
    "partial.ratio_to_synchronous": (">=", 1.5),
    "partial.search_wait_share": ("<=", 0.05),
}
# Of the metrics of a step, what its seconds went to; the rest is "other".
PARTS = {
    "decode_seconds": "device_seconds",
    "search_wait_seconds": "search_wait_seconds",
    "host_seconds": "host_seconds",
    "reward_wait_seconds": "reward_wait_seconds",
    "logprob_seconds": "logprob_seconds",
}
Latency = Callable[[str], float]


class LateSearch:
    """A search tool that answers `seconds(query)` later, the longest of a call's queries."""

    def __init__(self, tool: SearchTool, seconds: Latency):
        self._tool, self._seconds = tool, seconds

    def search(self, queries: Sequence[str], top_k: int) -> list[list[Passage]]:
        found = self._tool.search(queries, top_k)
        time.sleep(max(map(self._seconds, queries), default=0.0))
        return found


def recorded(path: Path, seed: int) -> Latency:
    """Seconds of a query: one draw per query and seed from what the searches of a file took."""
    rows = map(json.loads, path.read_text(encoding="utf-8").splitlines())
    took = [turn["seconds"] for row in rows for turn in row["turns"] if turn["queries"]]
    if not took:
        raise SystemExit(f"{path} holds no search")

    def seconds(query: str) -> float:
        return float(np.random.default_rng([seed, zlib.crc32(query.encode())]).choice(took))

    return seconds


def config(args: argparse.Namespace, mode: str, seed: int, workdir: Path) -> DapoRun:
    """The stage of the quickstart as it was run, with room to wait in, in a folder of its own."""
    run = Path(args.run)
    saved = json.loads((run / args.stage / "run.json").read_text(encoding="utf-8"))["config"]
    cfg = to_dataclass(DapoRun, saved)
    partial = {"in_flight": "keep", "max_staleness": args.staleness}
    how = partial if mode == "partial" else {"in_flight": "drop", "max_staleness": 0}
    return dataclasses.replace(
        cfg,
        workdir=str(workdir),
        data=str(run / "cache"),
        tokenizer=str(run / "tokenizer"),
        init=str(run / INIT[args.stage] / "checkpoints"),
        seed=seed,
        search=SearchConfig(**vars(cfg.search) | {"index": str(run / "index"), "workers": SLOTS}),
        rollout=dataclasses.replace(
            cfg.rollout, slots=SLOTS, decode_share=(ROWS / SLOTS,), seed=seed, **how
        ),
        dapo=dataclasses.replace(
            cfg.dapo,
            steps=args.warm_up + args.steps,
            minibatches=args.minibatches,
            oversample=args.oversample if mode == "partial" else 1.0,
            seed=seed,
        ),
        checkpoint=dataclasses.replace(cfg.checkpoint, folder="", every=args.warm_up + args.steps),
    )


def steps(args: argparse.Namespace, mode: str, seed: int) -> list[dict[str, float]]:
    """The metrics of the timed steps."""
    workdir = Path(tempfile.mkdtemp(prefix="rl_step-"))
    cfg = config(args, mode, seed, workdir)
    late = recorded(Path(args.trajectories), seed) if args.trajectories else None
    tool = LateSearch(open_tool(cfg.search), late or log_normal(seed, MEDIAN, P99))
    try:
        train_dapo.run(cfg, tool)
        return read_metrics(workdir)[args.warm_up :]
    finally:
        shutil.rmtree(workdir)


def parts_of(rows: list[dict[str, float]]) -> dict[str, float]:
    """Means of a mode's steps: seconds by part, and what was sampled and learned."""

    def mean(name: str) -> float:
        return float(np.mean([row.get(name, 0.0) for row in rows]))

    found = {part: mean(name) for part, name in PARTS.items()}
    update = mean("update_seconds") - found["logprob_seconds"]
    sampling = ("decode_seconds", "search_wait_seconds", "host_seconds", "reward_wait_seconds")
    other = mean("sample_seconds") - sum(found[name] for name in sampling)
    found |= {"update_seconds": update, "other_seconds": other}
    seconds = mean("sample_seconds") + mean("update_seconds")
    of_all = {name: mean(name) for name in ("reward_seconds", "reward", "staleness", "restarted")}
    shares = {"search_wait_share": found["search_wait_seconds"] / seconds}
    hourly = {"steps_per_hour": 3600 / seconds, "groups_per_step": mean("groups_kept")}
    return found | {"step_seconds": seconds} | of_all | shares | hourly


def measure(args: argparse.Namespace) -> Values:
    values: Values = defaultdict(list)
    rewards: dict[str, list[float]] = {mode: [] for mode in MODES}
    for seed in range(args.repeats):
        hourly = {}
        for mode in MODES:
            rows = steps(args, mode, seed)
            found = parts_of(rows)
            for name, value in found.items():
                values[f"{mode}.{name}"].append(value)
            hourly[mode] = found["steps_per_hour"]
            rewards[mode] += [row["reward"] for row in rows]
        ratio = hourly["partial"] / hourly["synchronous"]
        values["partial.ratio_to_synchronous"].append(ratio)
    means = {mode: np.mean(found) for mode, found in rewards.items()}
    variances = [np.var(found, ddof=1) / len(found) for found in rewards.values()]
    values["reward_difference"].append(float(means["partial"] - means["synchronous"]))
    values["reward_standard_error"].append(float(np.sqrt(sum(variances))))
    return values


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--run", default="runs/quickstart", help="a finished quickstart")
    parser.add_argument("--stage", choices=tuple(INIT), default="ramp_dapo")
    parser.add_argument("--trajectories", default="", help="JSONL whose searches' seconds to take")
    parser.add_argument("--steps", type=int, default=12, help="timed, of each mode and repeat")
    parser.add_argument("--warm-up", type=int, default=4, help="steps before these")
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--minibatches", type=int, default=2)
    parser.add_argument("--staleness", type=int, default=2, help="rollout.max_staleness of partial")
    parser.add_argument("--oversample", type=float, default=2.5, help="dapo.oversample of partial")
    parser.add_argument("--json", help="file to write the figures to")
    args = parser.parse_args()
    split_cpu(2)
    about: dict[str, Any] = versions()
    print(*(f"{name} {value}" for name, value in about.items()), sep=", ", flush=True)
    values = measure(args)
    print(f"\n{table(values, TARGETS)}", flush=True)
    if args.json:
        figures = {"versions": about, "settings": vars(args)} | nested(values, {})
        Path(args.json).write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()

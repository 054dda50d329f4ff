"""The Beam pipeline's speed by number of workers, on this machine.

    python -m benchmarks.beam --passages=passages.jsonl.gz --count=20000 --json=FILE

Makes examples (corpus to JSON lines, without the TFDS dataset) of the same passages with one and
with two worker processes, in turn, and takes the ratio within each repeat. What the workers need to
start is measured by a run over 40 passages and taken off; the table shows the times with it too.
"""

from __future__ import annotations

import argparse
import gzip
import itertools
import json
import logging
import os
import platform
import statistics
import tempfile
import time
from importlib import metadata
from pathlib import Path
from typing import Any

from etils import epath

from masksearch_jax import build_dataset
from masksearch_jax.core.schema import to_dataclass
from masksearch_jax.runtime import cli

REPOSITORY = Path(__file__).resolve().parent.parent
FEW = 40  # passages of the run that measures the start


def corpus(passages: Path, count: int, files: int, folder: Path) -> str:
    """The first `count` passages in gzipped files under `folder`; returns their pattern."""
    folder.mkdir()
    with gzip.open(passages, "rt", encoding="utf-8") as source:
        lines = list(itertools.islice(source, count))
    for number in range(files):
        with gzip.open(folder / f"{number:03d}.jsonl.gz", "wt", encoding="utf-8") as file:
            file.writelines(lines[number::files])
    return f"{folder}/*.jsonl.gz"


def seconds(pattern: str, workers: int, folder: Path) -> tuple[float, int]:
    """How long all examples take with that many worker processes, and how many they are."""
    c = cli.load_config(str(REPOSITORY / "configs" / "build_dataset.py"))
    c.corpus, c.folder = pattern, str(folder)
    c.beam = {"options": f"--direct_num_workers={workers} --direct_running_mode=multi_processing"}
    cfg = to_dataclass(build_dataset.BuildDatasetRun, c)
    with tempfile.TemporaryDirectory(dir=folder) as work:
        started = time.perf_counter()
        counts = build_dataset.extract(cfg, build_dataset.files_of(pattern), epath.Path(work) / "w")
        return time.perf_counter() - started, counts["ramp"]["out"]


def measure(args: argparse.Namespace) -> dict[str, Any]:
    rows = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        few = corpus(args.passages, FEW, 4, folder / "few")
        many = corpus(args.passages, args.count, args.files, folder / "many")
        for repeat in range(args.repeats):
            row: dict[str, Any] = {"repeat": repeat}
            for workers in (1, 2):
                start, _ = seconds(few, workers, folder)
                whole, row["examples"] = seconds(many, workers, folder)
                row |= {f"start_{workers}": start, f"whole_{workers}": whole}
            row["speedup_with_start"] = row["whole_1"] / row["whole_2"]
            row["speedup"] = (row["whole_1"] - row["start_1"]) / (row["whole_2"] - row["start_2"])
            print(json.dumps({k: round(v, 2) for k, v in row.items()}), flush=True)
            rows.append(row)
    return summary(args, rows)


def summary(args: argparse.Namespace, rows: list[dict[str, Any]]) -> dict[str, Any]:
    def middle(key: str) -> float:
        return statistics.median(row[key] for row in rows)

    return {
        "speedup_two_workers": middle("speedup"),
        "speedup_two_workers_with_start": middle("speedup_with_start"),
        "spread": [min(r["speedup"] for r in rows), max(r["speedup"] for r in rows)],
        "passages_per_second_one_worker": args.count / (middle("whole_1") - middle("start_1")),
        "passages": args.count,
        "repeats": rows,
        "cores": os.cpu_count(),
        "load": os.getloadavg(),
        "versions": {"python": platform.python_version()}
        | {p: metadata.version(p) for p in ("apache-beam", "protobuf", "tensorflow-datasets")},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--passages", type=Path, required=True, help="JSONL.gz of id, title, text")
    parser.add_argument("--count", type=int, default=20_000)
    parser.add_argument("--files", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    logging.disable(logging.WARNING)  # what Beam notes of its workers
    found = measure(args)
    for key, value in found.items():
        if key != "repeats":
            print(f"{key:32} {value}")
    if args.json:
        args.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

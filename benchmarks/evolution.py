"""What self-evolution did, iteration by iteration: a table and a drawing for the README.

    python -m masksearch_jax.evolve --config=configs/evolve.py
    python -m benchmarks.evolution runs/evolve --svg=benchmarks/evolution.svg

Iteration 0 is the student of the teacher's demonstrations. `accepted` is the share of what the
student before sampled that the judge accepted; the diversity is of the demonstrations that an
iteration added.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from benchmarks import drawings
from masksearch_jax.evals import iterations
from masksearch_jax.viewer import evolution

CHARTS = {
    "span_recall": "held-out span recall, 95% intervals",
    "accepted": "share of samples accepted",
    "self_bleu": "self-BLEU of new demonstrations",
}


def drawing(rows: list[dict[str, Any]]) -> str:
    charts = []
    for key, title in CHARTS.items():
        points = [
            {"step": row["iteration"]}
            | {title + end: row[key + end] for end in ("", "_low", "_high") if key + end in row}
            for row in rows
            if row.get(key) is not None
            and (key != "accepted" or row["iteration"])  # not the teacher
        ]
        charts.append(drawings.Chart(points, title))
    return drawings.side_by_side(charts, "iteration")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path, help="workdir of `evolve`")
    parser.add_argument("--svg", type=Path, help="file to draw them to")
    args = parser.parse_args()
    summary = json.loads((args.folder / "summary.json").read_text("utf-8"))
    print("\n".join(iterations.table(summary["evolution"])))
    if args.svg:
        args.svg.write_text(drawing(evolution.rows_of(summary)), encoding="utf-8")


if __name__ == "__main__":
    main()

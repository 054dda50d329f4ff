"""What self-evolution did, iteration by iteration: a table and a drawing.

    python -m masksearch_jax.evolve --config=configs/evolve.py
    python -m benchmarks.evolution runs/evolve --control --svg=benchmarks/evolution.svg

Iteration 0 is the student of the teacher's demonstrations. `accepted` is the share of what the
student before sampled that the judge accepted; the diversity is of the demonstrations that an
iteration added. `--control`: beside each student another is trained, as long and alike, on the
teacher's demonstrations alone, in FOLDER/control; stopped, it goes on where it was.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from pathlib import Path
from typing import Any

from benchmarks import drawings
from masksearch_jax import evolve
from masksearch_jax.core.config import SftConfig
from masksearch_jax.core.schema import to_dataclass
from masksearch_jax.evals import iterations
from masksearch_jax.parallel.sharding import split_cpu
from masksearch_jax.recipes.stage_folder import Usage

CHARTS = {
    "span_recall": "held-out span recall, 95% intervals",
    "accepted": "share of samples accepted",
    "self_bleu": "self-BLEU of new demonstrations",
}


def drawing(rows: list[dict[str, Any]]) -> str:
    charts = []
    for key, title in CHARTS.items():
        points = [
            {"step": row["iteration"]} | _point(title, row[key])
            for row in rows
            if row.get(key) is not None
            and (key != "accepted" or row["iteration"])  # not the teacher
        ]
        charts.append(drawings.Chart(points, title))
    return drawings.stacked(charts, "iteration")


def _point(title: str, cell: Any) -> dict[str, float]:
    """A figure, and the ends of its interval where it has one."""
    if not isinstance(cell, dict):
        return {title: cell}
    return {title: cell["value"], f"{title}_low": cell["low"], f"{title}_high": cell["high"]}


class Control(evolve.Run):
    """The students of a run that is done, had they learned from the teacher alone."""

    def iteration(self, n: int) -> Path:
        return self.folder / "control" / str(n) if n else super().iteration(n)

    def student(self, n: int) -> str:
        return str(self.iteration(n) / "sft/checkpoints") if n else super().student(n)

    def sft(self, n: int) -> SftConfig:
        taught = f"0:ramp_sft_upto{self.cfg.evolve.seed_masks}"
        return dataclasses.replace(super().sft(n), curriculum=taught)


def control(summary: dict[str, Any], folder: Path) -> list[str]:
    """Held-out span recall of each iteration's control, as lines of text."""
    cfg = to_dataclass(evolve.EvolveRun, summary["config"])
    split_cpu(cfg.cpu_devices)
    run = Control(dataclasses.replace(cfg, workdir=str(folder)), Usage(folder))
    lines = ["n  held-out span recall, the teacher's demonstrations alone"]
    for row in summary["evolution"][1:]:
        n = row["iteration"]
        run.iteration(n).mkdir(parents=True, exist_ok=True)
        evolve.link(run.iteration(0) / "cache", run.iteration(n) / "cache")
        evolve.train(run, n)
        found = evolve.score(run, n)["ramp"]["search"]["span_recall"]
        lines.append(f"{n}  {found['value']:.3f} [{found['low']:.3f}, {found['high']:.3f}]")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path, help="workdir of `evolve`")
    parser.add_argument("--control", action="store_true", help="train and score the controls too")
    parser.add_argument("--svg", type=Path, help="file to draw them to")
    args = parser.parse_args()
    path = args.folder / "summary.json"
    if not path.is_file():
        parser.error(f"{path} is not there: {args.folder} must be the workdir of a run of evolve")
    summary = json.loads(path.read_text("utf-8"))
    print("\n".join(iterations.table(summary["evolution"])))
    if args.control:
        print("\n".join(control(summary, args.folder)))
    if args.svg:
        args.svg.write_text(drawing(summary["evolution"]), encoding="utf-8")


if __name__ == "__main__":
    main()

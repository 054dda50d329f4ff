"""What a chip holds and sends as a slice grows: one run planned for 8 to 256 chips.

    python -m benchmarks.scaling_plan --json=F --svg=benchmarks/scaling_plan.svg

Qwen2.5-7B by SFT on rows of 8,192 tokens, one row for each chip (weak scaling), splash attention.
Up to 64 chips share the weights (mesh.fsdp), with mesh.data beyond: of thinner parts the compiler's
gathers send twice as much. Each update is compiled for the real slice by the TPU's own compiler,
without a TPU (`masksearch_jax.plan`), in a process of its own: 1 to 3 minutes and 2.5 GB each. What
the JSON of an earlier run of this command already has is not compiled again. What a chip holds at
its peak may not rise by more than 3 hundredths of its HBM, nor what it sends by more than 3
hundredths, but for what a ring of n must send of the same arrays, (n - 1) / n: exits with 1.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib.metadata
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from benchmarks import drawings
from masksearch_jax import plan
from masksearch_jax.core.config import SftRun
from masksearch_jax.core.schema import to_dataclass
from masksearch_jax.planning.chips import GIB
from masksearch_jax.runtime import cli

CHIPS = (8, 16, 32, 64, 128, 256)
ROOM = 0.03
CONFIG = Path(__file__).parent.parent / "configs" / "ramp_sft.py"
Row = dict[str, Any]


def run_for(kind: str, chips: int) -> SftRun:
    """The run that is planned: a row for each chip."""
    cfg = to_dataclass(SftRun, cli.load_config(f"{CONFIG}:qwen2.5-7b"))
    change = dataclasses.replace
    return change(
        cfg,
        compute=change(cfg.compute, attention="splash", remat="block"),
        sft=change(cfg.sft, batch_size=chips, seq_len=8192),
        mesh=change(cfg.mesh, data=-1, fsdp=min(chips, 64)),
        plan=change(cfg.plan, topology=f"{kind}-{chips}"),
    )


def measure(kind: str, chips: int) -> Row:
    """One slice, in this process; `kind`: of which a slice's name counts chips."""
    results = plan.plan(run_for(kind, chips))
    update = results["programs"]["update"]
    row = {"chips": chips, "topology": results["topology"], "hbm": results["hbm"]}
    row |= {"fits": update["fits"], "peak": update["peak"], "held": results["held"]}
    if "collectives" not in update:
        return row
    wires = update["collectives"]
    return row | {
        "sent": sum(kinds["ici"] + kinds["dcn"] for kinds in wires.values()),
        "collectives": wires,
        "memory": update["memory"],
        "estimate": update["estimate"],
        "compile_seconds": update["compile_seconds"],
    }


def child(kind: str, chips: int) -> Row:
    command = [sys.executable, "-m", "benchmarks.scaling_plan", f"--kind={kind}"]
    done = subprocess.run(
        [*command, f"--child={chips}"], stdout=subprocess.PIPE, text=True, check=True
    )
    return json.loads(done.stdout.splitlines()[-1])


def rises(rows: list[Row]) -> list[str]:
    """Where a figure is above the smallest of fewer chips."""
    found = []
    for name in ("peak", "sent"):
        least = float("inf")
        for row in rows:
            ring = 1 - 1 / row["chips"] if name == "sent" else 1.0
            room = ROOM * (row["hbm"] if name == "peak" else least)
            if row[name] / ring > least + room:
                found.append(f"{name} on {row['chips']} chips: more than {least * ring:,.0f}")
            least = min(least, row[name] / ring)
    return found


# ---- to be read


def table(rows: list[Row]) -> str:
    lines = [f"{'chips':>5} {'HBM, peak':>12} {'held':>10} {'sent':>10} {'MFU, estimate':>14}"]
    for row in rows:
        held, peak = sum(row["held"].values()) / GIB, row["peak"] / GIB
        line = f"{row['chips']:5} {peak:8.2f} GiB {held:6.2f} GiB"
        if "sent" in row:
            line += f" {row['sent'] / GIB:6.1f} GiB {row['estimate']['mfu']:13.0%}"
        lines.append(line + ("" if row["fits"] else "  DOES NOT FIT"))
    return "\n".join(lines)


def drawing(rows: list[Row]) -> str:
    """Both figures over the number of chips."""
    titles = {"peak": "GiB in a chip's HBM at its peak", "sent": "GiB that a chip sends a step"}
    charts = []
    for name, title in titles.items():
        points = [{"step": r["chips"], title: r[name] / GIB} for r in rows if name in r]
        charts.append(drawings.Chart(points, title, floor=0.0))
    return drawings.stacked(charts, "chips")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--kind", default="v6e", choices=("v5e", "v6e"))
    parser.add_argument("--json", help="file to write the figures to, and to go on from")
    parser.add_argument("--svg", help="file to draw them to")
    parser.add_argument("--child", type=int, metavar="CHIPS")
    args = parser.parse_args()
    if args.child:
        print(json.dumps(measure(args.kind, args.child)))
        return 0
    file = Path(args.json) if args.json else None
    found = {"kind": args.kind, "versions": versions(), "rows": []}
    if file and file.exists():
        before = json.loads(file.read_text(encoding="utf-8"))
        same = all(before[key] == found[key] for key in ("kind", "versions"))
        found["rows"] = before["rows"] if same else []
    for chips in CHIPS:
        if chips not in [row["chips"] for row in found["rows"]]:
            found["rows"].append(child(args.kind, chips))
        if file:
            file.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    print(", ".join(f"{name} {version}" for name, version in found["versions"].items()))
    print(table(found["rows"]))
    if args.svg:
        Path(args.svg).write_text(drawing(found["rows"]), encoding="utf-8")
    print("\n".join(rises(found["rows"])) or "flat or falling, but for a ring's (n - 1) / n")
    return int(bool(rises(found["rows"])))


def versions() -> dict[str, str]:
    return {name: importlib.metadata.version(name) for name in ("jax", "libtpu")}


if __name__ == "__main__":
    sys.exit(main())

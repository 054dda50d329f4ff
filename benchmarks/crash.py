"""Kills training runs at random moments and compares what becomes of them with undisturbed ones.

    python -m benchmarks.crash --kills=50 --save-kills=200 --json=FILE

One SFT and one DAPO run of two processes share `kills`: kill -9 of one process or of both, while
they start or train; the same command is started again each time. `save-kills` hit a process that
does nothing but save. A search that hangs in the main thread is left to the watchdog.
"""

from __future__ import annotations

import argparse
import collections
import datetime
import json
import os
import platform
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import crash_runs
from masksearch_jax.core.config import CheckpointConfig, DapoRun, ModelConfig, SftRun
from masksearch_jax.core.schema import to_dataclass
from masksearch_jax.runtime import cli, goodput
from masksearch_jax.runtime.process import RESTART
from masksearch_jax.training.checkpoint import Checkpointer
from masksearch_jax.training.checkpoint_files import CheckpointError
from masksearch_jax.training.train_state import TrainState

Run = SftRun | DapoRun
ENDS = {0, RESTART, -signal.SIGKILL, -signal.SIGABRT}  # of a process whose peer was killed
ARRAYS, SIDE = 8, 1024  # of the state that is saved under fire: 32 MiB
LIMIT = 2.0  # seconds that the watchdog waits in the trial of a hang

WRITER = """
import sys
from benchmarks import crash
crash.write(sys.argv[1])
"""
HANG = """
import threading, time
from benchmarks import crash
from masksearch_jax.core.config import SurvivalConfig
from masksearch_jax.runtime.watchdog import Watchdog
from pathlib import Path
import sys

class Search:
    def search(self, queries, top_k):
        print(time.time(), flush=True)
        threading.Event().wait()

config = SurvivalConfig(startup_seconds=60.0, step_factor=2.0, step_seconds=crash.LIMIT)
with Watchdog(config, Path(sys.argv[1])) as dog:
    for _ in range(3):
        dog.beat("step")
    Search().search(["a"], 1)
"""


# ---- runs of two processes


def committed(workdir: Path) -> int:
    """The newest step whose checkpoint is whole, by its folder's name."""
    folder = workdir / "checkpoints"
    names = os.listdir(folder) if folder.is_dir() else []
    return max((int(n) for n in names if n.isdigit()), default=0)


def wait_for(cluster: crash_runs.Cluster, workdir: Path, rows: int, rng: random.Random) -> None:
    """Until `rows` steps more are logged, and a moment of a step longer; or while it starts."""
    if rng.random() < 0.2:
        time.sleep(rng.uniform(0.0, 10.0))
        return
    before = len(crash_runs.curve(workdir))
    while cluster.is_running() and len(crash_runs.curve(workdir)) < before + rows:
        time.sleep(0.01)
    time.sleep(rng.uniform(0.0, 0.5))


def torment(cfg: Run, kills: int, steps: int, rng: random.Random) -> dict[str, Any]:
    """Runs it to its end with `kills` kills on the way."""
    workdir, found = Path(cfg.workdir), collections.Counter()
    ends: collections.Counter[str] = collections.Counter()
    while True:
        cluster = crash_runs.Cluster(cfg)
        if (kills_left := kills - found["kills"]) > 0:
            steps_left = steps - committed(workdir)
            wait_for(cluster, workdir, rng.randint(0, max(steps_left // kills_left, 1)), rng)
        else:
            cluster.wait(1800)
        saved = committed(workdir)
        if cluster.is_running():
            cluster.signal(signal.SIGKILL, *rng.choice([(0,), (1,), (0, 1)]))
            found["kills"] += 1
        try:
            statuses = cluster.wait(60)
        except subprocess.TimeoutExpired:  # one waits for another to join; a launcher ends it
            statuses = cluster.wait(1)
            found["ended_by_us"] += 1
        ends.update(map(str, statuses))
        if not set(statuses) <= ENDS:
            raise RuntimeError(f"ended with {statuses}: {cluster.text()}")
        found["lost_saved_steps"] += max(saved - committed(workdir), 0)
        print(f"  {workdir.name}: kill {found['kills']} after step {saved}: {statuses}", flush=True)
        if set(statuses) == {0}:
            return dict(found) | {"ends": dict(ends)}


def compare(make: Callable[[str], Run], kills: int, steps: int, seed: int) -> dict[str, Any]:
    """An undisturbed run and a tormented one; whether their curves are the same bit by bit."""
    whole, cut = make("whole"), make("cut")
    while statuses := set(crash_runs.Cluster(whole).wait(1800)) - {0}:
        if not statuses <= ENDS:  # a busy machine may not have joined them in time
            raise RuntimeError(f"the undisturbed run ended with {statuses}")
    found = torment(cut, kills, steps, random.Random(seed))
    ended = time.time()
    figures = goodput.summarise(cut.workdir)
    began = next(r["began"] for r in goodput.read(cut.workdir) if r["event"] == "start")
    parts = sum(figures[k] for k in (*goodput.BUCKETS, "lost", "down"))
    curves = [crash_runs.curve(Path(c.workdir)) for c in (whole, cut)]
    return found | {
        "steps": len(curves[0]),
        "identical": int(curves[0] == curves[1] and len(curves[0]) == steps),
        "goodput": figures,
        "undisturbed": goodput.summarise(whole.workdir),
        "buckets_to_wall": parts / (ended - began),
    }


# ---- saves under fire

MODEL = to_dataclass(
    ModelConfig, cli.load_config(f"{crash_runs.ROOT / 'configs' / 'ramp_sft.py'}:tiny").model
)


def state(step: int) -> TrainState:
    key = jax.random.key(step)
    shape = (SIDE, SIDE)
    params = {f"w{i}": jax.random.normal(jax.random.fold_in(key, i), shape) for i in range(ARRAYS)}
    return TrainState(jnp.int32(step), params, ())


def write(folder: str) -> None:
    """Saves step after step for ever, and tells each that is on disk."""
    with Checkpointer(folder, CheckpointConfig(1, 2), MODEL) as checkpointer:
        step = checkpointer.latest_step() or 0
        while True:
            step += 1
            checkpointer.save(step, state(step), {"step": step})
            checkpointer.wait()
            print(step, flush=True)


def kill_saves(folder: Path, kills: int, rng: random.Random) -> dict[str, int]:
    """Kills the writer in a save, again and again; reads what is there each time."""
    torn = lost = 0
    for i in range(kills):
        command = [sys.executable, "-c", WRITER, str(folder)]
        writer = subprocess.Popen(command, cwd=crash_runs.ROOT, stdout=subprocess.PIPE, text=True)
        told = int(writer.stdout.readline())
        while not list(folder.glob("*.orbax-checkpoint-tmp")):
            time.sleep(0.001)
        time.sleep(rng.uniform(0.0, 0.3))
        writer.send_signal(signal.SIGKILL)
        rest = [line for line in writer.communicate()[0].splitlines() if line.isdigit()]
        told = max([told, *map(int, rest)])
        with Checkpointer(folder, CheckpointConfig(1, 2), MODEL) as checkpointer:
            step = checkpointer.latest_step()
            lost += max(told - step, 0)
            try:
                found, extra = checkpointer.restore(jax.eval_shape(lambda: state(0)))
                same = jax.tree.map(np.array_equal, found, state(step))
                torn += not (all(jax.tree.leaves(same)) and extra == {"step": step})
            except (CheckpointError, ValueError, OSError) as error:
                print(f"  torn: {error}", flush=True)
                torn += 1
        if (i + 1) % 10 == 0:
            print(f"  saves: {i + 1} kills, step {step}, torn {torn}, lost {lost}", flush=True)
    return {"save_kills": kills, "torn": torn, "lost_saved_steps": lost}


def hang(folder: Path) -> dict[str, Any]:
    """Seconds beyond its limit after which the watchdog had ended a process, and what it named."""
    command = [sys.executable, "-c", HANG, str(folder)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    done = subprocess.run(command, cwd=crash_runs.ROOT, text=True, check=False, **pipes)
    over = time.time() - float(done.stdout.split()[0]) - LIMIT
    named = "below search (" in done.stderr.splitlines()[0]
    return {"status": done.returncode, "seconds_over_limit": over, "named": int(named)}


# ---- what a reader gets


def table(figures: dict[str, Any]) -> str:
    lines = []
    for name in ("sft", "dapo"):
        if name not in figures:
            continue
        found = figures[name]
        lines.append(
            f"{name:6} {found['steps']} steps, {found.get('kills', 0)} kills: identical "
            f"{found['identical']}, ends {found['ends']}, buckets / wall "
            f"{found['buckets_to_wall']:.4f}"
        )
        lines.append(f"{'':6} {goodput.sentence(found['goodput'])}")
        lines.append(f"{'':6} undisturbed: {goodput.sentence(found['undisturbed'])}")
    if "saves" in figures:
        lines.append(f"saves  {figures['saves']}")
    return "\n".join([*lines, f"hang   {figures['hang']}"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--kills", type=int, default=50, help="half in SFT, half in DAPO")
    parser.add_argument("--save-kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", help="file to write the figures to")
    args = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="crash"))
    began = time.time()
    figures: dict[str, Any] = {"hang": hang(folder)}
    try:
        if args.save_kills:
            figures["saves"] = kill_saves(folder / "saves", args.save_kills, random.Random(1))
        if args.kills:
            figures |= both(folder, args.kills, args.seed)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    runs = [figures[k] for k in ("sft", "dapo") if k in figures]
    every = [*runs, figures.get("saves", {})]
    figures |= {
        "identical": int(all(run["identical"] for run in runs)),
        "kills": sum(run.get("kills", 0) for run in runs),
        "torn": sum(part.get("torn", 0) for part in every),
        "lost_saved_steps": sum(part.get("lost_saved_steps", 0) for part in every),
        "seconds": time.time() - began,
        "date": datetime.date.today().isoformat(),
        "machine": f"{platform.machine()}, {os.cpu_count()} CPUs",
        "versions": {n: metadata.version(n) for n in ("jax", "orbax-checkpoint", "grain")},
    }
    print(table(figures))
    if args.json:
        Path(args.json).write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")


def both(folder: Path, kills: int, seed: int) -> dict[str, Any]:
    """SFT, then DAPO on what the undisturbed SFT run left."""
    data, cache = crash_runs.make_data(folder / "data"), str(folder / "programs")
    share = max(kills // 2, 1)
    steps = max(6 * share, 30)

    def sft(name: str) -> SftRun:
        return crash_runs.sft_run(data, folder / f"sft_{name}", steps, compile_cache=cache)

    def dapo(name: str) -> DapoRun:
        init = folder / "sft_whole" / "checkpoints"
        run = folder / f"dapo_{name}"
        return crash_runs.dapo_run(data, run, init, max(2 * share, 4), compile_cache=cache)

    found = {"sft": compare(sft, share, steps, seed)}
    if kills > 1:
        found["dapo"] = compare(dapo, kills - share, max(2 * share, 4), seed + 1)
    return found


if __name__ == "__main__":
    main()

"""Restoring a checkpoint onto other meshes: memory against its bound, and pace.

    python -m benchmarks.restore --megabytes=1500 --repeats=3 --json=F

Weights and two moments of each, float32, are saved from eight CPU devices and restored, whole and
one parameter at a time (as an export reads them), onto the same mesh and onto others. Every
measurement is a process of its own. `peak` is its largest resident memory, `base` what it held
before it began, with all libraries loaded and a tiny checkpoint restored. The bound beyond `base`:
the shards that it keeps (the host's memory is that of all eight devices; of parameters one after
the other, those of one) and twice the largest array. Exits with 1 where a bound is broken.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib.metadata
import json
import math
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
from jax.sharding import Mesh

from benchmarks import hf_io
from masksearch_jax.core.config import CheckpointConfig, ComputeConfig, MeshConfig, ModelConfig
from masksearch_jax.models import hf, layout
from masksearch_jax.models.transformer import Transformer
from masksearch_jax.parallel import sharding
from masksearch_jax.planning import shapes
from masksearch_jax.training import checkpoint, checkpoint_files
from masksearch_jax.training.train_state import TrainState, init_state

COMPUTE = ComputeConfig("float32", "float32", "xla", "none", 1024)
CHECKPOINT = CheckpointConfig(every=1, keep=1)
SAVED = "1x8x1"
MESHES = (SAVED, "1x2x4", "8x1x1")
Row = dict[str, Any]


def architecture(name: str, megabytes: float) -> ModelConfig:
    """`tiny`, or one whose weights and moments take about so many megabytes in float32."""
    config = hf_io.architecture(megabytes / 6)
    small = {"hidden_size": 64, "intermediate_size": 64, "vocab_size": 64}
    config = dataclasses.replace(config, **small if name == "tiny" else {})
    heads = {"num_heads": 8, "num_kv_heads": 4, "head_dim": config.hidden_size // 8}
    return dataclasses.replace(config, **heads)  # which `tensor` divides


def state_of(model: Transformer) -> TrainState:
    return init_state(model, optax.scale_by_adam())


def abstract(config: ModelConfig, mesh: Mesh) -> TrainState:
    """Of the state, laid out over `mesh`."""
    model = hf.abstract(config, COMPUTE)

    def place(part: Any) -> Any:
        if not isinstance(part, Transformer):
            return shapes.placed(part, mesh)
        return shapes.at(part, layout.parameter_shardings(mesh, part))

    state = jax.eval_shape(state_of, model)
    return jax.tree.map(place, state, is_leaf=lambda x: isinstance(x, Transformer))


def mesh_of(name: str) -> Mesh:
    return sharding.make_mesh(MeshConfig(*map(int, name.split("x"))))


# ---- one measurement, in a process of its own


def save(config: ModelConfig, folder: Path) -> None:
    """Random numbers, which hardly anything compresses."""
    rng = np.random.default_rng(0)

    def fill(x: jax.ShapeDtypeStruct) -> jax.Array:
        def part(index: tuple[slice, ...]) -> np.ndarray:
            shape = [len(range(*p.indices(n))) for p, n in zip(index, x.shape, strict=True)]
            return rng.random(shape, np.float32).astype(x.dtype)

        return jax.make_array_from_callback(x.shape, x.sharding, part)

    like = abstract(config, mesh_of(SAVED))
    with checkpoint.Checkpointer(folder, CHECKPOINT, config) as checkpointer:
        checkpointer.save(1, jax.tree.map(fill, like), {})


def restore(job: str, config: ModelConfig, folder: Path, mesh: Mesh) -> Any:
    if job == "whole":
        like = abstract(config, mesh)
        with checkpoint.Checkpointer(folder, CHECKPOINT, config) as checkpointer:
            return jax.block_until_ready(checkpointer.restore(like)[0])
    like = abstract(config, mesh).params
    names = map(sharding.parameter_name, dict(jax.tree_util.tree_leaves_with_path(like)))
    with checkpoint_files.StoredParams(folder, like, config) as params:
        for name in names:
            jax.block_until_ready(params.read(name))
    return None


def child(base: Path, megabytes: float, job: str, mesh: str) -> Row:
    """Runs `main --child` and returns what it measured."""
    command = [sys.executable, "-m", "benchmarks.restore", f"--megabytes={megabytes}"]
    command += ["--child", job, mesh, str(base)]
    environment = os.environ | hf_io.ENVIRONMENT
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=environment)
    return json.loads(done.stdout.splitlines()[-1])


def run_child(megabytes: float, job: str, mesh: str, base: Path) -> Row:
    tiny, large = (architecture(name, megabytes) for name in ("tiny", "large"))
    if job == "save":
        save(tiny, base / "tiny")
        save(large, base / "large")
        return {}
    restore(job, tiny, base / "tiny", mesh_of(mesh))
    return hf_io.timed(lambda: restore(job, large, base / "large", mesh_of(mesh)))


# ---- the table


def bounds(megabytes: float, name: str) -> Row:
    """Bytes beyond `base` that each job may hold on the mesh of this name."""
    config = architecture("large", megabytes)
    state = jax.tree.leaves(jax.eval_shape(state_of, hf.abstract(config, COMPUTE)))
    largest = max(math.prod(x.shape) * x.dtype.itemsize for x in state)
    mesh = mesh_of(name)
    like = abstract(config, mesh)
    kept = [mesh.size * sharding.bytes_on_device(x) for x in jax.tree.leaves(like)]
    return {"whole": sum(kept) + 2 * largest, "parameters": max(kept) + 2 * largest}


def measure(megabytes: float, repeats: int, meshes: tuple[str, ...] = MESHES) -> Row:
    limits = {mesh: bounds(megabytes, mesh) for mesh in meshes}
    base = Path(tempfile.mkdtemp(prefix="restore-"))
    try:
        child(base, megabytes, "save", SAVED)
        rows = [
            {"job": job, "mesh": mesh} | child(base, megabytes, job, mesh)
            for _ in range(repeats)
            for mesh in meshes
            for job in limits[mesh]
        ]
    finally:
        shutil.rmtree(base)
    for row in rows:
        row["bound"] = limits[row["mesh"]][row["job"]]
        row["of_bound"] = (row["peak"] - row["base"]) / row["bound"]
    return {"saved_from": SAVED, "rows": rows}


def table(found: Row) -> str:
    lines = [f"saved from {found['saved_from']} (data x fsdp x tensor), restored onto"]
    for mesh, job in dict.fromkeys((row["mesh"], row["job"]) for row in found["rows"]):
        rows = [row for row in found["rows"] if (row["job"], row["mesh"]) == (job, mesh)]
        seconds = [row["seconds"] for row in rows]
        held = max(row["peak"] - row["base"] for row in rows)
        lines.append(
            f"{mesh:7}{job:11}{statistics.median(seconds):6.1f} s ({min(seconds):.1f} to "
            f"{max(seconds):.1f}), {held / 1e6:,.0f} MB at most beyond the base, bound "
            f"{rows[0]['bound'] / 1e6:,.0f} MB"
        )
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--megabytes", type=float, default=1500)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", help="file to write the figures to")
    parser.add_argument("--child", nargs=3, metavar=("JOB", "MESH", "FOLDER"))
    args = parser.parse_args()
    jax.config.update("jax_num_cpu_devices", 8)
    if args.child:
        job, mesh, folder = args.child
        print(json.dumps(run_child(args.megabytes, job, mesh, Path(folder))))
        return 0
    found = measure(args.megabytes, args.repeats)
    names = ("jax", "orbax-checkpoint", "tensorstore")
    found["versions"] = {name: importlib.metadata.version(name) for name in names}
    print(", ".join(f"{k} {v}" for k, v in found["versions"].items()))
    print(table(found))
    if args.json:
        Path(args.json).write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    return int(any(row["of_bound"] > 1 for row in found["rows"]))


if __name__ == "__main__":
    sys.exit(main())

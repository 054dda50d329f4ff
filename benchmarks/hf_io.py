"""Import and export of a Hugging Face folder: memory against its bound, pace against transformers.

    python -m benchmarks.hf_io --megabytes=2500 --repeats=3 --json=F

A folder of random bfloat16 weights in several shards is written, imported (one CPU device, whose
memory is the host's), saved as a checkpoint and exported from it. Every measurement is a process of
its own. `peak` is its largest resident memory, `base` what it held before it began, with all
libraries loaded and a tiny model read. The bounds: for the import the model and twice the largest
tensor; for the export, which holds one stacked parameter at a time, twice that and twice the
largest tensor. transformers loads the same folder (`from_pretrained`) and writes it
(`save_pretrained`, from memory); its weights are summed once after loading, since what is only
mapped was not read. The ratios are taken within one repeat, the order changes between repeats,
files are in the page cache. Exits with 1 where a bound is broken.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import math
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import memory
from masksearch_jax.core import files
from masksearch_jax.core.config import CheckpointConfig, ComputeConfig, ModelConfig
from masksearch_jax.models import hf, hf_files
from masksearch_jax.models.hf_config import to_hf_config

COMPUTE = ComputeConfig("bfloat16", "bfloat16", "xla", "none", 1024)
CHECKPOINT = CheckpointConfig(every=1, keep=1)
Row = dict[str, Any]


def architecture(megabytes: float) -> ModelConfig:
    """Qwen2.5 of about so many megabytes in bfloat16; widths of the 1.5B from 1 GB on."""
    hidden, inner, vocab = (1536, 8960, 151936) if megabytes >= 1000 else (512, 2816, 65536)
    kv = hidden // 6 if megabytes >= 1000 else hidden // 4
    layer = 3 * hidden * inner + 2 * hidden * hidden + 2 * hidden * kv
    layers = max(2, round((megabytes * 1e6 / 2 - vocab * hidden) / layer))
    return ModelConfig(
        family="qwen2",
        vocab_size=vocab,
        hidden_size=hidden,
        intermediate_size=inner,
        num_layers=layers,
        num_heads=hidden // 128,
        num_kv_heads=kv // 128,
        head_dim=128,
        rope_theta=1e6,
        rope_scaling=None,
        norm_eps=1e-6,
        qkv_bias=True,
        qk_norm=False,
        tie_embeddings=True,
        max_position=32768,
    )


def write_folder(config: ModelConfig, folder: Path, shard_bytes: float) -> Row:
    """A folder of random weights; {"model_bytes", "largest", "largest_stack"}."""
    shapes = {name: t.hf for name, t in hf.tensors(hf.abstract(config, COMPUTE)).items()}
    kept = np.dtype("bfloat16")
    shards = hf_files.shards(shapes, kept, shard_bytes)
    rng = np.random.default_rng(0)

    def arrays(names: list[str]) -> Iterator[np.ndarray]:
        for name in names:
            yield (0.02 * rng.standard_normal(shapes[name], np.float32)).astype(kept)

    folder.mkdir()
    for shard in shards:
        hf_files.write(folder, shard, arrays(shard.names))
    if len(shards) > 1:
        files.write_json(folder / hf.INDEX, hf_files.index_of(shards), indent=2)
    files.write_json(folder / "config.json", to_hf_config(config, "bfloat16"), indent=2)
    sizes = {name: math.prod(shape) * 2 for name, shape in shapes.items()}
    return {
        "model_bytes": sum(sizes.values()),
        "largest": max(sizes.values()),
        "largest_stack": config.num_layers * config.hidden_size * config.intermediate_size * 2,
        "shards": len(shards),
    }


# ---- one measurement, in a process of its own


def ours(job: str, base: Path) -> Row:
    import jax.numpy as jnp

    from masksearch_jax.training import checkpoint, checkpoint_files
    from masksearch_jax.training.train_state import TrainState

    def load(folder: Path) -> Any:
        return hf.load(folder, COMPUTE)

    def save(model: Any, folder: Path) -> None:
        with checkpoint.Checkpointer(folder, CHECKPOINT, model.config) as checkpointer:
            checkpointer.save(1, TrainState(jnp.int32(1), model, ()), {})

    def export(folder: Path, config: ModelConfig, out: Path) -> None:
        with checkpoint_files.StoredParams(folder, hf.abstract(config, COMPUTE), config) as params:
            shapes = hf.abstract(config, COMPUTE)
            hf.save(shapes, out, read=params.read, max_shard_bytes=SHARD)

    tiny = load(base / "tiny")
    if job == "checkpoint":
        save(tiny, base / "tiny_checkpoint")
        save(load(base / "folder"), base / "checkpoint")
        return {}
    if job == "import":
        return timed(lambda: load(base / "folder"))
    export(base / "tiny_checkpoint", tiny.config, base / "tiny_out")
    return timed(lambda: export(base / "checkpoint", hf.read_config(base / "folder"), base / "out"))


def theirs(job: str, base: Path) -> Row:
    import torch
    from transformers import AutoModelForCausalLM

    def load(folder: Path) -> Any:
        model = AutoModelForCausalLM.from_pretrained(folder, dtype="auto")
        for parameter in model.parameters():
            parameter.sum()
        return model

    torch.set_grad_enabled(False)
    load(base / "tiny").save_pretrained(base / "tiny_out")
    if job == "import":
        return timed(lambda: load(base / "folder"))
    model = load(base / "folder")
    return timed(lambda: model.save_pretrained(base / "out", max_shard_size=int(SHARD)))


def timed(work: Callable[[], Any]) -> Row:
    base, began, used = memory.resident(), time.perf_counter(), time.process_time()
    kept = work()
    seconds, cpu = time.perf_counter() - began, time.process_time() - used
    del kept
    return {"seconds": seconds, "cpu_seconds": cpu, "base": base, "peak": memory.peak()}


SIDES = {"ours": ours, "theirs": theirs}
SHARD = 1e9
# glibc gives freed chunks back at once, so that none counts as held.
ENVIRONMENT = {"JAX_PLATFORMS": "cpu", "MALLOC_MMAP_THRESHOLD_": str(2**17)}


def child(side: str, job: str, base: Path) -> Row:
    for name in ("out", "tiny_out"):
        shutil.rmtree(base / name, ignore_errors=True)
    command = [sys.executable, "-m", "benchmarks.hf_io", "--child", side, job, str(base)]
    environment = os.environ | ENVIRONMENT
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=environment)
    return json.loads(done.stdout.splitlines()[-1])


# ---- the table


def bounds(sizes: Row) -> dict[str, int]:
    """Bytes beyond `base` that each job may hold."""
    return {
        "import": sizes["model_bytes"] + 2 * sizes["largest"],
        "export": 2 * sizes["largest_stack"] + 2 * sizes["largest"],
    }


def measure(megabytes: float, repeats: int, sides: tuple[str, ...] = ("ours", "theirs")) -> Row:
    base = Path(tempfile.mkdtemp(prefix="hf-io-"))
    try:
        write_folder(architecture(1), base / "tiny", SHARD)
        sizes = write_folder(architecture(megabytes), base / "folder", min(SHARD, megabytes * 3e5))
        child("ours", "checkpoint", base)
        rows = []
        for repeat in range(repeats):
            for job in ("import", "export"):
                order = sides if repeat % 2 == 0 else sides[::-1]
                rows.append({"job": job} | {side: child(side, job, base) for side in order})
    finally:
        shutil.rmtree(base)
    limit = bounds(sizes)
    for row in rows:
        held = row["ours"]["peak"] - row["ours"]["base"]
        row["of_bound"] = held / limit[row["job"]]
    return {"sizes": sizes, "bounds": limit, "rows": rows}


def table(found: Row) -> str:
    size = found["sizes"]["model_bytes"]
    lines = [f"{size / 1e6:,.0f} MB in {found['sizes']['shards']} shards"]
    for job, limit in found["bounds"].items():
        rows = [row for row in found["rows"] if row["job"] == job]
        pace = {s: [size / 1e6 / row[s]["seconds"] for row in rows] for s in SIDES}
        ratios = [a / b for a, b in zip(pace["ours"], pace["theirs"], strict=True)]
        for side in SIDES:
            held = [(row[side]["peak"] - row[side]["base"]) / 1e6 for row in rows]
            cpu = statistics.median(row[side]["cpu_seconds"] for row in rows)
            lines.append(
                f"{job:7}{side:7}{statistics.median(pace[side]):8,.0f} MB/s "
                f"({min(pace[side]):,.0f} to {max(pace[side]):,.0f}), {cpu:.1f} s of CPU,"
                f"{max(held):9,.0f} MB at most beyond the base"
                + (f", bound {limit / 1e6:,.0f} MB" if side == "ours" else "")
            )
        lines.append(
            f"{job:7}ours / theirs, pace {statistics.median(ratios):.2f} "
            f"({min(ratios):.2f} to {max(ratios):.2f})"
        )
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--megabytes", type=float, default=2500)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", help="file to write the figures to")
    parser.add_argument("--child", nargs=3, metavar=("SIDE", "JOB", "FOLDER"))
    args = parser.parse_args()
    if args.child:
        side, job, folder = args.child
        print(json.dumps(SIDES[side](job, Path(folder))))
        return 0
    found = measure(args.megabytes, args.repeats)
    names = ("jax", "safetensors", "orbax-checkpoint", "torch", "transformers")
    found["versions"] = {name: importlib.metadata.version(name) for name in names}
    print(", ".join(f"{k} {v}" for k, v in found["versions"].items()))
    print(table(found))
    if args.json:
        Path(args.json).write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    return int(any(row["of_bound"] > 1 for row in found["rows"]))


if __name__ == "__main__":
    sys.exit(main())

"""The SFT step measured against transformers with torch, and the input pipeline against the step.

    python -m benchmarks.train_step --json=FILE [--only=tiny,m100,data] [--repeats=7]

Both sides start from the same weights in Hugging Face format, take the same packed batch, make the
same AdamW update in float32 on two CPU threads, and must report the same losses. Each lives in a
process of its own, so that each has its own memory peak; they take turns within a repeat, and a
ratio is of one repeat. A figure is the median of the repeats, with least and most. torch runs
eagerly with sdpa attention under a block-diagonal mask, as bool or as float, on whole batches or in
our micro-batches, whichever is fastest, and keeps all activations. Ours keeps what products made
and computes the rest of each layer again; the tiny shape is computed as configs/quickstart.py does,
with one device a core and micro-batches. Compiling and first calls are not timed.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from benchmarks import memory
from configs import common
from masksearch_jax.core.config import ComputeConfig, MeshConfig, ModelConfig, OptimConfig
from masksearch_jax.core.rows import Batch
from masksearch_jax.core.schema import to_dataclass
from masksearch_jax.data import cache
from masksearch_jax.data.batches import sft_batches
from masksearch_jax.runtime.cli import load_config

TARGETS = {
    "tiny.ratio_to_torch": (">=", 1.5),
    "m100.ratio_to_torch": (">=", 0.8),
    "data.ratio_to_step": (">=", 5.0),
}
THREADS = 2
OPTIM = OptimConfig(1e-3, "constant", 0, 1.0, 0.9, 0.95, 1e-8, 0.01, 1.0, 1)
STEPS_COMPARED = 2  # losses of both sides that must agree
TOLERANCE = 1e-3


class Shape(NamedTuple):
    """A model, packed rows, the lengths of their records, steps per repeat, and how we compute."""

    model: ModelConfig
    rows: int
    length: int
    records: tuple[int, int]
    steps: int
    compute: ComputeConfig
    accumulate: int
    devices: int


QUICKSTART = load_config(str(Path(__file__).parent.parent / "configs" / "quickstart.py"))
TINY = to_dataclass(ModelConfig, QUICKSTART.model)
COMPUTE = to_dataclass(ComputeConfig, QUICKSTART.compute)
SHAPES = {
    "tiny": Shape(
        *(TINY, QUICKSTART.sft.batch_size, QUICKSTART.sft.seq_len, (60, 130), 5, COMPUTE),
        *(QUICKSTART.sft_optim.accumulate, QUICKSTART.cpu_devices),
    ),
    # 75M parameters.
    "m100": Shape(
        dataclasses.replace(
            TINY,
            vocab_size=16384,
            hidden_size=768,
            intermediate_size=2048,
            num_layers=10,
            num_heads=12,
            num_kv_heads=4,
            head_dim=64,
        ),
        *(2, 512, (100, 300), 1),
        dataclasses.replace(COMPUTE, remat="dots", loss_chunk=1024),
        *(1, 1),
    ),
    # One row of two or three trajectories of a pretrained model, given by `benchmarks.real_model`.
    "real": Shape(
        to_dataclass(ModelConfig, common.model("smollm2-135m")),
        *(1, 2048, (600, 900), 1),
        dataclasses.replace(COMPUTE, attention="blockwise", remat="dots", loss_chunk=512),
        *(1, 1),
    ),
}


# ---- data


def write_cache(folder: Path, shape: Shape, count: int = 2000) -> cache.Manifest:
    """A cache of records of random ids, half of their tokens the agent's."""
    draw = np.random.default_rng(0)

    def made() -> Iterator[cache.Record]:
        for i in range(count):
            size = int(draw.integers(*shape.records))
            ids = draw.integers(0, shape.model.vocab_size, size, np.int32)
            yield {"id": str(i), "ids": ids, "agent": draw.random(size) < 0.5}

    split = cache.write_split(
        folder, "task", "train", made(), kind="sft", max_len=shape.length, made_from="random"
    )
    manifest = cache.Manifest(
        folder, "", "", shape.model.vocab_size, 0, 0, "minimal", {"task": {"train": split}}, {}
    )
    manifest.save()
    return manifest


def batches(manifest: cache.Manifest, shape: Shape) -> Iterator[Batch]:
    return sft_batches(
        manifest,
        "0:task",
        batch_size=shape.rows,
        seq_len=shape.length,
        seed=0,
        context_loss_weight=0.2,
    )


def count_tokens(batch: Batch) -> int:
    return int(np.count_nonzero(batch["segment_ids"]))


def data_tokens_per_second(folder: Path, seconds: float = 1.0) -> float:
    """Of the pipeline alone at the tiny shape: records read, packed, laid into rows."""
    shape = SHAPES["tiny"]
    stream = batches(cache.Manifest.load(folder), shape)
    next(stream)
    tokens, started = 0, time.perf_counter()
    while (spent := time.perf_counter() - started) < seconds:
        tokens += count_tokens(next(stream))
    return tokens / spent


# ---- the two sides, each in its own process


def ours(folder: Path, shape: Shape) -> Callable[[], float]:
    """One update on our side; returns its loss."""
    import jax

    jax.config.update("jax_num_cpu_devices", shape.devices)
    from masksearch_jax import train_sft
    from masksearch_jax.models import hf
    from masksearch_jax.parallel.hosts import shard_batch
    from masksearch_jax.parallel.sharding import make_mesh
    from masksearch_jax.training import train_state

    mesh = make_mesh(MeshConfig(-1, 1, 1))
    batch = dict(np.load(folder / "batch.npz"))
    tx = train_state.make_optimizer(OPTIM, 1000)
    state = train_state.init_state(hf.load(folder / "model", shape.compute, mesh), tx)
    loss_fn = train_sft.make_loss_fn(shape.compute)
    update = train_state.make_train_step(loss_fn, tx, shape.accumulate, like=state)

    def step() -> float:
        nonlocal state
        with jax.set_mesh(mesh):
            placed = shard_batch(mesh, batch, shape.accumulate)
            state, metrics = update(state, placed)
        return float(metrics["loss"])

    return step


def torch(folder: Path, shape: Shape) -> Callable[[], float]:
    """One update on torch's side; returns its loss."""
    import torch
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(THREADS)
    batch = {k: torch.from_numpy(v) for k, v in np.load(folder / "batch.npz").items()}
    ids, targets, positions = (batch[k].long() for k in ("ids", "targets", "positions"))
    segments, weights = batch["segment_ids"], batch["loss_weights"]
    model = AutoModelForCausalLM.from_pretrained(
        folder / "model", dtype=torch.float32, attn_implementation="sdpa"
    ).train()
    matrices = [p for p in model.parameters() if p.ndim > 1]
    others = [p for p in model.parameters() if p.ndim == 1]
    adam = torch.optim.AdamW(
        [
            {"params": matrices, "weight_decay": OPTIM.weight_decay},
            {"params": others, "weight_decay": 0.0},
        ],
        lr=OPTIM.learning_rate,
        betas=(OPTIM.b1, OPTIM.b2),
        eps=OPTIM.eps,
        fused=True,
    )
    time_ = torch.arange(shape.length)
    allowed = (segments[:, :, None] == segments[:, None, :]) & (time_[:, None] >= time_)
    allowed = allowed[:, None]
    least = torch.finfo(torch.float32).min
    masks = {"bool": allowed, "float": torch.where(allowed, 0.0, least)}

    total = weights.sum()

    def gradient(mask: Any, micro: int) -> float:
        loss = 0.0
        for part in torch.arange(shape.rows).chunk(micro):
            out = model(
                ids[part], attention_mask=mask[part], position_ids=positions[part], use_cache=False
            ).logits
            nll = torch.nn.functional.cross_entropy(
                out.flatten(0, 1), targets[part].flatten(), reduction="none"
            )
            share = (weights[part].flatten() * nll).sum() / total
            share.backward()
            loss += float(share.detach())
        return loss

    seconds = defaultdict(lambda: float("inf"))
    for way in [*itertools.product(masks, sorted({1, shape.accumulate * shape.devices}))] * 3:
        started = time.perf_counter()
        gradient(masks[way[0]], way[1])
        seconds[way] = min(seconds[way], time.perf_counter() - started)
        adam.zero_grad()
    name, micro = min(seconds, key=seconds.__getitem__)

    def step() -> float:
        loss = gradient(masks[name], micro)
        torch.nn.utils.clip_grad_norm_(model.parameters(), OPTIM.clip_norm)
        adam.step()
        adam.zero_grad()
        return loss

    return step


SIDES = {"ours": ours, "torch": torch}


def serve(side: str, name: str, folder: Path) -> None:
    """Answers each line `N` on stdin by N steps: their losses, seconds, and the memory peak."""
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:THREADS])
    answers = os.dup(1)
    os.dup2(2, 1)  # what libraries print is no answer
    step = SIDES[side](folder, SHAPES[name])
    with os.fdopen(answers, "w") as out:
        for line in sys.stdin:
            started, worked = time.perf_counter(), time.process_time()
            losses = [step() for _ in range(int(line))]
            answer = {
                "losses": losses,
                "seconds": time.perf_counter() - started,
                "cpu_seconds": time.process_time() - worked,
                "peak_bytes": memory.peak(),
            }
            print(json.dumps(answer), file=out, flush=True)


class Side:
    """One of the two, in a process of its own on two cores."""

    def __init__(self, side: str, name: str, folder: Path):
        command = [sys.executable, "-m", "benchmarks.train_step", f"--serve={side}:{name}:{folder}"]
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"JAX_PLATFORMS": "cpu", "OMP_NUM_THREADS": str(THREADS)},
        )

    def run(self, steps: int) -> dict[str, Any]:
        print(steps, file=self.process.stdin, flush=True)
        return json.loads(self.process.stdout.readline())

    def __enter__(self) -> Side:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.stdin.close()
        self.process.wait()


def against_torch(
    name: str, repeats: int, folder: Path, model: Any = None
) -> dict[str, list[float]]:
    """Tokens/s of both sides at one shape, and their ratio. model: weights; None: random ones."""
    import jax
    from flax import nnx

    from masksearch_jax.models import hf
    from masksearch_jax.models.transformer import Transformer

    shape = SHAPES[name]
    if model is not None:
        shape = shape._replace(model=model.config)
    batch = next(batches(write_cache(folder, shape), shape))
    np.savez(folder / "batch.npz", **batch)
    if model is None:
        model = jax.jit(lambda: Transformer(shape.model, shape.compute, nnx.Rngs(0)))()
    hf.save(model, folder / "model", generation_config={})
    values = defaultdict(list)
    with Side("ours", name, folder) as mine, Side("torch", name, folder) as theirs:
        sides = {"ours": mine, "torch": theirs}
        losses = {k: side.run(STEPS_COMPARED)["losses"] for k, side in sides.items()}
        np.testing.assert_allclose(losses["ours"], losses["torch"], rtol=TOLERANCE)
        for _ in range(repeats):
            found = {k: side.run(shape.steps) for k, side in sides.items()}
            speed = {k: shape.steps * count_tokens(batch) / f["seconds"] for k, f in found.items()}
            for side in sides:
                values[f"{side}_tokens_per_second"].append(speed[side])
                values[f"{side}_cpu_seconds"].append(found[side]["cpu_seconds"] / shape.steps)
            values["ratio_to_torch"].append(speed["ours"] / speed["torch"])
        values["ours_gflop"].append(gflop(shape, model, batch))
        values["product_gflop_per_second"] = product_speeds(repeats)
        for side in sides:
            values[f"{side}_peak_bytes"].append(found[side]["peak_bytes"])
        peaks = [values[f"{side}_peak_bytes"][0] for side in sides]
        values["peak_ratio_to_torch"].append(peaks[0] / peaks[1])
    return values


def gflop(shape: Shape, model: Any, batch: Batch) -> float:
    """Floating-point operations of our step's products, 1e9, by its traced program."""
    from masksearch_jax import train_sft
    from masksearch_jax.parallel.hosts import split_micro
    from masksearch_jax.planning import flops
    from masksearch_jax.training import train_state

    tx = train_state.make_optimizer(OPTIM, 1000)
    loss_fn = train_sft.make_loss_fn(shape.compute)
    update = train_state.make_train_step(loss_fn, tx, shape.accumulate)
    traced = update.trace(
        train_state.init_state(model, tx), split_micro(batch, shape.accumulate, shape.devices)
    )
    return flops.of_program(traced.jaxpr) / 1e9


def product_speeds(repeats: int, size: int = 2048) -> list[float]:
    """1e9 operations a second of a large float32 product on all cores, by XLA."""
    import jax
    import jax.numpy as jnp

    product = jax.jit(jnp.matmul)
    x = jnp.ones((size, size))
    product(x, x).block_until_ready()
    found = []
    for _ in range(repeats):
        started = time.perf_counter()
        product(x, x).block_until_ready()
        found.append(2e-9 * size**3 / (time.perf_counter() - started))
    return found


def main() -> None:
    from benchmarks import rollout

    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--json", help="file to write the figures to")
    parser.add_argument("--only", default="tiny,m100,data", help="sections, by comma")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.serve:
        side, name, folder = args.serve.split(":", 2)
        serve(side, name, Path(folder))
        return
    about = rollout.versions() | {"threads": THREADS}
    print(*(f"{name} {value}" for name, value in about.items()), sep=", ", flush=True)
    values: dict[str, list[float]] = {}
    for name in args.only.split(","):
        with tempfile.TemporaryDirectory(prefix="train-step-") as made:
            folder = Path(made)
            if name == "data":
                write_cache(folder, SHAPES["tiny"])
                speeds = [data_tokens_per_second(folder) for _ in range(args.repeats)]
                step = np.median(values["tiny.ours_tokens_per_second"])
                found = {
                    "tokens_per_second": speeds,
                    "ratio_to_step": [speed / step for speed in speeds],
                }
            else:
                found = against_torch(name, args.repeats, folder)
        found = {f"{name}.{key}": value for key, value in found.items()}
        print(f"\n{rollout.table(found, TARGETS)}", flush=True)
        values |= found
    if args.json:
        figures = {"versions": about, "repeats": args.repeats} | rollout.nested(values, {})
        Path(args.json).write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()

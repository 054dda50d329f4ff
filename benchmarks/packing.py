"""A DAPO update whose trajectories share rows, against the same update with one to a row.

    python -m benchmarks.packing --json=FILE [--repeats=7]

The quickstart's model, micro-batches and devices (configs/quickstart.py), float32; as many
trajectories as its step trains on, of which `fill` is the mean share of a row: lengths are drawn
evenly from fill / 2 to 3 · fill / 2 of a row, at most all of it. Both updates are of the same
program, weights (the rate is 0) and tokens, and must report the same loss, entropy and norm of the
gradient; each ratio is of one repeat. Compiling and packing are not timed; packing takes
`pack_seconds`.
"""

from __future__ import annotations

import argparse
import json
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx

from benchmarks import rollout
from masksearch_jax import train_dapo
from masksearch_jax.core import rows
from masksearch_jax.core.config import (
    ComputeConfig,
    DapoConfig,
    MeshConfig,
    ModelConfig,
    OptimConfig,
)
from masksearch_jax.core.rollout_config import RolloutConfig
from masksearch_jax.core.schema import to_dataclass
from masksearch_jax.models.layout import shard_parameters
from masksearch_jax.models.transformer import Transformer
from masksearch_jax.parallel import hosts
from masksearch_jax.parallel.sharding import batch_shards, make_mesh, split_cpu
from masksearch_jax.rl.groups import DAPO_FIELDS
from masksearch_jax.rl.update import cut_minibatches, micro_batches
from masksearch_jax.runtime.cli import load_config
from masksearch_jax.training import train_state

TARGETS = {"fill25.ratio_to_padded": (">=", 2.0), "fill50.ratio_to_padded": (">=", 1.2)}
QUICKSTART = load_config(str(Path(__file__).parent.parent / "configs" / "quickstart.py"))
MODEL = to_dataclass(ModelConfig, QUICKSTART.model)
COMPUTE = to_dataclass(ComputeConfig, QUICKSTART.compute)
DAPO = to_dataclass(DapoConfig, QUICKSTART.dapo)
ROLLOUT = to_dataclass(RolloutConfig, QUICKSTART.rollout)
OPTIM = OptimConfig(0.0, "constant", 0, 1.0, 0.9, 0.95, 1e-8, 0.01, 1.0, 1)
LENGTH = ROLLOUT.max_len


def samples(fill: float) -> list[rows.Tokens]:
    """Random trajectories, half of their tokens sampled."""
    rng = np.random.default_rng(0)
    count = DAPO.groups * DAPO.group_size
    lengths = np.ceil(LENGTH * np.minimum(rng.uniform(fill / 2, 1.5 * fill, count), 1.0))
    return [
        {
            "ids": rng.integers(0, MODEL.vocab_size, length, np.int32),
            "targets": rng.integers(0, MODEL.vocab_size, length, np.int32),
            "loss_mask": rng.random(length) < 0.5,
            "advantages": np.full(length, rng.normal()),
            "logp_sampler": rng.normal(-8, 0.1, length),
            "logp_old": np.zeros(length),
        }
        for length in lengths.astype(int)
    ]


def measure(fill: float, repeats: int) -> dict[str, list[float]]:
    mesh = make_mesh(MeshConfig(-1, 1, 1))
    parts = batch_shards(mesh)
    accumulate = micro_batches(DAPO)
    tx = train_state.make_optimizer(OPTIM, 1000)
    model = shard_parameters(mesh, Transformer(MODEL, COMPUTE, nnx.Rngs(0)))
    state = train_state.init_state(model, tx)
    loss_fn = train_dapo.make_loss_fn(COMPUTE, DAPO, ROLLOUT.temperature)
    update = train_state.make_train_step(loss_fn, tx, accumulate, like=state)

    def step(batch: rows.Batch, micros: int) -> tuple[float, list[float]]:
        """Seconds of an update, and figures of it."""
        nonlocal state
        started = time.perf_counter()
        with jax.set_mesh(mesh):
            placed = hosts.shard_batch(mesh, batch, accumulate)
            state, metrics = update(state, placed, np.int32(micros))
        figures = [float(metrics[name]) for name in ("loss", "entropy", "grad_norm")]
        return time.perf_counter() - started, figures

    given = samples(fill)
    alone = rows.lay([[tokens] for tokens in given], LENGTH, DAPO_FIELDS)
    started = time.perf_counter()
    size = len(given) // parts
    (packed,) = cut_minibatches(given, parts, 1, size, DAPO.micro_batch // parts, LENGTH)
    values = defaultdict(list, pack_seconds=[time.perf_counter() - started])
    values["row_fill"] = [packed.row_fill]
    for repeat in range(repeats + 1):
        one, other = step(alone, accumulate), step(packed.batch, packed.used)
        np.testing.assert_allclose(one[1], other[1], rtol=1e-4)
        if repeat == 0:
            continue  # compiled
        values["padded_seconds"].append(one[0])
        values["packed_seconds"].append(other[0])
        values["ratio_to_padded"].append(one[0] / other[0])
    return values


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--json", help="file to write the figures to")
    parser.add_argument("--repeats", type=int, default=7)
    args = parser.parse_args()
    split_cpu(QUICKSTART.cpu_devices)
    about = rollout.versions()
    print(*(f"{name} {value}" for name, value in about.items()), sep=", ", flush=True)
    values: dict[str, Any] = {}
    for percent in (25, 50, 75):
        found = measure(percent / 100, args.repeats)
        values |= {f"fill{percent}.{key}": value for key, value in found.items()}
    print(rollout.table(values, TARGETS))
    if args.json:
        figures = {"versions": about, "repeats": args.repeats} | rollout.nested(values, {})
        Path(args.json).write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

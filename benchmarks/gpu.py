"""One NVIDIA GPU: decoding against its memory bandwidth, the SFT step against its matrix units.

    python -m benchmarks.gpu --json=FILE [--only=decode,train] [--repeats=5]

Random weights of Qwen2.5-1.5B's shape, computed in full, in bfloat16. Next to our figures those of
transformers on the same card and the same shapes, by the fastest of its WAYS. Each side, way and
context has a process of its own, one after the other. Compiling and first calls are not timed. A
figure is the median of the repeats, with least and most.

decode: a tick of the engine, ROWS rows of so many tokens each (CONTEXTS) that sample TICK more at
temperature 1. The bound: bytes of all weights and of the live keys and values, once per token of
all rows, over the bandwidth of the card, which is that of torch's largest of a copy, a negation and
a sum of 4 GiB (bytes read and written). transformers: `generate` with a static cache, which it
compiles; the time of many new tokens less that of few.

train: SFT updates of PACKED rows of LENGTH tokens, float32 master weights and AdamW moments,
products in bfloat16. MFU = (6·N·tokens + 6·L·H·D·Σ s²) / seconds / PEAK: N the weights of matrix
products (the tied head counts once, the lookup not at all), s the lengths of the segments, since
attention is causal within them. Nothing counts for recomputing. transformers: eager or compiled,
sdpa under a block mask or flex attention, autocast to bfloat16, fused AdamW, in micro-batches of
MICRO rows, as many as fit.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections import defaultdict
from typing import Any

import numpy as np

from benchmarks import gpu_torch, rollout
from benchmarks.gpu_cases import (
    CONTEXTS,
    PAGE,
    PEAK,
    ROWS,
    TICK,
    packed_batch,
    seconds,
    shape,
    train_flops,
)

TARGETS = {"train.mfu": (">=", 0.5)} | {
    f"decode.c{context}.r{rows}.share_of_bandwidth": (">=", 0.6)
    for context in CONTEXTS
    for rows in ROWS
}


# ---- ours


def model(param_dtype: str, attention: str, remat: str, chunk: int) -> Any:
    import jax
    from flax import nnx

    from masksearch_jax.core.config import ComputeConfig
    from masksearch_jax.models.transformer import Transformer

    compute = ComputeConfig("bfloat16", param_dtype, attention, remat, chunk)
    return jax.jit(lambda: Transformer(shape(), compute, nnx.Rngs(0)))()


def ours_decode(repeats: int, context: int, bandwidth: float) -> rollout.Values:
    """Ours; bandwidth in bytes per second."""
    import jax

    from masksearch_jax.models.transformer import unroll
    from masksearch_jax.rollout import decode, memory
    from masksearch_jax.rollout.sampling import Sampler

    weights = unroll(model("bfloat16", "xla", "none", 4096))
    config = weights.config
    tick = decode.make_tick(tokens=TICK, sampler=Sampler(1.0), attention="pallas")
    stop = np.zeros(config.vocab_size, np.bool_)
    width = -(-(context + TICK) // PAGE)
    values = defaultdict(list)
    fill = jax.jit(lambda leaf: jax.random.normal(jax.random.key(1), leaf.shape, leaf.dtype))
    held = sum(leaf.nbytes for leaf in jax.tree.leaves(weights))
    per_token = memory.page_bytes(config, 1, weights.compute.dtype)
    for rows in ROWS:
        cache = jax.tree.map(fill, decode.init_cache(weights, 1, rows * width, PAGE, ""))
        inbox = decode.empty_inbox(1, rows, width, 128, 128, 8)
        inbox.table[0] = np.random.default_rng(0).permutation(rows * width).reshape(rows, width)
        inbox.length[:], inbox.budget[:] = context, TICK
        inbox.stream[0, :, 0] = np.arange(rows)

        def call(rows: int = rows, inbox: Any = inbox) -> None:
            nonlocal cache
            cache, sampled = tick(weights, cache, inbox, np.uint32(0), stop, rows)
            assert (np.asarray(sampled.count) == TICK).all()

        needed = held + rows * (context + TICK / 2) * per_token
        for s in seconds(call, repeats):
            values[f"r{rows}.tokens_per_second"].append(rows * TICK / s)
            values[f"r{rows}.share_of_bandwidth"].append(needed / bandwidth / (s / TICK))
        del cache
    return dict(values)


def ours_train(repeats: int, chunk: int = 16384, accumulate: int = 1) -> rollout.Values:
    import jax

    from masksearch_jax import train_sft
    from masksearch_jax.core.config import MeshConfig, OptimConfig
    from masksearch_jax.parallel.hosts import shard_batch
    from masksearch_jax.parallel.sharding import make_mesh
    from masksearch_jax.training import train_state

    config, mesh = shape(), make_mesh(MeshConfig(-1, 1, 1))
    batch = packed_batch(config)
    optim = OptimConfig(1e-5, "constant", 0, 1.0, 0.9, 0.95, 1e-8, 0.01, 1.0, accumulate)
    tx = train_state.make_optimizer(optim, 1000)
    net = model("float32", "cudnn", "dots", chunk)
    state = train_state.init_state(net, tx)
    step = train_state.make_train_step(train_sft.make_loss_fn(net.compute), tx, accumulate)
    values = defaultdict(list)
    with jax.set_mesh(mesh):
        placed = shard_batch(mesh, batch, accumulate)

        def call() -> None:
            nonlocal state
            state, metrics = step(state, placed)
            values["loss"].append(float(metrics["loss"]))

        for s in seconds(call, repeats):
            values["tokens_per_second"].append(batch["ids"].size / s)
            values["mfu"].append(train_flops(config, batch) / s / PEAK)
    values["peak_bytes"].append(jax.local_devices()[0].memory_stats()["peak_bytes_in_use"])
    return dict(values)


# ---- the processes


WAYS = {
    "decode": [{"attention": "sdpa"}],
    "train": [
        {"attention": "sdpa", "compiled": False},
        {"attention": "sdpa", "compiled": True},
        {"attention": "flex_attention", "compiled": True},
    ],
}


def alone(side: str, timeout: float = 300.0, **how: Any) -> rollout.Values:
    """A side's figures from a process of its own. RuntimeError with its last words if it fails."""
    command = [sys.executable, "-m", "benchmarks.gpu", f"--serve={side}:{json.dumps(how)}"]
    started = time.perf_counter()
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=timeout)
    except subprocess.TimeoutExpired as error:
        raise RuntimeError(f"{side} {how}: no answer in {timeout:g} s") from error
    spent = time.perf_counter() - started
    if done.returncode:
        last = done.stderr.strip().splitlines()[-1:]
        raise RuntimeError(f"{side} {how}: exit {done.returncode} after {spent:.0f} s: {last}")
    print(f"{side} {how}: {spent:.0f} s", file=sys.stderr, flush=True)
    return json.loads(done.stdout.splitlines()[-1])


def fastest(
    side: str, ways: list[dict[str, Any]], key: str, **how: Any
) -> tuple[rollout.Values, str]:
    """The figures of the way with the highest of this key, and its name; a way may fail."""
    found, failed = {}, []
    for way in ways:
        try:
            found[json.dumps(way)] = alone(side, **how, **way)
        except RuntimeError as error:
            failed.append(str(error)[:300])
            print(failed[-1], file=sys.stderr, flush=True)
    if not found:
        raise RuntimeError("; ".join(failed))
    best = max(found, key=lambda way: np.median(found[way][key]))
    speeds = {way: round(float(np.median(v[key]))) for way, v in found.items()}
    return found[best], f"{best} of {speeds}" + "".join(f"; {text}" for text in failed)


def decode_section(repeats: int) -> tuple[rollout.Values, rollout.Notes]:
    moves = alone("torch_bandwidth", repeats=repeats)
    best = max(moves.values(), key=np.median)
    values, notes = {"bandwidth_bytes_per_second": best}, {}
    for context in CONTEXTS:
        ours = alone(
            "ours_decode", repeats=repeats, context=context, bandwidth=float(np.median(best))
        )
        values |= {f"c{context}.{key}": found for key, found in ours.items()}
        key = f"r{ROWS[0]}.tokens_per_second"
        theirs, notes[f"c{context}.transformers"] = fastest(
            "torch_decode", WAYS["decode"], key, repeats=2, context=context
        )
        for key, found in theirs.items():
            rows = key.split(".")[0]
            values[f"c{context}.{rows}.transformers_tokens_per_second"] = found
            ratio = np.median(ours[key]) / np.median(found)
            values[f"c{context}.{rows}.ratio_to_transformers"] = [float(ratio)]
    return values, notes


def train_section(repeats: int) -> tuple[rollout.Values, rollout.Notes]:
    ours = alone("ours_train", repeats=repeats)
    theirs, note = fastest("torch_train", WAYS["train"], "tokens_per_second", repeats=repeats)
    values = ours | {f"transformers_{key}": found for key, found in theirs.items()}
    ratio = np.median(ours["tokens_per_second"]) / np.median(theirs["tokens_per_second"])
    return values | {"ratio_to_transformers": [float(ratio)]}, {"transformers": note}


SECTIONS = {"decode": decode_section, "train": train_section}


def main() -> None:
    parser = rollout.arguments(__doc__, SECTIONS, 5)
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    if serve := parser.parse_args().serve:
        side, how = serve.split(":", 1)
        module = gpu_torch if side.startswith("torch") else sys.modules[__name__]
        print(json.dumps(getattr(module, side)(**json.loads(how))))
        return
    os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"  # several processes share the card
    import jax

    if jax.default_backend() != "gpu":
        parser.error(f"needs an NVIDIA GPU and jax[cuda13]; this is {jax.default_backend()!r}")
    rollout.report(parser, SECTIONS, TARGETS)


if __name__ == "__main__":
    main()

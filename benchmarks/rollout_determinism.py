"""The same 256 trajectories however long searches take, in any slots, on one process or two."""

from __future__ import annotations

import dataclasses
import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

from benchmarks import rollout_model as stand_in
from masksearch_jax.core.config import MeshConfig
from masksearch_jax.core.tools import search_alone
from masksearch_jax.parallel import sharding
from masksearch_jax.parallel.processes import join_processes
from masksearch_jax.rollout.engine import Engine
from masksearch_jax.rollout.episode import Request

LENGTHS = 4 * [4, 9, 14, 19, 24, 29, 34, 39]  # tokens of the prompts
SAMPLES = 8
# Slots, and tokens of the KV cache: room for all, fewer open, and so little that caches are taken.
SIZES = ((64, 0), (24, 0), (64, 24 * 128))
Ids = dict[str, list[int]]  # of each trajectory


def task() -> tuple[Any, stand_in.Words, list[Request]]:
    """A model, its vocabulary and what it is asked.

    Tags are drawn like any other token, so trajectories differ in length, searches and end.
    """
    vocab = stand_in.Words(32)
    model = stand_in.transformer(stand_in.qwen2(vocab.size, 32, 48, 2, 4))
    # Spread the logits, so that sampling meets tags, answers and searches alike.
    model = jax.tree.map(lambda p: p * 6.0 if p.ndim > 2 else p, model)
    first = vocab.first_word
    requests = stand_in.requests(vocab.size, LENGTHS, first_word=first, samples=SAMPLES)
    return model, vocab, requests


def latency_patterns() -> list[Callable[[str], float]]:
    """None, constant, two of random latencies, and one where each search is faster than before."""
    asked = iter(range(10**9))
    return [
        lambda query: 0.0,
        lambda query: 0.01,
        stand_in.log_normal(1, 0.005, 0.03),
        stand_in.log_normal(2, 0.02, 0.1),
        lambda query: 0.05 / (1 + next(asked) / 16),
    ]


def sample(
    model: Any,
    vocab: stand_in.Words,
    requests: list[Request],
    seconds: Callable[[str], float],
    slots: int,
    kv_tokens: int,
) -> tuple[Ids, int, int]:
    """Tokens of each trajectory, searches of all, caches that were taken."""
    config = dataclasses.replace(
        stand_in.ROLLOUT,
        slots=slots,
        kv_tokens=kv_tokens,
        page_tokens=16,
        decode_share=(0.25, 0.5, 1.0),
        max_len=128,
    )
    search = stand_in.SlowSearch(6, seconds)
    with Engine(
        vocab, search_alone(search, stand_in.SEARCH), config, stand_in.SEARCH, strict=True
    ) as engine:
        done = list(engine.run(model, requests))
    ids = {f"{t.example_id} {t.sample}": t.ids.tolist() for t in done}
    return ids, sum(len(t.turns) for t in done), engine.stats.evicted


def measure() -> dict[str, list[float]]:
    """Shares of trajectories that are, token by token, those of the first run."""
    whole, found, evicted = task(), [], 0
    for slots, kv_tokens in SIZES:
        for seconds in latency_patterns():
            ids, searches, taken = sample(*whole, seconds, slots, kv_tokens)
            found.append(ids)
            evicted += taken
    first, rest = found[0], found[1:]
    processes = {count: on_processes(count) for count in (1, 2)}
    values = {
        "identical": share(first, rest),
        "identical_one_process": share(first, [processes[1]]),
        "identical_two_processes": share(first, [processes[2]]),
        "compared": (len(rest) + len(processes)) * len(first),
        "trajectories": len(first),
        "searches": searches,
        "evicted": evicted,
        "new_tokens": sum(map(len, first.values())) - sum(LENGTHS) * SAMPLES,
    }
    return {name: [float(value)] for name, value in values.items()}


def share(expected: Ids, runs: list[Ids]) -> float:
    same = [run.get(name) == ids for run in runs for name, ids in expected.items()]
    return sum(same) / len(same)


def on_processes(count: int) -> Ids:
    """What `count` processes sample, on two devices together; each has its part of the requests."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    started = []
    for process in range(count):
        own = {"JAX_NUM_PROCESSES": str(count), "JAX_PROCESS_ID": str(process)}
        own |= {"JAX_COORDINATOR_ADDRESS": address} if count > 1 else {}
        command = [sys.executable, "-m", "benchmarks.rollout_determinism"]
        started.append(
            subprocess.Popen(
                command,
                env=os.environ | own | {"JAX_PLATFORMS": "cpu"},
                cwd=Path(__file__).parent.parent,
                stdout=subprocess.PIPE,
                text=True,
            )
        )
    found: Ids = {}
    try:
        for process in started:
            out, _ = process.communicate()
            if process.returncode:
                raise RuntimeError(f"a process of {count} ended with {process.returncode}")
            found |= json.loads(out.splitlines()[-1])
    finally:
        for process in started:
            process.kill()
    return found


def child() -> None:
    """One of the processes: its trajectories' tokens as the last line that it prints."""
    count = int(os.environ["JAX_NUM_PROCESSES"])
    jax.config.update("jax_num_cpu_devices", 2 // count)
    if count > 1:
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
    join_processes()
    model, vocab, requests = task()
    mesh = sharding.make_mesh(MeshConfig(-1, 1, 1))
    own = len(requests) // count
    requests = requests[jax.process_index() * own :][:own]
    seconds = stand_in.log_normal(jax.process_index(), 0.005, 0.03)
    with jax.set_mesh(mesh):
        ids, _, _ = sample(sharding.replicate(mesh, model), vocab, requests, seconds, *SIZES[0])
    print(json.dumps(ids), flush=True)


if __name__ == "__main__":
    child()

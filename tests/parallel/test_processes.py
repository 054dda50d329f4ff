"""Several processes: the same tokens as one; a search that hangs stops nobody, a signal all."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from pathlib import Path

import pytest

CHILD = """
import dataclasses, json, os, random, signal, sys, threading, time
process, count, devices, port, tensor = map(int, sys.argv[1:6])
import jax
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_num_cpu_devices", devices)
jax.config.update("jax_cpu_collectives_implementation", "gloo")
if count > 1:
    jax.distributed.initialize(f"localhost:{port}", count, process)
from masksearch_jax.core.config import MeshConfig
from masksearch_jax.parallel.sharding import make_mesh, replicate
from masksearch_jax.training.supervisor import Preempted, Preemption
from tests.rollout.word_engine import (
    ANSWERER, ROLLOUT, SEARCH, colours, engine, request, transformer
)

texts = "plan", "red blue plan"
requests = [request(texts[i % 2], i, s) for i in range(16) for s in range(2)]
own = len(requests) // count
mesh = make_mesh(MeshConfig(-1, 1, tensor))

def sample(mode):
    def find(query):
        if mode == "jitter":
            time.sleep(random.Random(query).random() * 0.02 * (process + 1))
        if mode == "raises" and process == 1:
            raise OSError("index unplugged")
        if mode == "hangs" and process == 1:
            threading.Event().wait()
        if mode == "stopped":
            if process == 1:
                os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(2.0)
        return 0.0

    temperature = float(mode in ("plain", "jitter"))
    rollout = dataclasses.replace(
        ROLLOUT, slots=16, decode_share=(0.5, 0.75), temperature=temperature
    )
    config = dataclasses.replace(SEARCH, timeout=60.0 if mode == "stopped" else 0.5)
    preemption, polls, out, is_stopped = Preemption(), [], [], False

    def check():
        polls.append(1)
        preemption.raise_if_stopped()

    with engine(colours(find), rollout=rollout, search_config=config) as e:
        e.check = check
        model = transformer() if temperature else ANSWERER
        try:
            out.extend(e.run(replicate(mesh, model), requests[process * own :][:own]))
        except Preempted:
            is_stopped = True
        ticks = len(polls) if is_stopped else e.stats.ticks
    rows = [[t.example_id, t.sample, t.status, t.ids.tolist(), t.logprobs.tolist()] for t in out]
    return [ticks, is_stopped, rows]

with jax.set_mesh(mesh):
    print("FOUND", json.dumps({mode: sample(mode) for mode in sys.argv[6:]}), flush=True)
"""


def run(count: int, devices: int, *modes: str, tensor: int = 1) -> list[dict[str, list]]:
    """By mode, what each of `count` processes did: its ticks, whether it stopped, trajectories.

    `tensor`: devices that share the rows of a batch; more than `devices`: they span processes.
    """
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    root = Path(__file__).parents[2]
    settings = [*map(str, (count, devices, port, tensor)), *modes]
    commands = [[sys.executable, "-c", CHILD, str(p), *settings] for p in range(count)]
    started = [
        subprocess.Popen(c, cwd=root, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for c in commands
    ]
    found = []
    try:
        for process in started:
            out, err = process.communicate(timeout=240)
            assert process.returncode == 0, err[-3000:]
            line = next(line for line in out.splitlines() if line.startswith("FOUND "))
            found.append(json.loads(line.removeprefix("FOUND ")))
    finally:
        for process in started:
            process.kill()
    return found


def trajectories(found: list[list]) -> dict:
    rows = [row for *_, rows in found for row in rows]
    named = {(name, sample): rest for name, sample, *rest in rows}
    assert len(named) == len(rows) == 32  # each once, on one process
    return named


@pytest.fixture(scope="module")
def alone() -> dict:
    return trajectories([run(1, 2, "plain")[0]["plain"]])


@pytest.fixture(scope="module")
def two() -> dict[str, list]:
    """By mode, what each of two processes did; the stop comes last, as nothing can follow it."""
    modes = ("jitter", "raises", "hangs", "stopped")
    found = run(2, 2, *modes)
    return {mode: [one[mode] for one in found] for mode in modes}


def assert_as_alone(found: list[list], alone: dict) -> None:
    assert len({ticks for ticks, *_ in found}) == 1  # all left at the same tick
    together = trajectories(found)
    assert {k: v[:2] for k, v in together.items()} == {k: v[:2] for k, v in alone.items()}
    for name, (*_, logprobs) in together.items():
        assert logprobs == pytest.approx(alone[name][2], abs=1e-4)
    assert len({len(ids) for _, ids, _ in together.values()}) > 3


@pytest.mark.slow
def test_two_processes_sample_the_tokens_that_one_does(alone, two):
    assert_as_alone(two["jitter"], alone)


@pytest.mark.slow
def test_processes_that_share_rows_sample_the_tokens_that_one_does(alone):
    assert_as_alone([one["jitter"] for one in run(4, 1, "jitter", tensor=2)], alone)


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["raises", "hangs"])
def test_a_process_whose_search_fails_stops_no_other(two, mode):
    (*_, healthy), (*_, failing) = two[mode]
    assert len(healthy) == len(failing) == 16
    assert {row[2] for row in healthy} == {"answered"}
    assert {row[2] for row in failing} == {"tool_failure"}


@pytest.mark.slow
def test_a_signal_to_one_process_stops_all_at_the_same_tick(two):
    (ticks, stopped, first), (others, both, second) = two["stopped"]
    assert stopped
    assert both
    assert ticks == others > 1
    assert len(first) + len(second) < 32  # in the middle of it

"""Several processes share an evaluation, and any number of others goes on with it."""

import collections
import dataclasses
import json
import os
import signal
import socket
import subprocess
import sys

import pytest

from masksearch_jax import evaluate
from masksearch_jax.core.config import EvalRun
from masksearch_jax.core.errors import ConfigError
from masksearch_jax.evals import checks
from masksearch_jax.rollout.episode import Rules
from masksearch_jax.runtime.process import RESTART
from masksearch_jax.runtime.progress import Progress
from masksearch_jax.training.supervisor import Preempted

ITEMS, METHODS, SLOTS = 31, ("rag", "agent"), 4
CHILD = """
import json, os, signal, sys
from masksearch_jax import evaluate
from masksearch_jax.core.config import EvalRun
from masksearch_jax.core.schema import to_dataclass
from masksearch_jax.rollout.episode import Rules
from masksearch_jax.runtime import cli
from masksearch_jax.runtime.process import process_index
from masksearch_jax.runtime.progress import Progress

settings, log, last = sys.argv[1:]
opened, updated = Rules.open, Progress.update

def opening(rules, request):
    os.write(asked, f"{request.example_id}\\n".encode())
    return opened(rules, request)

def update(progress, done, **figures):
    updated(progress, done, **figures)
    if process_index() == 1 and done - progress.first == int(last):
        os.kill(os.getpid(), signal.SIGKILL)

asked = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
Rules.open, Progress.update = opening, update
cli.call(lambda: evaluate.main(to_dataclass(EvalRun, json.loads(settings))))
"""


@pytest.fixture
def cfg(miniature, tmp_path):
    c = miniature.cfg
    return EvalRun(
        workdir=str(tmp_path / "run"),
        data=str(miniature.data),
        tokenizer=str(miniature.tokenizer),
        init="",
        model=c.model,
        compute=c.compute,
        mesh=c.mesh,
        prompt=c.prompt,
        search=miniature.search,
        rollout=dataclasses.replace(c.rollout, slots=SLOTS, max_new_tokens=12),
        eval=dataclasses.replace(
            c.eval, suites=("questions",), methods=METHODS, examples=ITEMS, bootstrap=20
        ),
    )


def two_processes(cfg, folder, log, last=0):
    """Statuses, tables and all outputs of two; the second dies after `last` rows, where above 0."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    env = os.environ | {
        "JAX_NUM_CPU_DEVICES": "1",
        "JAX_NUM_PROCESSES": "2",
        "JAX_COORDINATOR_ADDRESS": f"localhost:{port}",
    }
    command = [sys.executable, "-c", CHILD, json.dumps(dataclasses.asdict(cfg)), log, str(last)]
    started = [
        subprocess.Popen(
            command,
            cwd=folder,
            env=env | {"JAX_PROCESS_ID": str(i), "PYTHONPATH": str(folder)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for i in range(2)
    ]
    said = [process.communicate(timeout=300) for process in started]
    tables = [[x for x in out.splitlines() if not x.startswith("[Gloo]")] for out, _ in said]
    return [process.returncode for process in started], tables, said


def rows_of(workdir):
    """Of each item what does not depend on the clock, and the log-probabilities."""
    found = {}
    for line in (workdir / "trajectories.jsonl").read_text().splitlines():
        row = json.loads(line)
        logprobs = row.pop("logprobs")
        del row["seconds"]
        for turn in row["turns"]:
            del turn["seconds"], turn["found"]  # who of those that asked alike was first
        found[row["method"], row["example_id"]] = row, logprobs
    return found


@pytest.mark.slow  # four processes
@pytest.mark.usefixtures("one_device")
def test_two_processes_are_killed_moved_to_one_and_back(repository, cfg, tmp_path, monkeypatch):
    """Each item is asked once but for those in flight, and says what it says to one process."""
    whole = dataclasses.replace(cfg, workdir=str(tmp_path / "whole"))
    found = evaluate.run(whole)
    log, workdir = tmp_path / "asked.txt", tmp_path / "run"

    statuses, _, said = two_processes(cfg, repository, log, last=8)
    assert statuses[1] == -signal.SIGKILL
    assert statuses[0] in (RESTART, -signal.SIGABRT), said  # JAX may be the first to see it
    assert (workdir / "trajectories.partial.1.jsonl").read_text().count("\n") == 8

    class Stopped(Progress):
        def update(self, done, **figures):
            super().update(done, **figures)
            if done == self.first + 8:
                os.kill(os.getpid(), signal.SIGTERM)

    opened = Rules.open

    def opening(self, request):
        with log.open("a") as file:
            file.write(f"{request.example_id}\n")
        return opened(self, request)

    with monkeypatch.context() as patch:
        patch.setattr(evaluate, "Progress", Stopped)
        patch.setattr(Rules, "open", opening)
        with pytest.raises(Preempted):
            evaluate.run(cfg)
    kept = (workdir / "trajectories.partial.jsonl").read_text().splitlines()
    assert 2 * 8 <= len(kept) < len(METHODS) * ITEMS
    assert not (workdir / "trajectories.partial.1.jsonl").exists()

    statuses, (table, nothing), said = two_processes(cfg, repository, log)
    assert statuses == [0, 0], said
    assert table[0].split() == ["questions", "average"]
    assert nothing == []
    lines = (workdir / "trajectories.jsonl").read_text().splitlines()
    assert set(kept) <= set(lines)
    assert len(lines) == len(METHODS) * ITEMS

    ours, theirs = rows_of(workdir), rows_of(tmp_path / "whole")
    assert list(ours) == list(theirs)
    for name, (row, logprobs) in ours.items():
        assert row == theirs[name][0]
        assert logprobs == pytest.approx(theirs[name][1], abs=1e-4)
    again = json.loads((workdir / "eval.json").read_text())
    for name in ("results", "average", "breakdown", "suites"):
        assert again[name] == found[name]
    files = ("eval.json", "lost.jsonl", "run.json", "trajectories.jsonl")
    assert sorted(path.name for path in workdir.iterdir()) == list(files)
    counts = collections.Counter(log.read_text().split())
    assert set(counts) == {name for _, name in ours}
    assert 0 <= counts.total() - len(lines) <= 2 * SLOTS


@pytest.mark.parametrize(
    ("section", "change", "message"),
    [
        (
            "eval",
            {"difficulty": True, "suites": ("ramp",)},
            r"eval\.difficulty is True, and this is one of 2 processes",
        ),
        ("endpoint", {"base_url": "http://h/v1"}, r"endpoint\.base_url is 'http://h/v1', and this"),
    ],
)
def test_what_one_process_does_is_refused_to_several(cfg, monkeypatch, section, change, message):
    monkeypatch.setattr(checks, "process_count", lambda: 2)
    changed = dataclasses.replace(getattr(cfg, section), **change)
    with pytest.raises(ConfigError, match=message):
        evaluate.run(dataclasses.replace(cfg, **{section: changed}))

"""The trainers as commands, in one process and in several."""

import dataclasses
import os
import re
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from benchmarks import crash_runs
from benchmarks.crash_runs import Cluster
from benchmarks.crash_runs import curve as curves
from masksearch_jax import train_sft
from masksearch_jax.core.config import SftRun
from masksearch_jax.models.load import initial
from masksearch_jax.runtime.metric_writer import read_metrics
from masksearch_jax.runtime.process import RESTART
from masksearch_jax.search.open import open_tool
from masksearch_jax.testing.services import Answer, SearchEndpoint
from tests.mains.train_runs import (
    DAPO_STEPS,
    at,
    changed,
)

pytestmark = pytest.mark.slow


def command(cfg, folder) -> subprocess.CompletedProcess:
    """What `python -m masksearch_jax.train_dapo` prints and ends with."""
    file = folder / "config.py"
    settings = dataclasses.asdict(cfg)
    lines = ["from ml_collections import ConfigDict", "", "", "def get_config():"]
    file.write_text("\n".join([*lines, f"    return ConfigDict({settings!r})", ""]))
    asked = [sys.executable, "-m", "masksearch_jax.train_dapo", f"--config={file}"]
    env = os.environ | {"JAX_NUM_CPU_DEVICES": "1"}
    root = crash_runs.ROOT
    return subprocess.run(
        asked, cwd=root, env=env, capture_output=True, text=True, check=False, timeout=300
    )


def error_of(done: subprocess.CompletedProcess) -> str:
    assert "Traceback" not in done.stderr
    return done.stderr.splitlines()[-1]


def test_the_command_is_no_success_where_no_step_updated(dapo, tmp_path):
    hopeless = {"accuracy_threshold": 2.0, "max_refills": 1, "steps": 2, "patience": 20}
    cfg = changed(at(dapo, tmp_path / "run"), "dapo", **hopeless)
    done = command(cfg, tmp_path)
    said = error_of(done)
    assert said.startswith("error: 2 steps are done and none updated the weights: nothing to learn")
    assert "no group had right and wrong samples (accuracy 0.000, " in said
    assert done.returncode == 1


def test_the_command_ends_with_42_while_search_is_down_and_goes_on_after(cached, dapo, tmp_path):
    """Search answers until a step is done, then refuses; later the same command finds it well."""
    down = True

    def script(request):
        return Answer(status=503) if down and read_metrics(tmp_path / "run") else Answer()

    with SearchEndpoint(open_tool(cached.search), script) as server:
        http = {"kind": "http", "url": server.url, "timeout": 2.0, "attempt_timeout": 1.0}
        cfg = changed(at(dapo, tmp_path / "run"), "search", index="", **http)
        cfg = changed(cfg, "survival", tool_outage_seconds=0.5)
        done = command(cfg, tmp_path)
        said = (
            r"error: the search tool was down for 0\.5 s "
            r"\(config\.survival\.tool_outage_seconds\) in step 2: (\d+) of \1 searches failed: "
            r"(?:SearchError: .*HTTP 503.*|no result in 2 s); the run is saved, start the same "
            r"command again once it answers"  # the second where the machine is busy
        )
        assert re.fullmatch(said, error_of(done)), done.stderr
        assert done.returncode == RESTART
        (first,) = curves(cfg.workdir)
        down = False
        done = command(cfg, tmp_path)
    assert done.returncode == 0, done.stderr
    assert [row["step"] for row in curves(cfg.workdir)] == list(range(1, DAPO_STEPS + 1))
    assert curves(cfg.workdir)[0] == first
    assert sum(row["updates"] for row in curves(cfg.workdir)) > 0


def test_sft_of_two_processes_is_stopped_moved_to_one_killed_and_moved_back(sft, tmp_path):
    """The same mesh in any number of processes: the same curve and weights, bit by bit.

    Its updates are of two micro-batches.
    """
    assert sft.optim.accumulate == 2
    cfg = dataclasses.replace(
        sft,
        sft=dataclasses.replace(sft.sft, steps=24),
        checkpoint=dataclasses.replace(sft.checkpoint, every=1),
    )
    assert Cluster(at(cfg, tmp_path / "whole"), 1).wait(400) == [0]

    def session(count: int, rows: int) -> Cluster:
        cluster = Cluster(at(cfg, tmp_path / "cut"), count)
        while cluster.is_running() and len(curves(tmp_path / "cut")) < rows:
            time.sleep(0.01)
        return cluster

    stopped = session(2, 5)
    stopped.signal(signal.SIGTERM, 1)
    assert stopped.wait(100) == [RESTART, RESTART]
    assert "process 0 of 2 on" in stopped.text()
    killed = session(1, len(curves(tmp_path / "cut")) + 5)
    killed.signal(signal.SIGKILL, 0)
    assert killed.wait(100) == [-signal.SIGKILL]
    assert 10 <= len(curves(tmp_path / "cut")) < 24
    assert session(2, 24).wait(400) == [0, 0]
    assert curves(tmp_path / "cut") == curves(tmp_path / "whole")
    weights = [np_weights(tmp_path / name, cfg) for name in ("whole", "cut")]
    assert weights[0] == weights[1]


def np_weights(workdir, cfg: SftRun) -> list[bytes]:
    mesh = train_sft.make_mesh(cfg.mesh)
    model = initial(str(workdir / "checkpoints"), cfg.model, cfg.compute, mesh, 0)
    return [np.asarray(x).tobytes() for x in jax.tree.leaves(model)]


@pytest.mark.parametrize("in_flight", ["drop", "rebuild"])
def test_two_processes_train_on_the_rollouts_of_one(dapo, tmp_path, in_flight):
    rollout = dataclasses.replace(dapo.rollout, in_flight=in_flight)
    settings = dapo.dapo
    if in_flight == "rebuild":  # with switches whose figures are of all processes
        switches = {"advantage": "batch", "aggregation": "sequence", "sequence_gap": 50.0}
        settings = dataclasses.replace(settings, oversample=2.0, **switches)
    cfg = dataclasses.replace(dapo, rollout=rollout, dapo=settings)
    assert Cluster(at(cfg, tmp_path / "2"), 2).wait(400) == [0, 0]
    if in_flight == "drop":  # killed between two checkpoints, it goes on bitwise
        cluster = Cluster(at(cfg, tmp_path / "cut"), 2)
        while cluster.is_running() and len(curves(tmp_path / "cut")) < 3:
            time.sleep(0.01)
        cluster.signal(signal.SIGKILL, 1)
        first = cluster.wait(100)[0]  # JAX may be the first to see it, and aborts
        assert first in (RESTART, -signal.SIGABRT), cluster.text()
        assert Cluster(at(cfg, tmp_path / "cut"), 2).wait(400) == [0, 0]
        assert curves(tmp_path / "cut") == curves(tmp_path / "2")
    alone, together = read_metrics(dapo.workdir), read_metrics(tmp_path / "2")
    assert len(together) == DAPO_STEPS
    if in_flight == "drop":  # the same prompts, streams and weights: the same samples
        for name in ("reward", "answer", "format", "searches", "sampled_tokens", "groups_sampled"):
            assert together[0][name] == pytest.approx(alone[0][name], abs=1e-6)
    updated = [row for row in together if row["groups_kept"]]
    assert updated
    assert {row.get("masked_sequences") for row in updated} == {
        0.0 if in_flight == "rebuild" else None
    }
    assert (
        max(row["sampler_gap"] for row in updated if row["step"] == 1 or "drop" in in_flight) < 1e-3
    )

"""Training runs on the miniature: their configs, how they are changed and cut off."""

import dataclasses
import os
import random
import signal
import time

import pytest

from benchmarks import crash_runs
from masksearch_jax.core.config import DapoRun, SftRun
from masksearch_jax.rl.heldout import Heldout
from masksearch_jax.runtime.progress import Progress
from masksearch_jax.training.supervisor import Preempted

SFT_STEPS, DAPO_STEPS = 80, 4


def sft_config(run, workdir) -> SftRun:
    cfg = crash_runs.sft_run(run, workdir, SFT_STEPS, heartbeat_seconds=30)
    curriculum = "0:ramp_sft_k1,30:ramp_sft_upto2"
    return dataclasses.replace(
        cfg,
        sft=dataclasses.replace(cfg.sft, curriculum=curriculum, context_loss_weight=0.1),
        checkpoint=dataclasses.replace(cfg.checkpoint, every=10),
    )


def dapo_config(run, workdir, init) -> DapoRun:
    cfg = crash_runs.dapo_run(run, workdir, init, DAPO_STEPS, heartbeat_seconds=30)
    curriculum = "0:qa_easy,2:ramp_qa_mixed"
    return dataclasses.replace(
        cfg,
        rollout=dataclasses.replace(cfg.rollout, slots=32, tick_tokens=32),  # few ticks
        dapo=dataclasses.replace(cfg.dapo, group_size=8, micro_batch=16, curriculum=curriculum),
        checkpoint=dataclasses.replace(cfg.checkpoint, every=2),
    )


def at(cfg, workdir):
    return dataclasses.replace(cfg, workdir=str(workdir))


def changed(cfg, part, **changes):
    return dataclasses.replace(cfg, **{part: dataclasses.replace(getattr(cfg, part), **changes)})


def run_until(step: int, main, *args) -> None:
    """Runs a main that is interrupted once `step` steps are done and logged."""

    class Interrupted(Progress):
        def update(self, done, **figures):
            super().update(done, **figures)
            if done == step:
                raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(main, "Progress", Interrupted)
        with pytest.raises(KeyboardInterrupt):
            main.run(*args)


def terminate(*_: object) -> None:
    """What a scheduler does to a host that it wants back."""
    os.kill(os.getpid(), signal.SIGTERM)


def run_until_measurement(number: int, main, *args) -> None:
    """Runs a main that is told to stop within the `number`-th measurement of held-out examples."""
    real, calls = Heldout.measure, []

    def measure(self, model):
        calls.append(model)
        if len(calls) == number:
            terminate()
        return real(self, model)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Heldout, "measure", measure)
        with pytest.raises(Preempted):
            main.run(*args)
    assert len(calls) == number


def measured(cfg, cached, **settings):
    """The config with a few held-out examples of each kind."""
    given = {"every": 2, "data": str(cached.data), "examples": 2} | settings
    rollout, prompt = cached.cfg.rollout, cached.cfg.prompt
    cfg = dataclasses.replace(cfg, search=cached.search, rollout=rollout, prompt=prompt)
    return changed(changed(cfg, "eval", **given), "rollout", slots=8, max_new_tokens=96)


class Unsteady:
    """A search tool whose every call takes another time."""

    def __init__(self, tool):
        self.tool, self.random, self.calls = tool, random.Random(0), 0

    def search(self, queries, top_k):
        self.calls += 1
        time.sleep(self.random.random() * 0.03)
        return self.tool.search(queries, top_k)

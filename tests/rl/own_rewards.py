"""Functions that tests name as rewards."""

import asyncio
import functools
import math
import os
import random
import signal
import sys
import threading
import time
from collections.abc import Callable
from concurrent import futures
from typing import NamedTuple

from masksearch_jax.core import markup
from masksearch_jax.core.config import DapoConfig
from masksearch_jax.rl import rewards

met = threading.Event()
asked: list[str] = []
like: list[DapoConfig] = []  # whose reward `as_ours` gives
stops: list[Callable[[], bool]] = []  # of `as_ours_and_stops`

NOT_A_FUNCTION = 1.0


def right(example, trajectory):
    """1 for the right answer; after a wait of any length, so that any of them is done first."""
    asked.append(trajectory.example_id)
    time.sleep(random.random() * 0.01)
    return float(markup.extract_answer(trajectory.text_by("policy")) == "A b.")


def by_sample(example, trajectory):
    """Right for every second sample of a prompt, whatever it says: each group has spread."""
    return float(trajectory.sample % 2)


async def later(example, trajectory):
    await asyncio.sleep(0)
    return {"total": 0.25, "accuracy": 1, "brevity": 0.5}


class _Later:
    """An object that is called and awaited."""

    async def __call__(self, example, trajectory):
        return await later(example, trajectory)


Later = _Later()
later_bound = functools.partial(Later)


class Parts(NamedTuple):
    total: float
    brevity: float


def named(example, trajectory):
    return Parts(0.75, 0.5)


def waits_for_the_next(example, trajectory):
    """Of sample 0: done once the engine has gone on to sample 1."""
    return 1.0 if trajectory.sample or met.wait(30) else math.nan


def nan(example, trajectory):
    return math.nan


def infinite_part(example, trajectory):
    return {"total": 1.0, "brevity": math.inf}


def too_large(example, trajectory):
    return 1e300


def part_too_large(example, trajectory):
    return {"total": 1.0, "brevity": -(10**400)}


def text(example, trajectory):
    return "1.0"


def nothing(example, trajectory):
    return None


def no_total(example, trajectory):
    return {"brevity": 1.0}


def raises(example, trajectory):
    raise KeyError("gold")


async def raises_later(example, trajectory):
    raise KeyError("gold")


def leaves(example, trajectory):
    sys.exit(3)


def cancels(example, trajectory):
    raise asyncio.CancelledError("by whoever")


def cancels_a_call(example, trajectory):
    raise futures.CancelledError("by whoever")


async def cancels_a_task(example, trajectory):
    task = asyncio.create_task(asyncio.sleep(60))
    task.cancel("by whoever")
    await task


def hangs(example, trajectory):
    met.wait(30)


def of_one(example):
    return 1.0


def some_fail(example, trajectory):
    """No number for the first sample, 1 or 0 for the others."""
    return math.nan if trajectory.sample == 0 else float(trajectory.sample == 1)


async def as_ours(example, trajectory):
    found = rewards.reward(example, trajectory, like[-1])
    return {"total": found.total, "accuracy": found.accuracy}


async def as_ours_and_stops(example, trajectory):
    """Once `stops` says so, with `met` this process is told to stop, and the reward takes long."""
    if stops and stops[-1]():
        stops.clear()
        met.clear()
        await asyncio.to_thread(met.wait, 60)
        os.kill(os.getpid(), signal.SIGTERM)
        await asyncio.sleep(20)
        asked.append("waited for it")
    return await as_ours(example, trajectory)


def length(example, trajectory):
    """Pays for every word of an answer, whatever it says."""
    answer = trajectory.text_by("policy").partition("<answer>")[2].partition("</answer>")[0]
    words = len(answer.split())
    return {"total": words / 10, "accuracy": float(words > 6)}


def tags(example, trajectory):
    """Pays for every answer that is opened, whatever it says."""
    return float(trajectory.text_by("policy").count("<answer>"))

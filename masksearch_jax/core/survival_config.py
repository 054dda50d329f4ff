"""When the state of a run is saved, and what it does where something outside it goes wrong."""

from __future__ import annotations

import dataclasses
from typing import Literal

from masksearch_jax.core.schema import key, required, share


@dataclasses.dataclass(frozen=True)
class CheckpointConfig:
    """When the state is saved, and what is kept."""

    every: int = required("Steps between saves.", harmless=True, least=1)
    keep: int = key(2, "Newest checkpoints kept.", harmless=True, least=1)
    keep_every: int = key(
        0, "Checkpoints of every so many steps are kept for good; 0: none.", harmless=True, least=0
    )
    best_metric: str = key(
        "",
        (
            "The checkpoint with the best value of this metric, held-out or of the step's update, "
            "is kept too; empty: none."
        ),
        harmless=True,
    )
    best_mode: Literal["max", "min"] = key(
        "max", "Which value of best_metric is the best.", harmless=True
    )
    folder: str = key(
        "", "A folder or bucket of their own; empty: WORKDIR/checkpoints.", harmless=True
    )


@dataclasses.dataclass(frozen=True)
class SurvivalConfig:
    """How a run meets hangs, bad updates, lost hosts and a changed config.

    A step or rollout tick that takes `step_factor` times the median, and over `step_seconds`, is a
    hang: all threads' stacks are dumped and the process exits with 42. An update whose loss or
    gradient is not finite, or whose loss is a spike, is never applied.
    """

    startup_seconds: float = key(
        3600.0,
        "Seconds until the first step is done, and for each save; 0: no watchdog.",
        harmless=True,
        least=0,
    )
    step_factor: float = key(
        10.0, "A step that takes so many times the median may hang.", harmless=True, least=0
    )
    step_seconds: float = key(300.0, "No shorter step is a hang.", harmless=True, least=0)
    heartbeat_seconds: int = key(
        30, "A host that is silent for so many seconds is lost.", harmless=True, least=1
    )
    guard: Literal["stop", "skip"] = key(
        "stop",
        "After a bad update: stop, or count it and go on unless max_skips come in a row.",
        harmless=True,
    )
    spike_sigma: float = key(
        0.0,
        "A spike: a loss so many standard deviations above the mean; 0: none is.",
        least=0,
    )
    spike_window: int = key(128, "Good losses that mean and deviation are taken of.", least=1)
    max_skips: int = key(10, "Bad updates in a row that stop the run.", harmless=True, least=0)
    # Such a step is sampled again until the tool answers, and in time.
    tool_failures: float = share(
        0.5,
        "Share of searches that fail, or of samples that rollout.deadline ends, that voids a step.",
        harmless=True,
    )
    tool_outage_seconds: float = key(
        600.0, "Seconds to wait for a failing or slow tool; then exit 42.", harmless=True, least=0
    )
    profile_steps: tuple[int, ...] = key(
        (), "Steps traced to WORKDIR/profile; SIGUSR1 traces the next one.", harmless=True
    )
    compile_cache: str = key(
        "", "Folder or bucket of compiled programs; empty: none.", harmless=True
    )
    changed: Literal["refuse", "accept"] = key(
        "refuse",
        (
            "A run that is resumed with settings that change its result: refused with both "
            "values, or goes on with the new ones."
        ),
        harmless=True,
    )

"""How a run goes from lesson to lesson of its curriculum; of SFT and DAPO alike."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Literal

from masksearch_jax.core.errors import ConfigError
from masksearch_jax.core.schema import key, share


@dataclasses.dataclass(frozen=True)
class LessonsConfig:
    """When the next lesson of `curriculum` begins, and what it keeps of those before."""

    by: Literal["schedule", "gated", "adaptive"] = key(
        "schedule",
        (
            "At the lesson's step; once the held-out recall of the lesson before passes "
            "`threshold`, whatever its step; or at its step, with rates of its tasks by their "
            "held-out recall. The last two want eval.every."
        ),
    )
    keep_earlier: float = share(
        0.0, "Share of a lesson's records that come from the lessons before, in equal parts."
    )
    threshold: float = key(0.8, "Of gated: held-out recall that opens the next lesson.")
    floor: int = key(0, "Of gated: steps of a lesson before the next one, at least.")
    ceiling: int = key(0, "Of gated: steps of a lesson before the next one, at most; 0: any.")
    least: float = key(
        0.1,
        "Of adaptive: a task's rate, over its own, at least; the most is 1, where half is right.",
    )

    def idle(self) -> Iterator[tuple[str, str]]:
        """See `Switched`."""
        if self.by != "gated":
            yield "threshold", "it is read with config.lessons.by=gated"
        if self.by != "adaptive":
            yield "least", "it is read with config.lessons.by=adaptive"


SCHEDULE = LessonsConfig()


def check_lessons(cfg: LessonsConfig) -> None:
    """Raises ConfigError for a gate that can never pass, or that is always open."""
    if not 0 <= cfg.keep_earlier < 1:
        raise ConfigError(
            f"config.lessons.keep_earlier is {cfg.keep_earlier:g}; it must lie in 0..1, below 1"
        )
    if cfg.by == "gated" and not 0 < cfg.threshold <= 1:
        what = "can never pass" if cfg.threshold > 1 else "passes at the first measurement"
        raise ConfigError(
            f"config.lessons.threshold is {cfg.threshold:g}, a gate that {what}: recall lies in "
            "0..1; choose above 0 and at most 1"
        )
    if cfg.floor < 0 or cfg.ceiling < 0 or 0 < cfg.ceiling < cfg.floor:
        raise ConfigError(
            f"config.lessons: floor {cfg.floor} and ceiling {cfg.ceiling} must not be below 0, nor "
            "the ceiling below the floor"
        )
    for name in ("floor", "ceiling"):
        if getattr(cfg, name) and cfg.by != "gated":
            raise ConfigError(
                f"config.lessons.{name} is {getattr(cfg, name)}, and config.lessons.by is "
                f"{cfg.by}, which reads none; choose gated, or 0"
            )
    if not 0 < cfg.least <= 1:
        raise ConfigError(f"config.lessons.least is {cfg.least:g}; it must be above 0, at most 1")


def check_measured(cfg: LessonsConfig, every: int) -> None:
    """Raises ConfigError for lessons that listen where nothing is measured.

    every: steps between measurements; 0: there is none.
    """
    if cfg.by != "schedule" and not every:
        raise ConfigError(
            f"config.lessons.by is {cfg.by}, and config.eval.every is 0: nothing is measured; "
            "give config.eval.every steps and config.eval.data a folder, or choose schedule"
        )


def check_last_lesson(cfg: LessonsConfig, lessons: int, every: int, steps: int) -> None:
    """Raises ConfigError for gates that open too late for the last lesson ever to begin.

    lessons: of the curriculum. every: steps between measurements. steps: of the run.
    """
    least = max(1, -(-cfg.floor // every)) * every  # a gate opens where it is measured
    least = min(least, cfg.ceiling or least)
    if cfg.by == "gated" and least * (lessons - 1) >= steps:
        raise ConfigError(
            f"config.lessons: {lessons} lessons of at least {least} steps (floor, ceiling, "
            f"eval.every) and a run of {steps}: the last is never reached"
        )

"""Which lesson of a curriculum is in force: by step, by what was measured, or with measured rates.

One object for SFT and RL. A stretch is what an order of records is made of: a lesson and, where
these are measured, the rates of its tasks. The gate's state is part of the data position.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from masksearch_jax.core.curriculum_config import (
    LessonsConfig,
    check_last_lesson,
    check_measured,
)
from masksearch_jax.core.errors import ConfigError

QUESTIONS = "questions"  # the kind of questions; of masked paragraphs it is k1, k2, …
_MASKS = re.compile(r"ramp_(?:sft_)?(k\d+)")


def kind_of_task(task: str) -> str:
    """k1, k2, … of a task of masked paragraphs by its number of masks, else `questions`."""
    found = _MASKS.fullmatch(task)
    return found[1] if found else QUESTIONS


def figure_of(kind: str) -> str:
    """The name of the figure that says how well a kind of held-out example is answered."""
    return "heldout_questions_recall" if kind == QUESTIONS else f"heldout_{kind}_span_recall"


class Stretch(NamedTuple):
    """lesson: its number. rates: of its tasks, where they are not its mixture's own."""

    lesson: int
    rates: Mapping[str, float] | None = None


class Gate:
    """The stretch in force.

    own: of each lesson, its mixture's tasks; tasks: all its tasks and their rates, with those that
    it keeps of earlier lessons; steps: its start. `schedule`: the last lesson whose step has come.
    `gated`: the next lesson where the mean held-out recall of the lesson's own kinds reaches
    `threshold`, `floor` steps after its start at the earliest, and `ceiling` steps after it at the
    latest. `adaptive`: lessons by step, and after each measurement a new stretch in which a task's
    rate is its own times max(least, 4·p·(1 - p)), p the held-out recall of its kind: most where
    about half is right.
    """

    def __init__(
        self,
        cfg: LessonsConfig,
        own: Sequence[Iterable[str]],
        tasks: Sequence[Mapping[str, float]],
        steps: Sequence[int],
    ):
        self._cfg, self._tasks, self._steps = cfg, tasks, steps
        self._kinds = [sorted(set(map(kind_of_task, names))) for names in own]
        self.stretches = [Stretch(number) for number in range(len(tasks))]
        self._at, self._since = 0, 0  # the stretch in force, the step that its lesson began at

    def check_kinds(self, measured: Sequence[str], every: int, steps: int) -> None:
        """Raises ConfigError for a gate that can never pass. measured: kinds of held-out examples.

        every: steps between measurements. steps: of the run.
        """
        cfg = self._cfg
        if cfg.by == "schedule":
            return
        check_measured(cfg, every)
        for number, kinds in enumerate(self._kinds):
            if unknown := [kind for kind in kinds if kind not in measured]:
                raise ConfigError(
                    f"config.lessons.by is {cfg.by}, and lesson {number} has {', '.join(unknown)}, "
                    f"of which config.eval.data has no held-out example; it has "
                    f"{', '.join(measured)}"
                )
        if cfg.by == "gated" and len(self._tasks) == 1:
            raise ConfigError(
                "config.lessons.by is gated, and the curriculum has one lesson: there is none that "
                "a gate could open; name another, as in '0:FIRST,1:NEXT', or choose schedule"
            )
        check_last_lesson(cfg, len(self._tasks), every, steps)

    def enter(self, step: int) -> int:
        """The stretch in force for the batch after `step` batches."""
        lesson = self.stretches[self._at].lesson
        if self._cfg.by == "gated":
            if self._cfg.ceiling and step - self._since >= self._cfg.ceiling:
                self._go_on(step)
            return self._at
        due = max(i for i, start in enumerate(self._steps) if start <= step)
        if due != lesson:
            self._at, self._since = due, step
        return self._at

    def listen(self, step: int, figures: Mapping[str, float]) -> dict[str, float]:
        """Takes up what was measured after `step` batches; figures of the step.

        `lesson`, the number of the one in force; `lesson_steps` done in it; and `gate`, the mean
        held-out recall of the lesson's own kinds, where a gate or measured rates read it.
        """
        found = self._figures(step)
        lesson = self.stretches[self._at].lesson
        by_kind = {kind: figures.get(figure_of(kind)) for kind in self._kinds[lesson]}
        known = {kind: value for kind, value in by_kind.items() if value is not None}
        if self._cfg.by == "schedule" or not known:
            return found
        value = sum(known.values()) / len(known)
        if self._cfg.by == "adaptive":
            self._adapt(lesson, figures)
        elif value >= self._cfg.threshold and step - self._since >= self._cfg.floor:
            self._go_on(step)
        return found | {"gate": value}

    def _go_on(self, step: int) -> None:
        if self._at + 1 < len(self._tasks):
            self._at, self._since = self._at + 1, step

    def _adapt(self, lesson: int, figures: Mapping[str, float]) -> None:
        def weight(task: str) -> float:
            p = figures.get(figure_of(kind_of_task(task)), 0.5)
            return max(self._cfg.least, 4 * p * (1 - p))

        rates = {task: rate * weight(task) for task, rate in self._tasks[lesson].items()}
        self.stretches.append(Stretch(lesson, rates))
        self._at = len(self.stretches) - 1

    def _figures(self, step: int) -> dict[str, float]:
        lesson = self.stretches[self._at].lesson
        return {"lesson": float(lesson), "lesson_steps": float(step - self._since)}

    def state(self) -> dict[str, Any]:
        """JSON-ready; empty of a schedule, which the step alone decides."""
        if self._cfg.by == "schedule":
            return {}
        own = [list(stretch) for stretch in self.stretches[len(self._tasks) :]]
        return {"at": self._at, "since": self._since, "own": own}

    def restore(self, state: Mapping[str, Any], step: int) -> None:
        del self.stretches[len(self._tasks) :]
        if not state:
            self._at = max(i for i, start in enumerate(self._steps) if start <= max(step - 1, 0))
            self._since = self._steps[self._at]
            return
        self.stretches += [Stretch(lesson, rates) for lesson, rates in state["own"]]
        self._at, self._since = state["at"], state["since"]

"""Alarms: figures beyond a threshold for several steps, and what a run does then."""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Mapping
from typing import Any, NamedTuple, NoReturn

import jax

from masksearch_jax.core import files
from masksearch_jax.core.errors import ConfigError, Restart, UserError
from masksearch_jax.core.types import JsonObject
from masksearch_jax.core.watch_config import AlarmsConfig
from masksearch_jax.parallel import hosts
from masksearch_jax.runtime import storage
from masksearch_jax.training.checkpoint import Checkpointer

ROLLBACKS = "rollbacks.json"  # in the run's folder: a list, one for each

# Alarm, which is a key of the config → the figure, and whether it rings above or below.
FIGURES = {
    "answer_length": ("answer_length", "above"),
    "answers": ("answers_opened", "above"),
    "enumeration": ("enumeration", "above"),
    "tags": ("tags_per_turn", "above"),
    "copied": ("copied", "above"),
    "entropy": ("entropy", "below"),
    "repetition": ("repeating", "above"),
    "invalid": ("malformed_turn", "above"),
    "searches": ("searches", "below"),
    "thoughts": ("thoughts", "below"),
    "sampler_gap": ("sampler_gap", "above"),
    "grad_norm": ("grad_norm", "above"),
    "diversity": ("distinct_answers", "below"),
}
PLATEAU = "plateau"
_OF_UPDATES = ("grad_norm", PLATEAU)  # alarms whose figures a run has that samples nothing
# Those whose figures only a step with an update has; the others are there from the first step on.
_FROM_UPDATES = ("entropy", "sampler_gap", "grad_norm")
_MEASURED = "heldout_span_recall"


class AlarmError(UserError):
    """Training has gone wrong by the run's own thresholds; the message names figure and steps."""


class Ringing(NamedTuple):
    """An alarm that rings: since which step its figure is beyond the threshold."""

    name: str
    since: int
    sentence: str


class Alarms:
    """Counts the steps in a row that each figure is beyond its threshold.

    samples: whether the run samples trajectories to train on. measures: whether it measures
    held-out examples. `state` belongs into the checkpoint. Raises ConfigError for settings that
    cannot work, and from `ring` for a threshold that a figure is beyond as it is first known, by
    the weights that training began with: no training led there.
    """

    def __init__(self, cfg: AlarmsConfig, samples: bool, measures: bool):
        self._cfg = cfg
        self._since: dict[str, int] = {}
        self._best, self._worse = -math.inf, 0
        self._told: set[str] = set()
        check_alarms(cfg, samples, measures)

    @property
    def is_on(self) -> bool:
        """Whether a figure of single steps has a threshold; the plateau is of measurements."""
        return any(getattr(self._cfg, name) for name in FIGURES)

    def state(self) -> JsonObject:
        best = self._best if math.isfinite(self._best) else None
        return {"since": dict(self._since), "best": best, "worse": self._worse}

    def restore(self, state: JsonObject) -> None:
        self._since, self._worse = dict(state["since"]), state["worse"]
        self._best = -math.inf if state["best"] is None else state["best"]

    def ring(
        self, step: int, figures: Mapping[str, float], is_trained: bool = True
    ) -> list[Ringing]:
        """The alarms that ring after this step; a figure that is not there changes nothing.

        is_trained: whether the weights had an update before the step.
        """
        found = []
        for name, (figure, side) in FIGURES.items():
            limit, value = getattr(self._cfg, name), figures.get(figure)
            if not limit or value is None:
                continue
            if not (value > limit if side == "above" else value < limit):
                self._since.pop(name, None)
                continue
            since = self._since.setdefault(name, step)
            said = f"{figure} is {value:.4g}, {side} config.alarms.{name}, {limit:g}"
            if not is_trained and (step == 1 or name in _FROM_UPDATES):
                raise ConfigError(
                    f"{said}, in step {step}, and no update came before it: no training led there; "
                    "choose another threshold for this model and data"
                )
            if step - since + 1 >= self._cfg.steps:
                found.append(Ringing(name, since, f"{said}, since step {since}"))
        return found + self._plateau(step, figures)

    def _plateau(self, step: int, figures: Mapping[str, float]) -> list[Ringing]:
        value = figures.get(_MEASURED)
        if not self._cfg.plateau or value is None:
            return []
        if value > self._best:
            self._best, self._worse = value, 0
            self._since.pop(PLATEAU, None)
            return []
        since = self._since.setdefault(PLATEAU, step)
        self._worse += 1
        if self._worse < self._cfg.plateau:
            return []
        said = (
            f"{_MEASURED} is {value:.4g}, and in {self._worse} measurements was never above "
            f"{self._best:.4g} (config.alarms.plateau)"
        )
        return [Ringing(PLATEAU, since, f"{said}, since step {since}")]

    def tell(self, ringing: list[Ringing]) -> None:
        """A line on stderr for each alarm that did not ring before, from the first process."""
        names = {one.name for one in ringing}
        for one in ringing:
            if one.name not in self._told and jax.process_index() == 0:
                print(f"  alarm: {one.name}: {one.sentence}", file=sys.stderr, flush=True)
        self._told = names

    def act(self, step: int, ringing: list[Ringing], rollbacks: int) -> int | None:
        """The last step with good weights where the config says rollback, else None; 0: the start.

        A step samples by the weights of the step before, so that these gave its figures. Held-out
        examples are measured by its own. Raises AlarmError where the config says stop, and after as
        many `rollbacks` as it allows.
        """
        if not ringing or self._cfg.action == "warn":
            return None
        why = "; ".join(one.sentence for one in ringing)
        if self._cfg.action == "stop":
            raise AlarmError(f"step {step}: {why} (config.alarms.action=stop)")
        if rollbacks >= self._cfg.rollbacks:
            raise AlarmError(
                f"step {step}: {why}, after {rollbacks} rollbacks, as many as "
                "config.alarms.rollbacks allows"
            )
        return max(0, min(one.since - 2 + (one.name == PLATEAU) for one in ringing))


def check_alarms(cfg: AlarmsConfig, samples: bool, measures: bool) -> None:
    """Raises ConfigError for settings that cannot work; `samples`, `measures` as of `Alarms`."""
    limits = {name: getattr(cfg, name) for name in (*FIGURES, PLATEAU)}
    for name, limit in limits.items():
        if limit < 0:
            raise ConfigError(
                f"config.alarms.{name} is {limit:g}; it must be above 0, or 0 for off"
            )
        if limit and not samples and name not in _OF_UPDATES:
            raise ConfigError(
                f"config.alarms.{name} is {limit:g}, and SFT samples nothing that has its figure, "
                f"{FIGURES[name][0]}; choices: {', '.join(_OF_UPDATES)}"
            )
    if cfg.steps < 1 or cfg.rollbacks < 0 or not 0 < cfg.rollback_lr <= 1:
        raise ConfigError(
            f"config.alarms: steps {cfg.steps} must be at least 1, rollbacks {cfg.rollbacks} at "
            f"least 0, rollback_lr {cfg.rollback_lr:g} above 0 and at most 1"
        )
    if cfg.action == "rollback" and not samples:
        raise ConfigError(
            "config.alarms.action is rollback, which only DAPO has: it samples anew with another "
            "seed; choose warn or stop, and survival.guard=skip for bad updates"
        )
    if cfg.plateau and not measures:
        raise ConfigError(
            f"config.alarms.plateau is {cfg.plateau}, and config.eval.every is 0: nothing is "
            "measured that could stay where it is"
        )


def read_rollbacks(folder: str | os.PathLike[str]) -> list[JsonObject]:
    """The rollbacks that a run has had, as the first process reads them; all must call it."""
    path = storage.path(folder) / ROLLBACKS
    text = path.read_text() if jax.process_index() == 0 and path.exists() else "[]"
    found: list[Any] = json.loads(hosts.gather_texts(text)[0])
    return found


class RolledBack(Restart):
    """A run that went back to an earlier checkpoint; the same command goes on from there."""


def roll_back(
    folder: str | os.PathLike[str], checkpointer: Checkpointer, step: int, good: int, why: str
) -> NoReturn:
    """Drops the checkpoints after step `good`, remembers it, and raises RolledBack.

    The start of the run is one that is always there where good is 0 or nothing was saved yet.
    Raises AlarmError where no checkpoint up to that step is left. All processes must call it.
    """
    left = checkpointer.drop_after(good)
    if left is None:
        raise AlarmError(
            f"step {step}: {why}; no checkpoint up to step {good} is left to go back to: lower "
            "config.checkpoint.every, or raise config.checkpoint.keep"
        )
    add_rollback(folder, {"from": step, "to": left, "why": why})
    raise RolledBack(f"step {step}: {why}; the run goes on from step {left}")


def add_rollback(folder: str | os.PathLike[str], row: JsonObject) -> None:
    """Remembers a rollback, from the first process; all must call it."""
    rows = [*read_rollbacks(folder), row]
    if jax.process_index() == 0:
        files.write_json(os.fspath(storage.path(folder) / ROLLBACKS), rows)

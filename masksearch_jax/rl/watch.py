"""What looks after each step of a run: held-out examples, the curriculum's gate, alarms."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from numbers import Real
from typing import Any

from masksearch_jax.core.config import DapoRun, TrainRun
from masksearch_jax.core.curriculum_config import check_lessons, check_measured
from masksearch_jax.core.errors import ConfigError, check_given, nearest
from masksearch_jax.core.schema import later_seed
from masksearch_jax.core.tokenizer import Vocab
from masksearch_jax.core.tools import Toolbox
from masksearch_jax.core.types import JsonObject
from masksearch_jax.core.watch_config import AlarmsConfig
from masksearch_jax.data.gate import QUESTIONS, Gate
from masksearch_jax.rl.heldout import Heldout
from masksearch_jax.rollout.model import Policy
from masksearch_jax.training.alarms import Alarms, Ringing, check_alarms
from masksearch_jax.training.supervisor import Preempted, Survival


class Watch:
    """`look` after each step, then `act`. A context manager; `state` belongs into the checkpoint.

    tools: opens those that held-out examples are asked with. rollbacks: that the run has
    had; None: it can have none. Raises ConfigError for settings that cannot work.
    """

    def __init__(
        self,
        cfg: TrainRun,
        steps: int,
        gate: Gate,
        vocab: Vocab,
        tools: Callable[[], Toolbox],
        survival: Survival,
        rollbacks: int | None = None,
    ):
        self._cfg, self._steps, self._gate, self._survival = cfg, steps, gate, survival
        self._rollbacks = rollbacks
        check_watched(cfg, rollbacks is not None)
        self._alarms = Alarms(cfg.alarms, rollbacks is not None, cfg.eval.every > 0)
        self._ringing: list[Ringing] = []
        self._owed: dict[str, float] | None = None
        self._compiled = False  # the programs of held-out measurements
        self._stack = contextlib.ExitStack()
        self._heldout: Heldout | None = None
        if cfg.eval.every:
            self._heldout = Heldout(
                cfg.eval,
                vocab,
                cfg.prompt.style,
                tools(),
                cfg.search,
                cfg.rollout,
                survival.raise_if_stopped,
                cfg.survival.tool_failures,
            )
            self._stack.enter_context(self._heldout)
        kinds = self._heldout.kinds() if self._heldout else []
        gate.check_kinds(kinds, cfg.eval.every, steps)
        check_rings(cfg.alarms, cfg.rollout.max_repeats, kinds)

    def __enter__(self) -> Watch:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def state(self) -> JsonObject:
        return self._alarms.state() | {"owed": self._owed}

    def restore(self, state: JsonObject) -> None:
        self._alarms.restore(state)
        self._owed = state["owed"]

    @property
    def is_behind(self) -> bool:
        """Whether a stop cut off the look at the last step: the run that goes on looks again."""
        return self._owed is not None

    def owed(self) -> dict[str, Any]:
        """The figures of that step."""
        return dict(self._owed or {})

    def is_due(self, step: int) -> bool:
        """Whether the figures of this step are wanted, however seldom the run logs its own.

        Of the first step where an alarm could ring: a threshold that it is beyond is refused.
        """
        return self._is_measured(step) or (step == 1 and self._alarms.is_on)

    def _is_measured(self, step: int) -> bool:
        """Whether held-out examples are measured after this step."""
        return self._heldout is not None and self._heldout.is_due(step, self._steps)

    def look(
        self, step: int, model: Policy, figures: Mapping[str, float], is_trained: bool
    ) -> dict[str, Any]:
        """Further figures of the step; all processes must call it.

        is_trained: whether the weights had an update before the step.

        `heldout_…` where they are due; `lesson` and the gate's value, as they were in the step;
        `alarms`, the names of those that ring, where any does. Nothing where the run is told to
        stop within a measurement: then it `owes` all of that.
        """
        found: dict[str, Any] = {}
        self._owed, self._ringing = None, []
        if self._heldout and self._is_measured(step):
            try:
                with self._first_patient(), self._survival.phase("sample"):
                    found |= self._heldout.measure(model)
            except Preempted:
                self._owed = dict(figures)
                return {}
        found |= self._gate.listen(step, found)
        if self._rollbacks:
            found["rollbacks"] = float(self._rollbacks)
        self._ringing = self._alarms.ring(step, {**figures, **found}, is_trained)
        self._alarms.tell(self._ringing)
        names = [one.name for one in self._ringing]
        return found | ({"alarms": names} if names else {})

    @contextlib.contextmanager
    def _first_patient(self) -> Iterator[None]:
        """Time to compile for the first measurement, whose programs no step before it has run."""
        with contextlib.nullcontext() if self._compiled else self._survival.patient():
            yield
        self._compiled = True

    def shown(self) -> dict[str, str]:
        """For the line of progress: the alarms that ring."""
        return {"alarm": ", ".join(one.name for one in self._ringing)} if self._ringing else {}

    def is_best_told(self, figures: Mapping[str, object]) -> bool:
        """Whether the step itself has the figure that tells the best."""
        return self._cfg.checkpoint.best_metric in figures

    def check_best(self, known: Mapping[str, object], sampled: Collection[str] = ()) -> None:
        """Raises ConfigError where none of the figures of a step tells the best.

        Nothing else is refused before those of an update are known, or, where held-out examples
        tell it, those of a measurement that lost none of them. sampled: the names of those of what
        the step sampled: they are of the weights before its update, which are not those saved.
        """
        best = self._cfg.checkpoint.best_metric
        if best in sampled:
            raise ConfigError(
                f"config.checkpoint.best_metric is {best}, a figure of what a step samples by the "
                "weights before its update, which are not those that it saves; choose heldout_… "
                "(config.eval.every measures it) or a figure of the update, such as loss"
            )
        whole = known.get("heldout_lost") == 0 if best.startswith("heldout_") else "loss" in known
        if not whole:
            return
        numbers = {name for name, value in known.items() if isinstance(value, Real)} - {*sampled}
        if best and best not in numbers:
            raise ConfigError(
                f"config.checkpoint.best_metric is {best!r}, which this run does not measure; "
                + nearest(best, numbers)
            )

    def why(self) -> str:
        """What rings, in a sentence."""
        return "; ".join(one.sentence for one in self._ringing)

    def act(self, step: int) -> int | None:
        """The last step before the alarms, to go back to; None: go on. Raises AlarmError."""
        return self._alarms.act(step, self._ringing, self._rollbacks or 0)


def check_watched(cfg: TrainRun, samples: bool) -> None:
    """Raises ConfigError for settings that cannot work, whatever is measured.

    samples: whether the run samples trajectories to train on.
    """
    every, best = cfg.eval.every, cfg.checkpoint.best_metric
    if every < 0:
        raise ConfigError(f"config.eval.every is {every}; it must not be below 0")
    if every:
        check_given(cfg.eval, "config.eval", data="the folder that build_ramp wrote")
    if best.startswith("heldout_") and (not every or cfg.checkpoint.every % every):
        raise ConfigError(
            f"config.checkpoint.best_metric is {best}, of which a checkpoint must have its own "
            f"value: config.checkpoint.every, {cfg.checkpoint.every}, must be a multiple of "
            f"config.eval.every, which is {every}"
        )
    check_lessons(cfg.lessons)
    check_measured(cfg.lessons, every)
    check_alarms(cfg.alarms, samples, every > 0)


def check_rings(alarms: AlarmsConfig, max_repeats: int, kinds: Sequence[str]) -> None:
    """Raises ConfigError for an alarm whose figure never moves. kinds: of held-out examples."""
    if alarms.repetition and not max_repeats:
        raise ConfigError(
            f"config.alarms.repetition is {alarms.repetition:g}, and config.rollout.max_repeats is "
            "0: no trajectory is cut for repeating itself, and the alarm can never ring"
        )
    if alarms.plateau and not set(kinds) - {QUESTIONS}:
        raise ConfigError(
            f"config.alarms.plateau is {alarms.plateau}, and config.eval.data has no held-out "
            "masked paragraph: heldout_span_recall is not measured, and the alarm can never ring"
        )


def after_rollbacks(cfg: DapoRun, rollbacks: int) -> DapoRun:
    """The config with the learning rate and the seed of sampling that so many rollbacks leave."""
    if not rollbacks:
        return cfg
    rate = cfg.optim.learning_rate * cfg.alarms.rollback_lr**rollbacks
    return dataclasses.replace(
        cfg,
        optim=dataclasses.replace(cfg.optim, learning_rate=rate),
        rollout=dataclasses.replace(cfg.rollout, seed=later_seed(cfg.rollout.seed, rollbacks)),
    )

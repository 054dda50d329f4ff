"""TensorBoard, Weights & Biases and loggers of users, each imported where a run asks for it."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import secrets
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

from etils import epath

from masksearch_jax.core import bucket
from masksearch_jax.core.errors import ConfigError, nearest
from masksearch_jax.core.files import is_bucket
from masksearch_jax.core.types import JsonObject
from masksearch_jax.core.user_code import check_call, import_function
from masksearch_jax.core.watch_config import LOGS, LogConfig

KEY = "config.log.to"
TENSORBOARD = "tensorboard"  # the folder of its files, in that of the run
WANDB = "wandb"  # the same
_NEEDS = {"tensorboard": ("clu", "tensorflow", "tensorboard"), "wandb": ("wandb",)}
_NOT_FIGURES = ("step", "wall_time")


class Service(Protocol):
    """What takes the rows of a run as metrics.jsonl has them."""

    def write(self, row: JsonObject) -> None: ...

    def close(self) -> None: ...


def check_log(log: LogConfig) -> None:
    """Raises ConfigError for a service that is unknown, or is no logger."""
    for name in log.to:
        if ":" in name:
            _own_class(name)
        elif name not in LOGS:
            choices = f"{', '.join(LOGS)} or package.module:Class"
            raise ConfigError(f"{KEY} has {name!r}, not {choices}; {nearest(name, LOGS)}")
    if "jsonl" not in log.to:
        raise ConfigError(
            f"{KEY} is {', '.join(log.to) or 'empty'}; it must have jsonl, which a resumed "
            "run makes the others anew from"
        )


def check_installed(log: LogConfig) -> None:
    """Raises ConfigError for a service whose package this machine lacks."""
    for name in log.to:
        lacking = [x for x in _NEEDS.get(name, ()) if importlib.util.find_spec(x) is None]
        if lacking:
            raise ConfigError(
                f"{KEY} has {name!r}, which needs {', '.join(lacking)}: "
                f"pip install 'masksearch_jax[{name}]'"
            )


def open_services(log: LogConfig, folder: epath.Path, rows: Sequence[JsonObject]) -> list[Service]:
    """The services that `log.to` names besides jsonl; rows: those that a resumed run has.

    Raises ConfigError for a user's logger that cannot be made, and where Weights & Biases lacks a
    setting.
    """
    found: list[Service] = []
    if "tensorboard" in log.to:
        found.append(_TensorBoard(folder / TENSORBOARD, rows))
    if "wandb" in log.to:
        found.append(_Wandb(folder, log.project))
    found.extend(_Own(name, folder, rows) for name in log.to if ":" in name)
    return found


class _TensorBoard:
    """Event files, made anew from the rows of a resumed run: no step is in them twice.

    Rows that a bucket does not take are told, and end no run.
    """

    def __init__(self, folder: epath.Path, rows: Sequence[JsonObject]):
        import tensorflow as tf
        from clu import metric_writers

        tf.config.set_visible_devices([], "GPU")  # which are the trainer's
        if folder.exists():
            for old in folder.glob("events.out.tfevents.*"):
                old.unlink()
        self._folder = folder
        self._writer = metric_writers.SummaryWriter(os.fspath(folder))
        for row in rows:
            self.write(row)

    def write(self, row: JsonObject) -> None:
        with self._told(f"step {row['step']}"):
            self._writer.write_scalars(row["step"], _figures(row))
            self._writer.flush()

    def close(self) -> None:
        with self._told("the last step"):
            self._writer.close()

    @contextlib.contextmanager
    def _told(self, what: str) -> Iterator[None]:
        try:
            with bucket.asking(self._folder):
                yield
        except bucket.StorageError as error:
            print(f"  warning: TensorBoard lacks {what}: {error}", file=sys.stderr)


class _Steady:
    """A service whose errors end no run: they are told, and metrics.jsonl has the rows.

    Of rows that are not taken one after another the first is told, and at the end their number.
    """

    def __init__(self, said: str):
        self._said, self._lost = said, 0

    def write(self, row: JsonObject) -> None:
        try:
            self._take(row)
        except Exception as error:
            if not self._lost:
                self._warn(f"did not take step {row['step']}", error)
            self._lost += 1
        else:
            if self._lost > 1:
                self._warn(f"did not take {self._lost} steps; it takes step {row['step']}")
            self._lost = 0

    def close(self) -> None:
        if self._lost > 1:
            self._warn(f"did not take the last {self._lost} steps")
        try:
            self._end()
        except Exception as error:
            self._warn("did not close", error)

    def _take(self, row: JsonObject) -> None:
        raise NotImplementedError

    def _end(self) -> None:
        raise NotImplementedError

    def _warn(self, what: str, error: Exception | None = None) -> None:
        why = f": {type(error).__name__}: {' '.join(str(error).split())}" if error else ""
        print(f"  warning: {self._said} {what}{why}", file=sys.stderr)


class _Wandb(_Steady):
    """A run of Weights & Biases, the same one after a resume. Steps done again are there again.

    Where it cannot be begun, as in an outage, there is none of this start, which is told. Raises
    ConfigError for a setting that no try would mend, such as an API key that nobody gave.
    """

    def __init__(self, folder: epath.Path, project: str):
        import wandb

        super().__init__("Weights & Biases")
        name = folder / WANDB / "run_id"
        if not name.exists():
            name.parent.mkdir(parents=True, exist_ok=True)
            name.write_text(secrets.token_hex(4))
        self._run: Any = None
        try:
            self._run = wandb.init(
                project=project,
                id=name.read_text(),
                name=folder.name,
                resume="allow",
                dir=None if is_bucket(folder) else os.fspath(folder),
                settings=wandb.Settings(console="off", quiet=True),
            )
            self._run.define_metric("*", step_metric="step")
        except wandb.errors.UsageError as error:
            raise ConfigError(
                f"{KEY} has 'wandb', which does not start: {error} Or set WANDB_MODE=offline, by "
                "which the rows stay in the run's folder"
            ) from error
        except Exception as error:
            self._warn("lacks the steps of this start", error)

    def _take(self, row: JsonObject) -> None:
        if self._run is not None:
            self._run.log({"step": row["step"]} | _figures(row))

    def _end(self) -> None:
        if self._run is not None:
            self._run.finish()


class _Own(_Steady):
    """A user's logger."""

    def __init__(self, name: str, folder: epath.Path, rows: Sequence[JsonObject]):
        super().__init__(f"the logger {name!r} of {KEY}")
        try:
            self._logger = _own_class(name)(folder, [dict(row) for row in rows])
        except Exception as error:
            raise ConfigError(
                f"{self._said} cannot be made: {type(error).__name__}: {error}"
            ) from error

    def _take(self, row: JsonObject) -> None:
        self._logger.write(dict(row))

    def _end(self) -> None:
        self._logger.close()


def _own_class(name: str) -> Callable[..., Any]:
    """The class of a user's logger. Raises ConfigError."""
    found, said = import_function(name, KEY, ("folder", "rows"), "class"), f"{KEY} has {name!r}"
    for method, arguments in (("write", ("self", "row")), ("close", ("self",))):
        function = getattr(found, method, None)
        if not callable(function):
            raise ConfigError(f"{said}, which has no method {method}({', '.join(arguments[1:])})")
        check_call(function, method, arguments, said)
    return found


def _figures(row: JsonObject) -> dict[str, float]:
    """What of a row is a number."""
    return {
        name: float(value)
        for name, value in row.items()
        if isinstance(value, int | float) and name not in _NOT_FIGURES
    }

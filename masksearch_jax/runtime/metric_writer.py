"""A run's curves: one JSON line per step, cut back on resume to the restored step.

TensorBoard, Weights & Biases and a user's loggers get the same, where `config.log.to` names them.
"""

from __future__ import annotations

import errno
import json
import math
import os
import sys
import time
from collections.abc import Mapping
from typing import Any

import jax
from etils import epath

from masksearch_jax.core import files
from masksearch_jax.core.bucket import StorageError
from masksearch_jax.core.types import JsonObject
from masksearch_jax.core.watch_config import LogConfig
from masksearch_jax.runtime import metric_services, storage

FILE_NAME = "metrics.jsonl"
_JSONL_ALONE = LogConfig()


class MetricWriter:
    """Appends `{"step": …, "wall_time": …, name: value, …}` lines to FOLDER/metrics.jsonl.

    From process 0 only. A step is the number of updates done, as a checkpoint's; `wall_time` is in
    seconds since 1970. `resume_step` is the restored one: lines after it, and a line cut short by a
    kill, are dropped. 0, nothing restored: start afresh. Lines that a full disk or a bucket does
    not take are kept and written with a later one, or at the end. A context manager, which ends
    what `log.to` names besides. Raises ConfigError for a service that is unknown or not installed,
    or is no logger.
    """

    def __init__(
        self, folder: str | os.PathLike, resume_step: int = 0, log: LogConfig = _JSONL_ALONE
    ):
        self.path = storage.path(folder) / FILE_NAME
        self._writes = jax.process_index() == 0
        self._kept = ""
        metric_services.check_log(log)
        metric_services.check_installed(log)
        self._services: list[metric_services.Service] = []
        if self._writes:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            rows = _truncate(self.path, resume_step)
            self._services = metric_services.open_services(log, self.path.parent, rows)

    def write(self, step: int, metrics: Mapping[str, Any]) -> None:
        """One whole line, flushed. Values become Python numbers; a non-finite one becomes null."""
        if not self._writes:
            return
        row = {"step": int(step), "wall_time": round(time.time(), 3)}
        row |= {name: _plain(x) for name, x in metrics.items()}
        for service in self._services:
            service.write(row)
        self._kept += json.dumps(row, allow_nan=False) + "\n"
        self._append(f"step {step}")

    def _append(self, what: str) -> None:
        try:
            storage.append(self.path, self._kept)
        except StorageError as error:
            print(f"  warning: {what} is not written yet: {error}", file=sys.stderr)
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
            print(f"  warning: no room on the disk for {what} in {self.path}", file=sys.stderr)
        else:
            self._kept = ""

    def __enter__(self) -> MetricWriter:
        return self

    def __exit__(self, *_: object) -> None:
        if self._kept:
            self._append("the last step")
        for service in self._services:
            service.close()


def read_metrics(folder: str | os.PathLike) -> list[JsonObject]:
    """The rows of a run in file order; an unfinished last line is left out. No file: no rows."""
    path = storage.path(folder) / FILE_NAME
    if not path.exists():
        return []
    lines = path.read_text().split("\n")
    return [json.loads(line) for line in lines[:-1] if line]


def _truncate(path: epath.Path, step: int) -> list[JsonObject]:
    """Cuts the file to the rows up to a step, and returns these."""
    kept = [row for row in read_metrics(path.parent) if row["step"] <= step and step > 0]
    files.write_lines(path, map(json.dumps, kept))
    return kept


def _plain(value: Any) -> Any:
    if isinstance(value, str | bool | list | None):
        return value
    number = value.item() if hasattr(value, "item") else value
    return None if isinstance(number, float) and not math.isfinite(number) else number

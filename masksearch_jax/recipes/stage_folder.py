"""A run's folder of stages: each is done once, and what the run has cost so far.

The folder belongs to one configuration. A stage's record is written last, so that a stage which was
stopped runs again; stages keep their own work (checkpoints, parts) to go on from.
"""

from __future__ import annotations

import contextlib
import json
import sys
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import psutil

from masksearch_jax.core import files, stamp
from masksearch_jax.parallel.folder_lock import FolderLock
from masksearch_jax.runtime import run_record

REPORT = "report"  # the stage that a run ends with


class Usage:
    """Wall time and peak memory of a run, its sessions and child processes, kept in usage.json."""

    def __init__(self, folder: Path, every: float = 0.5):
        self._path, self._every = folder / "usage.json", every
        before = json.loads(self._path.read_text()) if self._path.exists() else {}
        self._seconds = before.get("wall_seconds", 0.0)
        self._peak = before.get("peak_memory_bytes", 0)
        self._process = psutil.Process()
        # Not the process's own start: a script that sets up first may have become this process.
        self._began = time.time()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Usage:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        with contextlib.suppress(OSError):  # a full disk is for whoever filled it to report
            self.save()

    def figures(self) -> dict[str, float]:
        return {
            "wall_seconds": self._seconds + time.time() - self._began,
            "peak_memory_bytes": self._peak,
        }

    def save(self) -> None:
        files.write_json(self._path, self.figures())

    def _watch(self) -> None:
        saved = time.monotonic()
        stopped = False
        while not stopped:
            stopped = self._stop.wait(self._every)
            self._peak = max(self._peak, self._memory())
            if time.monotonic() - saved > 5:
                saved = time.monotonic()
                with contextlib.suppress(OSError):
                    self.save()

    def _memory(self) -> int:
        """Resident bytes of this process and its children; a page that two share counts twice."""
        total = 0
        for process in [self._process, *self._process.children(recursive=True)]:
            try:
                total += process.memory_info().rss
            except psutil.Error:  # it has just ended
                continue
        return total


class StageFolder:
    """FOLDER/stages/NAME.json: the records of the stages that are done.

    `names`: all stages in order, to say which one of how many runs. `is_shared`: several processes
    make stages in it at once, and one waits for the stage that another is making in FOLDER/NAME.
    """

    def __init__(self, folder: Path, names: Iterable[str] = (), is_shared: bool = False):
        self.folder, self._is_shared = folder, is_shared
        self._places = {n: i for i, n in enumerate(names, 1)}
        self.records: dict[str, dict[str, Any]] = {}

    def open(self, cfg: Any) -> FolderLock:
        """Makes the folder this config's own, and until the end of a block this process's.

        A stage that is done is not done again where changed settings are accepted. Raises
        BeingWrittenError as `FolderLock` and ConfigError as `run_record.resume` does.
        """
        lock = FolderLock(self.folder)
        run_record.resume(self.folder, cfg)
        return lock

    def done(self, name: str) -> dict[str, Any] | None:
        """The record of a stage that is done, by an earlier session too; else None."""
        return stamp.read(self._path(name))

    def is_done(self, name: str) -> bool:
        return self.done(name) is not None

    def withdraw(self, names: Iterable[str]) -> None:
        """Has the stages made again: they show or hold what another stage is about to make."""
        for name in names:
            self._path(name).unlink(missing_ok=True)

    def stage_of_run(
        self,
        name: str,
        work: Callable[[], dict[str, Any] | None],
        after: Iterable[str],
        summarise: Callable[[], None],
    ) -> None:
        """A stage of a run that ends with its report, and the run's summary where it was made.

        after: stages that are made again once it is, of a run that had ended. The report shows the
        summary, which is written before it.
        """
        is_done = self.is_done(name)
        if not is_done:
            self.withdraw(after)
            if name == REPORT:
                summarise()
        self.stage(name, work)
        if not is_done and name != REPORT:
            summarise()

    def _path(self, name: str) -> Path:
        return self.folder / "stages" / f"{name}.json"

    def stage(self, name: str, work: Callable[[], dict[str, Any] | None]) -> dict[str, Any]:
        """The record of a stage: `work`'s result and its seconds, over all sessions; done once."""
        if self._is_shared and not self.is_done(name):
            with FolderLock(self.folder / name, waits=True):
                return self._stage(name, work)
        return self._stage(name, work)

    def _stage(self, name: str, work: Callable[[], dict[str, Any] | None]) -> dict[str, Any]:
        path = self._path(name)
        place = f"[{self._places[name]}/{len(self._places)}] " if name in self._places else ""
        if (done := self.done(name)) is not None:
            self.records[name] = done
            took = f"{self.records[name]['seconds']:.0f} s"
            print(f"{place}{name}: done before, {took}", file=sys.stderr)
            return self.records[name]
        print(f"{place}{name}", file=sys.stderr, flush=True)
        spent = path.with_suffix(".spent")  # seconds of sessions that were stopped in this stage
        before = float(spent.read_text()) if spent.exists() else 0.0
        started = time.monotonic()
        try:
            result = work() or {}
        except BaseException:
            files.write_text(spent, str(before + time.monotonic() - started))
            raise
        self.records[name] = {"seconds": before + time.monotonic() - started} | result
        stamp.write(path, self.records[name])
        spent.unlink(missing_ok=True)
        return self.records[name]

"""Ends a process that no longer makes progress, and says where it hangs.

JAX does not notice a host that is stuck in Python: its heartbeats come from another thread, and all
other hosts wait for it in a collective for ever.
"""

from __future__ import annotations

import collections
import contextlib
import faulthandler
import os
import statistics
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

from etils import epath

from masksearch_jax.core.config import SurvivalConfig
from masksearch_jax.runtime.process import RESTART, process_index, this_process

_PACKAGE = str(Path(__file__).parents[1])
_LOOK_SECONDS = 0.2
_REMEMBERED = 64  # intervals of each kind that the median is taken of


class Watchdog:
    """A thread that expects `beat` in time; else it dumps all stacks and ends the process with 42.

    The stacks of all threads go to stderr and to FOLDER/hang-PROCESS.txt. `alive` is called every
    second or so. Use as a context manager around the loop, from the thread that is to be watched.
    """

    def __init__(
        self, config: SurvivalConfig, folder: epath.Path, alive: Callable[[], None] = lambda: None
    ):
        self._config, self._folder, self._alive = config, folder, alive
        self._intervals: dict[str, collections.deque[float]] = {}
        self._started = False  # the first step is done: programs are compiled
        self._limit = config.startup_seconds
        self._patience = 0  # blocks of `patient` that are entered and not left
        self._last = time.monotonic()
        self._watched = threading.get_ident()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def __enter__(self) -> Watchdog:
        self._last, self._watched = time.monotonic(), threading.get_ident()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def beat(self, kind: str) -> None:
        """Progress: a `step`, or a smaller thing within it. Each kind has a median of its own.

        What takes its time within `patient` is not usual, and in no median.
        """
        now = time.monotonic()
        if self._started and not self._patience:
            remembered: collections.deque[float] = collections.deque(maxlen=_REMEMBERED)
            self._intervals.setdefault(kind, remembered).append(now - self._last)
        self._started |= kind == "step"
        self._last, self._limit = now, self._allowed()

    @contextlib.contextmanager
    def patient(self) -> Iterator[None]:
        """Within there is as much time as to start, also from one beat to the next."""
        self._patience += 1
        self._last, self._limit = time.monotonic(), self._allowed()
        try:
            yield
        finally:
            self._patience -= 1
            self._last, self._limit = time.monotonic(), self._allowed()

    def _allowed(self) -> float:
        return self._config.startup_seconds if self._patience else self._usual()

    def _usual(self) -> float:
        if "step" not in self._intervals:
            return self._config.startup_seconds
        slowest = max(statistics.median(i) for i in self._intervals.values())
        return max(self._config.step_factor * slowest, self._config.step_seconds)

    def _watch(self) -> None:
        told = 0.0
        while not self._stop.wait(_LOOK_SECONDS):
            now = time.monotonic()
            if now - told > 1.0:
                self._alive()
                told = now
            limit, silent = self._limit, now - self._last
            if self._config.startup_seconds and silent > limit:
                self._end(limit, silent)

    def _end(self, limit: float, silent: float) -> None:
        where = stuck_at(self._watched)
        message = (
            f"error: {this_process()}: no progress for {silent:.1f} s (limit {limit:.1f} s): "
            f"stuck in {where}; the stacks of all threads follow"
        )
        with contextlib.suppress(Exception):  # a bucket's files have no descriptor
            name = f"hang-{process_index()}.txt"
            with (self._folder / name).open("w") as file:
                file.write(message + "\n")
                file.flush()
                faulthandler.dump_traceback(file=file, all_threads=True)
        print(message, file=sys.stderr, flush=True)
        with contextlib.suppress(Exception):  # a stderr without a file descriptor
            faulthandler.dump_traceback(file=sys.stderr, all_threads=True)
        os._exit(RESTART)


def stuck_at(thread: int) -> str:
    """`wait (threading.py:607), below find (tool.py:12)`: where a thread is.

    The second is the innermost line that is not of the standard library, if the first is.
    """
    frames = traceback.extract_stack(sys._current_frames()[thread])
    here, library = frames[-1], os.path.dirname(threading.__file__)
    text = f"{here.name} ({here.filename}:{here.lineno})"
    others = [f for f in frames if os.path.dirname(f.filename) != library]
    if others and others[-1] is not here:
        last = others[-1]
        text += f", below {last.name} ({last.filename}:{last.lineno})"
    ours = [f for f in frames if f.filename.startswith(_PACKAGE)]
    if ours and ours[-1] not in (here, *others[-1:]):
        text += f", below {ours[-1].name} ({ours[-1].filename}:{ours[-1].lineno})"
    return text

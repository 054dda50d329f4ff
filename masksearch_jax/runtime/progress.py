"""One line of progress per job: what, how far, time left, and the latest figures.

On a terminal the line is redrawn in place; elsewhere (a log file, CI) one is printed every few
seconds.
"""

from __future__ import annotations

import sys
import threading
import time


def clock(seconds: float) -> str:
    """`75` → `1:15`, `3700` → `1:01:40`."""
    minutes, s = divmod(int(seconds + 0.5), 60)
    hours, m = divmod(minutes, 60)
    return f"{hours}:{m:02d}:{s:02d}" if hours else f"{m}:{s:02d}"


class Clock:
    """A job of which nothing is known but that it goes on: its name, and how long it has taken.

    A line is printed at the start and every `log_seconds`, as long as the block runs.
    """

    def __init__(self, name: str, *, log_seconds: float = 15.0):
        self.name, self.log_seconds = name, log_seconds
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._tell, daemon=True)

    def __enter__(self) -> Clock:
        print(f"  {self.name}", file=sys.stderr, flush=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def _tell(self) -> None:
        started = time.monotonic()
        while not self._ended.wait(self.log_seconds):
            took = clock(time.monotonic() - started)
            print(f"  {self.name}: {took} so far", file=sys.stderr, flush=True)


class Progress:
    """A job of `total` items, `done` of them finished before now (a resumed run).

    `update(done, **figures)` redraws. The time left comes from this process's own pace since its
    first item was done: compiling is over by then.
    """

    def __init__(self, name: str, total: int, done: int = 0, *, log_seconds: float = 15.0):
        self.name, self.total, self.first, self.done = name, max(total, 1), done, done
        self.started = self.drawn = time.monotonic()
        self._paced: tuple[float, int] | None = None  # since when, and what was done then
        self.log_seconds = log_seconds
        self.live = sys.stderr.isatty()
        self.figures: dict[str, float | int | str] = {}

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if self.live:
            sys.stderr.write("\r\x1b[K")
        took = clock(time.monotonic() - self.started)
        end = f"in {took}" if kind is None else f"stopped at {self.done}/{self.total} after {took}"
        print(f"  {self.name}: {end}{self._figures()}", file=sys.stderr, flush=True)

    def update(self, done: int, **figures: float | int | str) -> None:
        self.done = done
        self.figures |= figures
        now = time.monotonic()
        if self._paced is None and done > self.first:
            self._paced = now, done
        if now - self.drawn < (0.2 if self.live else self.log_seconds):
            return
        self.drawn = now
        print(
            f"\r\x1b[K  {self.line()}" if self.live else f"  {self.line()}",
            end="" if self.live else "\n",
            file=sys.stderr,
            flush=True,
        )

    def line(self) -> str:
        """`SFT 120/600 20% left 3:20 loss 0.71`."""
        percent = 100 * self.done // self.total
        return (
            f"{self.name} {self.done}/{self.total} {percent}% left {self._left()}{self._figures()}"
        )

    def _left(self) -> str:
        since, first = self._paced or (0.0, self.done)
        if self.done == first:
            return "?" if self.done < self.total else clock(0)
        return clock((time.monotonic() - since) / (self.done - first) * (self.total - self.done))

    def _figures(self) -> str:
        shown = (
            f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in self.figures.items()
        )
        return "".join(f"  {s}" for s in shown)

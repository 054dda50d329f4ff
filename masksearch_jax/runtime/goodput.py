"""Where a run's time went: buckets that add up to its wall clock, over all its sessions.

A session is one process's life. Exactly one bucket runs at a time, so that they add up; what is
known of a session that was killed is on disk, and the file's time stamp says how long it lived.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Iterator

from etils import epath

from masksearch_jax.core.types import JsonObject
from masksearch_jax.runtime import storage

FILE_NAME = "goodput.jsonl"
PRODUCTIVE = ("sample", "update")
# What a session spends; a run's have besides `lost`: work that had to be done again, and `down`:
# the time between two sessions.
BUCKETS = ("init", "compile", "restore", "data", *PRODUCTIVE, "save")
_LINE_SECONDS = 5.0


class Goodput:
    """Adds up one session's seconds by bucket and writes them to FOLDER/goodput.jsonl.

    A line is {"event": start | step | save | end, "time", "step", "seconds": {bucket: …}}, the
    seconds since the session began; `start` has besides what the session before has lost.
    """

    def __init__(self, folder: str | os.PathLike):
        self.path = storage.path(folder) / FILE_NAME
        self.writes = True  # one process of a run does
        self._began, self._clock = time.time(), time.monotonic()
        self._alive = storage.modified(self.path) if self.path.exists() else 0.0
        self.seconds = dict.fromkeys(BUCKETS, 0.0)
        self._bucket, self._since, self._written = "init", self._clock, 0.0

    def enter(self, bucket: str) -> str:
        """From now on time goes to `bucket`; returns the one that it went to."""
        now = time.monotonic()
        self.seconds[self._bucket] += now - self._since
        before, self._bucket, self._since = self._bucket, bucket, now
        return before

    @contextlib.contextmanager
    def phase(self, bucket: str) -> Iterator[None]:
        """Time within goes to `bucket`, then to the one that it went to before."""
        before = self.enter(bucket)
        try:
            yield
        finally:
            self.enter(before)

    def move(self, seconds: float, bucket: str) -> None:
        """The last `seconds`, at most those of the present phase, were `bucket`'s."""
        seconds = min(seconds, time.monotonic() - self._since)
        self._since += seconds
        self.seconds[bucket] += seconds

    def start(self, step: int) -> None:
        """The session goes on from `step`: what the one before did after it is lost."""
        lost = _lost(read(self.path.parent), step, self._alive)
        down = max(self._began - self._alive, 0.0) if self._alive else 0.0
        self._line("start", step, {"began": self._began, "down": down, "lost": lost})

    def step(self, step: int) -> None:
        """`step` steps are done; a line of it now and then is enough."""
        if time.monotonic() - self._written > _LINE_SECONDS:
            self._line("step", step)

    def save(self, step: int) -> None:
        """The state after `step` steps is on its way to disk."""
        self._line("save", step)

    def end(self, step: int) -> None:
        """The session is over; nothing where it was never begun."""
        if self._written:
            self._line("end", step)

    def touch(self) -> None:
        """Notes on disk that the session lives."""
        if self.writes and self._written:
            with contextlib.suppress(OSError):
                os.utime(self.path)

    def _line(self, event: str, step: int, more: JsonObject | None = None) -> None:
        if not self.writes:
            return
        self.enter(self._bucket)
        self._written = time.monotonic()
        row = {"event": event, "time": self._began + self._written - self._clock, "step": step}
        row |= {"seconds": {k: round(v, 4) for k, v in self.seconds.items()}} | (more or {})
        with contextlib.suppress(OSError):  # a full disk or a bucket ends no run
            self.path.parent.mkdir(parents=True, exist_ok=True)
            torn = "\n" if _is_torn(self.path) else ""
            storage.append(self.path, torn + json.dumps(row) + "\n")


def read(folder: str | os.PathLike) -> list[JsonObject]:
    """The whole lines of FOLDER/goodput.jsonl; none where there is no file."""
    path = storage.path(folder) / FILE_NAME
    if not path.exists():
        return []
    rows = []
    for line in path.read_bytes().decode(errors="replace").splitlines():
        with contextlib.suppress(ValueError):  # a kill or a full disk cut it short
            rows.append(json.loads(line))
    return rows


def summarise(folder: str | os.PathLike) -> dict[str, float]:
    """Seconds of a run by bucket, `lost` and `down` too, which add up to `wall`.

    `goodput` is the share of productive seconds, `sessions` their number. {} where there is none.
    """
    rows = read(folder)
    starts = [i for i, row in enumerate(rows) if row["event"] == "start"]
    if not starts:
        return {}
    total = dict.fromkeys((*BUCKETS, "lost", "down"), 0.0)
    for first, end in zip(starts, [*starts[1:], len(rows)], strict=True):
        start, last = rows[first], rows[end - 1]
        for bucket, seconds in last["seconds"].items():
            total[bucket] += seconds
        total["down"] += start["down"]
        for bucket, seconds in start["lost"].items():
            total["lost"] += seconds
            if bucket != "unwritten":
                total[bucket] -= seconds
    wall = rows[-1]["time"] - rows[starts[0]]["began"]
    share = sum(total[bucket] for bucket in PRODUCTIVE) / max(wall, 1e-9)
    return total | {"wall": wall, "goodput": share, "sessions": float(len(starts))}


def sentence(figures: dict[str, float]) -> str:
    """`goodput 83.1% of 754 s in 2 sessions: update 61.0%, sample 22.1%, lost 5.2%, …`."""
    names = [k for k in (*BUCKETS, "lost", "down") if figures[k] >= 5e-4 * figures["wall"]]
    names.sort(key=lambda name: -figures[name])
    shares = ", ".join(f"{k} {figures[k] / figures['wall']:.1%}" for k in names)
    count = int(figures["sessions"])
    sessions = "1 session" if count == 1 else f"{count} sessions"
    return f"goodput {figures['goodput']:.1%} of {figures['wall']:.0f} s in {sessions}: {shares}"


def _lost(rows: list[JsonObject], step: int, alive: float) -> dict[str, float]:
    """Seconds of the last session's work after `step`; `unwritten`: those after its last line."""
    starts = [i for i, row in enumerate(rows) if row["event"] == "start"]
    if not starts:
        return {}
    session = rows[starts[-1] :]
    base = [row for row in session if row["step"] <= step][-1:] or session[:1]
    last = session[-1]
    found = {k: last["seconds"][k] - base[0]["seconds"][k] for k in PRODUCTIVE}
    found["unwritten"] = max(alive - last["time"], 0.0)
    return found


def _is_torn(path: epath.Path) -> bool:
    if not path.exists() or not path.stat().length:
        return False
    with path.open("rb") as file:
        file.seek(-1, os.SEEK_END)
        return file.read(1) != b"\n"

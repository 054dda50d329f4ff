"""What this process holds and has held, libraries included, in bytes; Linux only."""

from __future__ import annotations

from pathlib import Path


def resident() -> int:
    return _status("VmRSS")


def peak() -> int:
    """The most since this program began: `ru_maxrss` would begin at what its parent held."""
    return _status("VmHWM")


def _status(key: str) -> int:
    status = Path("/proc/self/status").read_text()
    return int(status.split(f"{key}:")[1].split()[0]) * 1024

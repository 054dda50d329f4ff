"""A process that ends with the one that started it, however that ends."""

from __future__ import annotations

import ctypes
import os
import signal

_PARENT = "MASKSEARCH_JAX_PARENT"  # of the environment: the process to end with
_PR_SET_PDEATHSIG = 1  # prctl(2) of Linux: the signal to get when the parent ends


def environment() -> dict[str, str]:
    """That of a process which is to end with this one, where it calls `end_with_parent`."""
    return os.environ | {_PARENT: str(os.getpid())}


def end_with_parent() -> None:
    """Binds this process to the one that named itself in the environment, if one did; on Linux."""
    named = os.environ.pop(_PARENT, "")
    ask = getattr(ctypes.CDLL(None), "prctl", None) if named else None
    if ask is None:
        return
    ask(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != int(named):  # it had ended before
        os.kill(os.getpid(), signal.SIGKILL)

"""Ctrl-C, wherever it meets the process."""

from __future__ import annotations

import _thread
import contextlib
import sys
import threading
from collections.abc import Iterator
from typing import Any


@contextlib.contextmanager
def never_lost() -> Iterator[None]:
    """A KeyboardInterrupt that meets a callback out of which Python raises nothing is sent again.

    JAX has such a callback, of the garbage collector; Python would print a traceback and go on.
    """
    before = sys.unraisablehook

    def hook(unraisable: Any) -> None:
        if isinstance(unraisable.exc_value, KeyboardInterrupt):
            threading.Timer(0.01, _thread.interrupt_main).start()  # later, or it would end here
        else:
            before(unraisable)

    sys.unraisablehook = hook
    try:
        yield
    finally:
        sys.unraisablehook = before

"""Ctrl-C, wherever it meets the process."""

from __future__ import annotations

import contextlib
import signal
import sys
import threading
from collections.abc import Iterator
from types import FrameType


def _send() -> None:
    """Ctrl-C to the main thread: a real one, which wakes it from whatever it waits for."""
    main = threading.main_thread().ident
    if main is not None:  # it has begun
        signal.pthread_kill(main, signal.SIGINT)


@contextlib.contextmanager
def never_lost() -> Iterator[None]:
    """A KeyboardInterrupt that meets a callback out of which Python raises nothing is sent again.

    JAX has such a callback, of the garbage collector; Python would print a traceback and go on. So
    it would where one meets the telling of another callback's error.
    """
    before = sys.unraisablehook

    def hook(unraisable: sys.UnraisableHookArgs) -> None:
        met = isinstance(unraisable.exc_value, KeyboardInterrupt)
        if not met:
            try:
                before(unraisable)
            except KeyboardInterrupt:
                met = True
        if met:
            threading.Timer(0.01, _send).start()  # later, or it would end here

    sys.unraisablehook = hook
    try:
        yield
    finally:
        sys.unraisablehook = before


@contextlib.contextmanager
def held() -> Iterator[None]:
    """A Ctrl-C within is raised at the end, so that no library is cut off between two of its lines.

    A second one is raised at once: of a disk that hangs, the end may never come. Does nothing in
    other threads than the main one, and where the process has a handler of its own.
    """
    main = threading.current_thread() is threading.main_thread()
    if not main or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield
        return
    came = False

    def hold(number: int, frame: FrameType | None) -> None:
        nonlocal came
        if came:
            signal.default_int_handler(number, frame)
        came = True

    signal.signal(signal.SIGINT, hold)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        if came:
            raise KeyboardInterrupt

"""Waiting for a service that is down: ever longer, up to a limit, while the run stays alive."""

from __future__ import annotations

import math
import time
from collections.abc import Callable

from masksearch_jax.parallel import hosts

_LONGEST = 60.0  # seconds of one wait
_LOOK = 0.5


class Patience:
    """`limit` seconds in all, from the first wait on; waits of 1, 2, 4, … seconds.

    `check` is called twice a second, equally often on all processes, and ends a wait by raising.
    """

    def __init__(self, limit: float, check: Callable[[], None]):
        self._check, self._limit = check, limit
        self._began: float | None = None
        self._next = 1.0

    def wait(self, tell: Callable[[float], None]) -> bool:
        """Waits, while `tell` hears of the seconds left; False, on all processes, at the end."""
        now = time.monotonic()
        if self._began is None:
            self._began = now
        if hosts.is_on_any(now - self._began >= self._limit):
            return False
        looks = math.ceil(min(self._next, _LONGEST) / _LOOK)
        self._next *= 2
        for look in range(looks):
            tell((looks - look) * _LOOK)
            self._check()
            time.sleep(_LOOK)
        return True

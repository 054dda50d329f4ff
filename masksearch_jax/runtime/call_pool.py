"""Blocking calls on daemon threads: one that hangs holds up neither the others nor the exit.

`concurrent.futures` has a pool too, but the interpreter joins its threads before it ends.
"""

from __future__ import annotations

import asyncio
import functools
import queue
import threading
import time
from collections.abc import Callable
from concurrent import futures
from typing import Any, Generic, TypeVar

Result = TypeVar("Result")  # what a call returns


class Call(futures.Future[Result]):
    """One call of `work`. `started` is None while it waits its turn, then a `perf_counter` time."""

    def __init__(self, work: Callable[[], Result]):
        super().__init__()
        self.work = work
        self.started: float | None = None
        self.abandoned = False

    def late(self, timeout: float, now: float) -> float:
        """When it is late; its clock starts with it, since waiting its turn is our doing."""
        return (now if self.started is None else self.started) + timeout


class CallPool(Generic[Result]):
    """Runs calls on `workers` threads, in the order of `submit`."""

    def __init__(self, workers: int):
        self._calls: queue.SimpleQueue[Call[Result] | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._closed = False
        self._threads: list[threading.Thread] = []
        for _ in range(workers):
            self._add_thread()

    def submit(self, work: Callable[[], Result]) -> Call[Result]:
        call = Call(work)
        self._calls.put(call)
        return call

    def wait(self, call: Call[Result], timeout: float) -> Result:
        """What a call returns. TimeoutError, which says so, of one that has run too long."""
        while not call.done():
            now = time.perf_counter()
            left = call.late(timeout, now) - now
            if left <= 0:
                self.abandon(call)
                raise TimeoutError(f"no result in {timeout:g} s")
            futures.wait([call], left)
        return call.result()

    def abandon(self, call: Call[Result]) -> None:
        """Nobody waits for the call any more: it is not begun, or its thread is replaced."""
        with self._lock:
            if call.done() or call.cancel():
                return
            call.abandoned = True  # its thread ends when, and if, it comes back
        self._add_thread()

    def close(self, wait: float = 1.0) -> None:
        """Drops what has not begun and waits at most `wait` seconds for what has."""
        self._closed = True
        for _ in self._threads:
            self._calls.put(None)
        deadline = time.monotonic() + wait
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))

    def _add_thread(self) -> None:
        thread = threading.Thread(target=self._serve, name="call", daemon=True)
        self._threads = [t for t in self._threads if t.is_alive()]
        thread.start()
        self._threads.append(thread)

    def _serve(self) -> None:
        while (call := self._calls.get()) is not None:
            if self._closed:
                call.cancel()
            if not call.set_running_or_notify_cancel():
                continue
            call.started = time.perf_counter()
            try:
                end = functools.partial(call.set_result, call.work())
            except BaseException as error:  # a panic of a Rust library is no Exception
                end = functools.partial(call.set_exception, error)
            with self._lock:
                end()
                if call.abandoned:
                    return


class AsyncCalls:
    """Blocking calls that an event loop awaits: `workers` at once, on threads of their own.

    timeout: seconds of one call from its begin on, None: any number. One that takes longer is
    abandoned and raises TimeoutError, which names `what` did not come.
    """

    def __init__(self, workers: int, timeout: float | None, what: str = "result"):
        self._pool: CallPool[Any] = CallPool(workers)
        self._gate, self._timeout, self._what = asyncio.Semaphore(workers), timeout, what

    async def __call__(self, work: Callable[[], Result]) -> Result:
        async with self._gate:  # as many as there are threads, so that none waits there
            call = self._pool.submit(work)
            try:
                async with asyncio.timeout(self._timeout) as limit:
                    found: Result = await asyncio.wrap_future(call)
                    return found
            except TimeoutError as error:
                if not limit.expired():  # it is the call's own
                    raise
                raise TimeoutError(f"no {self._what} in {self._timeout:g} s") from error
            finally:
                self._pool.abandon(call)

    def close(self) -> None:
        self._pool.close()

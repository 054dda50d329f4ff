"""Replicas of one HTTP service: which may be asked now, and requests that outlive their failures.

Attempts of one request share its deadline. All replicas that may be asked are asked once before the
request waits and tries again. A replica that fails three times in a row rests, longer each time,
and is then tried by one request alone (a circuit breaker).
"""

from __future__ import annotations

import dataclasses
import math
import queue
import random
import sys
import threading
import time
from collections.abc import Callable, Collection, Sequence
from typing import Generic, TypeVar

from masksearch_jax.core.retrieval import SearchError
from masksearch_jax.search.rate import RateLimit

Reply = TypeVar("Reply")

MAX_BACKOFF = 2.0  # seconds between attempts, unless a service asks for more
_MOST_REST = 86_400.0  # seconds that a service may ask for
_TRIPS = 3  # failures in a row after which a replica rests


class FailedForNow(Exception):
    """An attempt failed in a way that may pass; `rest`: seconds that the service asks for.

    At most a day: a wrong date would rest a replica for good.
    is_late: it ran out of time. is_own: the service failed at this request, and put nothing off.
    """

    def __init__(
        self, message: str, rest: float = 0.0, *, is_late: bool = False, is_own: bool = False
    ):
        super().__init__(message)
        self.rest = min(rest, _MOST_REST)
        self.is_late, self.is_own = is_late, is_own


class NoAnswerError(SearchError):
    """What an attempt got is no answer of such a service, and another replica may give one."""

    rest = 0.0


class GaveUp(Exception):
    """No attempt worked; says how many there were and how the last ended."""


@dataclasses.dataclass(frozen=True)
class Patience:
    """How long and how often a request is tried; seconds, but `retries`."""

    timeout: float  # of the request, all attempts together
    attempt_timeout: float  # of the first attempt; doubles with each that ran out of time
    retries: int  # waits after which it is tried again, at one replica: attempts after the first
    backoff: float  # before the first retry; doubles with each, up to MAX_BACKOFF
    hedge: float = 0.0  # after which a second attempt runs beside the first; 0: never


@dataclasses.dataclass(eq=False)
class Replica:
    """One address of a service."""

    url: str
    in_flight: int = 0
    failures: int = 0  # in a row
    rests_until: float = 0.0  # by `time.monotonic`
    tried_until: float = 0.0  # the same; one request finds out whether it works again
    failed_with: str = ""  # the last failure in a row

    @property
    def back_at(self) -> float:
        """When it may be asked."""
        return max(self.rests_until, self.tried_until)


class Replicas(Generic[Reply]):
    """Sends requests to one of several replicas; safe for threads.

    limit: of all attempts. send(url, seconds): one attempt of at most so many seconds. Raises
    FailedForNow where another may succeed, NoAnswerError where one at another replica may; what
    else it raises ends the request. That a service which has not answered yet is tried again is
    told once, on stderr.
    """

    def __init__(self, urls: Sequence[str], patience: Patience, limit: RateLimit | None = None):
        self._replicas = [Replica(url) for url in urls]
        self._patience = patience
        self._limit = limit or RateLimit(0)
        self._changed = threading.Condition()
        self._is_told = False  # that it answers, or that it does not

    def request(
        self, send: Callable[[str, float], Reply], deadline: float = math.inf
    ) -> tuple[Reply, int]:
        """The first reply, and the number of attempts. Raises GaveUp, and what `send` does.

        deadline: by `time.monotonic`, where less time is left than the patience has.
        """
        patience = self._patience
        deadline = min(deadline, time.monotonic() + patience.timeout)
        attempts = late = waits = 0
        failed: set[Replica] = set()  # since the last wait, with the one before it
        strange: set[Replica] = set()  # that gave no answer
        last = ""
        while True:
            if not self._limit.wait(deadline - time.monotonic()):
                after = f", after: {last}" if last else ""
                last = f"no turn at {self._limit.per_second:g} requests a second{after}"
                break
            replica = self._take(deadline, failed)
            if replica is None:
                last = last or self._resting()
                break
            seconds = patience.attempt_timeout * 2.0**late
            attempts += 1
            try:
                reply, more = self._attempt(replica, send, seconds, deadline)
                self._is_told = True
                return reply, attempts + more
            except NoAnswerError as error:
                strange.add(replica)
                if len(strange) == len(self._replicas):
                    raise
                last = str(error)
            except FailedForNow as error:
                last = str(error)
                late += error.is_late
            failed.add(replica)
            self._tell(last)
            if not self._has_another(failed):
                wait = jittered(patience.backoff, waits)
                if waits >= patience.retries or time.monotonic() + wait >= deadline:
                    break
                time.sleep(wait)
                waits, failed = waits + 1, {replica}
        raise GaveUp(f"attempt {attempts} within {patience.timeout:g} s: {last}")

    def _tell(self, failure: str) -> None:
        if not self._is_told and self._patience.retries:
            self._is_told = True
            print(
                f"  the service does not answer yet ({failure}); it is tried again, "
                f"{self._patience.retries} times within {self._patience.timeout:g} s at most",
                file=sys.stderr,
                flush=True,
            )

    def _attempt(
        self, replica: Replica, send: Callable[[str, float], Reply], seconds: float, deadline: float
    ) -> tuple[Reply, int]:
        """The reply to one attempt, and 1 where a hedge ran beside it, else 0."""
        replies: queue.SimpleQueue[tuple[Reply | None, Exception | None]] = queue.SimpleQueue()
        end = min(deadline, time.monotonic() + seconds)
        self._begin(replica, send, end, replies)
        running, hedges = 1, 0
        hedge = self._patience.hedge
        while running:
            left = end - time.monotonic()
            may_hedge = 0 < hedge < left and not hedges
            try:
                reply, error = replies.get(timeout=max(0.0, hedge if may_hedge else left))
            except queue.Empty:
                can = may_hedge and self._limit.wait(0.0)
                second = self._take(time.monotonic(), {replica}) if can else None
                if not may_hedge:
                    message = f"{replica.url}: TimeoutError, no reply in time"
                    raise FailedForNow(message, is_late=True) from None
                hedges = 1
                if second is not None:
                    self._begin(second, send, end, replies)
                    running += 1
                continue
            if error is None:
                return reply, running - 1 if hedges else 0  # type: ignore[return-value]
            running -= 1
            if not running or not isinstance(error, FailedForNow | NoAnswerError):
                raise error
        raise AssertionError("unreachable")

    def _begin(
        self,
        replica: Replica,
        send: Callable[[str, float], Reply],
        end: float,
        replies: queue.SimpleQueue[tuple[Reply | None, Exception | None]],
    ) -> None:
        """Starts an attempt on a thread of its own, which a service that drips cannot hold up."""

        def run() -> None:
            try:
                reply = send(replica.url, max(0.001, end - time.monotonic()))
            except (FailedForNow, NoAnswerError) as error:
                self._give(replica, error)
                replies.put((None, error))
            except Exception as error:
                self._give(replica, None)  # it did answer
                replies.put((None, error))
            else:
                self._give(replica, None)
                replies.put((reply, None))

        threading.Thread(target=run, name="search request", daemon=True).start()

    def _take(self, deadline: float, failed: Collection[Replica]) -> Replica | None:
        """The least busy replica that may be asked, another than those `failed` if there is one.

        Waits for one until the deadline; None where none comes.
        """
        with self._changed:
            while True:
                now = time.monotonic()
                ready = [r for r in self._replicas if r.back_at <= now]
                ready = [r for r in ready if r not in failed] or ready
                if ready:
                    random.shuffle(ready)
                    replica = min(ready, key=lambda r: r.in_flight)
                    replica.in_flight += 1
                    if replica.failures >= _TRIPS:  # not for ever: a reply may never come
                        replica.tried_until = now + self._patience.timeout
                    return replica
                if now >= deadline:
                    return None
                back = min(r.back_at for r in self._replicas)
                self._changed.wait(max(0.0, min(deadline, back) - now))

    def _give(self, replica: Replica, error: FailedForNow | NoAnswerError | None) -> None:
        """Back from an attempt that failed so, or not."""
        with self._changed:
            replica.in_flight -= 1
            replica.tried_until = 0.0
            if error is None:
                replica.failures, replica.rests_until, replica.failed_with = 0, 0.0, ""
            else:
                replica.failures += 1
                replica.failed_with = str(error)
                over = replica.failures - _TRIPS
                rest = jittered(self._patience.backoff, over) if over >= 0 else 0.0
                replica.rests_until = time.monotonic() + max(rest, error.rest)
            self._changed.notify_all()

    def _resting(self) -> str:
        """Why none was asked: the failure of the replica that failed most often in a row."""
        with self._changed:
            failure = max(self._replicas, key=lambda r: r.failures).failed_with
        return f"every replica rests after failures{failure and f', the last: {failure}'}"

    def _has_another(self, failed: Collection[Replica]) -> bool:
        with self._changed:
            now = time.monotonic()
            return any(r.back_at <= now for r in self._replicas if r not in failed)


def jittered(first: float, number: int) -> float:
    """Seconds before retry `number`, from 0 on: between a half and all of first·2^number."""
    return min(MAX_BACKOFF, first * 2.0 ** min(number, 30)) * random.uniform(0.5, 1.0)

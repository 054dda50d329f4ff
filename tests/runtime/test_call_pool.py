"""Blocking calls on threads: what takes too long, what waits its turn, and what raises."""

import asyncio
import threading
import time

import pytest

from masksearch_jax.runtime.call_pool import AsyncCalls, CallPool


@pytest.fixture
def hanging():
    """A call that returns once the test is over."""
    release = threading.Event()
    yield release.wait
    release.set()


def test_a_call_that_hangs_is_told_and_its_thread_replaced(hanging):
    pool = CallPool(1)
    late, after = pool.submit(hanging), pool.submit(lambda: "after")
    with pytest.raises(TimeoutError):
        pool.wait(late, 0.05)
    assert pool.wait(after, 30.0) == "after"
    pool.close()


def test_the_clock_of_a_call_starts_with_its_turn():
    pool = CallPool(1)
    calls = [pool.submit(lambda i=i: time.sleep(0.3) or i) for i in range(4)]
    assert [pool.wait(call, 0.9) for call in calls] == [0, 1, 2, 3]  # the last ends after 1.2 s
    pool.close()


def test_what_a_call_raises_is_raised_where_it_is_waited_for():
    pool = CallPool(1)

    def fail():
        raise TimeoutError("its own")

    with pytest.raises(TimeoutError, match=r"^its own$"):
        pool.wait(pool.submit(fail), 30.0)
    pool.close()


def test_an_event_loop_awaits_as_many_calls_as_there_are_threads(hanging):
    """None waits in the pool, so a call that hangs costs the others no time of their own."""
    running, most = set(), []

    def work(i):
        running.add(i)
        most.append(len(running))
        time.sleep(0.3)
        running.discard(i)
        return i

    async def go():
        calls = AsyncCalls(2, 0.9)
        jobs = [calls(hanging), *(calls(lambda i=i: work(i)) for i in range(8))]
        found = await asyncio.gather(*jobs, return_exceptions=True)
        calls.close()
        return found

    first, *others = asyncio.run(go())
    assert isinstance(first, TimeoutError)
    assert others == list(range(8))
    assert max(most) == 2

"""The line of a long job: how much is done, and the time left by the pace since its first item."""

import threading

import pytest

from masksearch_jax.runtime import progress


@pytest.fixture
def clock(monkeypatch):
    """Sets the time, in seconds."""
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return lambda seconds: now.__setitem__(0, seconds)


def test_the_time_before_the_first_item_is_no_pace(clock):
    job = progress.Progress("evaluate", 2000)
    clock(17.0)  # compiling
    job.update(1)
    assert job.line() == "evaluate 1/2000 0% left ?"
    clock(27.0)
    job.update(1001)
    assert job.line() == "evaluate 1001/2000 50% left 0:10"
    clock(37.0)
    job.update(2000)
    assert job.line() == "evaluate 2000/2000 100% left 0:00"


def test_a_run_that_goes_on_has_a_pace_of_its_own(clock):
    job = progress.Progress("SFT", 100, 40)
    assert job.line() == "SFT 40/100 40% left ?"
    clock(100.0)
    job.update(50, loss=0.51234)
    clock(120.0)
    job.update(60)
    assert job.line() == "SFT 60/100 60% left 1:20  loss 0.5123"


def test_a_job_of_one_item_ends_with_nothing_left(clock):
    job = progress.Progress("index", 1)
    clock(3.0)
    job.update(1)
    assert job.line() == "index 1/1 100% left 0:00"


def test_a_job_without_items_says_that_it_goes_on_until_it_ends(capfd):
    said = ""
    with progress.Clock("compiling update", log_seconds=0.001):
        while said.count("so far") < 2:
            said += capfd.readouterr().err
    lines = said.splitlines()
    assert lines[0] == "  compiling update"
    assert set(lines[1:]) == {"  compiling update: 0:00 so far"}
    assert not [t for t in threading.enumerate() if "_tell" in t.name]

"""Ctrl-C at inconvenient moments."""

import gc
import logging
import signal
import sys
import threading
import time

import pytest

from masksearch_jax import cli
from masksearch_jax.interrupts import held

END = "\ninterrupted; the same command goes on from here\n"


@pytest.fixture(autouse=True)
def restored(monkeypatch):
    """What the end of a process leaves switched off is on again for the next test."""
    monkeypatch.setattr(sys, "unraisablehook", sys.unraisablehook)
    yield
    logging.disable(logging.NOTSET)


def press():
    signal.raise_signal(signal.SIGINT)


def under_hold(*works):
    """Calls them under `held`; the KeyboardInterrupt that must come out of it."""
    with pytest.raises(KeyboardInterrupt) as caught, held():
        [work() for work in works]
    return caught.value


def status_of(work):
    with pytest.raises(SystemExit) as end:
        cli.call(work)
    return end.value.code


def test_after_it_no_thread_of_a_library_is_heard(caplog):
    assert status_of(press) == 130
    logging.getLogger("absl").error("cannot schedule new futures after shutdown")
    assert not caplog.records


def test_after_it_no_half_made_object_is_heard(capsys):
    class Loop:
        def __init__(self):
            press()
            self.debug = False

        def __del__(self):
            return self.debug

    assert status_of(Loop) == 130
    gc.collect()
    assert capsys.readouterr().err == END


def test_one_that_meets_a_callback_of_gc_is_not_lost(capsys):
    def interrupted(phase, info):
        gc.callbacks.remove(interrupted)
        raise KeyboardInterrupt

    def work():
        gc.callbacks.append(interrupted)
        gc.collect()
        time.sleep(30)

    assert status_of(work) == 130
    assert capsys.readouterr().err == END


def test_held_it_comes_at_the_end():
    done = []
    under_hold(press, lambda: done.append("next line"))
    assert done == ["next line"]
    with pytest.raises(KeyboardInterrupt):
        press()


def test_held_it_comes_after_an_error_too():
    def fail():
        raise OSError("the disk is full")

    assert isinstance(under_hold(press, fail).__context__, OSError)


def test_a_second_one_is_not_held():
    done = []
    under_hold(press, press, lambda: done.append("hangs"))
    assert not done


def test_nothing_is_raised_where_nobody_pressed():
    with held():
        pass
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_another_thread_and_another_handler_are_left_alone(monkeypatch):
    errors = []

    def work():
        try:
            with held():
                pass
        except ValueError as error:  # `signal` only works in the main thread
            errors.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert not errors
    heard = []
    before = signal.signal(signal.SIGINT, lambda *_: heard.append("theirs"))
    try:
        with held():
            press()
            assert heard == ["theirs"]
    finally:
        signal.signal(signal.SIGINT, before)

"""Ctrl-C at inconvenient moments."""

import ast
import gc
import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from masksearch_jax.runtime import cli
from masksearch_jax.runtime.interrupts import held

END = "\ninterrupted\n"


@pytest.fixture(autouse=True)
def stays(monkeypatch):
    """The process of the tests outlives what ends one."""
    monkeypatch.setattr(os, "_exit", sys.exit)


def press():
    signal.raise_signal(signal.SIGINT)


def under_hold(*works):
    """Calls them under `held`; the KeyboardInterrupt that must come out of it."""
    with pytest.raises(KeyboardInterrupt) as caught, held():
        [work() for work in works]
    return caught.value


def status_of(work, **how):
    with pytest.raises(SystemExit) as end:
        cli.call(work, **how)
    return end.value.code


COMPILES = """
import os, signal, threading
import jax, jax.numpy as jnp
from masksearch_jax.runtime import cli

def slow(x):
    for i in range(1500):
        x = jnp.sin(x @ x + i)
    return x

def work():
    lowered = jax.jit(slow).lower(jnp.ones((8, 8)))
    print("said before")
    threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT)).start()
    threading.Timer(60, print, ("nobody waits for this",)).start()
    lowered.compile()

signal.signal(signal.SIGINT, signal.default_int_handler)
cli.call(work)
"""


def test_it_ends_a_process_that_compiles_at_once(repository):
    command = [sys.executable, "-c", COMPILES]
    done = subprocess.run(command, cwd=repository, capture_output=True, text=True, timeout=50)
    assert (done.returncode, done.stdout, done.stderr) == (130, "said before\n", END)


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


def test_one_that_meets_the_telling_of_another_error_is_not_lost(capsys, monkeypatch):
    class Failing:
        def __del__(self):
            raise ValueError("in a callback")

    told = []

    def tell(unraisable):
        told.append(str(unraisable.exc_value))
        raise KeyboardInterrupt

    def work():
        Failing()
        time.sleep(30)

    monkeypatch.setattr(sys, "unraisablehook", tell)
    assert status_of(work) == 130
    assert (told, capsys.readouterr().err) == (["in a callback"], END)


# The build of an index begins anew, plain files, a plan, a report or a question too. What serves
# has nothing to go on from.
STARTS_ANEW = {
    *("ask", "build_index", "coverage", "export_data", "plan", "report"),
    *("serve_model", "serve_search"),
}


def test_it_says_that_the_same_command_goes_on_only_where_it_does(capsys, repository):
    assert status_of(press, resumes=True) == 130
    said = "\ninterrupted; the same command goes on from what is saved\n"
    assert capsys.readouterr().err == said
    found = {}
    for path in (repository / "masksearch_jax").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "cli.run":
                found[path.stem] = "resumes" in {k.arg for k in node.keywords}
    assert {name for name, resumes in found.items() if not resumes} == STARTS_ANEW


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

"""Which process this is, of how many, and what it does when another one is gone."""

from __future__ import annotations

import os
import re
import socket
import sys
import typing
from collections.abc import Iterable

RESTART = 42  # exit status: start the same command again
_process = (0, 1)  # which one of how many
_devices = ("", 0)  # kind and number of those that a mesh was made of
# What JAX says when another process is gone; nobody but its runtime knows.
_LOST = re.compile(
    r"gloo|connection (closed|reset|refused)|socket closed|unavailable|heartbeat|"
    r"coordination service|barrier|deadline.exceeded|preempt",
    re.IGNORECASE,
)
# Not every way out of its runtime raises its own class of error; the status is in front of all.
_STATUS = re.compile(r"(unknown|internal|aborted|cancelled|unavailable|deadline_exceeded): ", re.I)


def print_lines(lines: Iterable[str]) -> None:
    """Lines for whoever asked for them; a reader that goes away, as `head` does, is no failure."""
    try:
        print("\n".join(lines), flush=True)
    except BrokenPipeError:  # at exit, Python would try to write again
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def name_process(index: int, count: int) -> None:
    """Says that this is one of several processes: errors then name it and its host."""
    global _process
    _process = (index, count)


def name_devices(kind: str, count: int) -> None:
    """Says what this process and its others compute on."""
    global _devices
    _devices = (kind, count)


def devices() -> tuple[str, int]:
    """Kind and number of the accelerators in use; ("", 0) where no mesh was made."""
    return _devices


def process_index() -> int:
    return _process[0]


def process_count() -> int:
    return _process[1]


def this_process() -> str:
    """`process 1 of 2 on HOST`."""
    return f"process {_process[0]} of {_process[1]} on {socket.gethostname()}"


def is_lost_process(error: BaseException | None) -> bool:
    """Whether an error of JAX's, or one it came from, says that another process is gone."""
    if error is None or _process[1] == 1:
        return False
    text = str(error)
    theirs = type(error).__name__ == "JaxRuntimeError" or _STATUS.match(text)
    if theirs and _LOST.search(text):
        return True
    return is_lost_process(error.__cause__ or error.__context__)


def end_alone(error: BaseException) -> typing.NoReturn:
    """Exits with 42 at once: every other way waits for the process that is gone."""
    text = " ".join(str(error).split())[:300]
    print(f"error: {this_process()}: lost another process: {text}", file=sys.stderr, flush=True)
    os._exit(RESTART)

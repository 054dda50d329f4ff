"""A run whose output nobody reads any more goes on, saves, and ends with its own status."""

import os
import pty
import subprocess
import sys

import pytest

from masksearch_jax.runtime import streams

RUN = """
import logging, os, sys
from pathlib import Path

from masksearch_jax.core.errors import ConfigError, Restart
from masksearch_jax.runtime import cli
from masksearch_jax.runtime.progress import Progress

folder, ends = Path(sys.argv[1]), sys.argv[2]

def work():
    input()  # until the reader is gone
    with Progress("train", 3, log_seconds=0) as progress:
        for step in range(3):
            progress.update(step + 1)
            print("step", step, flush=True)
            logging.warning("step %d", step)
            os.write(2, b"a library's line")
    (folder / "saved").touch()
    if ends == "restart":
        raise Restart("told to stop")
    return int(ends)

cli.call(work, resumes=True)
"""


def started(tmp_path, ends: str, **streams: int) -> subprocess.Popen:
    (tmp_path / "run.py").write_text(RUN)
    command = [sys.executable, str(tmp_path / "run.py"), str(tmp_path), ends]
    environment = os.environ | {"PYTHONPATH": os.getcwd()}
    return subprocess.Popen(command, stdin=subprocess.PIPE, env=environment, **streams)


@pytest.mark.parametrize(("ends", "status"), [("0", 0), ("3", 3), ("restart", 42)])
def test_a_run_goes_on_without_the_reader_of_its_output(tmp_path, ends, status):
    """As `2>&1 | tee log` once `tee` is gone."""
    run = started(tmp_path, ends, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    run.stdout.close()
    run.communicate(b"\n", timeout=60)
    assert run.returncode == status
    assert (tmp_path / "saved").exists()


def test_a_run_goes_on_without_its_terminal(tmp_path):
    """As where a connection is lost: writing to what is hung up is an error of input and output."""
    ours, theirs = pty.openpty()
    run = started(tmp_path, "0", stdout=theirs, stderr=theirs)
    os.close(theirs)
    os.close(ours)
    run.communicate(b"\n", timeout=60)
    assert run.returncode == 0
    assert (tmp_path / "saved").exists()


def test_a_disk_that_does_not_take_the_output_is_no_lost_reader(monkeypatch):
    if not os.path.exists("/dev/full"):
        pytest.skip("there is no /dev/full")
    with open("/dev/full", "w") as full:
        monkeypatch.setattr(sys, "stdout", full)
        with pytest.raises(OSError, match="No space left"), streams.lasting("stdout"):
            print("a result", flush=True)
        assert sys.stdout is full
        with open(os.devnull, "w") as nowhere:  # what is left in its buffer goes there
            os.dup2(nowhere.fileno(), full.fileno())


def test_the_result_of_another_command_is_not_lost_in_silence(tmp_path):
    (tmp_path / "run.py").write_text(
        "from masksearch_jax.runtime import cli\ncli.call(lambda: print(input(), flush=True))\n"
    )
    command = [sys.executable, str(tmp_path / "run.py")]
    given = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    environment = os.environ | {"PYTHONPATH": os.getcwd()}
    with subprocess.Popen(command, env=environment, **given) as run:
        run.stdout.close()
        run.stdin.write(b"a result\n")
        run.stdin.close()
        assert run.stderr.read().startswith(b"error: ")
    assert run.returncode == 1

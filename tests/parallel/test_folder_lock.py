"""One process at a time in a folder."""

import os
import re
import signal
import socket
import subprocess
import sys

import pytest

from masksearch_jax.core.files import BeingWrittenError
from masksearch_jax.parallel import folder_lock
from masksearch_jax.parallel.folder_lock import FolderLock
from tests.parallel.lock_holder import Listener, held

THIS = f"process {os.getpid()} on {socket.gethostname()}"


def test_a_folder_that_another_process_has_is_refused_by_its_name(tmp_path):
    folder = tmp_path / "run"
    with held(folder) as other, pytest.raises(BeingWrittenError) as error:
        FolderLock(folder)
    assert str(error.value) == (
        f"{folder} is in use by process {other.pid} on far.example; wait for the end of that "
        "process, or end it, or choose another folder"
    )


def test_who_has_it_says_so_and_leaves_nothing(tmp_path):
    taken = (
        "import sys\nfrom masksearch_jax.parallel.folder_lock import FolderLock\n"
        "from masksearch_jax.core.files import BeingWrittenError\n"
        "try: FolderLock(sys.argv[1])\nexcept BeingWrittenError as error: print(error)"
    )

    def other_says():
        command = [sys.executable, "-c", taken, str(tmp_path / "run")]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout

    with FolderLock(tmp_path / "run"):
        assert other_says().startswith(f"{tmp_path / 'run'} is in use by {THIS}; wait")
    assert list((tmp_path / "run").iterdir()) == []
    assert other_says() == ""


def test_the_same_process_may_take_it_again(tmp_path):
    """One that failed before the block began holds it until another use of the folder ends."""
    FolderLock(tmp_path)
    with FolderLock(tmp_path):
        pass
    with held(tmp_path), pytest.raises(BeingWrittenError):
        FolderLock(tmp_path)


def test_what_a_killed_process_left_is_no_lock(tmp_path):
    with held(tmp_path) as other:
        other.send_signal(signal.SIGKILL)
        other.wait()
    assert (tmp_path / ".lock").exists()
    with FolderLock(tmp_path):
        assert (tmp_path / ".lock").read_text() == f"{THIS}\n"


@pytest.mark.parametrize("removes", [False, True])
def test_who_waits_has_it_once_the_other_has_ended(tmp_path, monkeypatch, removes):
    with held(tmp_path) as other:

        def ends():
            if removes:  # as one that ends by itself does
                (tmp_path / ".lock").unlink(missing_ok=True)
            other.stdin.close()

        said = Listener(ends)
        monkeypatch.setattr(sys, "stderr", said)
        with FolderLock(tmp_path, waits=True):
            assert (tmp_path / ".lock").read_text() == f"{THIS}\n"
    assert re.fullmatch(
        rf"  {tmp_path} is in use by process \d+ on far\.example: waiting for its end\n",
        said.getvalue(),
    )


def test_the_first_process_alone_takes_it(tmp_path, monkeypatch):
    monkeypatch.setattr(folder_lock, "process_index", lambda: 1)
    with held(tmp_path), FolderLock(tmp_path):
        pass
    assert (tmp_path / ".lock").exists()


def test_a_bucket_has_no_lock():
    with FolderLock("gs://bucket/run"):
        pass

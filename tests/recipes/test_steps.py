"""What recipes have in common: processes of their own."""

import os
import signal
import subprocess
import sys

import psutil
import pytest

PARENT = """
import subprocess, sys
from masksearch_jax.recipes import steps
subprocess.run(steps.bound_to_this("sleeper", ["--config=a b", "2"]), start_new_session=True)
"""
SLEEPER = "import os, sys, time\nprint(os.getpid(), sys.argv[1:], flush=True)\ntime.sleep(600)\n"


@pytest.mark.skipif(sys.platform != "linux", reason="of Linux")
@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_a_process_of_its_own_ends_with_the_one_that_waits_for_it(tmp_path, repository, how):
    (tmp_path / "sleeper.py").write_text(SLEEPER)
    env = os.environ | {"PYTHONPATH": f"{tmp_path}:{repository}"}
    command = [sys.executable, "-c", PARENT]
    with subprocess.Popen(command, env=env, stdout=subprocess.PIPE, text=True) as parent:
        pid, _, given = parent.stdout.readline().partition(" ")
        assert given == "['--config=a b', '2']\n"
        child = psutil.Process(int(pid))
        parent.send_signal(how)
        parent.wait(60)
        assert psutil.wait_procs([child], timeout=60)[1] == []

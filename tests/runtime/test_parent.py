"""A process that ends with the one that started it."""

import os
import signal
import subprocess
import sys

import psutil
import pytest

PARENT = """
import subprocess, sys
from masksearch_jax.runtime import parent
command = [sys.executable, "-c", sys.argv[1]]
subprocess.run(command, start_new_session=True, env=parent.environment())
"""
CHILD = """
import os, time
from masksearch_jax.runtime import parent
parent.end_with_parent()
print(os.getpid(), sorted(name for name in os.environ if name.startswith("MASK")), flush=True)
time.sleep(600)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="of Linux")
@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_a_process_ends_with_the_one_that_waits_for_it(repository, how):
    env = {k: v for k, v in os.environ.items() if not k.startswith("MASK")}
    env |= {"PYTHONPATH": str(repository)}
    command = [sys.executable, "-c", PARENT, CHILD]
    with subprocess.Popen(command, env=env, stdout=subprocess.PIPE, text=True) as started:
        pid, _, left = started.stdout.readline().partition(" ")
        assert left == "[]\n"  # what it starts itself is not bound
        child = psutil.Process(int(pid))
        started.send_signal(how)
        started.wait(60)
        assert psutil.wait_procs([child], timeout=60)[1] == []


def test_a_process_that_nobody_bound_goes_on(monkeypatch):
    from masksearch_jax.runtime import parent

    monkeypatch.delenv("MASKSEARCH_JAX_PARENT", raising=False)
    parent.end_with_parent()

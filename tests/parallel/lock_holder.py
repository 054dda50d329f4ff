"""Another process that has the lock of a folder."""

import contextlib
import io
import subprocess
import sys

# Not by the package: what it takes for a lock is what the system takes for one.
_HOLD = """
import fcntl, os, sys
file = open(os.path.join(sys.argv[1], ".lock"), "w")
fcntl.flock(file, fcntl.LOCK_EX)
file.write(f"process {os.getpid()} on far.example\\n")
file.flush()
print("held", flush=True)
sys.stdin.read()
"""


@contextlib.contextmanager
def held(folder):
    """A process that has the lock until its stdin is closed, or the block ends."""
    folder.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-c", _HOLD, str(folder)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"held\n"
        try:
            yield process
        finally:
            process.kill()


class Listener(io.StringIO):
    """A stream that acts as soon as something is said of waiting."""

    def __init__(self, act):
        super().__init__()
        self._act = act

    def write(self, text):
        super().write(text)
        if "waiting" in text:
            self._act()

"""stdout and stderr of a process that goes on where nobody reads them any more."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import sys
from collections.abc import Iterator
from typing import Any, TextIO, cast


@contextlib.contextmanager
def lasting(*names: str) -> Iterator[None]:
    """Within, a reader of these streams of `sys` that goes away ends nothing.

    As `tee` does, or a connection or a terminal that is lost: what is written from then on is lost
    too, also what libraries write by the descriptor.
    """
    before = {name: getattr(sys, name) for name in names}
    inside = {name: _Lasting(stream) for name, stream in before.items() if stream is not None}
    for name, stream in inside.items():
        setattr(sys, name, cast(TextIO, stream))
    try:
        yield
    finally:
        for name, stream in inside.items():
            if getattr(sys, name) is stream:
                setattr(sys, name, before[name])
            with contextlib.suppress(OSError, ValueError):  # Python tells of both at its exit
                stream.flush()


class _Lasting:
    """A text stream that writes to nowhere once its reader is gone."""

    def __init__(self, stream: TextIO):
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        try:
            return self._stream.write(text)
        except OSError as error:
            self._let_go(error)
            return len(text)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except OSError as error:
            self._let_go(error)

    def _let_go(self, error: OSError) -> None:
        """Points the descriptor to nowhere. Raises an error that says something else."""
        descriptor = self._stream.fileno()
        is_file = stat.S_ISREG(os.fstat(descriptor).st_mode)
        # EIO: of a terminal that was hung up; of a file, of its disk.
        if is_file or error.errno not in (errno.EPIPE, errno.EIO):
            raise error
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, descriptor)
        os.close(nowhere)

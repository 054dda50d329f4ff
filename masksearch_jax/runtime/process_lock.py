"""One process at a time in a folder: FOLDER/.lock names it, and its lock ends with it."""

from __future__ import annotations

import fcntl
import os
import socket
import sys
from pathlib import Path
from typing import Self

from masksearch_jax.core.files import BeingWrittenError, is_bucket

_NAME = ".lock"
_held: dict[Path, int] = {}  # by file: handles of the locks that this process has


class ProcessLock:
    """A folder that no other process works in, from here on until the block ends.

    A process that has the lock may ask again: the end of either block ends the lock. What a killed
    process left is no lock. Buckets have no locks, nor have some file systems: there, nobody is
    kept out. waits: for the end of a process that has the folder, which is told in a line. Raises
    BeingWrittenError that names the one that has the folder.
    """

    def __init__(self, folder: str | os.PathLike[str], waits: bool = False):
        self._file = None if is_bucket(folder) else Path(os.path.realpath(folder)) / _NAME
        self._folder = os.fspath(folder)
        self._begin(waits)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None and (handle := _held.pop(self._file, None)) is not None:
            self._file.unlink(missing_ok=True)
            os.close(handle)

    def _begin(self, waits: bool) -> None:
        self._take(waits)

    def _take(self, waits: bool) -> None:
        if self._file is None or self._file in _held:
            return
        self._file.parent.mkdir(parents=True, exist_ok=True)
        while self._file not in _held:
            handle = os.open(self._file, os.O_RDWR | os.O_CREAT, 0o666)
            try:
                self._lock(handle, waits)
                if self._is_file(handle):
                    os.ftruncate(handle, 0)
                    own = f"process {os.getpid()} on {socket.gethostname()}\n"
                    os.pwrite(handle, own.encode(), 0)
                    _held[self._file] = handle
            finally:
                if self._file not in _held:
                    os.close(handle)

    def _lock(self, handle: int, waits: bool) -> None:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            other = os.read(handle, 1000).decode().strip() or "another process"
            said = f"{self._folder} is in use by {other}"
            if not waits:
                raise BeingWrittenError(
                    f"{said}; wait for the end of that process, or end it, or choose another folder"
                ) from None
            print(f"  {said}: waiting for its end", file=sys.stderr, flush=True)
            fcntl.flock(handle, fcntl.LOCK_EX)
        except OSError:
            pass  # a file system without locks

    def _is_file(self, handle: int) -> bool:
        """Whether it is still the file of that name: who had the lock removes it at its end."""
        assert self._file is not None
        try:
            return os.path.samestat(os.fstat(handle), self._file.stat())
        except FileNotFoundError:
            return False

"""The rows that the processes of an evaluation keep as items end, each in a file of its own.

So a run that is cut off goes on with any number of processes: the first one takes up what all left.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from etils import epath

from masksearch_jax.core.errors import ConfigError
from masksearch_jax.parallel import hosts
from masksearch_jax.runtime import storage
from masksearch_jax.runtime.process import process_count, process_index
from masksearch_jax.runtime.row_log import Row, RowLog

_NAME = "trajectories.partial"


class SharedLog:
    """A log of each process in FOLDER, which all of them see; a context manager.

    `rows` is this process's own, of the first process also what all have left before. All must make
    it together. Raises ConfigError, on all, where a process has another folder of that name.
    """

    def __init__(self, folder: epath.Path, name_of: Callable[[Row], Any]):
        self._folder, own = folder, process_index()
        if own == 0:
            self.rows = RowLog(folder / f"{_NAME}.jsonl", name_of)
        hosts.from_first(self._absorb)
        if own != 0:
            path = folder / f"{_NAME}.{own}.jsonl"
            storage.append(path, "")
            self.rows = RowLog(path, name_of)
        hosts.gather(None)  # all have made theirs
        hosts.from_first(self._check_shared)

    def __enter__(self) -> SharedLog:
        return self

    def __exit__(self, *_: object) -> None:
        self.rows.write()

    def are_kept(self, names: Sequence[Any]) -> list[bool]:
        """Of each name whether a process before has kept its row; all must ask, for the same."""
        return hosts.from_first(lambda: [name in self.rows for name in names])

    def collect(self) -> None:
        """The first process takes the rows of all others; all must call it."""
        self.rows.write()
        hosts.gather(None)  # all have written
        hosts.from_first(self._absorb)

    def delete(self) -> None:
        """Removes all files; for the first process."""
        self.rows.delete()
        for path in self._others():
            path.unlink()

    def _others(self) -> list[epath.Path]:
        return sorted(self._folder.glob(f"{_NAME}.*.jsonl"))

    def _absorb(self) -> None:
        for path in self._others():
            self.rows.absorb(path)

    def _check_shared(self) -> None:
        found = len(self._others())
        if found != process_count() - 1:
            raise ConfigError(
                f"config.workdir is {str(self._folder)!r}, where process 0 finds the files of "
                f"{found} of the {process_count() - 1} other processes: it must be a folder that "
                "all of them see"
            )

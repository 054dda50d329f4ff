"""One run at a time in a folder, of however many processes."""

from __future__ import annotations

from masksearch_jax.parallel import hosts
from masksearch_jax.runtime.process import process_index
from masksearch_jax.runtime.process_lock import ProcessLock


class FolderLock(ProcessLock):
    """The lock of a run: its first process takes it, and all must ask for it together.

    Raises BeingWrittenError on all of them.
    """

    def _begin(self, waits: bool) -> None:
        hosts.from_first(lambda: self._take(waits) if process_index() == 0 else None)

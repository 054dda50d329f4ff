"""Which pages of a shard's KV cache are free, and how many trajectories use each of the others."""

from __future__ import annotations

from collections.abc import Iterable


class PagePool:
    """Pages 0..size-1, each free or used by one trajectory or more."""

    def __init__(self, size: int):
        self._uses = [0] * size
        self._free = list(range(size - 1, -1, -1))

    @property
    def free(self) -> int:
        return len(self._free)

    @property
    def used(self) -> int:
        return len(self._uses) - len(self._free)

    def take(self, count: int) -> list[int]:
        """Free pages for one user. ValueError when there are fewer."""
        if count > len(self._free):
            raise ValueError(f"{count} pages wanted, {len(self._free)} are free")
        pages = [self._free.pop() for _ in range(count)]
        for page in pages:
            self._uses[page] = 1
        return pages

    def share(self, pages: Iterable[int]) -> list[int]:
        """The same pages for one more user."""
        pages = list(pages)
        for page in pages:
            self._uses[page] += 1
        return pages

    def release(self, pages: Iterable[int]) -> None:
        """One user less of each; free again after the last."""
        for page in pages:
            self._uses[page] -= 1
            if not self._uses[page]:
                self._free.append(page)

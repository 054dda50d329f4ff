"""Searches that wait for a thread: a bounded queue, whose waiting requests are searched together.

A large request is cut, so that several threads share it. Requests take turns: a small one does not
wait for all of a large one. What nobody waits for any more is dropped before it is searched.
"""

from __future__ import annotations

import collections
import dataclasses
import itertools
import json
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future

from masksearch_jax.core.retrieval import SearchError, SearchTool
from masksearch_jax.core.types import Passage
from masksearch_jax.search import protocol
from masksearch_jax.search.protocol import Asked

BATCH = 32  # queries of one call of the tool


class FullError(Exception):
    """Too many requests wait."""


class DroppedError(Exception):
    """The request was not searched: its client has gone, or its time has passed."""


@dataclasses.dataclass(eq=False)
class Piece:
    """Some queries of one request, with the future of their replies as JSON."""

    queries: list[str]
    asked: Asked
    deadline: float  # by `time.monotonic`
    replies: Future[list[str]] = dataclasses.field(default_factory=Future)
    is_alone: bool = False  # searched by itself, since a search of several has failed


class SearchQueue:
    """Searches with `workers` threads; at most `waiting` requests wait.

    `searched` counts queries, `dropped` those that were not searched in time, `calls` the tool's.
    """

    def __init__(self, tool: SearchTool, workers: int, waiting: int):
        self._tool, self._most = tool, waiting
        self._requests: collections.deque[collections.deque[Piece]] = collections.deque()
        self._changed = threading.Condition()
        self._closed = False
        self.searched = self.dropped = self.calls = 0
        for _ in range(workers):
            threading.Thread(target=self._serve, name="search", daemon=True).start()

    @property
    def waiting(self) -> int:
        """Requests that wait, or whose rest does."""
        with self._changed:
            return len(self._requests)

    def submit(self, asked: Asked, deadline: float) -> list[Piece]:
        """Queues a request. Raises FullError."""
        cuts = range(0, len(asked.queries), BATCH)
        pieces = [Piece(asked.queries[i : i + BATCH], asked, deadline) for i in cuts]
        with self._changed:
            if len(self._requests) >= self._most:
                raise FullError(f"{self._most} requests wait already")
            if pieces:
                self._requests.append(collections.deque(pieces))
            self._changed.notify(len(pieces))
        return pieces

    def close(self) -> None:
        """Ends the threads; what waits is dropped."""
        with self._changed:
            self._closed = True
            for piece in itertools.chain.from_iterable(self._requests):
                if not piece.replies.cancel():
                    piece.replies.set_exception(DroppedError("the service has ended"))
            self._requests.clear()
            self._changed.notify_all()

    def _serve(self) -> None:
        while batch := self._take():
            live = [piece for piece in batch if self._is_wanted(piece)]
            if not live:
                continue
            queries = [query for piece in live for query in piece.queries]
            try:
                found = self._tool.search(queries, live[0].asked.top_k)
                replies = self._rendered(live, found)
            except BaseException as error:  # a panic of a Rust library is no Exception
                self._failed(live, error)
                continue
            for piece, texts in zip(live, replies, strict=True):
                piece.replies.set_result(texts)

    def _failed(self, pieces: list[Piece], error: BaseException) -> None:
        """Of several, each is searched again by itself: one's bad query harms no other's."""
        with self._changed:
            if len(pieces) > 1 and not self._closed:
                for piece in pieces:
                    piece.is_alone = True
                self._requests.extendleft(collections.deque([p]) for p in reversed(pieces))
                self._changed.notify(len(pieces))
                return
        for piece in pieces:
            piece.replies.set_exception(error)

    def _take(self) -> list[Piece]:
        """The next pieces, of one top_k; empty when the queue is closed."""
        with self._changed:
            self._changed.wait_for(lambda: self._requests or self._closed)
            if self._closed:
                return []
            batch = [self._next()]
            count = len(batch[0].queries)
            while self._requests and self._is_joinable(batch[0], self._requests[0][0], count):
                batch.append(self._next())
                count += len(batch[-1].queries)
            self.calls += 1
            return batch

    def _next(self) -> Piece:
        """A piece of the first request, whose rest goes behind the others."""
        request = self._requests.popleft()
        piece = request.popleft()
        if request:
            self._requests.append(request)
        return piece

    @staticmethod
    def _is_joinable(first: Piece, other: Piece, count: int) -> bool:
        if first.is_alone or other.is_alone or other.asked.top_k != first.asked.top_k:
            return False
        return count + len(other.queries) <= BATCH

    def _is_wanted(self, piece: Piece) -> bool:
        wanted = piece.is_alone or piece.replies.set_running_or_notify_cancel()
        late = wanted and time.monotonic() > piece.deadline
        if late:
            piece.replies.set_exception(DroppedError("its time passed before it was searched"))
        with self._changed:
            if wanted and not late:
                self.searched += len(piece.queries)
            else:
                self.dropped += len(piece.queries)
        return wanted and not late

    @staticmethod
    def _rendered(pieces: list[Piece], found: Sequence[Sequence[Passage]]) -> list[list[str]]:
        asked = sum(len(piece.queries) for piece in pieces)
        if len(found) != asked:
            raise SearchError(f"{asked} queries got {len(found)} results")
        results = iter(found)
        return [
            [json.dumps(protocol.result(next(results), p.asked.scored)) for _ in p.queries]
            for p in pieces
        ]

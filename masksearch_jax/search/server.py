"""A search tool as an HTTP service that Search-R1's clients can talk to; see `protocol`.

Errors are {"error": "..."} with a status of `http_service`, 422 for queries that the tool refuses,
or 503: the search failed, too many requests wait, or one waited too long. GET /metrics has the
figures of a Prometheus client.
"""

from __future__ import annotations

import asyncio
import json
import math
import time
from http import HTTPStatus

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from starlette.responses import Response

from masksearch_jax.core.retrieval import SearchError, SearchTool
from masksearch_jax.core.types import JsonObject
from masksearch_jax.runtime.http_service import LAST_WORDS, Call, Refusal, Service
from masksearch_jax.search import protocol
from masksearch_jax.search.gather import RefusedError
from masksearch_jax.search.remote import INDEX, TIME_LEFT
from masksearch_jax.search.request_queue import DroppedError, FullError, Piece, SearchQueue

OK = HTTPStatus.OK
MAX_BODY = 64 * 2**20  # bytes of a request
_RETRY_AFTER = 1  # seconds that a client of a full queue is asked to wait


class SearchServer(Service):
    """Serves `tool` on (host, port), as `Service` does.

    workers: threads that search. waiting: requests that may wait for one, beyond which they get
    503. default_top_k: where a request names none. last_words: as of `Service`.
    """

    def __init__(
        self,
        tool: SearchTool,
        host: str,
        port: int,
        workers: int = 8,
        *,
        waiting: int = 256,
        default_top_k: int = 5,
        last_words: int = LAST_WORDS,
    ):
        self.tool, self._default_top_k = tool, default_top_k
        index = getattr(tool, "fingerprint", "")
        self._headers = {INDEX: index} if index else {}
        self._queue = SearchQueue(tool, workers, waiting)
        self._figures = _Figures(self._queue)
        routes = {
            ("POST", "/retrieve"): self._retrieve,
            ("GET", "/health"): self._health,
            ("GET", "/metrics"): self._metrics,
        }
        super().__init__(host, port, routes, max_body=MAX_BODY, last_words=last_words)

    @property
    def url(self) -> str:
        return f"{self.address}/retrieve"

    def server_close(self) -> None:
        super().server_close()
        self._queue.close()

    async def _retrieve(self, call: Call) -> Response:
        started = time.monotonic()
        status = HTTPStatus.INTERNAL_SERVER_ERROR
        try:
            asked = protocol.parse(call.json(), self._default_top_k)
            replies = await self._searched(self._queue.submit(asked, started + _time_left(call)))
            status = OK
            text = ", ".join(reply for piece in replies for reply in piece)
            return Response(f'{{"result": [{text}]}}', OK, self._headers, "application/json")
        except Refusal as refusal:
            status = refusal.status
            raise
        except (FullError, DroppedError) as error:
            status = HTTPStatus.SERVICE_UNAVAILABLE
            headers = {"Retry-After": str(_RETRY_AFTER)}
            return Response(json.dumps({"error": str(error)}), status, headers, "application/json")
        except SearchError as error:
            is_refused = isinstance(error, RefusedError)
            status = HTTPStatus.SERVICE_UNAVAILABLE
            if is_refused:  # which no other try would change
                status = HTTPStatus.UNPROCESSABLE_ENTITY
            raise Refusal(status, str(error)) from error
        finally:
            self._figures.note(status, time.monotonic() - started)

    @staticmethod
    async def _searched(pieces: list[Piece]) -> list[list[str]]:
        """The replies; cancelled, since the client has gone, it drops what is not begun."""
        try:
            return await asyncio.gather(*(asyncio.wrap_future(p.replies) for p in pieces))
        finally:
            for piece in pieces:
                piece.replies.cancel()

    def _health(self, _: Call) -> JsonObject:
        return protocol.health(self.tool)

    async def _metrics(self, _: Call) -> Response:
        return Response(self._figures.text(), media_type="text/plain; version=0.0.4")


class _Figures:
    """What /metrics tells."""

    def __init__(self, queue: SearchQueue):
        registry = self._registry = CollectorRegistry()
        self._requests = Counter(
            "search_requests", "Requests by status.", ["status"], registry=registry
        )
        self._seconds = Histogram(
            "search_request_seconds", "Seconds from a request to its reply.", registry=registry
        )
        for name, sentence, value in (
            ("search_waiting", "Requests that wait.", lambda: queue.waiting),
            ("search_searched", "Queries that were searched.", lambda: queue.searched),
            ("search_dropped", "Queries dropped before a search.", lambda: queue.dropped),
            ("search_calls", "Calls of the search tool.", lambda: queue.calls),
        ):
            Gauge(name, sentence, registry=registry).set_function(value)

    def note(self, status: HTTPStatus, seconds: float) -> None:
        self._requests.labels(int(status)).inc()
        self._seconds.observe(seconds)

    def text(self) -> bytes:
        return generate_latest(self._registry)


def _time_left(call: Call) -> float:
    """Seconds that the client waits, where it says so; at 0 and below it has gone."""
    try:
        left = float(call.headers.get(TIME_LEFT.lower(), "inf"))
    except ValueError:
        return math.inf
    return math.inf if math.isnan(left) else left

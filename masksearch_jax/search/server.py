"""A search tool as an HTTP service that Search-R1's clients can talk to.

POST /retrieve  {"queries": ["..."], "topk": 5, "return_scores": true}
             →  {"result": [[{"document": {"id", "title", "text", "contents"}, "score": 7.1}, ...]]}
GET  /health →  {"status": "ok", "passages": 54533}
Errors are JSON too: {"error": "..."}, with status 400 (a request that makes no sense), 404, 405,
411, 413 (too large), 500 (a defect here) or 503 (the search failed).
"""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Sequence
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from masksearch_jax.search.tool import SearchError, SearchTool
from masksearch_jax.types import Passage

MAX_BODY = 4 * 2**20  # bytes of a request
MAX_QUERIES = 512  # per request
MAX_TOP_K = 100
_DEFAULT_TOP_K = 5
_IDLE = 30.0  # seconds a connection may be silent


class SearchServer(ThreadingHTTPServer):
    """Serves `tool` on (host, port), a thread per connection; port 0 takes a free one.

    At most `workers` searches run at once, the others wait. Call `serve_forever`, and `shutdown`
    from another thread. Raises OSError for a taken port.
    """

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, tool: SearchTool, host: str, port: int, workers: int = 8):
        self.tool = tool
        self.free = threading.BoundedSemaphore(workers)
        super().__init__((host, port), _Handler)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Prints the traceback of a defect; a client that went away is none."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)

    @property
    def url(self) -> str:
        host, port = self.server_address[:2]
        return f"http://{host}:{port}/retrieve"


class _Refusal(Exception):
    """What is wrong with a request."""

    def __init__(self, status: HTTPStatus, message: str):
        super().__init__(message)
        self.status = status


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    timeout = _IDLE
    server: SearchServer

    def do_GET(self) -> None:
        if self.path == "/health":
            self._send(HTTPStatus.OK, _health(self.server.tool))
        else:
            self._refuse(_wrong_place(self.path, "/retrieve", "POST"))

    def do_POST(self) -> None:
        try:
            if self.path != "/retrieve":
                raise _wrong_place(self.path, "/health", "GET")
            queries, top_k, scored = _parse(self._body())
            with self.server.free:
                results = _retrieve(self.server.tool, queries, top_k, scored)
            self._send(HTTPStatus.OK, {"result": results})
        except _Refusal as refusal:
            self._refuse(refusal)
        except SearchError as error:
            self._refuse(_Refusal(HTTPStatus.SERVICE_UNAVAILABLE, str(error)))
        except OSError:
            raise  # the connection's, with nobody left to tell
        except Exception as error:
            self._refuse(_Refusal(HTTPStatus.INTERNAL_SERVER_ERROR, repr(error)))
            raise

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """What the base class finds wrong with a request, as JSON too."""
        status = HTTPStatus(code)
        self._refuse(_Refusal(status, message or status.phrase))

    def log_message(self, *_: Any) -> None:
        """Requests are not logged: writing to a terminal slows a busy service down."""

    def _body(self) -> bytes:
        length = self.headers.get("Content-Length", "")
        if not length.isdecimal() or len(length) > 12:
            raise _Refusal(HTTPStatus.LENGTH_REQUIRED, "the request needs a Content-Length")
        if int(length) > MAX_BODY:
            raise _Refusal(
                HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"{length} bytes, at most {MAX_BODY} are read"
            )
        return self.rfile.read(int(length))

    def _refuse(self, refusal: _Refusal) -> None:
        # Its body may be unread, so nothing that follows on this connection could be understood.
        self.close_connection = True
        self._send(refusal.status, {"error": str(refusal)})

    def _send(self, status: HTTPStatus, content: dict[str, Any]) -> None:
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(body)


def _wrong_place(path: str, other: str, method: str) -> _Refusal:
    if path == other:
        return _Refusal(HTTPStatus.METHOD_NOT_ALLOWED, f"{path} takes {method}")
    return _Refusal(HTTPStatus.NOT_FOUND, f"no {path[:80]!r}; there are /retrieve and /health")


def _health(tool: SearchTool) -> dict[str, Any]:
    size = {"passages": len(tool)} if hasattr(tool, "__len__") else {}
    return {"status": "ok", **size}


def _parse(body: bytes) -> tuple[list[str], int, bool]:
    """(queries, top_k, scored) of a request. Raises _Refusal naming what is wrong."""
    bad = HTTPStatus.BAD_REQUEST
    try:
        request = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise _Refusal(bad, f"the request is not JSON: {error}") from None
    if not isinstance(request, dict):
        raise _Refusal(bad, "the request must be a JSON object")
    queries = request.get("queries")
    if not isinstance(queries, list) or not all(isinstance(q, str) for q in queries):
        raise _Refusal(bad, "`queries` must be a list of strings")
    if len(queries) > MAX_QUERIES:
        raise _Refusal(bad, f"{len(queries)} queries, at most {MAX_QUERIES} are taken")
    top_k = request.get("topk")
    top_k = _DEFAULT_TOP_K if top_k is None else top_k
    if type(top_k) is not int or not 1 <= top_k <= MAX_TOP_K:
        raise _Refusal(bad, f"`topk` is {top_k!r}, must be a whole number of 1 to {MAX_TOP_K}")
    return queries, top_k, bool(request.get("return_scores", False))


def _retrieve(
    tool: SearchTool, queries: Sequence[str], top_k: int, scored: bool
) -> list[list[dict[str, Any]]]:
    """Hits per query; as Search-R1 does, bare documents unless scores are asked for.

    A tool that has no scores (no `search_scored`) gives none: the hit then has only `document`.
    """
    if not scored:
        return [[_document(p) for p in hits] for hits in tool.search(queries, top_k)]
    if not hasattr(tool, "search_scored"):
        return [[{"document": _document(p)} for p in hits] for hits in tool.search(queries, top_k)]
    return [
        [{"document": _document(passage), "score": score} for passage, score in hits]
        for hits in tool.search_scored(queries, top_k)
    ]


def _document(passage: Passage) -> dict[str, str]:
    return {
        "id": passage.id,
        "title": passage.title,
        "text": passage.text,
        "contents": f'"{passage.title}"\n{passage.text}',
    }

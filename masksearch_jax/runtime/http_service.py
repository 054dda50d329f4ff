"""What our HTTP services share: JSON in and out, limits, refusals; a thread per connection.

Errors are JSON too, with status 400 (a request that makes no sense), 404, 405, 411, 413 (too large)
or 500 (a defect here), and what a route refuses with. Pages that this machine's browser opened from
this machine may ask too (CORS): these services have no access control, so no other page may.
"""

from __future__ import annotations

import contextlib
import json
import select
import socket
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

from masksearch_jax.core.types import JsonObject

MAX_BODY = 4 * 2**20  # bytes of a request
_IDLE = 30.0  # seconds a connection may be silent
_LAST_WORDS = 5.0  # seconds in which the replies in progress are sent, when a service is closed


class Refusal(Exception):
    """What is wrong with a request; `code` is a short name of it, for protocols that have such."""

    def __init__(self, status: HTTPStatus, message: str, code: str = ""):
        super().__init__(message)
        self.status, self.code = status, code


class Call:
    """A request as a route sees it."""

    def __init__(self, body: bytes, connection: socket.socket):
        self._body, self._connection = body, connection

    def json(self) -> JsonObject:
        """Its body, a JSON object. Raises Refusal for anything else."""
        try:
            content = json.loads(self._body)
        except (ValueError, RecursionError) as error:
            raise Refusal(HTTPStatus.BAD_REQUEST, f"the request is not JSON: {error}") from None
        if not isinstance(content, dict):
            raise Refusal(HTTPStatus.BAD_REQUEST, "the request must be a JSON object")
        return content

    def has_gone(self) -> bool:
        """Whether the client has closed the connection."""
        poll = select.poll()
        poll.register(self._connection, select.POLLIN)
        try:
            return bool(poll.poll(0)) and not self._connection.recv(1, socket.MSG_PEEK)
        except OSError:
            return True


Route = Callable[[Call], JsonObject]


class Service(ThreadingHTTPServer):
    """Answers `routes`, (method, path) → what to reply with, on (host, port); port 0: a free one.

    A route raises Refusal for what it does not answer. Call `serve_forever`, and `shutdown` from
    another thread; as a context manager it is closed once the replies in progress are sent. Raises
    OSError for a taken port.
    """

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, host: str, port: int, routes: Mapping[tuple[str, str], Route]):
        self.routes = routes
        self._in_progress, self._changed = 0, threading.Condition()
        super().__init__((host, port), _Handler)

    @property
    def address(self) -> str:
        host, port = map(str, self.server_address[:2])
        return f"http://{host}:{port}"

    def error(self, refusal: Refusal) -> JsonObject:
        """The JSON of an error."""
        return {"error": str(refusal)}

    @contextlib.contextmanager
    def in_progress(self) -> Iterator[None]:
        """Around a request, until its reply is sent."""
        with self._changed:
            self._in_progress += 1
        try:
            yield
        finally:
            with self._changed:
                self._in_progress -= 1
                self._changed.notify_all()

    def server_close(self) -> None:
        super().server_close()
        with self._changed:
            self._changed.wait_for(lambda: not self._in_progress, _LAST_WORDS)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Prints the traceback of a defect; a client that went away is none."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    timeout = _IDLE
    server: Service

    def do_GET(self) -> None:
        self._answer("GET")

    def do_POST(self) -> None:
        self._answer("POST")

    def do_OPTIONS(self) -> None:
        """What a browser asks before another page may call: yes, to pages of this machine."""
        self.send_response(HTTPStatus.NO_CONTENT)
        self.send_header("Allow", "GET, POST, OPTIONS")
        if self._is_of_this_machine():
            self.send_header("Access-Control-Allow-Methods", "GET, POST, OPTIONS")
            self.send_header("Access-Control-Allow-Headers", "Authorization, Content-Type")
            self.send_header("Access-Control-Max-Age", "600")
        self._send_origin()
        self.send_header("Content-Length", "0")
        self.end_headers()

    def _is_of_this_machine(self) -> bool:
        """Whether the page that asks was opened from this machine."""
        try:
            host = urlsplit(self.headers.get("Origin", "")).hostname or ""
        except ValueError:
            return False
        return host in ("localhost", "127.0.0.1", "::1") or host.endswith(".localhost")

    def _send_origin(self) -> None:
        self.send_header("Vary", "Origin")
        if self._is_of_this_machine():
            self.send_header("Access-Control-Allow-Origin", self.headers["Origin"])

    def _answer(self, method: str) -> None:
        with self.server.in_progress():
            try:
                route = self._route(method)
                body = self._body() if method == "POST" else b""
                self._send(HTTPStatus.OK, route(Call(body, self.connection)))
            except Refusal as refusal:
                self._refuse(refusal)
            except OSError:
                raise  # the connection's, with nobody left to tell
            except Exception as error:
                self._refuse(Refusal(HTTPStatus.INTERNAL_SERVER_ERROR, repr(error)))
                raise

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """What the base class finds wrong with a request, as JSON too."""
        status = HTTPStatus(code)
        self._refuse(Refusal(status, message or status.phrase))

    def log_message(self, *_: object) -> None:
        """Requests are not logged: writing to a terminal slows a busy service down."""

    def _route(self, method: str) -> Route:
        routes = self.server.routes
        path = self.path.partition("?")[0]
        path = path.rstrip("/") or "/"
        if (method, path) in routes:
            return routes[method, path]
        if taken := [m for m, known in routes if known == path]:
            raise Refusal(HTTPStatus.METHOD_NOT_ALLOWED, f"{path} takes {taken[0]}")
        *others, last = (path for _, path in routes)
        there = f"{', '.join(others)} and {last}"
        raise Refusal(HTTPStatus.NOT_FOUND, f"no {self.path[:80]!r}; there are {there}")

    def _body(self) -> bytes:
        length = self.headers.get("Content-Length", "")
        if not length.isdecimal() or len(length) > 12:
            raise Refusal(HTTPStatus.LENGTH_REQUIRED, "the request needs a Content-Length")
        if int(length) > MAX_BODY:
            raise Refusal(
                HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"{length} bytes, at most {MAX_BODY} are read"
            )
        return self.rfile.read(int(length))

    def _refuse(self, refusal: Refusal) -> None:
        # Its body may be unread, so nothing that follows on this connection could be understood.
        self.close_connection = True
        self._send(refusal.status, self.server.error(refusal))

    def _send(self, status: HTTPStatus, content: JsonObject) -> None:
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self._send_origin()
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(body)

"""What our HTTP services share: JSON in and out, server-sent events, limits, refusals.

Errors are JSON too, with status 400 (a request that makes no sense), 404, 405, 413 (too large) or
500 (a defect here), and what a route refuses with. Pages that this machine's browser opened from
this machine may ask too (CORS): these services have no access control, so no other page may.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import json
import socket
import traceback
import types
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from http import HTTPStatus
from typing import NamedTuple

import anyio
import uvicorn
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route as Path
from starlette.types import Receive, Scope, Send

from masksearch_jax.core.types import JsonObject

MAX_BODY = 4 * 2**20  # bytes of a request
_LINGERS = 30  # seconds in which what a refused client still sends is read and forgotten
_BACKLOG = 1024  # connections that may wait to be taken
_IDLE = 30  # seconds a connection may be silent
LAST_WORDS = 5  # seconds in which the replies in progress are sent, when a service ends
_DIGITS = 20  # of a length that are read
_THREADS = 256  # routes that run at once, of those that are no coroutines
_KINDS = {"html": "text/html", "css": "text/css", "js": "text/javascript"}
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_NONE: Mapping[str, str] = types.MappingProxyType({})
_THIS_MACHINE = r"https?://(localhost|[^/@]*\.localhost|127\.0\.0\.1|\[::1\])(:\d+)?"


class Refusal(Exception):
    """What is wrong with a request; `code` is a short name of it, for protocols that have such."""

    def __init__(self, status: HTTPStatus, message: str, code: str = ""):
        super().__init__(message)
        self.status, self.code = status, code


class Call(NamedTuple):
    """A request as a route sees it; the names of its headers are in lower case."""

    body: bytes
    headers: Mapping[str, str] = _NONE

    def json(self) -> JsonObject:
        """Its body, a JSON object. Raises Refusal for anything else."""
        try:
            content = json.loads(self.body)
        except (ValueError, RecursionError) as error:
            raise Refusal(HTTPStatus.BAD_REQUEST, f"the request is not JSON: {error}") from None
        if not isinstance(content, dict):
            raise Refusal(HTTPStatus.BAD_REQUEST, "the request must be a JSON object")
        return content


class Events(NamedTuple):
    """A reply of server-sent events: JSON objects, or text as it is."""

    events: AsyncIterator[JsonObject | str]
    close: Callable[[], None]  # called once all are sent, or nobody reads them any more


class Page(NamedTuple):
    """A file of a page, which loads nothing from elsewhere."""

    text: str
    kind: str  # html, css or js


Reply = JsonObject | Events | Page | Response
# In a thread, or a coroutine, which is cancelled when its client has gone.
Route = Callable[[Call], Reply | Awaitable[Reply]]


class Service:
    """Answers `routes`, (method, path) → what to reply with, on (host, port); port 0: a free one.

    A route raises Refusal for what it does not answer. Call `serve_forever`, and `shutdown` from
    any thread or a signal handler; as a context manager it is closed at the end. hosts: names that
    requests may have for it. Raises OSError for a taken port.
    """

    def __init__(
        self,
        host: str,
        port: int,
        routes: Mapping[tuple[str, str], Route],
        hosts: Sequence[str] = ("*",),
        *,
        max_body: int = MAX_BODY,
        last_words: int = LAST_WORDS,
    ):
        """max_body: bytes of a request; a larger one is refused.

        last_words: seconds in which replies in progress are sent at the end; others are refused.
        """
        self.routes, self._threads = routes, anyio.CapacityLimiter(_THREADS)
        self._max_body = max_body
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._socket = socket.create_server((host, port), family=family, backlog=_BACKLOG)
        self.server_address: tuple[str, int] = self._socket.getsockname()[:2]
        config = uvicorn.Config(
            self._app(hosts),
            http="httptools",
            ws="none",
            lifespan="off",
            log_config=None,  # requests are not logged
            access_log=False,
            server_header=False,
            backlog=_BACKLOG,
            timeout_keep_alive=_IDLE,
            timeout_graceful_shutdown=last_words,
        )
        self._server = _Server(config)

    def __enter__(self) -> Service:
        return self

    def __exit__(self, *_: object) -> None:
        self.server_close()

    @property
    def address(self) -> str:
        host, port = self.server_address
        return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"

    def serve_forever(self) -> None:
        """Answers until `shutdown`; the replies in progress are sent first."""
        self._server.run(sockets=[self._socket])

    def shutdown(self) -> None:
        """Tells `serve_forever` to end."""
        self._server.should_exit = True

    def server_close(self) -> None:
        self._socket.close()

    def error(self, refusal: Refusal) -> JsonObject:
        """The JSON of an error."""
        return {"error": str(refusal)}

    # ---- the event loop

    def _app(self, hosts: Sequence[str]) -> Starlette:
        paths = [
            Path(path + end, self._endpoint(route), methods=[method])
            for (method, path), route in self.routes.items()
            for end in ("", "/")  # asked again for another address, some clients drop the body
        ]
        cors = Middleware(
            CORSMiddleware,
            allow_origin_regex=_THIS_MACHINE,
            allow_methods=["GET", "POST"],
            allow_headers=["*"],
        )
        named = Middleware(TrustedHostMiddleware, allowed_hosts=list(hosts), www_redirect=False)
        return Starlette(
            routes=paths,
            exception_handlers={HTTPException: self._unrouted},
            middleware=[named, cors],
        )

    def _endpoint(self, route: Route) -> Callable[[Request], Awaitable[Response]]:
        async def answer(request: Request) -> Response:
            try:
                if (body := await _body(request, self._max_body)) is None:
                    return self._refuse(_too_large(request, self._max_body), is_unread=True)
                call = Call(body, request.headers)
                return _response(await _while_connected(request, self._run(route, call)))
            except Refusal as refusal:
                return self._refuse(refusal)
            except ClientDisconnect:
                return Response()  # which nobody reads
            except asyncio.CancelledError:
                if not self._server.should_exit:
                    raise
                ending = Refusal(HTTPStatus.SERVICE_UNAVAILABLE, "the service has ended")
                return self._refuse(ending, {"Retry-After": "1"})
            except Exception as error:
                traceback.print_exc()
                return self._refuse(Refusal(HTTPStatus.INTERNAL_SERVER_ERROR, repr(error)))

        return answer

    async def _run(self, route: Route, call: Call) -> Reply:
        found: Reply | Awaitable[Reply]
        if inspect.iscoroutinefunction(route):
            found = route(call)
        else:
            found = await anyio.to_thread.run_sync(route, call, limiter=self._threads)
        return await found if inspect.isawaitable(found) else found

    async def _unrouted(self, request: Request, error: Exception) -> Response:
        """What starlette has no route for: 404 and 405."""
        path = request.url.path.rstrip("/") or "/"
        if taken := [method for method, known in self.routes if known == path]:
            refusal = Refusal(HTTPStatus.METHOD_NOT_ALLOWED, f"{path} takes {taken[0]}")
        else:
            *others, last = dict.fromkeys(path for _, path in self.routes)
            there = f"there are {', '.join(others)} and {last}" if others else f"there is {last}"
            refusal = Refusal(HTTPStatus.NOT_FOUND, f"no {path[:80]!r}; {there}")
        return self._refuse(refusal, is_unread=True)

    def _refuse(
        self, refusal: Refusal, headers: Mapping[str, str] = _NONE, *, is_unread: bool = False
    ) -> Response:
        """is_unread: of the request's body nothing, or not all, was read."""
        # Nothing that follows an unread body on this connection could be understood.
        kind = _Lingering if is_unread else Response
        content = json.dumps(self.error(refusal))
        return kind(content, refusal.status, {"Connection": "close", **headers}, "application/json")


class _Server(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield  # signals are the main's


class _Lingering(Response):
    """A whole reply to a client that may be sending still, which is listened to for a while.

    A reply would be lost with its connection if that was closed before all is read.
    """

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        head = {"status": self.status_code, "headers": self.raw_headers}
        await send({"type": "http.response.start", **head})
        await send({"type": "http.response.body", "body": self.body, "more_body": True})
        with anyio.move_on_after(_LINGERS):
            while (await receive()).get("more_body"):
                pass
        await send({"type": "http.response.body"})


async def _body(request: Request, most: int) -> bytes | None:
    """All that is sent; None for more than `most` bytes, of which not all are read."""
    length = request.headers.get("content-length", "0")
    if len(length) > _DIGITS or int(length) > most:
        return None
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > most:
            return None
    return bytes(body)


def _too_large(request: Request, most: int) -> Refusal:
    length = request.headers.get("content-length", "")[:_DIGITS] or f"more than {most}"
    too_large = HTTPStatus.REQUEST_ENTITY_TOO_LARGE
    return Refusal(too_large, f"{length} bytes, at most {most} are read")


async def _while_connected(request: Request, work: Awaitable[Reply]) -> Reply:
    """What `work` comes to; it is cancelled, and ClientDisconnect raised, when the client goes."""

    async def gone() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    working, leaving = asyncio.ensure_future(work), asyncio.ensure_future(gone())
    try:
        await asyncio.wait((working, leaving), return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ClientDisconnect
        return working.result()
    finally:
        working.cancel()
        leaving.cancel()


def _response(reply: Reply) -> Response:
    if isinstance(reply, Response):
        return reply
    if isinstance(reply, Page):
        headers = {"Content-Security-Policy": _POLICY, "Cache-Control": "no-cache"}
        return Response(reply.text, headers=headers, media_type=_KINDS[reply.kind])
    if isinstance(reply, Events):
        lines = _lines(reply.events)
        headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
        closed = BackgroundTask(reply.close)
        return StreamingResponse(
            lines, headers=headers, media_type="text/event-stream", background=closed
        )
    return Response(json.dumps(reply), media_type="application/json")


async def _lines(events: AsyncIterator[JsonObject | str]) -> AsyncIterator[str]:
    async for event in events:
        yield f"data: {event if isinstance(event, str) else json.dumps(event)}\n\n"

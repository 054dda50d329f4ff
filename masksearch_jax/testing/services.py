"""Services on the loopback that answer, or misbehave, by script: an LLM and a search service.

One script says what becomes of each call. What was asked is recorded. Needs no network.
"""

from __future__ import annotations

import abc
import collections
import contextlib
import dataclasses
import email.utils
import hashlib
import http.server
import itertools
import json
import socket
import socketserver
import threading
import time
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from http import HTTPStatus
from typing import Any, NamedTuple, Self, TypeVar

from masksearch_jax.core.retrieval import SearchError, SearchTool
from masksearch_jax.runtime.http_service import Call, Refusal, Service
from masksearch_jax.search import protocol

_DEFAULT_TOP_K = 5  # of a search that names none
_LOOK = 0.2  # seconds after which a call that hangs looks whether its client is still there
_LAST_RECORDS = 5.0  # seconds in which the threads of a service that ends may record what they did

_NO_MODELS: Mapping[str, str] = types.MappingProxyType({})

Server = TypeVar("Server", bound=socketserver.BaseServer | Service)


@contextlib.contextmanager
def serving(server: Server) -> Iterator[Server]:
    """The server, which answers in a thread until the block ends; it is closed then."""
    often = {} if isinstance(server, Service) else {"poll_interval": 0.01}
    thread = threading.Thread(target=server.serve_forever, kwargs=often)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


# ---- scripts

DEEP_JSON = b'{"a":' * 100_000 + b"1" + b"}" * 100_000  # valid, and deeper than parsers go


@dataclasses.dataclass(frozen=True)
class Answer:
    """How a service answers one call; with nothing set it is well.

    text: what an LLM says, as a string or as OpenAI's list of content parts. finish: its
    `finish_reason`. tokens: those of prompt and completion that it counts.
    status: other than 200, the body is an error object. message, code: what that says; a message
    makes it an error under any status. headers: further ones.
    hang: seconds before the answer; `math.inf`: none comes. cut: so many bytes of the body are
    sent, then the connection is closed. body: sent in place of any other.
    """

    text: str | Sequence[Mapping[str, Any]] = ""
    status: int = 200
    headers: Mapping[str, str] = dataclasses.field(default_factory=dict)
    hang: float = 0.0
    message: str = ""
    code: str | None = None
    finish: str = "stop"
    tokens: tuple[int, int] = (7, 3)
    cut: int | None = None
    body: bytes | None = None

    @property
    def is_error(self) -> bool:
        return self.status != 200 or bool(self.message)

    @property
    def is_whole(self) -> bool:
        """Whether its reader gets at once all that the service has to say."""
        return not self.is_error and not self.hang and self.cut is None and self.body is None


WELL = Answer()

# What a service does about a call: always the same, or by the request's JSON.
Script = Answer | Callable[[dict[str, Any]], Answer]


def answer_of(script: Script, request: dict[str, Any]) -> Answer:
    return script if isinstance(script, Answer) else script(request)


def in_turn(*scripts: Script) -> Script:
    """The first call by the first script, the second by the second, …, all others by the last."""
    return by_number(lambda number: scripts[min(number, len(scripts)) - 1])


def by_number(script_of: Callable[[int], Script]) -> Script:
    """Each call by the script of its number; the first call is 1."""
    numbers, lock = itertools.count(1), threading.Lock()

    def script(request: dict[str, Any]) -> Answer:
        with lock:
            number = next(numbers)
        return answer_of(script_of(number), request)

    return script


def sometimes(
    share: float, fault: Script, well: Script, *, seed: int = 0, first: int | None = None
) -> Script:
    """A share of all requests, drawn by a hash of (seed, request), by `fault`; the others `well`.

    first: how many calls with the same request are so; those that follow are well. None: all.
    """
    calls: collections.Counter[str] = collections.Counter()
    lock = threading.Lock()

    def script(request: dict[str, Any]) -> Answer:
        text = f"{seed}\n{json.dumps(request, sort_keys=True)}"
        digest = hashlib.sha256(text.encode()).digest()
        with lock:
            calls[text] += 1
            late = first is not None and calls[text] > first
        drawn = int.from_bytes(digest[:8]) < share * 2**64
        return answer_of(fault if drawn and not late else well, request)

    return script


def retry_after(seconds: float, form: str = "seconds") -> dict[str, str]:
    """The header that asks for a pause; forms: `seconds`, `date`, and `bare date`, without a zone.

    A date has whole seconds.
    """
    date = email.utils.formatdate(time.time() + seconds, usegmt=True)
    forms = {"seconds": f"{seconds:g}", "date": date, "bare date": date.removesuffix(" GMT")}
    return {"Retry-After": forms[form]}


# ---- services


class Asked(NamedTuple):
    """A call that a service got, and when, by `time.monotonic`."""

    path: str
    body: dict[str, Any]
    time: float


class Loopback(abc.ABC):
    """A service on 127.0.0.1 and a free port, from the start of a `with` block to its end.

    Each call is answered by `script`, but those of the methods `unscripted`; `calls` has them in
    the order in which they came. `kill` closes port and connections at once, as the end of a
    process would; `restart` opens the same port.
    """

    unscripted: tuple[str, ...] = ("GET",)

    def __init__(self, script: Script):
        self.script = script
        self.calls: list[Asked] = []
        self.served: list[tuple[Asked, Answer]] = []  # once the answer has been written
        self.in_flight = self.most_in_flight = 0  # calls that wait for their answer
        self.lock = threading.Lock()
        self.port = 0
        self._closed = self._reserve()
        self._server: _Server | None = None

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def requests(self) -> list[dict[str, Any]]:
        """The bodies of the calls."""
        with self.lock:
            return [call.body for call in self.calls]

    @property
    def times(self) -> list[float]:
        """When the calls came."""
        with self.lock:
            return [call.time for call in self.calls]

    def restart(self) -> None:
        if self._server is None:
            self._server = _Server(self, self._closed)

    def kill(self) -> None:
        if self._server is not None:
            self._server.close()
            self._server, self._closed = None, self._reserve()

    def __enter__(self) -> Self:
        self.restart()
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
        self._closed.close()

    def _reserve(self) -> socket.socket:
        """A socket with the port that does not listen: connections to it are refused."""
        reserved = socket.socket()
        reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        reserved.bind(("127.0.0.1", self.port))
        self.port = reserved.getsockname()[1]
        return reserved

    @contextlib.contextmanager
    def asked(self, path: str, body: dict[str, Any]) -> Iterator[tuple[Asked, Answer]]:
        """A call with its answer by script, recorded, and in flight until the block ends."""
        with self.lock:
            asked = Asked(path, body, time.monotonic())
            self.calls.append(asked)
            self.in_flight += 1
            self.most_in_flight = max(self.most_in_flight, self.in_flight)
        try:
            yield asked, answer_of(self.script, body)
        finally:
            with self.lock:
                self.in_flight -= 1

    def told(self, path: str, call: Call) -> dict[str, Any]:
        """What a call asks, as `calls` and the script have it."""
        return call.json()

    @abc.abstractmethod
    def reply(self, route: tuple[str, str], call: Call, answer: Answer) -> dict[str, Any]:
        """The JSON for a call of a (method, path) when all is well.

        Raises Refusal for a call that makes no sense.
        """

    @abc.abstractmethod
    def error(self, message: str, code: str | None = None) -> dict[str, Any]:
        """The JSON of an error."""


def completion(answer: Answer, model: str = "") -> dict[str, Any]:
    """The JSON of a chat completion that says so."""
    prompt, said = answer.tokens
    usage = {"prompt_tokens": prompt, "completion_tokens": said, "total_tokens": prompt + said}
    message = {"role": "assistant", "content": answer.text}
    return {
        "id": "x",
        "object": "chat.completion",
        "created": 0,
        "model": model,
        "choices": [{"index": 0, "finish_reason": answer.finish, "message": message}],
        "usage": usage,
    }


class Endpoint(Loopback):
    """An LLM that speaks OpenAI's chat protocol at `url`; the script has what it says.

    models: the fingerprint of the weights behind each name, which it lists; empty: it lists none.
    """

    def __init__(self, script: Script, models: Mapping[str, str] = _NO_MODELS):
        super().__init__(script)
        self.models = models

    @property
    def url(self) -> str:
        return f"{self.address}/v1"

    @property
    def paid(self) -> list[dict[str, Any]]:
        """The bodies of the calls that got a whole reply with text."""
        with self.lock:
            served = list(self.served)
        return [asked.body for asked, answer in served if answer.is_whole and answer.text]

    def reply(self, route: tuple[str, str], call: Call, answer: Answer) -> dict[str, Any]:
        if route == ("GET", "/v1/models") and self.models:
            listed = [{"id": name, "fingerprint": f} for name, f in self.models.items()]
            return {"object": "list", "data": listed}
        if route != ("POST", "/v1/chat/completions"):
            raise Refusal(HTTPStatus.NOT_FOUND, f"no {' '.join(route)}")
        return completion(answer, call.json().get("model", ""))

    def error(self, message: str, code: str | None = None) -> dict[str, Any]:
        return {"error": {"message": message, "code": code}}


class SearchEndpoint(Loopback):
    """A search service at `url` that answers from `tool` as `serve_search` does, or by script."""

    def __init__(self, tool: SearchTool, script: Script = WELL):
        super().__init__(script)
        self.tool = tool

    @property
    def url(self) -> str:
        return f"{self.address}/retrieve"

    def reply(self, route: tuple[str, str], call: Call, answer: Answer) -> dict[str, Any]:
        if route == ("GET", "/health"):
            return protocol.health(self.tool)
        if route != ("POST", "/retrieve"):
            raise Refusal(HTTPStatus.NOT_FOUND, f"no {' '.join(route)}")
        asked = protocol.parse(call.json(), _DEFAULT_TOP_K)
        try:
            found = self.tool.search(asked.queries, asked.top_k)
        except SearchError as error:
            raise Refusal(HTTPStatus.SERVICE_UNAVAILABLE, str(error)) from error
        return {"result": [protocol.result(hits, asked.scored) for hits in found]}

    def error(self, message: str, code: str | None = None) -> dict[str, Any]:
        return {"error": message}


class _Server(http.server.ThreadingHTTPServer):
    """One life of a loopback service, on a socket that is bound; it begins at once."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, owner: Loopback, bound: socket.socket):
        super().__init__(bound.getsockname(), _Handler, bind_and_activate=False)
        self.socket.close()
        self.socket, self.owner = bound, owner
        self.ended, self._connections = threading.Event(), set()
        self.server_activate()
        self._thread = threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.01})
        self._thread.start()

    def process_request(self, request: Any, client_address: Any) -> None:
        with self.owner.lock:
            self._connections.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        with self.owner.lock:
            self._connections.discard(request)
        super().shutdown_request(request)

    def close(self) -> None:
        """Ends it with all its connections; who waits for an answer gets none."""
        self.ended.set()
        self.shutdown()
        self.server_close()
        self._thread.join()
        with self.owner.lock:
            connections = list(self._connections)
        for connection in connections:
            with contextlib.suppress(OSError):  # it has just been closed
                connection.shutdown(socket.SHUT_RDWR)
        end = time.monotonic() + _LAST_RECORDS
        while self._connections and time.monotonic() < end:
            time.sleep(0.001)


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"  # connections are used again
    disable_nagle_algorithm = True
    server: _Server

    def handle(self) -> None:
        with contextlib.suppress(OSError):  # the client has given up or was killed
            super().handle()

    def do_GET(self) -> None:
        owner, length = self.server.owner, int(self.headers.get("Content-Length", 0))
        content = self.rfile.read(length)
        if len(content) < length:
            raise ConnectionError("the client was killed while it asked")
        call = Call(content, {name.lower(): value for name, value in self.headers.items()})
        if self.command in owner.unscripted:
            self._send(*self._reply(call, WELL), WELL)
            return
        with owner.asked(self.path, owner.told(self.path, call)) as (asked, answer):
            self._wait(answer.hang)
            if self.server.ended.is_set():
                raise ConnectionError("the service has ended")
            status, data = self._reply(call, answer)
        self._send(status, data, answer)
        with owner.lock:
            owner.served.append((asked, answer))

    def _wait(self, seconds: float) -> None:
        """Ends early with the service. Raises ConnectionError when its client goes."""
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0 and not self.server.ended.wait(min(left, _LOOK)):
            with contextlib.suppress(BlockingIOError):  # it waits, and says nothing more
                if not self.connection.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT):
                    raise ConnectionError("the client has gone")

    do_POST = do_PUT = do_HEAD = do_GET

    def _reply(self, call: Call, answer: Answer) -> tuple[int, bytes]:
        """Status and body of the answer to a call."""
        owner = self.server.owner
        if answer.body is not None:
            return answer.status, answer.body
        if answer.is_error:
            message = answer.message or f"scripted {answer.status}"
            return answer.status, json.dumps(owner.error(message, answer.code)).encode()
        try:
            status, content = 200, owner.reply((self.command, self.path), call, answer)
        except Refusal as refusal:
            status, content = refusal.status, owner.error(str(refusal))
        return status, json.dumps(content).encode()

    def _send(self, status: int, data: bytes, answer: Answer) -> None:
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", **answer.headers}.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.close_connection = answer.cut is not None
        if self.command != "HEAD":
            self.wfile.write(data[: answer.cut])

    def log_message(self, *_: object) -> None:
        """Calls are recorded, not printed."""

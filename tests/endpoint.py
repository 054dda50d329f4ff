"""A real HTTP server on the loopback that speaks the OpenAI chat protocol from a script."""

from __future__ import annotations

import contextlib
import http.server
import itertools
import json
import threading
import time
from collections.abc import Callable


class Answer:
    """One scripted HTTP reply: a chat completion of `text`, or an error of `status`.

    hang: seconds before it. cut: only that many bytes are sent, then the connection is closed.
    body: sent in place of the completion.
    """

    def __init__(
        self,
        text="",
        status=200,
        headers=None,
        hang=0.0,
        code=None,
        tokens=(7, 3),
        cut=None,
        body=None,
    ):
        self.status, self.headers, self.hang, self.cut = status, headers or {}, hang, cut
        message = {"role": "assistant", "content": text}
        ok = {
            "id": "x",
            "object": "chat.completion",
            "created": 0,
            "model": "m",
            "choices": [{"index": 0, "finish_reason": "stop", "message": message}],
            "usage": {
                "prompt_tokens": tokens[0],
                "completion_tokens": tokens[1],
                "total_tokens": sum(tokens),
            },
        }
        error = {"error": {"message": f"scripted {status}", "code": code}}
        self.whole = status == 200 and bool(text) and not hang and cut is None and body is None
        self.body = body or json.dumps(ok if status == 200 else error).encode()


class Endpoint(http.server.ThreadingHTTPServer):
    """Serves `answer(request body) -> Answer` and records bodies and times of arrival.

    `paid`: bodies of the requests that got a whole reply with text.
    """

    daemon_threads = True

    def __init__(self, answer: Callable[[dict], Answer]):
        super().__init__(("127.0.0.1", 0), Handler)
        self.answer, self.requests, self.times, self.paid = answer, [], [], []
        self.lock, self.closing = threading.Lock(), threading.Event()
        self.in_flight = self.most_in_flight = 0

    def __enter__(self):
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.01}).start()
        return self

    def __exit__(self, *error):
        self.closing.set()
        self.shutdown()
        self.server_close()


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"  # connections are used again

    def handle(self):
        with contextlib.suppress(ConnectionError):  # the client was killed
            super().handle()

    def do_POST(self):
        server = self.server
        sent = self.rfile.read(int(self.headers["content-length"]))
        if len(sent) < int(self.headers["content-length"]):
            raise ConnectionError("the client was killed while it asked")
        body = json.loads(sent)
        with server.lock:
            server.requests.append(body)
            server.times.append(time.monotonic())
            server.in_flight += 1
            server.most_in_flight = max(server.most_in_flight, server.in_flight)
        answer = server.answer(body)
        if answer.hang:
            server.closing.wait(answer.hang)
        with server.lock:
            server.in_flight -= 1
        try:
            self.send_response(answer.status)
            for name, value in {"content-type": "application/json", **answer.headers}.items():
                self.send_header(name, value)
            self.send_header("content-length", str(len(answer.body)))
            self.end_headers()
            self.wfile.write(answer.body[: answer.cut])
            self.wfile.flush()
            self.close_connection = answer.cut is not None
            if answer.whole:
                with server.lock:
                    server.paid.append(body)
        except OSError:  # the client has given up, as some tests make it do
            pass

    def log_message(self, *args):
        pass


def in_turn(*answers: Answer) -> Callable[[dict], Answer]:
    """Answers in this order, the last one for ever."""
    rest = itertools.chain(answers, itertools.repeat(answers[-1]))
    return lambda body: next(rest)

"""A model as an HTTP service that every OpenAI-compatible client can talk to.

POST /v1/chat/completions  {"model": "hf", "messages": [{"role": "user", "content": "..."}]}
                        →  {"choices": [{"message": {...}, "finish_reason": "stop"}], "usage": ...}
GET  /v1/models         →  {"object": "list", "data": [{"id": "hf", ...}]}
GET  /v1/models/hf      →  {"id": "hf", ...}
GET  /health            →  {"status": "ok", "model": "hf", "in_flight": 3}
Errors are {"error": {"message", "type", "param", "code"}}, with a status of `http_service`, 503
(the service ends) or 504 (no reply in time).
"""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import math
import secrets
import threading
import time
from concurrent import futures
from http import HTTPStatus

import anyio
import numpy as np

from masksearch_jax.core.tokenizer import Vocabulary
from masksearch_jax.core.types import JsonObject, Trajectory
from masksearch_jax.rollout import chat
from masksearch_jax.rollout.engine import Engine
from masksearch_jax.rollout.episode import Request
from masksearch_jax.rollout.model import Policy
from masksearch_jax.runtime.http_service import Call, Refusal, Route, Service


class ChatServer(Service):
    """Serves the model that `engine` decodes under `name`, on (host, port) as `Service` does.

    The event loop hands requests to the engine, which decodes in the thread that calls `serve`.
    deadline: seconds of a request, its wait for a slot included. grace: seconds that those in
    flight have once `stop` is called.
    """

    def __init__(
        self,
        engine: Engine,
        vocab: Vocabulary,
        name: str,
        host: str,
        port: int,
        *,
        deadline: float,
        grace: float,
    ):
        self.engine, self.vocab, self.name = engine, vocab, name
        self.deadline, self.grace = deadline, grace
        self._numbers = itertools.count(secrets.randbits(31))
        self._lock, self._work = threading.Lock(), threading.Event()
        self._pending: dict[str, futures.Future[Trajectory]] = {}
        self._end = math.inf  # on the monotonic clock, once it is told to stop
        self._born = int(time.time())
        routes: dict[tuple[str, str], Route] = {
            ("POST", "/v1/chat/completions"): self._complete,
            ("GET", "/v1/models"): self._models,
            ("GET", f"/v1/models/{name}"): self._model,
            ("GET", "/health"): self._health,
        }
        super().__init__(host, port, routes)

    @property
    def url(self) -> str:
        return f"{self.address}/v1"

    def error(self, refusal: Refusal) -> JsonObject:
        return chat.error(refusal)

    # ---- the thread that decodes

    def serve(self, model: Policy) -> None:
        """Answers until `stop`; what is in flight then is answered, or refused after `grace`.

        Raises what the engine raises, once all that waits is refused.
        """
        doors = threading.Thread(target=self.serve_forever, name="http", daemon=True)
        doors.start()
        try:
            while not self._is_over():
                self._work.wait()
                self._work.clear()
                for trajectory in self.engine.run(model, enough=self._is_late):
                    self._give(trajectory)
        finally:
            self._refuse_rest()
            self.shutdown()
            doors.join()

    def stop(self) -> None:
        """Ends `serve`; from any thread but not in a signal handler, since it takes a lock."""
        with self._lock:
            self._end = min(self._end, time.monotonic() + self.grace)
        self._work.set()

    def _is_late(self) -> bool:
        return time.monotonic() >= self._end

    def _is_over(self) -> bool:
        return self._is_late() or (self._end < math.inf and not self.engine.in_flight)

    def _give(self, trajectory: Trajectory) -> None:
        with self._lock:
            future = self._pending.pop(trajectory.example_id)
        if future.set_running_or_notify_cancel():
            future.set_result(trajectory)

    def _refuse_rest(self) -> None:
        with self._lock:
            self._end = -math.inf  # from here on nothing is added
            left, self._pending = list(self._pending.values()), {}
        for future in left:
            if future.set_running_or_notify_cancel():
                future.set_exception(_ending())

    # ---- the event loop of the connections

    async def _complete(self, call: Call) -> JsonObject:
        asked = chat.parse(call.json(), self.name, self.engine.cfg)
        future: futures.Future[Trajectory] = futures.Future()
        try:
            await anyio.to_thread.run_sync(self._submit, asked, future)
            trajectory = await self._wait(future)
        finally:
            future.cancel()  # the engine drops it when nobody waits for it any more
        if trajectory.status == "out_of_time":
            limit = self.engine.cfg.deadline
            raise Refusal(HTTPStatus.GATEWAY_TIMEOUT, f"no reply in {limit:g} s (rollout.deadline)")
        return chat.reply(trajectory, self.name)

    def _submit(self, asked: chat.Chat, future: futures.Future[Trajectory]) -> None:
        """Has the engine sample it. Raises Refusal for a prompt that cannot be, and at the end."""
        number = next(self._numbers)
        name = f"chatcmpl-{number}"
        stream, sample = _randomness(number, asked.seed)
        try:
            ids = self.vocab.encode(self.vocab.apply_chat_template(asked.messages))
            request = Request(
                name,
                np.asarray(ids, np.int32),
                stream,
                sample,
                plain=True,
                max_new_tokens=asked.max_new_tokens,
                withdrawn=future.cancelled,
            )
            with self._lock:
                if self._end < math.inf:
                    raise _ending()
                self.engine.submit(request)
                self._pending[name] = future
        except ValueError as error:  # of the template, too
            raise Refusal(HTTPStatus.BAD_REQUEST, str(error)) from error
        self._work.set()

    async def _wait(self, future: futures.Future[Trajectory]) -> Trajectory:
        try:
            async with asyncio.timeout(self.deadline):
                return await asyncio.wrap_future(future)
        except TimeoutError:
            raise Refusal(
                HTTPStatus.GATEWAY_TIMEOUT,
                f"no reply in {self.deadline:g} s (config.deadline); {len(self._pending)} in "
                "flight",
            ) from None

    def _models(self, call: Call) -> JsonObject:
        return {"object": "list", "data": [self._model(call)]}

    def _model(self, _: Call) -> JsonObject:
        about = {"id": self.name, "object": "model", "created": self._born}
        return about | {"owned_by": "masksearch_jax"}

    def _health(self, _: Call) -> JsonObject:
        return {"status": "ok", "model": self.name, "in_flight": len(self._pending)}


def _randomness(number: int, seed: int | None) -> tuple[int, int]:
    """Stream and sample of a request: its seed's, or its number's, which no seed has."""
    if seed is None:
        return number % 2**32, 1
    return int.from_bytes(hashlib.sha256(str(seed).encode()).digest()[:4], "big"), 0


def _ending() -> Refusal:
    return Refusal(HTTPStatus.SERVICE_UNAVAILABLE, "the service is ending")

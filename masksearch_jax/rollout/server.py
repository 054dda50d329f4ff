"""A model as an HTTP service that every OpenAI-compatible client can talk to.

POST /v1/chat/completions  {"model": "hf", "messages": [{"role": "user", "content": "..."}]}
                        →  {"choices": [{"message": {...}, "finish_reason": "stop"}], "usage": ...}
POST /v1/completions       {"model": "hf", "prompt": [1, 2, 3], "return_token_ids": true}
                        →  {"choices": [{"text": "...", "token_ids": [...]}], "usage": ...}
GET  /v1/models         →  {"object": "list", "data": [{"id": "hf", ...}]}
GET  /v1/models/hf      →  {"id": "hf", "fingerprint": "…", ...}
GET  /health            →  {"status": "ok", "model": "hf", "in_flight": 3}
With "stream": true a reply comes in pieces, as server-sent events. With "agent": true, or the model
"hf:agent", the model searches, and its answer comes with citations. Errors are {"error":
{"message", "type", "param", "code"}}, with a status of `http_service`, 502 (the search failed), 503
(the service ends) or 504 (no reply in time).
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import itertools
import math
import secrets
import signal
import threading
import time
import types
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from concurrent import futures
from http import HTTPStatus

import anyio
import numpy as np

from masksearch_jax.core.tokenizer import Vocabulary
from masksearch_jax.core.types import JsonObject, Trajectory
from masksearch_jax.rollout import chat, narration, replies
from masksearch_jax.rollout.engine import Engine
from masksearch_jax.rollout.episode import Episode, Request
from masksearch_jax.rollout.model import Policy
from masksearch_jax.runtime.http_service import Call, Events, Refusal, Route, Service

_NO_ROUTES: Mapping[tuple[str, str], Route] = types.MappingProxyType({})


class _Choice:
    """A reply in the making: what the engine has shown of it, and what it will come to."""

    def __init__(self, tell: Callable[[], None], is_watched: bool):
        """tell: called from any thread when there is more; of its middle, where it is watched."""
        self.is_watched = is_watched
        self.future: futures.Future[Trajectory] = futures.Future()
        self.future.add_done_callback(lambda _: tell())
        self.seen = narration.NOTHING
        self.ids: list[int] = []  # sampled, as are the observations between; replaced, not changed
        self.logprobs: list[float] = []
        self.tell = tell

    def watch(self, episode: Episode) -> None:
        """From the thread that decodes."""
        start = episode.prompt_len
        self.seen = narration.seen_of(episode)
        self.ids, self.logprobs = episode.ids[start:], episode.logprobs[start:]
        self.tell()

    def result(self) -> Trajectory:
        """What it came to. Raises Refusal for what is not the model's doing."""
        ended = self.future.result()
        if ended.status == "out_of_time":
            raise Refusal(HTTPStatus.GATEWAY_TIMEOUT, "no reply in time (rollout.deadline)")
        if ended.status == "tool_failure":
            failed = ended.turns[-1]
            raise Refusal(HTTPStatus.BAD_GATEWAY, f"the {failed.tool} failed: {failed.error}")
        return ended


class _Choices(list[_Choice]):
    """Those of one request. Others may still be added when the request is withdrawn."""

    are_withdrawn = False


class ChatServer(Service):
    """Serves the model that `engine` decodes under `name`, on (host, port) as `Service` does.

    The engine samples by row. The event loop hands requests to it, and it decodes in the thread
    that calls `serve`. deadline: seconds of a request, its wait for a slot included. grace: seconds
    that those in flight have once `stop` is called. agent_prompt: what an agent is given for a
    question; None: there is no agent. fingerprints: what tells the model, and the agent, from
    others of the same name; "" is not told. routes: further ones. hosts: as for `Service`.
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
        agent_prompt: Callable[[str], str] | None = None,
        fingerprints: tuple[str, str] = ("", ""),
        routes: Mapping[tuple[str, str], Route] = _NO_ROUTES,
        hosts: Sequence[str] = ("*",),
    ):
        self.engine, self.vocab, self.name = engine, vocab, name
        self.deadline, self.grace, self.agent_prompt = deadline, grace, agent_prompt
        self._fingerprints = fingerprints
        self._numbers = itertools.count(secrets.randbits(31))
        self._lock, self._work = threading.Lock(), threading.Event()
        self._pending: dict[str, _Choice] = {}
        self._end = math.inf  # on the monotonic clock, once it is told to stop
        self._born = int(time.time())
        engine.watch = self._watch
        own: dict[tuple[str, str], Route] = {
            ("POST", "/v1/chat/completions"): self._chat,
            ("POST", "/v1/completions"): self._completion,
            ("GET", "/v1/models"): self._models,
            **{("GET", f"/v1/models/{n}"): self._model_route(n) for n in self._names},
            ("GET", "/health"): self._health,
        }
        super().__init__(host, port, own | dict(routes), hosts)

    @property
    def url(self) -> str:
        return f"{self.address}/v1"

    @property
    def _names(self) -> list[str]:
        return [self.name, *([f"{self.name}{chat.AGENT}"] if self.agent_prompt else [])]

    def error(self, refusal: Refusal) -> JsonObject:
        return replies.error(refusal)

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

    def _watch(self, episode: Episode) -> None:
        with self._lock:
            choice = self._pending.get(episode.request.example_id)
        if choice and choice.is_watched:
            choice.watch(episode)

    def _give(self, trajectory: Trajectory) -> None:
        with self._lock:
            future = self._pending.pop(trajectory.example_id).future
        if future.set_running_or_notify_cancel():
            future.set_result(trajectory)

    def _refuse_rest(self) -> None:
        with self._lock:
            self._end = -math.inf  # from here on nothing is added
            left, self._pending = list(self._pending.values()), {}
        for choice in left:
            if choice.future.set_running_or_notify_cancel():
                choice.future.set_exception(_ending())

    # ---- the event loop of the connections

    async def _chat(self, call: Call) -> JsonObject | Events:
        has_agent = self.agent_prompt is not None
        asked = chat.parse_chat(call.json(), self.name, self.engine.cfg, has_agent)
        return await self._reply(asked, "chatcmpl")

    async def _completion(self, call: Call) -> JsonObject | Events:
        cfg, size = self.engine.cfg, self.vocab.size
        asked = chat.parse_completion(call.json(), self.name, cfg, size)
        return await self._reply(asked, "cmpl")

    async def _reply(self, asked: chat.Asked, kind: str) -> JsonObject | Events:
        name = f"{kind}-{next(self._numbers)}"
        is_agent = isinstance(asked, chat.Chat) and asked.agent
        model = f"{self.name}{chat.AGENT}" if is_agent else self.name
        writer = replies.Writer(asked, model, name, self.vocab, self.engine.tools.limits)
        loop, more = asyncio.get_running_loop(), asyncio.Event()

        def tell() -> None:
            with contextlib.suppress(RuntimeError):  # the loop has ended
                loop.call_soon_threadsafe(more.set)

        choices = _Choices()
        try:
            await anyio.to_thread.run_sync(self._submit, asked, name, choices, tell)
            if asked.stream:
                pieces = self._pieces(asked, choices, more, writer)
                return Events(pieces, lambda: self._withdraw(choices))
            async for _ in self._changes(choices, more):
                pass
            return writer.whole([(c.result(), c.seen) for c in choices])
        except BaseException:
            self._withdraw(choices)
            raise

    async def _changes(
        self, choices: Sequence[_Choice], more: asyncio.Event
    ) -> AsyncIterator[None]:
        """Something each time that there is more of the choices, until all have ended.

        Raises Refusal at the deadline.
        """
        end = time.monotonic() + self.deadline
        while not all(c.future.done() for c in choices):
            try:
                await asyncio.wait_for(more.wait(), max(end - time.monotonic(), 0.0))
            except TimeoutError:
                raise Refusal(
                    HTTPStatus.GATEWAY_TIMEOUT,
                    f"no reply in {self.deadline:g} s (config.deadline); {len(self._pending)} in "
                    "flight",
                ) from None
            more.clear()
            yield

    async def _pieces(
        self,
        asked: chat.Asked,
        choices: Sequence[_Choice],
        more: asyncio.Event,
        writer: replies.Writer,
    ) -> AsyncIterator[JsonObject | str]:
        """The events of a stream; an error is the last."""
        left = dict(enumerate(choices))
        try:
            for index in left:
                for piece in writer.first(index):
                    yield piece
            async for _ in self._changes(choices, more):
                for index, choice in list(left.items()):
                    for piece in self._piece(index, choice, left, writer):
                        yield piece
            for index, choice in list(left.items()):  # those that ended before anybody looked
                for piece in self._piece(index, choice, left, writer):
                    yield piece
            if asked.usage:
                yield writer.total([c.result() for c in choices])
            yield "[DONE]"
        except Refusal as refusal:
            yield self.error(refusal)

    def _piece(
        self, index: int, choice: _Choice, left: dict[int, _Choice], writer: replies.Writer
    ) -> Iterator[JsonObject]:
        """What there is new of a choice; once it has ended it is no longer left."""
        if choice.future.done():
            del left[index]
            yield from writer.last(index, choice.result(), choice.seen)
        else:
            yield from writer.progress(index, choice.seen, choice.ids, choice.logprobs)

    # ---- a thread of a request

    def _submit(
        self, asked: chat.Asked, name: str, choices: _Choices, tell: Callable[[], None]
    ) -> None:
        """Has the engine sample all choices, which are added one by one until they are withdrawn.

        Raises Refusal for a prompt that cannot be, and at the end of the service.
        """
        number = int(name.rpartition("-")[2])
        stream, first = _randomness(number, asked.seed)
        is_agent = isinstance(asked, chat.Chat) and asked.agent
        try:
            prompts = [np.asarray(ids, np.int32) for ids in self._prompts(asked)]
            for i, (ids, sample) in enumerate(itertools.product(prompts, range(asked.choices))):
                choice = _Choice(tell, is_watched=asked.stream or is_agent)
                request = Request(
                    f"{name}-{i}",
                    ids,
                    stream,
                    2 * sample + first,
                    plain=not is_agent,
                    max_new_tokens=asked.max_new_tokens,
                    stop=() if is_agent else asked.stop,
                    sampler=asked.sampler,
                    withdrawn=choice.future.cancelled,
                )
                with self._lock:
                    if self._end < math.inf:
                        raise _ending()
                    if choices.are_withdrawn:
                        break
                    self.engine.submit(request)
                    self._pending[request.example_id] = choice
                    choices.append(choice)
        except ValueError as error:  # of the template, too
            raise Refusal(HTTPStatus.BAD_REQUEST, str(error)) from error
        self._work.set()

    def _withdraw(self, choices: _Choices) -> None:
        """Nobody waits for them any more: the engine drops those that have not ended."""
        with self._lock:
            choices.are_withdrawn = True
        for choice in choices:
            choice.future.cancel()

    def _prompts(self, asked: chat.Asked) -> Iterator[Sequence[int]]:
        """The ids of each prompt."""
        if isinstance(asked, chat.Chat):
            if asked.agent and self.agent_prompt:
                text = self.agent_prompt(asked.messages[0]["content"])
            else:
                text = self.vocab.apply_chat_template(asked.messages)
            yield self.vocab.encode(text)
        elif isinstance(asked, chat.Completion):
            for prompt in asked.prompts:
                yield self.vocab.encode(prompt) if isinstance(prompt, str) else prompt

    # ---- about the service

    def _models(self, _: Call) -> JsonObject:
        return {"object": "list", "data": [self._about(name) for name in self._names]}

    def _model_route(self, name: str) -> Route:
        return lambda _: self._about(name)

    def _about(self, name: str) -> JsonObject:
        about: JsonObject = {"id": name, "object": "model", "created": self._born}
        of_model, of_agent = self._fingerprints
        fingerprint = of_model if name == self.name else of_agent
        told = {"fingerprint": fingerprint} if fingerprint else {}
        return about | {"owned_by": "masksearch_jax"} | told

    def _health(self, _: Call) -> JsonObject:
        return {"status": "ok", "model": self.name, "in_flight": len(self._pending)}


def serve_until_told(server: ChatServer, model: Policy) -> None:
    """Serves until SIGINT or SIGTERM; a second one ends the process at once."""

    def stop(number: int, _: types.FrameType | None) -> None:
        signal.signal(number, signal.SIG_DFL)
        # From another thread, since this one may hold the lock that it takes.
        threading.Thread(target=server.stop).start()

    signal.signal(signal.SIGINT, stop)
    signal.signal(signal.SIGTERM, stop)
    server.serve(model)


def _randomness(number: int, seed: int | None) -> tuple[int, int]:
    """Stream and first sample of a request: its seed's, or its number's, which no seed has."""
    if seed is None:
        return number % 2**32, 1
    return int.from_bytes(hashlib.sha256(str(seed).encode()).digest()[:4], "big"), 0


def _ending() -> Refusal:
    return Refusal(HTTPStatus.SERVICE_UNAVAILABLE, "the service is ending")

"""The host side of rollouts: slots, stops, searches and refills around the device's `tick`.

A slot that waits for its search holds nobody: the others go on decoding, a finished slot is
refilled at once. Tokens in, tokens out: a sampled id is appended, never decoded and encoded again.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent import futures
from typing import Any, Protocol

import jax.numpy as jnp
import numpy as np

from masksearch_jax import markup
from masksearch_jax.config import RolloutConfig, SearchConfig
from masksearch_jax.rollout import decode
from masksearch_jax.rollout.pool import Call, SearchPool
from masksearch_jax.types import Passage, Segment, Status, Trajectory, Turn


class Vocabulary(Protocol):
    """The part of `data.vocab.Vocab` that the engine uses."""

    eos_ids: tuple[int, ...]

    def encode(self, text: str, *, literal: bool = False) -> list[int]: ...
    def decode(self, ids: Sequence[int]) -> str: ...
    def token_bytes(self, token_id: int) -> bytes: ...
    @property
    def size(self) -> int: ...


class Search(Protocol):
    """The part of `search.tool.SearchTool` that the engine uses."""

    def search(self, queries: Sequence[str], top_k: int) -> list[list[Passage]]: ...


@dataclasses.dataclass(frozen=True)
class Request:
    """A trajectory to sample; equal (stream, sample) draw the same random numbers."""

    example_id: str
    prompt_ids: np.ndarray  # int32[P]
    stream: int  # of the prompt, below 2**32
    sample: int = 0


@dataclasses.dataclass
class EngineStats:
    """Counts and seconds since the engine was made; a step's figures are the growth over it."""

    ticks: int = 0
    sampled_tokens: int = 0
    observation_tokens: int = 0
    searches: int = 0
    trajectories: int = 0
    device_seconds: float = 0.0
    search_wait_seconds: float = 0.0  # the device was idle: all open slots waited for search
    host_seconds: float = 0.0
    decode_rows: int = 0  # sum over ticks of slots that decoded


@dataclasses.dataclass
class _Slot:
    """One open trajectory."""

    request: Request
    ids: list[int]
    logprobs: list[float]
    sampled: list[bool]
    segments: list[Segment]
    opened: float
    version: int
    turns: list[Turn] = dataclasses.field(default_factory=list)
    turn_bytes: bytearray = dataclasses.field(default_factory=bytearray)
    fed: int = 0  # position from which ids must still be sent to the device
    new_tokens: int = 0
    search: Call | None = None
    queries: tuple[str, ...] = ()
    asked: float = 0.0


class Engine:
    """Samples trajectories with live search on a fixed array of slots.

    model_cache(slots, length) makes the KV cache, laid out over the mesh in force at `run`.
    `search` is called from `search_config.workers` threads. Use as a context manager, or call
    `close`; a `run` that was interrupted may be followed by another.
    """

    def __init__(
        self,
        vocab: Vocabulary,
        search: Search,
        rollout: RolloutConfig,
        search_config: SearchConfig,
        *,
        model_cache: Callable[[int, int], Any],
        vocab_size: int,
    ):
        self.vocab, self.search, self.cfg, self.search_cfg = vocab, search, rollout, search_config
        self.stats = EngineStats()
        table = [vocab.token_bytes(i) for i in range(min(vocab.size, vocab_size))]
        self._token_bytes = table
        self._stop = jnp.asarray(
            decode.stop_table(table, tuple(vocab.eos_ids), markup.STOPS, vocab_size)
        )
        self._tick = decode.make_tick(tokens=rollout.tick_tokens, temperature=rollout.temperature)
        self._make_cache = functools.partial(model_cache, rollout.slots, rollout.max_len)
        self._state: decode.DeviceState | None = None
        self._pool = SearchPool(search_config.workers)
        self._slots: list[_Slot | None] = [None] * rollout.slots
        self._seed = np.uint32(rollout.seed)

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._pool.close()

    @property
    def compiles(self) -> int:
        """Programs of this kind compiled in this process: as many after the first tick as ever."""
        return self._tick._cache_size()

    def run(
        self, model: Any, requests: Iterable[Request], version: int = 0
    ) -> Iterator[Trajectory]:
        """Trajectories as they finish, one per request, in no fixed order.

        Raises ValueError for a prompt that leaves no room to answer.
        """
        queue = collections.deque(requests)
        if not decode.is_alive(self._state):
            self._state = decode.init_state(self._make_cache, self.cfg.slots)
        try:
            while queue or any(self._slots):
                started = time.perf_counter()
                finished = self._collect_searches()
                self._refill(queue, version)
                inbox = self._inbox()
                self.stats.host_seconds += time.perf_counter() - started
                if inbox.chunks or inbox.decode.any():
                    finished += self._advance(model, inbox)
                elif not finished:
                    self._wait_for_search()
                yield from finished
        finally:
            for slot in self._slots:
                if slot and slot.search:
                    self._pool.abandon(slot.search)
            self._slots = [None] * self.cfg.slots

    # ---- opening and feeding slots

    def _refill(self, queue: collections.deque[Request], version: int) -> None:
        for i, slot in enumerate(self._slots):
            if slot is None and queue:
                self._slots[i] = self._open(queue.popleft(), version)

    def _open(self, request: Request, version: int) -> _Slot:
        ids = [int(i) for i in request.prompt_ids]
        if not 0 < len(ids) < self.cfg.max_len:
            raise ValueError(
                f"prompt of {request.example_id!r} has {len(ids)} tokens; rollout.max_len is "
                f"{self.cfg.max_len} and must leave room to answer: raise it or drop the example"
            )
        return _Slot(
            request=request,
            ids=ids,
            logprobs=[0.0] * len(ids),
            sampled=[False] * len(ids),
            segments=[Segment("prompt", self.vocab.decode(ids))],
            opened=time.perf_counter(),
            version=version,
        )

    def _inbox(self) -> decode.Inbox:
        """The next chunk of every slot that has tokens to send, and who decodes."""
        inbox = decode.empty_inbox(self.cfg.slots, self.cfg.extend_tokens)
        row = 0
        for i, slot in enumerate(self._slots):
            if slot is None or slot.search is not None:
                continue
            inbox.stream[i] = (slot.request.stream, slot.request.sample)
            if slot.fed < len(slot.ids):
                chunk = slot.ids[slot.fed : slot.fed + self.cfg.extend_tokens]
                at = divmod(row, decode.EXTEND_ROWS)
                inbox.slot[at], inbox.start[at], inbox.count[at] = i, slot.fed, len(chunk)
                inbox.ids[at][: len(chunk)] = chunk
                last = slot.fed + len(chunk) == len(slot.ids)
                slot.fed = len(slot.ids) if last else slot.fed + len(chunk) - 1
                row += 1
                if not last:
                    continue
            inbox.decode[i] = True
            inbox.budget[i] = min(self.cfg.tick_tokens, self._room(slot))
        return inbox._replace(chunks=np.int32(-(-row // decode.EXTEND_ROWS)))

    def _room(self, slot: _Slot) -> int:
        """Tokens that the slot may still sample."""
        return min(self.cfg.max_new_tokens - slot.new_tokens, self.cfg.max_len - len(slot.ids))

    # ---- the device's part

    def _advance(self, model: Any, inbox: decode.Inbox) -> list[Trajectory]:
        started = time.perf_counter()
        self._state, sampled = self._tick(model, self._state, inbox, self._seed, self._stop)
        ids, logprobs, count = (np.asarray(a) for a in sampled)
        now = time.perf_counter()
        self.stats.ticks += 1
        self.stats.device_seconds += now - started
        self.stats.sampled_tokens += int(count.sum())
        self.stats.decode_rows += int(inbox.decode.sum())
        finished = []
        for i in np.flatnonzero(inbox.decode):
            n = count[i]
            status = self._read(self._slots[i], ids[i, :n], logprobs[i, :n])
            if status:
                finished.append(self._finish(i, status))
        self.stats.host_seconds += time.perf_counter() - now
        return finished

    def _read(self, slot: _Slot, ids: np.ndarray, logprobs: np.ndarray) -> Status | None:
        """Append what was sampled and act on how the turn stands; a status ends the trajectory."""
        if not slot.turn_bytes:
            slot.segments.append(Segment("policy", ""))
        slot.ids += ids.tolist()
        slot.logprobs += logprobs.tolist()
        slot.sampled += [True] * len(ids)
        slot.fed = len(slot.ids)
        slot.new_tokens += len(ids)
        for i in ids:
            slot.turn_bytes += self._token_bytes[i] if i < len(self._token_bytes) else b""
        text = slot.turn_bytes.decode("utf-8", "replace")
        slot.segments[-1] = Segment("policy", text)
        stop = markup.find_stop(text)
        if stop is None:
            ended = len(ids) and int(ids[-1]) in self.vocab.eos_ids
            return "no_answer" if ended else None if self._room(slot) > 0 else "out_of_tokens"
        if stop.kind == "answer":
            return "answered"
        if len(slot.turns) >= self.cfg.max_turns:
            return "out_of_turns"
        self._ask(slot, markup.parse_queries(text, self.search_cfg.max_queries))
        return None

    def _finish(self, index: int, status: Status) -> Trajectory:
        slot, self._slots[index] = self._slots[index], None
        self.stats.trajectories += 1
        return Trajectory(
            example_id=slot.request.example_id,
            sample=slot.request.sample,
            ids=np.asarray(slot.ids, np.int32),
            logprobs=np.asarray(slot.logprobs, np.float32),
            sampled=np.asarray(slot.sampled, np.bool_),
            prompt_len=len(slot.request.prompt_ids),
            segments=tuple(s for s in slot.segments if s.text),
            turns=tuple(slot.turns),
            status=status,
            policy_version=slot.version,
            seconds=time.perf_counter() - slot.opened,
        )

    # ---- search

    def _ask(self, slot: _Slot, queries: tuple[str, ...]) -> None:
        """Send the queries to the pool; a search without a query finds nothing."""
        slot.queries, slot.asked = queries, time.perf_counter()
        self.stats.searches += 1
        slot.search = self._pool.submit(functools.partial(self._find, queries))

    def _find(self, queries: tuple[str, ...]) -> tuple[Passage, ...]:
        """The pool's work; what a tool returns is read here, so that its errors are the tool's."""
        found = self.search.search(queries, self.search_cfg.top_k) if queries else []
        return markup.merge_results(found, self.search_cfg.max_passages)

    def _collect_searches(self) -> list[Trajectory]:
        """Put finished searches into their slots; a failed or late one ends its trajectory."""
        finished = []
        for i, slot in enumerate(self._slots):
            if slot is None or slot.search is None:
                continue
            now = time.perf_counter()
            if slot.search.done():
                status = self._observe(slot, now - slot.asked)
            elif now > self._deadline(slot.search, now):
                self._pool.abandon(slot.search)
                late = f"no result in {self.search_cfg.timeout:g} s"
                status = self._fail(slot, now - slot.asked, late)
            else:
                continue
            slot.search = None
            if status:
                finished.append(self._finish(i, status))
        return finished

    def _observe(self, slot: _Slot, waited: float) -> Status | None:
        """Append the result's tokens, encoded on their own, to the slot."""
        if (error := slot.search.exception()) is not None:
            return self._fail(slot, waited, f"{type(error).__name__}: {error}")
        # A document's own control tokens stay text, here as in the demonstrations.
        encode = functools.partial(self.vocab.encode, literal=True)
        room = min(self.cfg.max_observation_tokens, self.cfg.max_len - len(slot.ids) - 1)
        text, shown = markup.render_information(
            slot.search.result(), max_tokens=room, count_tokens=lambda t: len(encode(t))
        )
        slot.turns.append(
            Turn(slot.queries, tuple(p.id for p in shown), tuple(p.title for p in shown), waited)
        )
        ids = encode(text)
        if len(ids) > self.cfg.max_len - len(slot.ids) - 1:
            return "out_of_tokens"
        slot.fed = len(slot.ids) - 1  # the pending token goes first
        slot.ids += ids
        slot.logprobs += [0.0] * len(ids)
        slot.sampled += [False] * len(ids)
        slot.segments.append(Segment("tool", text))
        slot.turn_bytes = bytearray()
        self.stats.observation_tokens += len(ids)
        return None

    def _fail(self, slot: _Slot, waited: float, error: str) -> Status:
        slot.turns.append(Turn(slot.queries, (), (), waited, error))
        return "tool_failure"

    def _deadline(self, call: Call, now: float) -> float:
        """When a call is late; its clock starts with it, since waiting its turn is our doing."""
        return (now if call.started is None else call.started) + self.search_cfg.timeout

    def _wait_for_search(self) -> None:
        """Sleep until a search ends or the earliest deadline passes."""
        started = time.perf_counter()
        calls = [s.search for s in self._slots if s and s.search]
        deadline = min(self._deadline(call, started) for call in calls)
        left = max(0.0, deadline - started) + 1e-3
        futures.wait(calls, left, return_when=futures.FIRST_COMPLETED)
        self.stats.search_wait_seconds += time.perf_counter() - started

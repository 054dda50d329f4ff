"""One open trajectory on the host: what it holds, when its turn ends, what is said to it then.

Tokens in, tokens out: a sampled id is appended, never decoded and encoded again, and an observation
is encoded on its own. Nothing here touches a device or waits.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from masksearch_jax.core import markup
from masksearch_jax.core.rollout_config import RolloutConfig
from masksearch_jax.core.tokenizer import Vocabulary
from masksearch_jax.core.tools import Toolbox, budgets
from masksearch_jax.core.types import (
    SEARCH,
    SEARCH_ALONE,
    Passage,
    QueryRecord,
    Segment,
    Status,
    Trajectory,
    Turn,
)
from masksearch_jax.rollout.decode import RolloutError
from masksearch_jax.rollout.sampling import Sampler
from masksearch_jax.runtime.call_pool import Call

_LONGEST_PERIOD = 32  # tokens of a phrase that the repetition guard knows


@dataclasses.dataclass(frozen=True)
class Request:
    """A trajectory to sample; equal (stream, sample) draw the same random numbers.

    A plain one is free text, whose tags are only text: it ends at EOS, which its text leaves out
    (`answered`), or at its limit (`out_of_tokens`).
    """

    example_id: str
    prompt_ids: np.ndarray  # int32[P]
    stream: int  # of the prompt, below 2**32
    sample: int = 0
    source: str = ""  # passage that search.exclude_source hides from it; empty: none
    plain: bool = False
    max_new_tokens: int = 0  # where below rollout.max_new_tokens; 0: that one
    stop: tuple[str, ...] = ()  # a plain text ends before the first of these
    sampler: Sampler | None = None  # its own, for an engine that samples by row; None: rollout's
    withdrawn: Callable[[], bool] = lambda: False  # once true, it ends as `out_of_time`


class Observation(NamedTuple):
    """What a call of a tool showed, as text and as tokens; `shown`: the passages in it."""

    text: str
    ids: list[int]
    shown: tuple[Passage, ...]
    found: tuple[QueryRecord, ...] = ()
    unreadable: int = 0


@dataclasses.dataclass(eq=False)
class Episode:
    """One open trajectory. Its pages of the cache hold ids[:written]."""

    request: Request
    key: bytes  # equal for equal prompts in the cache
    ids: list[int]
    logprobs: list[float]
    versions: list[int]  # of the policy that sampled the token, -1 where none did
    segments: list[Segment]
    opened: float
    pages: list[int] = dataclasses.field(default_factory=list)  # of its shard, in order of time
    written: int = 0
    turns: list[Turn] = dataclasses.field(default_factory=list)
    shown: list[tuple[Passage, ...]] = dataclasses.field(default_factory=list)  # by each call
    observed: list[int] = dataclasses.field(default_factory=list)  # the segment with what it showed
    turn_bytes: bytearray = dataclasses.field(default_factory=bytearray)
    turn_tokens: int = 0
    new_tokens: int = 0
    corrections: int = 0
    search: Call[Observation] | None = None  # in flight, of any tool
    tool: str = SEARCH  # that it calls
    queries: tuple[str, ...] = ()
    asked: float = 0.0

    @property
    def prompt_len(self) -> int:
        return len(self.request.prompt_ids)

    def forget_cache(self) -> None:
        """Its pages are lost or stale: all of it must be written again, by the present weights."""
        self.pages, self.written, self.key = [], 0, key_of(self.request)


def key_of(request: Request) -> bytes:
    """Equal for equal prompts."""
    return np.asarray(request.prompt_ids, np.int32).tobytes()


def lacks_room(prompt_ids: Sequence[int] | np.ndarray, cfg: RolloutConfig) -> str:
    """Why a prompt cannot be sampled, "" where it can: it must leave room to answer."""
    length = len(prompt_ids)
    return "" if 0 < length < cfg.max_len else f"{length} tokens; rollout.max_len is {cfg.max_len}"


class Rules:
    """How a trajectory opens, reads, is answered and ends, under one configuration."""

    def __init__(self, vocab: Vocabulary, cfg: RolloutConfig, tools: Toolbox):
        """Raises ConfigError for a budget of a tool that there is not."""
        self.vocab, self.cfg, self.tools = vocab, cfg, tools
        self._budgets = budgets(cfg.tool_turns, tools.names)
        self.token_bytes = [vocab.token_bytes(i) for i in range(vocab.size)]

    def check_request(self, request: Request) -> None:
        """Raises RolloutError for a prompt that leaves no room to answer."""
        if why := lacks_room(request.prompt_ids, self.cfg):
            raise RolloutError(
                f"prompt of {request.example_id!r} has {why} and must leave room to answer: raise "
                "it or drop this prompt"
            )

    def open(self, request: Request) -> Episode:
        """Raises what `check_request` raises."""
        self.check_request(request)
        ids = [int(i) for i in request.prompt_ids]
        return Episode(
            request=request,
            key=key_of(request),
            ids=ids,
            logprobs=[0.0] * len(ids),
            versions=[-1] * len(ids),
            segments=[Segment("prompt", self.vocab.decode(ids))],
            opened=time.perf_counter(),
        )

    def room(self, episode: Episode) -> int:
        """Tokens that it may sample before the host looks again."""
        cfg = self.cfg
        room = self._all_room(episode)
        if episode.request.plain:
            return room
        if self._is_to_keep_answer_room(episode):
            room -= cfg.answer_tokens
        if cfg.max_turn_tokens:
            room = min(room, cfg.max_turn_tokens - episode.turn_tokens)
        return room

    def read(
        self, episode: Episode, ids: np.ndarray, logprobs: np.ndarray, version: int
    ) -> Status | tuple[str, ...] | None:
        """Append what was sampled; its end, or what to ask `episode.tool`, or None to go on."""
        ids = ids[: self._tokens_to_stop(episode, ids)]
        if len(ids) and not episode.turn_tokens:
            episode.segments.append(Segment("policy", ""))
        logprobs = logprobs[: len(ids)]
        episode.ids += ids.tolist()
        episode.logprobs += logprobs.tolist()
        episode.versions += [version] * len(ids)
        episode.written = len(episode.ids) - 1
        episode.new_tokens += len(ids)
        episode.turn_tokens += len(ids)
        ended = len(ids) > 0 and int(ids[-1]) in self.vocab.eos_ids
        for i in ids[:-1] if episode.request.plain and ended else ids:
            episode.turn_bytes += self.token_bytes[i] if i < len(self.token_bytes) else b""
        text = episode.turn_bytes.decode("utf-8", "replace")
        found = [at for stop in episode.request.stop if (at := text.find(stop)) >= 0]
        if episode.turn_tokens:
            episode.segments[-1] = Segment("policy", text[: min(found)] if found else text)
        if episode.request.plain:
            return self._plain(episode, ended or bool(found))
        stop = markup.find_stop(text, self.tools.names)
        if stop is None:
            return self._unfinished(episode, ended)
        if stop.kind == "answer":
            return "answered"
        episode.tool = stop.kind
        if len(episode.turns) >= self.cfg.max_turns:
            return self._correct(episode, "no_turns", "out_of_turns")
        if not self._has_calls_left(episode):
            return self._correct(episode, "no_tool_turns", "out_of_turns")
        queries = markup.parse_queries(text, self.tools[stop.kind].max_requests, stop.kind)
        if not queries and self._has_correction_left(episode):
            return self._correct(episode, "no_query", "out_of_tokens")
        return queries

    def _tokens_to_stop(self, episode: Episode, ids: np.ndarray) -> int:
        """How many of the ids are there once one of its stops is; all of them where none is."""
        stops = [stop.encode() for stop in episode.request.stop]
        said = bytearray(episode.turn_bytes)
        for count, i in enumerate(ids if stops else (), 1):
            said += self.token_bytes[i] if i < len(self.token_bytes) else b""
            if any(stop in said for stop in stops):
                return count
        return len(ids)

    def _plain(self, episode: Episode, ended: bool) -> Status | None:
        """How free text ends, or None to go on; `ended`: by EOS or before a stop."""
        if ended:
            return "answered"
        return None if self.room(episode) > 0 else "out_of_tokens"

    def _unfinished(self, episode: Episode, ended: bool) -> Status | None:
        """A turn without an action so far; `ended`: by EOS."""
        if ended:
            return self._correct(episode, "no_action", "no_answer")
        turn = episode.ids[len(episode.ids) - episode.turn_tokens :]
        if self.cfg.max_repeats and repeats(turn) >= self.cfg.max_repeats:
            return "repeating"
        if self.room(episode) > 0:
            return None
        return self._correct(episode, "too_long", "out_of_tokens")

    def _has_correction_left(self, episode: Episode) -> bool:
        return episode.corrections < self.cfg.corrections

    def _has_calls_left(self, episode: Episode) -> bool:
        """Of the tool that the turn calls."""
        most = self._budgets.get(episode.tool, self.cfg.max_turns)
        return sum(turn.tool == episode.tool for turn in episode.turns) < most

    def _is_to_keep_answer_room(self, episode: Episode) -> bool:
        """Whether the turn must leave room for another that answers; where there is any."""
        has_more = self._limit(episode) > self.cfg.answer_tokens
        is_answering = b"<answer>" in episode.turn_bytes
        return has_more and self._has_correction_left(episode) and not is_answering

    def _correct(self, episode: Episode, mistake: str, status: Status) -> Status | None:
        """Tell the policy what was wrong, or end with the status: no correction left, no room."""
        if not self._has_correction_left(episode):
            return status
        text = markup.wrap(
            "information", markup.correction(mistake, self.tools.names, episode.tool)
        )
        ids = self.vocab.encode(text, literal=True)
        room = self.cfg.max_len - len(episode.ids)
        if len(ids) >= room or episode.new_tokens >= self._limit(episode):
            return status
        episode.corrections += 1
        self._append(episode, text, ids)
        return None

    def _limit(self, episode: Episode) -> int:
        """Tokens that it may sample in all."""
        most = self.cfg.max_new_tokens
        return min(most, episode.request.max_new_tokens or most)

    def _all_room(self, episode: Episode) -> int:
        left = self._limit(episode) - episode.new_tokens
        return min(left, self.cfg.max_len - len(episode.ids))

    # ---- calls of tools

    def observation_room(self, episode: Episode) -> int:
        left = self.cfg.max_len - len(episode.ids) - 1 - self.cfg.answer_tokens
        return min(self.cfg.max_observation_tokens, left)

    def call(self, tool: str, queries: tuple[str, ...], hidden: str, room: int) -> Observation:
        """The pool's work; what a tool returns is read here, so that its errors are the tool's."""
        if not queries:
            return self.render((), room)
        result = self.tools[tool].call(queries, hidden)
        seen = self.render(result.documents, room)
        shown = () if result.texts else seen.shown
        return seen._replace(shown=shown, found=result.records, unreadable=result.unreadable)

    def render(self, documents: Sequence[Passage], room: int) -> Observation:
        """The documents that fit in `room` tokens. For the call's own thread: it takes a while."""

        # A document's own control tokens stay text, here as in the demonstrations.
        def encode(text: str) -> list[int]:
            return self.vocab.encode(text, literal=True)

        text, shown = markup.render_information(
            documents, fits=lambda block: len(encode(block)) <= room, tools=self.tools.names
        )
        return Observation(text, encode(text), shown)

    def observe(self, episode: Episode, seen: Observation, waited: float) -> Status | None:
        """Append what a tool showed."""
        titles = tuple(p.title for p in seen.shown)
        ids = tuple(p.id for p in seen.shown)
        episode.turns.append(
            Turn(
                episode.queries,
                ids,
                titles,
                waited,
                found=seen.found,
                tool=episode.tool,
                unreadable=seen.unreadable,
            )
        )
        episode.shown.append(seen.shown)
        if len(seen.ids) >= self.cfg.max_len - len(episode.ids):
            return "out_of_tokens"
        episode.observed.append(len(episode.segments))
        self._append(episode, seen.text, seen.ids)
        return None

    def fail(self, episode: Episode, waited: float, error: str) -> Status:
        episode.turns.append(Turn(episode.queries, (), (), waited, error, tool=episode.tool))
        return "tool_failure"

    def _append(self, episode: Episode, text: str, ids: list[int]) -> None:
        """Tokens of ours; with them a new turn begins."""
        episode.ids += ids
        episode.logprobs += [0.0] * len(ids)
        episode.versions += [-1] * len(ids)
        episode.segments.append(Segment("tool", text))
        episode.turn_bytes, episode.turn_tokens = bytearray(), 0


def finish(episode: Episode, status: Status, tools: tuple[str, ...] = SEARCH_ALONE) -> Trajectory:
    """The trajectory of an episode that has ended; tools: names of those that it could call."""
    versions = np.asarray(episode.versions, np.int32)
    return Trajectory(
        example_id=episode.request.example_id,
        sample=episode.request.sample,
        ids=np.asarray(episode.ids, np.int32),
        logprobs=np.asarray(episode.logprobs, np.float32),
        sampled=versions >= 0,
        versions=versions,
        prompt_len=episode.prompt_len,
        segments=tuple(s for s in episode.segments if s.text or s.author == "policy"),
        turns=tuple(episode.turns),
        status=status,
        seconds=time.perf_counter() - episode.opened,
        tools=tools,
    )


def repeats(ids: Sequence[int]) -> int:
    """How often the last phrase, of at most 32 tokens, stands at the end of ids in a row."""
    most = 1 if len(ids) else 0
    for period in range(1, min(_LONGEST_PERIOD, len(ids) // 2) + 1):
        tail = ids[-period:]
        count = 1
        while ids[-period * (count + 1) : -period * count] == tail:
            count += 1
        most = max(most, count)
    return most

"""The model that a run trains, asked as an endpoint is: its own engine decodes the replies."""

from __future__ import annotations

import asyncio
import hashlib
import json
import threading
from collections.abc import Sequence
from concurrent import futures

import numpy as np

from masksearch_jax.agents.llm_client import LLMError, Message, Reply
from masksearch_jax.core.errors import ConfigError
from masksearch_jax.core.llm_config import JudgeConfig
from masksearch_jax.core.rollout_config import RolloutConfig
from masksearch_jax.core.tokenizer import Vocab, VocabError
from masksearch_jax.core.types import Trajectory
from masksearch_jax.rollout.episode import Request

_LOOK = 0.5  # seconds after which whoever waits may look whether to stop


class OwnModel:
    """`await complete(messages)` in the thread of rewards; all else in the engine's thread.

    A reply is sampled by the weights of the step that asks, with random numbers of its messages
    alone: the same weights say the same. Equal messages are decoded once a step; nothing is kept on
    disk, since the next step has other weights. Raises ConfigError for a tokenizer without a chat
    template that works, and for rollouts that keep what is in flight.
    """

    def __init__(self, vocab: Vocab, cfg: JudgeConfig, rollout: RolloutConfig):
        if rollout.in_flight != "drop":
            raise ConfigError(
                f"config.rollout.in_flight is {rollout.in_flight!r}; with config.judge.own_model "
                "it must be 'drop': verdicts are decoded once a step's trajectories have ended"
            )
        try:
            vocab.check_chat_template()
        except VocabError as error:
            raise ConfigError(f"{error}; config.judge.own_model needs one") from error
        self._vocab, self._cfg, self._rollout = vocab, cfg, rollout
        self._lock, self._stirred = threading.Lock(), threading.Event()
        self._replies: dict[str, futures.Future[Reply]] = {}
        self._new: list[Request] = []
        self._awaited: set[futures.Future] = set()  # whose end stirs

    async def complete(self, messages: Sequence[Message]) -> Reply:
        """Its reply. Raises ConfigError where there is no room for one, LLMError for none."""
        name = json.dumps(list(messages), ensure_ascii=False)
        with self._lock:
            if name not in self._replies:
                self._new.append(self._request(name, messages))
                self._replies[name] = futures.Future()
            reply = self._replies[name]
        self._stirred.set()
        return await asyncio.shield(asyncio.wrap_future(reply))

    def check_room(self, messages: Sequence[Message]) -> None:
        """Raises ConfigError for a conversation that leaves no room for a reply."""
        self._request("", messages)

    def _request(self, name: str, messages: Sequence[Message]) -> Request:
        ids = self._vocab.encode(self._vocab.apply_chat_template(messages))
        longest, room = self._rollout.max_len, self._cfg.max_tokens
        if len(ids) + room > longest:
            raise ConfigError(
                f"config.rollout.max_len is {longest}; the judge's prompt of {len(ids)} tokens and "
                f"a verdict of config.judge.max_tokens, {room}, need {len(ids) + room}"
            )
        stream = int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "big")
        prompt = np.asarray(ids, np.int32)
        return Request(name, prompt, stream, plain=True, max_new_tokens=room)

    # ---- in the engine's thread

    def begin(self) -> None:
        """Forgets the replies of other weights; who still waits for one gets none."""
        with self._lock:
            old, self._replies, self._new = self._replies, {}, []
        self._awaited.clear()
        for reply in old.values():
            if not reply.done():
                reply.set_exception(LLMError("the step that asked was given up"))

    def asked(self, pending: Sequence[futures.Future]) -> list[Request]:
        """What to decode next, for rewards of which some are `pending`; waits a moment for it."""
        for reward in set(pending) - self._awaited:
            self._awaited.add(reward)
            reward.add_done_callback(lambda _: self._stirred.set())
        if not all(reward.done() for reward in pending):
            self._stirred.wait(_LOOK)
        self._stirred.clear()
        with self._lock:
            found, self._new = self._new, []
        return found

    def take(self, trajectory: Trajectory) -> None:
        """Gives a reply that has ended to those who wait for it."""
        reply = self._replies[trajectory.example_id]
        if trajectory.status not in ("answered", "out_of_tokens"):
            reply.set_exception(LLMError(trajectory.status))
            return
        sampled, is_cut = int(trajectory.sampled.sum()), trajectory.status == "out_of_tokens"
        text = trajectory.text_by("policy")
        reply.set_result(Reply(text, trajectory.prompt_len, sampled, cached=False, is_cut=is_cut))

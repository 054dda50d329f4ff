"""OpenAI's chat and completion protocols: a reply written, whole or in pieces.

An agent's message has besides: `searches`, its queries, `citations`, the passages that it read:
{"id", "title", "text", "search" (its number), "has_answer"}, and where it has other tools `calls`
of them: {"tool", "requests"}. In a stream an agent's deltas are the events of `narration`; its plan
is `reasoning_content` too, its answer `content`.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator, Mapping, Sequence
from http import HTTPStatus

from masksearch_jax.core.tokenizer import Vocabulary
from masksearch_jax.core.types import SEARCH, JsonObject, Trajectory
from masksearch_jax.rollout import narration
from masksearch_jax.rollout.chat import Asked, Chat
from masksearch_jax.rollout.narration import Narrator, Seen
from masksearch_jax.runtime.http_service import Refusal


def error(refusal: Refusal) -> JsonObject:
    """A refusal in OpenAI's format."""
    ours = refusal.status >= HTTPStatus.INTERNAL_SERVER_ERROR
    kind = "server_error" if ours else "invalid_request_error"
    about = {"message": str(refusal), "type": kind, "param": None, "code": refusal.code or None}
    return {"error": about}


class Writer:
    """Writes the reply to one request: its choices as they end, and pieces of them before."""

    def __init__(
        self, asked: Asked, model: str, name: str, vocab: Vocabulary, limits: Mapping[str, int]
    ):
        self._asked, self._model, self._name, self._vocab = asked, model, name, vocab
        self._created = int(time.time())
        self._is_chat = isinstance(asked, Chat)
        self._is_agent = isinstance(asked, Chat) and asked.agent
        self._limits = limits
        self._narrators: dict[int, Narrator] = {}
        self._told: dict[int, tuple[int, int]] = {}  # characters and tokens of a choice

    def whole(self, ended: Sequence[tuple[Trajectory, Seen]]) -> JsonObject:
        """The reply of all choices."""
        choices = [self._choice(i, *found) for i, found in enumerate(ended)]
        kind = "chat.completion" if self._is_chat else "text_completion"
        return self._frame(kind, choices) | {"usage": self.usage([t for t, _ in ended])}

    def usage(self, ended: Sequence[Trajectory]) -> JsonObject:
        """Tokens of each prompt, once for all its choices, and of what was sampled."""
        prompts = sum(t.prompt_len for t in ended[:: self._asked.choices])
        sampled = sum(int(t.sampled.sum()) for t in ended)
        return {
            "prompt_tokens": prompts,
            "completion_tokens": sampled,
            "total_tokens": prompts + sampled,
        }

    # ---- in pieces

    def first(self, index: int) -> Iterator[JsonObject]:
        """What a stream says of a choice before there is any."""
        if self._is_chat:
            yield self._piece(index, {"role": "assistant", "content": ""})

    def progress(
        self, index: int, seen: Seen, ids: Sequence[int], logprobs: Sequence[float]
    ) -> Iterator[JsonObject]:
        """What has come of a choice since the last call; ids, logprobs: sampled up to now."""
        if self._is_agent:
            yield from self._narrate(index, self._narrator(index).tell(seen))
            return
        text = narration.steady(_said(seen), self._asked.stop)
        yield from self._text_piece(index, text, ids, logprobs)

    def last(self, index: int, ended: Trajectory, seen: Seen) -> Iterator[JsonObject]:
        """The rest of a choice that has ended, and how."""
        if self._is_agent:
            told = self._narrator(index).end(seen, ended.status)
            yield from self._narrate(index, told)
            message = self._agent_message(seen)
            rest: JsonObject = {
                k: message[k] for k in ("searches", "citations", "calls") if k in message
            }
            yield self._piece(index, rest, finish=_finish(ended, message["content"] != ""))
            return
        yield from self._text_piece(index, ended.text_by("policy"), *_sampled(ended))
        yield self._piece(index, {}, finish=_finish(ended, True))

    def total(self, ended: Sequence[Trajectory]) -> JsonObject:
        """The event that a stream with usage ends with."""
        kind = "chat.completion.chunk" if self._is_chat else "text_completion"
        return self._frame(kind, []) | {"usage": self.usage(ended)}

    def _narrator(self, index: int) -> Narrator:
        return self._narrators.setdefault(index, Narrator(self._limits))

    def _narrate(self, index: int, events: Iterator[JsonObject]) -> Iterator[JsonObject]:
        as_openai = {"plan": "reasoning_content", "answer": "content"}
        for event in events:
            if "answer" in event:
                event = {"answer": self._cut(event["answer"])}
            named = {as_openai[k]: v for k, v in event.items() if k in as_openai}
            yield self._piece(index, event | named)

    def _text_piece(
        self, index: int, text: str, ids: Sequence[int], logprobs: Sequence[float]
    ) -> Iterator[JsonObject]:
        characters, tokens = self._told.get(index, (0, 0))
        delta: JsonObject = {}
        if text[characters:]:
            delta["content"] = text[characters:]
        if self._asked.token_ids and ids[tokens:]:
            delta["token_ids"] = list(ids[tokens:])
        found = None
        if self._asked.logprobs and ids[tokens:]:
            found = self._logprobs(ids[tokens:], logprobs[tokens:], characters)
        if delta or found:
            self._told[index] = max(characters, len(text)), len(ids)
            yield self._piece(index, delta, found)

    def _piece(
        self, index: int, delta: JsonObject, found: JsonObject | None = None, finish: str = ""
    ) -> JsonObject:
        choice: JsonObject = {"index": index, "finish_reason": finish or None, "logprobs": found}
        if self._is_chat:
            return self._frame("chat.completion.chunk", [choice | {"delta": delta}])
        text = {"text": delta.pop("content", "")}
        return self._frame("text_completion", [choice | text | delta])

    # ---- whole

    def _frame(self, kind: str, choices: list[JsonObject]) -> JsonObject:
        return {
            "id": self._name,
            "object": kind,
            "created": self._created,
            "model": self._model,
            "choices": choices,
        }

    def _choice(self, index: int, ended: Trajectory, seen: Seen) -> JsonObject:
        choice: JsonObject = {"index": index, "logprobs": None}
        if self._is_agent:
            message = self._agent_message(seen)
            if why := narration.failure_of(seen, ended.status, tuple(self._limits)):
                message["failed"] = why
            finish = _finish(ended, message["content"] != "")
            return choice | {"message": message, "finish_reason": finish}
        text, (ids, logprobs) = ended.text_by("policy"), _sampled(ended)
        choice["finish_reason"] = _finish(ended, True)
        if self._asked.logprobs:
            choice["logprobs"] = self._logprobs(ids, logprobs, 0)
        if self._asked.token_ids:
            choice["token_ids"] = ids
            choice["prompt_token_ids"] = ended.ids[: ended.prompt_len].tolist()
        if self._is_chat:
            return choice | {"message": {"role": "assistant", "content": text}}
        return choice | {"text": text}

    def _cut(self, answer: str) -> str:
        """An agent's answer up to the first stop."""
        ends = [at for stop in self._asked.stop if (at := answer.find(stop)) >= 0]
        return answer[: min(ends, default=len(answer))]

    def _agent_message(self, seen: Seen) -> JsonObject:
        answer = self._cut(narration.answer_of(seen.segments, tuple(self._limits)) or "")
        words = answer.casefold()
        cited: JsonObject = {}
        searches = seen.calls_of(SEARCH)
        for number, i in enumerate(searches):
            for passage in seen.shown[i] if i < len(seen.shown) else ():
                has_answer = bool(words) and words in passage.text.casefold()
                about = {"search": number, "has_answer": has_answer}
                cited.setdefault(passage.id, narration.as_document(passage) | about)
        message: JsonObject = {
            "role": "assistant",
            "content": answer,
            "searches": [list(seen.queries[i]) for i in searches],
            "citations": list(cited.values()),
        }
        if len(self._limits) > 1:
            others = [i for i in range(len(seen.queries)) if i not in searches]
            message["calls"] = [seen.call(i) for i in others]
        return message

    def _logprobs(self, ids: Sequence[int], logprobs: Sequence[float], start: int) -> JsonObject:
        spelled = [self._vocab.token_bytes(i) if i < self._vocab.size else b"" for i in ids]
        tokens = [s.decode("utf-8", "replace") for s in spelled]
        if self._is_chat:
            entries = [
                {"token": t, "logprob": float(p), "bytes": list(s), "top_logprobs": []}
                for t, p, s in zip(tokens, logprobs, spelled, strict=True)
            ]
            return {"content": entries, "refusal": None}
        offsets = list(itertools.accumulate(map(len, tokens), initial=start))[:-1]
        return {
            "tokens": tokens,
            "token_logprobs": [float(p) for p in logprobs],
            "top_logprobs": None,
            "text_offset": offsets,
        }


def _sampled(ended: Trajectory) -> tuple[list[int], list[float]]:
    return ended.ids[ended.sampled].tolist(), ended.logprobs[ended.sampled].tolist()


def _said(seen: Seen) -> str:
    return "".join(s.text for s in seen.segments if s.author == "policy")


def _finish(ended: Trajectory, has_said: bool) -> str:
    return "stop" if ended.status == "answered" and has_said else "length"

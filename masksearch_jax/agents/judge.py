"""The judge: says whether an answer agrees with the known one; only a clear yes counts."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
from collections.abc import Sequence
from typing import Protocol

from masksearch_jax.agents import dialogue
from masksearch_jax.agents.llm_client import LLM, JobError, LLMError, Message, Reply, served_by
from masksearch_jax.core.errors import ConfigError, UserError, check_given
from masksearch_jax.core.llm_config import JudgeConfig
from masksearch_jax.core.types import Example, RampExample

VERDICTS = ("correct", "incorrect")
SERVED = "judge.model"  # the key of a config whose weights `served_of` tells
_REMEMBERED = 4096  # conversations whose replies could not be read, the last ones
_QUOTED = 80  # characters of a reply or an answer


@dataclasses.dataclass(frozen=True)
class Verdict:
    correct: bool
    reason: str


def messages(task: str, known: str, answer: str, language: str) -> list[Message]:
    """`known`: the accepted answers, or the masked spans in order."""
    return dialogue.render("judge", language, task=task, known=known, answer=answer)


def parse(text: str) -> Verdict:
    """Raises dialogue.ReplyError for anything but one of the two verdicts, spelled exactly."""
    fields = dialogue.parse_object(text)
    verdict = fields.get("verdict")
    if not isinstance(verdict, str) or verdict not in VERDICTS:
        raise dialogue.ReplyError(
            f'"verdict" must be one of {", ".join(VERDICTS)}, not {verdict!r:.80}'
        )
    return Verdict(verdict == "correct", dialogue.text_field(fields, "reason"))


def known_text(example: Example) -> str:
    """The masked spans, numbered in their order, or the accepted answers; a line each."""
    if isinstance(example, RampExample):
        return "\n".join(f"{i}. {span.text}" for i, span in enumerate(example.spans, start=1))
    return "\n".join(example.answers)


def right_answer(example: Example) -> str:
    """What the example itself holds to be right: the whole paragraph, or its first answer."""
    if isinstance(example, RampExample):
        return example.paragraph
    return next((answer for answer in example.answers if answer.strip()), "")


class JudgeError(UserError):
    """No call of the judge can succeed any more, or it does not call a right answer right."""


def served_of(cfg: JudgeConfig) -> str:
    """What tells the judge's weights from others of its name, "" where its endpoint does not.

    Raises JudgeError for one that is down.
    """
    try:
        return served_by(cfg, "config.judge")
    except JobError as error:
        raise JudgeError(f"the judge: {error}") from error


class Model(Protocol):
    """A model that is asked as an endpoint is: `own_model.OwnModel`, which needs JAX."""

    async def complete(self, messages: Sequence[Message]) -> Reply: ...


class Judge:
    """`async with Judge(cfg) as judge: await judge(example, answer)` is whether it is right.

    None where its reply cannot be read. own_model: who is asked in place of an endpoint.
    max_unreadable: the share of such replies beyond which it is of no use. Raises ConfigError with
    neither or with both, JudgeError when no call can succeed any more, LLMError when this one gave
    no reply.
    """

    def __init__(self, cfg: JudgeConfig, own_model: Model | None = None):
        address = (
            "an endpoint, such as http://localhost:8000/v1, or config.judge.own_model be set: "
            "config.dapo.reward is 'judge'"
        )
        if own_model is None:
            check_given(cfg, "config.judge", base_url=address)
        elif cfg.base_url:
            raise ConfigError(
                f"config.judge.base_url is {cfg.base_url!r}; with config.judge.own_model, which "
                "asks no endpoint, it must be empty"
            )
        self.max_unreadable = cfg.max_unreadable
        self._cfg = cfg
        self._own_model = own_model
        # Conversations whose replies could not be read, each with why.
        self._unreadable: collections.deque[tuple[list[Message], str]] = collections.deque(
            maxlen=_REMEMBERED
        )
        self._open = contextlib.AsyncExitStack()

    async def __aenter__(self) -> Judge:
        self._llm: LLM | Model
        if self._own_model is not None:
            self._llm = self._own_model
            return self
        try:
            llm = await self._open.enter_async_context(LLM(self._cfg, "config.judge"))
            await llm.served()  # now, while a judge that is down ends what has not begun
        except JobError as error:
            await self._open.aclose()
            raise JudgeError(f"the judge: {error}") from error
        self._llm = llm
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._open.aclose()

    def asked(self, example: Example, answer: str) -> list[Message]:
        """The conversation whose reply is the verdict."""
        task = dialogue.task_text(example, self._cfg.language)
        return messages(task, known_text(example), answer, self._cfg.language)

    async def __call__(self, example: Example, answer: str) -> bool | None:
        messages = self.asked(example, answer)
        verdict, why = await self._ask(messages)
        if verdict is None:
            self._unreadable.append((messages, why))
        return verdict

    async def check_known(self, example: Example) -> None:
        """Raises JudgeError unless it calls the known answer of an example right.

        What it said instead is not kept: the judge that is mended is asked again.
        """
        answer = right_answer(example)
        messages = self.asked(example, answer)
        try:
            verdict, why = await self._ask(messages)
        except LLMError as error:
            raise JudgeError(f"the judge does not answer: {_named(error)}") from error
        if verdict:
            return
        self._forget(messages)
        found = "calls it" if verdict is False else "gives no verdict that can be read:"
        raise JudgeError(
            f"the judge ({self._who()}) was shown the known answer of example {example.id}, "
            f"{_quoted(answer)}, and {found} {why}"
        )

    async def forget_unreadable(self) -> str:
        """Asks anew for what could not be read so far; why the last of it could not, or ""."""
        why = self._unreadable[-1][1] if self._unreadable else ""
        while self._unreadable:
            self._forget(self._unreadable.pop()[0])
        return why

    async def _ask(self, messages: list[Message]) -> tuple[bool | None, str]:
        """The verdict with its reason; or None, why it cannot be read and what to change."""
        try:
            reply = await self._llm.complete(messages)
        except JobError as error:
            raise JudgeError(f"the judge: {error}") from error
        try:
            verdict = parse(reply.text)
        except dialogue.ReplyError as error:
            return None, self._why_unreadable(reply, error)
        said = VERDICTS[not verdict.correct]
        return verdict.correct, f"{said}: {_quoted(verdict.reason)}; {self._another()}"

    def _why_unreadable(self, reply: Reply, error: dialogue.ReplyError) -> str:
        if reply.is_cut:
            return (
                f"cut off after {reply.completion_tokens} tokens (finish_reason: length) it said "
                f"{_quoted(reply.text)}; config.judge.max_tokens is {self._cfg.max_tokens}: raise "
                "it, above all for a model that thinks before it answers"
            )
        return f"{error}, of {_quoted(reply.text)}; {self._another()}"

    def _who(self) -> str:
        if self._own_model is not None:
            return "the model itself, config.judge.own_model"
        return f"config.judge.model {self._cfg.model!r} at {self._cfg.base_url}"

    def _another(self) -> str:
        if self._own_model is not None:
            return "choose an endpoint (config.judge.base_url) or config.judge.language"
        return "choose another config.judge.model or config.judge.language"

    def _forget(self, messages: list[Message]) -> None:
        if isinstance(self._llm, LLM):  # what a model of ours said is forgotten after each step
            self._llm.forget(messages)


def _quoted(text: str) -> str:
    """The beginning of a text on one line, in quotes."""
    return repr(text if len(text) <= _QUOTED else f"{text[:_QUOTED]}…")


def _named(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"

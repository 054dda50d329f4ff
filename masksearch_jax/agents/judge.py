"""The judge: says whether an answer agrees with the known one; only a clear yes counts."""

from __future__ import annotations

import contextlib
import dataclasses
import types
from collections.abc import Sequence
from typing import Protocol

from masksearch_jax.agents import dialogue
from masksearch_jax.agents.llm_client import LLM, JobError, Message, Reply
from masksearch_jax.core.errors import ConfigError, UserError, check_given
from masksearch_jax.core.llm_config import JudgeConfig
from masksearch_jax.core.types import Example, RampExample

VERDICTS = ("correct", "incorrect")


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


class JudgeError(UserError):
    """No call of the judge can succeed any more: its key, its budget, its cache."""


class Model(Protocol):
    """A model that is asked as an endpoint is: `own_model.OwnModel`, which needs JAX."""

    async def complete(self, messages: Sequence[Message]) -> Reply: ...


class Judge:
    """`async with Judge(cfg) as judge: await judge(example, answer)` is whether it is right.

    None where its reply cannot be read. own_model: who is asked in place of an endpoint. Raises
    ConfigError with neither or with both, JudgeError when no call can succeed any more, LLMError
    when this one gave no reply.
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
        self._cfg = cfg
        self._own_model = own_model
        self._open = contextlib.AsyncExitStack()

    async def __aenter__(self) -> Judge:
        self._llm: LLM | Model
        if self._own_model is not None:
            self._llm = self._own_model
            return self
        try:
            self._llm = await self._open.enter_async_context(LLM(self._cfg, "config.judge"))
        except JobError as error:
            raise JudgeError(f"the judge: {error}") from error
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: types.TracebackType | None,
    ) -> None:
        await self._open.aclose()

    def asked(self, example: Example, answer: str) -> list[Message]:
        """The conversation whose reply is the verdict."""
        task = dialogue.task_text(example, self._cfg.language)
        return messages(task, known_text(example), answer, self._cfg.language)

    async def __call__(self, example: Example, answer: str) -> bool | None:
        try:
            reply = await self._llm.complete(self.asked(example, answer))
        except JobError as error:
            raise JudgeError(f"the judge: {error}") from error
        try:
            return parse(reply.text).correct
        except dialogue.ReplyError:
            return None

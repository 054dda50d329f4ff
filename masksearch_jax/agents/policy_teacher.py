"""A model of ours as a teacher: it samples with live search, rules say what is a demonstration."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from masksearch_jax.agents import agent_teacher, selection, teachers
from masksearch_jax.agents.scripted_teacher import Rejection
from masksearch_jax.agents.selection import StudentConfig
from masksearch_jax.core import markup, retrieval
from masksearch_jax.core.llm_config import LLMConfig
from masksearch_jax.core.tokenizer import Vocab
from masksearch_jax.core.tools import Toolbox
from masksearch_jax.core.types import Demonstration, Example
from masksearch_jax.data import prompt
from masksearch_jax.models.load import check_context, check_vocabulary, initial
from masksearch_jax.parallel.sharding import make_mesh
from masksearch_jax.rollout.engine import Engine
from masksearch_jax.rollout.episode import Request, lacks_room

TEACHER = "local"


class Student:
    """A model of ours as a `teachers.Teacher`: `samples` trajectories of each example.

    `llm` is for the judge. Raises what loading tokenizer and weights raises. Of an example whose
    prompt leaves no room to answer the outcomes are `prompt_too_long`; nothing is sampled of it.
    """

    def __init__(
        self,
        cfg: StudentConfig,
        tools: Toolbox,
        limits: agent_teacher.TeacherConfig,
        llm: LLMConfig | None,
        seed: int,
    ):
        self.cfg, self.attempts, self._limits, self._seed = cfg, cfg.samples, limits, seed
        self._vocab = Vocab.load(cfg.tokenizer, "config.student.tokenizer")
        prompt.check_style(cfg.prompt.style, self._vocab, "config.student")
        check_vocabulary(cfg.model, self._vocab, cfg.tokenizer, cfg.init)
        check_context(cfg.model, cfg.rollout.max_len, "config.student.rollout.max_len")
        self._mesh = make_mesh(cfg.mesh)
        self._model = initial(cfg.init, cfg.model, cfg.compute, self._mesh, 0)
        self._engine = Engine(self._vocab, tools, cfg.rollout, limits.search)
        self._judge = teachers.Session(llm) if cfg.judge == "llm" else None

    def solve(
        self, examples: Sequence[Example], done: Callable[[teachers.Outcome], None]
    ) -> list[teachers.Outcome]:
        found: dict[tuple[int, int], teachers.Outcome] = {}
        requests, too_long = self._requests(examples)
        for i, why in too_long.items():
            for sample in range(self.attempts):
                found[i, sample] = Rejection(examples[i].id, "prompt_too_long", why)
                if not self._judge:
                    done(found[i, sample])
        with jax.set_mesh(self._mesh):
            for trajectory in self._engine.run(self._model, requests):
                i, sample = int(trajectory.example_id), trajectory.sample
                refused = selection.rejection(examples[i], trajectory, self.cfg.rules)
                made = selection.to_demonstration(trajectory, examples[i], TEACHER, sample)
                found[i, sample] = refused or made
                if refused or not self._judge:
                    done(found[i, sample])
        outcomes = [found[key] for key in sorted(found)]
        return self._judged(examples, outcomes, done) if self._judge else outcomes

    def _requests(self, examples: Sequence[Example]) -> tuple[list[Request], dict[int, str]]:
        """Those of the examples that can be sampled, and why the others (by place) cannot.

        An example's random numbers are its own, wherever it stands.
        """
        requests: list[Request] = []
        too_long: dict[int, str] = {}
        for i, example in enumerate(examples):
            text = prompt.render(
                example, self.cfg.prompt.style, self._vocab, self._engine.tools.instructions
            )
            ids = np.asarray(self._vocab.encode(text), np.int32)
            name = f"{self._seed}/{example.id}".encode()
            stream = int.from_bytes(hashlib.sha256(name).digest()[:4], "big")
            source = retrieval.source_of(example)
            own = [Request(str(i), ids, stream, s, source) for s in range(self.attempts)]
            if why := lacks_room(ids, self.cfg.rollout):
                too_long[i] = why
            else:
                requests += own
        return requests, too_long

    def _judged(
        self,
        examples: Sequence[Example],
        outcomes: list[teachers.Outcome],
        done: Callable[[teachers.Outcome], None],
    ) -> list[teachers.Outcome]:
        by_id = {e.id: e for e in examples}
        tools = self._engine.tools.names
        asked = [i for i, o in enumerate(outcomes) if isinstance(o, Demonstration)]
        answers = [
            (
                by_id[outcomes[i].example_id],
                markup.extract_answer(outcomes[i].segments[-1].text, tools),
            )
            for i in asked
        ]
        judged = agent_teacher.judge_all(answers, self._judge.llm, self._limits)
        for i, refused in zip(asked, self._judge.run(judged), strict=True):
            outcomes[i] = refused or outcomes[i]
            done(outcomes[i])
        return outcomes

    def figures(self) -> dict[str, Any]:
        return self._judge.figures() if self._judge else {}

    def forget_unread(self) -> str:
        return self._judge.llm.forget_unread() if self._judge else ""

    def close(self) -> None:
        self._engine.close()
        if self._judge:
            self._judge.close()

"""Samples groups of a step's prompts with the rollout engine until enough of them have spread."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Sequence

import jax
import numpy as np

from masksearch_jax.core import retrieval
from masksearch_jax.core.config import DapoConfig, RolloutConfig
from masksearch_jax.core.types import JsonObject, Trajectory, to_json
from masksearch_jax.data import batches
from masksearch_jax.data.demonstrations import parse_example
from masksearch_jax.parallel import hosts
from masksearch_jax.rl import rewards
from masksearch_jax.rl.groups import Group, lacking, score_groups
from masksearch_jax.rollout.engine import Engine
from masksearch_jax.rollout.episode import Request
from masksearch_jax.rollout.model import Policy
from masksearch_jax.rollout.stats import EngineStats

# Figures of which a process has its part; of the others all have their own.
_TOTALS = ("groups_sampled", "groups_kept", "rollout_tokens_per_second", "restarted")


class SearchOutage(Exception):
    """So many searches of a step failed that it teaches nothing: it is to be sampled again."""

    def __init__(self, failed: int, searches: int, error: str):
        super().__init__(f"{failed} of {searches} searches failed: {error}")


class GroupSampler:
    """Draws prompts and samples groups; those that are not whole at a step's end go on in the next.

    A prompt's stream is its number in the run, whatever the number of processes. Where a share of
    `tool_failures` of the searches fails, `step` raises SearchOutage.
    """

    def __init__(
        self,
        engine: Engine,
        prompts: batches.PromptBatches,
        dapo: DapoConfig,
        rollout: RolloutConfig,
        tool_failures: float = 1.0,
    ):
        self.tool_failures = tool_failures
        self.engine, self.prompts, self.dapo, self.rollout = engine, prompts, dapo, rollout
        self.partial = rollout.in_flight != "drop"
        self.wanted = dapo.groups // jax.process_count()
        self.stream = 0
        self.open: dict[str, tuple[batches.Prompt, dict[int, Trajectory]]] = {}
        self.again: list[Request] = []

    def state(self) -> JsonObject:
        """JSON of the next stream and of this process's prompts whose groups are open."""
        own = [
            {
                "stream": name,
                "ids": prompt.ids.tolist(),
                "example": json.dumps(to_json(prompt.example)),
            }
            for name, (prompt, _) in self.open.items()
        ]
        return {"stream": self.stream, "open": own}

    @staticmethod
    def gather(state: JsonObject) -> JsonObject:
        """`state` with the prompts of all processes; all must call it."""
        texts = hosts.gather_texts(json.dumps(state["open"]))
        return state | {"open": [p for text in texts for p in json.loads(text)]}

    def restore(self, state: JsonObject) -> None:
        """Goes on from `state`, on any number of processes; open groups are sampled anew."""
        own = state["open"][jax.process_index() :: jax.process_count()]
        self._go_on(state["stream"], own)

    def rewind(self, state: JsonObject) -> None:
        """Goes back to a `state` of this process, whatever has been sampled since."""
        self.engine.drop()
        self.open, self.again = {}, []
        self._go_on(state["stream"], state["open"])

    def _go_on(self, stream: int, opened: Sequence[JsonObject]) -> None:
        self.stream = stream
        for saved in opened:
            ids = np.asarray(saved["ids"], np.int32)
            prompt = batches.Prompt(ids, parse_example(saved["example"]))
            self.again += self._request(int(saved["stream"]), prompt)

    def step(self, model: Policy, version: int) -> tuple[list[Group], list[Group]]:
        """This process's groups with spread, at most its share, and all that it saw.

        Raises SearchOutage, on all processes.
        """
        kept: list[Group] = []
        seen: list[Group] = []
        counts: list[tuple[int, int]] = []
        drawn = next(self.prompts)
        ahead = round((self.dapo.oversample - 1) * self.wanted) * jax.process_count()
        if self.partial and ahead and not hosts.any_process(bool(self.open)):
            drawn = [*drawn, *self.prompts.extra(ahead)]
        for round_ in range(max(self.dapo.max_refills, 1)):
            if round_:
                short = lacking(counts, self.wanted)
                if not short:
                    break
                drawn = self.prompts.extra(short * jax.process_count())
            requests, self.again = self.again + self._requests(drawn), []
            for group in self._sample(model, version, requests, kept):
                seen.append(group)
                if score_groups([group], self.dapo, self.rollout)[2][0]:
                    kept.append(group)
            counts = self._counts(kept, seen)
        kept.sort(key=lambda group: group.stream)
        return kept[: self.wanted], sorted(seen, key=lambda group: group.stream)

    def _counts(self, kept: list[Group], seen: list[Group]) -> list[tuple[int, int]]:
        """Groups with spread, and all, of each process. Raises SearchOutage, on all of them."""
        ended = (turn for group in seen for t in group.trajectories for turn in t.turns)
        turns = [turn for turn in ended if turn.queries]  # without any, no tool is asked
        errors = [turn.error for turn in turns if turn.error]
        own = [len(kept), len(seen), len(turns), len(errors), *errors[:1]]
        found = [json.loads(text) for text in hosts.gather_texts(json.dumps(own))]
        searches, failed = (sum(counts[i] for counts in found) for i in (2, 3))
        if failed and failed >= self.tool_failures * searches:
            raise SearchOutage(failed, searches, next(c[4] for c in found if len(c) > 4))
        return [tuple(counts[:2]) for counts in found]

    def _sample(
        self, model: Policy, version: int, requests: list[Request], kept: list[Group]
    ) -> Iterator[Group]:
        """Groups as they become whole; in parts, until `kept` has enough."""

        def enough() -> bool:
            return self.partial and len(kept) >= self.wanted

        for trajectory in self.engine.run(model, requests, version, enough=enough):
            name = trajectory.example_id
            prompt, found = self.open[name]
            found[trajectory.sample] = trajectory
            if len(found) < self.dapo.group_size:
                continue
            del self.open[name]
            example, members = prompt.example, [t for _, t in sorted(found.items())]
            members = [dataclasses.replace(t, example_id=example.id) for t in members]
            parts = [rewards.reward(example, t, self.dapo) for t in members]
            yield Group(example, members, parts, int(name))

    def _requests(self, drawn: Sequence[batches.Prompt]) -> list[Request]:
        """One request per sample of each prompt; streams are numbered as one process would."""
        first = self.stream + jax.process_index() * len(drawn)
        self.stream += jax.process_count() * len(drawn)
        return [r for i, prompt in enumerate(drawn, first) for r in self._request(i, prompt)]

    def _request(self, stream: int, prompt: batches.Prompt) -> list[Request]:
        self.open[str(stream)] = (prompt, {})
        source = retrieval.source_of(prompt.example)
        samples = range(self.dapo.group_size)
        return [Request(str(stream), prompt.ids, stream % 2**32, s, source) for s in samples]


def figures(seen: Sequence[Group], kept: Sequence[Group], stats: EngineStats) -> dict[str, float]:
    """What a step's groups looked like and what sampling them took; all processes must call it."""
    trajectories = [t for g in seen for t in g.trajectories]
    parts = [r for g in seen for r in g.rewards]
    own = {
        "reward": float(np.mean([r.total for r in parts])),
        "answer": float(np.mean([r.answer for r in parts])),
        "format": float(np.mean([r.format for r in parts])),
        "accuracy": float(np.mean([r.accuracy for r in parts])),
        "reward_spread": float(np.mean([np.std([r.total for r in g.rewards]) for g in seen])),
        "searches": float(np.mean([len(t.turns) for t in trajectories])),
        "sampled_tokens": float(np.mean([t.sampled.sum() for t in trajectories])),
        "truncated": float(np.mean([t.status == "out_of_tokens" for t in trajectories])),
        "tool_failures": float(np.mean([t.status == "tool_failure" for t in trajectories])),
        "groups_sampled": float(len(seen)),
        "groups_kept": float(len(kept)),
    }
    own |= stats.figures()
    own |= {name: own[name] * jax.process_count() for name in _TOTALS}
    return hosts.mean_over_processes(own)

"""What is remembered of each prompt: how often its samples were right, and until when it rests.

A prompt whose samples have no spread has nothing to teach now: by default where all are right, or
all wrong. It comes back later, and later still each time.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

import numpy as np

from masksearch_jax.core.types import JsonObject
from masksearch_jax.parallel import hosts
from masksearch_jax.rl.groups import Group
from masksearch_jax.rl.reward_figures import asked_for

_MOST_DOUBLINGS = 6


class PassRates:
    """Of prompts by their example's id. rest: steps of a first rest; 0: none does.

    threshold: of `accuracy` in a sample that is right. `state` belongs into the checkpoint.
    """

    def __init__(self, rest: int, threshold: float):
        self._rest, self._threshold, self._step = rest, threshold, 0
        # id → samples right, samples, times in a row that it taught nothing, first step to be back
        self._known: dict[str, list[int]] = {}

    def begin(self, step: int) -> None:
        """Says which step prompts are drawn for."""
        self._step = step

    def is_resting(self, name: str) -> bool:
        return self._known.get(name, (0, 0, 0, 0))[3] > self._step

    def update(self, step: int, seen: Sequence[Group], taught: Sequence[bool]) -> None:
        """Remembers the groups of a step of all processes, which all must call it.

        taught: whether each has spread to learn from, as `score_groups` says. One that has none and
        lost samples, which might have had it, says nothing of that.
        """
        own = []
        for group, has_spread in zip(seen, taught, strict=True):
            right = [t.accuracy >= self._threshold for t in asked_for(group) if t.is_known]
            is_told = has_spread or len(right) == len(group.rewards)
            told = bool(has_spread) if is_told else None
            own.append([group.example.id, int(np.sum(right)), len(right), told])
        for text in hosts.gather_texts(json.dumps(own)):
            for name, right, samples, told in json.loads(text):
                if samples:
                    self._remember(step, name, right, samples, told)

    def _remember(
        self, step: int, name: str, right: int, samples: int, taught: bool | None
    ) -> None:
        all_right, all_samples, idle, until = self._known.get(name, [0, 0, 0, 0])
        if taught is not None:
            idle = 0 if taught else idle + 1
            until = step + 1 + (self._rest << min(idle - 1, _MOST_DOUBLINGS)) if idle else 0
        self._known[name] = [all_right + right, all_samples + samples, idle, until]

    def figures(self) -> dict[str, float]:
        """Prompts seen so far; of these, those that rest in the next step; mean of pass rates."""
        resting = sum(until > self._step + 1 for *_, until in self._known.values())
        rates = [right / samples for right, samples, *_ in self._known.values()]
        found = {"prompts_known": float(len(rates)), "prompts_resting": float(resting)}
        return found | ({"pass_rate": float(np.mean(rates))} if rates else {})

    def state(self) -> JsonObject:
        return {"known": self._known}

    def restore(self, state: JsonObject) -> None:
        self._known = {name: list(row) for name, row in state["known"].items()}

"""What is said of a step's rewards: means of their terms, and the samples that have none. NumPy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from masksearch_jax.core.config import DapoConfig
from masksearch_jax.core.rollout_config import RolloutConfig
from masksearch_jax.core.types import NOT_ITS_DOING, RampExample
from masksearch_jax.parallel import hosts
from masksearch_jax.rl.groups import Group, overlong, score_groups
from masksearch_jax.rl.rewards import JUDGE_UNREADABLE, RewardTerms

KINDS = ("ramp", "qa")


def asked_for(group: Group) -> list[RewardTerms]:
    """Of the samples that a reward was asked for: those whose end is the policy's doing."""
    pairs = zip(group.trajectories, group.rewards, strict=True)
    return [terms for t, terms in pairs if t.status not in NOT_ITS_DOING]


def failures(group: Group) -> list[str]:
    """Of each sample that has no reward, though one was asked for: its example and why."""
    name = group.example.id
    return [f"example {name}: {terms.failure}" for terms in asked_for(group) if terms.failure]


def figures(seen: Sequence[Group], dapo: DapoConfig, rollout: RolloutConfig) -> dict[str, float]:
    """The mean over the samples of all processes of each part, of those that have it.

    `reward` is what trains, less what `overlong` takes off for length. Where a step has masked
    paragraphs and questions, `reward`, `accuracy` and `searches` are also told of each, as `ramp_…`
    and `qa_…`. `reward_spread` is the mean deviation within groups of the samples that train,
    `reward_failures` the share of samples without a reward, `judge_unreadable` that of verdicts
    that cannot be read; these samples are in no other figure. All processes must call it.
    """
    threshold = dapo.accuracy_threshold
    values: dict[str, list[float]] = {"reward_failures": []}
    for group in seen:
        asked = asked_for(group)
        values["reward_failures"] += [float(bool(terms.failure)) for terms in asked]
        for terms in asked:
            if not terms.failure and not terms.is_known:
                values.setdefault(JUDGE_UNREADABLE, []).append(1.0)
        there = _known(group, dapo, rollout)
        for terms, _, taken_off in there:
            right = float(terms.accuracy >= threshold)
            for name, value in {**_named(terms), "accuracy": right}.items():
                values.setdefault(name, []).append(value)
            if dapo.overlong_buffer and dapo.overlong_penalty:
                values.setdefault("overlong", []).append(taken_off)
        values.setdefault("reward", []).extend(total for _, total, _ in there)
        for name, found in _of_its_kind(group, there, threshold).items():
            values.setdefault(name, []).extend(found)
        (totals,), (trains,), _ = score_groups([group], dapo, rollout)
        if trains.any():
            values.setdefault("reward_spread", []).append(float(np.std(totals[trains])))
    means = hosts.means(values)
    if all(f"{kind}_searches" in means for kind in KINDS):
        return means
    of_one = {f"{kind}_{name}" for kind in KINDS for name in ("reward", "accuracy", "searches")}
    return {name: mean for name, mean in means.items() if name not in of_one}


class _Known(NamedTuple):
    """A sample whose reward is known: its terms, what of them trains, and what length took off."""

    terms: RewardTerms
    total: float
    taken_off: float


def _known(group: Group, dapo: DapoConfig, rollout: RolloutConfig) -> list[_Known]:
    penalties = overlong(group, dapo, rollout).tolist()
    found = zip(group.trajectories, group.rewards, penalties, strict=True)
    return [
        _Known(terms, terms.total + penalty, -penalty)
        for t, terms, penalty in found
        if t.status not in NOT_ITS_DOING and terms.is_known
    ]


def _of_its_kind(group: Group, there: Sequence[_Known], threshold: float) -> dict[str, list[float]]:
    """Figures of a group's samples, named after the kind of its example."""
    kind = KINDS[not isinstance(group.example, RampExample)]
    return {
        f"{kind}_reward": [known.total for known in there],
        f"{kind}_accuracy": [float(known.terms.accuracy >= threshold) for known in there],
        f"{kind}_searches": [float(t.searches) for t in group.counted],
    }


def _named(terms: RewardTerms) -> dict[str, float]:
    return {"answer": terms.answer, "format": terms.format, **terms.logged}

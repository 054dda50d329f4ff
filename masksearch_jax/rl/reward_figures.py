"""What is said of a step's rewards: means of their terms, and the samples that have none. NumPy."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from masksearch_jax.core.types import NOT_ITS_DOING, RampExample
from masksearch_jax.parallel import hosts
from masksearch_jax.rl.groups import Group
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


def figures(seen: Sequence[Group], threshold: float) -> dict[str, float]:
    """The mean over the samples of all processes of each part, of those that have it.

    threshold: of `accuracy` in a sample that is right. Where a step has masked paragraphs and
    questions, `reward`, `accuracy` and `searches` are also told of each, as `ramp_…` and `qa_…`.
    `reward_spread` is the mean deviation within groups, `reward_failures` the share of samples
    without a reward, `judge_unreadable` that of verdicts that cannot be read; these samples are in
    no other figure. All processes must call it.
    """
    values: dict[str, list[float]] = {"reward_failures": []}
    for group in seen:
        asked = asked_for(group)
        values["reward_failures"] += [float(bool(terms.failure)) for terms in asked]
        for terms in asked:
            if not terms.failure and not terms.is_known:
                values.setdefault(JUDGE_UNREADABLE, []).append(1.0)
        there = [terms for terms in asked if terms.is_known]
        for terms in there:
            right = float(terms.accuracy >= threshold)
            for name, value in {**_named(terms), "accuracy": right}.items():
                values.setdefault(name, []).append(value)
        for name, found in _of_its_kind(group, threshold).items():
            values.setdefault(name, []).extend(found)
        if there:
            spread = float(np.std([terms.total for terms in there]))
            values.setdefault("reward_spread", []).append(spread)
    means = hosts.means(values)
    if all(f"{kind}_searches" in means for kind in KINDS):
        return means
    of_one = {f"{kind}_{name}" for kind in KINDS for name in ("reward", "accuracy", "searches")}
    return {name: mean for name, mean in means.items() if name not in of_one}


def _of_its_kind(group: Group, threshold: float) -> dict[str, list[float]]:
    """Figures of a group's samples, named after the kind of its example."""
    kind = KINDS[not isinstance(group.example, RampExample)]
    there = [terms for terms in asked_for(group) if terms.is_known]
    return {
        f"{kind}_reward": [terms.total for terms in there],
        f"{kind}_accuracy": [float(terms.accuracy >= threshold) for terms in there],
        f"{kind}_searches": [float(t.searches) for t in group.counted],
    }


def _named(terms: RewardTerms) -> dict[str, float]:
    said = {"reward": terms.total, "answer": terms.answer, "format": terms.format}
    return {**said, **terms.logged}

"""Prompts that teach nothing rest, longer each time; the memory is the same after a resume."""

from dataclasses import replace

import numpy as np
import pytest

from masksearch_jax.core.config import DapoConfig
from masksearch_jax.core.rollout_config import RolloutConfig
from masksearch_jax.core.types import QAExample, Trajectory
from masksearch_jax.rl.groups import Group, score_groups
from masksearch_jax.rl.pass_rates import PassRates
from masksearch_jax.rl.rewards import RewardTerms, no_reward

DAPO = DapoConfig(steps=1, curriculum="", groups=1, group_size=2, accuracy_threshold=0.5)
NOTHING = np.zeros(0, np.int32)


def group(name: str, *accuracies: float, lost: int = 0) -> Group:
    made = [
        Trajectory(name, i, NOTHING, NOTHING, NOTHING > 0, NOTHING, 0, (), (), "answered")
        for i in range(len(accuracies) + lost)
    ]
    terms = [RewardTerms(a, a, 0.0, a) for a in accuracies] + [no_reward("down")] * lost
    return Group(QAExample(name, "made", "?", ("a",)), made, terms)


def remember(rates: PassRates, step: int, groups: list[Group], keep_by: str = "accuracy") -> None:
    """With what dynamic sampling says of each group."""
    taught = []
    for one in groups:
        dapo = replace(DAPO, group_size=len(one.rewards), keep_by=keep_by)
        taught += score_groups([one], dapo, RolloutConfig())[2].tolist()
    rates.update(step, groups, taught)


def rests(rates: PassRates, name: str, steps: range) -> list[int]:
    found = []
    for step in steps:
        rates.begin(step)
        found += [step] if rates.is_resting(name) else []
    return found


def test_all_right_and_all_wrong_rest_twice_as_long_each_time():
    rates = PassRates(2, 0.5)
    remember(rates, 0, [group("all", 1.0, 0.9), group("none", 0.0, 0.1), group("some", 1.0, 0.0)])
    assert rests(rates, "all", range(1, 9)) == rests(rates, "none", range(1, 9)) == [1, 2]
    assert rests(rates, "some", range(1, 9)) == rests(rates, "new", range(1, 9)) == []
    remember(rates, 3, [group("all", 1.0, 1.0)])
    assert rests(rates, "all", range(4, 12)) == [4, 5, 6, 7]
    remember(rates, 8, [group("all", 1.0, 0.0)])  # it teaches again
    assert rests(rates, "all", range(9, 12)) == []
    remember(rates, 12, [group("all", 1.0, 1.0)])
    assert rests(rates, "all", range(13, 18)) == [13, 14]


def test_what_is_kept_by_spread_does_not_rest():
    """All samples are wrong, some more than others: it trains, and comes back as it would."""
    for keep_by, resting in (("accuracy", [1, 2]), ("spread", [])):
        rates = PassRates(2, 0.5)
        remember(rates, 0, [group("partly", 0.1, 0.4)], keep_by)
        assert rests(rates, "partly", range(1, 6)) == resting


def test_samples_without_a_reward_do_not_count():
    rates = PassRates(2, 0.5)
    remember(rates, 0, [group("down", lost=3), group("half", 1.0, lost=1)])
    rates.begin(1)
    assert rates.figures() == {"prompts_known": 1.0, "prompts_resting": 0.0, "pass_rate": 1.0}


@pytest.mark.parametrize("status", ["tool_failure", "out_of_time", "answered"])
def test_a_group_that_lost_samples_says_nothing_of_its_prompt_unless_the_rest_have_spread(status):
    """Those that a tool, the clock or a reward failed might have differed from the others."""

    def cut(*accuracies: float) -> Group:
        whole = group("all", *accuracies, lost=7)
        lost = [replace(t, status=status) for t in whole.trajectories[len(accuracies) :]]
        return whole._replace(trajectories=[*whole.trajectories[: len(accuracies)], *lost])

    rates = PassRates(2, 0.5)
    remember(rates, 0, [cut(1.0)])
    assert rests(rates, "all", range(1, 9)) == []
    remember(rates, 1, [group("all", 1.0, 1.0)])
    remember(rates, 2, [cut(1.0)])  # it was drawn though it rests: it goes on to
    assert rests(rates, "all", range(2, 9)) == [2, 3]
    remember(rates, 4, [group("all", 1.0, 1.0)])  # the second time in a row
    assert rests(rates, "all", range(5, 13)) == [5, 6, 7, 8]
    remember(rates, 9, [cut(1.0, 0.0)])
    assert rests(rates, "all", range(10, 18)) == []
    rates.begin(17)
    assert rates.figures()["pass_rate"] == 7 / 8


def test_what_is_back_in_the_next_step_is_not_told_to_rest():
    rates = PassRates(2, 0.5)
    remember(rates, 0, [group("all", 1.0, 1.0)])
    told = []
    for step in range(1, 4):
        rates.begin(step)
        told.append(rates.figures()["prompts_resting"])
    assert rests(rates, "all", range(1, 5)) == [1, 2]
    assert told == [1.0, 0.0, 0.0]


def test_the_memory_is_restored():
    rates, again = PassRates(3, 0.5), PassRates(3, 0.5)
    remember(rates, 0, [group("a", 1.0, 1.0), group("b", 1.0, 0.0)])
    again.restore(rates.state())
    remember(rates, 5, [group("a", 0.0, 0.0)])
    remember(again, 5, [group("a", 0.0, 0.0)])
    assert again.state() == rates.state()
    assert rests(again, "a", range(6, 20)) == [*range(6, 12)]

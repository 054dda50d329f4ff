"""Rewards beside the engine: none holds it up, any order gives the same, failures are nobody's."""

from __future__ import annotations

import dataclasses
import itertools
import math
import threading
from concurrent import futures

import numpy as np
import pytest

from examples import my_reward
from masksearch_jax.core.config import DapoConfig
from masksearch_jax.core.errors import ConfigError
from masksearch_jax.core.rollout_config import RolloutConfig
from masksearch_jax.core.types import QAExample, RampExample, Segment, Span, Trajectory, Turn
from masksearch_jax.data.batches import Prompt
from masksearch_jax.rl import reward_pool, rewards
from masksearch_jax.rl.group_sampler import GroupSampler, figures
from masksearch_jax.rl.groups import Group, score_groups
from masksearch_jax.rl.reward_figures import figures as reward_figures
from masksearch_jax.rl.reward_pool import RewardError, RewardPool, right_answer
from masksearch_jax.rollout.stats import EngineStats
from masksearch_jax.testing.models import TextVocab
from tests.rl import own_rewards

EXAMPLE = RampExample("e7", "p", "t", "A [mask].", "A b.", (Span(2, 3, "b", "TERM"),))
QA = QAExample("q3", "made", "Which?", ("blue whale", "whale"))
DAPO = DapoConfig(steps=9, curriculum="", groups=2, group_size=2, max_refills=1, overlong_buffer=0)
ROLLOUT = RolloutConfig()


def own(name: str, **changes) -> DapoConfig:
    return dataclasses.replace(DAPO, reward=f"tests.rl.own_rewards:{name}", **changes)


def trajectory(name: str, sample: int, said: str, status: str = "answered") -> Trajectory:
    """A prompt token and two sampled ones, which are an answer."""
    sampled, versions = np.asarray([False, True, True]), np.asarray([-1, 0, 0], np.int32)
    segments = (Segment("policy", f"<answer>{said}</answer>"),)
    ids, logprobs = np.arange(3, dtype=np.int32), np.zeros(3, np.float32)
    return Trajectory(name, sample, ids, logprobs, sampled, versions, 1, segments, (), status)


def terms_of(cfg: DapoConfig, example=EXAMPLE, **changes) -> rewards.RewardTerms:
    with RewardPool(cfg) as pool:
        made = dataclasses.replace(trajectory(example.id, 0, "A b."), **changes)
        return pool.submit(example, made).result()


class Prompts:
    """Prompt i is [i, i]."""

    def __init__(self):
        self.drawn = 0

    def extra(self, groups: int) -> list[Prompt]:
        self.drawn += groups
        return [Prompt(np.full(2, i), EXAMPLE) for i in range(self.drawn - groups, self.drawn)]

    def __next__(self) -> list[Prompt]:
        return self.extra(6)


class Answers:
    """An engine whose samples of a prompt are right where `is_right` of stream and sample."""

    def __init__(
        self, is_right=lambda stream, sample: sample == 0, status=lambda sample: "answered"
    ):
        self.is_right, self.status, self.stats = is_right, status, EngineStats()

    def run(self, model, requests, version, *, enough):
        for r in requests:
            said = "A b." if self.is_right(int(r.example_id), r.sample) else "none"
            yield trajectory(r.example_id, r.sample, said, self.status(r.sample))
            if r.sample:
                own_rewards.met.set()


@pytest.fixture(autouse=True)
def fresh():
    own_rewards.met.clear()
    own_rewards.asked.clear()


# ---- beside the engine


def test_the_engine_goes_on_while_a_reward_is_computed():
    """The reward of each first sample ends only after the engine has yielded the second."""
    cfg = own("waits_for_the_next", reward_workers=12)
    with RewardPool(cfg) as pool:
        _, seen = GroupSampler(Answers(), Prompts(), cfg, ROLLOUT, pool).step(None, 0)
        timing = pool.timing()
    assert [[r.total for r in g.rewards] for g in seen] == [[1.0, 1.0]] * 6
    assert set(timing) == {"reward_seconds", "reward_wait_seconds"}
    assert timing["reward_seconds"] > 0 <= timing["reward_wait_seconds"]


def test_nothing_depends_on_which_reward_is_done_first():
    found = []
    for workers in (1, 8):
        cfg = own("right", reward_workers=workers)
        engine = Answers(lambda stream, sample: (stream + sample) % 3 == 0)
        with RewardPool(cfg) as pool:
            kept, seen = GroupSampler(engine, Prompts(), cfg, ROLLOUT, pool).step(None, 0)
        found.append(
            [[(g.stream, [r.total for r in g.rewards]) for g in gs] for gs in (kept, seen)]
        )
    assert found[0] == found[1]
    assert [stream for stream, _ in found[0][0]] == [0, 2]
    assert len(own_rewards.asked) == 2 * 12
    assert set(own_rewards.asked) == {"e7"}  # a function is told the example's id, not its stream


@pytest.mark.parametrize("status", ["tool_failure", "out_of_time"])
def test_what_is_not_the_policys_doing_is_not_scored(status):
    cfg = own("right", group_size=3)
    engine = Answers(status=lambda sample: status if sample == 2 else "answered")
    with RewardPool(cfg) as pool:
        _, (group, *_) = GroupSampler(engine, Prompts(), cfg, ROLLOUT, pool).step(None, 0)
    assert [r.failure for r in group.rewards] == ["", "", status]
    assert len(own_rewards.asked) == 6 * 2
    found = reward_figures([group], DAPO, ROLLOUT)
    assert (found["reward"], found["reward_failures"]) == (0.5, 0.0)


class Stopped(Exception):
    """What a look whether to stop may raise."""


def test_whoever_waits_for_a_reward_looks_meanwhile_whether_to_stop():
    looks = itertools.count(1)

    def check():
        if next(looks) == 3:
            raise Stopped

    with RewardPool(own("hangs"), check=check) as pool:
        with pytest.raises(Stopped):
            pool.wait([pool.submit(EXAMPLE, trajectory("e7", 0, "A b."))])
        own_rewards.met.set()  # so that no thread is left


class Together:
    """`hosts.is_on_any` of threads that stand for processes; it fails where they do not all ask."""

    def __init__(self, count: int):
        self.flags, self.found = [], False
        self.barrier = threading.Barrier(count, self.decide, timeout=30)

    def decide(self):
        self.found = any(self.flags)
        self.flags.clear()

    def __call__(self, flag: bool) -> bool:
        self.flags.append(flag)
        self.barrier.wait()
        return self.found


def test_processes_wait_for_each_others_rewards_and_look_equally_often(monkeypatch):
    """The reward of one is there at once, that of the other once the first has looked twice."""
    monkeypatch.setattr(reward_pool.hosts, "is_on_any", Together(2))
    looks = [0, 0]

    def wait(process: int) -> None:
        def check() -> None:
            looks[process] += 1
            if looks[0] == 2:
                own_rewards.met.set()

        with RewardPool(own("hangs" if process else "by_sample"), check=check) as pool:
            reward = pool.submit(EXAMPLE, trajectory("e7", 1, "A b."))
            pool.wait([reward])
            assert reward.done()

    with futures.ThreadPoolExecutor(2) as threads:
        list(threads.map(wait, range(2)))
    assert looks[0] == looks[1] >= 2


# ---- a user's function


def test_a_function_may_be_asynchronous_and_name_terms():
    found = terms_of(own("later"))
    assert (found.total, found.accuracy, found.format, found.failure) == (0.25, 1.0, 1.0, "")
    assert found.logged["reward_brevity"] == 0.5
    for name in ("Later", "later_bound"):
        assert terms_of(own(name)).total == 0.25
    found = terms_of(own("named"))
    assert (found.total, found.accuracy, found.logged["reward_brevity"]) == (0.75, 0.75, 0.5)


def test_the_example_scores_what_it_says():
    cfg = dataclasses.replace(DAPO, reward="examples.my_reward:reward")
    turns = (Turn(("whales",), ("p1",), ("Whale",), 0.1),)
    said = (Segment("policy", "<answer>the whale shark</answer>"),)
    found = terms_of(cfg, QA, turns=turns, segments=said)
    cost = my_reward.SEARCH_COST
    assert found.total == pytest.approx(2 / 3 - cost)  # of "whale": all, and a word more
    assert found.accuracy == found.logged["reward_f1"] == pytest.approx(2 / 3)
    assert found.logged["reward_cost"] == cost
    assert terms_of(cfg).total == 1.0
    assert terms_of(cfg, segments=()).total == 0.0


FAILURES = [
    ("nan", r"ValueError: nan, which is not finite"),
    ("infinite_part", r"ValueError: brevity is inf, which is not finite"),
    ("too_large", r"ValueError: 1e\+300, which float32 cannot hold: at most 3\.4e\+38"),
    ("part_too_large", r"ValueError: brevity is -10{38}, which float32 cannot hold: at most .*"),
    ("text", r"TypeError: '1\.0' \(str\), which is no number"),
    ("nothing", r"TypeError: None \(NoneType\), which is no number"),
    ("no_total", r"TypeError: there is no total among the terms: brevity"),
    ("raises", r"KeyError: 'gold'"),
    ("raises_later", r"KeyError: 'gold'"),
    ("leaves", r"SystemExit: 3"),
    ("cancels", r"CancelledError: by whoever"),
    ("cancels_a_call", r"CancelledError: by whoever"),
    ("cancels_a_task", r"CancelledError: by whoever"),
    ("hangs", r"no reward in 0\.05 s"),
]


@pytest.mark.parametrize(("name", "message"), FAILURES)
def test_a_reward_that_is_none_is_named_with_its_example(name, message):
    cfg = own(name, reward_timeout=0.05 if name == "hangs" else 300.0)
    said = (
        rf"config\.dapo\.reward is '{cfg.reward}', which gives no reward for example e7: {message}$"
    )
    with RewardPool(cfg) as pool:
        with pytest.raises(ConfigError, match=said):
            pool.check_sample(EXAMPLE, trajectory("e7", 0, "A b."))
        own_rewards.met.set()  # so that no thread is left


def test_a_pool_that_closes_cancels_what_is_not_done():
    with RewardPool(own("hangs")) as pool:
        reward = pool.submit(EXAMPLE, trajectory("e7", 0, "A b."))
    own_rewards.met.set()  # so that no thread is left
    assert reward.cancelled()


def test_samples_without_a_reward_are_left_out_and_counted(caplog):
    cfg = own("some_fail", group_size=4, groups=6, max_reward_failures=0.25)
    with RewardPool(cfg) as pool:
        kept, seen = GroupSampler(Answers(), Prompts(), cfg, ROLLOUT, pool).step(None, 0)
    _, valid, keep = score_groups(seen, cfg, ROLLOUT)
    assert valid.tolist() == [[False, True, True, True]] * 6
    assert keep.all()
    assert len(kept) == 6
    found = figures(seen, kept, 0, EngineStats(), 0, cfg, ROLLOUT)
    assert found["reward_failures"] == 0.25
    assert found["reward"] == pytest.approx(1 / 3)
    said = "a sample without a reward: example e7: ValueError: nan, which is not finite"
    assert caplog.messages == [said] * 6


def test_a_run_ends_where_too_many_samples_have_no_reward():
    cfg = own("some_fail", group_size=4, max_reward_failures=0.2)
    said = (
        r"6 of 24 samples have no reward, more than the share of 0\.2 that "
        r"config\.dapo\.max_reward_failures allows: example e7: ValueError: nan"
    )
    with RewardPool(cfg) as pool, pytest.raises(RewardError, match=said):
        GroupSampler(Answers(), Prompts(), cfg, ROLLOUT, pool).step(None, 0)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("tests.rl.own_rewards:rigth", r"module 'tests\.rl\.own_rewards' has no 'rigth'; did you"),
        ("tests.rl.own_reward:right", r"no module 'tests\.rl\.own_reward'; did you mean own_rewar"),
        ("tests.rl.own_rewards:NOT_A_FUNCTION", r"which is float, not a function"),
        ("tests.rl.own_rewards:of_one", r"cannot be called as of_one\(example, trajectory\)"),
        ("tests.rl.own_rewards:", r"a function is named as package\.module:function"),
    ],
)
def test_a_function_that_is_not_there_is_told_in_one_line(name, message):
    with pytest.raises(ConfigError, match=rf"config\.dapo\.reward is '{name}'.*{message}") as error:
        rewards.check_reward(dataclasses.replace(DAPO, reward=name), max_turns=4)
    assert "\n" not in str(error.value)


def test_a_reward_is_tried_on_the_right_answer():
    vocab = TextVocab()
    for example, said in ((EXAMPLE, "A b."), (QA, "blue whale")):
        prompt = Prompt(np.asarray(vocab.encode("?"), np.int32), example)
        made = right_answer(prompt, vocab)
        assert made.text_by("policy") == f"<answer>{said}</answer>"
        assert vocab.decode(made.ids[made.prompt_len :].tolist()) == made.text_by("policy")
        assert made.sampled.sum() == len(made.ids) - made.prompt_len
        with RewardPool(DAPO) as pool:
            assert pool.submit(example, made).result().total == 1.0
            pool.check_sample(example, made)


# ---- figures

LENIENT = dataclasses.replace(DAPO, accuracy_threshold=0.9)


def sampled(tokens: int, sample: int, status: str = "answered") -> Trajectory:
    """A prompt token and so many sampled ones."""
    is_sampled = np.r_[False, np.ones(tokens, bool)]
    versions = np.where(is_sampled, 0, -1).astype(np.int32)
    ids, logprobs = np.ones(tokens + 1, np.int32), np.zeros(tokens + 1, np.float32)
    return Trajectory("e", sample, ids, logprobs, is_sampled, versions, 1, (), (), status)


@pytest.mark.parametrize(("example", "kind"), [(EXAMPLE, "ramp"), (QA, "qa")])
def test_the_reward_that_is_told_is_the_one_that_trains(example, kind):
    """The third is as long as can be, the fourth is 220 tokens into a buffer of 256."""
    cfg = DapoConfig(steps=1, curriculum="", group_size=4)
    made = [sampled(n, i) for i, n in enumerate((100, 100, 1536, 1500))]
    terms = [rewards.RewardTerms(x, x, 1.0, x) for x in (1.0, 0.0, 1.0, 1.0)]
    group = Group(example, made, terms)
    trained = score_groups([group], cfg, ROLLOUT)[0][0]
    assert trained.tolist() == [1.0, 0.0, 0.0, 0.140625]
    other = Group(QA if kind == "ramp" else EXAMPLE, [sampled(1, 0)], [rewards.no_reward("no")])
    found = reward_figures([group, other], cfg, ROLLOUT)
    assert found["reward"] == found[f"{kind}_reward"] == 0.28515625
    assert found["reward_spread"] == pytest.approx(np.std(trained), rel=1e-6)
    assert found["overlong"] == (1.0 + 0.859375) / 4
    assert found["answer"] == 0.75


def test_without_a_penalty_of_length_there_is_no_figure_of_one():
    group = Group(EXAMPLE, [sampled(1536, 0)], [rewards.RewardTerms(1.0, 1.0, 1.0, 1.0)])
    for off in ({"overlong_buffer": 0}, {"overlong_penalty": 0.0}):
        cfg = DapoConfig(steps=1, curriculum="", **off)
        found = reward_figures([group], cfg, ROLLOUT)
        assert (found["reward"], "overlong" in found) == (1.0, False)


def test_the_spread_is_that_of_the_samples_that_train():
    made = [sampled(8, i, "out_of_tokens" if i == 2 else "answered") for i in range(3)]
    terms = [rewards.RewardTerms(x, x, 1.0, x) for x in (1.0, 1.0, 0.0)]
    for is_filtered, spread in ((False, np.std([1, 1, 0])), (True, 0.0)):
        cfg = dataclasses.replace(DAPO, group_size=3, overlong_filter=is_filtered)
        found = reward_figures([Group(EXAMPLE, made, terms)], cfg, ROLLOUT)
        assert found["reward_spread"] == pytest.approx(spread)
        assert found["reward"] == pytest.approx(2 / 3)


def test_each_part_is_logged_apart_over_the_samples_that_have_it():
    made = [trajectory("e", i, "x") for i in range(3)]
    terms = [
        rewards.RewardTerms(1.0, 1.0, 1.0, 0.95, logged={"coverage": 0.5}),
        rewards.RewardTerms(0.0, 0.5, 0.0, 0.0, logged={"coverage": 1.0, "gold_hit": 1.0}),
        rewards.no_reward("nan"),
    ]
    assert reward_figures([Group(EXAMPLE, made, terms)], LENIENT, ROLLOUT) == {
        "reward_failures": pytest.approx(1 / 3),
        "reward": 0.5,
        "answer": 0.75,
        "format": 0.5,
        "accuracy": 0.5,
        "coverage": 0.75,
        "gold_hit": 1.0,
        "reward_spread": 0.5,
    }
    assert not math.isnan(sum(reward_figures([], LENIENT, ROLLOUT).values()))


def test_figures_are_told_by_kind_of_example_where_a_step_has_both():
    asked = (Turn(("a",), ("p",), ("t",), 0.1),)
    searched = [dataclasses.replace(trajectory("e", i, "x"), turns=asked) for i in range(2)]
    terms = [rewards.RewardTerms(1.0, 1.0, 1.0, 0.95), rewards.RewardTerms(0.5, 0.5, 1.0, 0.5)]
    masked = Group(EXAMPLE, searched, terms)
    plain = [trajectory("q3", i, "x") for i in range(2)]
    question = Group(QA, plain, [rewards.RewardTerms(0.25, 0.2, 0.0, 0.2), rewards.no_reward("no")])
    both, alone = (reward_figures(g, LENIENT, ROLLOUT) for g in ([masked, question], [masked]))
    assert {name: value for name, value in both.items() if name.startswith(("ramp_", "qa_"))} == {
        "ramp_reward": 0.75,
        "ramp_accuracy": 0.5,
        "ramp_searches": 1.0,
        "qa_reward": 0.25,
        "qa_accuracy": 0.0,
        "qa_searches": 0.0,
    }
    assert both.keys() - alone.keys() == {n for n in both if n.startswith(("ramp_", "qa_"))}
    assert both["accuracy"] == pytest.approx(1 / 3)

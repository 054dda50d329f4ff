"""Groups of a step: refilled, carried over, never too old, the same after a checkpoint."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math

import jax
import numpy as np
import pytest

from masksearch_jax.core.config import DapoConfig
from masksearch_jax.core.rollout_config import RolloutConfig
from masksearch_jax.core.types import (
    NOT_ITS_DOING,
    QAExample,
    RampExample,
    Segment,
    Span,
    Trajectory,
    Turn,
)
from masksearch_jax.data.batches import Prompt
from masksearch_jax.parallel import hosts
from masksearch_jax.rl import groups as groups_lib
from masksearch_jax.rl.group_sampler import ClockOutage, GroupSampler, ToolOutage, figures
from masksearch_jax.rl.reward_pool import RewardPool
from masksearch_jax.rl.rewards import RewardTerms
from masksearch_jax.rollout.stats import EngineStats
from tests.rollout import word_engine

EXAMPLE = RampExample("e", "p", "t", "A [mask].", "A b.", (Span(2, 3, "b", "TERM"),))
QUESTION = QAExample("q", "made", "Which?", ("b",))
DAPO = DapoConfig(steps=9, curriculum="", groups=2, group_size=2, max_refills=4, overlong_buffer=0)
ROLLOUT = RolloutConfig()


def trajectory(name: str, sample: int, version: int, right: bool = False) -> Trajectory:
    """A prompt token and two sampled ones, which are an answer."""
    sampled, versions = np.asarray([False, True, True]), np.asarray([-1, version, version])
    logprobs = np.where(sampled, -0.1 * (sample + 1), 0).astype(np.float32)
    segments = (Segment("policy", f"<answer>{'A b.' if right else 'none'}</answer>"),)
    ids = 10 + np.arange(3, dtype=np.int32)
    return Trajectory(
        name, sample, ids, logprobs, sampled, versions.astype(np.int32), 1, segments, (), "answered"
    )


class Prompts:
    """Prompt i is [i, i]."""

    def __init__(self, per_step=2):
        self.drawn, self.per_step = 0, per_step

    def extra(self, groups: int) -> list[Prompt]:
        self.drawn += groups
        return [Prompt(np.full(2, i), EXAMPLE) for i in range(self.drawn - groups, self.drawn)]

    def __next__(self) -> list[Prompt]:
        return self.extra(self.per_step)


class Part:
    """An engine that ends each run after `count` trajectories, and remembers what it was asked."""

    def __init__(self, count: int):
        self.count, self.asked, self.ended, self.stats = count, [], 0, EngineStats()

    def run(self, model, requests, version, *, enough):
        self.asked += [(r.example_id, r.sample, r.prompt_ids.tolist()) for r in requests]
        ended = self.asked[self.ended :][: self.count]
        self.ended += len(ended)
        for name, sample, _ in ended:
            yield trajectory(name, sample, version)


class Answers:
    """An engine whose samples of a prompt differ in their answers where `spread` says so."""

    def __init__(self, spread=lambda stream: stream % 2 == 0):
        self.spread, self.prompts, self.stats = spread, [], EngineStats()

    def run(self, model, requests, version, *, enough):
        self.prompts.append(len({r.example_id for r in requests}))
        for r in requests:
            right = self.spread(int(r.example_id)) and r.sample == 0
            yield trajectory(r.example_id, r.sample, version, right)


@pytest.fixture(scope="module")
def pool():
    with RewardPool(DAPO) as pool:
        yield pool


@pytest.fixture
def sampler_of(pool):
    def make(engine, prompts, dapo=DAPO, **rollout) -> GroupSampler:
        return GroupSampler(engine, prompts, dapo, dataclasses.replace(ROLLOUT, **rollout), pool)

    return make


def saved(sampler: GroupSampler) -> dict:
    """Its state as a checkpoint has it."""
    return json.loads(json.dumps(sampler.gather(sampler.state())))


def streams(groups: list[groups_lib.Group]) -> list[int]:
    return [group.stream for group in groups]


# ---- refills


def test_a_refill_draws_as_many_prompts_as_are_likely_to_be_lacking(sampler_of):
    engine, prompts = Answers(), Prompts(per_step=5)
    sampler = sampler_of(engine, prompts, dataclasses.replace(DAPO, groups=5))
    kept, seen = sampler.step(None, 0)
    # Of streams 0-4, three have spread: two are lacking, of which 2 · 5/3 are wanted, and so on.
    assert engine.prompts == [5, 4]
    assert streams(kept) == [0, 2, 4, 6, 8]
    assert streams(seen) == list(range(9))
    assert prompts.drawn == 9
    assert sampler.refills == 1


@pytest.mark.parametrize("most", [1, 3])
def test_refills_end_at_their_cap_and_are_told(sampler_of, most):
    """No group has spread, so that every round lacks all of them; the first is no refill."""
    engine = Answers(lambda stream: False)
    sampler = sampler_of(engine, Prompts(), dataclasses.replace(DAPO, max_refills=most))
    kept, seen = sampler.step(None, 0)
    assert (kept, engine.prompts) == ([], [2] * most)
    assert (sampler.refills, len(seen)) == (most - 1, 2 * most)


def test_what_is_lacking_is_that_of_the_process_with_the_fewest_groups():
    def lacking(*counts):
        return groups_lib.lacking([groups_lib.Counts(*c) for c in counts], 4)

    assert lacking((4, 4, 4), (5, 5, 9)) == 0
    assert lacking((4, 4, 4), (3, 3, 6)) == 2  # one is lacking, 7 of 10 have spread
    assert lacking((0, 0, 4), (0, 0, 4)) == 4  # never more than a step's
    assert lacking((0, 0, 0)) == 4
    assert lacking((3, 1, 4)) == 4  # two were carried over: of those sampled, one in four has


# ---- carried over


def test_groups_with_spread_beyond_those_wanted_train_in_the_next_step(sampler_of):
    """Five have spread, two are wanted: none of the other three is lost at once."""
    sampler = sampler_of(Answers(lambda stream: True), Prompts(per_step=5))
    kept, seen = sampler.step(None, 0)
    assert (streams(kept), streams(seen)) == ([0, 1], [0, 1, 2, 3, 4])
    assert (streams(sampler.carried), sampler.expired) == ([2, 3, 4], 0)
    kept, seen = sampler.step(None, 1)
    assert (streams(kept), streams(seen)) == ([2, 3], [5, 6, 7, 8, 9])
    assert {group.oldest for group in kept} == {0}
    # In the next step group 4 would be two versions old.
    assert (streams(sampler.carried), sampler.expired) == ([5, 6, 7, 8, 9], 1)


def test_with_no_staleness_nothing_is_carried(sampler_of):
    sampler = sampler_of(Answers(lambda stream: True), Prompts(per_step=4), max_staleness=0)
    for version in range(3):
        kept, seen = sampler.step(None, version)
        assert streams(kept) == streams(seen)[:2]
        assert (sampler.carried, sampler.expired) == ([], 2)


def test_a_run_goes_on_from_a_checkpoint_with_the_groups_that_it_carried(sampler_of):
    def steps(sampler: GroupSampler, first: int, last: int) -> list:
        return [sampler.step(None, version)[0] for version in range(first, last)]

    whole = steps(sampler_of(Answers(), Prompts(per_step=6)), 0, 4)
    prompts = Prompts(per_step=6)
    cut = sampler_of(Answers(), prompts)
    found = steps(cut, 0, 2)
    assert cut.carried
    again = sampler_of(Answers(), prompts)
    again.restore(saved(cut))
    found += steps(again, 2, 4)
    assert repr(found) == repr(whole)


def group(stream: int) -> groups_lib.Group:
    """Two samples, the first one right."""
    made = [trajectory("e", i, 0, right=i == 0) for i in range(2)]
    return groups_lib.Group(EXAMPLE, made, [RewardTerms(r, r, 0.0, r) for r in (1.0, 0.0)], stream)


def gone_on(sampler_of, carried: list[list[int]], opened: list[list[int]], processes: int) -> list:
    """Of each process that goes on: streams of its carried and open groups, and what it asks.

    carried, opened: those of each process that was stopped.
    """
    before = []
    for own, of_prompts in zip(carried, opened, strict=True):
        sampler = sampler_of(Part(0), Prompts())
        sampler.carried, sampler.stream = [group(i) for i in own], 12
        for i in of_prompts:
            sampler._request(i, Prompt(np.full(2, i), EXAMPLE))
        before.append(sampler)

    with pytest.MonkeyPatch.context() as patch:
        texts: list[str] = []  # what each process gives to the others
        patch.setattr(hosts, "gather_texts", lambda text: texts.append(text) or [text])
        for sampler in before:
            sampler.gather(sampler.state())
        patch.setattr(hosts, "gather_texts", lambda text: texts)
        state = json.loads(json.dumps(before[0].gather(before[0].state())))
        patch.setattr(jax, "process_count", lambda: processes)
        found = []
        for process in range(processes):
            patch.setattr(jax, "process_index", lambda process=process: process)
            sampler = sampler_of(Part(0), Prompts())
            sampler.restore(state)
            asked = [(r.example_id, r.sample) for r in sampler.again]
            assert asked == [(name, s) for name in sampler.open for s in range(2)]
            assert sampler.stream == 12
            found.append((streams(sampler.carried), [int(name) for name in sampler.open]))
    return found


@pytest.mark.parametrize(
    ("carried", "opened"),
    [
        ([[2, 3], [9]], [[], []]),
        ([[2, 3], [8, 9]], [[4], [10, 11]]),
        ([[2, 3, 4], []], [[5, 6, 7], []]),
        ([[], [8, 9, 10]], [[0, 1], [6, 7]]),
    ],
)
def test_each_process_goes_on_with_its_own_groups(sampler_of, carried, opened):
    """So that a run that was stopped trains on what an uninterrupted one does."""
    found = gone_on(sampler_of, carried, opened, processes=2)
    assert found == [*zip(carried, opened, strict=True)]


@pytest.mark.parametrize("processes", [1, 3, 4])
def test_another_number_of_processes_shares_the_groups(sampler_of, processes):
    """None is lost, none is there twice, and each process has as many as the others but for one."""
    found = gone_on(sampler_of, [[2, 3, 4], [9]], [[5], [8, 10, 11]], processes)
    for kind, expected in enumerate([[2, 3, 4, 9], [5, 8, 10, 11]]):
        own = [each[kind] for each in found]
        assert sorted(itertools.chain(*own)) == expected
        assert max(map(len, own)) - min(map(len, own)) <= 1


def test_a_group_is_the_same_when_it_was_packed():
    turn = Turn(("q",), ("p1",), ("Title",), 0.25)
    made = [
        dataclasses.replace(trajectory("e", i, 3, right=i == 0), turns=(turn,), seconds=1.5)
        for i in range(2)
    ]
    made[0].logprobs[1:] = [-1 / 3, -1e-7]
    group = groups_lib.Group(EXAMPLE, made, [RewardTerms(0.1, 0.2, 1.0, 0.2)] * 2, 7)
    found = groups_lib.unpack(groups_lib.pack(group))
    assert (found.example, found.rewards, found.stream) == (EXAMPLE, group.rewards, 7)
    for one, other in zip(found.trajectories, made, strict=True):
        for field in dataclasses.fields(Trajectory):
            a, b = getattr(one, field.name), getattr(other, field.name)
            np.testing.assert_array_equal(a, b)
            assert getattr(a, "dtype", None) == getattr(b, "dtype", None)


# ---- groups in flight


def test_groups_open_at_a_checkpoint_are_asked_for_again(sampler_of):
    dapo = dataclasses.replace(DAPO, max_refills=1, oversample=2.0)
    before, prompts = Part(count=3), Prompts()
    sampler = sampler_of(before, prompts, dapo, in_flight="keep")
    kept, seen = sampler.step(None, 0)
    assert before.asked == [(str(i), s, [i, i]) for i in range(4) for s in range(2)]
    assert (streams(seen), kept) == ([0], [])  # two alike have no spread
    after = Part(count=0)
    restored = sampler_of(after, prompts, dapo, in_flight="keep")
    restored.restore(saved(sampler))
    restored.step(None, 1)
    assert after.asked == [(str(i), s, [i, i]) for i in (1, 2, 3, 4, 5) for s in range(2)]


def test_as_many_groups_as_oversample_says_are_in_flight_in_every_step(sampler_of):
    """Groups without spread leave; more prompts than a step wants take their places."""
    dapo = dataclasses.replace(DAPO, max_refills=1, oversample=2.0)
    engine = Part(count=6)  # three groups, of the four in flight
    sampler = sampler_of(engine, Prompts(), dapo, in_flight="keep")
    in_flight = []
    for version in range(4):
        left, asked = len(sampler.open), len(engine.asked)
        sampler.step(None, version)
        in_flight.append(left + len(engine.asked[asked:]) // 2)
    assert in_flight == [4, 4, 4, 4]


def test_samples_of_an_open_group_that_are_too_old_are_asked_for_again(sampler_of):
    """No group trains on tokens of which one is older than the bound, whichever sample has it."""

    class Slow:
        """The first sample ends at once, the second in step `ends`."""

        def __init__(self, ends: int):
            self.ends, self.open, self.asked, self.stats = ends, [], [], EngineStats()

        def run(self, model, requests, version, *, enough):
            self.asked += [(version, r.example_id, r.sample) for r in requests]
            self.open += requests
            done = [r for r in self.open if r.sample == 0 or version == self.ends]
            self.open = [r for r in self.open if r not in done]
            for r in done:
                yield trajectory(r.example_id, r.sample, version, right=r.sample == 0)

    engine = Slow(ends=6)
    dapo = dataclasses.replace(DAPO, groups=1, max_refills=1)
    sampler = sampler_of(engine, Prompts(per_step=1), dapo, in_flight="keep", max_staleness=1)
    kept, _ = next(found for v in range(7) if (found := sampler.step(None, v))[0])
    assert streams(kept) == [0]
    versions = np.concatenate([t.versions[t.sampled] for t in kept[0].trajectories])
    assert sorted(set(versions.tolist())) == [6]
    assert [v for v, name, sample in engine.asked if (name, sample) == ("0", 0)] == [0, 2, 4, 6]
    assert [v for v, name, sample in engine.asked if (name, sample) == ("0", 1)] == [0]
    assert engine.stats.restarted == 3 + 2 + 2 + 1 + 1  # of streams 0 to 4


@pytest.mark.parametrize("ticks", [1, 2])
@pytest.mark.parametrize("most", [0, 1])
@pytest.mark.parametrize("how", ["keep", "rebuild"])
def test_no_token_that_is_trained_on_is_older_than_the_bound(how, most, ticks):
    """Not even of samples that the tick after a step's last group ended, which wait a version."""
    thought = ("<think>", "red", "</think>") if ticks == 2 else ()
    model = word_engine.chain("plan", *thought, "<answer>", "blue", "</answer>")
    dapo = dataclasses.replace(DAPO, groups=1, max_refills=1, oversample=4.0)
    dapo = dataclasses.replace(dapo, reward="tests.rl.own_rewards:by_sample")
    rollout = dataclasses.replace(word_engine.ROLLOUT, in_flight=how, max_staleness=most)

    class Plans(Prompts):
        def extra(self, groups: int) -> list[Prompt]:
            ids = np.asarray(word_engine.VOCAB.encode("plan"), np.int32)
            return [prompt._replace(ids=ids) for prompt in super().extra(groups)]

    class AtOnce(RewardPool):
        def submit(self, *scored):
            reward = super().submit(*scored)
            self.wait([reward])
            return reward

    oldest = []
    with word_engine.engine(rollout=rollout) as engine, AtOnce(dapo) as pool:
        sampler = GroupSampler(engine, Plans(per_step=1), dapo, rollout, pool)
        for version in range(8):
            kept, _ = sampler.step(model, version)
            oldest += [version - group.oldest for group in kept]
    assert len(oldest) == 8
    assert max(oldest) == most


# ---- what counts


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_reward_that_is_not_finite_leaves_its_sample_out_alone(bad):
    dapo = dataclasses.replace(DAPO, group_size=3)
    made = [trajectory("e", i, 0) for i in range(3)]

    def scored(*totals: float):
        parts = [RewardTerms(total, total, 1.0, total) for total in totals]
        _, valid, keep = groups_lib.score_groups(
            [groups_lib.Group(EXAMPLE, made, parts)], dapo, ROLLOUT
        )
        return valid[0].tolist(), keep.tolist()

    assert scored(1.0, 0.0, bad) == ([True, True, False], [True])
    assert scored(1.0, 1.0, bad) == ([True, True, False], [False])


def test_groups_of_partly_right_samples_are_kept_where_spread_decides():
    made = [trajectory("e", i, 0) for i in range(2)]
    group = groups_lib.Group(EXAMPLE, made, [RewardTerms(x, x, 1.0, x) for x in (0.0, 0.75)])
    for keep_by, expected in (("accuracy", [False]), ("spread", [True])):
        dapo = dataclasses.replace(DAPO, keep_by=keep_by)
        assert groups_lib.score_groups([group], dapo, ROLLOUT)[2].tolist() == expected


class Failing(Answers):
    """Samples that each call search twice and another tool once, which fails or not."""

    def __init__(self, fails):
        super().__init__()
        self.fails = fails

    def run(self, model, requests, version, *, enough):
        for t in super().run(model, requests, version, enough=enough):
            error = "down" if self.fails(t.sample) else ""
            calls = (*[Turn(("q",), (), (), 0.0)] * 2, Turn(("1",), (), (), 0.0, error, tool="add"))
            yield dataclasses.replace(t, turns=calls, tools=("search", "add"))


def test_an_outage_is_of_one_tool_however_well_the_others_answer(pool):
    def step(fails):
        tools = ("search", "add")
        return GroupSampler(Failing(fails), Prompts(), DAPO, ROLLOUT, pool, 0.5, tools=tools).step(
            None, 0
        )

    with pytest.raises(ToolOutage, match=r"4 of 4 calls of add failed: down") as caught:
        step(lambda sample: True)
    assert caught.value.tool == "add tool"
    _, seen = step(lambda sample: False)
    found = figures(seen, [], 0, EngineStats(), 0, DAPO, ROLLOUT, ("search", "add"))
    assert (found["searches"], found["calls_search"], found["calls_add"]) == (2.0, 2.0, 1.0)
    assert (found["failures_add"], found["unreadable_add"]) == (0.0, 0.0)
    assert not [
        name for name in figures(seen, [], 0, EngineStats(), 0, DAPO, ROLLOUT) if "_add" in name
    ]


class Late(Answers):
    """Samples of which the clock ends some."""

    def __init__(self, is_late):
        super().__init__()
        self.is_late = is_late

    def run(self, model, requests, version, *, enough):
        for t in super().run(model, requests, version, enough=enough):
            yield dataclasses.replace(t, status="out_of_time") if self.is_late(t.sample) else t


@pytest.mark.parametrize(("late", "most", "said"), [(2, 1.0, "4 of 4"), (1, 0.5, "2 of 4")])
def test_a_step_whose_trajectories_the_clock_ends_is_an_outage(pool, late, most, said):
    """Searches that are answered, but so late that nothing comes of them, fail in no call."""
    engine = Late(lambda sample: sample < late)
    rollout = dataclasses.replace(ROLLOUT, deadline=2.5)
    sampler = GroupSampler(engine, Prompts(), DAPO, rollout, pool, most)
    with pytest.raises(
        ClockOutage,
        match=rf"^{said} trajectories were ended by config\.rollout\.deadline, 2\.5 s$",
    ) as caught:
        sampler.step(None, 0)
    assert (caught.value.tool, caught.value.state) == ("sampling", "too slow")


def test_what_the_clock_ends_short_of_an_outage_is_counted(pool):
    engine = Late(lambda sample: sample == 1)
    _, seen = GroupSampler(engine, Prompts(), DAPO, ROLLOUT, pool, 0.51).step(None, 0)
    found = figures(seen, [], 0, EngineStats(), 0, DAPO, ROLLOUT)
    assert (found["out_of_time"], found["tool_failures"]) == (0.5, 0.0)


def test_figures_of_a_step():
    made = [trajectory("e", i, version) for i, version in enumerate((2, 4))]
    group = groups_lib.Group(EXAMPLE, made, [RewardTerms(x, x, 1.0, x) for x in (0.5, 1.0)], 3)
    carried = group._replace(stream=1, trajectories=[trajectory("e", i, 1) for i in range(2)])
    found = figures([group], [carried, group], 2, EngineStats(), 4, DAPO, ROLLOUT)
    expected = {
        "accuracy": 0.5,
        "reward": 0.75,
        "reward_spread": 0.25,
        "groups_sampled": 1.0,
        "groups_kept": 2.0,
        "groups_carried": 1.0,
        "groups_expired": 2.0,
        "staleness": (3 * 4 + 2 * 2 + 0) / 8,
        "staleness_max": 3.0,
    }
    assert {name: found[name] for name in expected} == expected
    none = figures([], [], 0, EngineStats(), 4, DAPO, ROLLOUT)
    assert set(none.values()) == {0.0}
    scores = {"reward", "answer", "format", "accuracy", "reward_spread", "reward_failures"}
    ended = {"searches", "sampled_tokens", "truncated", "tool_failures", "out_of_time"}
    # Nothing ended and nothing was scored: there is no mean of 0.
    assert found.keys() - none.keys() == scores | ended


@pytest.mark.parametrize("status", sorted(NOT_ITS_DOING))
def test_what_is_not_the_policys_doing_is_in_no_figure_of_what_it_does(status):
    """Search was called three times before it failed, and the calculator gave no result."""
    called = (*[Turn(("q",), (), (), 0.0)] * 3, Turn(("1",), (), (), 0.0, "down", tool="add"))
    cut = dataclasses.replace(trajectory("e", 0, 0), status=status, turns=called)
    asked = (Turn(("q",), (), (), 0.0),)
    plain = dataclasses.replace(trajectory("e", 1, 0), turns=asked, ids=np.arange(3))
    long = dataclasses.replace(
        plain, status="out_of_tokens", sampled=np.asarray([False, True, False])
    )
    terms = [RewardTerms(0.0, 0.0, 0.0, 0.0, failure=status)] + [RewardTerms(1, 1, 1, 1)] * 2
    groups = [
        groups_lib.Group(EXAMPLE, [cut, plain, long], terms),
        groups_lib.Group(QUESTION, [cut, plain], terms[:2]),
        groups_lib.Group(QUESTION, [cut], terms[:1]),  # none of its samples says anything
    ]
    found = figures(groups, groups, 0, EngineStats(), 0, DAPO, ROLLOUT, ("search", "add"))
    expected = {
        "searches": 1.0,
        "ramp_searches": 1.0,
        "qa_searches": 1.0,
        "sampled_tokens": 5 / 3,
        "truncated": 1 / 3,
        "calls_search": 1.0,
        "calls_add": 0.0,
        "unreadable_add": 0.0,
        "failures_add": 0.5,
        "tool_failures": 0.5 if status == "tool_failure" else 0.0,
        "out_of_time": 0.5 if status == "out_of_time" else 0.0,
    }
    assert {name: found[name] for name in expected} == pytest.approx(expected)

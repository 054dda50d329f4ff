"""`dapo.reward=judge` on a loopback endpoint that answers, mumbles, and dies by script."""

from __future__ import annotations

import dataclasses
import threading

import numpy as np
import pytest

from masksearch_jax.agents.judge import Judge, JudgeError
from masksearch_jax.core.config import DapoConfig
from masksearch_jax.core.errors import ConfigError
from masksearch_jax.core.llm_config import JudgeConfig
from masksearch_jax.core.rollout_config import RolloutConfig
from masksearch_jax.core.types import QAExample, RampExample, Segment, Span, Trajectory
from masksearch_jax.data.batches import Prompt
from masksearch_jax.rl.group_sampler import GroupSampler, JudgeOutage
from masksearch_jax.rl.groups import score_groups
from masksearch_jax.rl.reward_figures import figures
from masksearch_jax.rl.reward_pool import RewardPool
from masksearch_jax.rl.rewards import RewardTerms
from masksearch_jax.rollout.stats import EngineStats
from masksearch_jax.testing.services import Answer, Endpoint, Script

QA = QAExample("q3", "made", "How far?", ("4 km", "four kilometres"))
RAMP = RampExample(
    *("e7", "p", "t", "A [mask] of [mask].", "A b of c."),
    (Span(2, 3, "b", "TERM"), Span(7, 8, "c", "TERM")),
)
DAPO = DapoConfig(
    *(), steps=9, curriculum="", groups=1, group_size=4, max_refills=1, reward="judge"
)
YES = Answer('{"reason": "the same length", "verdict": "correct"}')
NO = Answer('{"reason": "another", "verdict": "incorrect"}')


def by_answer(said: dict[str, Script]) -> Script:
    """The script of the answer that a request shows last."""

    def script(request):
        asked = request["messages"][-1]["content"].rpartition("Answer:\n")[2]
        return said[asked]

    return script


def settings(endpoint: Endpoint, folder, **changes) -> JudgeConfig:
    values = {"base_url": endpoint.url, "retries": 0, "cache": str(folder / "judge.sqlite")}
    return JudgeConfig(**values | changes)


def trajectory(example, sample: int, text: str) -> Trajectory:
    sampled, versions = np.asarray([False, True, True]), np.asarray([-1, 0, 0], np.int32)
    ids, logprobs = np.arange(3, dtype=np.int32), np.zeros(3, np.float32)
    made = (Segment("policy", text),)
    return Trajectory(example.id, sample, ids, logprobs, sampled, versions, 1, made, (), "answered")


def judged(cfg: JudgeConfig, example, *answers: str) -> list[RewardTerms]:
    with RewardPool(DAPO, Judge(cfg)) as pool:
        texts = [f"<answer>{answer}</answer>" for answer in answers]
        pending = [
            pool.submit(example, trajectory(example, i, text)) for i, text in enumerate(texts)
        ]
        return [reward.result() for reward in pending]


def test_a_verdict_is_the_score_and_is_held_against_exact_match(tmp_path):
    script = {"4 km": YES, "4000 m": YES, "5 km": NO, "4 or 5 km": Answer("correct, I think")}
    all_asked = threading.Barrier(len(script))

    def together(request):
        all_asked.wait(30)
        return by_answer(script)(request)

    with Endpoint(together) as endpoint:
        found = judged(settings(endpoint, tmp_path), QA, *script)
    assert [parts.answer for parts in found] == [1.0, 1.0, 0.0, 0.0]
    assert [parts.total for parts in found] == pytest.approx([1.0, 1.0, 0.1, 0.1])
    assert [parts.accuracy for parts in found] == [1.0, 1.0, 0.0, 0.0]
    assert [parts.logged["judge_agreement"] for parts in found] == [1.0, 0.0, 1.0, 1.0]
    assert [parts.logged["judge_unreadable"] for parts in found] == [0.0, 0.0, 0.0, 1.0]
    assert [parts.is_known for parts in found] == [True, True, True, False]


def test_the_judge_is_asked_with_the_pinned_prompt_at_temperature_0(tmp_path):
    with Endpoint(YES) as endpoint:
        (found,) = judged(settings(endpoint, tmp_path, model="judge-1"), RAMP, "A b of d.")
        [request] = endpoint.requests
    assert (request["temperature"], request["model"]) == (0.0, "judge-1")
    system, user = (message["content"] for message in request["messages"])
    assert system.startswith("You compare an answer with the known one.")
    assert "Known:\n1. b\n2. c\n\nAnswer:\nA b of d." in user
    assert (found.answer, found.logged["judge_agreement"]) == (1.0, 0.0)


def test_a_verdict_is_paid_for_once(tmp_path):
    with Endpoint(YES) as endpoint:
        cfg = settings(endpoint, tmp_path)
        first = judged(cfg, QA, "4 km", "4 km")
        assert judged(cfg, QA, "4 km") == first[:1]
        assert len(endpoint.requests) == 1
    replay = dataclasses.replace(cfg, replay=True)
    assert judged(replay, QA, "4 km") == first[:1]  # and with nobody there


@pytest.mark.parametrize("text", ["", "<answer> </answer>", "<answer>A [mask] of c.</answer>"])
def test_what_is_no_answer_is_wrong_without_asking(tmp_path, text):
    with Endpoint(YES) as endpoint, RewardPool(DAPO, Judge(settings(endpoint, tmp_path))) as pool:
        found = pool.submit(RAMP, trajectory(RAMP, 0, text)).result()
        assert not endpoint.requests
    assert (found.total, found.answer, found.failure) == (0.0, 0.0, "")


# ---- outages


class Answers:
    """An engine whose samples of a prompt answer "4 km", "5 km", …"""

    def __init__(self):
        self.stats, self.ended = EngineStats(), threading.Event()

    def run(self, model, requests, version, *, enough):
        for r in requests:
            made = trajectory(QA, r.sample, f"<answer>{4 + r.sample} km</answer>")
            yield dataclasses.replace(made, example_id=r.example_id)
        self.ended.set()


class Prompts:
    def __next__(self) -> list[Prompt]:
        return [Prompt(np.zeros(1, np.int32), QA)]

    def extra(self, groups: int) -> list[Prompt]:
        return []


def sampler_of(pool: RewardPool, cfg=DAPO) -> GroupSampler:
    return GroupSampler(Answers(), Prompts(), cfg, RolloutConfig(), pool)


def test_a_sample_that_the_judge_gives_no_verdict_on_is_left_out_and_counted(tmp_path):
    script = {f"{n} km": YES if n == 4 else NO for n in range(4, 8)} | {"7 km": Answer(status=500)}
    cfg = dataclasses.replace(DAPO, max_reward_failures=0.25)
    with (
        Endpoint(by_answer(script)) as endpoint,
        RewardPool(cfg, Judge(settings(endpoint, tmp_path))) as pool,
    ):
        ([group], _) = sampler_of(pool, cfg).step(None, 0)
    assert [parts.answer for parts in group.rewards[:3]] == [1.0, 0.0, 0.0]
    assert group.rewards[3].failure == "LLMError: HTTP 500: scripted 500 after 1 attempt(s)"
    found = figures([group], DAPO, RolloutConfig())
    assert found["reward_failures"] == 0.25
    assert found["answer"] == pytest.approx(1 / 3)  # of three, not of four with a 0
    assert found["judge_agreement"] == 1.0


def test_a_dead_judge_is_an_outage_and_what_it_said_is_not_asked_again(tmp_path):
    script = {"4 km": YES, **dict.fromkeys(("5 km", "6 km", "7 km"), NO)}
    with (
        Endpoint(by_answer(script)) as endpoint,
        RewardPool(DAPO, Judge(settings(endpoint, tmp_path))) as pool,
    ):
        pool.check_sample(QA, trajectory(QA, 0, "<answer>4 km</answer>"))
        endpoint.kill()
        said = r"3 of 4 verdicts failed: example q3: LLMError: APIConnectionError"
        with pytest.raises(JudgeOutage, match=said):
            sampler_of(pool).step(None, 0)
        endpoint.restart()
        kept, _ = sampler_of(pool).step(None, 0)
        assert [parts.answer for parts in kept[0].rewards] == [1.0, 0.0, 0.0, 0.0]
        assert len(endpoint.requests) == 4


def test_a_share_of_verdicts_is_one_of_those_asked_for(tmp_path):
    """A policy that hardly ever answers: one verdict of one is missing, of four samples."""

    class Silent(Answers):
        def run(self, model, requests, version, *, enough):
            for found in super().run(model, requests, version, enough=enough):
                said = found.segments if found.sample == 0 else (Segment("policy", "so"),)
                yield dataclasses.replace(found, segments=said)

    cfg = dataclasses.replace(DAPO, max_reward_failures=0.5)
    with (
        Endpoint(Answer(status=500)) as endpoint,
        RewardPool(cfg, Judge(settings(endpoint, tmp_path))) as pool,
        pytest.raises(JudgeOutage, match=r"1 of 1 verdicts failed: example q3: LLMError: HTTP 500"),
    ):
        GroupSampler(Silent(), Prompts(), cfg, RolloutConfig(), pool).step(None, 0)


def test_the_engine_goes_on_while_the_judge_thinks(tmp_path):
    """No verdict comes before the engine has ended its last trajectory."""
    engine = Answers()

    def script(request):
        assert engine.ended.wait(30)
        return YES

    with (
        Endpoint(script) as endpoint,
        RewardPool(DAPO, Judge(settings(endpoint, tmp_path))) as pool,
    ):
        _, [group] = GroupSampler(engine, Prompts(), DAPO, RolloutConfig(), pool).step(None, 0)
    assert [parts.answer for parts in group.rewards] == [1.0] * 4


def test_a_judge_that_is_not_there_is_told_at_the_start(tmp_path):
    with Endpoint(YES) as endpoint:
        cfg = settings(endpoint, tmp_path)
    said = r"the judge: .* does not say what it serves: APIConnectionError: .* after 1 attempt"
    with pytest.raises(JudgeError, match=said):
        RewardPool(DAPO, Judge(cfg))


THINKING = Answer("Let me think about", finish="length")


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (
            THINKING,
            (
                r"no verdict that can be read: cut off after 3 tokens \(finish_reason: length\) it "
                r"said 'Let me think about'; config\.judge\.max_tokens is 256: raise it"
            ),
        ),
        (Answer("", finish="length"), r"cut off after .* it said ''; config\.judge\.max_tokens is"),
        (
            Answer("I am a helpful\nassistant."),
            (
                r"no verdict that can be read: there is no JSON object, of 'I am a helpful\\n"
                r"assistant\.'; choose another config\.judge\.model or config\.judge\.language$"
            ),
        ),
        (NO, r"and calls it incorrect: 'another'; choose another config\.judge\.model or "),
    ],
)
def test_a_judge_that_does_not_call_a_right_answer_right_is_told_at_the_start(
    tmp_path, answer, message
):
    with Endpoint(answer) as endpoint:
        cfg = settings(endpoint, tmp_path, model="judge-1")
        with RewardPool(DAPO, Judge(cfg)) as pool:
            sample = QA, trajectory(QA, 0, "<answer>4 km</answer>")
            with pytest.raises(JudgeError, match=message) as told:
                pool.check_sample(*sample)
            said = (
                f"the judge (config.judge.model 'judge-1' at {endpoint.url}) was shown the known "
            )
            assert str(told.value).startswith(said + "answer of example q3, '4 km', and ")
            assert "\n" not in str(told.value)
            endpoint.script = YES  # what it said before is not taken from the cache
            pool.check_sample(*sample)


@pytest.mark.parametrize("unreadable", [Answer("Hm."), THINKING])
def test_verdicts_of_which_too_many_cannot_be_read_are_an_outage(tmp_path, unreadable):
    script = {"4 km": YES, **dict.fromkeys(("5 km", "6 km", "7 km"), unreadable)}
    mended = dict.fromkeys(script, NO) | {"4 km": YES}
    with (
        Endpoint(by_answer(script)) as endpoint,
        RewardPool(DAPO, Judge(settings(endpoint, tmp_path))) as pool,
    ):
        said = r"3 of 4 verdicts cannot be read, more than the share of 0\.5 that config\.judge\."
        with pytest.raises(JudgeOutage, match=said):
            sampler_of(pool).step(None, 0)
        endpoint.script = by_answer(mended)  # the same judge, which has come to itself
        [group], _ = sampler_of(pool).step(None, 0)
        assert [parts.answer for parts in group.rewards] == [1.0, 0.0, 0.0, 0.0]
        assert [parts.logged["judge_unreadable"] for parts in group.rewards] == [0.0] * 4
        assert len(endpoint.requests) == 4 + 3


def test_samples_of_which_a_few_verdicts_cannot_be_read_train_nobody_and_are_counted(tmp_path):
    script = {f"{n} km": YES if n < 6 else Answer("Hm.") for n in range(4, 8)}
    with (
        Endpoint(by_answer(script)) as endpoint,
        RewardPool(DAPO, Judge(settings(endpoint, tmp_path))) as pool,
    ):
        kept, [group, *_] = sampler_of(pool).step(None, 0)
    assert kept == []
    assert [parts.is_known for parts in group.rewards] == [True, True, False, False]
    told = figures([group], DAPO, RolloutConfig())
    assert told["judge_unreadable"] == 0.5
    assert (told["answer"], told["accuracy"], told["reward_spread"]) == (1.0, 1.0, 0.0)
    _, valid, keep = score_groups([group], DAPO, RolloutConfig())
    assert valid.tolist() == [[True, True, False, False]]
    assert not keep.any()  # those that are known are all right


def test_a_judge_without_an_endpoint_is_told_in_one_line():
    said = r"config\.judge\.base_url is empty; .* http:.*, or config\.judge\.own_model .*'judge'$"
    with pytest.raises(ConfigError, match=said):
        Judge(JudgeConfig())


@pytest.mark.parametrize(("name", "what"), [("model", "the model"), ("cache", "the SQLite file")])
def test_what_a_judge_lacks_is_named_by_its_own_key(name, what):
    cfg = JudgeConfig(base_url="http://localhost:1/v1", **{name: ""})
    with pytest.raises(ConfigError, match=rf"^config\.judge\.{name} is empty; .* {what}"):
        RewardPool(DAPO, Judge(cfg))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({}, r"the judge: .*HTTP 401: scripted 401"),
        ({"budget": 10}, r"the judge: .*; raise config\.judge\.budget or config\.judge\.max_cost"),
        ({"replay": True}, r"the judge: config\.judge\.replay: a"),
    ],
)
def test_a_judge_that_can_answer_nothing_ends_the_run(tmp_path, changes, message):
    with Endpoint(Answer(status=401)) as endpoint:
        cfg = settings(endpoint, tmp_path, **changes)
        with RewardPool(DAPO, Judge(cfg)) as pool, pytest.raises(JudgeError, match=message):
            sampler_of(pool).step(None, 0)

"""The model that is trained as its own judge: the engine that samples decodes the verdicts."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import itertools

import numpy as np
import pytest

from masksearch_jax.agents.judge import Judge, JudgeError
from masksearch_jax.agents.own_model import OwnModel
from masksearch_jax.core.config import DapoConfig, SearchConfig
from masksearch_jax.core.errors import ConfigError
from masksearch_jax.core.llm_config import JudgeConfig
from masksearch_jax.core.rollout_config import RolloutConfig
from masksearch_jax.core.tokenizer import VocabError
from masksearch_jax.core.tools import search_alone
from masksearch_jax.core.types import QAExample
from masksearch_jax.data.batches import Prompt
from masksearch_jax.rl.group_sampler import GroupSampler, JudgeOutage
from masksearch_jax.rl.reward_figures import figures
from masksearch_jax.rl.reward_pool import RewardPool, UnreadableError, right_answer
from masksearch_jax.rollout.engine import Engine
from masksearch_jax.search.tool import NoSearch
from masksearch_jax.testing.models import TextVocab, scripted_model

EXAMPLE = QAExample("q3", "made", "How far?", ("4 km", "four kilometres"))
YES = '{"reason": "so", "verdict": "correct"}'
NO = YES.replace("correct", "incorrect")
JUDGE = JudgeConfig(own_model=True, max_tokens=8, max_unreadable=1.0)
DAPO = DapoConfig(
    steps=9,
    curriculum="",
    groups=1,
    group_size=4,
    max_refills=1,
    overlong_buffer=0,
    reward="judge",
)
ROLLOUT = RolloutConfig(
    slots=4,
    decode_share=(1.0,),
    max_len=2048,
    page_tokens=64,
    tick_tokens=4,
    extend_tokens=512,
    max_new_tokens=16,
    answer_tokens=0,
    temperature=0.0,
)


class Words(TextVocab):
    """A chat ends with the token `<verdict>`, after which the model judges."""

    has_template = True

    def __init__(self):
        super().__init__("<verdict>", "go", "4 km", "5 km", YES, NO, "maybe")

    def apply_chat_template(self, messages) -> str:
        return super().apply_chat_template(messages) + "<verdict>"

    def check_chat_template(self) -> None:
        if not self.has_template:
            raise VocabError("tokenizer 'x' has no chat template")


class Prompts:
    def __init__(self, vocab):
        self.prompt = Prompt(np.asarray(vocab.encode("go"), np.int32), EXAMPLE)

    def __next__(self) -> list[Prompt]:
        return [self.prompt]

    def extra(self, groups: int) -> list[Prompt]:
        return []


def step(said: str, verdict: str, rollout=ROLLOUT, cfg=JUDGE):
    """The group of a step whose every sample answers `said`, and the engine's counts."""
    vocab = Words()
    answer = vocab.encode(f"go<answer>{said}</answer>")
    model = scripted_model(vocab, answer, vocab.encode(f"<verdict>{verdict}"))
    own = OwnModel(vocab, cfg, rollout)
    search = SearchConfig(workers=1)
    with (
        Engine(vocab, search_alone(NoSearch(), search), rollout, search) as engine,
        RewardPool(DAPO, Judge(cfg, own)) as pool,
    ):
        sampler = GroupSampler(engine, Prompts(vocab), DAPO, rollout, pool, own_judge=own)
        for version in range(2):  # each asks anew
            _, [group] = sampler.step(model, version)
        return group, engine.stats


@pytest.mark.parametrize(
    ("said", "verdict", "right", "agrees", "unreadable"),
    [
        ("4 km", YES, 1, 1, 0),
        ("4 km", NO, 0, 0, 0),
        ("5 km", YES, 1, 0, 0),
        ("5 km", "maybe", 0, 1, 1),
    ],
)
def test_the_engine_decodes_the_verdicts(said, verdict, right, agrees, unreadable):
    group, stats = step(said, verdict)
    assert [parts.answer for parts in group.rewards] == [right] * 4
    found = figures([group], DAPO, ROLLOUT)
    assert found["judge_unreadable"] == unreadable
    expected = {} if unreadable else {"accuracy": right, "judge_agreement": agrees}
    assert {n: found[n] for n in ("accuracy", "judge_agreement") if n in found} == expected
    assert stats.trajectories == 2 * (4 + 1)  # four equal answers are judged once a step


def test_verdicts_of_a_model_of_ours_that_cannot_be_read_end_the_run():
    """It would say the same again."""
    cfg = dataclasses.replace(JUDGE, max_unreadable=0.5)
    with pytest.raises(UnreadableError, match=r"4 of 4 verdicts cannot be read, .*: there is no J"):
        step("5 km", "maybe", cfg=cfg)


@pytest.mark.parametrize(
    ("verdict", "message"),
    [
        (YES, ""),
        (NO, r"example q3, '4 km', and calls it incorrect: 'so'; choose an endpoint"),
        (
            "maybe",
            r"itself, config\.judge\.own_model\) was .*: there is no JSON .*, of 'maybe'",
        ),
        ("maybe" * 9, r"\(finish_reason: length\) .*; config\.judge\.max_tokens is 8"),
    ],
)
def test_a_model_of_ours_is_checked_on_a_known_answer(verdict, message):
    vocab = Words()
    model = scripted_model(vocab, vocab.encode(f"<verdict>{verdict}"))
    own, search = OwnModel(vocab, JUDGE, ROLLOUT), SearchConfig(workers=1)
    with (
        Engine(vocab, search_alone(NoSearch(), search), ROLLOUT, search) as engine,
        RewardPool(DAPO, Judge(JUDGE, own)) as pool,
    ):
        sampler = GroupSampler(engine, Prompts(vocab), DAPO, ROLLOUT, pool, own_judge=own)
        with pytest.raises(JudgeError, match=message) if message else contextlib.nullcontext():
            sampler.check_own_judge(model, [EXAMPLE])


def test_a_verdict_that_does_not_come_is_an_outage():
    class Late(Engine):
        """Whose plain requests run out of time."""

        def run(self, model, requests=(), version=0, **how):
            for found in super().run(model, requests, version, **how):
                late = found.example_id.startswith("[")
                yield dataclasses.replace(found, status="out_of_time") if late else found

    vocab = Words()
    model = scripted_model(vocab, vocab.encode("go<answer>4 km</answer>"))
    own, search = OwnModel(vocab, JUDGE, ROLLOUT), SearchConfig(workers=1)
    with (
        Late(vocab, search_alone(NoSearch(), search), ROLLOUT, search) as engine,
        RewardPool(DAPO, Judge(JUDGE, own)) as pool,
        pytest.raises(JudgeOutage, match=r"4 of 4 verdicts failed: .*LLMError: out_of_time"),
    ):
        GroupSampler(engine, Prompts(vocab), DAPO, ROLLOUT, pool, own_judge=own).step(model, 0)


class Stopped(Exception):
    """What a look whether to stop may raise."""


def test_whoever_waits_for_a_judge_that_asks_nothing_looks_meanwhile_whether_to_stop():
    class Slow(Judge):
        async def __call__(self, example, answer):
            await asyncio.sleep(60)

    looks = itertools.count(1)

    def check():
        if next(looks) == 3:
            raise Stopped

    vocab = Words()
    model = scripted_model(vocab, vocab.encode("go<answer>4 km</answer>"))
    own, search = OwnModel(vocab, JUDGE, ROLLOUT), SearchConfig(workers=1)
    with (
        Engine(vocab, search_alone(NoSearch(), search), ROLLOUT, search) as engine,
        RewardPool(DAPO, Slow(JUDGE, own), check) as pool,
        pytest.raises(Stopped),
    ):
        GroupSampler(engine, Prompts(vocab), DAPO, ROLLOUT, pool, own_judge=own).step(model, 0)


def test_who_waits_for_other_weights_gets_no_verdict():
    vocab = Words()
    own = OwnModel(vocab, JUDGE, ROLLOUT)
    with RewardPool(DAPO, Judge(JUDGE, own)) as pool:
        made = right_answer(Prompts(vocab).prompt, vocab)
        pending = pool.submit(EXAMPLE, made)
        [request] = own.asked([pending])
        assert (request.plain, request.max_new_tokens) == (True, 8)
        own.begin()
        assert pending.result(10).failure == "LLMError: the step that asked was given up"
        assert own.asked([pending]) == []


@pytest.mark.parametrize(
    ("rollout", "judge", "message"),
    [
        ({"in_flight": "keep"}, {}, r"config\.rollout\.in_flight is 'keep'; with config\.judge\."),
        ({}, {"base_url": "http://there/v1"}, r"config\.judge\.base_url is 'http.*must be empty"),
        ({"max_len": 64}, {}, r"config\.rollout\.max_len is 64; the judge's prompt of \d+ tokens"),
    ],
)
def test_what_cannot_work_is_told_in_one_line(rollout, judge, message):
    cfg, rollout = dataclasses.replace(JUDGE, **judge), dataclasses.replace(ROLLOUT, **rollout)

    def start() -> None:
        own = OwnModel(Words(), cfg, rollout)
        own.check_room(Judge(cfg, own).asked(EXAMPLE, "4 km"))

    with pytest.raises(ConfigError, match=message) as told:
        start()
    assert "\n" not in str(told.value)


def test_a_tokenizer_without_a_chat_template_is_told(monkeypatch):
    monkeypatch.setattr(Words, "has_template", False)
    with pytest.raises(ConfigError, match=r"no chat template; config\.judge\.own_model needs one"):
        OwnModel(Words(), JUDGE, ROLLOUT)

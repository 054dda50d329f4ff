"""Figures of how trajectories behave: each moves where a policy games its reward or decays."""

import dataclasses

import numpy as np
import pytest

from masksearch_jax.core.tools import search_alone
from masksearch_jax.core.types import (
    Passage,
    QAExample,
    RampExample,
    Segment,
    Span,
    Trajectory,
    Turn,
)
from masksearch_jax.core.watch_config import AlarmsConfig
from masksearch_jax.rl import behaviour
from masksearch_jax.rl.groups import Group
from masksearch_jax.rl.rewards import RewardTerms
from masksearch_jax.rollout.engine import Engine
from masksearch_jax.rollout.episode import Request
from masksearch_jax.search.tool import FakeSearch
from masksearch_jax.testing.models import TextVocab, scripted_model
from masksearch_jax.training.alarms import Alarms
from tests.rollout.word_engine import GREEDY, SEARCH

QA = QAExample("q", "made", "Which city?", ("New York",))
DOCUMENT = "the quick brown fox jumps over the lazy dog near a river bank in spring"
RAMP = RampExample(
    "r",
    "p",
    "Fox",
    f"{DOCUMENT.replace('fox', '[mask]')}",
    DOCUMENT,
    (Span(16, 19, "fox", "TERM"),),
)


def trajectory(*texts: str, status: str = "answered") -> Trajectory:
    """Texts of the policy and, between them, of the tool."""
    authors = ["prompt"] + ["policy" if i % 2 == 0 else "tool" for i in range(len(texts))]
    segments = tuple(Segment(a, t) for a, t in zip(authors, ("?", *texts), strict=True))
    sampled = np.asarray([author == "policy" for author in authors])
    ids = np.arange(len(authors), dtype=np.int32)
    versions = np.where(sampled, 0, -1).astype(np.int32)
    logprobs = np.zeros(len(ids), np.float32)
    return Trajectory("e", 0, ids, logprobs, sampled, versions, 1, segments, (), status)


def figures(example, *made: Trajectory) -> dict[str, float]:
    terms = [RewardTerms(0.0, 0.0, 0.0, 0.0)] * len(made)
    return behaviour.figures([Group(example, list(made), terms)])


HONEST = "<think>I know.</think><answer>New York</answer>"


def test_an_honest_answer_moves_nothing():
    found = figures(QA, trajectory(HONEST))
    assert found == {
        "answers_opened": 1.0,
        "tags_per_turn": 2.0,
        "thoughts": 1.0,
        "repeating": 0.0,
        "answer_length": 1.0,
        "enumeration": 0.0,
        "copied": 0.0,
        "distinct_answers": 1.0,
    }


def test_where_the_source_stood_is_told_of_what_has_one():
    shown = [Turn(("q",), ids, ids, 0.0) for ids in (("p", "a"), ("a", "p"), ())]
    made = [dataclasses.replace(trajectory(HONEST), turns=(turn,)) for turn in shown]
    found = figures(RAMP, *made)
    assert found["source_hit"] == pytest.approx(2 / 3)
    assert found["source_first"] == pytest.approx(1 / 3)
    assert found["source_reciprocal_rank"] == pytest.approx((1 + 1 / 2 + 0) / 3)
    known = figures(dataclasses.replace(QA, gold=("a", "b")), *made)
    assert (known["source_first"], known["gold_recall"]) == pytest.approx((1 / 3, 1 / 3))
    assert known["source_reciprocal_rank"] == pytest.approx((1 / 2 + 1 + 0) / 3)


@pytest.mark.parametrize(
    ("text", "name", "value"),
    [
        ("<answer>Paris, Rome, Oslo, New York</answer>", "answer_length", 2.5),
        ("<answer>Paris, Rome, Oslo, New York</answer>", "enumeration", 1.0),
        ("<answer>Paris or New York</answer>", "enumeration", 1.0),
        ("<answer>a</answer><answer>b</answer><answer>c</answer>", "answers_opened", 3.0),
        ("<think>a</think><search>b</search><answer>c", "tags_per_turn", 3.0),
        ("<think></think><answer>New York</answer>", "thoughts", 0.0),
        ("<answer>New York</answer>", "thoughts", 0.0),
    ],
)
def test_each_way_of_gaming_a_reward_moves_its_figure(text, name, value):
    assert figures(QA, trajectory(text))[name] == value
    assert figures(QA, trajectory(HONEST))[name] != value


def test_a_right_answer_that_is_a_list_enumerates_nothing():
    listed = QAExample("q", "made", "Which?", ("Rome, Oslo and Bern",))
    made = trajectory("<answer>Rome, Oslo and Bern</answer>")
    assert figures(listed, made)["enumeration"] == 0.0


def test_what_is_copied_from_a_document_counts_and_the_paragraph_given_does_not():
    shown = f"<information>{DOCUMENT}</information>"
    search = "<think>a</think><search>fox</search>"
    copied = trajectory(search, shown, f"<answer>{DOCUMENT} indeed</answer>")
    assert figures(QA, copied)["copied"] == pytest.approx(12 / 13)  # without articles
    short = trajectory(search, shown, "<answer>the quick brown fox</answer>")
    assert figures(QA, short)["copied"] == 0.0
    filled = trajectory(search, shown, f"<answer>{DOCUMENT}</answer>")
    assert figures(RAMP, filled)["copied"] < figures(QA, filled)["copied"]


def test_copied_words_are_those_of_runs_of_eight_word_by_word():
    draw = np.random.default_rng(0)
    for _ in range(20):
        answer, shown = (" ".join(draw.choice(["x", "y"], size)) for size in (12, 300))
        runs = {" ".join(shown.split()[i : i + 8]) for i in range(293)}
        words = answer.split()
        hit = {k for i in range(5) if " ".join(words[i : i + 8]) in runs for k in range(i, i + 8)}
        made = trajectory("<search>x</search>", shown, f"<answer>{answer}</answer>")
        assert figures(QA, made)["copied"] == pytest.approx(len(hit) / 12)


def test_a_short_answer_is_compared_with_nothing_that_was_shown():
    def shown():
        raise AssertionError("read")
        yield

    assert behaviour._copied(["new", "york"], shown(), []) == 0.0


def test_samples_of_a_group_that_agree_are_less_diverse():
    other = trajectory("<answer>Rome</answer>")
    same = [trajectory("<answer>new york</answer>"), trajectory("<answer>New York.</answer>")]
    assert figures(QA, *same, other)["distinct_answers"] == pytest.approx(2 / 3)


def test_what_is_no_fault_of_the_policy_is_left_out():
    lost = trajectory("<search>a", status="tool_failure")
    assert figures(QA, trajectory(HONEST), lost) == figures(QA, trajectory(HONEST))
    assert figures(QA, lost) == {}
    assert behaviour.figures([]) == {}


def test_the_repetition_guard_is_counted():
    made = [trajectory("a a a a", status="repeating"), trajectory(HONEST)]
    assert figures(QA, *made)["repeating"] == 0.5


def test_a_policy_that_comes_to_copy_and_to_list_trips_both_alarms():
    """Rollouts with live search: two steps of an honest policy, then two of one that hacks."""
    words = ["amber ", "birch ", "cedar ", "delta ", "ember ", "fjord ", "grove ", "heron "]
    vocab = TextVocab("go", "city", *words, "or ", "iris")
    asks = vocab.encode("go<search>city</search>")
    says = "</information><answer>{}</answer>"
    honest, hacked = (
        scripted_model(vocab, asks, vocab.encode(says.format(answer)))
        for answer in ("amber ", f"{''.join(words)}or iris")
    )
    example = QAExample("q", "made", "Which city?", ("amber",))
    rollout = dataclasses.replace(GREEDY, max_len=128, max_observation_tokens=48)
    found = FakeSearch(lambda query: [Passage("p", "Trees", "".join(words))])
    alarms = Alarms(AlarmsConfig(steps=2, copied=0.5, enumeration=0.5), True, False)
    asked = [Request("e0", np.asarray(vocab.encode("go"), np.int32), 0, n) for n in range(2)]
    rung = []
    with Engine(vocab, search_alone(found, SEARCH), rollout, SEARCH) as engine:
        for step, model in enumerate((honest, honest, hacked, hacked), 1):
            made = list(engine.run(model, asked))
            assert [t.status for t in made] == ["answered"] * 2
            told = figures(example, *made)
            rung.append([one.name for one in alarms.ring(step, told, is_trained=step > 1)])
    assert (told["copied"], told["enumeration"]) == (pytest.approx(8 / 10), 1.0)
    assert rung == [[], [], [], ["enumeration", "copied"]]

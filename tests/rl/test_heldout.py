"""Held-out figures: means of what was measured, and none of what a failing search left over."""

import numpy as np
import pytest

from masksearch_jax.core.reward_config import RewardConfig
from masksearch_jax.core.types import QAExample, Segment, Trajectory
from masksearch_jax.rl import heldout, rewards

MEASURED = {"heldout_lost": [0.0, 1.0, 0.0, 0.0], "heldout_k1_span_recall": [1.0, 0.0, 0.5]}


def test_what_is_lost_is_in_no_mean():
    assert heldout._means(MEASURED, 0.5) == {"heldout_lost": 0.25, "heldout_k1_span_recall": 0.5}


@pytest.mark.parametrize("lost", [2, 3])
def test_an_outage_leaves_no_score_of_those_that_did_not_search(lost):
    values = {"heldout_lost": [1.0] * lost + [0.0] * (4 - lost), "heldout_span_recall": [1.0]}
    assert heldout._means(values, 0.5) == {"heldout_lost": lost / 4}


@pytest.mark.parametrize(
    ("question", "answer", "recall"),
    [
        ("他出生于哪一年？", "１９５８。", 1.0),
        ("他出生于哪一年？", "1957", 0.0),
        ("When?", "1958.", 1.0),
    ],
)
def test_a_question_is_measured_by_the_rules_that_it_is_rewarded_by(question, answer, recall):
    """Chinese writes digits and full stops as wide as a character."""
    example = QAExample("q", "made", question, ("1958",))
    none = np.zeros(0, np.int32)
    segments = (Segment("policy", f"<answer>{answer}</answer>"),)
    said = Trajectory("q", 0, none, none, none, none, 0, segments, (), "answered")
    item = heldout.Item(0, heldout.kind_of(example), example, none)
    assert heldout.scores(item, said)["heldout_questions_recall"] == recall
    assert rewards.qa_reward(example, said, RewardConfig(reward="recall")).answer == recall

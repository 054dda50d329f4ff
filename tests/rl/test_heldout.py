"""Held-out figures: means of what was measured, and none of what a failing search left over."""

import pytest

from masksearch_jax.rl import heldout

MEASURED = {"heldout_lost": [0.0, 1.0, 0.0, 0.0], "heldout_k1_span_recall": [1.0, 0.0, 0.5]}


def test_what_is_lost_is_in_no_mean():
    assert heldout._means(MEASURED, 0.5) == {"heldout_lost": 0.25, "heldout_k1_span_recall": 0.5}


@pytest.mark.parametrize("lost", [2, 3])
def test_an_outage_leaves_no_score_of_those_that_did_not_search(lost):
    values = {"heldout_lost": [1.0] * lost + [0.0] * (4 - lost), "heldout_span_recall": [1.0]}
    assert heldout._means(values, 0.5) == {"heldout_lost": lost / 4}

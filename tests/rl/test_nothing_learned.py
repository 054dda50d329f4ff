"""What is said of a run that learns nothing."""

import math

import pytest

from masksearch_jax.rl.nothing_learned import NothingLearnedError, check_updates, no_spread


def test_samples_that_were_all_masked_are_named():
    said = no_spread(3, {"groups_kept": 2.0, "masked_sequences": 1.0})
    assert "groups had spread, but what is left out took all their tokens" in said
    assert "raise dapo.sequence_gap" in said


def test_a_filter_that_leaves_nothing_is_named():
    figures = {"truncated": 0.9, "accuracy": 0.0, "reward": 0.0, "reward_spread": 0.0}
    said = no_spread(3, figures, overlong_filter=True)
    assert "dapo.overlong_filter leaves out truncated samples, 0.900 of all, and no group" in said
    assert "raise rollout.max_new_tokens, turn dapo.overlong_filter off" in said
    for other in (figures, figures | {"truncated": 0.1}):
        said = no_spread(3, other, overlong_filter=other != figures)
        assert "in 3 steps: no group had right and wrong samples (accuracy" in said


@pytest.mark.parametrize(("late", "failed"), [(0.3, 0.0), (0.1, 0.15), (0.0, 0.4)])
def test_samples_that_ended_for_no_fault_of_the_policy_are_named(late, failed):
    figures = {"accuracy": 0.0, "reward": 0.0, "reward_spread": 0.0, "truncated": 0.9}
    lost = {"out_of_time": late, "tool_failures": failed}
    said = no_spread(3, figures | lost, overlong_filter=True)
    assert f"rollout.deadline ended {late:.3f} of the samples (out_of_time)" in said
    assert f"failed calls {failed:.3f} (tool_failures)" in said
    assert "raise rollout.deadline or search.workers" in said
    assert "make the task easier" not in said
    few = {"out_of_time": 0.1, "tool_failures": 0.1}
    assert "make the task easier" in no_spread(3, figures | few)


def test_samples_that_had_no_room_are_named_with_the_key():
    figures = {"accuracy": 0.0, "reward": -0.75, "reward_spread": 0.0}
    assert no_spread(3, figures | {"truncated": 0.75}).endswith(
        "; 0.750 of the samples were truncated: raise rollout.max_new_tokens"
    )
    assert "truncated" not in no_spread(3, figures | {"truncated": 0.25})


def test_updates_that_the_guard_left_out_are_named():
    figures = {"groups_kept": 2.0, "skipped_in_a_row": 4.0, "loss": math.nan, "grad_norm": 1.25}
    said = no_spread(3, figures)
    assert "in 3 steps: the guard left out every update (loss nan, gradient norm 1.25)" in said
    assert "a lower learning rate or other data" in said
    assert "groups had spread" in no_spread(3, figures | {"skipped_in_a_row": 0.0})


@pytest.mark.parametrize(
    ("skipped", "why"), [(0, "no group of samples"), (9, "the guard left out every update")]
)
def test_a_run_that_never_updated_the_weights_is_told_why(skipped, why):
    found = {"skipped": skipped, "reward": 0.5}
    check_updates(found | {"all_updates": 1}, 3, "no group of samples had spread")
    said = rf"^3 steps are done and none updated the weights: {why}"
    with pytest.raises(NothingLearnedError, match=said):
        check_updates(found | {"all_updates": 0}, 3, "no group of samples had spread")

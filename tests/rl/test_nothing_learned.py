"""What is said of a run that learns nothing."""

from masksearch_jax.rl.nothing_learned import no_spread


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

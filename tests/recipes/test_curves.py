"""Curves of a study: steps that all seeds have, bands, and whether answers grew."""

import json

import pytest

from masksearch_jax.recipes import curves


def rows(metric, values, start=1):
    return [{"step": i, metric: v} for i, v in enumerate(values, start)]


def test_the_last_row_of_a_step_counts_and_a_torn_line_does_not(tmp_path):
    path = tmp_path / "metrics.jsonl"
    lines = [{"step": 2, "loss": 2.0}, {"step": 1, "loss": 3.0}, {"step": 2, "loss": 1.0}]
    path.write_text("\n".join([*map(json.dumps, lines), '{"step": 3, "lo']))
    assert curves.read(path) == [{"step": 1, "loss": 3.0}, {"step": 2, "loss": 1.0}]
    assert curves.read(tmp_path / "absent.jsonl") == []


def test_a_curve_is_the_mean_of_seeds_in_a_band_at_the_steps_of_all():
    by_seed = [rows("reward", [0.0, 0.5, 1.0]), rows("reward", [0.5, 1.0, 0.0], start=2)]
    by_seed[1].append({"step": 1, "reward": float("nan"), "loss": 1.0})
    found = curves.over_seeds(by_seed)
    assert list(found) == ["reward"]  # of the loss one seed has nothing
    assert found["reward"] == {
        "steps": [2, 3], "mean": [0.5, 1.0], "low": [0.5, 1.0], "high": [0.5, 1.0],
    }  # fmt: skip


def test_a_change_is_from_the_first_quarter_to_the_last():
    by_seed = [rows("reward", [0, 0, 9, 9, 9, 9, 2, 4]), rows("reward", [1, 1, 0, 0, 0, 0, 2, 2])]
    assert curves.change(by_seed, "reward") == {"first": 0.5, "last": 2.5, "low": 1.0, "high": 3.0}
    assert curves.change([rows("reward", [1.0])], "reward") == {}
    assert curves.change([], "reward") == {}


@pytest.mark.parametrize(
    ("other", "grown"), [([1.0, 1.2], True), ([1.0, 1.05], False), ([1.0, 0.9], False)]
)
def test_answers_grew_where_those_of_every_seed_did(other, grown):
    by_seed = [
        [{"step": i, "answer_length": v, "reward": v / 2} for i, v in enumerate(values)]
        for values in ([1.0, 2.0], other)
    ]
    told = curves.lengthened(by_seed)
    assert told["has_grown"] is grown
    assert told["length"]["last"] == pytest.approx((2 + other[1]) / 2)
    assert told["reward"]["first"] == 0.5
    assert curves.lengthened([rows("loss", [1.0, 2.0])]) == {}

"""Intervals over items and seeds against ones that are known, and what is paired with what."""

import json

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest
from scipy import stats

from masksearch_jax.evals import arms
from masksearch_jax.evals.fanoutqa import accuracy
from masksearch_jax.evals.metrics import bootstrap
from masksearch_jax.evals.results import Bootstrap

HOW = Bootstrap(2000, 7)


def by_id(*values):
    return {str(i): {"recall": value} for i, value in enumerate(values)}


def test_with_one_seed_it_is_the_bootstrap_of_items():
    values = np.random.default_rng(0).random(40)
    assert arms.interval(values[None], HOW) == bootstrap(list(values), *HOW)


def test_where_items_are_alike_the_interval_is_students_of_the_seeds():
    """Three seeds of 0, 0 and 1: a third, and 4.303 standard errors of two degrees of freedom."""
    values = np.repeat([[0.0], [0.0], [1.0]], 50, axis=1)
    found = arms.interval(values, HOW)
    half = 4.302652729911275 * np.sqrt(1 / 3 / 3)  # of the unbiased variance, 1/3
    assert found == pytest.approx((1 / 3, 1 / 3 - half, 1 / 3 + half, 50))


def test_where_seeds_are_alike_the_interval_is_students_of_the_items():
    row = np.random.default_rng(1).random(200)
    found = arms.interval(np.stack([row] * 3), HOW)
    half = stats.t.ppf(0.975, 199) * row.std(ddof=1) / np.sqrt(200)
    assert found == pytest.approx((row.mean(), row.mean() - half, row.mean() + half, 200))


def test_two_seeds_have_one_degree_of_freedom_at_least():
    """One item right in one seed: each mean square is 1/8, of 12.7 standard errors, not more."""
    found = arms.interval(np.asarray([[0.0, 0, 0, 0], [1, 0, 0, 0]]), HOW)
    half = stats.t.ppf(0.975, 1) * np.sqrt(1 / 8 / 8)
    assert found == pytest.approx((1 / 8, 1 / 8 - half, 1 / 8 + half, 4))


def test_one_item_has_an_interval_over_seeds():
    found = arms.interval(np.asarray([[1.0], [2.0], [4.0]]), HOW)
    half = stats.t.ppf(0.975, 2) * np.std([1.0, 2.0, 4.0], ddof=1) / np.sqrt(3)
    assert found == pytest.approx((7 / 3, 7 / 3 - half, 7 / 3 + half, 1))


@pytest.mark.parametrize("seeds", [2, 3, 5])
@pytest.mark.parametrize("deviations", [(0.0, 0.3, 0.3), (0.05, 0.3, 0.3), (0.2, 0.1, 0.3)])
def test_intervals_of_95_percent_hold_the_truth_as_often(seeds, deviations):
    """Of seed, item and rest; whichever of these is the largest, with two seeds too."""
    rng = np.random.default_rng([seeds, round(100 * deviations[0])])
    of_seed, of_item, rest = deviations
    held = 0
    for _ in range(400):
        values = rng.normal(0, of_seed, (seeds, 1)) + rng.normal(0, of_item, (1, 60))
        found = arms.interval(values + rng.normal(0, rest, (seeds, 60)), HOW)
        held += found.low <= 0 <= found.high
    assert 0.91 <= held / 400 <= 0.99


def test_differences_are_paired_by_item_and_seed():
    """What moves with item and seed in both arms is gone: the difference is the same everywhere."""
    base = np.random.default_rng(3).random((3, 30))
    a = {"ramp": [by_id(*row) for row in base]}
    b = {"ramp": [by_id(*(row + 0.125)) for row in base]}
    found = arms.compare({"a": a, "b": b}, "a", {"ramp": ("recall",)}, HOW)["ramp"]["recall"]
    assert found["a"]["difference"] is None
    apart = found["b"]["difference"]
    assert apart == pytest.approx({"value": 0.125, "low": 0.125, "high": 0.125, "n": 30})
    assert found["b"]["mean"]["value"] == pytest.approx(base.mean() + 0.125)
    assert found["b"]["mean"]["high"] - found["b"]["mean"]["low"] > 0.01


def test_an_item_counts_where_every_seed_has_it():
    a = {"ramp": [by_id(1, 0, 1), by_id(1, 1)]}
    b = {"ramp": [by_id(0, 0), {"1": {"recall": 1.0}, "2": {"recall": 1.0}}]}
    found = arms.compare({"a": a, "b": b}, "a", {"ramp": ("recall", "searches")}, HOW)["ramp"]
    assert list(found) == ["recall"]
    a, b = found["recall"]["a"], found["recall"]["b"]
    assert (a["mean"]["n"], a["mean"]["value"]) == (2, 0.75)
    assert (b["mean"]["n"], b["mean"]["value"]) == (1, 0.5)
    assert (b["difference"]["n"], b["difference"]["value"]) == (1, 0.0)  # item 1: 0, 1 against 0, 1


def test_intervals_end_where_a_metric_does():
    """Seeds far apart: a share lies in 0..1, its difference in -1..1; a count is not below 0."""
    zeros, ones = ({i: {"recall": v, "searches": v} for i in "xy"} for v in (0.0, 1.0))
    a, b = [zeros, ones], [ones, zeros]
    found = arms.compare({"a": {"s": a}, "b": {"s": b}}, "a", {"s": ("recall", "searches")}, HOW)
    recall, searches = found["s"]["recall"]["b"], found["s"]["searches"]["b"]
    assert recall["by_seed"] == [1.0, 0.0]
    ends = [(recall[c]["low"], recall[c]["high"]) for c in ("mean", "difference")]
    assert ends == [(0.0, 1.0), (-1.0, 1.0)]
    half = stats.t.ppf(0.975, 1) * 0.5  # the seeds' deviation is the root of a half
    assert (searches["mean"]["low"], searches["mean"]["high"]) == (0.0, pytest.approx(0.5 + half))
    assert searches["difference"]["low"] == pytest.approx(-2 * half)


TOWNS = json.dumps({"Norway": ["Oslo", "Bergen", "Moss"], "Sweden": ["Lund", "Kiruna"]})
REPLIES = ("", "Oslo in Norway", "Norway: Oslo, Bergen, Moss. Sweden: Lund, Kiruna.")
A_SCORE = {
    "loose": st.sampled_from([accuracy(TOWNS, reply).loose for reply in REPLIES]),
    "strict": st.sampled_from([0.0, 1.0]),
    "recall": st.floats(0, 1),
    "searches": st.integers(0, 9).map(float),
}


@hypothesis.given(
    st.data(), st.sampled_from(list(A_SCORE)), st.sampled_from([1, 2, 3]), st.integers(1, 6)
)
def test_an_interval_holds_its_value(data, metric, seeds, items):
    """Of each measure that scores give; the loose accuracy of a nested answer is below 0."""
    assert accuracy(TOWNS, "").loose == -0.75
    one = st.fixed_dictionaries({f"q{i}": A_SCORE[metric] for i in range(items)})
    drawn = st.lists(one, min_size=seeds, max_size=seeds)
    by_arm = {
        arm: {"s": [{i: {metric: v} for i, v in seed.items()} for seed in data.draw(drawn)]}
        for arm in "ab"
    }
    found = arms.compare(by_arm, "a", {"s": (metric,)}, Bootstrap(200, 7))["s"][metric]
    for cell in (found["a"]["mean"], found["b"]["mean"], found["b"]["difference"]):
        assert cell["low"] - 1e-9 <= cell["value"] <= cell["high"] + 1e-9


def test_a_loose_accuracy_below_0_has_an_interval_below_0():
    """As FanOutQA's own scorer takes what a nested part lacks off the whole, one by one."""
    a, b = ([{f"q{i}": {"loose": v} for i, v in enumerate(x)}] for x in ([-0.75] * 4, [1.0] * 4))
    found = arms.compare({"a": {"s": a}, "b": {"s": b}}, "b", {"s": ("loose",)}, HOW)["s"]["loose"]
    assert found["a"]["mean"] == {"value": -0.75, "low": -0.75, "high": -0.75, "n": 4}
    assert found["a"]["difference"] == {"value": -1.75, "low": -1.75, "high": -1.75, "n": 4}
    far = [{"q": {"loose": value}} for value in (-0.75, 1.0)]
    cell = arms.compare({"a": {"s": far}}, "a", {"s": ("loose",)}, HOW)["s"]["loose"]["a"]["mean"]
    half = stats.t.ppf(0.975, 1) * 1.75 / 2  # the seeds' deviation is 1.75 / √2
    assert (cell["low"], cell["high"]) == (pytest.approx(0.125 - half), 1.0)


def test_no_items_and_no_seeds_have_no_interval():
    for shape in ((0, 3), (3, 0)):
        with pytest.raises(ValueError, match="an interval needs seeds and items"):
            arms.interval(np.zeros(shape), HOW)


@pytest.mark.parametrize(
    ("seeds", "asked", "said"),
    [
        (1, 1, "1 seed is done; 95% intervals are over items alone: there is one seed"),
        (1, 3, "1 of 3 seeds are done; 95% intervals are over items alone: there is one seed"),
        (2, 3, "2 of 3 seeds are done; 95% intervals are over items and seeds"),
    ],
)
def test_a_table_says_what_its_intervals_are_over(seeds, asked, said):
    one = {"ramp": [by_id(0.25, 0.25)] * seeds}
    other = {"ramp": [by_id(0.5, 0.5)] * seeds}
    found = arms.compare({"one": one, "other": other}, "one", {"ramp": ("recall",)}, HOW)
    head, first, second, last = arms.table(found, "one", [], seeds, asked)
    by_seed = ["0.250"] * seeds
    assert head.split() == ["arm", "mean", "minus", "one", "n", "paired", "by", "seed"]
    assert first.split()[2:] == ["one", "0.250", "[0.250,", "0.250]", "reference", "2", *by_seed]
    assert second.split()[3:] == [
        *("0.500", "[0.500,", "0.500]", "+0.250", "[+0.250,", "+0.250]", "2", "2"),
        *["0.500"] * seeds,
    ]
    assert last == said


def test_an_arm_that_lost_its_items_is_told_and_the_others_are_compared():
    """Of the first one seed has no item; the second shares none with the reference."""
    found = arms.compare(
        {
            "all": {"ramp": [by_id(1, 0)] * 2},
            "lost": {"ramp": [by_id(1, 0), {}]},
            "apart": {"ramp": [{"9": {"recall": 1.0}}] * 2},
            "part": {"ramp": [by_id(1)] * 2},
        },
        "all",
        {"ramp": ("recall",)},
        HOW,
    )
    assert list(found["ramp"]["recall"]) == ["all", "apart", "part"]
    said = arms.absent(found, ["all", "lost", "apart", "part"], "all")
    assert said == [
        "lost has no item of ramp that has recall in every seed, and no row",
        "apart and all share no item of ramp that has recall in every seed, and have no difference",
    ]
    lines = arms.table(found, "all", said, 2, 2)
    assert lines[4:6] == said
    shown = [line.split()[-4:] for line in lines[2:4]]
    assert shown == [["–", "1", "1.000", "1.000"], ["1", "1", "1.000", "1.000"]]

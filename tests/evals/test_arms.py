"""Intervals over items and seeds against ones that are known, and what is paired with what."""

import numpy as np
import pytest

from masksearch_jax.evals import arms
from masksearch_jax.evals.metrics import bootstrap
from masksearch_jax.evals.results import Bootstrap

HOW = Bootstrap(2000, 7)


def by_id(*values):
    return {str(i): {"recall": value} for i, value in enumerate(values)}


def test_with_one_seed_it_is_the_bootstrap_of_items():
    values = np.random.default_rng(0).random(40)
    assert arms.interval(values[None], HOW) == bootstrap(list(values), *HOW)


def test_where_items_are_alike_the_interval_is_of_the_seeds():
    """Three seeds of 0, 0 and 1: the mean of three draws has the quantiles of a binomial."""
    values = np.repeat([[0.0], [0.0], [1.0]], 50, axis=1)
    found = arms.interval(values, HOW)
    assert found.value == pytest.approx(1 / 3)
    assert (found.low, found.high, found.n) == (0.0, 1.0, 50)  # 8/27 of none, 1/27 of three


def test_where_seeds_are_alike_the_interval_is_of_the_items():
    row = np.random.default_rng(1).random(200)
    found = arms.interval(np.stack([row] * 3), Bootstrap(20_000, 3))
    alone = bootstrap(list(row), 20_000, 3)
    assert (found.value, found.n) == (pytest.approx(alone.value), 200)
    assert found.low == pytest.approx(alone.low, abs=1e-9)
    assert found.high == pytest.approx(alone.high, abs=1e-9)


def test_its_variance_is_that_of_items_and_seeds_together():
    """Of additive effects a_s + b_i: var(a)/S + var(b)/N, each the resampled variance."""
    rng = np.random.default_rng(2)
    seeds, items = rng.normal(size=6), rng.normal(size=80)
    values = seeds[:, None] + items[None]
    found = arms.interval(values, Bootstrap(40_000, 5))
    want = np.sqrt(seeds.var() / 6 + items.var() / 80)
    assert (found.high - found.low) / (2 * 1.96) == pytest.approx(want, rel=0.03)


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


def test_no_items_and_no_seeds_have_no_interval():
    for shape in ((0, 3), (3, 0)):
        with pytest.raises(ValueError, match="an interval needs seeds and items"):
            arms.interval(np.zeros(shape), HOW)


@pytest.mark.parametrize(
    ("seeds", "said"),
    [
        (1, "1 seed; 95% intervals over items alone: there is one seed"),
        (2, "2 seeds; 95% intervals over items and seeds"),
    ],
)
def test_a_table_says_what_its_intervals_are_over(seeds, said):
    one = {"ramp": [by_id(0.25, 0.25)] * seeds}
    other = {"ramp": [by_id(0.5, 0.5)] * seeds}
    found = arms.compare({"one": one, "other": other}, "one", {"ramp": ("recall",)}, HOW)
    head, first, second, last = arms.table(found, "one", seeds)
    assert head.split() == ["arm", "mean", "minus", "one", "n"]
    assert first.split() == [
        "ramp",
        "recall",
        "one",
        "0.250",
        "[0.250,",
        "0.250]",
        "reference",
        "2",
    ]
    assert second.split()[3:] == [
        *("0.500", "[0.500,", "0.500]", "+0.250", "[+0.250,", "+0.250]", "2"),
    ]
    assert last == said

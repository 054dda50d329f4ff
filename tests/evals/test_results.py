"""Means with intervals: their seed, what they leave out, averages and paired differences."""

import json

import numpy as np
import pytest

from masksearch_jax.evals.metrics import bootstrap, intervals
from masksearch_jax.evals.results import (
    Bootstrap,
    Scored,
    average,
    breakdown,
    differences,
    summarise,
)

HOW = Bootstrap(200, 0)


def test_summarise_gives_an_interval_per_metric():
    items = [{"em": 1.0, "f1": 0.25}, {"em": 0.0, "f1": 0.25}]
    lost = {"tool_failure": 3}
    got = summarise(items, HOW, lost)
    assert got["f1"] == {"value": 0.25, "low": 0.25, "high": 0.25, "n": 2, "lost": lost}
    assert got["em"] == {"value": 0.5, "low": 0.0, "high": 1.0, "n": 2, "lost": lost}
    assert json.loads(json.dumps(got)) == got
    with pytest.raises(ValueError, match="without items"):
        summarise([], HOW, {})


def test_bootstrap_matches_the_normal_interval_and_its_seed():
    values = np.random.default_rng(0).normal(3.0, 2.0, 400)
    got = bootstrap(values, 2000, seed=1)
    half_width = 1.96 * values.std() / 20
    assert got.value == pytest.approx(values.mean())
    assert got.low == pytest.approx(values.mean() - half_width, abs=0.03)
    assert got.high == pytest.approx(values.mean() + half_width, abs=0.03)
    assert got == bootstrap(values, 2000, seed=1) != bootstrap(values, 2000, seed=2)
    narrow = bootstrap(values, 2000, seed=1, level=0.5)
    assert got.low < narrow.low < narrow.high < got.high
    with pytest.raises(ValueError, match="0 values"):
        bootstrap([], 10, 0)


def test_each_metric_is_resampled_over_the_items_that_have_it():
    values = np.random.default_rng(3).random((2, 60))
    items = [{"a": a, "b": b} for a, b in values.T]
    half = [item if i % 2 else {"a": item["a"]} for i, item in enumerate(items)]
    got = intervals(half, 300, 5)
    assert list(got) == ["a", "b"]
    for name, column in (("a", values[0]), ("b", values[1][1::2])):
        assert got[name] == pytest.approx(bootstrap(column, 300, 5))


def scored(values, label="x"):
    return [
        Scored(f"i{i}", {"f1": v}, {"type": label if i % 2 else "y", "dataset": "d"}, [("DATE", v)])
        for i, v in enumerate(values)
    ]


def test_results_by_label_leave_out_what_all_share():
    got = breakdown(scored([0.0, 1.0, 0.5]), HOW)
    assert got["type"]["x"]["f1"]["value"] == 1.0
    assert (got["type"]["y"]["f1"]["value"], got["type"]["y"]["f1"]["n"]) == (0.25, 2)
    assert got.keys() == {"type"}


def test_spans_of_a_paragraph_are_resampled_together():
    """Four spans that fare alike say no more than one."""
    values = np.random.default_rng(2).random(40)
    items = [
        Scored(f"i{i}", {"f1": v}, {}, [("DATE", v)] * 4 + [("PLACE", 1.0)] * (i % 2))
        for i, v in enumerate(values)
    ]
    got = breakdown(items, HOW)["span_type"]
    alone = bootstrap(values, *HOW)
    assert got["DATE"]["span_recall"] == pytest.approx(alone._asdict() | {"n": 160})
    assert got["PLACE"]["span_recall"] == {"value": 1.0, "low": 1.0, "high": 1.0, "n": 20}


def test_an_average_is_of_methods_that_all_suites_have():
    items = {
        ("a", "rag"): scored([0.0, 1.0]),
        ("b", "rag"): scored([1.0] * 8),
        ("a", "agent"): scored([1.0]),
    }
    got = average(items, {"a": "f1", "b": "f1"}, Bootstrap(4000, 0))
    assert got.keys() == {"rag"}
    assert got["rag"] == pytest.approx({"value": 0.75, "low": 0.5, "high": 1.0, "n": 2})


def test_differences_are_paired():
    """A gap that every item has is certain, however far the items lie apart."""
    values = np.random.default_rng(1).random(50)
    mine = {("a", "agent"): scored(values + 0.125), ("b", "agent"): scored([1.0])}
    others = {("a", "agent"): scored(values)[::-1][:40]}
    got = differences(mine, others, HOW)
    assert got.keys() == {"a"}
    cell = got["a"]["agent"]["f1"]
    assert cell == pytest.approx({"value": 0.125, "low": 0.125, "high": 0.125, "n": 40})

"""What a study takes: costs of units, measured where parts are known, and None where one is not."""

import pytest

from masksearch_jax.recipes import workload
from masksearch_jax.recipes.workload import Work

TEXT = Work((("text", 1),))
EVALUATION = Work((("evaluate", 100),))
TRAINING = Work((("sft", 50.0), ("evaluate", 20)), updates=10, tokens=50_000, flops=3e15)


def test_costs_are_means_over_units_and_parts_that_are_known_count_apart():
    done = [(TEXT, 4.0), (TEXT, 6.0), (EVALUATION, 50.0), (TRAINING, 30.0)]
    assert workload.measured(done) == {"text": 5.0, "evaluate": 0.5, "sft": 0.4}  # 30 - 20 * 0.5
    assert workload.measured([(TRAINING, 30.0)]) == {"sft": 0.6}
    assert workload.measured([]) == {}


def test_seconds_are_linear_and_unknown_where_a_cost_is():
    costs = {"sft": 0.4, "evaluate": 0.5}
    assert workload.seconds([TRAINING, TRAINING, EVALUATION], costs) == 2 * 30 + 50
    assert workload.seconds([TRAINING, TEXT], costs) is None
    assert workload.seconds([], {}) == 0.0


def test_the_table_is_of_what_is_not_done():
    made = [("text", TEXT, True), ("ramp_sft", TRAINING, False), ("evaluate", EVALUATION, False)]
    lines = workload.table(made, {"sft": 0.4, "evaluate": 0.5}, "as given")
    rows = [line.split() for line in lines[1:5]]
    assert rows[0] == ["text", "1", "1", "0.0"]
    assert rows[1] == ["ramp_sft", "1", "0", "10", "50,000", "3", "0.5"]
    assert rows[3] == ["all", "3", "1", "10", "50,000", "3", "1.3"]
    assert lines[-2] == "seconds of a unit, as given: sft 0.4, evaluate 0.5"
    assert lines[-1].startswith("not known, to be given as config.costs=KIND=SECONDS: text is of a")


def test_costs_are_given_by_kind():
    assert workload.given(("sft=0.5", "text=20")) == {"sft": 0.5, "text": pytest.approx(20)}

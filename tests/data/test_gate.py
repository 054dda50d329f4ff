"""Which lesson is in force: by step, by held-out recall, with measured rates; state; bad input."""

import pytest

from masksearch_jax.core.curriculum_config import LessonsConfig, check_lessons
from masksearch_jax.core.errors import ConfigError
from masksearch_jax.data.gate import Gate, figure_of, kind_of_task

TASKS = [
    {"ramp_k1": 1.0},
    {"ramp_k1": 1.0, "ramp_k2": 3.0},
    {"ramp_sft_k3": 1.0, "qa_hotpotqa": 1.0},
]
STEPS = [0, 10, 20]
KINDS = ["k1", "k2", "k3", "questions"]


def gate(**settings) -> Gate:
    return Gate(LessonsConfig(**settings), TASKS, TASKS, STEPS)


def recall(**by_kind: float) -> dict[str, float]:
    return {figure_of(kind): value for kind, value in by_kind.items()}


def walk(made: Gate, measured: dict[int, dict[str, float]], steps: int) -> list[int]:
    """The lesson of each step; measured: by step after it, as a trainer does."""
    found = []
    for step in range(steps):
        found.append(made.stretches[made.enter(step)].lesson)
        made.listen(step + 1, measured.get(step + 1, {}))
    return found


def test_kinds_are_those_of_held_out_examples():
    assert [kind_of_task(t) for t in ("ramp_k1", "ramp_sft_k4", "qa_easy", "qa_sft_x")] == [
        *("k1", "k4"),
        *("questions", "questions"),
    ]


def test_a_schedule_listens_to_nothing():
    measured = {step: recall(k1=1.0, k2=1.0) for step in range(30)}
    assert walk(gate(), measured, 25) == [0] * 10 + [1] * 10 + [2] * 5
    assert gate().state() == {}


def test_a_gate_opens_where_recall_passes_and_the_floor_is_done():
    measured = {
        2: recall(k1=0.9),
        4: recall(k1=0.9),
        6: recall(k1=0.6, k2=1.0),
        8: recall(k1=0.7, k2=0.9),
    }
    made = gate(by="gated", threshold=0.8, floor=3)
    assert walk(made, measured, 12) == [0] * 4 + [1] * 4 + [2] * 4
    found = made.listen(12, recall(k3=0.5, questions=0.25, k1=1.0))
    assert found == {"lesson": 2.0, "lesson_steps": 4.0, "gate": pytest.approx(0.375)}
    assert gate(by="gated").listen(3, recall(k1=1.0)) == {"lesson": 0, "lesson_steps": 3, "gate": 1}


def test_what_was_not_measured_opens_nothing_and_the_ceiling_does():
    assert walk(gate(by="gated", threshold=0.8, ceiling=5), {}, 12) == [0] * 5 + [1] * 5 + [2] * 2
    assert walk(gate(by="gated"), {3: recall(k2=1.0)}, 6) == [0] * 6


def test_adaptive_rates_are_largest_where_half_is_right():
    made = gate(by="adaptive", least=0.1)
    walk(made, {11: recall(k1=1.0, k2=0.5)}, 12)
    stretch = made.stretches[made.enter(12)]
    assert stretch.lesson == 1
    assert stretch.rates == pytest.approx({"ramp_k1": 0.1, "ramp_k2": 3.0})
    assert made.stretches[made.enter(20)].rates is None  # the next lesson begins with its own


@pytest.mark.parametrize("by", ["gated", "adaptive"])
def test_a_restored_gate_goes_on_as_it_would(by):
    measured = {4: recall(k1=0.9), 8: recall(k1=0.2, k2=0.9), 14: recall(k1=0.9, k2=0.8)}
    whole = gate(by=by, threshold=0.8)
    walk(whole, measured, 9)
    state = whole.state()
    rest = [whole.stretches[whole.enter(step)] for step in range(9, 16)]
    again = gate(by=by, threshold=0.8)
    again.restore(state, 9)
    assert [again.stretches[again.enter(step)] for step in range(9, 16)] == rest


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"by": "gated", "threshold": 1.2}, "a gate that can never pass"),
        ({"by": "gated", "threshold": 0.0}, "passes at the first measurement"),
        ({"keep_earlier": 1.0}, "keep_earlier is 1; it must lie in"),
        ({"floor": 5, "ceiling": 2}, "nor the ceiling below the floor"),
        ({"least": 0.0}, "least is 0; it must be above 0"),
        (
            {"floor": 5},
            "floor is 5, and config.lessons.by is schedule, which reads none; choose ga",
        ),
        ({"by": "adaptive", "ceiling": 9}, "ceiling is 9, and config.lessons.by is adaptive, whic"),
    ],
)
def test_settings_that_cannot_work_are_refused(settings, said):
    with pytest.raises(ConfigError, match=said):
        check_lessons(LessonsConfig(**settings))


def test_a_gate_that_nothing_can_open_is_refused():
    made = gate(by="gated", floor=10)
    with pytest.raises(ConfigError, match=r"config\.eval\.every is 0: nothing is measured"):
        made.check_kinds([], 0, 100)
    for by in ("gated", "adaptive"):  # one kind that is measured says nothing of the other
        with pytest.raises(ConfigError, match=r"lesson 1 has k2, of which .* it has k1, k3"):
            gate(by=by).check_kinds(["k1", "k3"], 5, 100)
    with pytest.raises(ConfigError, match=r"3 lessons of at least 10 steps .* run of 20: the last"):
        made.check_kinds(KINDS, 5, 20)
    made.check_kinds(KINDS, 5, 21)
    with pytest.raises(ConfigError, match=r"3 lessons of at least 14 steps"):
        made.check_kinds(KINDS, 7, 28)  # measured 7 and 14 steps after a start
    alone = Gate(LessonsConfig(by="gated"), TASKS[:1], TASKS[:1], [0])
    with pytest.raises(ConfigError, match=r"by is gated, and the curriculum has one lesson: there"):
        alone.check_kinds(KINDS, 5, 100)
    gate(by="gated", ceiling=4).check_kinds(KINDS, 10, 9)  # the ceiling opens it before
    gate().check_kinds([], 0, 1)


def test_a_gate_reads_its_lessons_own_kinds_and_not_those_kept_of_earlier_ones():
    tasks = [{"ramp_k1": 1.0}, {"ramp_k1": 0.2, "ramp_k2": 0.8}, {"ramp_k3": 1.0}]
    own = [["ramp_k1"], ["ramp_k2"], ["ramp_k3"]]
    made = Gate(LessonsConfig(by="gated", threshold=0.8, keep_earlier=0.2), own, tasks, STEPS)
    walk(made, {1: recall(k1=0.9)}, 2)
    assert made.listen(3, recall(k1=1.0, k2=0.6))["gate"] == 0.6
    assert made.stretches[made.enter(3)].lesson == 1
    mixed = Gate(LessonsConfig(by="adaptive", keep_earlier=0.2), own, tasks, STEPS)
    walk(mixed, {11: recall(k1=1.0, k2=0.5)}, 12)  # of rates all kinds are heard
    rates = mixed.stretches[mixed.enter(12)].rates
    assert rates == pytest.approx({"ramp_k1": 0.02, "ramp_k2": 0.8})

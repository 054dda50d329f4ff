"""Each alarm rings by its own figure, for as many steps, and does what the config says."""

import pytest

from masksearch_jax.core.errors import ConfigError
from masksearch_jax.core.watch_config import AlarmsConfig
from masksearch_jax.training import alarms
from masksearch_jax.training.alarms import AlarmError, Alarms


def made(samples: bool = True, measures: bool = True, **settings) -> Alarms:
    return Alarms(AlarmsConfig(**settings), samples, measures)


def rings(watching: Alarms, figure: str, values: list[float], first: int = 2) -> list[list[str]]:
    found = []
    for step, value in enumerate(values, first):
        found.append([one.name for one in watching.ring(step, {figure: value})])
    return found


@pytest.mark.parametrize("name", alarms.FIGURES)
def test_an_alarm_rings_after_steps_in_a_row_beyond_its_threshold(name):
    figure, side = alarms.FIGURES[name]
    beyond, within = (3.0, 1.0) if side == "above" else (1.0, 3.0)
    watching = made(steps=2, **{name: 2.0})
    values = [beyond, within, beyond, beyond, beyond, within, 2.0, 2.0]
    assert rings(watching, figure, values) == [[], [], [], [name], [name], [], [], []]
    assert rings(made(steps=1), figure, [beyond, within]) == [[], []]  # off


def test_a_figure_that_is_not_there_changes_nothing():
    watching = made(steps=2, entropy=1.0)
    assert watching.ring(2, {"entropy": 0.5}) == []
    assert watching.ring(3, {}) == []
    (one,) = watching.ring(4, {"entropy": 0.5})
    assert (one.name, one.since) == ("entropy", 2)
    assert one.sentence == "entropy is 0.5, below config.alarms.entropy, 1, since step 2"


def test_a_plateau_is_measurements_without_a_better_one():
    watching = made(plateau=2)
    values = [0.2, 0.3, 0.3, 0.1, 0.4, 0.4, 0.4]
    found = rings(watching, "heldout_span_recall", values)
    assert found == [[], [], [], ["plateau"], [], [], ["plateau"]]


@pytest.mark.parametrize(("step", "name"), [(1, "tags"), (1, "entropy"), (4, "entropy")])
def test_a_threshold_that_fires_as_its_figure_is_first_known_is_refused(step, name):
    """Of DAPO the first update may come late: what it shows, no training led to."""
    figure, side = alarms.FIGURES[name]
    beyond, within = (3.0, 1.0) if side == "above" else (1.0, 3.0)
    said = rf"{figure} is {beyond:g}, {side} config\.alarms\.{name}, 2, in step {step}, and no upd"
    with pytest.raises(ConfigError, match=said):
        made(**{name: 2.0}).ring(step, {figure: beyond}, is_trained=False)
    assert made(**{name: 2.0}).ring(step, {figure: beyond}) == []
    assert made(**{name: 2.0}).ring(step, {figure: within}, is_trained=False) == []


def test_a_step_without_an_update_may_be_beyond_a_threshold_that_the_first_was_not():
    """Samples are few: `alarms.steps` in a row say more."""
    watching = made(searches=2.0, steps=2)
    found = [
        watching.ring(step, {"searches": value}, is_trained=False)
        for step, value in enumerate([2.1, 1.9, 2.1], 1)
    ]
    assert found == [[], [], []]


def test_the_state_goes_on():
    watching, again = made(steps=3, searches=1.0, plateau=2), made(steps=3, searches=1.0, plateau=2)
    figures = {"searches": 0.5, "heldout_span_recall": 0.5}
    for step in (2, 3):
        watching.ring(step, figures)
    again.restore(watching.state())
    assert watching.ring(4, figures) == again.ring(4, figures)
    assert {one.name for one in again.ring(5, figures)} == {"searches", "plateau"}


def test_an_alarm_is_told_once_while_it_rings(capsys):
    watching = made(steps=1, grad_norm=5.0)
    for step, value in enumerate([9.0, 9.0, 1.0, 9.0], 2):
        watching.tell(watching.ring(step, {"grad_norm": value}))
    said = capsys.readouterr().err.splitlines()
    assert [line.partition(" is ")[0] for line in said] == ["  alarm: grad_norm: grad_norm"] * 2


def test_actions():
    """Back to the weights that gave the last figures within the threshold, or to the start."""
    ringing = made(steps=2, grad_norm=5.0)
    ringing.ring(4, {"grad_norm": 9.0})
    found = ringing.ring(5, {"grad_norm": 9.0})
    assert made(action="warn").act(5, found, 0) is None
    assert made(action="rollback").act(5, found, 1) == 2
    plateau, early = alarms.Ringing(alarms.PLATEAU, 4, ""), alarms.Ringing("tags", 1, "")
    assert made(action="rollback").act(5, [plateau], 1) == 3
    assert made(action="rollback").act(5, [plateau, early], 1) == 0
    assert made(action="rollback").act(5, [], 1) is None
    with pytest.raises(
        AlarmError, match=r"step 5: grad_norm is 9, above .* \(config\.alarms\.acti"
    ):
        made(action="stop").act(5, found, 0)
    with pytest.raises(AlarmError, match=r"after 2 rollbacks, as many as"):
        made(action="rollback").act(5, found, 2)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"entropy": -1.0}, r"alarms\.entropy is -1; it must be above 0, or 0 for off"),
        ({"steps": 0}, r"steps 0 must be at least 1"),
        ({"rollback_lr": 1.5}, r"rollback_lr 1\.5 above 0 and at most 1"),
        ({"samples": False, "action": "rollback"}, r"which only DAPO has"),
        (
            {"samples": False, "copied": 0.5},
            r"alarms\.copied is 0\.5, .* figure, copied; choices: gr",
        ),
        ({"measures": False, "plateau": 3}, r"plateau is 3, and config\.eval\.every is 0"),
    ],
)
def test_settings_that_cannot_work_are_refused(settings, said):
    with pytest.raises(ConfigError, match=said):
        made(**settings)


def test_rollbacks_are_remembered(tmp_path):
    assert alarms.read_rollbacks(tmp_path) == []
    for step in (9, 12):
        alarms.add_rollback(tmp_path, {"from": step, "to": 4, "why": "x"})
    assert [row["from"] for row in alarms.read_rollbacks(tmp_path)] == [9, 12]

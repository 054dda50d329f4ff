"""What a run is watched by: alarms that could never ring are refused."""

import pytest

from masksearch_jax.core.errors import ConfigError
from masksearch_jax.core.watch_config import AlarmsConfig
from masksearch_jax.rl.watch import check_rings


@pytest.mark.parametrize(
    ("alarms", "kinds", "said"),
    [
        ({"repetition": 0.2}, ["k1"], r"repetition is 0\.2, and config\.rollout\.max_repeats is 0"),
        (
            {"plateau": 3},
            ["questions"],
            r"plateau is 3, and config\.eval\.data has no held-out mask",
        ),
    ],
)
def test_an_alarm_whose_figure_never_moves_is_refused(alarms, kinds, said):
    with pytest.raises(ConfigError, match=said):
        check_rings(AlarmsConfig(**alarms), 0, kinds)
    check_rings(AlarmsConfig(**alarms), 8, ["k2", "questions"])

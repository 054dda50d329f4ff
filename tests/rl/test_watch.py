"""What a run is watched by: alarms that could never ring, or ring at once, are refused."""

import contextlib
import dataclasses
import types

import pytest

from masksearch_jax.core.config import DapoRun, SftRun
from masksearch_jax.core.curriculum_config import LessonsConfig
from masksearch_jax.core.errors import ConfigError
from masksearch_jax.core.schema import to_dataclass
from masksearch_jax.core.watch_config import AlarmsConfig
from masksearch_jax.data.gate import Gate
from masksearch_jax.rl import watch as watch_module
from masksearch_jax.rl.watch import Watch, after_rollbacks, check_rings
from masksearch_jax.runtime import cli
from masksearch_jax.training.supervisor import Survival


class _NoHeldout(contextlib.nullcontext):
    """Stands for held-out examples that are never measured."""

    def kinds(self) -> list[str]:
        return []


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


def test_a_run_that_logs_seldom_looks_at_its_first_step_where_an_alarm_is_on(repository):
    """Or a threshold that no training led to would ring for good, and never be refused."""
    cfg = to_dataclass(SftRun, cli.load_config(f"{repository / 'configs' / 'ramp_sft.py'}:tiny"))
    assert cfg.sft.log_every > 1

    def watching(**alarms) -> Watch:
        gate = Gate(LessonsConfig(), [["a"]], [{"a": 1.0}], [0])
        own = dataclasses.replace(cfg, alarms=AlarmsConfig(**alarms))
        return Watch(own, 30, gate, None, None, None)

    assert [step for step in range(1, 31) if watching(grad_norm=1.0).is_due(step)] == [1]
    assert not any(map(watching().is_due, range(1, 31)))
    with pytest.raises(ConfigError, match=r"grad_norm is 2, .*, 1, in step 1, and no update came"):
        watching(grad_norm=1.0).look(1, None, {"grad_norm": 2.0}, is_trained=False)


@pytest.mark.parametrize(
    ("best", "figures", "said"),
    [
        ("", {"loss": 1.0}, ""),
        (
            "sampled",
            {"sampled": 1.0, "updates": 0.0},
            r"best_metric is sampled, .* before its update, .*; choose heldout_.* such as loss$",
        ),
        ("sample", {"sampled": 1.0, "loss": 1.0}, r"'sample', which .* measure; (?!.*sampled)"),
        ("loss", {"loss": 1.0}, ""),
        ("los", {"loss": 1.0, "lr": 0.1}, r"best_metric is 'los', which .*; did you mean loss"),
        ("grad_norm", {"reward": 1.0}, ""),  # no update came yet, which has it
        ("alarms", {"loss": 1.0, "alarms": ["entropy"]}, r"best_metric is 'alarms', which"),
        ("heldout_recal", {"loss": 1.0}, ""),  # nothing was measured yet
        (
            "heldout_recal",
            {"heldout_recall": 1.0, "heldout_lost": 0.0},
            r"'heldout_recal', .*; did you mean heldout_recall",
        ),
        ("heldout_recall", {"heldout_lost": 0.75, "loss": 1.0}, ""),  # all others were lost
        ("heldout_recall", {"heldout_recall": 1.0, "heldout_lost": 0.0, "loss": 1.0}, ""),
    ],
)
def test_a_best_metric_that_is_not_measured_is_told_once_figures_are_known(
    repository, best, figures, said
):
    cfg = to_dataclass(SftRun, cli.load_config(f"{repository / 'configs' / 'ramp_sft.py'}:tiny"))
    how = dataclasses.replace(cfg.checkpoint, best_metric=best, every=3)
    heldout = dataclasses.replace(cfg.eval, every=3, data="folder")
    gate = Gate(LessonsConfig(), [["a"]], [{"a": 1.0}], [0])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(watch_module, "Heldout", lambda *_: _NoHeldout())
        watch = Watch(
            dataclasses.replace(cfg, checkpoint=how, eval=heldout),
            *(30, gate, None, lambda: None, types.SimpleNamespace(raise_if_stopped=None)),
        )
    with pytest.raises(ConfigError, match=said) if said else contextlib.nullcontext():
        watch.check_best(figures, sampled={"sampled"} & figures.keys())
    assert watch.is_best_told(figures) == (best in figures)


def test_after_rollbacks_the_rate_is_lower_and_the_seed_another(repository):
    cfg = to_dataclass(DapoRun, cli.load_config(f"{repository / 'configs' / 'ramp_dapo.py'}:tiny"))
    assert after_rollbacks(cfg, 0) == cfg
    found = after_rollbacks(cfg, 2)
    assert found.optim.learning_rate == cfg.optim.learning_rate / 4
    assert found.rollout.seed == cfg.rollout.seed + 2
    assert found.dapo == cfg.dapo
    last = dataclasses.replace(cfg, rollout=dataclasses.replace(cfg.rollout, seed=2**32 - 1))
    assert after_rollbacks(last, 2).rollout.seed == 1


def test_the_first_measurement_has_time_to_compile(repository, tmp_path, monkeypatch):
    cfg = to_dataclass(SftRun, cli.load_config(f"{repository / 'configs' / 'ramp_sft.py'}:tiny"))
    survival, limits = Survival(cfg.survival, tmp_path), []
    assert (cfg.survival.startup_seconds, cfg.survival.step_seconds) == (3600, 300)

    class Measured(_NoHeldout):
        def is_due(self, step: int, last: int) -> bool:
            return True

        def measure(self, model: object) -> dict[str, float]:
            survival.raise_if_stopped()  # a tick
            limits.append(survival._watchdog._limit)
            return {}

    monkeypatch.setattr(watch_module, "Heldout", lambda *_: Measured())
    heldout = dataclasses.replace(cfg.eval, every=3, data="folder")
    gate = Gate(LessonsConfig(), [["a"]], [{"a": 1.0}], [0])
    own = dataclasses.replace(cfg, eval=heldout)
    watch = Watch(own, 30, gate, None, lambda: None, survival)
    for step in survival.steps(0, 4, "update"):
        if step >= 2:
            watch.look(step, None, {}, is_trained=True)
    assert limits == [3600, 300]

"""The trainers on a miniature: stopped anywhere, they go on as if nothing had happened."""

import itertools
import os
import re
import time
import types

import pytest

from benchmarks.crash_runs import curve as curves
from masksearch_jax import train_dapo, train_sft
from masksearch_jax.core.errors import ConfigError, Restart
from masksearch_jax.core.retrieval import SearchError
from masksearch_jax.rl.heldout import Heldout
from masksearch_jax.runtime import goodput
from masksearch_jax.runtime.metric_writer import read_metrics
from masksearch_jax.runtime.progress import Progress
from masksearch_jax.search.open import open_tool
from masksearch_jax.training import patience
from masksearch_jax.training.supervisor import Preempted
from tests.mains.train_runs import (
    DAPO_STEPS,
    SFT_STEPS,
    Unsteady,
    at,
    changed,
    measured,
    run_until,
    terminate,
)
from tests.rl import own_rewards


@pytest.fixture(scope="module")
def begun(cached, dapo, tmp_path_factory):
    """The folder of a run cut off after its first step, before a checkpoint; its searches."""
    folder, tool = tmp_path_factory.mktemp("begun"), Unsteady(open_tool(cached.search))
    run_until(1, train_dapo, at(dapo, folder), tool)
    return folder, tool.calls


def test_every_figure_of_a_run_is_explained(sft, dapo, repository):
    page = (repository / "docs" / "metrics.md").read_text(encoding="utf-8")
    written = {name for cfg in (sft, dapo) for row in read_metrics(cfg.workdir) for name in row}
    assert {"agent_nll", "reward", "decode_occupancy"} <= written
    assert sorted(name for name in written if f"`{name}`" not in page) == []


@pytest.mark.slow
def test_tokens_per_second_are_those_of_training(cached, sft, tmp_path, monkeypatch):
    """A measurement of a thousand seconds, where all else takes one."""
    now = itertools.count()
    monkeypatch.setattr(train_sft, "time", types.SimpleNamespace(perf_counter=lambda: next(now)))

    def measure(self, model):
        for _ in range(1000):
            next(now)
        return {"heldout_lost": 0.0}

    monkeypatch.setattr(Heldout, "measure", measure)
    cfg = changed(measured(at(sft, tmp_path), cached, every=2), "sft", steps=4)
    train_sft.run(cfg)
    most = cfg.sft.batch_size * cfg.sft.seq_len
    assert all(most / 4 < row["tokens_per_second"] <= most for row in read_metrics(tmp_path))


# ---- stop and go on


def test_sft_goes_on_bitwise(sft, tmp_path):
    whole = curves(sft.workdir)
    assert [row["step"] for row in whole] == list(range(1, SFT_STEPS + 1))
    assert whole[-1]["loss"] < 0.6 * whole[0]["loss"]
    run_until(37, train_sft, at(sft, tmp_path))
    assert curves(tmp_path) == whole[:37]
    run_until(45, train_sft, at(sft, tmp_path))  # from 30 on
    assert curves(tmp_path) == whole[:45]


def test_dapo_with_live_search_goes_on_bitwise(cached, dapo, tmp_path):
    whole = curves(dapo.workdir)
    assert [row["step"] for row in whole] == list(range(1, DAPO_STEPS + 1))
    assert sum(row["groups_kept"] > 0 for row in whole) >= 2  # steps that updated
    assert min(row["searches"] for row in whole) > 0
    assert max(row["tool_failures"] for row in whole) == 0
    unsteady = Unsteady(open_tool(cached.search))  # the order of results does not matter either
    run_until(3, train_dapo, at(dapo, tmp_path), unsteady)
    assert curves(tmp_path) == whole[:3]
    train_dapo.run(at(dapo, tmp_path), unsteady)
    assert curves(tmp_path) == whole
    assert unsteady.calls > 0


def test_dapo_before_its_first_checkpoint_starts_afresh(dapo, begun):
    folder, _ = begun
    assert curves(folder) == curves(dapo.workdir)[:1]
    run_until(1, train_dapo, at(dapo, folder))
    assert curves(folder) == curves(dapo.workdir)[:1]


@pytest.mark.slow
def test_sft_that_is_told_to_stop_saves_that_step_and_goes_on_bitwise(sft, tmp_path, capsys):
    class Stopped(Progress):
        def update(self, done, **figures):
            super().update(done, **figures)
            if done == 30:
                terminate()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train_sft, "Progress", Stopped)
        with pytest.raises(Preempted):
            train_sft.run(at(sft, tmp_path))
    assert "31" in os.listdir(tmp_path / "checkpoints")  # no multiple of 10: the step under way
    run_until(45, train_sft, at(sft, tmp_path))
    assert curves(tmp_path) == curves(sft.workdir)[:45]
    told = capsys.readouterr().err
    assert re.search(r"goodput [\d.]+% of \d+ s in 2 sessions", told)
    assert told.count(f"  {tmp_path}: 31 of 80 steps are done; goes on from step 31\n") == 1
    found = goodput.summarise(tmp_path)
    parts = (*goodput.BUCKETS, "lost", "down")
    assert sum(found[k] for k in parts) == pytest.approx(found["wall"], rel=0.01)


class Terminates:
    """A search tool during whose n-th call this process is told to stop.

    It takes long: whoever waits for it looks meanwhile whether to stop, however fast all else is.
    """

    def __init__(self, tool, call: int):
        self.tool, self.left = tool, call

    def search(self, queries, top_k):
        self.left -= 1
        if self.left == 0:
            terminate()
            time.sleep(2.0)
        return self.tool.search(queries, top_k)


@pytest.mark.slow
def test_dapo_that_is_told_to_stop_leaves_its_rollouts_and_goes_on_bitwise(
    cached, dapo, begun, tmp_path
):
    _, searches = begun
    tool = Terminates(open_tool(cached.search), searches + 1)  # the first of the second step
    with pytest.raises(Preempted):
        train_dapo.run(at(dapo, tmp_path), tool)
    assert len(curves(tmp_path)) == 1  # the second step did not end
    assert "1" in os.listdir(tmp_path / "checkpoints")
    train_dapo.run(at(dapo, tmp_path), tool)
    assert curves(tmp_path) == curves(dapo.workdir)


@pytest.mark.slow
def test_dapo_that_is_told_to_stop_while_it_waits_for_a_reward_goes_on_the_same(
    dapo, tmp_path, monkeypatch
):
    class Met(train_dapo.RewardPool):
        def wait(self, pending):
            own_rewards.met.set()
            super().wait(pending)

    monkeypatch.setattr(train_dapo, "RewardPool", Met)
    own_rewards.asked.clear()
    own_rewards.like.append(dapo.dapo)
    own_rewards.stops.append(lambda: len(read_metrics(tmp_path)) == 1)  # within the second step
    cfg = changed(at(dapo, tmp_path), "dapo", reward="tests.rl.own_rewards:as_ours_and_stops")
    with pytest.raises(Preempted):
        train_dapo.run(cfg)
    assert (own_rewards.stops, own_rewards.asked) == ([], [])
    assert len(curves(tmp_path)) == 1
    assert "1" in os.listdir(tmp_path / "checkpoints")
    train_dapo.run(cfg)
    found, expected = (
        [
            {name: row.get(name) for name in ("loss", "grad_norm", "reward")}
            for row in curves(folder)
        ]
        for folder in (tmp_path, dapo.workdir)
    )
    assert found == expected


# ---- search down, nothing to learn


class Down:
    """A search tool that fails from its n-th call on, while it is down."""

    def __init__(self, tool, call: int):
        self.tool, self.left, self.down = tool, call, True

    def search(self, queries, top_k):
        self.left -= 1
        if self.left <= 0 and self.down:
            raise SearchError("scripted failure")
        return self.tool.search(queries, top_k)


@pytest.mark.slow
def test_a_step_whose_searches_fail_is_sampled_again_bitwise(
    cached, dapo, begun, tmp_path, monkeypatch
):
    tool, shown = Down(open_tool(cached.search), begun[1] + 1), []

    class Patient(train_dapo.Patience):
        def wait(self, tell):
            tell(1.0)
            tool.down = len(shown) < 3
            return True

    class Shown(Progress):
        def update(self, done, **figures):
            super().update(done, **figures)
            if "search" in figures:
                shown.append((done, figures["search"]))
            elif done == 2:
                raise KeyboardInterrupt

    monkeypatch.setattr(train_dapo, "Patience", Patient)
    monkeypatch.setattr(train_dapo, "Progress", Shown)
    with pytest.raises(KeyboardInterrupt):
        train_dapo.run(at(dapo, tmp_path), tool)
    assert curves(tmp_path) == curves(dapo.workdir)[:2]
    assert [done for done, _ in shown] == [1, 1, 1]
    said = r"down, again in 1 s \((\d+) of \1 searches failed: SearchError: scripted failure\)"
    assert all(re.fullmatch(said, text) for _, text in shown)


@pytest.mark.slow
def test_a_search_tool_that_stays_down_ends_the_run_which_goes_on_later(
    cached, dapo, begun, tmp_path, monkeypatch
):
    monkeypatch.setattr(patience, "_LONGEST", 0.02)
    monkeypatch.setattr(patience, "_LOOK", 0.01)
    cfg = changed(at(dapo, tmp_path), "survival", tool_outage_seconds=0.1)
    tool = Down(open_tool(cached.search), begun[1] + 1)
    said = r"down for 0\.1 s \(config\.survival\.tool_outage_seconds\) in step 2: (\d+) of \1"
    with pytest.raises(train_dapo.ToolOutageError, match=said) as error:
        train_dapo.run(cfg, tool)
    assert isinstance(error.value, Restart)
    assert len(curves(tmp_path)) == 1
    assert "1" in os.listdir(tmp_path / "checkpoints")
    tool.down = False
    run_until(2, train_dapo, cfg, tool)
    assert curves(tmp_path) == curves(dapo.workdir)[:2]


def test_waits_double_and_end(monkeypatch):
    """What a step sampled before its first wait, however long, is none of it."""
    now, slept, told = 0.0, [], []

    def sleep(seconds):
        nonlocal now
        now += seconds
        slept.append(seconds)

    monkeypatch.setattr(patience.time, "monotonic", lambda: now)
    monkeypatch.setattr(patience.time, "sleep", sleep)
    waiting, ends, checks = patience.Patience(200.0, lambda: checks.append(now)), [], []
    now = sampled = 700.0
    while waiting.wait(told.append):
        ends.append(now - sampled)
    assert ends == [1, 3, 7, 15, 31, 63, 123, 183, 243]
    assert set(slept) == {0.5}
    assert told[:3] == [1.0, 0.5, 2.0]
    assert len(checks) == len(told) == 2 * 243


def test_a_run_with_nothing_to_learn_from_says_so_and_is_no_success(dapo, tmp_path, capsys):
    cfg = changed(at(dapo, tmp_path), "dapo", accuracy_threshold=2.0, warn_after=2, patience=20)
    with pytest.raises(train_dapo.NothingLearnedError, match=r"4 steps are done and none updated"):
        train_dapo.train(cfg)
    lines = [x for x in capsys.readouterr().err.splitlines() if "nothing to learn from" in x]
    assert len(lines) == 1
    said = (
        r"in 2 steps: no group had .* \(accuracy 0\.\d{3}, reward -?0\.\d{3}, deviation within .*\)"
    )
    assert re.search(said, lines[0])
    assert "lower dapo.accuracy_threshold" in lines[0]
    with pytest.raises(train_dapo.NothingLearnedError):  # nor is it when nothing is left to do
        train_dapo.train(cfg)
    capsys.readouterr()
    assert train_dapo.train(changed(cfg, "dapo", patience=0))["all_updates"] == 0
    told = capsys.readouterr().err
    assert f"  {tmp_path}: 4 of 4 steps are done; nothing is left to do\n" in told
    assert "\n  nothing was learned: 4 steps are done and none updated" in told
    assert train_dapo.run(dapo)["all_updates"] >= 2


def test_a_run_without_updates_ends_when_its_patience_does(dapo, tmp_path, capsys):
    settings = {"accuracy_threshold": 2.0, "max_refills": 1, "patience": 3}
    hopeless = changed(at(dapo, tmp_path), "dapo", **settings)
    hopeless = changed(hopeless, "checkpoint", best_metric="grad_norm", every=1)  # never measured
    run_until(2, train_dapo, hopeless)  # the step before is counted when it goes on
    said = r"nothing to learn from in 3 steps: .*keep_by to spread.* \(dapo\.patience\)"
    with pytest.raises(train_dapo.NothingLearnedError, match=said):
        train_dapo.run(hopeless)
    assert [row["updates"] for row in curves(tmp_path)] == [0, 0, 0]
    assert "3" in os.listdir(tmp_path / "checkpoints")


@pytest.mark.slow
def test_the_best_step_by_a_figure_of_updates_is_found_though_a_step_has_none(
    dapo, tmp_path, monkeypatch
):
    """Which is no candidate: it has the weights of the one before."""
    cfg = changed(at(dapo, tmp_path), "checkpoint", every=1, keep=1, best_metric="grad_norm")
    real = train_dapo.Update.__call__

    def update(self, state, kept, step):
        return real(self, state, kept if step == 0 else [], step)

    monkeypatch.setattr(train_dapo.Update, "__call__", update)
    train_dapo.run(cfg)
    rows = read_metrics(tmp_path)
    assert ["grad_norm" in row for row in rows] == [True] + [False] * (DAPO_STEPS - 1)
    kept = {name for name in os.listdir(tmp_path / "checkpoints") if name.isdigit()}
    assert kept == {"1", str(DAPO_STEPS)}


def test_a_figure_of_what_a_step_samples_tells_no_best_step(dapo, tmp_path):
    """It is of the weights before the step's update, and these are not those that are saved."""
    cfg = changed(at(dapo, tmp_path), "checkpoint", every=1, best_metric="reward")
    with pytest.raises(ConfigError, match=r"best_metric is reward, .* before its update"):
        train_dapo.run(cfg)
    assert not [name for name in os.listdir(tmp_path / "checkpoints") if name.isdigit()]


def test_a_typo_in_the_metric_of_the_best_step_is_told_after_the_first_update(sft, dapo, tmp_path):
    """Not with the first checkpoint, which may be hours later."""
    for main, cfg in ((train_sft, sft), (train_dapo, dapo)):
        folder = tmp_path / main.__name__
        typo = changed(at(cfg, folder), "checkpoint", every=3, best_metric="grad_nrm")
        with pytest.raises(ConfigError, match=r"'grad_nrm', which this run does not .*grad_norm"):
            main.run(typo)
        assert not [name for name in os.listdir(folder / "checkpoints") if name.isdigit()]

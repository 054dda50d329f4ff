"""The trainers on a miniature: stopped anywhere, they go on as if nothing had happened."""

import dataclasses
import gzip
import itertools
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
import types

import jax
import numpy as np
import pytest

from benchmarks import crash_runs
from benchmarks.crash_runs import Cluster
from benchmarks.crash_runs import curve as curves
from masksearch_jax import export_hf, train_dapo, train_sft
from masksearch_jax.agents.judge import JudgeError
from masksearch_jax.core import rows
from masksearch_jax.core.config import DapoRun, LoraConfig, MeshConfig, SftRun
from masksearch_jax.core.errors import ConfigError, Restart
from masksearch_jax.core.jsonl import read_jsonl, write_jsonl
from masksearch_jax.core.retrieval import SearchError
from masksearch_jax.core.tokenizer import Vocab, train_bpe
from masksearch_jax.core.types import Passage, QAExample, RampExample, Span, Trajectory
from masksearch_jax.data.cache import CacheError
from masksearch_jax.models.load import InitError, check_vocabulary, initial
from masksearch_jax.parallel.sharding import MeshError, make_mesh
from masksearch_jax.rl import advantages, rewards
from masksearch_jax.rl import groups as groups_lib
from masksearch_jax.rl.heldout import Heldout
from masksearch_jax.rl.left_out import LeftOutError
from masksearch_jax.runtime import goodput
from masksearch_jax.runtime.metric_writer import read_metrics
from masksearch_jax.runtime.process import RESTART
from masksearch_jax.runtime.progress import Progress
from masksearch_jax.search.open import open_tool
from masksearch_jax.search.tool import FakeSearch
from masksearch_jax.testing.services import Answer, Endpoint, in_turn
from masksearch_jax.training import alarms, patience
from masksearch_jax.training.alarms import AlarmError
from masksearch_jax.training.checkpoint_files import CheckpointError
from masksearch_jax.training.run_folder import open_run_folder
from masksearch_jax.training.supervisor import Preempted
from tests.rl import own_rewards

SFT_STEPS, DAPO_STEPS = 80, 4


@pytest.fixture(scope="module")
def cached(miniature, repository):
    """The miniature with its cache: the one process here that imports TensorFlow."""
    cfg = miniature.cfg
    train = read_jsonl(miniature.data / "ramp" / "train.jsonl", RampExample)
    easy = [
        QAExample(f"easy:{e.id}", "easy", e.paragraph, ("million", "Africa"))
        for e in train[:40]  # that a policy of a few updates gets right now and then
    ]
    questions = miniature.data / "questions" / "train.jsonl"
    write_jsonl(questions, [*read_jsonl(questions, QAExample), *easy])
    values = {
        "folder": miniature.data,
        "cache": miniature.cache,
        "tokenizer": miniature.tokenizer,
        "prompt.style": cfg.prompt.style,
        "max_len": cfg.sft.seq_len,
        "max_prompt_len": cfg.rollout.max_len // 2,
    }
    command = [sys.executable, "-m", "masksearch_jax.build_cache"]
    command += [f"--config={repository / 'configs' / 'build_cache.py'}"]
    command += [f"--config.{name}={value}" for name, value in values.items()]
    subprocess.run(command, check=True, cwd=repository)
    return miniature


def sft_config(run, workdir) -> SftRun:
    cfg = crash_runs.sft_run(run, workdir, SFT_STEPS, heartbeat_seconds=30)
    curriculum = "0:ramp_sft_k1,30:ramp_sft_upto2"
    return dataclasses.replace(
        cfg,
        sft=dataclasses.replace(cfg.sft, curriculum=curriculum, context_loss_weight=0.1),
        checkpoint=dataclasses.replace(cfg.checkpoint, every=10),
    )


def dapo_config(run, workdir, init) -> DapoRun:
    cfg = crash_runs.dapo_run(run, workdir, init, DAPO_STEPS, heartbeat_seconds=30)
    curriculum = "0:qa_easy,2:ramp_qa_mixed"
    return dataclasses.replace(
        cfg,
        dapo=dataclasses.replace(cfg.dapo, group_size=8, micro_batch=16, curriculum=curriculum),
        checkpoint=dataclasses.replace(cfg.checkpoint, every=2),
    )


def run_until(step: int, main, *args) -> None:
    """Runs a main that is interrupted once `step` steps are done and logged."""

    class Interrupted(Progress):
        def update(self, done, **figures):
            super().update(done, **figures)
            if done == step:
                raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(main, "Progress", Interrupted)
        with pytest.raises(KeyboardInterrupt):
            main.run(*args)


class Unsteady:
    """A search tool whose every call takes another time."""

    def __init__(self, tool):
        self.tool, self.random, self.calls = tool, random.Random(0), 0

    def search(self, queries, top_k):
        self.calls += 1
        time.sleep(self.random.random() * 0.03)
        return self.tool.search(queries, top_k)


@pytest.fixture(scope="module")
def sft(cached, one_device, tmp_path_factory):
    """The config of a whole SFT run, which has been run."""
    cfg = sft_config(cached, tmp_path_factory.mktemp("sft"))
    train_sft.run(cfg)
    return cfg


@pytest.fixture(scope="module")
def dapo(cached, sft, tmp_path_factory):
    """The config of a whole DAPO run on it, which has been run."""
    folder = tmp_path_factory.mktemp("dapo")
    cfg = dapo_config(cached, folder, os.path.join(sft.workdir, "checkpoints"))
    train_dapo.run(cfg)
    return cfg


def at(cfg, workdir):
    return dataclasses.replace(cfg, workdir=str(workdir))


def test_every_figure_of_a_run_is_explained(sft, dapo, repository):
    page = (repository / "docs" / "metrics.md").read_text(encoding="utf-8")
    written = {name for cfg in (sft, dapo) for row in read_metrics(cfg.workdir) for name in row}
    assert {"agent_nll", "reward", "decode_occupancy"} <= written
    assert sorted(name for name in written if f"`{name}`" not in page) == []


# ---- stop and go on


def test_sft_goes_on_bitwise(sft, tmp_path):
    whole = curves(sft.workdir)
    assert [row["step"] for row in whole] == list(range(1, SFT_STEPS + 1))
    assert whole[-1]["loss"] < 0.6 * whole[0]["loss"]
    run_until(37, train_sft, at(sft, tmp_path))
    assert curves(tmp_path) == whole[:37]
    train_sft.run(at(sft, tmp_path))
    assert curves(tmp_path) == whole
    assert train_sft.run(at(sft, tmp_path)) == {"all_updates": SFT_STEPS}  # nothing is left to do
    assert curves(tmp_path) == whole


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


def test_dapo_with_sources_that_cannot_be_hidden_is_refused(dapo, tmp_path):
    """Also where the curriculum begins with questions, which hide nothing."""
    hiding = dataclasses.replace(dapo.search, exclude_source=True)
    tool = FakeSearch(lambda query: [Passage("wiki-1", "Title", "Text")])
    with pytest.raises(SearchError, match=r"can hide nothing: .* gave \['wiki-1'\]"):
        train_dapo.run(dataclasses.replace(at(dapo, tmp_path), search=hiding), tool)
    assert not (tmp_path / "checkpoints").exists()


def test_dapo_before_its_first_checkpoint_starts_afresh(dapo, tmp_path):
    for _ in range(2):
        run_until(1, train_dapo, at(dapo, tmp_path))
        assert curves(tmp_path) == curves(dapo.workdir)[:1]


def terminate(*_: object) -> None:
    """What a scheduler does to a host that it wants back."""
    os.kill(os.getpid(), signal.SIGTERM)


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
    train_sft.run(at(sft, tmp_path))
    assert curves(tmp_path) == curves(sft.workdir)
    assert re.search(r"goodput [\d.]+% of \d+ s in 2 sessions", capsys.readouterr().err)
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


def test_dapo_that_is_told_to_stop_leaves_its_rollouts_and_goes_on_bitwise(cached, dapo, tmp_path):
    calls = Unsteady(open_tool(cached.search))
    run_until(1, train_dapo, at(dapo, tmp_path / "one"), calls)
    tool = Terminates(open_tool(cached.search), calls.calls + 1)  # the first of the second step
    with pytest.raises(Preempted):
        train_dapo.run(at(dapo, tmp_path), tool)
    assert len(curves(tmp_path)) == 1  # the second step did not end
    assert "1" in os.listdir(tmp_path / "checkpoints")
    train_dapo.run(at(dapo, tmp_path), tool)
    assert curves(tmp_path) == curves(dapo.workdir)


def read_tensorboard(workdir) -> dict[int, dict[str, float]]:
    """Step → figures, by TensorBoard's own reader; a step that is there twice is an error."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.util import tensor_util

    events = EventAccumulator(os.path.join(workdir, "tensorboard"), size_guidance={"tensors": 0})
    found: dict[int, dict[str, float]] = {}
    for name in events.Reload().Tags()["tensors"]:
        for event in events.Tensors(name):
            row = found.setdefault(event.step, {})
            assert name not in row
            row[name] = float(tensor_util.make_ndarray(event.tensor_proto))
    return found


def rollouts(workdir, step: int) -> list[dict]:
    with gzip.open(os.path.join(workdir, "rollouts", f"{step}.jsonl.gz"), "rt") as file:
        return [json.loads(line) for line in file]


def check_tensorboard(workdir) -> None:
    """TensorBoard has the figures of metrics.jsonl, whose rows have times that rise."""
    rows, found = read_metrics(workdir), read_tensorboard(workdir)
    assert list(found) == [row["step"] for row in rows]
    for row in rows:
        figures = {k: v for k, v in row.items() if k not in ("step", "wall_time")}
        assert found[row["step"]] == pytest.approx(figures, rel=1e-6)
    assert np.diff([row["wall_time"] for row in rows]).min() >= 0


@pytest.mark.slow  # imports TensorFlow
def test_rollouts_and_tensorboard_have_what_a_stopped_run_has_and_change_nothing(dapo, tmp_path):
    cfg = changed(at(dapo, tmp_path), "dapo", keep_rollouts=1.0)
    cfg = changed(cfg, "log", to=("jsonl", "tensorboard"))
    run_until(3, train_dapo, cfg)
    cut = rollouts(tmp_path, 3)
    train_dapo.run(cfg)
    assert curves(tmp_path) == curves(dapo.workdir)
    check_tensorboard(tmp_path)
    again = rollouts(tmp_path, 3)
    for name in ("group", "sample", "ids", "logprobs", "trainer_logprobs", "advantage", "reward"):
        assert [x[name] for x in again] == [x[name] for x in cut]
    for row in curves(tmp_path):
        found = rollouts(tmp_path, row["step"])
        assert len(found) == row["groups_sampled"] * dapo.dapo.group_size
        assert np.mean([x["reward"]["total"] for x in found]) == pytest.approx(row["reward"])
        trained = [x for x in found if x["trained"]]
        assert len(trained) == row["groups_kept"] * dapo.dapo.group_size
        if not trained:
            continue
        gaps, tokens = 0.0, 0
        for x in trained:
            if x["trainer_logprobs"]:
                sampled = np.asarray(x["sampled"])
                gap = np.asarray(x["trainer_logprobs"]) - np.asarray(x["logprobs"])
                gaps, tokens = gaps + np.abs(gap[sampled]).sum(), tokens + sampled.sum()
        assert tokens == row["loss_weight"]
        assert gaps / tokens < 1e-4
        by_group = {}
        for x in trained:
            by_group.setdefault(x["group"], []).append(x["advantage"])
        assert max(abs(np.sum(gains)) for gains in by_group.values()) < 1e-4
        assert {"example", "turns", "segments", "tokens", "version", "status"} <= set(trained[0])


# ---- held-out examples, lessons that listen, alarms


def measured(cfg, cached, **settings):
    """The config with a few held-out examples of each kind."""
    given = {"every": 2, "data": str(cached.data), "examples": 2} | settings
    rollout, prompt = cached.cfg.rollout, cached.cfg.prompt
    cfg = dataclasses.replace(cfg, search=cached.search, rollout=rollout, prompt=prompt)
    return changed(changed(cfg, "eval", **given), "rollout", slots=8, max_new_tokens=96)


def run_until_measurement(number: int, main, *args) -> None:
    """Runs a main that is told to stop within the `number`-th measurement of held-out examples."""
    real, calls = Heldout.measure, []

    def measure(self, model):
        calls.append(model)
        if len(calls) == number:
            terminate()
        return real(self, model)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Heldout, "measure", measure)
        with pytest.raises(Preempted):
            main.run(*args)
    assert len(calls) == number


def without(rows, *prefixes):
    return [{k: v for k, v in row.items() if not k.startswith(prefixes)} for row in rows]


@pytest.mark.slow  # imports TensorFlow
def test_sft_is_measured_on_held_out_examples_which_changes_nothing(cached, sft, tmp_path):
    cfg = measured(at(sft, tmp_path), cached, every=30)
    cfg = changed(cfg, "log", to=("jsonl", "tensorboard"))
    cfg = changed(cfg, "checkpoint", every=30, best_metric="heldout_format_rate", keep=1)
    run_until_measurement(1, train_sft, cfg)
    assert [row["step"] for row in curves(tmp_path)] == list(range(1, 30))
    train_sft.run(cfg)
    check_tensorboard(tmp_path)
    rows = curves(tmp_path)
    assert without(rows, "heldout_") == curves(sft.workdir)
    due = [row for row in rows if any(name.startswith("heldout_") for name in row)]
    assert [row["step"] for row in due] == [30, 60, 80]
    names = {"heldout_k1_span_recall", "heldout_questions_recall", "heldout_lost"}
    assert all(names <= set(row) for row in due)
    best = max(row["heldout_format_rate"] for row in due)
    best_steps = {str(row["step"]) for row in due if row["heldout_format_rate"] == best}
    kept = {name for name in os.listdir(tmp_path / "checkpoints") if name.isdigit()}
    assert "80" in kept
    assert kept & best_steps


@pytest.mark.slow
def test_lessons_of_sft_wait_for_their_gate_and_go_on_bitwise(cached, sft, tmp_path):
    cfg = measured(at(sft, tmp_path), cached, every=5)
    cfg = changed(cfg, "lessons", by="gated", threshold=1.0, floor=1, ceiling=10, keep_earlier=0.2)
    cfg = changed(cfg, "sft", steps=16)
    train_sft.run(cfg)
    rows = curves(tmp_path)
    lessons = [row["lesson"] for row in rows]
    assert lessons == sorted(lessons)
    assert lessons[0] == 0
    assert lessons[-1] == 1  # by the gate, or by its ceiling
    run_until_measurement(2, train_sft, at(cfg, tmp_path / "cut"))
    train_sft.run(at(cfg, tmp_path / "cut"))
    assert curves(tmp_path / "cut") == rows


@pytest.mark.slow
def test_dapo_makes_up_for_a_measurement_that_a_stop_cut_off(cached, dapo, tmp_path):
    """Though no step is left to do; and the best step is known by it."""
    cfg = changed(at(dapo, tmp_path), "eval", every=DAPO_STEPS, data=str(cached.data), examples=2)
    cfg = changed(cfg, "checkpoint", every=DAPO_STEPS, best_metric="heldout_format_rate")
    run_until_measurement(1, train_dapo, cfg)
    assert curves(tmp_path) == curves(dapo.workdir)[:-1]
    metrics = tmp_path / "checkpoints" / str(DAPO_STEPS) / "metrics" / "metrics"
    assert not metrics.exists()
    train_dapo.run(cfg)
    rows = curves(tmp_path)
    assert without(rows, "heldout_") == curves(dapo.workdir)
    rate = rows[-1]["heldout_format_rate"]
    assert json.loads(metrics.read_text()) == {"heldout_format_rate": rate}


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


@pytest.mark.slow
def test_a_reward_that_pays_for_length_trips_the_first_alarm(cached, dapo, tmp_path):
    """Answers grow over those of the first step, which is the same whatever is paid for."""
    first = curves(dapo.workdir)[0]["answer_length"]
    cfg = changed(at(dapo, tmp_path), "dapo", steps=12, reward="tests.rl.own_rewards:length")
    cfg = changed(changed(cfg, "dapo", curriculum="0:qa_easy"), "optim", learning_rate=3e-3)
    cfg = changed(cfg, "alarms", answer_length=1.2 * first, action="stop", steps=2)
    with pytest.raises(
        AlarmError, match=r"answer_length is .*, above config\.alarms\.answer_length"
    ):
        train_dapo.train(cfg)
    last = curves(tmp_path)[-1]
    assert last["alarms"] == ["answer_length"]
    assert last["answer_length"] > 1.2 * first


@pytest.mark.slow
def test_with_passages_at_random_searches_fall_and_trip_their_alarm(dapo, tmp_path):
    """A search of questions that need none takes room from the answer, and earns nothing."""
    cfg = changed(at(dapo, tmp_path), "search", kind="random")
    cfg = changed(cfg, "dapo", steps=12, curriculum="0:qa_easy")
    cfg = changed(cfg, "optim", learning_rate=3e-3)
    cfg = changed(cfg, "alarms", searches=0.5, action="stop", steps=2)
    with pytest.raises(AlarmError, match=r"searches is .*, below config\.alarms\.searches, 0\.5"):
        train_dapo.train(cfg)
    first, *_, last = curves(tmp_path)
    assert last["alarms"] == ["searches"]
    assert last["searches"] < 0.5 * first["searches"]
    assert last["no_search"] > first["no_search"]


@pytest.mark.slow
def test_a_rollback_goes_back_to_before_the_alarm_and_on_with_less(cached, dapo, tmp_path):
    """An alarm that always rings, from the second step on: back once, then the run ends."""
    cfg = changed(at(dapo, tmp_path), "checkpoint", every=1, keep=4)
    cfg = changed(cfg, "optim", schedule="constant", warmup_steps=0)
    cfg = changed(cfg, "alarms", tags=1e-9, steps=2, action="rollback", rollbacks=1)
    real = alarms.Alarms.ring

    def ring(self, step, figures):
        return real(self, step, figures) if step > 1 else []

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(alarms.Alarms, "ring", ring)
        with pytest.raises(AlarmError, match=r"after 1 rollbacks, as many as config\.alarms"):
            train_dapo.train(cfg)
    (back,) = alarms.read_rollbacks(tmp_path)
    assert (back["from"], back["to"]) == (3, 1)
    rows, before = read_metrics(tmp_path), read_metrics(dapo.workdir)
    assert [row["step"] for row in rows] == [1, 2, 3]
    assert [row.get("rollbacks") for row in rows] == [None, 1, 1]
    assert rows[0]["reward"] == before[0]["reward"]
    assert rows[1]["reward"] != before[1]["reward"]  # sampled by another seed
    rates = [row["lr"] for row in rows[1:] if "lr" in row]
    assert rates == pytest.approx([cfg.optim.learning_rate / 2] * len(rates))


@pytest.mark.slow
def test_prompts_that_teach_nothing_rest(dapo, tmp_path):
    cfg = changed(at(dapo, tmp_path), "dapo", steps=3, rest_steps=2, curriculum="0:qa_easy")
    run_until(2, train_dapo, cfg)
    train_dapo.run(cfg)
    rows = curves(tmp_path)
    assert rows[-1]["prompts_known"] >= rows[0]["prompts_known"] > 0
    assert max(row["prompts_resting"] for row in rows) > 0
    whole = at(cfg, tmp_path / "whole")
    train_dapo.run(whole)
    assert curves(whole.workdir) == rows


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


@pytest.fixture
def second_step(cached, dapo, tmp_path):
    """The number of the first search of the second step."""
    calls = Unsteady(open_tool(cached.search))
    run_until(1, train_dapo, at(dapo, tmp_path / "one"), calls)
    return calls.calls + 1


def test_a_step_whose_searches_fail_is_sampled_again_bitwise(
    cached, dapo, tmp_path, second_step, monkeypatch
):
    tool, shown = Down(open_tool(cached.search), second_step), []

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

    monkeypatch.setattr(train_dapo, "Patience", Patient)
    monkeypatch.setattr(train_dapo, "Progress", Shown)
    train_dapo.run(at(dapo, tmp_path), tool)
    assert curves(tmp_path) == curves(dapo.workdir)
    assert [done for done, _ in shown] == [1, 1, 1]
    said = r"down, again in 1 s \((\d+) of \1 searches failed: SearchError: scripted failure\)"
    assert all(re.fullmatch(said, text) for _, text in shown)


def test_a_search_tool_that_stays_down_ends_the_run_which_goes_on_later(
    cached, dapo, tmp_path, second_step, monkeypatch
):
    monkeypatch.setattr(patience, "_LONGEST", 0.02)
    monkeypatch.setattr(patience, "_LOOK", 0.01)
    cfg = changed(at(dapo, tmp_path), "survival", tool_outage_seconds=0.1)
    tool = Down(open_tool(cached.search), second_step)
    said = r"down for 0\.1 s \(config\.survival\.tool_outage_seconds\) in step 2: (\d+) of \1"
    with pytest.raises(train_dapo.ToolOutageError, match=said) as error:
        train_dapo.run(cfg, tool)
    assert isinstance(error.value, Restart)
    assert len(curves(tmp_path)) == 1
    assert "1" in os.listdir(tmp_path / "checkpoints")
    tool.down = False
    train_dapo.run(cfg, tool)
    assert curves(tmp_path) == curves(dapo.workdir)


def test_waits_double_and_end(monkeypatch):
    now, slept, told = 0.0, [], []

    def sleep(seconds):
        nonlocal now
        now += seconds
        slept.append(seconds)

    monkeypatch.setattr(patience.time, "monotonic", lambda: now)
    monkeypatch.setattr(patience.time, "sleep", sleep)
    waiting, ends, checks = patience.Patience(200.0, lambda: checks.append(now)), [], []
    while waiting.wait(told.append):
        ends.append(now)
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
        r"in 2 steps: no group had .* \(accuracy 0\.\d{3}, reward 0\.\d{3}, deviation within .*\)"
    )
    assert re.search(said, lines[0])
    assert "lower dapo.accuracy_threshold" in lines[0]
    with pytest.raises(train_dapo.NothingLearnedError):  # nor is it when nothing is left to do
        train_dapo.train(cfg)
    capsys.readouterr()
    assert train_dapo.train(changed(cfg, "dapo", patience=0))["all_updates"] == 0
    assert "\n  nothing was learned: 4 steps are done and none updated" in capsys.readouterr().err
    assert train_dapo.run(dapo)["all_updates"] >= 2


def test_a_run_without_updates_ends_when_its_patience_does(dapo, tmp_path, capsys):
    hopeless = changed(at(dapo, tmp_path), "dapo", accuracy_threshold=2.0, patience=3)
    hopeless = changed(hopeless, "checkpoint", best_metric="grad_norm", every=1)  # never measured
    run_until(2, train_dapo, hopeless)  # the step before is counted when it goes on
    said = r"nothing to learn from in 3 steps: .*keep_by to spread.* \(dapo\.patience\)"
    with pytest.raises(train_dapo.NothingLearnedError, match=said):
        train_dapo.run(hopeless)
    assert [row["updates"] for row in curves(tmp_path)] == [0, 0, 0]
    assert "3" in os.listdir(tmp_path / "checkpoints")


def test_the_best_step_by_a_figure_of_updates_is_found_though_a_step_has_none(
    dapo, tmp_path, monkeypatch
):
    """A step without an update has the weights, and so the value, of the one before."""
    cfg = changed(at(dapo, tmp_path), "checkpoint", every=1, best_metric="grad_norm")
    real = train_dapo.Update.__call__

    def update(self, state, kept):
        return real(self, state, kept if int(state.step) == 0 else [])

    monkeypatch.setattr(train_dapo.Update, "__call__", update)
    train_dapo.run(cfg)
    rows = read_metrics(tmp_path)
    assert sum("grad_norm" in row for row in rows) == 1
    assert len(rows) == DAPO_STEPS
    typo = changed(at(dapo, tmp_path / "typo"), "checkpoint", every=1, best_metric="grad_nrm")
    with pytest.raises(CheckpointError, match=r"'grad_nrm', which this run does not .*grad_norm"):
        train_dapo.run(typo)


def test_prompts_that_leave_no_room_are_left_out_before_anything_is_loaded(dapo, tmp_path, capsys):
    none = changed(at(dapo, tmp_path), "rollout", max_len=16, page_tokens=8)
    with pytest.raises(CacheError, match=r"no prompt of fewer than 16 tokens \(rollout\.max_len\)"):
        train_dapo.run(dataclasses.replace(none, init="nowhere"))
    lengths = np.load(os.path.join(dapo.data, "qa_easy-train", "lengths.npy"))
    limit = int(np.sort(lengths)[-3])  # the three longest, if no others are as long
    longest = int((lengths >= limit).sum())
    assert longest < len(lengths) - 4
    some = changed(changed(none, "rollout", max_len=limit), "dapo", curriculum="0:qa_easy")
    some = dataclasses.replace(some, init="nowhere")
    few = rf"{longest} of {len(lengths)} prompts leave no room .*{limit}, more than .*=0\.01 allow"
    with pytest.raises(LeftOutError, match=few):
        train_dapo.run(some)
    assert not (tmp_path / "left_out.jsonl").exists()
    with pytest.raises(InitError, match="nowhere"):
        train_dapo.run(changed(some, "dapo", max_bad_fraction=1.0))
    listed = [json.loads(line) for line in (tmp_path / "left_out.jsonl").read_text().splitlines()]
    assert len(listed) == longest
    assert {row["id"].partition(":")[0] for row in listed} == {"easy"}
    assert {row["reason"] for row in listed} == {"prompt_too_long"}
    assert capsys.readouterr().err.endswith(
        f"  {longest} of {len(lengths)} prompts are left out, prompt_too_long: they leave no room "
        f"to answer in rollout.max_len {limit}; their ids: {tmp_path / 'left_out.jsonl'}\n"
    )


def changed(cfg, part, **changes):
    return dataclasses.replace(cfg, **{part: dataclasses.replace(getattr(cfg, part), **changes)})


def test_a_run_goes_on_with_the_settings_that_made_its_folder(sft, tmp_path, capsys):
    shutil.copytree(sft.workdir, tmp_path, dirs_exist_ok=True)
    moved = tmp_path / "cache"
    shutil.copytree(sft.data, moved)
    cfg = dataclasses.replace(at(sft, tmp_path), data=str(moved))
    train_sft.run(changed(cfg, "sft", log_every=7))
    told = capsys.readouterr().err
    assert f"settings changed: workdir: {sft.workdir!r} → {cfg.workdir!r}; data: " in told
    assert "; sft.log_every: " in told
    before = (tmp_path / "run.json").read_text()
    faster = changed(cfg, "optim", learning_rate=0.5)
    rate = rf"\(optim\.learning_rate: {sft.optim.learning_rate} → 0\.5\), which change its result"
    with pytest.raises(ConfigError, match=rate):
        train_sft.run(faster)
    assert (tmp_path / "run.json").read_text() == before
    train_sft.run(changed(faster, "survival", changed="accept"))
    found = json.loads((tmp_path / "run.json").read_text())
    assert found["config"]["optim"]["learning_rate"] == 0.5
    assert [len(s["changed"]) > 0 for s in found["sessions"]] == [False, True, True]


def test_a_longer_run_is_the_same_only_at_a_constant_learning_rate(sft, tmp_path):
    assert sft.optim.schedule == "cosine"
    shutil.copytree(sft.workdir, tmp_path, dirs_exist_ok=True)
    cfg = at(sft, tmp_path)
    with pytest.raises(ConfigError, match=r"\(sft\.steps: 80 → 90\)"):
        open_run_folder(changed(cfg, "sft", steps=90), "sft.steps")
    constant = changed(cfg, "optim", schedule="constant")
    open_run_folder(changed(constant, "survival", changed="accept"), "sft.steps")
    open_run_folder(changed(constant, "sft", steps=90), "sft.steps")


def test_before_its_first_checkpoint_a_run_may_still_change(sft, tmp_path):
    cfg = at(sft, tmp_path)
    open_run_folder(cfg, "sft.steps")
    open_run_folder(changed(cfg, "optim", learning_rate=0.5), "sft.steps")
    found = json.loads((tmp_path / "run.json").read_text())
    assert found["config"]["optim"]["learning_rate"] == 0.5
    assert len(found["sessions"]) == 1


@pytest.mark.slow
def test_adapters_go_on_bitwise_in_both_trainers(sft, dapo, tmp_path):
    """Adapters on the weights of `sft`, then new ones on these for reinforcement learning."""
    kept = dataclasses.replace(sft.checkpoint, every=2)
    first = dataclasses.replace(
        sft,
        init=os.path.join(sft.workdir, "checkpoints"),
        sft=dataclasses.replace(sft.sft, steps=6),
        checkpoint=kept,
        lora=LoraConfig(rank=4, alpha=8.0),
    )
    second = dataclasses.replace(
        dapo, init=str(tmp_path / "sft" / "whole" / "checkpoints"), lora=first.lora
    )
    for name, main, cfg in (("sft", train_sft, first), ("dapo", train_dapo, second)):
        whole, cut = tmp_path / name / "whole", tmp_path / name / "cut"
        main.run(at(cfg, whole))
        run_until(3, main, at(cfg, cut))
        main.run(at(cfg, cut))
        assert curves(cut) == curves(whole)
        others = dataclasses.replace(at(cfg, whole), lora=LoraConfig())
        with pytest.raises(ConfigError, match=r"other settings \(lora\.rank: 4 → 0"):
            main.run(others)
        others = dataclasses.replace(
            others, survival=dataclasses.replace(cfg.survival, changed="accept")
        )
        with pytest.raises(CheckpointError, match=r"rank 4 stored, config\.lora asks for all"):
            main.run(others)
    updated = [row for row in curves(tmp_path / "dapo" / "whole") if row["groups_kept"]]
    assert updated
    assert all(row["sampler_gap_max"] < 1e-4 for row in updated)
    mesh = train_sft.make_mesh(sft.mesh)
    merged, base = (
        initial(folder, sft.model, sft.compute, mesh, 0)
        for folder in (str(tmp_path / "dapo" / "whole" / "checkpoints"), second.init)
    )
    assert not np.array_equal(merged.blocks.q[...], base.blocks.q[...])
    np.testing.assert_array_equal(merged.embedding[...], base.embedding[...])


# ---- as commands


def command(cfg, folder) -> subprocess.CompletedProcess:
    """What `python -m masksearch_jax.train_dapo` prints and ends with."""
    file = folder / "config.py"
    settings = dataclasses.asdict(cfg)
    lines = ["from ml_collections import ConfigDict", "", "", "def get_config():"]
    file.write_text("\n".join([*lines, f"    return ConfigDict({settings!r})", ""]))
    asked = [sys.executable, "-m", "masksearch_jax.train_dapo", f"--config={file}"]
    env = os.environ | {"JAX_NUM_CPU_DEVICES": "1"}
    root = crash_runs.ROOT
    return subprocess.run(
        asked, cwd=root, env=env, capture_output=True, text=True, check=False, timeout=300
    )


def error_of(done: subprocess.CompletedProcess) -> str:
    assert "Traceback" not in done.stderr
    return done.stderr.splitlines()[-1]


@pytest.mark.slow  # a process
def test_the_command_is_no_success_where_no_step_updated(dapo, tmp_path):
    cfg = changed(at(dapo, tmp_path / "run"), "dapo", accuracy_threshold=2.0, steps=2)
    done = command(cfg, tmp_path)
    assert error_of(done).startswith("error: 2 steps are done and none updated the weights: no gr")
    assert done.returncode == 1


@pytest.mark.slow
def test_sft_of_two_processes_is_stopped_moved_to_one_killed_and_moved_back(sft, tmp_path):
    """The same mesh in any number of processes: the same curve and weights, bit by bit.

    Its updates are of two micro-batches.
    """
    assert sft.optim.accumulate == 2
    cfg = dataclasses.replace(
        sft,
        sft=dataclasses.replace(sft.sft, steps=40),
        checkpoint=dataclasses.replace(sft.checkpoint, every=1),
    )
    assert Cluster(at(cfg, tmp_path / "whole"), 1).wait(400) == [0]

    def session(count: int, rows: int) -> Cluster:
        cluster = Cluster(at(cfg, tmp_path / "cut"), count)
        while cluster.is_running() and len(curves(tmp_path / "cut")) < rows:
            time.sleep(0.01)
        return cluster

    stopped = session(2, 5)
    stopped.signal(signal.SIGTERM, 1)
    assert stopped.wait(100) == [RESTART, RESTART]
    assert "process 0 of 2 on" in stopped.text()
    killed = session(1, len(curves(tmp_path / "cut")) + 5)
    killed.signal(signal.SIGKILL, 0)
    assert killed.wait(100) == [-signal.SIGKILL]
    assert 10 <= len(curves(tmp_path / "cut")) < 40
    assert session(2, 40).wait(400) == [0, 0]
    assert curves(tmp_path / "cut") == curves(tmp_path / "whole")
    weights = [np_weights(tmp_path / name, cfg) for name in ("whole", "cut")]
    assert weights[0] == weights[1]


def np_weights(workdir, cfg: SftRun) -> list[bytes]:
    mesh = train_sft.make_mesh(cfg.mesh)
    model = initial(str(workdir / "checkpoints"), cfg.model, cfg.compute, mesh, 0)
    return [np.asarray(x).tobytes() for x in jax.tree.leaves(model)]


@pytest.mark.slow
@pytest.mark.parametrize("in_flight", ["drop", "rebuild"])
def test_two_processes_train_on_the_rollouts_of_one(dapo, tmp_path, in_flight):
    rollout = dataclasses.replace(dapo.rollout, in_flight=in_flight)
    settings = dapo.dapo
    if in_flight == "rebuild":
        settings = dataclasses.replace(settings, oversample=2.0)
    cfg = dataclasses.replace(dapo, rollout=rollout, dapo=settings)
    assert Cluster(at(cfg, tmp_path / "2"), 2).wait(400) == [0, 0]
    if in_flight == "drop":  # killed between two checkpoints, it goes on bitwise
        cluster = Cluster(at(cfg, tmp_path / "cut"), 2)
        while cluster.is_running() and len(curves(tmp_path / "cut")) < 3:
            time.sleep(0.01)
        cluster.signal(signal.SIGKILL, 1)
        first = cluster.wait(100)[0]  # JAX may be the first to see it, and aborts
        assert first in (RESTART, -signal.SIGABRT), cluster.text()
        assert Cluster(at(cfg, tmp_path / "cut"), 2).wait(400) == [0, 0]
        assert curves(tmp_path / "cut") == curves(tmp_path / "2")
    alone, together = read_metrics(dapo.workdir), read_metrics(tmp_path / "2")
    assert len(together) == DAPO_STEPS
    if in_flight == "drop":  # the same prompts, streams and weights: the same samples
        for name in ("reward", "answer", "format", "searches", "sampled_tokens", "groups_sampled"):
            assert together[0][name] == pytest.approx(alone[0][name], abs=1e-6)
    updated = [row for row in together if row["groups_kept"]]
    assert updated
    assert (
        max(row["sampler_gap"] for row in updated if row["step"] == 1 or "drop" in in_flight) < 1e-3
    )


def test_weights_are_read_without_a_warning(sft, caplog):
    mesh = train_sft.make_mesh(sft.mesh)
    checkpoints = os.path.join(sft.workdir, "checkpoints")
    before = sorted(os.listdir(checkpoints))
    initial(checkpoints, sft.model, sft.compute, mesh, 0)
    assert [r.getMessage() for r in caplog.records if r.levelname != "INFO"] == []
    assert sorted(os.listdir(checkpoints)) == before


# ---- refusals


def test_a_checkpoint_of_another_model_is_refused_by_field(sft, dapo):
    model = dataclasses.replace(sft.model, intermediate_size=64, qkv_bias=False)
    differing = r"another model: intermediate_size: 128 stored, 64 asked for; qkv_bias: True stored"
    for main, cfg in ((train_sft, sft), (train_dapo, dapo)):
        before = curves(cfg.workdir)
        with pytest.raises(ConfigError, match=r"model\.intermediate_size: 128 → 64; .* result"):
            main.run(dataclasses.replace(cfg, model=model))
        accepting = changed(cfg, "survival", changed="accept")
        with pytest.raises(CheckpointError, match=differing):
            main.run(dataclasses.replace(accepting, model=model))
        assert curves(cfg.workdir) == before


def test_data_of_another_tokenizer_or_style_are_refused(sft, dapo, tmp_path):
    other = train_bpe(["other text"], tmp_path / "tokenizer", 300)
    for main, cfg in ((train_sft, sft), (train_dapo, dapo)):
        with pytest.raises(CacheError, match=r"was built with tokenizer .* rebuild the cache"):
            main.run(dataclasses.replace(cfg, tokenizer=str(other)))
        small = dataclasses.replace(cfg.model, vocab_size=511)
        with pytest.raises(InitError, match=r"ids up to 511, but config\.model\.vocab_size is 511"):
            main.run(dataclasses.replace(cfg, model=small))
    with pytest.raises(CacheError, match="prompt style 'minimal', the run has 'chat'"):
        train_dapo.run(
            dataclasses.replace(dapo, prompt=dataclasses.replace(dapo.prompt, style="chat"))
        )


def test_weights_of_another_tokenizer_of_equal_size_are_refused(sft, tmp_path):
    """One of other ids, not one of another folder, template or end of sequence."""
    own = Vocab.load(sft.tokenizer)
    moved = tmp_path / "moved"
    shutil.copytree(sft.tokenizer, moved)
    (moved / "chat_template.jinja").write_text("{{ messages }}")
    texts = [chr(97 + i % 26) * (2 + i // 26) for i in range(26 * 30)]
    other = train_bpe(texts, tmp_path / "other", own.size)
    assert Vocab.load(other).size == own.size
    checkpoints = os.path.join(sft.workdir, "checkpoints")
    newest = os.path.join(checkpoints, max(os.listdir(checkpoints), key=int))
    for source in (checkpoints, newest):
        check_vocabulary(sft.model, Vocab.load(moved), str(moved), source)
        said = f"tokenizer {sft.tokenizer!r} (ids {own.ids_fingerprint}), config.tokenizer is "
        with pytest.raises(CheckpointError, match=re.escape(f"{said}{str(other)!r}")):
            check_vocabulary(sft.model, Vocab.load(other), str(other), source)
    cfg = export_hf.ExportRun(
        checkpoint=checkpoints,
        folder=str(tmp_path / "exported"),
        tokenizer=str(other),
        model=sft.model,
    )
    with pytest.raises(CheckpointError, match="give the tokenizer of these weights"):
        export_hf.run(cfg)


def test_a_batch_that_does_not_divide_is_refused_at_the_start(sft, tmp_path):
    optim = dataclasses.replace(sft.optim, accumulate=3)
    with pytest.raises(ConfigError, match=r"batch_size is 8; it must be a multiple of 3: 3 micro"):
        train_sft.run(dataclasses.replace(at(sft, tmp_path), optim=optim))
    none = dataclasses.replace(sft.optim, accumulate=0)
    with pytest.raises(ConfigError, match=r"optim\.accumulate is 0; it must be at least 1"):
        train_sft.run(dataclasses.replace(at(sft, tmp_path), optim=none))
    assert not (tmp_path / "checkpoints").exists()


@pytest.mark.parametrize(
    ("section", "change", "message"),
    [
        ("rollout", {"temperature": 0.0}, r"config\.rollout\.temperature is 0\.0; .* above 0"),
        ("dapo", {"micro_batch": 7}, r"groups × group_size = 32 .* micro-batches of 7"),
        ("dapo", {"micro_batch": -1}, r"do not divide into 1 minibatches of micro-batches of -1"),
        ("dapo", {"minibatches": 0}, r"do not divide into 0 minibatches"),
        ("dapo", {"overlong_buffer": 9999}, r"overlong_buffer is 9999; .* 0\.\..*new_tokens, \d+$"),
        ("dapo", {"group_size": 1}, r"config\.dapo\.group_size is 1; it must be at least 2"),
        (
            "optim",
            {"accumulate": 2},
            r"optim\.accumulate is 2; of DAPO it must be 1: .*micro_batch",
        ),
        (
            "dapo",
            {"groups": 4096},
            r"mixture 'qa_easy' has \d+ prompts; config\.dapo\.groups is 4096",
        ),
        ("dapo", {"curriculum": "0:ramp_k9"}, r"no mixture or task 'ramp_k9'; nearest"),
    ],
)
def test_settings_that_cannot_work_are_refused(dapo, tmp_path, section, change, message):
    changed = dataclasses.replace(getattr(dapo, section), **change)
    with pytest.raises((ConfigError, CacheError), match=message):
        train_dapo.run(dataclasses.replace(at(dapo, tmp_path), **{section: changed}))


def test_dapo_refuses_micro_batches_that_the_parts_of_a_mesh_do_not_divide(dapo):
    says = r"micro-batches of 16 over the 3 shards that the mesh splits a batch into"
    three, eight = (make_mesh(MeshConfig(n, 1, 1), jax.devices()[:n]) for n in (3, 8))
    with pytest.raises(ConfigError, match=says):
        train_dapo.check_settings(dapo.dapo, dapo.rollout, three)
    train_dapo.check_settings(dapo.dapo, dapo.rollout, eight)


def test_rows_that_the_mesh_cannot_split_in_time_are_refused_at_the_start(sft, dapo):
    mesh = make_mesh(MeshConfig(1, 1, 1, context=5), jax.devices()[:5])
    with pytest.raises(MeshError, match=r"rows of \d+ tokens do not divide over mesh.context 5"):
        train_sft.check_batch(sft, mesh)
    with pytest.raises(MeshError, match=r"choose a length that is a multiple of 10"):
        train_dapo.check_settings(dapo.dapo, dapo.rollout, mesh)


# ---- rewards


@pytest.mark.parametrize("workers", [1, 3])
def test_a_reward_of_ones_own_trains_as_ours_does(dapo, tmp_path, workers):
    """The same curve, whatever the number of workers that compute the rewards."""
    own_rewards.like.append(dapo.dapo)
    reward = {"reward": "tests.rl.own_rewards:as_ours", "reward_workers": workers}
    train_dapo.run(changed(at(dapo, tmp_path), "dapo", **reward))
    same = ("loss", "reward", "accuracy", "format", "coverage", "groups_kept", "grad_norm")
    found, expected = (
        [{name: row.get(name) for name in same} for row in curves(folder)]
        for folder in (tmp_path, dapo.workdir)
    )
    assert found == expected


def test_a_judge_that_dies_stops_a_run_which_goes_on_and_asks_nothing_twice(
    dapo, tmp_path, monkeypatch
):
    monkeypatch.setattr(patience, "_LONGEST", 0.02)
    monkeypatch.setattr(patience, "_LOOK", 0.01)
    yes, no = (f'{{"reason": "so", "verdict": "{v}"}}' for v in ("correct", "incorrect"))

    def verdict(request):
        asked = request["messages"][-1]["content"]
        known, _, answer = asked.partition("Known:")[2].partition("Answer:")
        is_right = all(line.partition(". ")[2] in answer for line in known.split("\n") if line)
        return Answer(yes if is_right or "million" in asked else no)

    with Endpoint(in_turn(verdict, Answer(status=500))) as endpoint:
        cfg = changed(at(dapo, tmp_path / "run"), "survival", tool_outage_seconds=0.1)
        cfg = changed(cfg, "dapo", steps=2, reward="judge", patience=0)
        calls = {"base_url": endpoint.url, "retries": 0, "cache": str(tmp_path / "replies")}
        cfg = changed(cfg, "judge", **calls)
        said = r"the judge was down for 0\.1 s .* in step 1: \d+ of \d+ verdicts failed: example "
        with pytest.raises(train_dapo.ToolOutageError, match=said):
            train_dapo.run(cfg)
        endpoint.script = verdict
        train_dapo.run(cfg)
        asked = [request["messages"][-1]["content"] for request in endpoint.paid]
    assert len(asked) == len(set(asked)) > 0
    rows = read_metrics(tmp_path / "run")
    assert [row["step"] for row in rows] == [1, 2]
    for row in rows:
        assert 0 <= row["judge_agreement"] <= 1
        assert row["judge_unreadable"] == row["reward_failures"] == 0
        assert row["reward_seconds"] >= 0 <= row["reward_wait_seconds"]


@pytest.mark.slow
def test_a_model_that_is_trained_may_judge_itself(dapo, tmp_path):
    """This one says nothing that can be read: no run scores by it."""
    cfg = changed(at(dapo, tmp_path), "dapo", reward="judge", steps=1)
    cfg = changed(cfg, "judge", own_model=True, max_tokens=4)
    with pytest.raises(ConfigError, match=r"max_len is \d+; the judge.s prompt of \d+ tokens"):
        train_dapo.run(cfg)
    cfg = changed(cfg, "rollout", max_len=1024)
    said = r"the judge \(the model itself, config\.judge\.own_model\) was shown .* no verdict "
    with pytest.raises(JudgeError, match=said):
        train_dapo.run(cfg)
    assert not read_metrics(tmp_path)


def test_a_run_whose_rewards_fail_is_refused_at_the_start(dapo, tmp_path):
    cfg = changed(at(dapo, tmp_path), "dapo", reward="tests.rl.own_rewards:raises")
    said = r"config\.dapo\.reward is '.*:raises', which gives no reward for example \S+: KeyError"
    with pytest.raises(ConfigError, match=said):
        train_dapo.run(cfg)
    assert not os.listdir(tmp_path)
    cfg = changed(at(dapo, tmp_path), "dapo", reward="judge")
    with pytest.raises(ConfigError, match=r"config\.judge\.base_url is empty"):
        train_dapo.run(cfg)


# ---- the batch of DAPO

EXAMPLE = RampExample("e", "p", "t", "A [mask].", "A b.", (Span(2, 3, "b", "TERM"),))


def trajectory(sampled: list[int], status: str, sample: int) -> Trajectory:
    """Ids 10, 11, …; the log-probability of a sampled id is -id / 100."""
    ids, drawn = 10 + np.arange(len(sampled), dtype=np.int32), np.asarray(sampled, np.bool_)
    logprobs = np.where(drawn, -ids / 100, 0).astype(np.float32)
    versions = drawn.astype(np.int32) - 1
    return Trajectory("e", sample, ids, logprobs, drawn, versions, 1, (), (), status)


def make_group(rows: list[tuple[list[int], str, float]]) -> groups_lib.Group:
    made = [trajectory(sampled, status, i) for i, (sampled, status, _) in enumerate(rows)]
    return groups_lib.Group(EXAMPLE, made, [rewards.RewardTerms(r, r, 0.0, r) for *_, r in rows])


@pytest.fixture
def groups():
    mixed = make_group(
        [
            ([0, 1, 1, 0, 1], "answered", 1.0),
            ([0, 1, 1], "tool_failure", 0.0),
            ([0, 0, 1, 1], "out_of_tokens", 0.0),
        ]
    )
    fails = make_group(
        [([0, 1], "answered", 1.0), ([0, 1], "tool_failure", 0.0), ([0, 1], "answered", 1.0)]
    )
    return [mixed, fails]


def test_tool_failures_neither_train_nor_make_spread(dapo, groups):
    settings = dataclasses.replace(dapo.dapo, group_size=3, overlong_penalty=0.0)
    total, valid, keep = groups_lib.score_groups(groups, settings, dapo.rollout)
    assert valid.tolist() == [[True, False, True], [True, False, True]]
    assert keep.tolist() == [True, False]  # in the second only the failure differs
    advantage = advantages.group_advantages(total, valid)
    assert advantage[0, 1] == 0
    np.testing.assert_allclose(advantage[0, [0, 2]], [2**-0.5, -(2**-0.5)], atol=1e-5)
    samples = groups_lib.to_tokens(groups[:1], advantage[:1], valid[:1], 5)
    asked = [tokens["loss_mask"].astype(int).tolist() for tokens in samples]
    assert asked == [[1, 1, 0, 1], [], [0, 1, 1], [], []]
    filtered = dataclasses.replace(settings, overlong_filter=True)
    _, valid, keep = groups_lib.score_groups(groups, filtered, dapo.rollout)
    assert (valid[0].tolist(), keep[0]) == ([True, False, False], False)


def test_a_batch_holds_each_token_as_the_target_of_the_one_before(groups):
    advantage = np.asarray([[0.5, 0.0, -0.5]], np.float32)
    samples = groups_lib.to_tokens(groups[:1], advantage, np.ones((1, 3), bool), 4)
    batch = rows.lay([[tokens] for tokens in samples], 6, groups_lib.DAPO_FIELDS)
    assert batch["ids"][0].tolist() == [10, 11, 12, 13, 0, 0]
    assert batch["targets"][0].tolist() == [11, 12, 13, 14, 0, 0]
    assert batch["positions"][0].tolist() == [0, 1, 2, 3, 0, 0]
    assert batch["segment_ids"][0].tolist() == [1, 1, 1, 1, 0, 0]
    np.testing.assert_allclose(batch["logp_sampler"][0], [-0.11, -0.12, 0, -0.14, 0, 0], atol=1e-7)
    gains = [[0.5] * 4 + [0.0] * 2, [0.0] * 6, [-0.5] * 3 + [0.0] * 3, [0.0] * 6]
    assert batch["advantages"].tolist() == gains
    assert not batch["loss_mask"][3].any()
    assert not batch["segment_ids"][3].any()
    for t, row in zip(groups[0].trajectories, batch["loss_mask"], strict=False):
        assert row.sum() == t.sampled.sum()


def test_overlong_samples_lose_reward(dapo, groups):
    settings = dataclasses.replace(dapo.dapo, group_size=3, overlong_buffer=2, overlong_penalty=0.5)
    rollout = dataclasses.replace(dapo.rollout, max_new_tokens=3)
    total, _, _ = groups_lib.score_groups(groups[:1], settings, rollout)
    np.testing.assert_allclose(total, [[1.0 - 0.5, -0.25, -0.25]])


def test_sampler_and_trainer_agree_on_every_token(dapo):
    """Of a step's own tokens; those of groups carried over are an update older."""
    updated = [row for row in curves(dapo.workdir) if row["groups_kept"]]
    own = [row for row in updated if not row["groups_carried"]]
    assert own
    assert all(row["staleness_max"] == 0 and row["sampler_gap_max"] < 1e-3 for row in own)
    assert all(row["ratio"] == 1.0 for row in updated)  # one update per step: on policy
    assert all(row["updates"] == 1 for row in updated)

"""What a training run may do besides: logs, held-out examples, lessons, alarms, adapters."""

import dataclasses
import gzip
import json
import os
import re

import numpy as np
import pytest

from benchmarks.crash_runs import curve as curves
from masksearch_jax import train_dapo, train_sft
from masksearch_jax.agents.judge import JudgeError
from masksearch_jax.core.config import LoraConfig
from masksearch_jax.core.errors import ConfigError
from masksearch_jax.models.load import initial
from masksearch_jax.runtime.metric_writer import read_metrics
from masksearch_jax.training import alarms
from masksearch_jax.training.alarms import AlarmError
from masksearch_jax.training.checkpoint_files import CheckpointError
from tests.mains.train_runs import (
    DAPO_STEPS,
    at,
    changed,
    measured,
    run_until,
    run_until_measurement,
)

pytestmark = pytest.mark.slow


# ---- logs


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
        paid = row["reward"] + row["overlong"]  # before what length takes off
        assert np.mean([x["reward"]["total"] for x in found]) == pytest.approx(paid)
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


def without(rows, *prefixes):
    return [{k: v for k, v in row.items() if not k.startswith(prefixes)} for row in rows]


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


def test_lessons_of_dapo_wait_for_their_gate_and_go_on_bitwise(cached, dapo, tmp_path):
    cfg = changed(at(dapo, tmp_path), "eval", every=1, data=str(cached.data), examples=2)
    cfg = changed(changed(cfg, "dapo", curriculum="0:ramp_k1,1:ramp_k2"), "checkpoint", every=2)
    cfg = changed(changed(cfg, "dapo", keep_by="spread"), "lessons", by="gated", threshold=1.0)
    cfg = changed(cfg, "lessons", ceiling=3)
    train_dapo.run(cfg)
    rows = curves(tmp_path)
    assert [row["lesson"] for row in rows] == [0, 0, 0, 1]
    assert [row["lesson_steps"] for row in rows] == [1, 2, 3, 1]
    assert sum(row["updates"] for row in rows) > 0
    run_until_measurement(3, train_dapo, at(cfg, tmp_path / "cut"))
    train_dapo.run(at(cfg, tmp_path / "cut"))
    assert curves(tmp_path / "cut") == rows


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


def rung(workdir) -> set[str]:
    """The alarms that a run rang, each in the metrics of its step."""
    return {name for row in read_metrics(workdir) for name in row.get("alarms", [])}


def test_a_policy_that_collapses_trips_the_alarms_of_decay(cached, dapo, tmp_path, capsys):
    """A learning rate far too high; a coarse cache parts the sampler from the trainer."""
    cfg = measured(at(dapo, tmp_path), cached, every=1, examples=1)
    settings = {"keep_by": "spread", "reward": "tests.rl.own_rewards:by_sample"}
    cfg = changed(cfg, "dapo", steps=4, curriculum="0:ramp_qa_mixed", **settings)
    cfg = changed(cfg, "rollout", kv_dtype="int8", max_repeats=4, slots=16)
    cfg = changed(cfg, "optim", learning_rate=0.3)
    limits = {"entropy": 2.0, "repetition": 0.2, "searches": 0.5, "thoughts": 0.6}
    limits |= {"diversity": 0.13, "sampler_gap": 0.0035, "grad_norm": 0.6, "plateau": 2}
    cfg = changed(cfg, "alarms", steps=1, **limits)
    train_dapo.train(cfg)
    assert rung(tmp_path) == set(limits)
    said = capsys.readouterr().err
    assert {x.split(": ")[1] for x in said.splitlines() if x.startswith("  alarm: ")} == set(limits)
    assert re.search(r"DAPO: in .*  alarm .*searches", said)


def test_a_reward_that_pays_for_tags_trips_the_alarms_of_form(dapo, tmp_path):
    cfg = changed(at(dapo, tmp_path), "dapo", steps=4, reward="tests.rl.own_rewards:tags")
    cfg = changed(cfg, "dapo", curriculum="0:qa_easy", keep_by="spread")
    cfg = changed(cfg, "optim", learning_rate=3e-3)
    limits = {"answers": 2.0, "tags": 3.0, "invalid": 1.6}
    cfg = changed(cfg, "alarms", steps=1, **limits)
    train_dapo.train(cfg)
    assert rung(tmp_path) == set(limits)


def test_a_rollback_goes_back_to_weights_from_before_the_alarm_and_on_with_less(dapo, tmp_path):
    """A step shows what the weights of the step before do: these are not gone back to.

    The reward is as before, so that the alarm rings again, and the run ends.
    """
    cfg = changed(at(dapo, tmp_path), "checkpoint", every=1, keep=9)
    cfg = changed(cfg, "dapo", steps=9, reward="tests.rl.own_rewards:tags", keep_by="spread")
    cfg = changed(cfg, "dapo", curriculum="0:qa_easy")
    cfg = changed(cfg, "optim", learning_rate=1.5e-3, schedule="constant", warmup_steps=0)
    cfg = changed(cfg, "alarms", answers=2.0, steps=1, action="rollback", rollbacks=1)
    with pytest.raises(AlarmError, match=r"after 1 rollbacks, as many as config\.alarms"):
        train_dapo.train(cfg)
    (back,) = alarms.read_rollbacks(tmp_path)
    assert back["to"] == max(0, back["from"] - 2)
    rows = read_metrics(tmp_path)
    assert [row["step"] for row in rows] == [*range(1, len(rows) + 1)]
    after = rows[back["to"] :]
    assert [row.get("rollbacks") for row in rows] == [None] * back["to"] + [1] * len(after)
    assert [row["lr"] for row in rows] == pytest.approx(
        [1.5e-3] * back["to"] + [0.75e-3] * len(after)
    )
    rang = re.match(r"answers_opened is (\S+), above", back["why"])[1]
    assert after[0]["answers_opened"] < float(rang)
    assert after[-1]["answers_opened"] > 2


def test_prompts_that_teach_nothing_rest(dapo, tmp_path):
    settings = {"steps": 3, "rest_steps": 2, "curriculum": "0:qa_easy", "max_refills": 1}
    cfg = changed(at(dapo, tmp_path / "cut"), "dapo", **settings)
    cfg = changed(cfg, "checkpoint", every=1)
    run_until(2, train_dapo, cfg)
    train_dapo.run(cfg)
    rows = curves(cfg.workdir)
    assert rows[-1]["prompts_known"] >= rows[0]["prompts_known"] > 0
    assert max(row["prompts_resting"] for row in rows) > 0
    whole = at(cfg, tmp_path / "whole")
    train_dapo.run(whole)
    assert curves(whole.workdir) == rows


# ---- adapters, a judge of one's own


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

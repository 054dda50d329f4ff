"""Settings of the trainers: which are refused, which may change, and rewards of all kinds."""

import dataclasses
import json
import os
import re
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest

from benchmarks.crash_runs import curve as curves
from masksearch_jax import export_hf, train_dapo, train_sft
from masksearch_jax.core import rows
from masksearch_jax.core.config import MeshConfig
from masksearch_jax.core.errors import ConfigError
from masksearch_jax.core.files import BeingWrittenError
from masksearch_jax.core.retrieval import SearchError
from masksearch_jax.core.tokenizer import Vocab, train_bpe
from masksearch_jax.core.types import Passage, RampExample, Span, Trajectory
from masksearch_jax.data.cache import CacheError, Manifest
from masksearch_jax.models import hf
from masksearch_jax.models.load import InitError, check_vocabulary, initial
from masksearch_jax.parallel.sharding import MeshError, make_mesh
from masksearch_jax.rl import advantages, rewards
from masksearch_jax.rl import groups as groups_lib
from masksearch_jax.rl.left_out import LeftOutError
from masksearch_jax.rl.nothing_learned import NothingLearnedError
from masksearch_jax.runtime.metric_writer import read_metrics
from masksearch_jax.search.tool import FakeSearch
from masksearch_jax.testing.services import Answer, Endpoint, in_turn
from masksearch_jax.training import patience
from masksearch_jax.training.checkpoint_files import CheckpointError
from masksearch_jax.training.run_folder import open_run_folder
from tests.mains.train_runs import SFT_STEPS, at, changed
from tests.parallel.lock_holder import held
from tests.rl import own_rewards


def test_dapo_with_sources_that_cannot_be_hidden_is_refused(dapo, tmp_path):
    """Also where the curriculum begins with questions, which hide nothing."""
    hiding = dataclasses.replace(dapo.search, exclude_source=True)
    tool = FakeSearch(lambda query: [Passage("wiki-1", "Title", "Text")])
    with pytest.raises(SearchError, match=r"can hide nothing: .* gave \['wiki-1'\]"):
        train_dapo.run(dataclasses.replace(at(dapo, tmp_path), search=hiding), tool)
    assert not (tmp_path / "checkpoints").exists()


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


# ---- a run that goes on


def test_a_run_goes_on_with_the_settings_that_made_its_folder(sft, tmp_path, capsys):
    shutil.copytree(sft.workdir, tmp_path, dirs_exist_ok=True)
    moved = tmp_path / "cache"
    shutil.copytree(sft.data, moved)
    cfg = dataclasses.replace(at(sft, tmp_path), data=str(moved))
    found = train_sft.run(changed(cfg, "sft", log_every=7))  # nothing is left to do
    assert found == {"all_updates": SFT_STEPS, "skipped": 0}
    assert curves(tmp_path) == curves(sft.workdir)
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


def test_a_folder_that_another_process_trains_in_is_left_alone(sft, dapo, tmp_path):
    """A second start cut back the metrics of the first and removed its checkpoint under way."""
    for main, cfg in ((train_sft, sft), (train_dapo, dapo)):
        run = tmp_path / main.__name__
        shutil.copytree(cfg.workdir, run)
        under_way = run / "checkpoints" / "90.orbax-checkpoint-tmp"
        under_way.mkdir()
        (run / "metrics.jsonl").write_text((run / "metrics.jsonl").read_text() + '{"step": 90}\n')
        before = {p: p.stat().st_size for p in run.rglob("*")}
        with held(run) as other, pytest.raises(BeingWrittenError) as error:
            main.run(at(cfg, run))
        assert str(error.value).startswith(f"{run} is in use by process {other.pid} on far.example")
        (run / ".lock").unlink()
        assert {p: p.stat().st_size for p in run.rglob("*")} == before
        main.run(at(cfg, run))
        assert not under_way.exists()
        assert not (run / ".lock").exists()


class Loaded(Exception):
    """A run has come to where it loads the weights that it starts from."""


def test_what_a_penalty_compares_with_stays_the_same(dapo, tmp_path, monkeypatch, capsys):
    """Though more steps come to the folder of `init`; the step itself must stay as it is."""
    source, init, run = Path(dapo.init), tmp_path / "init", tmp_path / "run"
    first, later = sorted((p.name for p in source.iterdir() if p.name.isdigit()), key=int)
    shutil.copytree(source / first, init / first)
    cfg = dataclasses.replace(at(dapo, run), init=str(init))
    compares = changed(cfg, "dapo", kl="k3", kl_weight=0.1)
    loaded = []

    def note(init, *_):
        loaded.append(init)
        raise Loaded

    def begin(asked):
        with pytest.raises(Loaded):
            train_dapo.run(asked)

    monkeypatch.setattr(train_dapo, "initial", note)
    begin(compares)
    shutil.copytree(Path(dapo.workdir) / "checkpoints", run / "checkpoints")  # it has gone on
    shutil.copytree(source / later, init / later)
    begin(compares)
    moved = shutil.copytree(init, tmp_path / "moved")
    begin(dataclasses.replace(compares, init=str(moved)))
    assert loaded == [f"{init}/{first}", f"{init}/{first}", f"{moved}/{first}"]
    assert f"settings changed: init: '{init}' → '{moved}'\n" in capsys.readouterr().err

    other = dataclasses.replace(compares, init=str(shutil.copytree(init, tmp_path / "other")))
    shutil.rmtree(tmp_path / "other" / first)
    shutil.copytree(source / later, tmp_path / "other" / first)
    with pytest.raises(ConfigError, match=rf"\(init: '{moved}' → '{other.init}'\), which change"):
        train_dapo.run(other)
    shutil.rmtree(moved / first)
    with pytest.raises(ConfigError) as error:
        train_dapo.run(dataclasses.replace(compares, init=str(moved)))
    assert str(error.value) == (
        f"config.init is '{moved}', which no longer holds step {first}: the run began with that "
        "step and compares with it (config.dapo.kl); put the step back, or go on with another "
        "one by --config.survival.changed=accept"
    )
    accepting = changed(other, "survival", changed="accept")
    begin(accepting)
    shutil.rmtree(tmp_path / "other" / first)
    begin(accepting)
    shutil.copytree(init / first, tmp_path / "other" / first)
    begin(accepting)
    # Goes on by its own weights alone.
    begin(changed(accepting, "dapo", kl="none", kl_weight=0.0))
    assert loaded[3:] == [f"{other.init}/{step}" for step in (first, later, later, later)]


def test_weights_are_read_without_a_warning(sft, caplog):
    mesh = train_sft.make_mesh(sft.mesh)
    checkpoints = os.path.join(sft.workdir, "checkpoints")
    before = sorted(os.listdir(checkpoints))
    initial(checkpoints, sft.model, sft.compute, mesh, 0)
    assert [r.getMessage() for r in caplog.records if r.levelname != "INFO"] == []
    assert sorted(os.listdir(checkpoints)) == before


# ---- refusals


def test_a_checkpoint_of_another_model_is_refused_by_field(sft, dapo, tmp_path):
    model = dataclasses.replace(sft.model, intermediate_size=64, qkv_bias=False)
    differing = r"another model: intermediate_size: 128 stored, 64 asked for; qkv_bias: True stored"
    for main, cfg in ((train_sft, sft), (train_dapo, dapo)):
        cfg = at(cfg, shutil.copytree(cfg.workdir, tmp_path / main.__name__))
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
        style = dataclasses.replace(cfg.prompt, style="chat")
        with pytest.raises(CacheError, match="prompt style 'minimal', the run has 'chat'"):
            main.run(dataclasses.replace(cfg, prompt=style))


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
    exported = tmp_path / "hf"
    mesh = make_mesh(sft.mesh)
    model = initial(checkpoints, sft.model, sft.compute, mesh, 0)
    hf.save(model, exported, tokenizer_dir=sft.tokenizer)
    check_vocabulary(sft.model, Vocab.load(moved), str(moved), str(exported))
    said = f"holds a tokenizer of other ids than config.tokenizer, {str(other)!r}: give the"
    with pytest.raises(InitError, match=re.escape(said)):
        check_vocabulary(sft.model, Vocab.load(other), str(other), str(exported))
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


def test_sft_whose_every_update_was_left_out_is_no_success(sft, tmp_path, monkeypatch, capsys):
    """Nor is it when the run is done and started again."""
    real = train_sft.initial

    def spoilt(*args):
        return jax.tree.map(lambda x: x * np.nan, real(*args))

    monkeypatch.setattr(train_sft, "initial", spoilt)
    cfg = changed(changed(at(sft, tmp_path), "sft", steps=3), "survival", guard="skip")
    for _ in range(2):
        with pytest.raises(NothingLearnedError, match=r"3 steps are done and none updated the wei"):
            train_sft.run(cfg)
    assert "they were left out" in capsys.readouterr().err
    assert "3" in os.listdir(tmp_path / "checkpoints")


@pytest.mark.parametrize(
    ("section", "change", "message"),
    [
        (
            "rollout",
            {"temperature": 0.0},
            r"config\.rollout\.temperature is 0\.0; .* at least 1e-05",
        ),
        (
            "dapo",
            {"oversample": 4.0},
            r"oversample is 4, which .*in_flight drop: .*; choose in_flight=keep",
        ),
        ("dapo", {"unreadable_call_penalty": 0.5}, r"penalty is 0\.5, .*; choose config\.tools"),
        ("dapo", {"micro_batch": 7}, r"groups × group_size = 32 .* micro-batches of 7"),
        ("dapo", {"micro_batch": -1}, r"do not divide into 1 minibatches of micro-batches of -1"),
        ("dapo", {"minibatches": 0}, r"do not divide into 0 minibatches"),
        ("dapo", {"overlong_buffer": 9999}, r"overlong_buffer is 9999; .* 0\.\..*new_tokens, \d+$"),
        (
            "dapo",
            {"overlong_buffer": 0, "overlong_penalty": 0.5},
            r"overlong_penalty is 0\.5, which",
        ),
        (
            "rollout",
            {"in_flight": "keep", "max_staleness": 0},
            r"in_flight is keep, which does nothing with rollout\.max_staleness=0: .*; choose",
        ),
        (
            "optim",
            {"schedule": "constant", "end_lr_ratio": 0.5},
            r"optim\.end_lr_ratio is 0\.5, which does nothing with optim\.schedule=constant",
        ),
        ("lora", {"alpha": 16.0}, r"lora\.alpha is 16\.0, which does nothing with lora\.rank=0"),
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
        (
            "model",
            {"max_position": 99},
            r"config\.rollout\.max_len is \d+, and the model's context is of 99 tokens",
        ),
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
        train_sft.check_batch(sft.sft, sft.optim, mesh)
    with pytest.raises(MeshError, match=r"choose a length that is a multiple of 10"):
        train_dapo.check_settings(dapo.dapo, dapo.rollout, mesh)


# ---- rewards


@pytest.mark.slow
def test_a_reward_of_ones_own_trains_as_ours_does(dapo, tmp_path):
    """The same curve, though several workers compute the rewards."""
    own_rewards.like.append(dapo.dapo)
    reward = {"reward": "tests.rl.own_rewards:as_ours", "reward_workers": 3}
    train_dapo.run(changed(at(dapo, tmp_path), "dapo", **reward))
    same = ("loss", "reward", "accuracy", "format", "coverage", "groups_kept", "grad_norm")
    found, expected = (
        [{name: row.get(name) for name in same} for row in curves(folder)]
        for folder in (tmp_path, dapo.workdir)
    )
    assert found == expected


@pytest.mark.slow
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
def test_a_run_does_not_go_on_with_another_judge_of_the_same_name(dapo, tmp_path):
    answer = Answer('{"reason": "so", "verdict": "correct"}')
    cfg = changed(at(dapo, tmp_path / "run"), "dapo", steps=1, reward="judge", patience=0)
    with Endpoint(answer, {"one": "1"}) as one, Endpoint(answer, {"one": "2"}) as other:
        calls = {"model": "one", "retries": 0, "cache": str(tmp_path / "replies")}
        train_dapo.run(changed(cfg, "judge", base_url=one.url, **calls))
        more = changed(changed(cfg, "judge", base_url=other.url, **calls), "dapo", steps=2)
        said = r"judge\.model: 'one' has other weights than before\), which change its"
        with pytest.raises(ConfigError, match=said):
            train_dapo.run(more)
        train_dapo.run(changed(more, "survival", changed="accept"))
    assert [row["step"] for row in read_metrics(tmp_path / "run")] == [1, 2]


@pytest.mark.slow
def test_a_run_that_the_clock_cuts_off_waits_and_says_what_to_raise(dapo, tmp_path, monkeypatch):
    monkeypatch.setattr(patience, "_LONGEST", 0.02)
    monkeypatch.setattr(patience, "_LOOK", 0.01)
    cfg = changed(at(dapo, tmp_path / "run"), "survival", tool_outage_seconds=0.1)
    cfg = changed(changed(cfg, "dapo", steps=1, patience=0), "rollout", deadline=1e-6)
    said = (
        r"the sampling was too slow for 0\.1 s .* in step 1: (\d+) of \1 trajectories were ended "
        r"by config\.rollout\.deadline, 1e-06 s; the run is saved, start the same command again "
        r"once search is faster, or with a larger rollout\.deadline or search\.workers$"
    )
    with pytest.raises(train_dapo.ToolOutageError, match=said):
        train_dapo.run(cfg)
    train_dapo.run(changed(cfg, "rollout", deadline=0.0))
    assert [row["out_of_time"] for row in read_metrics(tmp_path / "run")] == [0.0]


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


def test_a_search_that_the_demonstrations_had_not_is_told(cached, sft, capsys):
    manifest = Manifest.load(cached.cache)
    shown = dataclasses.asdict(cached.search)
    assert manifest.search.items() <= shown.items()
    assert {"index", "top_k", "max_passages", "max_queries"} <= set(manifest.search)
    asked_alike = dataclasses.replace(sft, search=cached.search)
    train_sft.tell_other_search(asked_alike, manifest)
    assert capsys.readouterr().err == ""
    train_sft.tell_other_search(changed(asked_alike, "search", top_k=7), manifest)
    assert capsys.readouterr().err.startswith(
        f"  the demonstrations searched by --config.search.top_k={shown['top_k']}; what asks this "
        "model will search by top_k=7, "
    )

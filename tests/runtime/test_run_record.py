"""run.json: what made a folder, and which settings a run may be resumed with."""

import dataclasses
import json
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Literal

import pytest

from masksearch_jax.core.config import DapoRun, SftRun, SurvivalConfig
from masksearch_jax.core.errors import ConfigError, UserError
from masksearch_jax.core.schema import Key, describe_keys, key, required, section
from masksearch_jax.core.watch_config import AlarmsConfig
from masksearch_jax.runtime import run_record


@dataclasses.dataclass(frozen=True)
class Survival:
    """How a run goes on."""

    changed: Literal["refuse", "accept"] = key("refuse", "Whether.", harmless=True)


@dataclasses.dataclass(frozen=True)
class Part:
    """A part."""

    names: tuple[str, ...] = key(("a",), "Of it.")


@dataclasses.dataclass(frozen=True)
class Run:
    workdir: str = required("Folder.", harmless=True)
    rate: float = key(0.5, "Of change.")
    log: int = key(1, "Lines.", harmless=True)
    data: str = key("", "Folder.", content="sampled")
    part: Part = section(Part)
    other: Part | None = key(None, "Another part.")
    survival: Survival = section(Survival)


def record(folder: Path) -> dict:
    return json.loads((folder / "run.json").read_text())


def with_data(tmp_path: Path, name: str, text: str) -> str:
    (tmp_path / name).mkdir()
    (tmp_path / name / "rows").write_text(text)
    return str(tmp_path / name)


# ---- what it says


def test_a_folder_says_what_made_it(tmp_path, repository):
    data = with_data(tmp_path, "data", "1")
    run_record.write(tmp_path / "out", Run("out", data=data, part=Part(("b", "c"))))
    found = record(tmp_path / "out")
    assert found["config"] == {
        "workdir": "out", "rate": 0.5, "log": 1, "data": data, "part": {"names": ["b", "c"]},
        "other": None, "survival": {"changed": "refuse"},
    }  # fmt: skip
    assert found["defaults"] == {"workdir": None, "data": "", "part.names": ["a"]}
    (session,) = found["sessions"]
    assert session["changed"] == []
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00", session["date"])
    assert shlex.split(session["command"]) == sys.orig_argv
    packages = {"masksearch_jax", "jax", "flax", "optax", "orbax-checkpoint", "transformers"}
    assert packages | {"numpy", "python"} <= set(session["versions"])
    head = ["git", "-C", str(repository), "rev-parse", "HEAD"]
    done = subprocess.run(head, capture_output=True, text=True, check=False)
    assert session["commit"].removesuffix("-dirty") == done.stdout.strip()
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["run.json"]


def test_the_record_is_of_the_first_process_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(run_record, "process_index", lambda: 1)
    run_record.write(tmp_path, Run("w"))
    run_record.resume(tmp_path, Run("w"))
    assert list(tmp_path.iterdir()) == []


def test_the_command_is_that_of_the_process(tmp_path):
    code = (
        "import dataclasses\nfrom masksearch_jax.runtime import run_record\n"
        "@dataclasses.dataclass(frozen=True)\nclass Run: pass\n"
        f"run_record.write({str(tmp_path)!r}, Run())"
    )
    subprocess.run([sys.executable, "-c", code, "--config.x=a b"], check=True)
    assert record(tmp_path)["sessions"][0]["command"].endswith("'--config.x=a b'")


def test_a_list_of_named_files_is_told_by_its_names_and_what_the_files_hold(tmp_path):
    one = Path(with_data(tmp_path, "one", "1")) / "rows"
    moved = Path(with_data(tmp_path, "moved", "1")) / "rows"
    other = Path(with_data(tmp_path, "other", "2")) / "rows"
    known = Key("suites", tuple[str, ...], (), "Of it.", harmless=False, content="named")

    def of(*names):
        return run_record.content_of(known, names)

    assert of("ramp", f"mine={one}") == of("ramp", f"mine={moved}")
    assert of("ramp", f"mine={one}") != of("ramp", f"mine={other}")
    assert of("ramp", f"mine={one}") != of("ramp", f"yours={one}")
    assert of("ramp", f"mine={one}") != of("questions", f"mine={one}")
    assert of("ramp", "questions") == of(f"mine={tmp_path}/gone") == ""


# ---- a resumed run


def test_what_changes_the_result_is_refused_with_both_values(tmp_path, capsys):
    run_record.write(tmp_path, Run("w"))
    before = record(tmp_path)
    with pytest.raises(ConfigError) as error:
        run_record.resume(tmp_path, Run("w", rate=0.25, log=2, part=Part(("b",))))
    assert str(error.value) == (
        f"{tmp_path} holds a run with other settings (rate: 0.5 → 0.25; part.names: ['a'] → "
        "['b']), which change its result: choose another --config.workdir, or go on with the new "
        "ones by --config.survival.changed=accept"
    )
    assert record(tmp_path) == before
    assert capsys.readouterr() == ("", "")


def test_what_does_not_is_taken_and_told(tmp_path, capsys):
    run_record.write(tmp_path, Run("w"))
    run_record.resume(tmp_path, Run("moved", log=2))
    assert capsys.readouterr().err == "  settings changed: workdir: 'w' → 'moved'; log: 1 → 2\n"
    found = record(tmp_path)
    told = [session["changed"] for session in found["sessions"]]
    assert told == [[], ["workdir: 'w' → 'moved'", "log: 1 → 2"]]
    assert found["config"]["log"] == 2
    run_record.resume(tmp_path, Run("moved", log=2))
    assert capsys.readouterr().err == ""
    assert record(tmp_path)["sessions"][2]["changed"] == []


def test_changes_are_accepted_when_told_to(tmp_path, capsys):
    run_record.write(tmp_path, Run("w"))
    accepting = Survival("accept")
    run_record.resume(tmp_path, Run("w", rate=0.25, survival=accepting))
    told = "  settings changed: rate: 0.5 → 0.25; survival.changed: 'refuse' → 'accept'\n"
    assert capsys.readouterr().err == told
    run_record.resume(tmp_path, Run("w", rate=0.25))  # the new settings are the folder's now
    with pytest.raises(ConfigError, match=r"\(rate: 0\.25 → 0\.5\)"):
        run_record.resume(tmp_path, Run("w"))


def test_keys_may_be_harmless_in_a_run_alone(tmp_path):
    run_record.write(tmp_path, Run("w"))
    run_record.resume(tmp_path, Run("w", rate=1.0), harmless={"rate"})
    assert record(tmp_path)["config"]["rate"] == 1.0


@dataclasses.dataclass(frozen=True)
class Watched:
    alarms: AlarmsConfig = section(AlarmsConfig)
    survival: SurvivalConfig = section(SurvivalConfig)


def test_alarms_change_a_run_that_they_roll_back_alone(tmp_path, capsys):
    def resumed(**alarms):
        run_record.resume(tmp_path, Watched(AlarmsConfig(**alarms)))
        return capsys.readouterr().err

    assert resumed() == ""
    told = "  settings changed: alarms.action: 'warn' → 'stop'; alarms.entropy: 0.0 → 0.5\n"
    assert resumed(action="stop", entropy=0.5) == told
    for refused in ({"action": "rollback", "entropy": 0.5}, {"action": "rollback"}):
        with pytest.raises(ConfigError, match=r"\(alarms\.action: 'stop' → 'rollback'"):
            resumed(**refused)
    run_record.write(tmp_path, Watched(AlarmsConfig("rollback", entropy=0.5)))
    with pytest.raises(ConfigError, match=r"\(alarms\.entropy: 0\.5 → 2\.5\), which change"):
        resumed(action="rollback", entropy=2.5)
    with pytest.raises(ConfigError, match=r"\(alarms\.action: 'rollback' → 'warn'\), which"):
        resumed(entropy=0.5)
    more = resumed(action="rollback", entropy=0.5, rollbacks=5)  # where the run ends
    assert more == "  settings changed: alarms.rollbacks: 2 → 5\n"


def test_a_rule_of_spikes_changes_a_run_and_what_a_bad_update_ends_does_not(tmp_path, capsys):
    run_record.write(tmp_path, Watched())
    skipping = SurvivalConfig(guard="skip", max_skips=3)
    run_record.resume(tmp_path, Watched(survival=skipping))
    assert "survival.guard: 'stop' → 'skip'; survival.max_skips: " in capsys.readouterr().err
    spikes = Watched(survival=dataclasses.replace(skipping, spike_sigma=2.0, spike_window=8))
    with pytest.raises(ConfigError, match=r"\(survival\.spike_sigma: 0\.0 → 2\.0; survival\.spi"):
        run_record.resume(tmp_path, spikes)


def test_a_section_that_comes_or_goes_is_a_change(tmp_path):
    run_record.write(tmp_path, Run("w"))
    with pytest.raises(ConfigError, match=r"\(other\.names: None → \['a'\]\)"):
        run_record.resume(tmp_path, Run("w", other=Part()))
    run_record.write(tmp_path, Run("w", other=Part()))
    with pytest.raises(ConfigError, match=r"\(other\.names: \['a'\] → None\)"):
        run_record.resume(tmp_path, Run("w"))


def test_a_key_that_is_newer_than_the_record_had_its_default(tmp_path):
    run_record.write(tmp_path, Run("w"))
    found = record(tmp_path)
    del found["config"]["rate"], found["config"]["part"]
    found["config"]["gone"] = 7
    (tmp_path / "run.json").write_text(json.dumps(found))
    run_record.resume(tmp_path, Run("w"))
    (tmp_path / "run.json").write_text(json.dumps(found))
    with pytest.raises(ConfigError, match=r"\(rate: 0\.5 → 0\.75\)"):
        run_record.resume(tmp_path, Run("w", rate=0.75))


def test_a_folder_counts_by_what_is_in_it(tmp_path, capsys):
    rows = {"here": "1", "there": "1", "other": "2"}
    here, there, other = (with_data(tmp_path, name, text) for name, text in rows.items())
    out = tmp_path / "out"
    run_record.write(out, Run("w", data=here))
    (Path(there) / "run.json").write_text("{}")  # says when, not what
    run_record.resume(out, Run("w", data=there))
    assert f"data: {here!r} → {there!r}" in capsys.readouterr().err
    with pytest.raises(ConfigError, match=rf"\(data: '{there}' → '{other}'\)"):
        run_record.resume(out, Run("w", data=other))
    (Path(there) / "rows").write_text("3")
    with pytest.raises(ConfigError, match=rf"\(data: '{there}' holds other files than before\)"):
        run_record.resume(out, Run("w", data=there))


def test_an_index_counts_by_its_fingerprint(tmp_path):
    """Its engine names files at random: built again it is the same index in other files."""
    folder = Path(with_data(tmp_path, "index", "1"))
    (folder / "manifest.json").write_text('{"fingerprint": "f1"}')
    run_record.write(tmp_path / "out", Run("w", data=str(folder)))
    (folder / "rows").write_text("2")
    run_record.resume(tmp_path / "out", Run("w", data=str(folder)))
    (folder / "manifest.json").write_text('{"fingerprint": "f2"}')
    with pytest.raises(ConfigError, match="holds other files than before"):
        run_record.resume(tmp_path / "out", Run("w", data=str(folder)))


@pytest.mark.parametrize("text", ["", "[]", '{"config": {}}', "{"])
def test_a_record_that_cannot_be_read_is_named(tmp_path, text):
    (tmp_path / "run.json").write_text(text)
    with pytest.raises(UserError, match=r"run\.json is no record of a run \("):
        run_record.resume(tmp_path, Run("w"))


def test_a_folder_without_a_record_gets_one(tmp_path):
    run_record.resume(tmp_path / "new", Run("w"))
    assert len(record(tmp_path / "new")["sessions"]) == 1


# ---- the trainers' keys: each is deliberately one or the other

_MODEL = (
    *("family", "vocab_size", "hidden_size", "intermediate_size", "num_layers", "num_heads"),
    *("num_kv_heads", "head_dim", "rope_theta", "norm_eps", "qkv_bias", "qk_norm"),
    *("tie_embeddings", "max_position"),
)
CHANGES_THE_RESULT = {
    "": ("data", "tokenizer", "init", "seed", "tools"),
    "model": _MODEL,
    "model.rope_scaling": (
        *("factor", "low_freq_factor", "high_freq_factor", "original_max_position"),
        *("kind", "attention_factor"),
    ),
    "compute": ("dtype", "param_dtype"),
    "optim": (
        *("learning_rate", "schedule", "warmup_steps", "end_lr_ratio", "b1", "b2", "eps"),
        *("weight_decay", "clip_norm", "rounding"),
    ),
    "lora": ("rank", "alpha", "targets"),
    "prompt": ("style",),
    "search": (
        *("kind", "index", "url", "top_k", "max_passages", "max_queries", "exclude_source"),
        *("nearest", "fusion", "rank_constant", "dense_weight", "fusion_depth", "rerank"),
        *("rerank_depth",),
    ),
    "search.opensearch": ("url", "name", "by"),
    "search.web": ("service", "url", "body", "results", "title", "text", "id"),
    "rollout": (
        *("max_len", "kv_dtype", "max_turns", "tool_turns", "max_new_tokens", "max_turn_tokens"),
        *("max_observation_tokens", "answer_tokens", "corrections", "temperature", "top_k"),
        *("top_p", "min_p", "max_repeats", "in_flight", "max_staleness", "seed"),
    ),
    "lessons": ("by", "keep_earlier", "threshold", "floor", "ceiling", "least"),
    "eval": ("every", "data", "examples", "temperature", "seed"),
    "survival": ("spike_sigma", "spike_window"),
    "alarms": (
        *("action", "steps", "rollback_lr", "answer_length", "answers", "enumeration", "tags"),
        *("copied", "entropy", "repetition", "invalid", "searches", "thoughts", "sampler_gap"),
        *("grad_norm", "diversity", "plateau"),
    ),
    "sft": ("steps", "curriculum", "batch_size", "seq_len", "context_loss_weight", "seed"),
    "dapo": (
        *("steps", "curriculum", "groups", "group_size", "minibatches", "clip_low", "clip_high"),
        *("tis_cap", "reward", "format_weight", "length_penalty", "accuracy_threshold"),
        *("max_refills", "overlong_buffer", "overlong_penalty", "overlong_filter", "oversample"),
        *("split", "seed", "keep_by", "min_spread", "min_searches", "coverage_weight"),
        *("gold_hit_weight", "no_answer_penalty", "no_search_penalty"),
        *("malformed_turn_penalty", "repeated_query_penalty", "unreadable_call_penalty"),
        *("advantage", "ratio", "aggregation"),
        *("fixed_length", "dual_clip", "proximal", "kl", "kl_weight", "likelihood_floor"),
        *("sequence_gap", "rest_steps"),
    ),
    "judge": (
        *("own_model", "model", "temperature", "send_temperature", "max_tokens", "language"),
    ),
}
HARMLESS = {
    "": ("workdir", "base"),
    "compute": ("attention", "remat", "loss_chunk"),
    "mesh": ("data", "fsdp", "tensor", "context"),
    "optim": ("accumulate",),
    "checkpoint": ("every", "keep", "keep_every", "best_metric", "best_mode", "folder"),
    "survival": (
        *("startup_seconds", "step_factor", "step_seconds", "heartbeat_seconds", "guard"),
        *("max_skips", "profile_steps", "compile_cache", "changed"),
        *("tool_failures", "tool_outage_seconds"),
    ),
    "plan": ("topology", "slices", "improve", "json", "passages"),
    "search": (
        *("timeout", "attempt_timeout", "retries", "backoff", "hedge", "batch_wait", "workers"),
        *("cache", "replay", "encoder", "memory", "cache_bytes", "recorded"),
        *("requests_per_second", "models_on"),
    ),
    "search.opensearch": ("user_variable", "password_variable", "certificates"),
    "search.web": ("header", "key_variable"),
    "rollout": (
        *("slots", "decode_share", "kv_tokens", "page_tokens", "attention", "weights"),
        *("tick_tokens", "extend_tokens", "chunk_tokens", "chunk_rows", "deadline"),
    ),
    "log": ("to", "project"),
    "alarms": ("rollbacks",),
    "sft": ("log_every",),
    "dapo": (
        *("micro_batch", "allow_filters", "warn_after", "patience", "reward_workers"),
        *("reward_timeout", "max_reward_failures", "keep_rollouts", "max_bad_fraction"),
    ),
    "judge": (
        *("base_url", "api_key_env", "max_tokens_field", "concurrency", "timeout", "deadline"),
        *("retries", "backoff", "cache", "replay", "budget", "max_cost", "prompt_price"),
        *("completion_price", "max_unreadable"),
    ),
}


@pytest.mark.parametrize(("schema", "absent"), [(SftRun, ("dapo", "judge")), (DapoRun, ("sft",))])
def test_each_key_of_a_training_changes_its_result_or_does_not(schema, absent):
    def named(table):
        found = {(f"{s}.{k}" if s else k) for s, keys in table.items() for k in keys}
        return {name for name in found if name.partition(".")[0] not in absent}

    keys = [k for k in describe_keys(schema) if not k.section]
    assert {k.name for k in keys if not k.harmless} == named(CHANGES_THE_RESULT)
    assert {k.name for k in keys if k.harmless} == named(HARMLESS)

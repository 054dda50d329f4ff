"""Strict conversion of configs, and the command line: overrides, messages, exit statuses."""

import contextlib
import dataclasses
import errno
import json
import logging
import math
import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Literal

import hypothesis
import hypothesis.strategies as st
import ml_collections
import pytest

from masksearch_jax.build_trajectories import BuildTrajectoriesRun
from masksearch_jax.core import config
from masksearch_jax.core.config import ModelConfig
from masksearch_jax.core.corpus_config import RampConfig
from masksearch_jax.core.errors import ConfigError, UserError, nearest
from masksearch_jax.core.llm_config import EndpointConfig, JudgeConfig, LLMConfig
from masksearch_jax.core.reward_config import RewardConfig
from masksearch_jax.core.rollout_config import RolloutConfig
from masksearch_jax.core.schema import (
    describe_keys,
    flat_keys,
    key,
    required,
    section,
    to_dataclass,
)
from masksearch_jax.core.search_config import SearchConfig
from masksearch_jax.coverage import CoverageRun
from masksearch_jax.export_hf import ExportRun
from masksearch_jax.models.load import read_model
from masksearch_jax.quickstart import QuickstartRun
from masksearch_jax.runtime import cli, run_record
from masksearch_jax.serve_search import ServeSearchRun
from masksearch_jax.study import StudyRun


@dataclasses.dataclass(frozen=True)
class Inner:
    rate: float
    steps: int
    names: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Floats:
    rate: float = 0.0
    rates: tuple[float, ...] = ()


@dataclasses.dataclass(frozen=True)
class Outer:
    workdir: str
    flag: bool
    inner: Inner
    maybe: Inner | None
    kind: Literal["first", "second"]


def outer(**changes) -> dict:
    inner = {"rate": 0.5, "steps": 3, "names": ["a", "b"]}
    return {"workdir": "w", "flag": True, "inner": inner, "maybe": None, "kind": "first"} | changes


def test_a_dict_and_a_configdict_give_the_same_frozen_dataclass():
    want = Outer("w", True, Inner(0.5, 3, ("a", "b")), None, "first")
    assert to_dataclass(Outer, outer()) == want
    assert to_dataclass(Outer, ml_collections.ConfigDict(outer())) == want
    with pytest.raises(dataclasses.FrozenInstanceError):
        to_dataclass(Outer, outer()).workdir = "other"


def test_an_optional_section_is_none_or_the_section():
    inner = {"rate": 1.0, "steps": 1, "names": ()}
    assert to_dataclass(Outer, outer(maybe=inner)).maybe == Inner(1.0, 1, ())
    with pytest.raises(ConfigError, match=r"config\.maybe lacks config\.maybe\.steps"):
        to_dataclass(Outer, outer(maybe={"rate": 1.0, "names": ()}))


def test_an_int_is_taken_for_a_float_and_stored_as_one():
    got = to_dataclass(Outer, outer(inner={"rate": 2, "steps": 3, "names": ()})).inner.rate
    assert (got, type(got)) == (2.0, float)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"workdri": "w"},
            r"config\.workdri is not a key of Outer; did you mean config\.workdir\?",
        ),
        ({"inner": 3}, r"config\.inner is 3; it must be a section with rate, steps, names"),
        ({"flag": 1}, r"config\.flag is 1 \(int\); it must be bool"),
        ({"workdir": None}, r"config\.workdir is None \(NoneType\); it must be str"),
        (
            {"kind": "frist"},
            r"config\.kind is 'frist', not one of first, second; did you mean first",
        ),
        (
            {"inner": {"rate": 0.5, "steps": True, "names": ()}},
            r"config\.inner\.steps is True \(bool\); it must be int",
        ),
        (
            {"inner": {"rate": 0.5, "steps": 3.0, "names": ()}},
            r"config\.inner\.steps is 3\.0 \(float\); it must be int",
        ),
        (
            {"inner": {"rate": "fast", "steps": 3, "names": ()}},
            r"config\.inner\.rate is 'fast' \(str\); it must be float",
        ),
        (
            {"inner": {"rate": 0.5, "steps": 3, "names": ("a", 1)}},
            r"config\.inner\.names\[1\] is 1 \(int\); it must be str",
        ),
        (
            {"inner": {"rate": 0.5, "steps": 3, "names": "ab"}},
            r"config\.inner\.names is 'ab' \(str\); it must be tuple\[str, \.\.\.\]",
        ),
    ],
)
def test_what_does_not_fit_is_named_with_its_dotted_key(changes, message):
    with pytest.raises(ConfigError, match=message):
        to_dataclass(Outer, outer(**changes))


@pytest.mark.parametrize(
    ("config_file", "flag", "value", "least"),
    [
        ("ramp_sft.py:tiny", "checkpoint.every", 0, 1),
        ("ramp_dapo.py:tiny", "checkpoint.every", -3, 1),
        ("quickstart.py:runlocal", "checkpoint.every", 0, 1),
        ("ramp_sft.py:tiny", "sft.log_every", 0, 1),
        ("ramp_sft.py:tiny", "sft.batch_size", 0, 1),
        ("ramp_sft.py:tiny", "model.num_kv_heads", 0, 1),
        ("ramp_sft.py:llama3.2-1b", "model.rope_scaling.factor", 0.0, 1),
        ("ramp_sft.py:llama3.2-1b", "model.rope_scaling.factor", -1.0, 1),
        ("ramp_dapo.py:tiny", "dapo.groups", 0, 1),
        ("ramp_dapo.py:tiny", "dapo.minibatches", -1, 1),
        ("ramp_dapo.py:tiny", "dapo.max_refills", 0, 1),
        ("ramp_dapo.py:tiny", "rollout.slots", 0, 1),
        ("ramp_dapo.py:tiny", "rollout.page_tokens", 0, 1),
        ("ramp_dapo.py:tiny", "eval.every", -1, 0),
        ("evaluate.py:tiny", "search.workers", 0, 1),
        ("evaluate.py:tiny", "eval.examples", 0, 1),
        ("evaluate.py:tiny", "eval.bootstrap", 0, 1),
        ("quickstart.py:runlocal", "qa_sft.seq_len", 0, 1),
        ("coverage.py", "limit", -3, 0),
        ("study.py:curriculum", "seeds", 0, 1),
    ],
)
def test_a_number_that_cannot_work_is_refused_with_the_least(
    repository, capsys, config_file, flag, value, least
):
    spec = f"--config={repository / 'configs' / config_file}"
    name = config_file.partition(".")[0]
    schema = {
        "ramp_sft": config.SftRun,
        "ramp_dapo": config.DapoRun,
        "evaluate": config.EvalRun,
        "quickstart": QuickstartRun,
        "coverage": CoverageRun,
        "study": StudyRun,
    }[name]
    with pytest.raises(SystemExit) as end:
        cli.run(print, schema, [name, spec, f"--config.{flag}={value}"])
    assert end.value.code == 2
    assert capsys.readouterr().err == (
        f"error: config.{flag} is {value}; it must be at least {least}\n"
    )


@pytest.mark.parametrize(
    ("schema", "name", "value", "rule"),
    [
        (RewardConfig, "reward_workers", 0, "at least 1"),
        (RewardConfig, "reward_workers", -1, "at least 1"),
        (RewardConfig, "format_weight", 2.0, "at most 1"),
        (RewardConfig, "format_weight", -1.0, "at least 0"),
        (RewardConfig, "format_weight", math.nan, "finite"),
        (RewardConfig, "length_penalty", -1.0, "at least 0"),
        (RewardConfig, "max_reward_failures", -1.0, "at least 0"),
        (RewardConfig, "reward_timeout", -1.0, "at least 0"),
        (RewardConfig, "length_penalty", math.inf, "finite"),
        (RewardConfig, "length_penalty", -math.inf, "finite"),
        (Floats, "rate", math.nan, "finite"),
        (LLMConfig, "concurrency", 0, "at least 1"),
        (LLMConfig, "timeout", 0.0, r"at least 0\.001"),
        (LLMConfig, "retries", -1, "at least 0"),
        (JudgeConfig, "concurrency", 0, "at least 1"),
        (JudgeConfig, "max_tokens", 0, "at least 1"),
        (JudgeConfig, "max_unreadable", 1.5, "at most 1"),
        (EndpointConfig, "max_tokens", 0, "at least 1"),
        (RolloutConfig, "top_p", 1.5, "at most 1"),
        (RampConfig, "heldout_fraction", 2.0, "at most 1"),
        (ServeSearchRun, "waiting", 0, "at least 1"),
        (SearchConfig, "top_k", 10_001, "at most 10000"),
        (SearchConfig, "fusion_depth", 10_001, "at most 10000"),
        (SearchConfig, "rerank_depth", 10_001, "at most 10000"),
    ],
)
def test_a_number_beyond_its_bounds_is_refused(schema, name, value, rule):
    with pytest.raises(ConfigError, match=rf"^config\.{name} is {value}; it must be {rule}$"):
        to_dataclass(schema, {name: value})


def test_each_number_of_a_list_is_finite():
    assert to_dataclass(Floats, {"rates": [1.0, 2]}).rates == (1.0, 2.0)
    with pytest.raises(ConfigError, match=r"^config\.rates\[1\] is inf; it must be finite$"):
        to_dataclass(Floats, {"rates": [1.0, math.inf]})


def test_a_learning_rate_that_is_not_finite_is_refused(capsys):
    with pytest.raises(SystemExit) as end:
        cli.run(
            print,
            config.SftRun,
            ["x", "--config=ramp_sft:tiny", "--config.optim.learning_rate=inf"],
        )
    assert end.value.code == 2
    said = "error: config.optim.learning_rate is inf; it must be finite\n"
    assert capsys.readouterr().err == said


def test_a_missing_key_is_named():
    values = outer()
    del values["inner"]["steps"], values["flag"]
    with pytest.raises(ConfigError, match=r"config lacks config\.flag"):
        to_dataclass(Outer, values)
    with pytest.raises(ConfigError, match=r"config\.inner lacks config\.inner\.steps"):
        to_dataclass(Outer, values | {"flag": False})


@hypothesis.given(st.sampled_from(sorted(flat_keys(QuickstartRun))), st.data())
def test_a_key_with_one_letter_gone_is_found_again(key, data):
    leaf = key.rpartition(".")[2]
    at = data.draw(st.integers(0, len(leaf) - 1))
    start = len(key) - len(leaf)
    typo = key[: start + at] + key[start + at + 1 :]
    keys = flat_keys(QuickstartRun)
    hypothesis.assume(typo not in keys and len(leaf) > 3)
    hypothesis.assume(typo.rpartition(".")[2] not in {k.rpartition(".")[2] for k in keys})
    assert key in nearest(typo, keys)


# ---- the command line ---------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Deep:
    """A section of which the file must give one key."""

    size: int = required("Of it.")
    rate: float = key(0.5, "Of change.")
    names: tuple[str, ...] = key(("a",), "Of all.")


@dataclasses.dataclass(frozen=True)
class Few:
    given: str = required("What it is.")
    deep: Deep = section(Deep)
    maybe: Deep | None = key(None, "Another one.")


CONFIG = """
from ml_collections import ConfigDict

def get_config(arg=""):
    if arg not in ("", "small"):
        raise ValueError(f"{arg!r} is not one of small")
    steps = 1 if arg else 3
    inner = dict(rate=0.5, steps=steps, names=("a", "b"))
    return ConfigDict(dict(workdir="w", flag=True, inner=inner, maybe=None, kind="first"))
"""


@pytest.fixture(autouse=True)
def heard():
    """What is logged is heard again: an interrupted main turns that off, as its last act."""
    yield
    logging.disable(logging.NOTSET)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "job.py").write_text(CONFIG)
    return tmp_path


def parse(folder: Path, *args: str) -> Outer:
    return cli.parse(Outer, ["job.py", f"--config={folder}/configs/job.py", *args])


def test_overrides_reach_the_dataclass_with_their_types(folder):
    got = parse(
        folder,
        "--config.inner.rate=2",
        "--config.inner.steps",
        "7",
        "--noconfig.flag",
        "--config.workdir=a=b,c",
        "--config.kind=second",
    )
    assert got == Outer("a=b,c", False, Inner(2.0, 7, ("a", "b")), None, "second")
    assert type(got.inner.rate) is float


@pytest.mark.parametrize(
    ("value", "want"),
    [
        ("x", ("x",)),
        ("x,y", ("x", "y")),
        ("x, y", ("x", "y")),
        ("('x','y')", ("x", "y")),
        ("['x']", ("x",)),
        ("", ()),
    ],
)
def test_a_tuple_is_given_as_a_list_with_commas_or_as_python(folder, value, want):
    assert parse(folder, f"--config.inner.names={value}").inner.names == want


@pytest.mark.parametrize(
    "given",
    [
        ["--config.inner.names=x,y", "--config.inner.names=z"],
        ["--config.inner.names=x", "--config.inner.names", "y", "--config.inner.names=('z',)"],
        ["-config.inner.names=x,y", "--config.inner.steps=1", "--config.inner.names", "z"],
    ],
)
def test_of_a_list_as_of_any_key_the_last_flag_holds(folder, given):
    assert parse(folder, *given).inner.names == ("z",)
    assert parse(folder, *given, "--config.inner.names=").inner.names == ()
    assert parse(folder, "--config.inner.rate=2", "--config.inner.rate=3").inner.rate == 3


def test_a_list_is_one_as_the_argument_after_its_flag_too(folder):
    assert parse(folder, "--config.inner.names", "x,y").inner.names == ("x", "y")
    with pytest.raises(ConfigError, match=r"Missing value for flag --config\.inner\.names"):
        parse(folder, "--config.inner.names=x", "--config.inner.names")


def test_the_argument_after_the_colon_reaches_get_config_and_the_last_config_wins(folder):
    path = f"{folder}/configs/job.py"
    assert cli.parse(Outer, ["job", f"--config={path}:small"]).inner.steps == 1
    assert cli.parse(Outer, ["job", "--config", path, f"--config={path}:small"]).inner.steps == 1
    early = ["job", "--config.inner.steps=9", f"--config={path}:small"]
    assert cli.parse(Outer, early).inner.steps == 9


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (
            ["--config.inner.step=3"],
            "--config.inner.step is not a flag; did you mean --config.inner.steps?",
        ),
        (["--config.steps=3"], "did you mean --config.inner.steps or --config.maybe.steps?"),
        (["-config.inner.stps=3"], "did you mean --config.inner.steps?"),
        (["--workdir=3"], "--workdir is not a flag; did you mean --config.workdir?"),
        (["--config.qqq=3"], "choices: --config.flag, --config.inner, --config.kind"),
        (["--config.inner.steps=three"], "--config.inner.steps=three: 'three' is no whole number"),
        (["--config.inner.rate=fast"], "--config.inner.rate=fast: 'fast' is no number"),
        (["--config.flag=perhaps"], "--config.flag=perhaps"),
        (["--config.inner.steps"], "Missing value for flag --config.inner.steps"),
        (["--config.kind=third"], "config.kind is 'third', not one of first, second"),
        (["stray"], "unexpected argument 'stray'"),
    ],
)
def test_a_wrong_flag_is_a_config_error_with_the_nearest_name(folder, args, message):
    with pytest.raises(ConfigError) as error:
        parse(folder, *args)
    assert message in str(error.value)


def test_a_wrong_config_file_or_argument_is_named(folder):
    with pytest.raises(
        ConfigError, match=r"there is no file '.*jb\.py'; did you mean .*/job\.py\?"
    ):
        cli.parse(Outer, ["job", f"--config={folder}/configs/jb.py"])
    with pytest.raises(ConfigError, match=r"job\.py:smal: 'smal' is not one of small"):
        cli.parse(Outer, ["job", f"--config={folder}/configs/job.py:smal"])
    with pytest.raises(
        ConfigError, match=r"--config is missing; usage: python -m masksearch_jax\.job"
    ):
        cli.parse(Outer, ["job.py"])
    (folder / "configs" / "notes.md").write_text("")
    with pytest.raises(ConfigError, match=r"notes\.md' is no Python file; its name must end in"):
        cli.parse(Outer, ["job", f"--config={folder}/configs/notes.md"])
    (folder / "configs" / "empty.py").write_text("")
    with pytest.raises(ConfigError, match="no attribute 'get_config'"):
        cli.parse(Outer, ["job", f"--config={folder}/configs/empty.py"])


# ---- exit statuses ------------------------------------------------------------------------------


class SearchDownError(UserError):
    pass


def raising(error: BaseException):
    def fn(_: Outer) -> None:
        raise error

    return fn


def status_of(folder: Path, fn, *args: str) -> int:
    argv = ["job.py", f"--config={folder}/configs/job.py", *args]
    try:
        cli.run(fn, Outer, argv)
    except SystemExit as exit_:
        return exit_.code
    return 0


@pytest.mark.parametrize(
    ("error", "status", "message"),
    [
        (
            SearchDownError("the search server at :80 is down"),
            1,
            "error: the search server at :80 is down\n",
        ),
        (UserError("two\nlines"), 1, "error: two lines\n"),
        (
            OSError(errno.ENOSPC, "No space left on device", "/x/index"),
            1,
            (
                "error: the disk is full while writing /x/index; free some space and start the "
                "same command again\n"
            ),
        ),
        (
            FileNotFoundError(2, "No such file", "c.jsonl"),
            1,
            "error: [Errno 2] No such file: 'c.jsonl'\n",
        ),
        (KeyboardInterrupt(), 130, "\ninterrupted\n"),
    ],
)
def test_an_expected_failure_is_one_line_and_a_status(
    folder, capsys, monkeypatch, error, status, message
):
    monkeypatch.setattr(os, "_exit", sys.exit)
    assert status_of(folder, raising(error)) == status
    assert capsys.readouterr() == ("", message)


def test_a_defect_keeps_its_traceback(folder):
    with pytest.raises(ZeroDivisionError):
        status_of(folder, raising(ZeroDivisionError("a defect")))


def test_a_status_that_the_main_returns_is_the_exit_status(folder):
    assert status_of(folder, lambda _: 3) == 3
    assert status_of(folder, lambda _: None) == 0


def shown(capsys, schema: type | tuple[type, ...], *args: str) -> tuple[str, str]:
    """What a main of this schema prints, on stdout and stderr, instead of running."""
    with contextlib.suppress(SystemExit):
        cli.run(raising(AssertionError("must not run")), schema, ["job.py", *args])
    return capsys.readouterr()


def test_help_says_of_every_key_its_default_and_what_it_means(capsys):
    out, _ = shown(capsys, config.DapoRun, "--help")
    lines = out.splitlines()
    for known in describe_keys(config.DapoRun):
        if known.section:
            assert f"\n\n{known.name}: {known.sentence[:60]}" in out
        else:
            flag = rf"--config\.{known.name}[= ]"
            (at,) = (i for i, line in enumerate(lines) if re.match(flag, line))
            assert lines[at + 1].startswith(f"    {known.sentence[:60]}")
    assert "\n--config.rollout.decode_share=0.25,0.5,0.75\n    Shares of the slots" in out
    assert "\n--config.dapo.steps (no default)\n" in out
    assert "\n    Of stored weights. [float32 | bfloat16]\n" in out
    assert out.index("--config.tokenizer") < out.index("\nmodel: ")


def test_help_shows_a_configs_values_and_one_section_alone(folder, capsys):
    spec = f"--config={folder}/configs/job.py:small"
    out, _ = shown(capsys, Outer, spec, "--help", "--config.workdir=there")
    assert "\n--config.workdir=there\n" in out
    assert "\n--config.inner.steps=1\n" in out
    out, _ = shown(capsys, Outer, spec, "--help=inner")
    flags = [line for line in out.splitlines() if line.startswith("--config.")]
    assert flags == [f"--config.inner.{x}" for x in ("rate=0.5", "steps=1", "names=a,b")]
    out, _ = shown(capsys, config.DapoRun, "--help=survival.guard")
    assert out.splitlines()[-2].startswith("--config.survival.guard=stop")
    wrong = "error: --help=iner is no key; did you mean inner?\n"
    assert shown(capsys, Outer, "--help=iner") == ("", wrong)


def test_of_several_schemas_help_shows_all_keys_or_those_of_the_config(repository, capsys):
    both = (config.SftRun, config.DapoRun)
    out, _ = shown(capsys, both, "--help")
    assert "\nsft: " in out
    assert "\ndapo: " in out
    out, _ = shown(capsys, both, "--help", f"--config={repository}/configs/qa_dapo.py")
    assert "\nsft: " not in out
    assert "\n--config.workdir=runs/qa_dapo\n" in out


def test_the_whole_config_is_printed_a_key_a_line(repository, capsys):
    spec = f"--config={repository}/configs/qa_dapo.py:runlocal"
    out, _ = shown(capsys, config.DapoRun, spec, "--print-config", "--config.seed=7")
    lines = out.splitlines()
    given = dict(line.split(" = ", 1) for line in lines)
    scaling = "model.rope_scaling"  # None, one line
    known = [k for k in describe_keys(config.DapoRun) if not k.name.startswith(f"{scaling}.")]
    assert list(given) == [k.name for k in known if not k.section or k.name == scaling]
    assert (given["seed"], given["dapo.reward"], given["dapo.steps"]) == ("7", "'penalised'", "2")
    assert given["rollout.decode_share"] == "(0.25, 0.5, 0.75)"
    assert given["model.rope_scaling"] == "None"
    bad = shown(capsys, config.DapoRun, spec, "--print-config", "--config.dapo.split=tran")
    assert "config.dapo.split is 'tran', not one of train, rl; did you mean train?" in bad[1]


def test_a_config_says_only_what_it_decides(tmp_path):
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "few.py").write_text(
        "from ml_collections import ConfigDict\n"
        "def get_config():\n    return ConfigDict({'given': 'g', 'deep': {'size': 3}})\n"
    )
    parse = lambda *args: cli.parse(Few, ["few", f"--config={tmp_path}/configs/few.py", *args])  # noqa: E731
    assert parse() == Few("g", Deep(3, 0.5, ("a",)), None)
    flags = ("--config.deep.rate=2", "--config.deep.names=b,c", "--config.deep.size=4")
    assert parse(*flags) == Few("g", Deep(4, 2.0, ("b", "c")), None)
    # An optional section comes with its defaults as soon as one of its keys is given.
    assert parse("--config.maybe.size=9").maybe == Deep(9, 0.5, ("a",))
    with pytest.raises(ConfigError, match=r"config\.maybe lacks config\.maybe\.size"):
        parse("--config.maybe.rate=1.0")
    typo = r"--config\.deep\.nmes is not a flag; did you mean --config\.deep\.names"
    with pytest.raises(ConfigError, match=typo):  # of a key that no file spells
        parse("--config.deep.nmes=b")
    with pytest.raises(ConfigError, match=r"rate=fast: 'fast' is no number"):
        parse("--config.deep.rate=fast")


def test_what_a_config_leaves_out_and_has_no_default_may_be_a_flag(tmp_path):
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "none.py").write_text(
        "from ml_collections import ConfigDict\ndef get_config():\n    return ConfigDict()\n"
    )
    argv = ["none", f"--config={tmp_path}/configs/none.py"]
    with pytest.raises(ConfigError, match=r"config lacks config\.given"):
        cli.parse(Few, argv)
    with pytest.raises(ConfigError, match=r"config\.deep lacks config\.deep\.size"):
        cli.parse(Few, [*argv, "--config.given=g"])
    found = cli.parse(Few, [*argv, "--config.given=g", "--config.deep.size=1"])
    assert found == Few("g", Deep(1, 0.5, ("a",)), None)


# ---- architectures from folders -----------------------------------------------------------------


@pytest.fixture
def hf_folder(tmp_path) -> Path:
    """A model of sizes that no table has, as SmolLM2's are."""
    sizes = {
        "vocab_size": 96, "hidden_size": 72, "intermediate_size": 128, "num_hidden_layers": 2,
        "num_attention_heads": 9, "num_key_value_heads": 3, "max_position_embeddings": 256,
        "rms_norm_eps": 9.999999747378752e-06, "rope_theta": 10000.0, "tie_word_embeddings": True,
    }  # fmt: skip
    folder = tmp_path / "SmolLike"
    folder.mkdir()
    text = json.dumps({"model_type": "llama", "hidden_act": "silu"} | sizes)
    (folder / "config.json").write_text(text)
    return folder


WANT = ModelConfig(
    family="llama", vocab_size=96, hidden_size=72, intermediate_size=128, num_layers=2,
    num_heads=9, num_kv_heads=3, head_dim=8, rope_theta=10000.0, rope_scaling=None,
    norm_eps=9.999999747378752e-06, qkv_bias=False, qk_norm=False, tie_embeddings=True,
    max_position=256,
)  # fmt: skip


def parse_hf(repository, arg: str, *flags: str, name: str = "ramp_sft", schema=config.SftRun):
    spec = f"--config={repository / 'configs' / name}.py:{arg}"
    return cli.parse(schema, [name, spec, *flags], read_model)


def test_an_architecture_is_read_from_the_folder_of_the_weights(repository, hf_folder):
    init = f"--config.init={hf_folder}"
    assert parse_hf(repository, "hf", init).model == WANT
    assert parse_hf(repository, "hf", "--config.init", str(hf_folder)).model == WANT
    assert parse_hf(repository, f"runlocal,{hf_folder}").model == WANT
    found = parse_hf(repository, str(hf_folder), "--config.model.num_layers=1")
    assert (found.model, found.init) == (dataclasses.replace(WANT, num_layers=1), "")
    quick = parse_hf(repository, str(hf_folder), name="quickstart", schema=QuickstartRun)
    assert quick.model == dataclasses.replace(WANT, vocab_size=1024)  # its tokenizer's
    student = parse_hf(
        repository, "hf", "--config.teacher=local", f"--config.student.init={hf_folder}",
        name="build_trajectories", schema=BuildTrajectoriesRun,
    )  # fmt: skip
    assert student.student.model == WANT


def test_an_architecture_is_read_from_checkpoints_by_the_record_of_their_run(repository, tmp_path):
    scaling = config.RopeScaling(4.0, 1.0, 32.0, 64, "yarn")
    model = dataclasses.replace(WANT, rope_scaling=scaling)
    sft = dataclasses.replace(parse_hf(repository, "tiny"), model=model)
    run_record.write(tmp_path, sft)
    step = tmp_path / "checkpoints" / "40"
    step.mkdir(parents=True)
    for folder in (step.parent, step):
        found = parse_hf(
            repository, "hf", f"--config.checkpoint={folder}", name="export_hf", schema=ExportRun
        )
        assert found.model == model
        assert parse_hf(repository, "hf", f"--config.init={folder}").model == model
    with pytest.raises(ConfigError, match=r"read from '.*gone': .*gone is not there"):
        parse_hf(repository, "hf", f"--config.init={tmp_path / 'gone'}")


def test_a_folder_that_gives_no_architecture_is_one_line(repository, hf_folder, tmp_path):
    wrong = "config.model is to be read from"
    with pytest.raises(ConfigError, match=rf"^{wrong} a Hugging.*give it as --config\.init"):
        parse_hf(repository, "hf")
    with pytest.raises(ConfigError, match=r"give it as --config\.init, or name it in place"):
        parse_hf(repository, "hf", name="quickstart", schema=QuickstartRun)
    with pytest.raises(ConfigError, match=rf"^{wrong} '.*none': .*none is not there"):
        parse_hf(repository, f"{tmp_path}/none")
    (hf_folder / "config.json").write_text('{"model_type": "mamba"}')
    with pytest.raises(ConfigError, match=rf"^{wrong} .* 'mamba' is unknown; choices: .*'qwen2'"):
        parse_hf(repository, str(hf_folder))


def test_help_that_nobody_reads_to_its_end_says_nothing(repository):
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer) as closed:
        command = [sys.executable, "-m", "masksearch_jax.build_index", "--help"]
        done = subprocess.run(
            command, stdout=closed, stderr=subprocess.PIPE, cwd=repository, check=False
        )
    assert (done.returncode, done.stderr) == (0, b"")


def test_as_a_process_a_typo_is_one_line_on_stderr_and_status_2(folder):
    script = folder / "job.py"
    script.write_text(
        textwrap.dedent("""
        import dataclasses
        from masksearch_jax.runtime import cli, run_record

        @dataclasses.dataclass(frozen=True)
        class Job:
            workdir: str

        if __name__ == "__main__":
            cli.run(lambda c: print(c.workdir), Job)
    """)
    )
    (folder / "configs" / "job.py").write_text(
        "from ml_collections import ConfigDict\n"
        "def get_config():\n    return ConfigDict({'workdir': 'w'})\n"
    )
    command = [sys.executable, str(script), "--config=configs/job.py"]
    environment = {"PYTHONPATH": str(Path(config.__file__).parents[2]), "PATH": ""}
    run = lambda *args: subprocess.run(  # noqa: E731
        [*command, *args], cwd=folder, env=environment, capture_output=True, text=True
    )
    good, bad = run("--config.workdir=there"), run("--config.wrokdir=there")
    assert (good.returncode, good.stdout, good.stderr) == (0, "there\n", "")
    want = "error: --config.wrokdir is not a flag; did you mean --config.workdir?\n"
    assert (bad.returncode, bad.stdout, bad.stderr) == (2, "", want)

"""Strict conversion of configs, and the command line: overrides, messages, exit statuses."""

import dataclasses
import errno
import logging
import os
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Literal

import hypothesis
import hypothesis.strategies as st
import ml_collections
import pytest

from masksearch_jax.core import config
from masksearch_jax.core.errors import ConfigError, UserError, nearest
from masksearch_jax.core.schema import flat_keys, to_dataclass
from masksearch_jax.quickstart import QuickstartRun
from masksearch_jax.runtime import cli


@dataclasses.dataclass(frozen=True)
class Inner:
    rate: float
    steps: int
    names: tuple[str, ...]


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
        (["--config.inner.steps=three"], "--config.inner.steps=three: invalid literal for int()"),
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
    with pytest.raises(ConfigError, match=r"job\.py:smal: ValueError: 'smal' is not one of small"):
        cli.parse(Outer, ["job", f"--config={folder}/configs/job.py:smal"])
    with pytest.raises(
        ConfigError, match=r"--config is missing; usage: python -m masksearch_jax\.job"
    ):
        cli.parse(Outer, ["job.py"])
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


def test_help_lists_every_key(folder, capsys):
    assert status_of(folder, raising(AssertionError("must not run")), "--help") == 0
    out = capsys.readouterr().out
    assert all(f"--config.{key}\n" in out for key in flat_keys(Outer))


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
        from masksearch_jax.runtime import cli

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

"""Commands that the documents and docstrings show: each is one that the code takes as it stands."""

import collections
import dataclasses
import importlib
import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from masksearch_jax.core.errors import ConfigError
from masksearch_jax.core.tokenizer import Vocab
from masksearch_jax.runtime.completion import main_names
from masksearch_jax.runtime.config_text import leaves
from tests.docs import command_checks
from tests.docs.command_checks import LAUNCHERS, Call, check_command
from tests.docs.shown import (
    DOCUMENTS,
    MODULES,
    PROGRAMS,
    ROOT,
    Command,
    commands,
    docstring_commands,
    name_of,
    named_commands,
    shell,
)


@pytest.fixture(scope="module")
def stage(tmp_path_factory) -> Path:
    """Where scripts are run that start nothing."""
    return tmp_path_factory.mktemp("stage")


@pytest.mark.parametrize("path", DOCUMENTS, ids=name_of)
def test_every_command_is_one_that_the_code_takes(path, tmp_path, stage, monkeypatch):
    monkeypatch.chdir(ROOT)
    for command in [*commands(path, tmp_path), *named_commands(path, tmp_path)]:
        if not set(command.argv) & {"masksearch_jax.MAIN", "examples.worked.NAME"}:
            check_command(command, stage)


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_so_is_every_command_of_a_docstring(path, tmp_path, stage, monkeypatch):
    monkeypatch.chdir(ROOT)
    for command in docstring_commands(path, tmp_path):
        check_command(command, stage)


def test_every_main_says_what_no_data_can_mend():
    for main in main_names():
        module = importlib.import_module(f"masksearch_jax.{main}")
        assert callable(getattr(module, "check_config", None)), main


SFT = "python -m masksearch_jax.train_sft --config=configs/ramp_sft.py --config.tokenizer=T"
DAPO = "python -m masksearch_jax.train_dapo --config=configs/ramp_dapo.py --config.tokenizer=T"
HELDOUT = f"{DAPO} --config.eval.every=20 --config.checkpoint.best_metric=heldout_span_recall"
SKY = "sky jobs launch launch/sky.yaml --env MAIN=train_sft --env BUCKET=B --env"


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        (f"{SFT} --config.init=F --config.sft.step=1", "steps"),
        ("python -m masksearch_jax.train_sft --config=configs/ramp_stf.py", "ramp_stf"),
        ("bash launch/tpu_vm.sh --name=a -- train_sft --config=configs/qa_sft.py --a=1", "a flag"),
        ("python -m masksearch_jax.train_ppo --config=configs/ramp_sft.py", "train_ppo"),
        ("masksearch train-ppo --config=ramp_sft", "train_ppo"),
        ("masksearch train-sft --config=ramp_stf", "ramp_stf"),
        ("bash launch/tpu.sh", "tpu.sh"),
        ("bash launch/test.sh tests/core/test_gone.py", "test_gone"),
        # What the mains say themselves, before they read any data.
        ("python -m masksearch_jax.train_sft --config=configs/ramp_sft.py", "tokenizer is empty"),
        (SFT, "random weights"),
        (f"{DAPO} --config.search.kind=http", r"config\.search\.url is empty"),
        (f"{DAPO} --config.dapo.reward=judge", r"config\.judge\.base_url is empty"),
        (f"{DAPO} --config.alarms.action=undo", "undo"),
        (f"{HELDOUT} --config.eval.data=D", "multiple of config.eval.every, which is 20"),
        (HELDOUT, r"config\.eval\.data is empty"),
        ("masksearch evaluate --config=evaluate", "tokenizer is empty"),
        ("masksearch study --config=study:curriculum --config.reference=none", "reference"),
        ("masksearch plan --config=ramp_sft --config.plan.topology=v5p-63", "v5p-63"),
        # What scripts pass on.
        ("bash launch/quickstart.sh --config.sft.steps=few", "few"),
        ("bash launch/real.sh --config.corpus.pth=x --config.nonsense=1", "corpus.pth"),
        ("bash launch/cells.sh sft-lr tiny --tokenizer=T --init=F", "sft-lr is not a cell"),
        ("bash launch/cells.sh sft-rl no-model --tokenizer=T --init=F", "no-model"),
        ("bash launch/cells.sh sft-rl tiny --tok=1", "--tok=1 is not an option"),
        ("bash launch/cells.sh sft-rl tiny --tokenizer=T", "random weights"),
        (f"{SKY} ARGUMENTS=--config=configs/ramp_stf.py", "ramp_stf"),
        (f"{SKY} ARGUMENTS='--config=configs/ramp_sft.py --config.tokenizer=T'", "random weights"),
        (f"{SKY} ARGUMENT=--config=configs/ramp_sft.py", "has MAIN, ARGUMENTS, BUCKET"),
        # Other modules.
        ("python -m benchmarks.rl_step --nope=1", "unrecognized arguments: --nope=1"),
        ("python -m benchmarks.rl_step --steps=few", "few"),
        ("python -m benchmarks.search_speed", "required: --passages, --questions"),
        ("python -m benchmarks.drawings", "no main"),
        ("python -m examples.worked.gone", "gone"),
    ],
)
def test_faults_of_commands_are_found(text, fault, tmp_path, stage, monkeypatch):
    monkeypatch.chdir(ROOT)
    (argv,) = shell(text, tmp_path)
    with pytest.raises((AssertionError, ConfigError, ValueError), match=fault):
        check_command(Command(argv), stage)


def test_commands_are_found_and_what_scripts_start(tmp_path, stage, monkeypatch):
    monkeypatch.chdir(ROOT)
    assert len(commands(ROOT / "README.md", tmp_path)) >= 14
    assert len(docstring_commands(ROOT / "configs" / "build_trajectories.py", tmp_path)) == 3
    (argv,) = shell("bash launch/cells.sh sft-rl tiny --tokenizer=T --init=F", tmp_path)
    found = command_checks.calls(argv, stage)
    assert [call.main for call in found] == ["train_sft", "train_dapo", "evaluate", "report"]
    (argv,) = shell("bash launch/real.sh --study --gpu --config.init=F --config.seeds=1", tmp_path)
    (call,) = command_checks.calls(argv, stage)
    assert (call.main, call.given[1:]) == ("study", ["--config.init=F", "--config.seeds=1"])
    assert call.given[0].endswith("configs/study.py:recipe,gpu,hf")
    (argv,) = shell(f"{SKY} ARGUMENTS=\"--config=a --config.card.text='b c'\"", tmp_path)
    given = ["--config=a", "--config.card.text=b c"]
    assert command_checks.calls(argv, stage) == [Call("train_sft", given)]


def shown_calls(folder: Path, stage: Path) -> list[tuple[Path, Call, Any]]:
    """Every main that a document starts, with its config."""
    return [
        (path, call, command_checks.parsed(call))
        for path in DOCUMENTS
        for command in commands(path, folder)
        if not command.printed.startswith("error: ")
        for call in command_checks.calls(command.argv, stage)
        if not any(a.startswith("--help") for a in call.given)
    ]


# The key of what each main writes; others serve, print, or plan.
WRITTEN = dict.fromkeys(
    ("train_sft", "train_dapo", "evaluate", "quickstart", "study", "evolve"), "workdir"
)
WRITTEN |= dict.fromkeys(
    ("build_ramp", "build_dataset", "build_trajectories", "export_hf", "export_data"), "folder"
)
WRITTEN |= {"build_cache": "cache", "build_index": "index", "coverage": "out"}
ANOTHER = Path("runs/other_dapo")  # what a report compares with, of whoever reads the page


def writers(found: list[tuple[Path, Call, Any]]) -> dict[str, set[str]]:
    """Each folder that is written, with the mains that do."""
    by_folder = collections.defaultdict(set)
    for _, call, cfg in found:
        if call.main in WRITTEN:
            by_folder[getattr(cfg, WRITTEN[call.main])].add(call.main)
    return by_folder


def named_in_runs(cfg: Any) -> Iterator[tuple[str, Path]]:
    """Folders and files of runs that a config names, with the key; a cache makes its own."""
    for key, value in leaves(type(cfg), dataclasses.asdict(cfg)).items():
        texts = value if isinstance(value, tuple) else [value]
        for text in (t for t in texts if isinstance(t, str) and t.startswith("runs/")):
            if not key.endswith("cache"):
                yield key, Path(text)


def test_what_a_command_reads_is_written_by_another(tmp_path, stage, monkeypatch):
    """And no main writes into the folder of another one, which may refuse it."""
    monkeypatch.chdir(ROOT)
    found = shown_calls(tmp_path, stage)
    written = writers(found)
    # Demonstrations lie beside the examples that they are of.
    allowed = {"build_ramp", "build_trajectories"}
    assert {f: m for f, m in written.items() if len(m) > 1 and m != allowed} == {}
    folders = [*map(Path, written), ANOTHER]
    for path, call, cfg in found:
        for key, read in named_in_runs(cfg):
            is_made = any(read.is_relative_to(f) or f.is_relative_to(read) for f in folders)
            assert is_made, f"{name_of(path)}: {call.main}: {key}={read}"


# ---- launchers and the table of what was run


def name_of_command(argv: list[str]) -> str:
    """The main or the script that a command is of; the program where it is another's."""
    if ours := [a for a in argv if a.startswith("masksearch_jax.")]:
        return ours[0].partition(".")[2]
    if argv[0] == "masksearch":
        return argv[1].replace("-", "_")
    return argv[1] if argv[0] in ("bash", "python3") else argv[0]


def test_every_command_is_in_the_table_of_what_was_run(tmp_path):
    """And every row is of a command, has a test that names it, and a day or a word for it."""
    page = (ROOT / "docs" / "what_was_run.md").read_text(encoding="utf-8")
    rows = {
        row[0].strip("`"): row[1:]
        for line in re.findall(r"^\| (`.*) \|$", page, re.MULTILINE)
        if (row := [cell.strip() for cell in line.split("|")])
    }
    shown = {name_of_command(c.argv) for path in DOCUMENTS for c in commands(path, tmp_path)}
    others = {*PROGRAMS, "__version"} - {"masksearch", "python3", "bash"}
    assert shown - others == set(rows)
    for name, (day, what, test) in rows.items():
        last = day.strip("`")
        assert Path(name).stem in (ROOT / test.strip("`")).read_text(encoding="utf-8"), name
        assert re.fullmatch(r"2026-\d\d-\d\d|never|each change", last), name
        assert bool(what) == (last[0] == "2"), name


def test_commands_for_clouds_run_dry(tmp_path, monkeypatch):
    """As they stand; what they would start was parsed by another test."""
    monkeypatch.chdir(tmp_path)
    shown = [c.argv for path in DOCUMENTS for c in commands(path, tmp_path)]
    found = [argv for argv in shown if argv[1] in LAUNCHERS and "--delete" not in argv]
    assert {argv[1] for argv in found} == set(LAUNCHERS)
    for program, script, *given in found:
        dry = [] if script.endswith(".py") else ["--dry-run"]
        done = subprocess.run(
            [program, str(ROOT / script), *dry, *given],
            env={"PATH": os.environ["PATH"], "LAUNCH_PYTHON": "/bin/true"},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        main = given[given.index("--") + 1]
        assert main in done.stdout


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # a file stays open
def test_lines_of_python_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "wiki.jsonl").write_text('{"id": "1", "title": "Oslo", "text": "A city."}\n')
    shown = [c.argv for path in DOCUMENTS for c in commands(path, tmp_path)]
    (line,) = [argv[2] for argv in shown if argv[:2] == ["python", "-c"]]
    exec(line, {})
    assert Vocab.load("tokenizer").decode(Vocab.load("tokenizer").encode("Oslo")) == "Oslo"

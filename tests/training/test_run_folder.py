"""Checkpoints in a folder of their own belong to one run, wherever its other files lie."""

import dataclasses
import json
import re

import jax.numpy as jnp
import pytest

from masksearch_jax.core.config import SftRun
from masksearch_jax.core.errors import ConfigError
from masksearch_jax.core.files import BeingWrittenError
from masksearch_jax.runtime import cli, run_record
from masksearch_jax.training.checkpoint import Checkpointer
from masksearch_jax.training.run_folder import check_config, open_run_folder
from masksearch_jax.training.train_state import TrainState
from tests.parallel.lock_holder import held

STATE = TrainState(jnp.int32(7), {"w": jnp.full((4,), 7.0)}, {"m": jnp.zeros(4)})


def config(workdir, folder, rate=0.001) -> SftRun:
    flags = {"workdir": workdir, "data": "d", "tokenizer": "t", "checkpoint.folder": folder}
    flags |= {"optim.learning_rate": rate}
    named = (f"--config.{key}={value}" for key, value in flags.items())
    return cli.parse(SftRun, ["x", "--config=ramp_sft:tiny", *named])


def begin(cfg: SftRun) -> None:
    """A run up to its first checkpoint."""
    with (
        open_run_folder(cfg, "sft.steps"),
        Checkpointer(f"{cfg.workdir}/checkpoints", cfg.checkpoint, cfg.model) as checkpointer,
    ):
        checkpointer.save(7, STATE, {})


def sessions(folder) -> list[list[str]]:
    return [s["changed"] for s in json.loads((folder / "run.json").read_text())["sessions"]]


def test_another_run_does_not_go_on_from_a_run_s_checkpoints(tmp_path):
    folder = tmp_path / "kept"
    begin(config(tmp_path / "one", folder))
    before = (folder / "run.json").read_text()
    other = config(tmp_path / "two", folder, 0.000005)
    with pytest.raises(ConfigError) as told:
        open_run_folder(other, "sft.steps")
    assert str(told.value) == (
        f"{folder} holds a run with other settings (optim.learning_rate: 0.001 → 5e-06), which "
        "change its result: choose another --config.checkpoint.folder, or go on with the new ones "
        "by --config.survival.changed=accept"
    )
    assert (folder / "run.json").read_text() == before
    assert not (tmp_path / "two" / "run.json").exists()
    accepted = dataclasses.replace(other.survival, changed="accept")
    with open_run_folder(dataclasses.replace(other, survival=accepted), "sft.steps"):
        assert sessions(folder)[1][0] == "optim.learning_rate: 0.001 → 5e-06"


def test_a_run_may_be_moved_from_its_checkpoints(tmp_path, capsys):
    folder = tmp_path / "kept"
    begin(config(tmp_path / "one", folder))
    with open_run_folder(config(tmp_path / "moved", folder), "sft.steps"):
        moved = f"workdir: '{tmp_path / 'one'}' → '{tmp_path / 'moved'}'"
        assert capsys.readouterr().err.endswith(f"  settings changed: {moved}\n")
    assert sessions(folder) == sessions(tmp_path / "moved") == [[], [moved]]
    assert run_record.of_checkpoints(folder)["config"]["workdir"] == str(tmp_path / "moved")
    assert run_record.of_checkpoints(folder / "7") == run_record.of_checkpoints(folder)


def test_the_record_of_the_folder_is_compared_too(tmp_path):
    """Checkpoints of before have none of their own."""
    folder = tmp_path / "kept"
    begin(config(tmp_path / "one", folder))
    (folder / "run.json").unlink()
    said = re.escape(f"{tmp_path / 'one'} holds a run with other settings (optim.learning_rate: ")
    with pytest.raises(ConfigError, match=rf"{said}.*choose another --config\.workdir, or"):
        open_run_folder(config(tmp_path / "one", folder, 0.5), "sft.steps")
    with open_run_folder(config(tmp_path / "one", folder), "sft.steps"):
        assert sessions(folder) == sessions(tmp_path / "one") == [[], []]


def test_checkpoints_that_another_process_writes_are_left_alone(tmp_path):
    folder = tmp_path / "kept"
    folder.mkdir()
    with held(folder) as other, pytest.raises(BeingWrittenError) as told:
        open_run_folder(config(tmp_path / "one", folder), "sft.steps")
    assert str(told.value).startswith(f"{folder} is in use by process {other.pid} on far.example")
    (folder / ".lock").unlink()
    begin(config(tmp_path / "one", folder))
    assert not list(tmp_path.rglob(".lock"))


def test_a_folder_of_checkpoints_is_named_by_no_number(tmp_path):
    """FOLDER/3 is step 3 of FOLDER to all that read checkpoints."""
    check_config(config(tmp_path / "one", tmp_path / "3" / "kept"))
    with pytest.raises(ConfigError, match=r"folder is '.*/3', which names a step .* is no number"):
        check_config(config(tmp_path / "one", tmp_path / "3"))

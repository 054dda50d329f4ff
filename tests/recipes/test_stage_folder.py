"""A run's folder: each stage once, time kept over interruptions, one configuration per folder."""

import dataclasses
import json
import subprocess
import sys
import time

import pytest

from masksearch_jax.core.config import SurvivalConfig
from masksearch_jax.core.errors import ConfigError
from masksearch_jax.core.files import write_json
from masksearch_jax.core.schema import key, required, section
from masksearch_jax.recipes.stage_folder import StageFolder, Usage


def test_a_stage_is_done_once(tmp_path):
    calls = []

    def work():
        calls.append(1)
        return {"out": 3}

    first = StageFolder(tmp_path).stage("index", work)
    folder = StageFolder(tmp_path)  # another session
    assert folder.stage("index", work) == first
    assert folder.records == {"index": first}
    assert first["out"] == 3
    assert len(calls) == 1
    assert folder.stage("empty", lambda: None).keys() == {"seconds"}


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError, SystemExit])
def test_a_stopped_stage_runs_again_and_its_time_adds_up(tmp_path, error):
    def stopped():
        time.sleep(0.05)
        raise error

    for _ in range(2):
        with pytest.raises(error):
            StageFolder(tmp_path).stage("sft", stopped)
    assert not list(tmp_path.glob("stages/*.json"))
    record = StageFolder(tmp_path).stage("sft", lambda: {"loss": 1.0})
    assert record["loss"] == 1.0
    assert record["seconds"] >= 0.1
    assert [p.name for p in tmp_path.glob("stages/*")] == ["sft.json"]


@dataclasses.dataclass(frozen=True)
class Settings:
    workdir: str = required("Folder.", harmless=True)
    steps: int = key(6, "Of it.")
    suites: tuple[str, ...] = key(("ramp",), "Of it.")
    survival: SurvivalConfig = section(SurvivalConfig)


def test_a_folder_belongs_to_one_configuration(tmp_path):
    StageFolder(tmp_path).open(Settings("a"))
    StageFolder(tmp_path).open(Settings("moved"))
    with pytest.raises(ConfigError, match=r"other settings \(steps: 6 → 7\).*--config\.workdir"):
        StageFolder(tmp_path).open(Settings("a", steps=7))
    StageFolder(tmp_path).open(Settings("a"))  # the refused run left no trace
    StageFolder(tmp_path).open(Settings("a", steps=7, survival=SurvivalConfig(changed="accept")))


def test_json_is_replaced_whole(tmp_path):
    path = tmp_path / "x.json"
    write_json(path, {"a": 1})
    with pytest.raises(TypeError):
        write_json(path, {"a": object()})
    assert json.loads(path.read_text()) == {"a": 1}


CHILD = (
    "x = bytearray(300 * 2**20); x[::4096] = b'1' * len(x[::4096]); print(1, flush=True); input()"
)


def test_usage_counts_children_and_earlier_sessions(tmp_path):
    with Usage(tmp_path, every=0.01) as usage:
        alone = usage._memory()
        with subprocess.Popen(
            [sys.executable, "-c", CHILD], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        ) as child:
            child.stdout.readline()
            time.sleep(0.3)
            child.communicate(b"\n")
    first = json.loads((tmp_path / "usage.json").read_text())
    assert first["peak_memory_bytes"] > alone + 250 * 2**20
    second = Usage(tmp_path)
    assert second.figures()["wall_seconds"] > first["wall_seconds"] > 0
    assert second.figures()["peak_memory_bytes"] == first["peak_memory_bytes"]

"""A run's folder: each stage once, time kept over interruptions, one configuration per folder."""

import dataclasses
import json
import subprocess
import sys
import time

import pytest

from masksearch_jax.core import stamp
from masksearch_jax.core.config import SurvivalConfig
from masksearch_jax.core.errors import ConfigError
from masksearch_jax.core.files import BeingWrittenError, write_json
from masksearch_jax.core.schema import key, required, section
from masksearch_jax.recipes.stage_folder import StageFolder, Usage
from tests.parallel.lock_holder import Listener, held


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


def test_a_stage_that_is_withdrawn_is_made_again(tmp_path):
    folder, calls = StageFolder(tmp_path), []
    for _ in range(2):
        folder.stage("index", lambda: calls.append("index"))
        folder.stage("report", lambda: calls.append("report"))
        folder.withdraw(["report", "export"])
    assert calls == ["index", "report", "report"]


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
    text: str = key("", "Of it.", content="text")
    survival: SurvivalConfig = section(SurvivalConfig)


def test_a_folder_belongs_to_one_configuration(tmp_path):
    StageFolder(tmp_path).open(Settings("a"))
    StageFolder(tmp_path).open(Settings("moved"))
    with pytest.raises(ConfigError, match=r"other settings \(steps: 6 → 7\).*--config\.workdir"):
        StageFolder(tmp_path).open(Settings("a", steps=7))
    StageFolder(tmp_path).open(Settings("a"))  # the refused run left no trace
    StageFolder(tmp_path).open(Settings("a", steps=7, survival=SurvivalConfig(changed="accept")))


def test_a_folder_belongs_to_one_text(tmp_path):
    """Stages that are done are of the text as it was, not of another in its place."""
    text, rows = tmp_path / "text.jsonl", [f"row {i} of town\n" for i in range(40_000)]
    text.write_text("".join(rows))
    cfg = Settings("a", text=str(text))
    StageFolder(tmp_path / "run").open(cfg)
    rows[9_000] = rows[9_000].replace("town", "city")
    text.write_text("".join(rows))
    with pytest.raises(ConfigError, match=r"other settings \(text: '.*' holds other files than"):
        StageFolder(tmp_path / "run").open(cfg)


def test_a_folder_that_another_process_has_is_left_alone(tmp_path):
    with held(tmp_path) as other, pytest.raises(BeingWrittenError, match=f"process {other.pid} on"):
        StageFolder(tmp_path).open(Settings("a"))
    assert [p.name for p in tmp_path.iterdir()] == [".lock"]
    with StageFolder(tmp_path).open(Settings("a")):
        assert (tmp_path / "run.json").exists()
    assert [p.name for p in tmp_path.iterdir()] == ["run.json"]


@pytest.mark.parametrize("ends", ["done", "killed"])
def test_a_stage_that_another_process_makes_is_waited_for(tmp_path, monkeypatch, ends):
    """What that process has done is taken, what it leaves undone is made; others wait for none."""
    made = []
    with held(tmp_path / "cache-1") as other:

        def end():
            if ends == "done":
                stamp.write(tmp_path / "stages" / "cache-1.json", {"seconds": 3.0, "of": "other"})
            other.kill()

        said = Listener(end)
        monkeypatch.setattr(sys, "stderr", said)
        folder = StageFolder(tmp_path, ["cache-1", "cache-2"], is_shared=True)
        folder.stage("cache-2", lambda: made.append(2))
        assert other.poll() is None
        record = folder.stage("cache-1", lambda: made.append(1))
    assert made == ([2] if ends == "done" else [2, 1])
    assert record.get("of") == ("other" if ends == "done" else None)
    where = f"{tmp_path / 'cache-1'} is in use by process {other.pid} on far.example"
    then = "done before, 3 s" if ends == "done" else ""
    lines = [f"  {where}: waiting for its end", ": ".join(filter(None, ("[1/2] cache-1", then)))]
    assert said.getvalue().splitlines() == ["[2/2] cache-2", *lines]


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

"""What the records of runs tell of how a checkpoint was trained."""

import json
from pathlib import Path

import pytest

from masksearch_jax.models import trainings
from masksearch_jax.runtime import storage


def trained(folder: Path, kind: str, curriculum: str, init: object = "") -> Path:
    """A run's folder with its record alone; the folder of its checkpoints."""
    folder.mkdir()
    config = {"init": str(init), kind: {"curriculum": curriculum, "steps": 9}}
    record = {"config": config, "content": {}, "sessions": []}
    (folder / storage.RUN_RECORD).write_text(json.dumps(record))
    return folder / "checkpoints"


@pytest.fixture
def base(tmp_path):
    """A folder in HF format."""
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "config.json").write_text("{}")
    return tmp_path / "base"


def test_trainings_are_told_from_the_first_on(tmp_path, base):
    sft = trained(tmp_path / "sft", "sft", "0:ramp_sft_upto1, 200:ramp_sft_upto4", base)
    dapo = trained(tmp_path / "dapo", "dapo", "0:ramp_k1,9:ramp_mixed,20:ramp_k1", sft)
    questions = trained(tmp_path / "qa", "dapo", "0:qa_mixed", dapo / "60")  # one checkpoint
    first = "SFT (ramp_sft_upto1, ramp_sft_upto4)"
    assert trainings.told(str(sft)) == first
    assert trainings.told(str(dapo)) == f"{first}, then DAPO (ramp_k1, ramp_mixed)"
    assert trainings.told(str(questions)) == f"{trainings.told(str(dapo))}, then DAPO (qa_mixed)"


def test_what_came_before_an_unknown_run_is_not_recorded(tmp_path):
    gone = trained(tmp_path / "a", "dapo", "0:ramp_mixed", tmp_path / "gone" / "checkpoints")
    assert trainings.told(str(gone)) == "not recorded, then DAPO (ramp_mixed)"
    random = trained(tmp_path / "b", "sft", "0:ramp_sft_mixed")
    assert trainings.told(str(random)) == "SFT (ramp_sft_mixed)"


def test_of_what_no_training_tells_nothing_is_told(tmp_path, base):
    several = trained(tmp_path / "quickstart", "sft", "0:ramp_sft_mixed")
    path = several.parent / storage.RUN_RECORD
    record = json.loads(path.read_text())
    record["config"]["dapo"] = {"curriculum": "0:ramp_mixed"}
    path.write_text(json.dumps(record))
    for folder in (several, tmp_path / "none" / "checkpoints", base):
        assert trainings.told(str(folder)) == ""


def test_runs_that_name_one_another_end(tmp_path):
    own = tmp_path / "own" / "checkpoints"
    assert trained(tmp_path / "own", "dapo", "0:ramp_mixed", own) == own
    assert trainings.told(str(own)) == "not recorded, then DAPO (ramp_mixed)"

"""launch/cells.sh: one cell of the paper's table, from data to the report of all cells."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from configs import common
from masksearch_jax import build_cache
from masksearch_jax.core.schema import to_dataclass
from masksearch_jax.runtime import cli
from masksearch_jax.testing.pages import data_of

ROOT = Path(__file__).resolve().parents[2]


def cells(folder: Path, *args: str) -> subprocess.CompletedProcess:
    programs = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    return subprocess.run(
        ["bash", str(ROOT / "launch" / "cells.sh"), *args],
        env=os.environ | {"PATH": programs},
        cwd=folder,
        capture_output=True,
        text=True,
    )


@pytest.mark.parametrize(
    ("args", "said"),
    [
        ((), "error: CELL and MODEL are needed"),
        (("sft-sft", "tiny"), "error: --tokenizer is needed"),
        (("sft-sft", "tiny", "--tokenize=t"), "error: --tokenize=t is not an option"),
        (("sft-dpo", "tiny", "--tokenizer=t"), "error: sft-dpo is not a cell; choices: sft-sft,"),
    ],
)
def test_a_call_that_cannot_work_says_why(tmp_path, args, said):
    done = cells(tmp_path, *args)
    assert done.returncode == 2
    assert done.stderr.startswith(said)
    assert list(tmp_path.iterdir()) == []


def test_the_usage_names_every_cell():
    text = (ROOT / "launch" / "cells.sh").read_text()
    usage = text.partition("usage='")[2].partition("'\n")[0]
    assert set(re.findall(r"\b(?:sft|rl|none)-(?:sft|rl)\b", usage)) == set(common.CELLS)


@pytest.fixture
def chain(miniature, tmp_path):
    """A folder with what a cell starts from: examples, demonstrations, index and cache."""
    shutil.copytree(miniature.data, tmp_path / "runs" / "ramp")
    shutil.copytree(miniature.index, tmp_path / "runs" / "index")
    c = cli.load_config(f"{ROOT / 'configs' / 'build_cache.py'}:runlocal")
    c.folder, c.cache = str(tmp_path / "runs" / "ramp"), str(tmp_path / "runs" / "ramp" / "cache")
    c.tokenizer = str(miniature.tokenizer)
    build_cache.run(to_dataclass(build_cache.BuildCacheRun, c))
    return tmp_path


@pytest.mark.slow  # a dozen processes
@pytest.mark.usefixtures("optimised")
def test_cells_train_resume_and_are_shown_beside_each_other(chain, miniature):
    given = ("tiny,runlocal", f"--tokenizer={miniature.tokenizer}")
    for cell in ("rl-rl", "none-sft"):
        done = cells(chain, cell, *given)
        assert done.returncode == 0, done.stderr
    runs = chain / "runs" / "cells"
    for stage, before in (("ramp_sft", ""), ("ramp_dapo", "ramp_sft"), ("qa_dapo", "ramp_dapo")):
        made = json.loads((runs / "rl-rl" / stage / "run.json").read_text())["config"]
        assert made["init"] == (f"runs/cells/rl-rl/{before}/checkpoints" if before else "")
        assert (runs / "rl-rl" / stage / "metrics.jsonl").read_text()
    for cell in ("rl-rl", "none-sft"):
        found = json.loads((runs / "eval" / cell / "eval.json").read_text())
        assert found["results"].keys() == {"ramp", "questions"}
    main = data_of((runs / "report.html").read_text())["main"]
    assert {e["place"] for e in main["evaluations"]} == {"RL → RL", "none → SFT"}
    trained = {"RL → RL · RAMP SFT", "RL → RL · RAMP DAPO", "RL → RL · QA DAPO"}
    assert trained <= {s["place"] for s in main["series"]}
    # The same command again trains nothing.
    kept = (runs / "none-sft" / "qa_sft" / "metrics.jsonl").read_bytes()
    again = cells(chain, "none-sft", *given)
    assert again.returncode == 0, again.stderr
    assert (runs / "none-sft" / "qa_sft" / "metrics.jsonl").read_bytes() == kept

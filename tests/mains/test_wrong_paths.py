"""A folder where a file is asked for, or a file for a folder: one line names key, path and rule."""

from __future__ import annotations

import importlib

import pytest

from masksearch_jax.core.tokenizer import train_bpe
from masksearch_jax.corpus.passages import write_passages
from masksearch_jax.runtime import cli
from tests.mains.commands import passages

TINY = "tiny,runlocal"
SCHEMAS = {
    "build_cache": "BuildCacheRun", "build_dataset": "BuildDatasetRun",
    "build_index": "BuildIndexRun", "build_ramp": "BuildRampRun",
    "evolve": "EvolveRun", "export_hf": "ExportRun", "quickstart": "QuickstartRun",
    "report": "ReportConfig", "train_sft": "SftRun",
}  # fmt: skip


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """`file` and `folder`, of no use; `towns.jsonl` and `tokenizer`, of use."""
    folder = tmp_path_factory.mktemp("paths")
    (folder / "folder").mkdir()
    (folder / "file").write_text("some text\n")
    write_passages(folder / "towns.jsonl", passages())
    train_bpe((p.text for p in passages()), folder / "tokenizer", 300)
    return folder


IS_FILE = "{key} is 'file', a file where a folder is needed"
CASES = [
    # a file for the folder to write
    ("quickstart", "quickstart.py:runlocal", "workdir", "file", IS_FILE),
    ("evolve", "evolve.py:runlocal", "workdir", "file", IS_FILE),
    ("build_ramp", "build_ramp.py", "folder", "file", IS_FILE),
    ("build_dataset", "build_dataset.py", "folder", "file", IS_FILE),
    ("build_index", "build_index.py", "index", "file", "file exists and is no index; choose"),
    # a folder for a file
    (
        "build_dataset",
        "build_dataset.py",
        "corpus",
        "folder",
        "config.corpus: 'folder' is a folder; it must name files, such as 'folder/*.jsonl'",
    ),
    (
        "build_ramp",
        "build_ramp.py",
        "corpus.path",
        "folder",
        "the corpus folder is a folder without a file that a reader knows; it reads JSON lines",
    ),
    (
        "build_ramp",
        "build_ramp.py",
        "corpus.questions",
        "folder",
        "the questions folder are a folder; they must be a file: a JSON array, JSON lines, or CSV",
    ),
    # a file, or a folder of something else, for a folder that is read
    ("train_sft", f"ramp_sft.py:{TINY}", "data", "file", "no manifest.json in 'file'"),
    ("train_sft", f"ramp_sft.py:{TINY}", "tokenizer", "file", "'file' is not a local folder"),
    ("build_cache", "build_cache.py", "tokenizer", "file", "'file' is not a local folder"),
    ("export_hf", "export_hf.py:tiny", "checkpoint", "file", "file is no folder of checkpoints"),
    ("report", "report.py", "runs", "('file',)", "file is not the folder of a run"),
]  # fmt: skip
GIVEN = {
    "build_cache": {"folder": "folder", "cache": "made", "tokenizer": "tokenizer"},
    "build_dataset": {"folder": "made", "corpus": "towns.jsonl"},
    "build_index": {"index": "made", "corpus.path": "towns.jsonl"},
    "build_ramp": {"folder": "made", "corpus.path": "towns.jsonl"},
    "export_hf": {"folder": "made", "tokenizer": "tokenizer"},
    "train_sft": {"data": "folder", "workdir": "made", "tokenizer": "tokenizer"},
}


@pytest.mark.parametrize(("main", "config", "key", "value", "said"), CASES)
def test_a_path_of_the_wrong_kind_is_told_in_one_line(
    main, config, key, value, said, place, repository, one_device, monkeypatch, capsys
):
    monkeypatch.chdir(place)
    before = sorted(place.rglob("*"))
    module = importlib.import_module(f"masksearch_jax.{main}")
    given = GIVEN.get(main, {}) | {key: value}
    argv = [main, f"--config={repository / 'configs' / config}"]
    argv += [f"--config.{k}={v}" for k, v in given.items()]
    with pytest.raises(SystemExit) as end:
        cli.run(module.run, getattr(module, SCHEMAS[main]), argv)
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert last.startswith("error: ")
    assert said.format(key=f"config.{key}") in last
    assert "Errno" not in last
    assert end.value.code in (1, 2)
    assert sorted(place.rglob("*")) == before

"""A path that a main needs and nobody gave is named before anything else happens."""

from __future__ import annotations

import importlib
import re
import runpy

import pytest

from masksearch_jax.core.errors import ConfigError
from masksearch_jax.runtime import cli

TOKENIZER = "config.tokenizer is empty; it must name the folder that holds tokenizer.json"
WRITTEN = "the folder to write"
INDEX = "config.search.index is empty; it must name the folder that build_index wrote"

# A folder of a host may yet say what is missing.
UNCHECKED = ("ask", "evaluate", "export_data", "export_hf", "report", "serve_model", "study")

SCHEMAS = {
    "train_sft": "SftRun", "train_dapo": "DapoRun", "build_cache": "BuildCacheRun",
    "export_hf": "ExportRun", "ask": "AskRun",
    "serve_model": "ServeModelRun", "serve_search": "ServeSearchRun",
    "build_index": "BuildIndexRun", "build_ramp": "BuildRampRun",
    "build_dataset": "BuildDatasetRun", "report": "ReportConfig", "quickstart": "QuickstartRun",
    "evolve": "EvolveRun", "evaluate": "EvalRun", "build_trajectories": "BuildTrajectoriesRun",
    "study": "StudyRun", "export_data": "ExportDataRun",
}  # fmt: skip


@pytest.mark.parametrize(
    ("main", "config", "given", "said"),
    [
        (
            "train_sft",
            "ramp_sft.py:tiny",
            {"workdir": ""},
            f"config.workdir is empty; .* {WRITTEN}",
        ),
        (
            "train_sft",
            "ramp_sft.py:tiny",
            {"data": ""},
            "config.data is empty; .* build_cache wrote",
        ),
        ("train_sft", "ramp_sft.py:tiny", {}, TOKENIZER),
        ("train_dapo", "ramp_dapo.py:tiny", {"data": " "}, "config.data is empty"),
        ("train_dapo", "qa_dapo.py:tiny", {}, TOKENIZER),
        ("build_cache", "build_cache.py", {}, TOKENIZER),
        ("build_cache", "build_cache.py", {"folder": ""}, "config.folder is empty; .* build_ramp"),
        ("build_cache", "build_cache.py", {"cache": ""}, f"config.cache is empty; .* {WRITTEN}"),
        ("export_hf", "export_hf.py:tiny", {}, TOKENIZER),
        ("export_hf", "export_hf.py:tiny", {"checkpoint": ""}, "config.checkpoint is empty"),
        ("export_hf", "export_hf.py:tiny", {"folder": ""}, f"config.folder is empty; .* {WRITTEN}"),
        ("ask", "ask.py", {"question": "Why?", "init": ""}, "config.init is empty; .* checkpoints"),
        ("serve_model", "serve_model.py", {"init": ""}, "config.init is empty; it must name a"),
        ("evaluate", "evaluate.py:tiny", {"data": ""}, "config.data is empty; .* build_ramp wrote"),
        ("evaluate", "evaluate.py:tiny", {"workdir": ""}, f"config.workdir is empty; .* {WRITTEN}"),
        ("serve_search", "serve_search.py", {"search.index": ""}, INDEX),
        ("serve_search", "serve_search.py", {"search.kind": "http"}, "config.search.url is empty"),
        ("build_index", "build_index.py", {"index": ""}, "config.index is empty"),
        (
            "build_index",
            "build_index.py",
            {"corpus.path": ""},
            "config.corpus.path is empty; .* a c",
        ),
        ("build_ramp", "build_ramp.py", {"folder": ""}, f"config.folder is empty; .* {WRITTEN}"),
        ("build_dataset", "build_dataset.py", {}, "config.corpus is empty; it must name files"),
        ("build_dataset", "build_dataset.py", {"folder": ""}, "config.folder is empty"),
        (
            "report",
            "report.py",
            {"runs": ""},
            "config.runs is empty; it must name the folders of runs",
        ),
        ("build_trajectories", "build_trajectories.py", {"folder": ""}, "config.folder is empty"),
        (
            "build_trajectories",
            "build_trajectories.py",
            {"teacher": "local", "student.init": " "},
            "config.student.init is empty; .* checkpoints",
        ),
        (
            "build_trajectories",
            "build_trajectories.py",
            {"teacher": "local", "student.tokenizer": ""},
            "config.student.tokenizer is empty; it must name the folder that holds tokenizer.json",
        ),
        ("quickstart", "quickstart.py", {"workdir": ""}, f"config.workdir is empty; .* {WRITTEN}"),
        ("evolve", "evolve.py", {"workdir": ""}, f"config.workdir is empty; .* {WRITTEN}"),
        ("study", "study.py", {"workdir": ""}, f"config.workdir is empty; .* {WRITTEN}"),
        ("export_data", "export_data.py", {"folder": ""}, f"config.folder is empty; .* {WRITTEN}"),
    ],
)
def test_an_empty_path_is_named_with_what_to_give(
    main, config, given, said, repository, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    module = importlib.import_module(f"masksearch_jax.{main}")
    argv = [main, f"--config={repository / 'configs' / config}"]
    argv += [f"--config.{k}={v}" for k, v in given.items()]
    cfg = cli.parse(getattr(module, SCHEMAS[main]), argv)
    with pytest.raises(ConfigError, match=said.replace(".", r"\.").replace(r"\.*", ".*")):
        module.run(cfg)
    assert [p for p in tmp_path.rglob("*") if p.is_file()] == []
    if main not in UNCHECKED:
        monkeypatch.setattr("sys.argv", [*argv, "--check"])
        with pytest.raises(SystemExit) as end:
            runpy.run_path(module.__file__, run_name="__main__")
        assert end.value.code == 2
        assert re.search(said.replace(".", r"\.").replace(r"\.*", ".*"), capsys.readouterr().err)

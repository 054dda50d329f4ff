"""run.json of builders: there from the start, and what other settings replace is told."""

import dataclasses
import json

import pytest

from masksearch_jax import build_dataset, build_index, build_ramp, build_trajectories, coverage
from masksearch_jax.agents import attempts
from masksearch_jax.build_dataset import BuildDatasetRun
from masksearch_jax.build_ramp import BuildRampRun
from masksearch_jax.core.config import SearchConfig
from masksearch_jax.core.corpus_config import CorpusConfig, RampConfig
from masksearch_jax.core.files import BeingWrittenError
from masksearch_jax.core.retrieval import SearchError
from masksearch_jax.core.types import to_json
from masksearch_jax.corpus.passages import write_passages
from masksearch_jax.search import bm25
from tests.mains.commands import build, passages, question, write_lines
from tests.mains.trajectory_job import town, write_towns
from tests.parallel.lock_holder import held


def record(folder):
    return json.loads((folder / "run.json").read_text())


def told(capsys, folder):
    """What stderr says of the folder."""
    return [x.strip() for x in capsys.readouterr().err.splitlines() if f"{folder}: " in x]


def demonstrations_run(folder, **changes):
    search = SearchConfig("bm25", str(folder / "index"), "", 2, 2, 3, 10.0, 2)
    found = {"folder": str(folder), "kinds": ("ramp",), "search": search, "max_searches": 3}
    return build_trajectories.BuildTrajectoriesRun(**found | changes)


def test_demonstrations_of_other_settings_are_told_before_they_are_replaced(tmp_path, capsys):
    write_towns(tmp_path, 12)
    folder = tmp_path / "demonstrations"
    build_trajectories.run(demonstrations_run(tmp_path))
    build_trajectories.run(demonstrations_run(tmp_path, max_failed=0.5))  # decides nothing
    assert told(capsys, folder) == []
    build_trajectories.run(demonstrations_run(tmp_path, seed=1, max_searches=2))
    assert told(capsys, folder) == [
        (
            f"{folder}: demonstrations of ramp of other settings will be replaced (max_searches: "
            "3 → 2; seed: 0 → 1)"
        )
    ]
    assert record(folder)["config"]["seed"] == 1
    write_lines(tmp_path / "ramp" / "train.jsonl", [to_json(town(n)[1]) for n in range(9)])
    build_trajectories.run(demonstrations_run(tmp_path, seed=1, max_searches=2))
    assert told(capsys, folder) == [
        (
            f"{folder}: demonstrations of ramp of other settings will be replaced (its inputs or "
            "the program have changed)"
        )
    ]


def test_a_build_that_was_stopped_says_what_it_was_making(tmp_path, capsys, monkeypatch):
    write_towns(tmp_path, 12)
    folder = tmp_path / "demonstrations"

    def stop(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(attempts, "check_failures", stop)
        with pytest.raises(KeyboardInterrupt):
            build_trajectories.run(demonstrations_run(tmp_path))
        assert record(folder)["config"]["seed"] == 0
        assert not (folder / "train.jsonl").exists()
    build_trajectories.run(demonstrations_run(tmp_path))
    assert len(record(folder)["sessions"]) == 2
    with monkeypatch.context() as patch:
        patch.setattr(attempts, "check_failures", stop)
        with pytest.raises(KeyboardInterrupt):
            build_trajectories.run(demonstrations_run(tmp_path, seed=1))
    assert record(folder)["config"]["seed"] == 0  # as is the file that stands
    capsys.readouterr()
    build_trajectories.run(demonstrations_run(tmp_path))
    assert told(capsys, folder) == []


@pytest.mark.parametrize("main", ["ramp", "demonstrations", "coverage", "dataset"])
def test_a_folder_that_another_process_builds_is_left_alone(tmp_path, repository, main):
    """The second writes, deletes and replaces nothing."""
    write_passages(tmp_path / "towns.jsonl", passages())
    write_lines(tmp_path / "questions.jsonl", [question(i, [f"town:{i}"]) for i in range(12)])
    write_towns(tmp_path, 12)
    out = tmp_path / "out"
    search = SearchConfig(index=str(tmp_path / "index"))
    towns = str(tmp_path / "towns.jsonl")
    make, folder = {
        "ramp": (
            lambda: build_ramp.run(
                BuildRampRun(str(out), CorpusConfig(towns), RampConfig(heldout_fraction=0.3))
            ),
            out,
        ),
        "demonstrations": (lambda: build_trajectories.run(demonstrations_run(tmp_path)), tmp_path),
        "coverage": (
            lambda: coverage.run(
                coverage.CoverageRun(str(tmp_path / "questions.jsonl"), search, str(out))
            ),
            out,
        ),
        "dataset": (lambda: build_dataset.run(BuildDatasetRun(str(out), towns)), out / "ramp"),
    }[main]
    if main == "dataset":
        pytest.importorskip("apache_beam", reason="the extra `beam` is not installed")
    with held(folder) as other:
        before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
        with pytest.raises(BeingWrittenError, match=f"is in use by process {other.pid} on"):
            make()
        assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before
    if main != "dataset":
        assert make()


def test_an_index_has_its_record_at_once_and_tells_what_it_replaces(tmp_path, capsys):
    write_passages(tmp_path / "towns.jsonl", passages())
    index = tmp_path / "index"
    cfg = build_index.BuildIndexRun(CorpusConfig(str(tmp_path / "towns.jsonl")), str(index))
    (tmp_path / "broken.jsonl").write_text("{oops\n")
    broken = dataclasses.replace(cfg, corpus=CorpusConfig(str(tmp_path / "broken.jsonl")))
    with pytest.raises(ValueError, match="not JSON"):
        build_index.run(broken)
    assert record(index)["config"]["corpus"]["path"] == str(tmp_path / "broken.jsonl")
    build_index.run(cfg)
    build_index.run(dataclasses.replace(cfg, workers=2))
    assert told(capsys, index) == []
    with pytest.raises(ValueError, match="not JSON"):
        build_index.run(dataclasses.replace(broken, shards=2))
    found = told(capsys, index)
    assert len(found) == 1
    assert "the index of other settings is replaced (corpus.path: " in found[0]
    assert found[0].endswith("; shards: 1 → 2)")
    assert record(index)["config"]["shards"] == 1  # as has the index that stands
    assert len(bm25.BM25.open(index)) == len(list(passages()))


def test_masks_and_coverage_of_other_settings_are_told(tmp_path, repository, capsys):
    write_passages(tmp_path / "towns.jsonl", passages())
    write_lines(tmp_path / "questions.jsonl", [question(i, [f"town:{i}"]) for i in range(12)])
    out = tmp_path / "out"
    build(repository, tmp_path)
    assert record(out)["config"]["folder"] == str(out)
    build(repository, tmp_path, work__examples=3)
    assert told(capsys, out) == []
    build(repository, tmp_path, ramp__seed=7)
    assert told(capsys, out) == [
        f"{out}: passages, masks and questions of other settings are replaced (ramp.seed: 0 → 7)"
    ]
    bm25.build(passages(), tmp_path / "index")
    cfg = coverage.CoverageRun(
        questions=str(tmp_path / "questions.jsonl"),
        search=SearchConfig(index=str(tmp_path / "index")),
        out=str(tmp_path / "coverage"),
    )
    coverage.run(cfg)
    assert record(tmp_path / "coverage")["config"]["limit"] == 0
    gone = SearchConfig(kind="http", url="http://127.0.0.1:1/retrieve", index=cfg.search.index)
    with pytest.raises(SearchError):
        coverage.run(dataclasses.replace(cfg, search=gone))
    assert record(tmp_path / "coverage")["config"]["search"]["kind"] == "bm25"  # as the table's
    capsys.readouterr()
    coverage.run(dataclasses.replace(cfg, limit=3))
    assert told(capsys, tmp_path / "coverage") == [
        f"{tmp_path / 'coverage'}: the table of other settings will be replaced (limit: 0 → 3)"
    ]
    assert record(tmp_path / "coverage")["config"]["limit"] == 3

"""Examples and trajectories as plain files: what was written is what was there."""

import dataclasses
import gzip
import json

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml

from masksearch_jax import evaluate, export_data
from masksearch_jax.core import atif, jsonl
from masksearch_jax.core.atif_schema import Document
from masksearch_jax.core.config import EvalRun
from masksearch_jax.core.errors import ConfigError
from masksearch_jax.core.eval_config import EvalConfig
from masksearch_jax.core.llm_config import EndpointConfig
from masksearch_jax.core.types import (
    Demonstration,
    Passage,
    QAExample,
    RampExample,
    Segment,
    Span,
    Trajectory,
    Turn,
    from_json,
    to_json,
)
from masksearch_jax.data.folder import KINDS
from masksearch_jax.data.publish import DataCard
from masksearch_jax.export_data import ExportDataRun
from masksearch_jax.runtime import run_record
from masksearch_jax.search.tool import FakeSearch
from masksearch_jax.testing.services import Answer, Endpoint

SPANS = (Span(0, 4, "1928", "DATE"),)
RAMP = RampExample("r1", "p1", "Thames", "[mask] was wet.", "1928 was wet.", SPANS)
QUESTION = QAExample("q1", "made", "Which?", ("blue", "grey"), gold=("p1",))
STATEMENT = QAExample("s1", "statements", "Thames is wet.", ("true",), gold=("p1",))
TURNS = (Turn(("thames",), ("p1",), ("Thames",), 0.0),)
DEMONSTRATION = Demonstration("r1/me", "r1", "ramp_k1", "me", (Segment("policy", "<a>"),), TURNS)
RECORDS = {"ramp": RAMP, "questions": QUESTION, "statements": STATEMENT}
RECORDS["demonstrations"] = DEMONSTRATION
TRAJECTORY = Trajectory(
    "q1",
    0,
    np.array([1, 2, 3], np.int32),
    np.array([0.0, 0.0, -0.5], np.float32),
    np.array([False, False, True]),
    np.array([-1, -1, 4], np.int32),
    2,
    (Segment("prompt", "Which?\n"), Segment("policy", "<answer>blue</answer>")),
    (),
    "answered",
)


@pytest.fixture
def data(tmp_path):
    """A folder as build_ramp and build_trajectories leave it."""
    splits = [(kind, "train") for kind in RECORDS] + [("ramp", "heldout")]
    for kind, split in splits:
        (tmp_path / "data" / kind).mkdir(parents=True, exist_ok=True)
        jsonl.write_jsonl(tmp_path / "data" / kind / f"{split}.jsonl", [RECORDS[kind]])
    return tmp_path / "data"


def line(**facts) -> str:
    return json.dumps(to_json(TRAJECTORY) | {"example": to_json(QUESTION), "tokens": []} | facts)


def test_each_kind_is_json_lines_and_parquet_with_a_card(data, tmp_path):
    card = DataCard(text="A text", license="cc0-1.0")
    cfg = ExportDataRun(folder=str(tmp_path / "out"), data=str(data), card=card)
    written = export_data.run(cfg)
    assert written == {
        "ramp": {"train": 1, "heldout": 1},
        "questions": {"train": 1},
        "statements": {"train": 1},
        "demonstrations": {"train": 1},
    }
    assert list(written) == list(KINDS)
    for subset, record in RECORDS.items():
        path = tmp_path / "out" / subset / "train.parquet"
        (row,) = pq.read_table(path).to_pylist()
        assert from_json(type(record), row) == record
        assert jsonl.read_jsonl(path.with_suffix(".jsonl"), type(record)) == [record]
    card_text = (tmp_path / "out" / "README.md").read_text()
    front = yaml.safe_load(card_text.split("---")[1])
    assert front["license"] == "cc0-1.0"
    files = [f["path"] for c in front["configs"] for f in c["data_files"]]
    assert sorted(files) == sorted(
        str(p.relative_to(tmp_path / "out")) for p in (tmp_path / "out").glob("*/*.parquet")
    )
    assert "| `ramp` | masked paragraphs | `id`, `passage_id`, " in card_text
    assert "| `statements` | statements with their verdicts | `id`, `dataset`, " in card_text
    assert "train: 1, heldout: 1" in card_text


@pytest.mark.parametrize("text", ["no", "1e3", "null", "zh-Hant", "[en", "a: b # c", "česky"])
def test_the_front_matter_of_a_card_says_what_was_given(text, tmp_path):
    """YAML takes a bare no for false; a run's folder, a split, may be called so too."""
    run = tmp_path / "no"
    run.mkdir()
    (run / "trajectories.jsonl").write_text(line() + "\n")
    card = DataCard(language=text, license=text)
    cfg = ExportDataRun(folder=str(tmp_path / "out"), runs=(str(run),), card=card)
    export_data.run(cfg)
    front = yaml.safe_load((tmp_path / "out" / "README.md").read_text().split("\n---\n")[0])
    assert (front["language"], front["license"]) == ([text], text)
    (subset,) = front["configs"]
    assert subset["config_name"] == "trajectories"
    assert subset["data_files"] == [{"split": "no", "path": "trajectories/no.jsonl"}]


def test_an_export_has_its_record_at_once_and_tells_what_it_replaces(
    data, tmp_path, capsys, monkeypatch
):
    out = tmp_path / "out"
    cfg = ExportDataRun(folder=str(out), data=str(data))
    export_data.run(cfg)

    def stop(data, folder, progress):
        assert run_record.read(folder)["config"]["card"]["title"] == "A title"
        raise KeyboardInterrupt

    titled = dataclasses.replace(cfg, card=DataCard(title="A title"))
    with monkeypatch.context() as patch:
        patch.setattr(export_data, "_write_examples", stop)
        with pytest.raises(KeyboardInterrupt):
            export_data.run(titled)
    assert run_record.read(out)["config"]["card"]["title"] == ""  # as is the export that stands
    export_data.run(titled)
    told = [x.strip() for x in capsys.readouterr().err.splitlines() if f"{out}: " in x]
    said = f"{out}: the export of other settings will be replaced (card.title: '' → 'A title')"
    assert told == [said, said]
    assert run_record.read(out)["config"]["card"]["title"] == "A title"


def test_trajectories_of_runs_are_documents(tmp_path):
    evaluation, dapo = tmp_path / "evaluate", tmp_path / "ramp.dapo"
    (dapo / "rollouts").mkdir(parents=True)
    evaluation.mkdir()
    (evaluation / "trajectories.jsonl").write_text(line(suite="ramp", scores={"em": 1.0}) + "\n")
    for step in (2, 10):
        packed = gzip.compress(f"{line(step=step, advantage=0.5)}\n".encode())
        (dapo / "rollouts" / f"{step}.jsonl.gz").write_bytes(packed)
    runs = (str(evaluation), str(dapo))
    written = export_data.run(ExportDataRun(folder=str(tmp_path / "out"), runs=runs))
    assert written == {"trajectories": {"evaluate": 1, "ramp_dapo": 2}}
    folder = tmp_path / "out" / "trajectories"
    read = {
        name: [Document.model_validate_json(text) for text in path.read_text().splitlines()]
        for name in ("evaluate", "ramp_dapo")
        if (path := folder / f"{name}.jsonl")
    }
    (found,) = read["evaluate"]
    assert (found.session_id, found.extra["suite"]) == ("evaluate", "ramp")
    assert found.extra["example"]["answers"] == ["blue", "grey"]
    assert atif.from_atif(found).ids.tolist() == [1, 2, 3]
    assert [d.extra["step"] for d in read["ramp_dapo"]] == [2, 10]


def test_an_empty_reply_of_an_endpoint_comes_back(miniature, tmp_path, monkeypatch):
    """The first, of each method, and an agent's after a search; a search that is empty too."""
    rows = [QAExample(f"q{i}", "d", f"Which town has number n{i}", ("Oslo",)) for i in range(4)]
    jsonl.write_jsonl(tmp_path / "towns.jsonl", rows)
    found = {"n3": [Passage("p", "Oslo", "The answer is Oslo.")]}
    monkeypatch.setattr(evaluate, "open_tool", lambda search: FakeSearch(found))

    def silent(request):
        first, *later = (message["content"] for message in request["messages"])
        if "n1" in first or later:
            return Answer("")
        return Answer("<search>n3</search>" if "n3" in first else "<answer>Oslo</answer>")

    with Endpoint(silent) as endpoint:
        cfg = EvalRun(
            workdir=str(tmp_path / "run"),
            data="",
            model=miniature.cfg.model,
            search=miniature.search,
            rollout=miniature.cfg.rollout,
            endpoint=EndpointConfig(base_url=endpoint.url, model="m", retries=0),
            eval=EvalConfig(
                suites=(f"towns={tmp_path / 'towns.jsonl'}",),
                methods=("closed_book", "rag", "agent"),
                bootstrap=20,
            ),
        )
        evaluate.run(cfg)
    runs = (cfg.workdir,)
    written = export_data.run(ExportDataRun(folder=str(tmp_path / "out"), runs=runs))
    assert written == {"trajectories": {"run": 12}}
    lines = (tmp_path / "out" / "trajectories" / "run.jsonl").read_text().splitlines()
    back = [atif.from_atif(Document.model_validate_json(text)) for text in lines]
    empty = [t for t in back if Segment("policy", "") in t.segments]
    assert sorted(t.example_id for t in empty) == ["q1", "q1", "q1", "q3"]
    (searched,) = (t for t in empty if t.example_id == "q3")
    assert [s.author for s in searched.segments] == ["prompt", "policy", "tool", "policy"]
    assert len(searched.turns) == 1


def test_a_card_names_files_of_one_kind_for_the_hub(data, tmp_path):
    """The hub's reader takes one format for all parts of a folder."""
    run = tmp_path / "evaluate"
    run.mkdir()
    (run / "trajectories.jsonl").write_text(line() + "\n")

    def written(folder: str, **given) -> tuple[str, set[str]]:
        export_data.run(ExportDataRun(folder=str(tmp_path / folder), runs=(str(run),), **given))
        text = (tmp_path / folder / "README.md").read_text()
        parts = yaml.safe_load(text.split("---")[1])["configs"]
        return text, {f["path"].rpartition(".")[2] for c in parts for f in c["data_files"]}

    text, kinds = written("both", data=str(data))
    assert kinds == {"parquet"}
    assert 'load_dataset("both", "ramp")' in text
    documents = 'load_dataset("json", data_files="{}/trajectories/evaluate.jsonl")'
    assert documents.format("both") in text
    text, kinds = written("documents")
    assert kinds == {"jsonl"}
    assert documents.format("documents") in text
    assert "parquet" not in text


@pytest.mark.parametrize(
    ("values", "error", "said"),
    [
        ({}, ConfigError, "config.data and config.runs are empty"),
        ({"folder": " ", "data": "x"}, ConfigError, "config.folder is empty"),
        ({"data": "a"}, ConfigError, "none of ramp, questions, statements, demonstrations"),
        ({"runs": ("a",)}, ConfigError, "holds neither trajectories.jsonl nor rollouts/"),
        ({"runs": ("a/run", "b/run")}, ConfigError, "two folders of one name"),
        ({"runs": ("bad",)}, export_data.ExportDataError, r"trajectories.jsonl:1: not a traj"),
        ({"runs": ("cut",)}, export_data.ExportDataError, r"trajectories.jsonl:1: not JSON"),
    ],
)
def test_what_cannot_be_written_is_named(values, error, said, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, text in (("a/run", line()), ("b/run", line()), ("bad", "{}"), ("cut", "{")):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "trajectories.jsonl").write_text(text)
    with pytest.raises(error, match=said):
        export_data.run(ExportDataRun(**{"folder": "out"} | values))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("folder", "said"),
    [
        ("runs/ramp", r"'runs/ramp', which is config\.data, 'runs/ramp'"),
        ("runs", r"'runs', which contains config\.data, 'runs/ramp'"),
        (".", r"'\.', which contains config\.data, 'runs/ramp'"),
        ("runs/ramp/x", r"'runs/ramp/x', which lies within config\.data, 'runs/ramp'"),
        ("linked", r"'linked', which is config\.data, 'runs/ramp'"),
        ("evaluate", r"'evaluate', which is config\.runs\[0\], 'evaluate'"),
        ("evaluate/x", r"'evaluate/x', which lies within config\.runs\[0\], 'evaluate'"),
        ("notes", r"'notes', which is there and has no run\.json of an earlier export"),
        ("trained", r"'trained', which is there and has no run\.json of an earlier export"),
        ("file", r"'file', which is there and has no run\.json of an earlier export"),
    ],
)
def test_an_export_replaces_nothing_but_an_export(folder, said, data, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("runs", "evaluate", "notes", "trained"):
        (tmp_path / name).mkdir()
    data.rename(tmp_path / "runs" / "ramp")
    (tmp_path / "linked").symlink_to("runs/ramp")
    (tmp_path / "evaluate" / "trajectories.jsonl").write_text(line() + "\n")
    (tmp_path / "notes" / "mine.txt").write_text("mine")
    (tmp_path / "file").write_text("mine")
    record = {"config": {"data": "x", "sft": {}}, "content": {}, "sessions": []}
    (tmp_path / "trained" / "run.json").write_text(json.dumps(record))
    (tmp_path / "trained" / "metrics.jsonl").write_text("")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(ConfigError, match=f"^config.folder is {said}"):
        export_data.run(ExportDataRun(folder=folder, data="runs/ramp", runs=("evaluate",)))
    assert sorted(tmp_path.rglob("*")) == before


def test_an_empty_folder_is_written(data, tmp_path):
    (tmp_path / "out").mkdir()
    export_data.run(ExportDataRun(folder=str(tmp_path / "out"), data=str(data)))
    assert (tmp_path / "out" / "README.md").is_file()

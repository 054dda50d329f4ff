"""The mains one after another, by their configs' own paths, and what each says of bad input."""

import json
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pytest
from flax import nnx
from pyarrow import parquet
from safetensors.numpy import load_file, save_file

from configs import common
from masksearch_jax import build_ramp
from masksearch_jax.core.config import CheckpointConfig, ComputeConfig, ModelConfig, OptimConfig
from masksearch_jax.core.jsonl import read_jsonl
from masksearch_jax.core.schema import to_dataclass
from masksearch_jax.core.tokenizer import train_bpe
from masksearch_jax.core.types import SPLITS, Passage, QAExample, RampExample, Span, to_json
from masksearch_jax.corpus.passages import read_passages, write_passages
from masksearch_jax.models import hf
from masksearch_jax.models.transformer import Transformer
from masksearch_jax.training import train_state
from masksearch_jax.training.checkpoint import Checkpointer
from tests.mains.commands import TOWNS, build, failure, passages, question, run, write_lines

TINY = to_dataclass(ModelConfig, common.model("tiny"))
FLOAT32 = ComputeConfig("float32", "float32", "xla", "none", 1024)


@pytest.fixture
def towns(tmp_path):
    """A corpus of a dozen passages and as many questions about them."""
    write_passages(tmp_path / "towns.jsonl", passages())
    asked = [question(i, [f"town:{i}"]) for i in range(len(TOWNS))]
    write_lines(tmp_path / "questions.jsonl", asked)
    return tmp_path


# ---- build_ramp


def test_every_record_is_written_or_counted(towns, repository, capsys):
    rows = [json.dumps({"id": p.id, "title": p.title, "text": p.text}) for p in passages()]
    write_lines(towns / "towns.jsonl", [*rows[:3], "{oops", *rows[3:], rows[0]])
    asked = [question(i, [f"town:{i}"]) for i in range(4)] + [question(4, ["town:99"]), "[]"]
    write_lines(towns / "questions.jsonl", asked)
    made = build(repository, towns, corpus__max_bad_fraction=0.5)
    out = towns / "out"
    assert "not JSON" not in capsys.readouterr().err  # rows are named in a file alone
    listed = sorted((out / "dropped.txt").read_text().splitlines())
    assert len(listed) == 3
    assert listed[0].startswith(f"{towns / 'questions.jsonl'}:6: ")
    assert listed[1] == f"{towns / 'towns.jsonl'}:14: duplicate id: 'town:0'"
    assert listed[2].startswith(f"{towns / 'towns.jsonl'}:4: not JSON")
    told = build_ramp.lines(made, out)
    assert told[-2:] == [
        f"all reasons, with an example of each: {out / 'counts.json'}",
        f"rows that could not be read: {out / 'dropped.txt'}",
    ]
    assert made["corpus"] == {"in": 14, "out": 12, "dropped": {"not JSON": 1, "duplicate id": 1}}
    assert made["questions"]["in"] == 6
    assert made["questions"]["dropped"] == {
        "not a JSON object": 1,
        "gold passage not in the corpus": 1,
    }
    assert list(read_passages(out / "passages.jsonl")) == list(passages())
    assert not (out / "paragraphs.jsonl").exists()
    splits = {
        s: read_jsonl(out / "ramp" / f"{s}.jsonl", RampExample) for s in ("train", "rl", "heldout")
    }
    titles = {s: {e.title for e in examples} for s, examples in splits.items()}
    assert set.union(*titles.values()) == set(TOWNS)
    assert sum(map(len, titles.values())) == len(TOWNS)
    asked = [p for s in ("train", "heldout") for p in [out / "questions" / f"{s}.jsonl"]]
    kept = [q for p in asked if p.exists() for q in read_jsonl(p, QAExample)]
    assert sorted(q.id for q in kept) == ["q0", "q1", "q2", "q3"]
    by_masks = made["ramp"]["by_masks"]
    assert {s: sum(n.values()) for s, n in by_masks.items()} == {
        s: len(examples) for s, examples in splits.items()
    }
    saved = json.loads((out / "counts.json").read_text())
    assert {k: saved[k] for k in made} == made


def contents(folder):
    return {
        str(p.relative_to(folder)): (p.stat().st_mtime_ns, p.read_bytes())
        for p in sorted(folder.rglob("*"))
        if p.is_file()
    }


def made(folder):
    """What is in the files, but for when they were made."""
    return {name: text for name, (_, text) in contents(folder).items() if name != "run.json"}


def test_the_same_command_changes_nothing(towns, repository):
    first = build(repository, towns)
    before = contents(towns / "out")
    assert build(repository, towns) == first
    assert contents(towns / "out") == before


def test_parts_of_another_size_are_another_build(towns, repository):
    """Numbers of masks are balanced in each; processes decide nothing."""
    first = build(repository, towns, work__part=2)
    before = contents(towns / "out")
    assert build(repository, towns, work__part=2, work__workers=2) == first
    assert contents(towns / "out") == before
    build(repository, towns)
    again = made(towns / "out")
    build(repository, towns, folder=towns / "new")
    assert made(towns / "new") == again
    assert again["ramp/train.jsonl"] != before["ramp/train.jsonl"][1]


@pytest.mark.parametrize("damage", ["ramp/train.jsonl", "passages.jsonl", "counts.json"])
def test_a_damaged_build_is_made_whole(towns, repository, damage):
    first = build(repository, towns)
    before = made(towns / "out")
    (towns / "out" / damage).unlink()
    assert build(repository, towns) == first
    assert made(towns / "out") == before


def test_other_inputs_leave_nothing_of_the_earlier_ones(towns, repository):
    build(repository, towns)
    assert (towns / "out" / "questions" / "train.jsonl").is_file()
    made = build(repository, towns, corpus__questions="", corpus__limit=6)
    assert made["corpus"]["out"] == 6
    assert made["questions"] == {
        "in": 0,
        "out": 0,
        "dropped": {},
        "train": 0,
        "rl": 0,
        "heldout": 0,
    }
    assert not list((towns / "out" / "questions").glob("*"))
    found = read_jsonl(towns / "out" / "ramp" / "train.jsonl", RampExample)
    assert {e.title for e in found} <= set(TOWNS[:6])


def test_another_folder_of_data_is_another_corpus(tmp_path, repository):
    def built(texts):
        folder = tmp_path / "corpus"
        folder.mkdir(exist_ok=True)
        rows = [{"id": p.id, "title": p.title, "text": p.text + texts} for p in passages()]
        parquet.write_table(pa.Table.from_pylist(rows), folder / "data.parquet")
        run(repository, "build_ramp", "build_ramp.py", corpus__path=folder, folder=tmp_path / "out")
        return [p.text for p in read_passages(tmp_path / "out" / "passages.jsonl")]

    assert built("") == [p.text for p in passages()]
    assert built(" More.") == [f"{p.text} More." for p in passages()]


def test_a_build_that_fails_is_not_taken_for_whole(towns, repository, capsys):
    build(repository, towns)
    short = {"corpus__path": towns / "towns.jsonl", "folder": towns / "out", "ramp__max_words": 9}
    status, said = failure(capsys, repository, "build_ramp", "build_ramp.py", **short)
    assert status == 2
    assert "no training example came out of 12 paragraphs (dropped: {'too_long': 12}" in said
    assert not (towns / "out" / "counts.json").exists()


@pytest.mark.parametrize("fails", ["at once", "later"])
def test_what_other_settings_made_is_not_beside_those_of_a_build_that_failed(
    towns, repository, capsys, fails
):
    """The files that stand and run.json are of one build: the earlier one, or neither has any."""
    build(repository, towns)
    before = {p: p.read_bytes() for p in (towns / "out").rglob("*.json*")}
    if fails == "at once":
        changes = {"corpus__questions": write_lines(towns / "none.jsonl", [])}
    else:
        changes = {"corpus__questions": towns / "questions.jsonl", "ramp__max_words": 9}
    given = {"corpus__path": towns / "towns.jsonl", "folder": towns / "out"} | changes
    _, said = failure(capsys, repository, "build_ramp", "build_ramp.py", **given)
    after = {p: p.read_bytes() for p in (towns / "out").rglob("*.json*")}
    if fails == "at once":
        assert said == f"{towns}/none.jsonl holds no questions"
        assert after == before
        return
    assert json.loads((towns / "out" / "run.json").read_text())["config"]["ramp"]["max_words"] == 9
    for split in SPLITS:
        assert (towns / "out" / "ramp" / f"{split}.jsonl").read_text() == ""


@pytest.mark.parametrize(("reworded", "each"), [(False, 1), (True, 3)])
def test_the_atlas_masks_its_articles_or_other_words_for_them(tmp_path, repository, reworded, each):
    told = {"folder": tmp_path, "ramp__reworded": reworded}
    made = run(repository, "build_ramp", "build_ramp.py:runlocal", **told)
    assert made["corpus"] == {"in": 300, "out": 300, "dropped": {}}
    paragraphs = list(read_passages(tmp_path / "paragraphs.jsonl"))
    assert made["ramp"]["in"] == len(paragraphs) == 300 * each
    passages = {p.id: p.text for p in read_passages(tmp_path / "passages.jsonl")}
    known = set(passages)
    copies = sum(p.text == passages[p.id.partition("#")[0]] for p in paragraphs)
    assert copies == 0 if reworded else copies == len(paragraphs)
    asked = read_jsonl(tmp_path / "questions" / "train.jsonl", QAExample)
    assert {p.id.partition("#")[0] for p in paragraphs} == known
    assert {g for q in asked for g in q.gold} <= known
    examples = read_jsonl(tmp_path / "ramp" / "train.jsonl", RampExample)
    assert len(examples) > 300
    assert {e.passage_id for e in examples} <= known


# ---- bad input


def test_a_corpus_that_cannot_be_used(tmp_path, repository, capsys):
    for main, config in (("build_ramp", "build_ramp.py"), ("build_index", "build_index.py")):
        told = (capsys, repository, main, config)
        out = {"folder" if main == "build_ramp" else "index": tmp_path / main}
        status, said = failure(*told, corpus__path=tmp_path / "none.jsonl", **out)
        assert (status, said) == (
            1,
            f"cannot read the corpus {tmp_path / 'none.jsonl'}: No such file or directory",
        )
        empty = write_lines(tmp_path / "empty.jsonl", [])
        status, said = failure(*told, corpus__path=empty, **out)
        assert (status, said) == (1, f"the corpus {empty} is empty")
        rows = [json.dumps({"id": p.id, "title": p.title, "text": p.text}) for p in passages()]
        bad = write_lines(tmp_path / "bad.jsonl", [rows[0], '{"id": 1', *rows[1:]])
        status, said = failure(*told, corpus__path=bad, **out)
        assert status == 1
        assert f"the first is {bad}:2: not JSON" in said
        assert "more than max_bad_fraction 0.01 allows" in said
        assert not (tmp_path / main / "manifest.json").exists()
        assert not (tmp_path / main / "counts.json").exists()


def test_questions_of_another_corpus(towns, repository, capsys):
    write_lines(towns / "questions.jsonl", [question(0, ["wiki:7"])])
    settings = {"corpus__path": towns / "towns.jsonl", "folder": towns / "out"}
    settings["corpus__questions"] = towns / "questions.jsonl"
    status, said = failure(capsys, repository, "build_ramp", "build_ramp.py", **settings)
    assert status == 2
    assert "not one of the 1 questions" in said
    assert "('wiki:7',)" in said


def test_a_typo_names_the_key(repository, capsys):
    status, said = failure(capsys, repository, "build_ramp", "build_ramp.py", ramp__max_mask=3)
    assert status == 2
    assert said.endswith("did you mean --config.ramp.max_masks?")


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """An HF folder with a random tiny model and a tokenizer trained on the towns."""
    folder = tmp_path_factory.mktemp("small")
    train_bpe((p.text for p in passages()), folder / "tokenizer", 512)
    model = Transformer(TINY, FLOAT32, nnx.Rngs(0))
    hf.save(model, folder / "model", tokenizer_dir=folder / "tokenizer")
    return folder / "model"


def broken(small, folder, change):
    """A copy of the HF folder with its tensors as `change` makes them."""
    folder.mkdir()
    for path in small.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    tensors = load_file(small / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def test_a_tensor_that_is_missing_or_misshapen(small, tmp_path, repository, capsys):
    name = "model.layers.2.mlp.up_proj.weight"
    missing = broken(small, tmp_path / "missing", lambda t: t.pop(name))
    shape = {name: np.zeros((3, 4), np.float32)}
    misshapen = broken(small, tmp_path / "misshapen", lambda t: t.update(shape))
    said = {
        missing: f"{missing}: 1 tensors are missing: ['{name}']",
        misshapen: f"{misshapen}: {name} has shape (3, 4), expected (384, 128)",
    }
    (tmp_path / "data" / "ramp").mkdir(parents=True)
    spans = (Span(0, 4, "Oslo", "PLACE"),)
    item = RampExample("e", "p", "Oslo", "[mask] is a town.", "Oslo is a town.", spans)
    write_lines(tmp_path / "data" / "ramp" / "heldout.jsonl", [to_json(item)])
    for folder, message in said.items():
        found = failure(
            capsys, repository, "evaluate", "evaluate.py:tiny,runlocal", init=folder,
            tokenizer=small, data=tmp_path / "data", search__kind="none", eval__suites="ramp",
            eval__methods="no_search", workdir=tmp_path / "eval",
        )  # fmt: skip
        assert found == (1, message)
        found = failure(
            capsys, repository, "ask", "ask.py", init=folder, question="Why?", search__kind="none"
        )
        assert found == (1, message)


def test_a_hub_name_is_no_folder(small, towns, repository, capsys, monkeypatch):
    monkeypatch.chdir(towns)
    build(repository, towns, folder="runs/ramp")
    name = "Qwen/Qwen2.5-1.5B"
    for main, config, settings in (
        ("build_cache", "build_cache.py", {"tokenizer": name}),
        ("evaluate", "evaluate.py", {"tokenizer": name}),
        ("evaluate", "evaluate.py:tiny", {"tokenizer": small, "init": name}),
        ("ask", "ask.py", {"init": name, "question": "Why?"}),
    ):
        extra = {"search__kind": "none"} if main in ("evaluate", "ask") else {}
        if main == "evaluate":
            extra |= {"eval__suites": "ramp", "eval__methods": "agent"}
        status, said = failure(capsys, repository, main, config, **settings, **extra)
        assert status in (1, 2)
        assert f"'{name}'" in said
        assert "not a local folder" in said


@pytest.fixture
def disk(tmp_path):
    """A file system of 1 MiB and a function that makes it larger."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
    try:
        subprocess.run(mount, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"no file system can be mounted here: {error}")
    larger = ["mount", "-o", "remount,size=64m", str(folder)]
    yield folder, lambda: subprocess.run(larger, check=True)
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_is_said_and_survived(disk, towns, repository, capsys):
    folder, grow = disk
    long = [Passage(f"long:{i}", f"Long {i}", "A " + "word " * 5000) for i in range(80)]
    write_passages(towns / "towns.jsonl", [*passages(), *long])
    ramp = ("build_ramp", "build_ramp.py")
    index = ("build_index", "build_index.py")
    into = {"corpus__path": towns / "towns.jsonl"}
    for command, out in ((ramp, {"folder": folder / "d"}), (index, {"index": folder / "i"})):
        status, said = failure(capsys, repository, *command, **into, **out)
        assert status == 1
        assert "the disk is full" in said or "No space left" in said
        left = {p.name for p in folder.rglob("*") if p.is_file()}
        assert left <= {"run.json"}, "left over"
    grow()
    made = run(repository, *ramp, **into, folder=folder / "d", clean__max_drop=1.0)
    assert made["corpus"]["out"] == 92
    assert run(repository, *index, **into, index=folder / "i")["passages"] == 92


def test_a_true_process_fails_with_one_line_and_a_status(tmp_path, repository):
    done = subprocess.run(
        [sys.executable, "-m", "masksearch_jax.build_ramp", "--config=configs/build_ramp.py",
         f"--config.corpus.path={tmp_path / 'none.jsonl'}", f"--config.folder={tmp_path}"],
        cwd=repository, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr == (
        f"error: cannot read the corpus {tmp_path / 'none.jsonl'}: No such file or directory\n"
    )


def test_a_checkpoint_of_another_model(small, tmp_path, repository, capsys):
    optim = OptimConfig(1e-3, "constant", 0, 1.0, 0.9, 0.95, 1e-8, 0.0, 1.0, 1)
    state = train_state.init_state(
        Transformer(TINY, FLOAT32, nnx.Rngs(0)), train_state.make_optimizer(optim, 1)
    )
    with Checkpointer(tmp_path / "checkpoints", CheckpointConfig(1, 1), TINY) as checkpointer:
        checkpointer.save(1, state, {})
    status, said = failure(
        capsys, repository, "export_hf", "export_hf.py:tiny", tokenizer=small,
        checkpoint=tmp_path / "checkpoints", folder=tmp_path / "export", model__num_layers=2,
    )  # fmt: skip
    assert status == 1
    assert said == (
        "step 1 is of another model: num_layers: 3 stored, 2 asked for; `:hf` in place of a "
        "model's name takes the architecture that the checkpoints record"
    )
    assert not (tmp_path / "export").exists()

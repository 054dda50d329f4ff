"""RAMP as a TFDS dataset: what Beam makes of a corpus, and who reads it."""

import collections
import dataclasses
import functools
import gzip
import hashlib
import itertools
import json
import os
import signal
import subprocess
import sys
import time
import types
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("apache_beam", reason="Apache Beam is not installed: pip install -e '.[beam]'")

from masksearch_jax import build_cache, build_dataset, build_ramp
from masksearch_jax.core import stamp
from masksearch_jax.core.config import PromptConfig
from masksearch_jax.core.errors import ConfigError, UserError
from masksearch_jax.core.jsonl import read_jsonl, write_jsonl
from masksearch_jax.core.rows import lay
from masksearch_jax.core.tokenizer import train_bpe
from masksearch_jax.core.types import (
    Demonstration,
    Passage,
    RampExample,
    Segment,
    from_json,
    to_json,
)
from masksearch_jax.corpus.tally import ShareError
from masksearch_jax.data import batches, cache
from masksearch_jax.data.folder import Folder, RecordError
from masksearch_jax.ramp import beam, masking, spans, tfds_records
from masksearch_jax.ramp.examples import split_of
from masksearch_jax.runtime import cli, run_record

seqio, tasks = build_cache._import_seqio()
import tensorflow as tf  # noqa: E402
import tensorflow_datasets as tfds  # noqa: E402
from seqio import test_utils as seqio_test  # noqa: E402

pytestmark = [
    pytest.mark.slow,  # Beam and TFDS start
    pytest.mark.filterwarnings("ignore:::apache_beam", "ignore:::tensorflow_datasets"),
]

REPOSITORY = Path(__file__).resolve().parents[2]
NAMES = ("Ada Byron", "Karl Weber", "Ida Noddack", "Emil Post", "Rosa Lee")


def paragraphs(count: int) -> list[Passage]:
    """Paragraphs with 1 to 6 names and years to mask, two of each article."""
    made = []
    for i in range(count):
        facts = [
            f"it was found by {NAMES[(i + j) % 5]} in {1800 + 7 * i % 190 + j}"
            for j in range(1 + i % 3)
        ]
        made.append(Passage(f"p{i}", f"Subject {i // 2}", f"So they say, {', and '.join(facts)}."))
    return made


def line(passage: Passage) -> bytes:
    return json.dumps(to_json(passage)).encode() + b"\n"


def write_corpus(folder: Path, passages: list[Passage], files: int) -> str:
    """The passages over gzipped files, with a line that is none; returns the pattern of them."""
    folder.mkdir()
    for number in range(files):
        with gzip.open(folder / f"part-{number}.jsonl.gz", "wb") as file:
            file.writelines(map(line, passages[number::files]))
            if number == 0:
                file.write(b"not json\n")
    return f"{folder}/*.jsonl.gz"


def config(
    corpus: str, folder: Path, options: str = "", **changes
) -> build_dataset.BuildDatasetRun:
    given = {"corpus": corpus, "folder": folder, "beam.options": options, "max_bad_fraction": 0.05}
    given |= {f"ramp.{name}": 0.2 for name in ("rl_fraction", "heldout_fraction")}
    return parse(build_dataset.BuildDatasetRun, given | {"ramp.max_masks": 2} | changes)


def parse(schema: type, given: dict):
    """The run of the main's config with these values."""
    name = schema.__module__.rpartition(".")[2]
    flags = (f"--config.{key}={value}" for key, value in given.items())
    return cli.parse(schema, [name, f"--config={REPOSITORY / 'configs' / name}.py", *flags])


GIVEN = paragraphs(58)
AGAIN = [dataclasses.replace(GIVEN[3], id="p3again"), dataclasses.replace(GIVEN[4], text="Short.")]
TWICE = dataclasses.replace(GIVEN[5], text=f"{GIVEN[5].text} And again.")


@dataclasses.dataclass(frozen=True)
class Made:
    cfg: build_dataset.BuildDatasetRun
    counts: dict
    records: dict

    @property
    def root(self) -> Path:
        return Path(self.cfg.folder) / "ramp"


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Made:
    """A dataset from three files: 58 paragraphs, a copy, one of another's id, a short one."""
    folder = tmp_path_factory.mktemp("dataset")
    cfg = config(write_corpus(folder / "corpus", [*GIVEN, *AGAIN, TWICE], 3), folder)
    return Made(cfg, build_dataset.run(cfg), tfds_records.records_of(folder))


def examples(by_masks) -> dict[str, list]:
    found = collections.defaultdict(list)
    for by_split in by_masks.values():
        for split, records in by_split.items():
            found[split] += records
    return found


# ---- the rule


def test_shares_pour_like_water():
    assert beam.shares({4: 100}, 4) == {4: (0.25, 0.25, 0.25, 0.25)}
    assert beam.shares({1: 10, 2: 6, 5: 20}, 3) == {
        1: (1.0,),
        2: (0.0, 1.0),
        5: (0.1, 0.3, 0.6),
    }
    assert beam.shares({}, 4) == {}


@given(st.dictionaries(st.integers(1, 7), st.integers(1, 300), min_size=1), st.integers(1, 4))
def test_shares_balance_as_well_as_choosing_one_by_one(histogram, max_masks):
    expected = [0.0] * max_masks
    for n, odds in beam.shares(histogram, max_masks).items():
        assert len(odds) == min(n, max_masks)
        assert sum(odds) == pytest.approx(1)
        for k, share in enumerate(odds):
            expected[k] += share * histogram[n]
    by_hand = [0] * max_masks
    for n, count in sorted(histogram.items()):
        for _ in range(count):
            by_hand[min(range(min(n, max_masks)), key=by_hand.__getitem__)] += 1
    assert max(abs(a - b) for a, b in zip(expected, by_hand, strict=True)) < max_masks


def test_a_draw_depends_on_its_paragraph_alone(made):
    odds = {n: (1.0,) * min(n, 4) for n in range(1, 8)}
    found = spans.RulesExtractor().find([GIVEN[2]])[0].spans
    first = list(beam.draw(GIVEN[2], found, odds, made.cfg.ramp))
    list(beam.draw(dataclasses.replace(GIVEN[2], id="x"), found, odds, made.cfg.ramp))
    assert list(beam.draw(GIVEN[2], found, odds, made.cfg.ramp)) == first
    only = {len(found): (1.0, 0.0, 0.0, 0.0)}
    assert {e.k for e in beam.draw(GIVEN[2], found, only, made.cfg.ramp)} == {1}


# ---- the dataset


def test_every_paragraph_is_used_or_counted_with_its_reason(made):
    corpus, found = made.counts["corpus"], made.counts["ramp"]
    assert corpus == {
        "in": 62,
        "out": 61,
        "dropped": {"not JSON": 1},
        "such_as": {"not JSON": ["part-0.jsonl.gz: b'not json'"]},
    }
    assert made.counts["clean"] == {
        "in": 61,
        "out": 60,
        "dropped": {"not_prose": 1},
        "such_as": {"not_prose": ["p4"]},
    }
    lost = dict(found["dropped"])
    again = lost.pop("same_masks_again", 0)
    assert lost == {"duplicate_id": 1, "duplicate_text": 1}
    assert found["such_as"]["duplicate_text"] == ["p3again"]
    assert found["such_as"]["duplicate_id"] == ["p5"]
    assert found["used"] == 60 - 2 == found["in"] - sum(lost.values())
    assert found["out"] == 2 * found["used"] - again
    assert found["out"] == sum(sum(by_k.values()) for by_k in found["by_masks"].values())
    assert found["refused_spans"]


def test_examples_are_whole_and_split_by_article(made):
    by_split, texts = examples(made.records), {p.id: p.text for p in GIVEN}
    titles = {split: {e.title for e in found} for split, found in by_split.items()}
    assert set(by_split) == {"train", "rl", "heldout"}
    for split, found in by_split.items():
        assert len({e.id for e in found}) == len(found)
        for e in found:
            assert split_of(e.title, made.cfg.ramp) == split
            assert texts[e.passage_id] == e.paragraph
            assert masking.unmask(e.masked, [s.text for s in e.spans]) == e.paragraph
            assert all(e.paragraph[s.start : s.end] == s.text for s in e.spans)
    assert not titles["train"] & titles["heldout"]
    assert not (titles["train"] | titles["heldout"]) & titles["rl"]
    counted = {
        split: {str(k): len(s[split]) for k, s in made.records.items() if split in s}
        for split in by_split
    }
    assert counted == made.counts["ramp"]["by_masks"]


def test_the_checksums_are_those_of_all_files(made):
    sums = dict(
        reversed(text.split("  ")) for text in (made.root / "SHA256SUMS").read_text().splitlines()
    )
    files = {
        p.relative_to(made.root).as_posix(): p for p in made.root.glob("k*/**/*") if p.is_file()
    }
    assert sums.keys() == files.keys()
    for name, path in files.items():
        assert hashlib.sha256(path.read_bytes()).hexdigest() == sums[name]
    assert sorted(p.name for p in made.root.iterdir()) == [
        "SHA256SUMS", "counts.json", "k1", "k2", "run.json"
    ]  # fmt: skip


def test_neither_files_nor_workers_change_an_example(made, tmp_path):
    corpus = write_corpus(tmp_path / "corpus", [TWICE, *reversed(AGAIN), *reversed(GIVEN)], 1)
    options = "--direct_num_workers=2 --direct_running_mode=multi_threading"
    cfg = config(corpus, tmp_path, options)
    work = tmp_path / "work"
    files, rules = build_dataset.files_of(cfg.corpus), build_dataset.rules_of(cfg)
    counts = build_dataset.extract(cfg, rules, files, build_dataset.epath.Path(work))
    lines = [
        json.loads(text)
        for path in work.glob("k*/part*")
        for text in gzip.decompress(path.read_bytes()).decode().splitlines()
    ]
    expected = [
        to_json(e) | {"split": split}
        for split, found in examples(made.records).items()
        for e in found
    ]
    by_id = lambda row: row["id"]  # noqa: E731
    assert sorted(lines, key=by_id) == json.loads(json.dumps(sorted(expected, key=by_id)))
    assert counts["ramp"]["by_masks"] == made.counts["ramp"]["by_masks"]


def states(root: Path) -> dict[str, int]:
    return {str(p): p.stat().st_mtime_ns for p in root.rglob("*") if p.is_file()}


def test_the_same_command_changes_nothing(made):
    before = states(made.root)
    assert build_dataset.run(made.cfg) == made.counts
    assert states(made.root) == before


def test_a_stopped_build_has_its_record_and_tells_what_it_replaces(
    made, tmp_path, capsys, monkeypatch
):
    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(build_dataset, "extract", stop)
    root = tmp_path / "ramp"
    for words in (14, 15, 15):
        cfg = config(made.cfg.corpus, tmp_path, **{"ramp.min_words": words})
        with pytest.raises(KeyboardInterrupt):
            build_dataset.run(cfg)
        assert run_record.read(root)["config"]["ramp"]["min_words"] == words
        root.mkdir(exist_ok=True)
        stamp.write(root / "counts.json", {}, "of other inputs")
    assert len(run_record.read(root)["sessions"]) == 2
    told = [x.strip() for x in capsys.readouterr().err.splitlines() if f"{root}: " in x]
    assert told == [
        f"{root}: the dataset of other settings is replaced ({why})"
        for why in ("ramp.min_words: 14 → 15", "its inputs or the program have changed")
    ]


def test_a_build_stopped_while_it_hashes_makes_no_example_again(made, tmp_path, monkeypatch):
    folder = tmp_path / "dataset"
    subprocess.run(["cp", "-r", "--preserve=timestamps", made.cfg.folder, folder], check=True)
    root, cfg = folder / "ramp", dataclasses.replace(made.cfg, folder=str(folder))
    (root / "SHA256SUMS").unlink()

    def stop(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(build_dataset, "_finish", stop)
        with pytest.raises(KeyboardInterrupt):
            build_dataset.run(cfg)
    monkeypatch.setattr(build_dataset, "extract", stop)
    assert build_dataset.run(cfg) == made.counts
    assert not list(root.glob(".examples-*"))


def test_a_half_written_config_is_made_again_and_a_finished_one_kept(made, tmp_path):
    folder = tmp_path / "dataset"
    subprocess.run(["cp", "-r", "--preserve=timestamps", made.cfg.folder, folder], check=True)
    root = folder / "ramp"
    (root / "SHA256SUMS").unlink()
    (root / "k2" / "1.0.0").rename(root / "k2" / "incomplete.X_1.0.0")
    with pytest.raises(FileNotFoundError, match="did not finish"):
        tfds_records.records_of(folder)
    before = states(root)
    build_dataset.run(dataclasses.replace(made.cfg, folder=str(folder)))
    kept = {p for p, time in states(root).items() if before.get(p) == time}
    assert {Path(p).relative_to(root).parts[0] for p in kept} == {"k1"}
    assert [p.name for p in (root / "k2").iterdir()] == ["1.0.0"]
    assert list(tfds_records.records_of(folder)[2]["train"]) == list(made.records[2]["train"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"max_bad_fraction": 0.01}, r"1 of 62 lines are malformed, more than .*=0.01 .*not JSON"),
        ({"ramp.min_words": 50}, r"no training example .* 60 paragraphs .*'too_short': 60"),
        ({"ramp.max_examples": 5}, r"max_examples is 5; it must be 0"),
        ({"ramp.gazetteer": 9}, r"gazetteer is 9; it must be 0 here"),
        ({"ramp.extractor": "llm"}, r"extractor is 'llm'; it must be rules or spacy here"),
        ({"ramp.supported": True}, r"supported is True; it must be False here"),
        ({"ramp.linked": True}, r"linked is True; it must be False here"),
        ({"ramp.strategy": "ppl"}, r"strategy is 'ppl'; it must be random or weighted here"),
        ({"clean.duplicates": 0.8}, r"duplicates is 0.8; it must be 0 here"),
        ({"clean.leakage": "tag"}, r"leakage is 'tag'; it must be keep or drop here"),
        ({"clean.leakage": "drop"}, r"'drop' and config.clean.evaluation is empty"),
        ({"corpus": "/nowhere/*.gz"}, r"no file matches '/nowhere/\*.gz'"),
        ({"beam.options": "--direct_num_worker=2"}, "did you mean --direct_num_workers"),
        ({"folder": ""}, "config.folder is empty; it must name"),
    ],
)
def test_what_cannot_be_built_is_said_and_leaves_nothing(made, tmp_path, changes, message):
    cfg = config(**({"corpus": made.cfg.corpus, "folder": tmp_path} | changes))
    with pytest.raises(UserError, match=message):
        build_dataset.run(cfg)
    assert not [p for p in tmp_path.rglob("*record*") if p.is_file()]
    assert not list(tmp_path.rglob("counts.json"))


def test_examples_in_two_forms_are_refused(made, tmp_path):
    (tmp_path / "ramp").mkdir()
    (tmp_path / "ramp" / "train.jsonl").write_text("")
    with pytest.raises(ConfigError, match=r"as JSONL already: .*train\.jsonl"):
        build_dataset.run(config(made.cfg.corpus, tmp_path))
    subprocess.run(["cp", "-r", *made.root.iterdir(), tmp_path / "ramp"], check=True)
    with pytest.raises(RecordError, match=r"twice, as a TFDS dataset and in .*train\.jsonl"):
        list(Folder(tmp_path).read("ramp", "train"))


_READ = """
import sys
import grain
import tensorflow_datasets as tfds

folder = sys.argv[1]
source = tfds.data_source("ramp/k2", data_dir=folder, split="train")
info = tfds.builder_from_directory(folder + "/ramp/k2/1.0.0").info
assert len(source) == info.splits["train"].num_examples
assert "[mask]" in info.features["masked"].doc.desc
batches = grain.MapDataset.source(source).seed(0).shuffle().to_iter_dataset()
ids = sorted(row["id"].decode() for row in batches)
print(ids, source[0]["spans"]["text"])
print([m for m in ("tensorflow", "apache_beam", "masksearch_jax") if m in sys.modules])
"""


def test_tfds_loads_it_and_so_does_a_users_own_seqio_task(made):
    """What `tfds.load` gives is what is read by number, in the same order, in every split."""
    folder = made.cfg.folder
    for k, by_split in made.records.items():
        loaded, info = tfds.load(f"ramp/k{k}", data_dir=folder, with_info=True)
        assert set(loaded) == set(by_split)
        for split, records in by_split.items():
            rows = list(tfds.as_numpy(loaded[split]))
            assert list(map(tfds_records.from_features, rows)) == list(records)
            assert info.splits[split].num_examples == len(records)
            part = tfds.load(f"ramp/k{k}", data_dir=folder, split=f"{split}[:3]")
            ids = [row["id"].decode() for row in tfds.as_numpy(part)]
            assert ids == [e.id for e in list(records)[:3]]
    text = seqio.Feature(seqio.PassThroughVocabulary(1), add_eos=False, dtype=tf.string, rank=0)
    task = seqio.Task(
        "own",
        source=seqio.TfdsDataSource("ramp/k2:1.0.0", tfds_data_dir=folder),
        preprocessors=[lambda ds: ds.map(lambda row: {"targets": row["masked"]})],
        output_features={"targets": text},
    )
    given = task.get_dataset(None, "heldout", shuffle=False)
    seqio_test.assert_dataset(given, [{"targets": e.masked} for e in made.records[2]["heldout"]])


def test_without_tfrecord_it_is_read_by_number_alone(made, tmp_path):
    cfg = dataclasses.replace(
        made.cfg,
        folder=str(tmp_path),
        tfrecord=False,
        ramp=dataclasses.replace(made.cfg.ramp, max_masks=1),
    )
    counts = build_dataset.run(cfg)
    assert not list(tmp_path.rglob("*.tfrecord*"))
    found = tfds_records.records_of(tmp_path)
    assert {s: len(records) for s, records in found[1].items()} == {
        split: by_k["1"] for split, by_k in counts["ramp"]["by_masks"].items()
    }
    assert len(tfds.data_source("ramp/k1", data_dir=tmp_path, split="train")) == len(
        found[1]["train"]
    )
    with pytest.raises(NotImplementedError, match="as_data_source"):
        tfds.load("ramp/k1", data_dir=tmp_path, split="train")


def test_a_conversion_that_was_killed_goes_on(made, tmp_path):
    folder = tmp_path / "dataset"
    subprocess.run(["cp", "-r", "--preserve=timestamps", made.cfg.folder, folder], check=True)
    root = folder / "ramp"
    sums = (root / "SHA256SUMS").read_text()
    (root / "SHA256SUMS").unlink()
    version = root / "k1" / "1.0.0"
    info = json.loads((version / "dataset_info.json").read_text())
    assert info.pop("alternativeFileFormats") == ["array_record"]
    (version / "dataset_info.json").write_text(json.dumps(info))
    shards = sorted(version.glob("*.array_record*"))
    shards[0].rename(version / f"incomplete.{'0' * 32}.{shards[0].name}")
    before = states(root)
    build_dataset.run(dataclasses.replace(made.cfg, folder=str(folder)))
    kept = {Path(p).name for p, time in states(root).items() if before.get(p) == time}
    assert {p.name for p in shards[1:]} <= kept
    assert any(".tfrecord" in name for name in kept)
    by_name = dict(text.split("  ")[::-1] for text in sums.splitlines())
    again = dict(text.split("  ")[::-1] for text in (root / "SHA256SUMS").read_text().splitlines())
    assert again.keys() == by_name.keys()
    for name in again:
        assert again[name] == by_name[name] or name.endswith(("_info.json", ".array_record"))
    assert list(tfds_records.records_of(folder)[1]["train"]) == list(made.records[1]["train"])


def test_a_users_script_reads_it_through_tfds_and_grain_without_tensorflow(made):
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", _READ, made.cfg.folder],
        capture_output=True, text=True, check=True, cwd=made.root,
    )  # fmt: skip
    records = made.records[2]["train"]
    texts = [s.text.encode() for s in records[0].spans]
    assert done.stdout.splitlines() == [f"{sorted(e.id for e in records)} {texts}", "[]"]


def test_a_killed_build_goes_on_from_its_last_finished_config(made, tmp_path):
    cfg = dataclasses.replace(made.cfg, folder=str(tmp_path))
    flags = [f"--config.{k}={getattr(cfg, k)}" for k in ("corpus", "folder", "max_bad_fraction")]
    flags += [f"--config.ramp.{k}=0.2" for k in ("rl_fraction", "heldout_fraction")]
    flags += ["--config.ramp.max_masks=2"]
    process = subprocess.Popen(
        [sys.executable, "-m", "masksearch_jax.build_dataset",
         "--config=configs/build_dataset.py", *flags],
        cwd=REPOSITORY, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    first = tmp_path / "ramp" / "k1" / "1.0.0" / "dataset_info.json"
    while process.poll() is None:  # until k1 is there in both formats
        if first.is_file() and "array_record" in first.read_text():
            break
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert first.is_file()
    assert not (tmp_path / "ramp" / "SHA256SUMS").exists()
    before = states(tmp_path / "ramp" / "k1")
    assert build_dataset.run(cfg) == made.counts
    assert states(tmp_path / "ramp" / "k1") == before
    assert examples(tfds_records.records_of(tmp_path)) == examples(made.records)


# ---- as build_ramp makes it


HOLE = dataclasses.replace(GIVEN[6], id="hole", text=f"{GIVEN[6].text} It cost US$ million.")
BRACKETS = dataclasses.replace(GIVEN[7], id="mended", text=GIVEN[7].text.replace("So", "So ()"))
ZH = [
    Passage(
        f"z{i}",
        f"条目{i}",
        f"这座城市位于长江的北岸，建于{1800 + i}年，由{name}主持修建，是当地的文化中心之一。",
    )
    for i, name in enumerate(("詹天佑", "梁思成", "林徽因", "贝聿铭"))
]
ARTICLES = [
    Passage(
        f"a{i}",
        f"Article {i}",
        "\n".join([*(p.text for p in GIVEN[i * 6 : i * 6 + 6]), "In the notes"]),
    )
    for i in range(5)
]


def as_build_ramp(cfg: build_dataset.BuildDatasetRun, path: Path, folder: Path) -> tuple:
    """What `build_ramp` makes of the same corpus in one part: examples by split, its counts."""
    same = {"corpus.path": path, "folder": folder}
    same |= {
        f"corpus.{key}": getattr(cfg, key)
        for key in ("language", "articles", "passage_words", "max_bad_fraction")
    }
    run = parse(build_ramp.BuildRampRun, same)
    run = dataclasses.replace(run, clean=cfg.clean, ramp=cfg.ramp)
    counts = build_ramp.run(run)
    found = {
        split: read_jsonl(folder / "ramp" / f"{split}.jsonl", RampExample)
        for split in ("train", "rl", "heldout")
    }
    return found, counts


@pytest.mark.parametrize(
    ("given", "changes"),
    [
        pytest.param(
            [*GIVEN, HOLE, BRACKETS, AGAIN[0]], {"ramp.strategy": "weighted"}, id="weighted"
        ),
        pytest.param([*GIVEN[:9], HOLE, BRACKETS], {"clean.prose": False}, id="any-text"),
        pytest.param([*ZH, GIVEN[0]], {"language": "zh", "ramp.heldout_fraction": 0}, id="zh"),
        pytest.param(ARTICLES, {"articles": True, "passage_words": 40}, id="articles"),
    ],
)
def test_a_paragraphs_examples_are_those_of_build_ramp(tmp_path, given, changes):
    """With one mask an example everywhere, nothing is left to how the numbers are balanced."""
    path = Path(write_corpus(tmp_path / "corpus", given, 1).replace("*", "part-0"))
    cfg = config(str(path), tmp_path, **{"ramp.max_masks": 1, "max_bad_fraction": 0.5} | changes)
    work = tmp_path / "work"
    counts = build_dataset.extract(
        cfg, build_dataset.rules_of(cfg), [str(path)], build_dataset.epath.Path(work)
    )
    found = collections.defaultdict(list)
    for part in work.glob("k1/part*"):
        for text in gzip.decompress(part.read_bytes()).decode().splitlines():
            row = json.loads(text)
            found[row.pop("split")].append(from_json(RampExample, row))
    expected, reference = as_build_ramp(cfg, path, tmp_path / "reference")
    by_id = functools.partial(sorted, key=lambda e: e.id)
    assert expected["train"]
    for split, of_split in expected.items():
        assert by_id(found[split]) == by_id(of_split)
    left_out = [c["corpus"].get("left_out", {}).get("dropped", {}) for c in (counts, reference)]
    assert counts["corpus"]["dropped"] == reference["corpus"]["dropped"]
    assert left_out[0] == left_out[1]
    assert bool(left_out[0]) == cfg.articles
    assert counts["clean"]["dropped"] == reference["clean"]["dropped"]
    lost = dict(counts["ramp"]["dropped"])
    if copies := lost.pop("duplicate_text", 0):
        lost["duplicate"] = copies
    assert lost == reference["ramp"]["dropped"]
    assert counts["ramp"]["refused_spans"] == reference["ramp"]["refused_spans"]


def test_a_dataset_leaves_out_what_is_evaluated_on(tmp_path):
    asked = {"qid": "q0", "dataset": "asked", "question": "Which?", "answers": ["It"]}
    (tmp_path / "questions.jsonl").write_text(json.dumps(asked | {"gold": [GIVEN[0].id]}))
    write_jsonl(tmp_path / "gold.jsonl", GIVEN[:1])
    changes = {
        "clean.leakage": "drop",
        "clean.evaluation": (str(tmp_path / "questions.jsonl"),),
        "clean.evaluation_passages": str(tmp_path / "gold.jsonl"),
    }
    pattern = write_corpus(tmp_path / "corpus", GIVEN[:20], 1)
    cfg = config(pattern, tmp_path, **{"max_bad_fraction": 0.5} | changes)
    files = build_dataset.files_of(pattern)
    counts = build_dataset.extract(
        cfg, build_dataset.rules_of(cfg), files, build_dataset.epath.Path(tmp_path / "work")
    )
    assert counts["clean"]["dropped"]["gold_title"] == 2  # both paragraphs of the article
    by_id = dataclasses.replace(cfg, clean=dataclasses.replace(cfg.clean, evaluation_passages=""))
    with pytest.raises(ConfigError, match=r"names 1 gold passages by id alone, such as '"):
        build_dataset.rules_of(by_id)
    strict = dataclasses.replace(cfg, clean=dataclasses.replace(cfg.clean, max_drop=0.01))
    with pytest.raises(ShareError, match=r"passages to mask: .* of 20 left out, .*max_drop=0.01"):
        build_dataset.extract(
            strict,
            build_dataset.rules_of(strict),
            files,
            build_dataset.epath.Path(tmp_path / "again"),
        )


# ---- seqio and grain


def demonstration(example) -> Demonstration:
    segments = (
        Segment("policy", "<search>it!</search>"),
        Segment("tool", f"<information>{example.title}</information>"),
        Segment("policy", f"<answer>{example.paragraph}</answer>"),
    )
    return Demonstration(f"d-{example.id}", example.id, f"ramp_k{example.k}", "t", segments, ())


@pytest.fixture(scope="module")
def both(made, tmp_path_factory):
    """The same examples and demonstrations in two folders: as a dataset and as JSON lines."""
    folder = tmp_path_factory.mktemp("both")
    dataset, lines, tokenizer = (folder / n for n in ("dataset", "lines", "tokenizer"))
    dataset.mkdir()
    (dataset / "ramp").symlink_to(made.root)
    found = examples(made.records)
    for split, of_split in found.items():
        write_jsonl(lines / "ramp" / f"{split}.jsonl", of_split)
    for place in (dataset, lines):
        write_jsonl(place / "demonstrations" / "train.jsonl", map(demonstration, found["train"]))
    train_bpe((p.text for p in GIVEN), tokenizer, 320)
    register = functools.partial(tasks.register, tokenizer=tokenizer, prompt_style="minimal")
    return types.SimpleNamespace(
        register=register, dataset=dataset, lines=lines, tokenizer=tokenizer
    )


def rows(name, split="train", **kwargs):
    found = seqio.get_mixture_or_task(name)
    data = found.get_dataset(None, split=split, shuffle=kwargs.pop("shuffle", False), **kwargs)
    return list(data.as_numpy_iterator())


def assert_rows_equal(left, right):
    assert len(left) == len(right) > 0
    for a, b in zip(left, right, strict=True):
        assert a.keys() == b.keys()
        for key in a:
            np.testing.assert_array_equal(a[key], b[key], strict=True)


def test_a_task_gives_the_same_from_the_dataset_as_from_lines(both):
    tasks = {"ramp_k1": ("train", "heldout"), "ramp_k2": ("rl",), "ramp_sft_k2": ("train",)}
    names = both.register(both.lines)
    expected = {(n, s): rows(n, s) for n, splits in tasks.items() for s in splits}
    assert both.register(both.dataset) == names
    for (name, split), found in expected.items():
        assert_rows_equal(rows(name, split), found)
        assert seqio.get_mixture_or_task(name).num_input_examples(split) >= len(found)


def test_each_process_reads_its_share_and_shuffling_follows_the_seed(both):
    both.register(both.dataset)
    ids = functools.partial(lambda **kw: [r["id"] for r in rows("ramp_k1", **kw)])
    whole = ids()
    for count in (2, 3):
        shares = [
            ids(shard_info=seqio.ShardInfo(index, count), shuffle=True, seed=3)
            for index in range(count)
        ]
        assert sorted(itertools.chain(*shares)) == sorted(whole)
        assert {len(s) for s in shares} <= {len(whole) // count, len(whole) // count + 1}
    shuffled = ids(shuffle=True, seed=1)
    assert shuffled == ids(shuffle=True, seed=1) != whole
    assert shuffled != ids(shuffle=True, seed=2)
    assert sorted(shuffled) == sorted(whole)


def test_rates_by_temperature_are_those_of_seqio(both):
    names = both.register(both.dataset, temperatures=(1.0, 2.0, 0.5))
    assert names.index("ramp_mixed_t1") == names.index("ramp_mixed") + 1
    for t in (1.0, 2.0, 0.5):
        mixture = seqio.get_mixture_or_task(f"ramp_upto2_t{t:g}")
        for task in mixture.tasks:
            rate = seqio.mixing_rate_num_examples(task, temperature=t)
            assert mixture.get_rate(task) == pytest.approx(rate)
    with pytest.raises(ValueError, match=r"temperatures \[0\] are not positive"):
        both.register(both.dataset, temperatures=(0,))


def test_a_position_in_a_mixture_restores_exactly(both, tmp_path):
    both.register(both.dataset)

    def iterator():
        mixture = seqio.get_mixture_or_task("ramp_mixed")
        return iter(mixture.get_dataset(None, split="train", shuffle=False, num_epochs=None))

    whole = iterator()
    for _ in range(7):
        next(whole)
    path = tf.train.Checkpoint(data=whole).save(str(tmp_path / "position"))
    expected = [next(whole)["targets"].numpy().tolist() for _ in range(12)]
    other = iterator()
    tf.train.Checkpoint(data=other).restore(path).assert_consumed()
    assert [next(other)["targets"].numpy().tolist() for _ in range(12)] == expected


def cache_of(both, folder, tmp_path, **changes):
    values = {"tasks": "", "max_len": 400, "max_prompt_len": 200, "temperatures": (2.0,)}
    build_cache.run(
        build_cache.BuildCacheRun(
            folder=str(folder),
            cache=str(tmp_path / folder.name),
            tokenizer=str(both.tokenizer),
            prompt=PromptConfig("minimal"),
            **(values | changes),
        )
    )
    return cache.Manifest.load(tmp_path / folder.name)


@pytest.fixture(scope="module")
def caches(both, tmp_path_factory):
    folder = tmp_path_factory.mktemp("caches")
    return cache_of(both, both.dataset, folder), cache_of(both, both.lines, folder)


def test_the_cache_of_the_dataset_is_that_of_the_lines(caches):
    of_dataset, of_lines = caches
    assert of_dataset.mixtures == of_lines.mixtures
    assert set(of_dataset.mixtures["ramp_mixed_t2"]) == {"ramp_k1", "ramp_k2"}
    assert of_dataset.tasks.keys() == of_lines.tasks.keys()
    for task, splits in of_lines.tasks.items():
        for split in splits:
            found, expected = (list(m.open(task, split)) for m in caches)
            assert_rows_equal(found, expected)


def test_grain_goes_on_from_a_position_on_another_number_of_processes(caches):
    def streams(count):
        return [
            batches.prompt_batches(
                caches[0], "0:ramp_upto1,4:ramp_mixed_t2", groups=12, seed=5,
                process_index=index, process_count=count,
            )
            for index in range(count)
        ]  # fmt: skip

    def steps(iterators, count):
        return [[p.example.id for it in iterators for p in next(it)] for _ in range(count)]

    expected = steps(streams(1), 9)
    two = streams(2)
    assert steps(two, 3) == expected[:3]
    states = [it.get_state() for it in two]
    assert states[0] == states[1]
    for count in (1, 3, 4):
        again = streams(count)
        for iterator in again:
            iterator.set_state(json.loads(json.dumps(states[0])))
        assert steps(again, 6) == expected[3:]


def test_seqio_and_grain_train_on_the_same_tokens(both, caches):
    from masksearch_jax.data.agent_lm import AgentLMFeatureConverter

    both.register(both.dataset)
    data = seqio.get_dataset(
        "ramp_sft_k1",
        task_feature_lengths={"targets": 400, "agent": 400},
        feature_converter=AgentLMFeatureConverter(pack=True),
        dataset_split="train",
        shuffle=False,
        num_epochs=1,
    )
    assert any(0 in row["targets"] for row in rows("ramp_sft_k1")), "id 0 is a token"
    found, segments = [], 0
    for row in data.as_numpy_iterator():
        ids, inputs = row["decoder_target_tokens"], row["decoder_input_tokens"]
        for segment in range(1, row["decoder_segment_ids"].max() + 1):
            at = row["decoder_segment_ids"] == segment
            assert inputs[at].tolist() == [0, *ids[at][:-1]]
            assert row["decoder_positions"][at].tolist() == list(range(at.sum()))
            found.append(ids[at & (row["decoder_loss_weights"] == 1)].tolist())
        segments = max(segments, segment)
    made = list(caches[0].open("ramp_sft_k1", "train"))
    assert segments > 1
    assert found == [r["ids"][r["agent"]].tolist() for r in made]
    packed = [batches.sft_tokens(record, 0.0, 0) for record in made[:2]]
    batch = lay([packed], 400, batches.SFT_FIELDS)
    weights = batch["loss_weights"][0] == 1
    assert batch["targets"][0][weights].tolist() == found[0] + found[1]


_TASKS = """
import os
from masksearch_jax.data import tasks

tasks.register(os.environ["FOLDER"], tokenizer=os.environ["TOKENIZER"], prompt_style="minimal")
"""
_SEQIO = """
import itertools
import json
import sys

import my_tasks
import seqio

seqio.add_global_cache_dirs([sys.argv[1]])
found = {}
for cached, name in ((False, "ramp_mixed"), (True, "ramp_upto1")):
    task = seqio.get_mixture_or_task("ramp_k1")
    rows = task.get_dataset(None, "heldout", use_cached=cached, shuffle=False).as_numpy_iterator()
    found[f"task {cached}"] = [
        [row["id"].decode(), row["inputs"].tolist(), row["targets"].tolist()] for row in rows
    ]
    mixture = seqio.get_mixture_or_task(name).get_dataset(
        None,
        split="heldout",
        use_cached=cached,
        seed=0,
        num_epochs=None,
        passthrough_features=["id"],
    )
    found[name] = [row["id"].decode() for row in itertools.islice(mixture.as_numpy_iterator(), 400)]
found["stats"] = task.get_cached_stats("heldout")
print(json.dumps(found))
"""


def test_a_users_script_gets_tasks_and_mixtures_cached_by_seqio_and_not(both, made, tmp_path):
    """One import of the user's registers all, in seqio's command too; its cache changes nothing."""
    (tmp_path / "my_tasks.py").write_text(_TASKS)
    settings = {
        "FOLDER": str(both.dataset),
        "TOKENIZER": str(both.tokenizer),
        "PYTHONPATH": f"{REPOSITORY}{os.pathsep}{tmp_path}",
        "PYTHONWARNINGS": "ignore",
    }
    run = functools.partial(
        subprocess.run, env=os.environ | settings, capture_output=True, text=True, cwd=tmp_path
    )
    command = [
        *("-m", "seqio.scripts.cache_tasks_main", "--module_import=my_tasks"),
        *("--tasks=ramp_k1", f"--output_cache_dir={tmp_path / 'cache'}"),
        *("--pipeline_options=--runner=FnApiRunner", "--min_shards=1"),
    ]
    done = run([sys.executable, *command])
    assert done.returncode == 0, done.stderr[-2000:]
    done = run([sys.executable, "-c", _SEQIO, str(tmp_path / "cache")])
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout)

    both.register(both.dataset)
    expected = [
        [row["id"].decode(), row["inputs"].tolist(), row["targets"].tolist()]
        for row in rows("ramp_k1", "heldout")
    ]
    assert found["task False"] == expected
    assert sorted(found["task True"]) == sorted(expected)
    heldout = {e.id for e in examples(made.records)["heldout"]}
    assert set(found["ramp_mixed"]) == heldout
    assert set(found["ramp_upto1"]) == {name for name, _, _ in expected} < heldout
    assert found["stats"]["examples"] == len(expected)
    assert found["stats"]["targets_tokens"] == sum(len(targets) for _, _, targets in expected)

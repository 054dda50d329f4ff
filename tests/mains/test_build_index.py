"""Building an index: all or nothing, whatever kills it; damaged and older indexes are refused."""

import bz2
import dataclasses
import json
import os
import re
import signal
import subprocess
import sys

import pyarrow as pa
import pytest
from pyarrow import parquet

from masksearch_jax import build_index, build_ramp
from masksearch_jax.core.config import SearchConfig
from masksearch_jax.core.corpus_config import CorpusConfig, RampConfig
from masksearch_jax.core.files import BeingWrittenError
from masksearch_jax.core.retrieval import SearchError
from masksearch_jax.core.search_services_config import OpenSearchConfig, OpenSearchLoadConfig
from masksearch_jax.core.types import Passage
from masksearch_jax.corpus.passages import read_passages, write_passages
from masksearch_jax.models.hf_config import HfError
from masksearch_jax.search.bm25 import BM25, build
from masksearch_jax.search.open import open_tool
from masksearch_jax.search.remote import RemoteSearch
from masksearch_jax.testing.search_services import OpenSearchEndpoint
from tests.corpus.wiki import DUMP, RIVER, SEE, prepare_tfds, rows, write_stream
from tests.models.bert_folders import write_encoder
from tests.search.fruit import FRUIT, ids


def test_progress_is_told_the_count(tmp_path):
    told = []
    build((Passage(str(i), "", "x") for i in range(2500)), tmp_path / "i", progress=told.append)
    assert told == [1000, 2000, 2500]


@pytest.mark.parametrize(
    ("passages", "options", "message"),
    [
        ([], {}, "no passages"),
        ([FRUIT[0], FRUIT[1], FRUIT[0]], {}, r"id 'a' occurs twice \(passages 1 and 3\)"),
        ([Passage("bad\ud800", "", "x")], {}, "not valid Unicode"),
        ([Passage("id", "", "x\ud800")], {}, "passage 'id' is not valid Unicode"),
        (FRUIT, {"language": "fr"}, "'fr', must be one of en, zh"),
    ],
)
def test_bad_passages_leave_nothing_behind(tmp_path, passages, options, message):
    with pytest.raises(SearchError, match=message):
        build(passages, tmp_path / "i", **options)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_no_index_is_not_replaced(tmp_path):
    (tmp_path / "i").mkdir()
    build(FRUIT[:1], tmp_path / "i")  # an empty folder may be taken
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    with pytest.raises(SearchError, match="exists and is no index"):
        build(FRUIT, tmp_path / "mine")
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "years of work"


def test_a_new_index_replaces_the_old_one_while_that_is_open(tmp_path):
    build(FRUIT[:2], tmp_path / "i")
    old = BM25.open(tmp_path / "i")
    build(FRUIT[2:], tmp_path / "i")
    new = BM25.open(tmp_path / "i")
    assert (list(old.passages), ids(old, "fruit")) == (list(FRUIT[:2]), ["a", "b"])
    assert (list(new.passages), ids(new, "fruit")) == (list(FRUIT[2:]), ["c"])
    assert [f.name for f in tmp_path.iterdir()] == ["i"]


def test_a_source_that_fails_leaves_the_old_index(tmp_path):
    build(FRUIT, tmp_path / "i")

    def broken():
        yield Passage("new", "", "x")
        raise RuntimeError("source failed")

    with pytest.raises(RuntimeError, match="source failed"):
        build(broken(), tmp_path / "i")
    assert len(BM25.open(tmp_path / "i")) == 6
    assert [f.name for f in tmp_path.iterdir()] == ["i"]


BUILD_FOREVER = """
import itertools, sys
from masksearch_jax.search.bm25 import build
from masksearch_jax.core.types import Passage
build((Passage(str(i), "t", "some text") for i in itertools.count()), sys.argv[1],
      progress=lambda n: print(n, flush=True))
"""


@pytest.mark.parametrize("had_index", [False, True])
def test_a_killed_build_is_never_taken_for_an_index(tmp_path, repository, had_index):
    folder = tmp_path / "i"
    if had_index:
        build(FRUIT, folder)
    with subprocess.Popen(
        [sys.executable, "-c", BUILD_FOREVER, str(folder)], stdout=subprocess.PIPE, cwd=repository
    ) as process:
        assert process.stdout.readline() == b"1000\n"
        build(FRUIT[:1], tmp_path / "other")
        process.send_signal(signal.SIGKILL)
    assert (tmp_path / ".i.partial").is_dir()
    if had_index:
        assert len(BM25.open(folder)) == 6
    else:
        with pytest.raises(SearchError, match="no search index"):
            BM25.open(folder)
    build(FRUIT[:3], folder)
    assert len(BM25.open(folder)) == 3
    assert sorted(f.name for f in tmp_path.iterdir()) == ["i", "other"]


def test_a_build_beside_a_living_one_of_the_same_folder_is_refused(tmp_path):
    folder = tmp_path / "i"

    def slow():
        yield FRUIT[0]
        with pytest.raises(BeingWrittenError, match=r"\.i\.partial is being written by another"):
            build(FRUIT[1:3], folder)
        yield FRUIT[3]

    assert build(slow(), folder) == 2
    assert [p.id for p in BM25.open(folder).passages] == ["a", "d"]
    assert [f.name for f in tmp_path.iterdir()] == ["i"]


BUILD_ON_A_FULL_DISK = """
import resource, sys
from masksearch_jax.search.bm25 import build
from masksearch_jax.search.remote import RemoteSearch
from masksearch_jax.search.tool import SearchError
from masksearch_jax.core.types import Passage
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), int(sys.argv[2])))
try:
    build((Passage(str(i), f"t{i}", f"word{i} " * 9) for i in range(3000)), sys.argv[1])
except SearchError as error:
    print(error)
"""


@pytest.mark.parametrize("limit", [100, 60_000, 300_000])
def test_a_disk_that_takes_no_more_is_a_clear_error(tmp_path, repository, limit):
    command = [sys.executable, "-c", BUILD_ON_A_FULL_DISK, str(tmp_path / "i"), str(limit)]
    out = subprocess.run(command, capture_output=True, timeout=60, cwd=repository)
    assert b"could not be written" in out.stdout, out
    assert list(tmp_path.iterdir()) == []


def rewrite_manifest(folder, **changes):
    path = folder / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def truncate(path, drop=1):
    os.truncate(path, path.stat().st_size - drop)


def flip(path):
    """Turns a byte in the middle of a file over: its size stays."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (lambda f: rewrite_manifest(f, format=0), r"was built as .*'format': 0.* rebuild"),
        (
            lambda f: rewrite_manifest(f, engine="tantivy v0.1"),
            r"tantivy v0\.1.* this program reads",
        ),
        (lambda f: rewrite_manifest(f, count=7), "damaged .*not as it was written"),
        (lambda f: (f / "manifest.json").write_text("{"), "damaged"),
        (lambda f: (f / "manifest.json").write_text("[]"), "damaged"),
        (lambda f: rewrite_manifest(f, language="fr"), "damaged .*not as it was written"),
        (lambda f: rewrite_manifest(f, language="zh"), "damaged .*not as it was written"),
        (lambda f: (f / "manifest.json").unlink(), "no search index"),
        (
            lambda f: truncate(f / "passages.jsonl"),
            r"damaged .*passages.jsonl has \d+ bytes of \d+",
        ),
        (lambda f: (f / "passages.jsonl").unlink(), "damaged"),
        (lambda f: truncate(f / "offsets.npy", 8), "damaged"),
        (lambda f: (f / "ids.npy").write_bytes(b""), "damaged"),
        (lambda f: (f / "terms" / "meta.json").unlink(), "damaged"),
        (lambda f: [t.unlink() for t in (f / "terms").glob("*.term")], "damaged"),
        *(
            (lambda f, kind=kind: flip(next((f / "terms").glob(kind))), "damaged .*another content")
            for kind in ("*.term", "*.idx", "*.fast", "*.store", "*.fieldnorm")
        ),
        (lambda f: flip(f / "passages.jsonl"), "damaged .*passages.jsonl has another content"),
    ],
)
def test_a_damaged_index_or_one_of_another_version_is_refused(tmp_path, harm, message):
    build(FRUIT, tmp_path / "i")
    harm(tmp_path / "i")
    with pytest.raises(SearchError, match=message) as error:
        BM25.open(tmp_path / "i")
    assert "masksearch_jax.build_index" in str(error.value)


def test_the_same_passages_have_the_same_fingerprint_and_others_another(tmp_path):
    for name, passages in (("a", FRUIT), ("b", FRUIT), ("c", FRUIT[:-1]), ("d", FRUIT[::-1])):
        build(passages, tmp_path / name)
    a, b, c, d = (BM25.open(tmp_path / name).fingerprint for name in "abcd")
    assert a == b
    assert len({a, c, d}) == 3


def index_run(path, index, **options):
    corpus = CorpusConfig(path=str(path), questions="", limit=0, max_bad_fraction=0.5)
    return build_index.BuildIndexRun(corpus=corpus, index=str(index), **options)


def test_build_index_counts_what_went_in_and_out(tmp_path):
    write_passages(tmp_path / "c.jsonl", FRUIT)
    with open(tmp_path / "c.jsonl", "a") as file:
        file.write("?\n")
    summary = build_index.run(index_run(tmp_path / "c.jsonl", tmp_path / "i"))
    assert (summary["read"], summary["passages"], summary["dropped"]) == (7, 6, {"not JSON": 1})
    assert summary["bytes"] > 0
    listed = (tmp_path / "i.dropped.txt").read_text().splitlines()
    assert [line.split(": ")[:2] for line in listed] == [[f"{tmp_path / 'c.jsonl'}:7", "not JSON"]]
    assert list(BM25.open(tmp_path / "i").passages) == list(FRUIT)


RAMP = RampConfig(
    cities=0,
    reworded=False,
    extractor="rules",
    max_masks=2,
    examples_per_passage=1,
    min_words=5,
    max_words=200,
    heldout_fraction=0.0,
    rl_fraction=0.0,
    max_examples=0,
    seed=0,
)
ARTICLE = {"id": "9", "title": "Ember", "text": f"{RIVER}\n* a list\n\n{SEE}\nWhat [[is]] it?"}


def corpus_of(kind, folder) -> CorpusConfig:
    """A small corpus of a kind, with what cannot be read or is no prose in it."""
    path = folder / {"dump": "wiki.xml.bz2", "jsonl": "articles.jsonl"}.get(kind, f"a.{kind}")
    bad = {"id": "3", "title": None, "text": "x"}
    if kind == "dump":
        path.write_bytes(bz2.compress("".join(DUMP).encode()))
    elif kind == "tfds":
        path = prepare_tfds(folder)
    elif kind == "jsonl":
        lines = [json.dumps(ARTICLE), "{", json.dumps(ARTICLE)]
        path.write_text("\n".join(lines) + "\n")
    elif kind == "wiki18":
        lines = [
            {"id": i, "contents": f'"{r["title"]}"\n{r["text"]}'} for i, r in enumerate(rows())
        ]
        path.write_text("".join(json.dumps(line) + "\n" for line in [*lines, bad, lines[0]]))
    elif kind == "arrow":
        write_stream(path, pa.Table.from_pylist([*rows(), bad, rows()[0]]))
    else:
        parquet.write_table(pa.Table.from_pylist([*rows(), bad, rows()[0]]), path)
    articles = kind in ("jsonl", "arrow")
    return CorpusConfig(str(path), "", 0, 0.7, articles=articles, passage_words=40)


KINDS = [
    "dump",
    "jsonl",
    "wiki18",
    "parquet",
    "arrow",
    pytest.param("tfds", marks=pytest.mark.slow),
]


@pytest.mark.parametrize("kind", KINDS)
def test_every_corpus_is_indexed_as_build_ramp_reads_it(tmp_path, kind):
    read = corpus_of(kind, tmp_path)
    made = build_ramp.run(build_ramp.BuildRampRun(str(tmp_path / "ramp"), read, RAMP, seed=0))
    summary = build_index.run(build_index.BuildIndexRun(read, str(tmp_path / "i")))
    indexed = list(BM25.open(tmp_path / "i").passages)
    assert indexed == list(read_passages(tmp_path / "ramp" / "passages.jsonl"))
    assert len(indexed) >= 2
    counts = made["corpus"]
    assert [summary[k] for k in ("read", "passages")] == [counts["in"], counts["out"]]
    assert summary["dropped"] == counts["dropped"]
    assert summary["left_out"] == counts.get("left_out", {}).get("dropped", {})
    assert bool(summary["dropped"]) == (kind not in ("dump", "tfds"))
    assert bool(summary["left_out"]) == (kind in ("dump", "jsonl", "tfds"))


@pytest.mark.slow
def test_several_processes_index_the_same(tmp_path):
    read = corpus_of("dump", tmp_path)
    for workers in (1, 2):
        build_index.run(build_index.BuildIndexRun(read, str(tmp_path / str(workers)), workers))
    one, two = (list(BM25.open(tmp_path / name).passages) for name in "12")
    assert one == two


def test_an_index_is_of_the_language_of_its_corpus(tmp_path):
    write_passages(tmp_path / "c.jsonl", [Passage("1", "河", "恩伯河是一条河流，全长84公里。")])
    cfg = index_run(tmp_path / "c.jsonl", tmp_path / "i")
    build_index.run(dataclasses.replace(cfg, corpus=dataclasses.replace(cfg.corpus, language="zh")))
    tool = BM25.open(tmp_path / "i")
    assert tool.language == "zh"
    assert ids(tool, "河流") == ["1"]


def main(name, *overrides, repository):
    return [
        sys.executable,
        "-m",
        f"masksearch_jax.{name}",
        f"--config={repository / 'configs' / name}.py",
        *(f"--config.{o}" for o in overrides),
    ]


def test_build_index_fails_with_a_line_and_a_status(tmp_path, repository):
    command = main(
        "build_index", "corpus.path=none.jsonl", f"index={tmp_path / 'i'}", repository=repository
    )
    out = subprocess.run(command, capture_output=True, cwd=repository)
    assert out.returncode == 1
    last = out.stderr.decode().splitlines()[-1]
    assert last == "error: cannot read the corpus none.jsonl: No such file or directory"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("told", [signal.SIGTERM, signal.SIGHUP])
def test_serve_search_serves_until_it_is_told_to_stop(tmp_path, repository, told):
    build(FRUIT, tmp_path / "i")
    command = main(
        "serve_search", f"search.index={tmp_path / 'i'}", "port=0", repository=repository
    )
    with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=repository) as process:
        url = re.search(r"at (http\S+)", process.stdout.readline().decode())[1]
        assert ids(RemoteSearch(url, timeout=10), "banana") == ["b"]
        process.send_signal(told)
        assert process.wait(20) == 0


@pytest.mark.slow
def test_passages_are_loaded_into_a_cluster(tmp_path):
    pytest.importorskip("opensearchpy", reason="the extra `opensearch` is not installed")
    write_passages(tmp_path / "c.jsonl", FRUIT)
    with OpenSearchEndpoint() as service:
        cluster = OpenSearchLoadConfig(url=service.address, shards=2)
        asked = index_run(tmp_path / "c.jsonl", tmp_path / "i", opensearch=cluster, shards=2)
        assert build_index.run(asked)["passages"] == 6
        there = OpenSearchConfig(url=service.address)
        tool = open_tool(SearchConfig("opensearch", opensearch=there))
        assert ids(tool, "banana") == ["b"]
        index = open_tool(SearchConfig("bm25", str(tmp_path / "i")))
        assert ids(index, "banana") == ["b"]
        assert tool.fingerprint == f"{index.fingerprint}+opensearch"
    (tmp_path / "c.jsonl").unlink()
    with pytest.raises(SearchError, match=r"127\.0\.0\.1"):  # before the corpus is missed
        build_index.run(asked)


def test_a_cluster_needs_its_client(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "opensearchpy", None)
    monkeypatch.delitem(sys.modules, "masksearch_jax.search.opensearch", raising=False)
    monkeypatch.delattr("masksearch_jax.search.opensearch", raising=False)
    cluster = OpenSearchLoadConfig(url="http://127.0.0.1:1")
    asked = index_run(tmp_path / "c.jsonl", tmp_path / "i", opensearch=cluster)
    with pytest.raises(SearchError, match=r"config\.opensearch needs the extra `opensearch`"):
        build_index.run(asked)
    cfg = SearchConfig("opensearch", opensearch=OpenSearchConfig(url="http://127.0.0.1:1"))
    with pytest.raises(SearchError, match=r"search\.kind=opensearch needs the extra `opensearch`"):
        open_tool(cfg)


@pytest.mark.parametrize("kind", ["dense", "hybrid"])
def test_vectors_are_built_and_searched(tmp_path, kind):
    write_passages(tmp_path / "c.jsonl", FRUIT)
    for seed, name in enumerate(("encoder", "another")):
        (tmp_path / name).mkdir()
        write_encoder(tmp_path / name, seed=seed)
    asked = build_index.VectorConfig(str(tmp_path / "encoder"), max_tokens=16, dtype="float32")
    summary = build_index.run(index_run(tmp_path / "c.jsonl", tmp_path / "i", vectors=asked))
    assert summary["passages"] == 6
    cfg = SearchConfig(kind, str(tmp_path / "i"))
    tool = open_tool(cfg)
    (hits,) = tool.search(["red fruit"], 4)
    assert len(hits) == len(hits.scores) == 4
    near = open_tool(dataclasses.replace(cfg, nearest="device"))
    assert near.search(["red fruit", "band"], 4) == tool.search(["red fruit", "band"], 4)
    with pytest.raises(SearchError, match=r"the folder that they were made with"):
        open_tool(dataclasses.replace(cfg, encoder=str(tmp_path / "another")))
    with pytest.raises(SearchError, match=r"the encoder cannot be opened: .*none is not there"):
        open_tool(dataclasses.replace(cfg, encoder=str(tmp_path / "none")))
    (tmp_path / "encoder").rename(tmp_path / "moved")
    with pytest.raises(
        SearchError, match=r"is not there; the vectors were made with it then: give"
    ):
        open_tool(cfg)


def test_an_encoder_of_another_kind_is_known_before_the_corpus_is_read(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    asked = build_index.VectorConfig(str(tmp_path))
    with pytest.raises(HfError, match="'llama', must be 'bert'"):
        build_index.run(index_run(tmp_path / "none.jsonl", tmp_path / "i", vectors=asked))

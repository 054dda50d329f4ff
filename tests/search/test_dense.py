"""Search by vectors and with words: exact neighbours, fusion, builds that go on, refusals."""

import contextlib
import dataclasses
import gc
import json
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from jax.sharding import AxisType

from masksearch_jax.core.config import SearchConfig
from masksearch_jax.core.retrieval import SearchError, SearchTool
from masksearch_jax.core.types import Passage
from masksearch_jax.models.cross_encoder_folder import PairScorer
from masksearch_jax.models.encoder_folder import TextEncoder
from masksearch_jax.search import bm25, fusion, vectors
from masksearch_jax.search.bm25 import BM25
from masksearch_jax.search.dense import DenseSearch, HybridSearch
from masksearch_jax.search.device_nearest import DeviceNearest
from masksearch_jax.search.nearest import Exact, Graph
from masksearch_jax.search.open import open_tool
from tests.models.bert_folders import WORDS, write_cross_encoder, write_encoder
from tests.search.fruit import FRUIT, ids
from tests.search.hashed import HashedWords

LAKES = [
    Passage(str(i), f"Lake {i}", " ".join(f"w{(i * 7 + j) % 50}" for j in range(8)))
    for i in range(301)
]
QUERIES = ["w1 w2 w3", "Lake 7", "w49", ""]


def build(passages, folder, encoder, **options):
    """An index with vectors; (index, vectors)."""
    bm25.build(passages, folder)
    index = BM25.open(folder)
    where = vectors.folder_of(folder)
    vectors.build(index.passages, where, encoder, index=index.fingerprint, **options)
    return index, vectors.Vectors.open(where, index.fingerprint)


@pytest.fixture(scope="module")
def lakes(tmp_path_factory):
    return build(LAKES, tmp_path_factory.mktemp("lakes") / "i", HashedWords(), graph=True)


def by_hand(table, queries, k):
    """The best k products, descending."""
    scores = np.asarray(queries, np.float32) @ np.asarray(table, np.float32).T
    return -np.sort(-scores, axis=1)[:, :k]


@pytest.mark.parametrize("k", [1, 10, 301])
@pytest.mark.parametrize("count", [4, 301])  # fewer than the devices, and no multiple of them
@pytest.mark.parametrize("kind", [Exact, lambda v: DeviceNearest(v.table)])
def test_the_nearest_are_those_of_a_plain_product(lakes, kind, count, k):
    table = lakes[1].table[:count]
    k = min(k, count)
    asked = HashedWords().encode_queries([*QUERIES, *(f"w{i} w{i + 3}" for i in range(90))])
    rows, scores = kind(SimpleNamespace(table=table))(asked, k)
    assert rows.shape == scores.shape == (94, k)
    np.testing.assert_allclose(scores, by_hand(table, asked, k), atol=2e-3)
    assert all(len(set(r)) == k for r in rows.tolist())
    found = np.take_along_axis(asked @ table.astype(np.float32).T, rows, axis=1)
    np.testing.assert_allclose(scores, found, atol=2e-3)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """An encoder and a scorer of pairs."""
    folder = tmp_path_factory.mktemp("models")
    (folder / "encoder").mkdir()
    write_encoder(folder / "encoder")
    write_cross_encoder(folder / "scorer")
    return TextEncoder(folder / "encoder"), PairScorer(folder / "scorer")


def test_programs_of_several_threads_never_wait_for_each_other(lakes, models):
    assert jax.local_device_count() > 1
    nearest, (encoder, scorer) = DeviceNearest(lakes[1].table), models
    programs = [
        *nearest.searches([10, 100]),
        *encoder.program.searches(),
        *scorer.program.searches(),
    ]
    for compiled in programs:
        text = compiled().as_text()
        names = ("all-gather", "all-reduce", "all-to-all", "reduce-scatter", "collective")
        assert not any(name in text for name in names)


@contextlib.contextmanager
def compiling():
    """A list of what JAX compiles meanwhile, in any thread."""
    found = []

    def listen(event, seconds, **_):
        if event == "/jax/core/compile/backend_compile_duration":
            found.append(seconds)

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        yield found
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)


@pytest.mark.slow  # compiles all programs of searches
@pytest.mark.parametrize(
    ("kind", "is_reranked", "place"),
    [
        ("dense", False, "device"),
        ("dense", True, "device"),
        ("hybrid", False, "device"),
        ("hybrid", True, "host"),
    ],
)
def test_no_search_of_an_open_tool_compiles(tmp_path, models, kind, is_reranked, place):
    encoder, scorer = models
    build(LAKES, tmp_path / "i", encoder)
    cfg = SearchConfig(kind, str(tmp_path / "i"), nearest="device", top_k=16, exclude_source=True)
    cfg = dataclasses.replace(cfg, rerank=scorer.folder if is_reranked else "", models_on=place)
    jax.clear_caches()
    with compiling() as found:
        tool = open_tool(cfg)
    assert found
    queries = [" ".join(WORDS * i)[: 1 + 37 * i] for i in range(40)]
    with compiling() as found, ThreadPoolExecutor(4) as pool:
        for asked in (queries[:1], queries[1:6], queries[6:]):
            for depth in (cfg.top_k, cfg.top_k + 1):
                assert len(pool.submit(tool.search, asked, depth).result()) == len(asked)
    assert found == []


def test_a_run_s_mesh_does_not_change_what_its_devices_find(lakes):
    nearest = DeviceNearest(lakes[1].table)
    asked = HashedWords().encode_queries(QUERIES)
    alone = nearest(asked, 5)
    with jax.set_mesh(jax.make_mesh((jax.device_count(),), ("data",), (AxisType.Auto,))):
        under_mesh = nearest(asked, 5)
        first = DeviceNearest(lakes[1].table)(asked, 5)
    for found in (under_mesh, first):
        np.testing.assert_array_equal(found[0], alone[0])


WAYS = ["exact", "graph", "device", "device_approximate"]


@pytest.mark.slow  # opens eight tools
@pytest.mark.parametrize("kind", ["dense", "hybrid"])
def test_what_one_way_found_is_not_another_s(tmp_path, models, kind):
    build(LAKES, tmp_path / "i", models[0], graph=True)
    cfg = SearchConfig(kind, str(tmp_path / "i"), cache=str(tmp_path / "cache.sqlite"))
    marks, found = [], []
    for nearest in WAYS:
        with contextlib.closing(open_tool(dataclasses.replace(cfg, nearest=nearest))) as tool:
            found += tool.search(["the river ember"], 3)
            assert (tool.hits, tool.misses) == (0, 1)
            marks.append(tool.fingerprint)
    assert len(set(marks)) == 4
    for nearest, hits in zip(WAYS, found, strict=True):
        asked = dataclasses.replace(cfg, nearest=nearest, replay=True)
        with contextlib.closing(open_tool(asked)) as tool:
            (again,) = tool.search(["the river ember"], 3)
            assert (again, again.scores, tool.hits) == (hits, hits.scores, 1)


@pytest.mark.parametrize("kind", [Graph, lambda v: DeviceNearest(v.table, approximate=True)])
def test_faster_ways_find_nearly_all(lakes, kind):
    asked = HashedWords().encode_queries([f"w{i} w{i + 3}" for i in range(40)])
    _, scores = kind(lakes[1])(asked, 10)
    assert (scores >= by_hand(lakes[1].table, asked, 10)[:, -1:] - 2e-3).mean() > 0.95


def test_a_graph_that_reaches_fewer_gives_what_it_found(tmp_path):
    same = [Passage(str(i), "Same", "w1 w2") for i in range(600)]
    other = [Passage(str(i), f"Other {i}", f"w{i} w{i * 7}") for i in range(600, 1200)]
    index, table = build([*same, *other], tmp_path / "i", HashedWords(), graph=True)
    asked = HashedWords().encode_queries(["w1 w2"] * 4)
    rows, scores = Graph(table)(asked, 1100)
    found = np.isfinite(scores)
    assert 0 < found.sum(axis=1).min() < 1100  # else nothing is tried here
    for own, finite in zip(rows, found, strict=True):
        assert len(set(own[finite].tolist())) == finite.sum()
    hits = DenseSearch(index, table, HashedWords(), Graph(table)).search(["w1 w2"] * 4, 1000)
    for own in hits:
        assert len({p.id for p in own}) == len(own) == len(own.scores)
        assert np.isfinite(own.scores).all()


def test_dense_search_is_a_search_tool(lakes):
    tool = DenseSearch(*lakes, HashedWords(), Exact(lakes[1]))
    assert isinstance(tool, SearchTool)
    assert len(tool) == 301
    assert tool.search([], 3) == []
    first, second = tool.search(["lake 7 w49", "w1 w2"], 5)
    assert (len(first), len(second)) == (5, 5)
    assert list(first.scores) == sorted(first.scores, reverse=True)
    assert tool.fingerprint == f"{lakes[0].fingerprint}+hashed"
    others = [
        DenseSearch(*lakes, HashedWords(), nearest).fingerprint.removeprefix(tool.fingerprint)
        for nearest in (
            Graph(lakes[1]),
            DeviceNearest(lakes[1].table),
            DeviceNearest(lakes[1].table, approximate=True),
        )
    ]
    assert others == ["+graph", "+device", "+device_approximate"]
    with pytest.raises(SearchError, match="top_k is 0"):
        tool.search(["x"], 0)


def test_a_passage_is_nearest_to_itself(lakes):
    tool = DenseSearch(*lakes, HashedWords(), Exact(lakes[1]))
    for passage in LAKES[::60]:
        assert passage in tool.search([vectors.text_of(passage)], 3)[0]


def test_rankings_are_fused_by_reciprocal_ranks():
    found = fusion.by_rank([[("a", 9.0), ("b", 8.0)], [("b", 0.2), ("c", 0.1)]], 60)
    assert found == [("b", 1 / 62 + 1 / 61), ("a", 1 / 61), ("c", 1 / 62)]
    assert fusion.by_rank([[], []], 60) == []


def test_rankings_are_fused_by_weighted_scores():
    rankings = [[("a", 9.0), ("b", 7.0), ("c", 5.0)], [("b", 0.3), ("d", 0.1)]]
    found = dict(fusion.by_score(rankings, (0.25, 0.75)))
    assert found == {"a": 0.25, "b": 0.25 * 0.5 + 0.75, "c": 0.0, "d": 0.0}
    assert fusion.by_score([[("a", 2.0)], []], (0.5, 0.5)) == [("a", 0.5)]


@pytest.mark.parametrize("fuse", ["rank", "score"])
def test_hybrid_search_joins_words_and_vectors(lakes, fuse):
    index, table = lakes
    dense = DenseSearch(index, table, HashedWords(), Exact(table))
    rules = {"fuse": fuse, "rank_constant": 60.0, "dense_weight": 0.4, "depth": 50}
    tool = HybridSearch(index, dense, **rules)
    words, near = index.search_rows(["w1 w2"], 50)[0], dense.search_rows(["w1 w2"], 50)[0]
    if fuse == "rank":
        expected = fusion.by_rank([words, near], 60.0)
    else:
        expected = fusion.by_score([words, near], (0.6, 0.4))
    (hits,) = tool.search(["w1 w2"], 7)
    assert [(int(p.id), s) for p, s in zip(hits, hits.scores, strict=True)] == expected[:7]
    other = HybridSearch(index, dense, **rules | {"depth": 60})
    assert len({tool.fingerprint, other.fingerprint, dense.fingerprint}) == 3
    for top_k in (0, -1):
        with pytest.raises(SearchError, match=f"top_k is {top_k}, must be 1 to"):
            tool.search(["w1"], top_k)
    with pytest.raises(SearchError, match="must be rank or score"):
        HybridSearch(index, dense, **rules | {"fuse": "both"})


def test_a_hybrid_search_of_unknown_words_finds_by_vectors(tmp_path):
    index, table = build(FRUIT, tmp_path / "i", HashedWords())
    dense = DenseSearch(index, table, HashedWords(), Exact(table))
    tool = HybridSearch(index, dense, fuse="rank", rank_constant=60, dense_weight=0.5, depth=9)
    assert ids(index, "zzz") == []
    assert sorted(ids(tool, "zzz")) == list("abcdef")


# ---- builds


class Killed(Exception):
    pass


def test_a_cut_off_encoding_goes_on_after_its_last_whole_shard(tmp_path, monkeypatch):
    monkeypatch.setattr(vectors, "SHARD_ROWS", 100)

    class Dying(HashedWords):
        def encode_passages(self, texts):
            if len(self.encoded) == 200:
                raise Killed
            return super().encode_passages(texts)

    with pytest.raises(Killed):
        build(LAKES, tmp_path / "i", Dying())
    with pytest.raises(SearchError, match=r"no vectors in .*config\.vectors\.encoder"):
        vectors.Vectors.open(vectors.folder_of(tmp_path / "i"), "x")
    again, told = HashedWords(), []
    _, table = build(LAKES, tmp_path / "i", again, progress=told.append)
    assert len(again.encoded) == 101
    assert told == [300, 301]
    whole = HashedWords().encode_queries([vectors.text_of(p) for p in LAKES])
    np.testing.assert_array_equal(table.table, whole.astype(np.float16))


def test_a_damaged_shard_is_encoded_again(tmp_path, monkeypatch):
    monkeypatch.setattr(vectors, "SHARD_ROWS", 100)

    class Dying(HashedWords):
        def encode_passages(self, texts):
            if len(self.encoded) == 200:
                (part,) = tmp_path.glob(".i.vectors.partial/vectors.f16")
                with open(part, "r+b") as file:
                    file.seek(150 * 64)
                    file.write(b"\xff" * 8)
                raise Killed
            return super().encode_passages(texts)

    with pytest.raises(Killed):
        build(LAKES, tmp_path / "i", Dying())
    again = HashedWords()
    build(LAKES, tmp_path / "i", again)
    assert len(again.encoded) == 201


def test_another_encoder_or_another_corpus_starts_anew(tmp_path, monkeypatch):
    monkeypatch.setattr(vectors, "SHARD_ROWS", 100)

    class Dying(HashedWords):
        def encode_passages(self, texts):
            if self.encoded:
                raise Killed
            return super().encode_passages(texts)

    for passages, encoder in ((LAKES, HashedWords("other")), (LAKES[:-1], HashedWords())):
        with pytest.raises(Killed):
            build(LAKES, tmp_path / "i", Dying())
        build(passages, tmp_path / "i", encoder)
        assert len(encoder.encoded) == len(passages)


def test_vectors_that_are_there_are_not_made_again(tmp_path):
    build(FRUIT, tmp_path / "i", HashedWords())
    again, told = HashedWords(), []
    _, table = build(FRUIT, tmp_path / "i", again, progress=told.append)
    assert (again.encoded, told) == ([], [6])
    half = HashedWords()
    half.dtype = "bfloat16"
    for encoder in (half, HashedWords("b")):
        _, table = build(FRUIT, tmp_path / "i", encoder)
        assert len(encoder.encoded) == 6
    flip(table.folder)
    again = HashedWords("b")
    build(FRUIT, tmp_path / "i", again)
    assert len(again.encoded) == 6


@pytest.mark.parametrize("has_links", [True, False])
def test_a_graph_is_added_to_vectors_that_are_there(tmp_path, monkeypatch, has_links):
    def refused(place, file):
        raise OSError("no links here")

    if not has_links:
        monkeypatch.setattr(vectors.Path, "hardlink_to", refused)
    _, table = build(FRUIT, tmp_path / "i", HashedWords())
    assert not (table.folder / vectors.GRAPH).exists()
    again, told = HashedWords(), []
    _, added = build(FRUIT, tmp_path / "i", again, graph=True, progress=told.append)
    assert (again.encoded, told) == ([], [6])
    assert (added.folder / vectors.GRAPH).exists()
    np.testing.assert_array_equal(added.table, table.table)
    again = HashedWords()
    build(FRUIT, tmp_path / "i", again)  # a graph that is not asked for stays
    assert again.encoded == []
    assert (added.folder / vectors.GRAPH).exists()


def test_a_disk_that_takes_no_more_is_known_before_encoding(small_disk):
    encoder = HashedWords()
    with pytest.raises(SearchError, match=r"the vectors .* could not be written: .*No space left"):
        vectors.build(LAKES * 60, small_disk / "v", encoder, index="x")
    assert encoder.encoded == []


def test_a_disk_that_is_full_while_encoding_loses_no_whole_shard(small_disk, monkeypatch):
    monkeypatch.setattr(vectors, "SHARD_ROWS", 100)
    filler = small_disk / "filler"

    class Filling(HashedWords):
        def encode_passages(self, texts):
            if len(self.encoded) == 200:
                with open(filler, "wb", buffering=0) as file, contextlib.suppress(OSError):
                    while file.write(b"x" * 4096):
                        pass
            return super().encode_passages(texts)

    with pytest.raises(SearchError, match=r"the vectors .* could not be written: .*No space left"):
        vectors.build(LAKES, small_disk / "v", Filling(), index="x")
    filler.unlink()
    again = HashedWords()
    vectors.build(LAKES, small_disk / "v", again, index="x")
    assert len(again.encoded) == 101
    whole = HashedWords().encode_queries([vectors.text_of(p) for p in LAKES])
    found = vectors.Vectors.open(small_disk / "v", "x").table
    np.testing.assert_array_equal(found, whole.astype(np.float16))


def test_a_graph_that_a_full_disk_does_not_take_is_an_error(small_disk):
    passages = [Passage(str(i), "", f"word{i}") for i in range(6000)]
    with pytest.raises(SearchError, match=r"could not be written: graph\.usearch"):
        vectors.build(passages, small_disk / "v", HashedWords(), index="i", graph=True)
    gc.collect()  # the map of the file, which keeps the disk


def test_a_vector_that_is_no_number_is_refused(tmp_path):
    class Broken(HashedWords):
        def encode_passages(self, texts):
            return super().encode_passages(texts) * np.float32("nan")

    with pytest.raises(SearchError, match="no finite vector"):
        build(FRUIT, tmp_path / "i", Broken())


# ---- refusals


def test_vectors_of_another_encoder_are_refused(lakes):
    with pytest.raises(SearchError, match=r"vectors of encoder hashed, and hashed is new"):
        DenseSearch(*lakes, HashedWords("new"), Exact(lakes[1]))


def test_a_corpus_that_changed_since_is_refused(tmp_path):
    build(FRUIT, tmp_path / "i", HashedWords())
    bm25.build(FRUIT[:-1], tmp_path / "i")
    with pytest.raises(SearchError, match="corpus has changed since it was encoded"):
        vectors.Vectors.open(
            vectors.folder_of(tmp_path / "i"), BM25.open(tmp_path / "i").fingerprint
        )


def test_no_graph_is_a_clear_error(tmp_path):
    _, table = build(FRUIT, tmp_path / "i", HashedWords())
    with pytest.raises(SearchError, match=r"has no graph: .*config\.vectors\.graph"):
        Graph(table)


def cut(folder):
    with open(folder / "vectors.f16", "r+b") as file:
        file.truncate(10)


def flip(folder):
    content = bytearray((folder / "vectors.f16").read_bytes())
    content[5] ^= 1
    (folder / "vectors.f16").write_bytes(content)


def rewrite(folder, **changes):
    path = folder / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (cut, "damaged .*has 10 bytes"),
        (flip, "damaged .*another content"),
        (lambda f: (f / "vectors.f16").unlink(), "damaged .*missing"),
        (lambda f: rewrite(f, dim=7), "damaged .*not as it was written"),
        (lambda f: rewrite(f, format=0), "format 0, must be 1"),
        (lambda f: (f / "manifest.json").write_text("{"), "damaged"),
        (lambda f: (f / "manifest.json").unlink(), "no vectors in"),
    ],
)
def test_damaged_vectors_are_refused(tmp_path, harm, message):
    index, table = build(FRUIT, tmp_path / "i", HashedWords())
    harm(table.folder)
    with pytest.raises(SearchError, match=message):
        vectors.Vectors.open(table.folder, index.fingerprint)

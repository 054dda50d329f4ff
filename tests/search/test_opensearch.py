"""OpenSearch through its client: loads that go on, searches, and every way of failing."""

import dataclasses
import json
import math
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("opensearchpy", reason="the extra `opensearch` is not installed")

from masksearch_jax.core.config import SearchConfig
from masksearch_jax.core.retrieval import SearchError
from masksearch_jax.core.search_services_config import OpenSearchConfig, OpenSearchLoadConfig
from masksearch_jax.core.types import Passage
from masksearch_jax.search import opensearch
from masksearch_jax.search.open import open_tool
from masksearch_jax.search.replicas import Patience
from masksearch_jax.search.vectors import Vectors
from masksearch_jax.testing.search_services import OpenSearchEndpoint
from masksearch_jax.testing.services import WELL, Answer, by_number, in_turn, retry_after
from tests.search.fruit import FRUIT, SPECIAL, ids
from tests.search.hashed import HashedWords

CFG = SearchConfig("opensearch", "", "", 3, 3, 2, timeout=5.0, workers=1)
CFG = dataclasses.replace(CFG, backoff=0.001, memory=0)
FRUIT_MARK = {"fingerprint": "f1", "language": "en"}


@pytest.fixture
def service():
    with OpenSearchEndpoint() as service:
        yield service


def load(service, passages=FRUIT, mark=FRUIT_MARK, vectors=None, **changes):
    told = []
    cfg = OpenSearchLoadConfig(url=service.address, **changes)
    opensearch.load(cfg, passages, vectors, **mark, progress=told.append)
    return told


def open_at(service, cfg=CFG, **changes):
    return open_tool(
        dataclasses.replace(cfg, opensearch=OpenSearchConfig(url=service.address, **changes))
    )


def paths(service, since=0):
    return [call.path.partition("?")[0] for call in service.calls[since:]]


# ---- search


@pytest.mark.parametrize("version", ["1.3.20", "2.19.1", "3.1.0"])
def test_passages_are_loaded_and_found(service, version):
    service.version["number"] = version
    assert load(service, shards=3) == [6]
    tool = open_at(service)
    assert tool.fingerprint == "f1+opensearch"
    found = tool.search(["red fruit", "nosuchword", "banana"], 2)
    assert [[p.id for p in hits] for hits in found] == [["a", "c"], [], ["b"]]
    assert found[0] == [FRUIT[0], FRUIT[2]]
    assert found[0].scores == (2.0, 2.0)
    assert (found[0].attempts, found[0].cached) == (1, False)
    assert tool.search([], 2) == []
    assert service.settings == {
        "number_of_shards": 3,
        "number_of_replicas": 0,
        "refresh_interval": None,
    }


def test_a_search_counts_terms_by_all_shards(service):
    load(service)
    open_at(service).search(["Red"], 2)
    (header, asked) = service.requests[-1]["lines"]
    assert header == {"search_type": "dfs_query_then_fetch"}
    assert asked == {
        "query": {
            "bool": {
                "should": [
                    {"match": {"all": {"query": "Red"}}},
                    {"match": {"title": {"query": "Red", "boost": 0.4}}},
                ]
            }
        },
        "size": 2,
        "track_total_hits": False,
        "_source": ["id", "title", "text"],
    }


@pytest.mark.parametrize("query", [*SPECIAL, "", "\ud800 red", "red " * 9000])
def test_any_text_is_a_query(service, query):
    load(service)
    assert len(ids(open_at(service), query)) <= 6
    searched = [request["lines"] for request in service.requests if "lines" in request]
    (asked,) = searched[-1][1]["query"]["bool"]["should"][0]["match"].values()
    assert len(asked["query"]) <= 2500


def hanzi(count):
    return "".join(chr(0x4E00 + 7 * i) for i in range(count))


@pytest.mark.parametrize("language", ["en", "zh"])
@pytest.mark.parametrize(
    ("query", "kept"),
    [
        (f"red {hanzi(100)}", 104),
        (f"red {hanzi(2600)}", 515),  # a word and 511 characters
        (f"red {'a b. ' * 2000}", 4 + 5 * 255 + 1),  # a word and 511 others
        ("red" + " fruit" * 511, 3 + 6 * 511),  # 512 words
        ("red" + " fruit" * 512, 3 + 6 * 511),
        (f"red {'😀' * 600}", 515),
        (f"red {'!' * 30_000}", 20_000),  # signs are no terms
    ],
)
def test_a_query_has_no_more_clauses_than_a_cluster_allows(service, language, query, kept):
    load(service, mark={"fingerprint": "f", "language": language})
    assert ids(open_at(service), query, 2) == ["a", "c"]
    asked = service.requests[-1]["lines"][1]["query"]["bool"]["should"]
    assert asked[0]["match"]["all"]["query"] == asked[1]["match"]["title"]["query"] == query[:kept]


def test_a_cluster_that_allows_fewer_clauses_refuses_at_once(service):
    load(service)
    service.most_clauses = 64
    tool = open_at(service)
    before = len(service.calls)
    message = (
        r"'passages' refused the search: too_many_nested_clauses: Query contains too many nested "
        r"clauses; maxClauseCount is set to 64.* indices\.query\.bool\.max_clause_count of 1024"
    )
    with pytest.raises(SearchError, match=message):
        tool.search(["red " * 33], 2)
    assert len(service.calls) == before + 1


@pytest.mark.parametrize("when", ["nothing is found", "time has passed"])
def test_an_index_that_is_replaced_under_a_search_is_noticed(service, monkeypatch, when):
    load(service)
    tool = open_at(service)
    query = "nosuchword"
    if when == "time has passed":
        monkeypatch.setattr(opensearch, "_READ_AGAIN", 0.0)
        query = "red"
    assert ids(tool, query) == (["a", "c"] if query == "red" else [])
    service.mappings = {}  # deleted, and made anew of other passages
    load(service, mark={"fingerprint": "f2", "language": "en"})
    message = r"'passages' at .* has other passages or vectors now \(f2, not f1\): start anew"
    for _ in range(2):
        with pytest.raises(SearchError, match=message):
            tool.search([query], 2)
    service.mappings["_meta"]["masksearch"] = {"fingerprint": "f1", "rows": 2, "count": 6}
    with pytest.raises(SearchError, match="has 2 of 6 passages: go on with its load"):
        tool.search([query], 2)
    service.mappings["_meta"]["masksearch"]["rows"] = 6
    tool.search([query], 2)


def test_a_search_that_finds_something_reads_no_more_than_it_asks_for(service):
    load(service)
    tool = open_at(service)
    before = len(service.calls)
    assert ids(tool, "red") == ["a", "c"]
    assert paths(service, before) == ["/passages/_msearch"]


# ---- vectors

TABLE = HashedWords().encode_queries([f"{p.title}\n{p.text}" for p in FRUIT]).astype(np.float16)
TOLD = {"encoder_folder": "made", "encoder": "hashed", "reading": HashedWords.told}
VECTORS = Vectors(Path("v"), TABLE, TOLD)


def by_vectors(service, encoder=None, **changes):
    asked = []

    def opened(folder, reading):
        asked.append((folder, reading))
        return encoder or HashedWords()

    cfg = OpenSearchConfig(url=service.address, by="vectors")
    patience = Patience(5.0, 5.0, 0, 0.001)
    return opensearch.OpenSearchSearch(cfg, patience, None, opened), asked


def test_vectors_are_loaded_and_found(service):
    load(service, vectors=VECTORS)
    assert service.settings["knn"] is True
    method = {"name": "hnsw", "engine": "faiss", "space_type": "innerproduct"}
    expected = {"type": "knn_vector", "dimension": 32, "method": method}
    assert service.mappings["properties"]["vector"] == expected
    assert service.mappings["_source"] == {"excludes": ["vector"]}
    tool, asked = by_vectors(service)
    assert asked == [("made", HashedWords.told)]
    assert tool.fingerprint == "f1+hashed+opensearch+vectors"
    queries = ["red fruit", "tropic smell"]
    found = tool.search(queries, 3)
    products = HashedWords().encode_queries(queries) @ TABLE.astype(np.float32).T
    for hits, row in zip(found, products, strict=True):
        assert hits == [FRUIT[i] for i in np.argsort(-row, kind="stable")[:3]]
        assert hits.scores == pytest.approx(1 + -np.sort(-row)[:3], abs=1e-3)
    assert ids(open_at(service), "banana", 2) == ["b"]  # words as well


def test_vectors_of_another_encoder_and_none_are_refused(service):
    load(service)
    with pytest.raises(SearchError, match="has no vectors: load one of another name"):
        by_vectors(service)
    with OpenSearchEndpoint() as other:
        load(other, vectors=VECTORS)
        with pytest.raises(SearchError, match=r"vectors of encoder hashed, and hashed is new"):
            by_vectors(other, HashedWords("new"))


# ---- failures of a search


def body(reply, status=200):
    return Answer(status=status, body=json.dumps(reply).encode())


def found(**changes):
    """The reply to one query, as a cluster of 2.19 sends it."""
    whole = {
        "took": 4,
        "timed_out": False,
        "_shards": {"total": 5, "successful": 5, "skipped": 0, "failed": 0},
        "hits": {"max_score": None, "hits": []},
        "status": 200,
    }
    return {"took": 4, "responses": [whole | changes]}


def error_of(kind, reason):
    cause = {"type": kind, "reason": reason}
    return {**cause, "root_cause": [cause]}


FAILURE = {"shard": 3, "node": "n", "reason": {"type": "x", "reason": "node left"}}
BROKEN = {"total": 5, "successful": 4, "skipped": 0, "failed": 1, "failures": [FAILURE]}
REJECTED = error_of("rejected_execution_exception", "queue full")
FOR_NOW = [
    (body({"error": REJECTED, "status": 429}, 429), "429.*queue full"),
    (Answer(status=503), "503"),
    (body(found(_shards=BROKEN)), r"1 of 5 shards failed: \['node left'\]"),
    (body(found(timed_out=True)), "did not answer in time"),
    (body({"took": 1, "responses": [{"error": REJECTED, "status": 429}]}), "queue full"),
    (Answer(cut=10), "ConnectionError"),
    (Answer(hang=math.inf), "Timeout"),
]


@pytest.mark.parametrize(("answer", "message"), FOR_NOW)
def test_what_may_pass_is_tried_again_until_the_deadline(service, answer, message):
    load(service)
    cfg = dataclasses.replace(CFG, attempt_timeout=0.2)
    tool = open_at(service, cfg)
    service.script = in_turn(answer, answer, WELL)
    (hits,) = tool.search(["banana"], 2)
    assert ([p.id for p in hits], hits.attempts) == (["b"], 3)
    tool = open_at(service, dataclasses.replace(cfg, retries=1))
    service.script = answer
    with pytest.raises(SearchError, match=rf"the search failed, attempt 2 .*{message}"):
        tool.search(["banana"], 2)


@pytest.mark.parametrize("status", [429, 503])
def test_a_pause_that_a_cluster_asks_for_is_kept(service, status):
    load(service)
    tool = open_at(service)
    service.script = in_turn(Answer(status=status, headers=retry_after(0.25)), WELL)
    before = len(service.calls)
    assert ids(tool, "banana", 2) == ["b"]
    first, second = service.times[before:]
    assert second - first >= 0.25


MISSING = error_of("index_not_found_exception", "no such index [passages]")


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (Answer(status=401, message="Unauthorized"), "refused the request: Authentication.*401"),
        (body({"took": 1, "responses": [{"error": MISSING, "status": 404}]}), "no such index"),
        (body({"took": 1, "responses": []}), "1 queries got 0 results"),
        (body({"took": 1}), "unknown form: KeyError"),
        (body(found(hits={"hits": [{"_source": {}, "_score": 1}]})), "unknown form"),
        (Answer(body=b"<html>"), "unknown form"),
    ],
)
def test_a_refusal_and_a_wrong_reply_are_errors_at_once(service, answer, message):
    load(service)
    tool = open_at(service)
    before = len(service.calls)
    service.script = answer
    with pytest.raises(SearchError, match=message) as caught:
        tool.search(["banana"], 2)
    assert len(service.calls) == before + 1
    assert "\n" not in str(caught.value)


def test_a_cluster_that_is_gone_is_an_outage(service):
    load(service)
    tool = open_at(service, dataclasses.replace(CFG, timeout=0.2))
    service.kill()
    with pytest.raises(SearchError, match=r"the search failed, attempt \d+ within 0\.19 s: http"):
        tool.search(["banana"], 2)


def test_another_node_is_asked_where_one_is_gone(service):
    load(service)
    address = f"http://127.0.0.1:1, {service.address}"
    cfg = dataclasses.replace(CFG, opensearch=OpenSearchConfig(url=address))
    (hits,) = open_tool(cfg).search(["banana"], 2)
    assert ([p.id for p in hits], hits.answered_by) == (["b"], f"{service.address} f1+opensearch")


def test_what_cannot_be_searched_is_said(service, monkeypatch):
    with pytest.raises(SearchError, match=r"no index 'passages' at .*; load it: .*build_index"):
        open_at(service)
    service.mappings = {"properties": {}}
    with pytest.raises(SearchError, match="'passages' was not made by build_index"):
        open_at(service)
    service.version = {"number": "8.15.0"}
    with pytest.raises(SearchError, match=r"this is no OpenSearch but \{'number': '8\.15\.0'\}"):
        open_at(service)
    with pytest.raises(SearchError, match="must be like https"):
        open_tool(dataclasses.replace(CFG, opensearch=OpenSearchConfig(url="host:9200")))


def test_user_and_password_come_from_the_environment(service, monkeypatch):
    service.user = ("me", "s3cret")
    monkeypatch.setenv("OPENSEARCH_USER", "me")
    monkeypatch.setenv("OPENSEARCH_PASSWORD", "s3cret")
    load(service)
    assert ids(open_at(service), "banana", 2) == ["b"]
    monkeypatch.setenv("OPENSEARCH_PASSWORD", "wr0ng")
    with pytest.raises(SearchError, match="401") as caught:
        open_at(service)
    assert "wr0ng" not in str(caught.value)


# ---- loads

MANY = [Passage(f"p{i}", f"Lake {i}", f"word{i} water") for i in range(2600)]


@pytest.fixture
def small_steps(monkeypatch):
    monkeypatch.setattr(opensearch, "_ROWS", 1000)


def bulks(service):
    return sum(path.endswith("/_bulk") for path in paths(service))


def test_a_load_that_was_cut_off_goes_on(service, small_steps):
    """At its last note, from which on passages are only loaded over themselves."""
    done = [0]

    def script(request):
        done[0] += "lines" in request
        is_fourth = done[0] == 4 and "lines" in request
        return Answer(status=400, message="gone") if is_fourth else WELL

    service.script = script
    with pytest.raises(SearchError, match=r"gone.*; the same command goes on"):
        load(service, MANY)
    assert len(service.documents) == 1500
    with pytest.raises(SearchError, match=r"has 1000 of 2600 passages: go on with its load"):
        open_at(service)
    assert load(service, MANY) == [2000, 2600]
    assert bulks(service) == 4 + 4
    assert [service.documents[str(i)]["id"] for i in range(2600)] == [p.id for p in MANY]
    assert ids(open_at(service), "word2599", 2) == ["p2599"]
    before = bulks(service)
    assert load(service, MANY) == []  # nothing is left to do
    assert bulks(service) == before


def test_a_load_outlives_a_cluster_that_fails_for_a_while(service, monkeypatch):
    patience = dataclasses.replace(opensearch.PATIENCE, backoff=1e-6)
    monkeypatch.setattr(opensearch, "PATIENCE", patience)
    pause = Answer(status=429, headers=retry_after(0.3))
    gone = {n: Answer(cut=0) if n % 2 else Answer(status=503) for n in range(2, 13)}
    service.script = by_number(lambda n: (gone | {13: pause}).get(n, WELL))
    load(service)
    assert len(service.documents) == 6
    assert service.times[13] - service.times[12] >= 0.3
    assert ids(open_at(service), "banana", 2) == ["b"]


def test_a_load_gives_up_in_one_line(service, monkeypatch):
    patience = dataclasses.replace(opensearch.PATIENCE, retries=2, backoff=0.001)
    monkeypatch.setattr(opensearch, "PATIENCE", patience)
    service.script = Answer(status=503)
    with pytest.raises(SearchError, match=r"attempt 3 within .*503.*; the same command goes on$"):
        load(service)


def test_passages_that_are_rejected_for_now_are_loaded_later(service):
    service.rejects = {3: 2, 4: 1}
    load(service)
    assert len(service.documents) == 6
    assert service.rejects == {3: 0, 4: 0}


def test_a_passage_that_is_refused_is_named(service):
    service.refuses = {2}
    with pytest.raises(SearchError, match=r"row 2 was not loaded: .*mapper_parsing_exception"):
        load(service)


def test_an_index_with_other_passages_is_refused(service):
    load(service)
    with pytest.raises(SearchError, match=r"other passages or vectors \(f1, not f2\): delete it"):
        load(service, mark={"fingerprint": "f2", "language": "en"})
    with pytest.raises(SearchError, match=r"passages or vectors \(f1, not f1\+hashed\)"):
        load(service, vectors=VECTORS)


def test_a_load_that_is_not_whole_is_no_index(service):
    service.loses = {5}
    with pytest.raises(SearchError, match="has 5 passages of 6 after its load"):
        load(service)
    with pytest.raises(SearchError, match="has 0 of 6 passages"):
        open_at(service)


def test_chinese_is_analysed_by_pairs_of_characters(service):
    load(service, mark={"fingerprint": "f", "language": "zh"})
    assert service.mappings["properties"]["all"]["analyzer"] == "cjk"

"""Passages in an OpenSearch cluster: loaded by its official client, searched by words or vectors.

The cluster's index knows in its mapping's `_meta` which passages it has and how many of them are
loaded, so that a load goes on from any machine and a search refuses one that is not whole. A search
that finds nothing, and the first of each minute, reads this again: an index may be replaced while
it is searched. Terms count by all shards (`dfs_query_then_fetch`). A reply that lacks a shard's
part is no reply. Vectors are compared by inner product, in a graph that the cluster makes.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import os
import re
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any
from urllib.parse import urlsplit

import opensearchpy
from opensearchpy import exceptions, helpers

from masksearch_jax.core.retrieval import SearchError
from masksearch_jax.core.retry_after import retry_after
from masksearch_jax.core.search_services_config import OpenSearchConfig, OpenSearchLoadConfig
from masksearch_jax.core.types import Hits, JsonObject, Passage
from masksearch_jax.search.gather import RefusedError
from masksearch_jax.search.http_client import REFUSED, RETRIED
from masksearch_jax.search.rate import RateLimit
from masksearch_jax.search.replicas import (
    FailedForNow,
    GaveUp,
    NoAnswerError,
    Patience,
    Replicas,
)
from masksearch_jax.search.term_index import TITLE_BOOST
from masksearch_jax.search.vectors import Encoder, Vectors

MAX_QUERY_CHARS = 20_000  # of a query; the rest is ignored
MAX_CLAUSES = 1024  # of a query, which a cluster allows by default (indices.query.bool.…)
_FIELDS = 2  # that each word of a query is looked for in: a clause each
# What may become a term by either analyser, at most one each: a run of letters and digits of a
# script that spaces its words, or any other sign beyond ASCII, such as a Chinese character.
_TERM = re.compile(r"[^\W\u0e00-\U0010ffff]{1,255}|[^\x00-\x7f]")
_TOO_MANY = ("too_many_clauses", "too_many_nested_clauses")  # types of a refusal, with status 500
_ROWS = 10_000  # loaded between two notes of how far the load is
_CHUNK = 500  # passages of one request
_CHUNK_BYTES = 20 * 2**20
_REJECTED = 8  # times that passages which a cluster turns away for now are sent again
PATIENCE = Patience(timeout=300.0, attempt_timeout=60.0, retries=200, backoff=0.1)  # of a load
_CONNECTIONS = 64
_READ_AGAIN = 60.0  # seconds after which a search sees whether the index is still the same
_SOURCE = tuple(field.name for field in dataclasses.fields(Passage))
_ANALYSERS = {"en": "english", "zh": "cjk"}
_META = "masksearch"  # the entry of `_meta`
_COMMAND = "python -m masksearch_jax.build_index with config.opensearch.url"

Client = opensearchpy.OpenSearch


class _UnansweredError(SearchError):
    """A request of a load had no reply in its time."""


class _Connection(opensearchpy.Urllib3HttpConnection):
    """Raises FailedForNow where another try may succeed, with the pause that the cluster asks for.

    With `patience` it tries again itself, and raises _UnansweredError in the end.
    """

    def __init__(self, *args: Any, patience: Patience | None = None, **options: Any):
        super().__init__(*args, **options)
        self._headers = threading.local()  # of the last reply with an error, by thread
        self._replicas: Replicas[Any] | None = Replicas([self.host], patience) if patience else None

    def perform_request(self, *args: Any, timeout: float | None = None, **options: Any) -> Any:
        if self._replicas is None:
            return self._attempt(args, options, timeout)
        try:
            return self._replicas.request(lambda _, left: self._attempt(args, options, left))[0]
        except GaveUp as error:
            raise _UnansweredError(str(error)) from error

    def _attempt(self, args: Sequence[Any], options: JsonObject, seconds: float | None) -> Any:
        self._headers.last = {}
        try:
            return super().perform_request(*args, timeout=seconds, **options)
        except exceptions.SSLError:
            raise
        except exceptions.TransportError as error:
            is_gone = isinstance(error, exceptions.ConnectionError)
            if not is_gone and error.status_code not in RETRIED:
                raise
            is_late = isinstance(error, exceptions.ConnectionTimeout)
            rest = retry_after(self._headers.last.get("Retry-After", ""))
            raise FailedForNow(f"{self.host}: {_line(error)}", rest, is_late=is_late) from error

    def get_response_headers(self, response: Any) -> Any:
        """Asked for before an error is raised, which has none itself."""
        self._headers.last = response.headers
        return super().get_response_headers(response)


class OpenSearchSearch:
    """Asks the nodes of a cluster, all queries of a call in one request; safe for threads.

    open_encoder: the encoder of a folder, by how texts are read; asked where `cfg.by` is vectors.
    Raises SearchError where there is no such index, or one that is not wholly loaded, or has
    vectors of another encoder or none.
    """

    def __init__(
        self,
        cfg: OpenSearchConfig,
        patience: Patience,
        limit: RateLimit | None,
        open_encoder: Callable[[str, dict[str, str | int]], Encoder],
    ):
        self._cfg = cfg
        self._clients = {url: _client(url, cfg) for url in _urls(cfg)}
        self._replicas: Replicas[Any] = Replicas(list(self._clients), patience, limit)
        told, _, _ = self._request(lambda client, seconds: _told(client, cfg.name, seconds))
        told = _whole(cfg, told)
        self._loaded, self._read_at = told["fingerprint"], time.monotonic()
        self.fingerprint = f"{self._loaded}+opensearch"
        self._encoder = None
        if cfg.by == "vectors":
            self._encoder = _encoder_of(cfg, told.get("vectors"), open_encoder)
            self.fingerprint += "+vectors"

    def search(self, queries: Sequence[str], top_k: int) -> list[list[Passage]]:
        if not queries:
            return []
        started = time.monotonic()
        lines = self._lines(queries, top_k)

        def ask(client: Client, seconds: float) -> list[Hits]:
            reply = client.msearch(body=lines, index=self._cfg.name, request_timeout=seconds)
            found = [_hits(self._cfg.name, one) for one in reply["responses"]]
            if len(found) != len(queries):
                raise SearchError(f"{len(queries)} queries got {len(found)} results")
            return found

        found, url, attempts = self._request(ask)
        if not all(found):
            self._check_loaded()
        elif time.monotonic() - self._read_at > _READ_AGAIN:
            try:
                self._check_loaded()
            except SearchError as error:  # passages were found: whoever does not answer may later
                if not isinstance(error.__cause__, GaveUp):
                    raise
        told = {"attempts": attempts, "seconds": time.monotonic() - started}
        told["answered_by"] = f"{url} {self.fingerprint}"
        return [Hits(hits[:top_k], scores=hits.scores[:top_k], **told) for hits in found]

    def _check_loaded(self) -> None:
        """Raises SearchError where the index is not the one that was opened, or not whole now."""
        name, read_at = self._cfg.name, time.monotonic()
        told, _, _ = self._request(lambda client, seconds: _meta_of(client, name, seconds))
        found = _whole(self._cfg, told)["fingerprint"]
        if found != self._loaded:
            raise SearchError(
                f"the index {name!r} at {self._cfg.url} has other passages or vectors now "
                f"({found}, not {self._loaded}): start anew with these, or load the others again"
            )
        self._read_at = read_at

    def _lines(self, queries: Sequence[str], top_k: int) -> list[JsonObject]:
        """The request of several searches: of each its header and its body."""
        texts = [q[:MAX_QUERY_CHARS].encode("utf-8", "replace").decode() for q in queries]
        if self._encoder is None:
            header = {"search_type": "dfs_query_then_fetch"}
            asked = [_by_words(_allowed(text)) for text in texts]
        else:
            header = {}
            asked = [_by_vector(v, top_k) for v in self._encoder.encode_queries(texts).tolist()]
        rest = {"size": top_k, "track_total_hits": False, "_source": _SOURCE}
        return [line for query in asked for line in (header, {"query": query, **rest})]

    def _request(self, ask: Callable[[Client, float], Any]) -> tuple[Any, str, int]:
        """The reply, the node that gave it, and the number of attempts. Raises SearchError."""
        try:
            (reply, url), attempts = self._replicas.request(functools.partial(self._attempt, ask))
            return reply, url, attempts
        except GaveUp as error:
            raise SearchError(f"the search failed, {error}") from error

    def _attempt(
        self, ask: Callable[[Client, float], Any], url: str, seconds: float
    ) -> tuple[Any, str]:
        """Raises FailedForNow where another try may succeed, NoAnswerError where one elsewhere may.

        A wrong request is a RefusedError.
        """
        try:
            return ask(self._clients[url], seconds), url
        except exceptions.SSLError as error:
            raise NoAnswerError(f"{url}: {_line(error)}") from error
        except exceptions.TransportError as error:
            kind = RefusedError if error.status_code in REFUSED else NoAnswerError
            raise kind(f"{url} refused the request: {_line(error)}") from error
        except (exceptions.SerializationError, LookupError, TypeError, AttributeError) as error:
            raise NoAnswerError(f"{url} sent a reply of unknown form: {error!r}") from error


def _allowed(text: str) -> str:
    """The text up to the last word for which a cluster allows clauses."""
    last = next(itertools.islice(_TERM.finditer(text), MAX_CLAUSES // _FIELDS - 1, None), None)
    return text[: last.end()] if last else text


def _by_words(text: str) -> JsonObject:
    words = {"match": {"all": {"query": text}}}
    title = {"match": {"title": {"query": text, "boost": TITLE_BOOST}}}
    return {"bool": {"should": [words, title]}}


def _by_vector(vector: Sequence[float], top_k: int) -> JsonObject:
    return {"knn": {"vector": {"vector": vector, "k": top_k}}}


def _whole(cfg: OpenSearchConfig, told: JsonObject | None) -> JsonObject:
    """What an index says of itself. Raises SearchError for none, and for one that is not whole."""
    if told is None:
        raise SearchError(f"no index {cfg.name!r} at {cfg.url}; load it: {_COMMAND}")
    if told["rows"] != told["count"]:
        raise SearchError(
            f"the index {cfg.name!r} at {cfg.url} has {told['rows']} of {told['count']} "
            f"passages: go on with its load: {_COMMAND}"
        )
    return told


def _encoder_of(
    cfg: OpenSearchConfig,
    told: JsonObject | None,
    open_encoder: Callable[[str, dict[str, str | int]], Encoder],
) -> Encoder:
    """The encoder that made a cluster's vectors. Raises SearchError for another one."""
    if told is None:
        raise SearchError(
            f"the index {cfg.name!r} at {cfg.url} has no vectors: load one of another name with "
            "config.vectors.encoder"
        )
    encoder = open_encoder(told["folder"], told["reading"])
    if encoder.fingerprint != told["encoder"]:
        raise SearchError(
            f"the index {cfg.name!r} has vectors of encoder {told['encoder']}, and "
            f"{encoder.folder} is {encoder.fingerprint}: give the folder that they were made with "
            "as search.encoder"
        )
    return encoder


def _urls(cfg: OpenSearchConfig) -> list[str]:
    """The addresses of the nodes. Raises SearchError."""
    urls = [one.strip() for one in cfg.url.split(",")]
    for url in urls:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise SearchError(f"opensearch.url has {url!r}, must be like https://host:9200")
    return urls


def _client(url: str, cfg: OpenSearchConfig, **options: Any) -> Client:
    user = os.environ.get(cfg.user_variable, "") if cfg.user_variable else ""
    password = os.environ.get(cfg.password_variable, "") if cfg.password_variable else ""
    return Client(
        hosts=[url],
        http_auth=(user, password) if user else None,
        verify_certs=True,
        ca_certs=cfg.certificates or None,
        connection_class=_Connection,
        max_retries=0,
        pool_maxsize=_CONNECTIONS,
        **options,
    )


def _told(client: Client, name: str, seconds: float | None = None) -> JsonObject | None:
    """What an index says of its passages; None where there is no index.

    Raises SearchError for another engine, and for an index of something else.
    """
    version = client.info(request_timeout=seconds).get("version", {})
    if version.get("distribution") != "opensearch":
        raise SearchError(f"this is no OpenSearch but {version or 'something else'}")
    return _meta_of(client, name, seconds)


def _meta_of(client: Client, name: str, seconds: float | None) -> JsonObject | None:
    """As `_told`, of a cluster that is known to be OpenSearch."""
    try:
        found = client.indices.get_mapping(index=name, request_timeout=seconds)
    except exceptions.NotFoundError:
        return None
    (index,) = found.values()
    told = index["mappings"].get("_meta", {}).get(_META)
    if told is None:
        raise SearchError(f"the index {name!r} was not made by build_index; name another one")
    return told


def _hits(name: str, reply: JsonObject) -> Hits:
    """The passages of one query's reply. Raises FailedForNow or SearchError for a failed one."""
    if "error" in reply:
        kind, said = _cause(reply["error"])
        if kind in _TOO_MANY:
            limit = f"queries need indices.query.bool.max_clause_count of {MAX_CLAUSES}"
            raise RefusedError(f"the index {name!r} refused the search: {said}; {limit}")
        if reply.get("status") in RETRIED:
            raise FailedForNow(f"HTTP {reply['status']} {said}")
        raise RefusedError(f"the index {name!r} refused the search: {said}")
    shards = reply["_shards"]
    if shards["failed"]:
        reasons = [f["reason"].get("reason") for f in shards.get("failures", ())][:1]
        raise FailedForNow(f"{shards['failed']} of {shards['total']} shards failed: {reasons}")
    if reply["timed_out"]:
        raise FailedForNow("some shards did not answer in time", is_late=True)
    found = reply["hits"]["hits"]
    passages = [Passage(*(hit["_source"][field] for field in _SOURCE)) for hit in found]
    return Hits(passages, scores=[hit["_score"] for hit in found])


def _cause(error: Any) -> tuple[str, str]:
    """The type of a reply's error, and what it says: of its root, where all shards had one."""
    if not isinstance(error, dict):
        return "", str(error)
    roots = error.get("root_cause") or [error]
    kind, reason = roots[0]["type"], str(roots[0].get("reason"))
    return kind, reason if reason.startswith(f"{kind}: ") else f"{kind}: {reason}"


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]


# ---- loading


def check_cluster(cfg: OpenSearchConfig) -> None:
    """Raises SearchError where there is no cluster, or one with an index of something else."""
    at_once = dataclasses.replace(PATIENCE, retries=_REJECTED)
    try:
        _told(_client(_urls(cfg)[0], cfg, patience=at_once), cfg.name)
    except exceptions.OpenSearchException as error:
        raise SearchError(f"{cfg.url}: {_line(error)}") from error


def load(
    cfg: OpenSearchLoadConfig,
    passages: Sequence[Passage],
    vectors: Vectors | None = None,
    *,
    fingerprint: str,
    language: str,
    progress: Callable[[int], None] | None = None,
) -> None:
    """Loads the passages of the index with this fingerprint into the cluster; goes on where it was.

    vectors: of the passages, loaded with them.
    Raises SearchError: for an index of this name with other passages, for a passage that is
    refused, and for a cluster that fails, after which the same call goes on.
    """
    client = _client(_urls(cfg)[0], cfg, patience=PATIENCE)
    try:
        meta = _meta(fingerprint, len(passages), vectors)
        done = _begin(client, cfg, meta, language, vectors)
        for start in range(done, len(passages), _ROWS):
            rows = range(start, min(start + _ROWS, len(passages)))
            _load_rows(client, cfg.name, passages, vectors, rows)
            if rows.stop < len(passages):
                _note(client, cfg.name, meta | {"rows": rows.stop})
            if progress:
                progress(rows.stop)
        if done < len(passages):
            _finish(client, cfg.name, meta)
    except (exceptions.OpenSearchException, _UnansweredError) as error:
        raise SearchError(f"{cfg.url}: {_line(error)}; the same command goes on") from error


def _begin(
    client: Client,
    cfg: OpenSearchLoadConfig,
    meta: JsonObject,
    language: str,
    vectors: Vectors | None,
) -> int:
    """The number of passages that the index, made if there was none, has already."""
    told = _told(client, cfg.name)
    if told is None:
        analyser = _ANALYSERS[language]
        text = {"type": "text", "analyzer": analyser}
        kept = {"index": False}
        properties = {
            "id": {"type": "keyword", "doc_values": False, **kept},
            "title": {**text, "copy_to": "all"},
            "text": {"type": "text", "copy_to": "all", **kept},
            "all": text,
        }
        settings = {
            "number_of_shards": cfg.shards,
            "number_of_replicas": cfg.replicas,
            "refresh_interval": "-1",  # once, at the end
        }
        mappings = {"dynamic": "strict", "_meta": {_META: meta}, "properties": properties}
        if vectors is not None:
            settings["knn"] = True
            method = {"name": "hnsw", "engine": "faiss", "space_type": "innerproduct"}
            dimension = vectors.table.shape[1]
            properties["vector"] = {
                "type": "knn_vector",
                "dimension": dimension,
                "method": method,
            }
            mappings["_source"] = {"excludes": ["vector"]}
        client.indices.create(
            index=cfg.name, body={"settings": {"index": settings}, "mappings": mappings}
        )
        return 0
    if told["fingerprint"] != meta["fingerprint"]:
        raise SearchError(
            f"the index {cfg.name!r} at {cfg.url} has other passages or vectors "
            f"({told['fingerprint']}, not {meta['fingerprint']}): delete it, or name another one"
        )
    return int(told["rows"])


def _load_rows(
    client: Client,
    name: str,
    passages: Sequence[Passage],
    vectors: Vectors | None,
    rows: range,
) -> None:
    def document(row: int) -> JsonObject:
        told: JsonObject = dataclasses.asdict(passages[row])
        if vectors is not None:
            told["vector"] = vectors.table[row].astype("float32").tolist()
        return told

    results = helpers.streaming_bulk(
        client,
        ({"_index": name, "_id": str(row), "_source": document(row)} for row in rows),
        chunk_size=_CHUNK,
        max_chunk_bytes=_CHUNK_BYTES,
        max_retries=_REJECTED,
        initial_backoff=0.1,
        max_backoff=30,
        raise_on_error=False,
    )
    for is_loaded, item in results:
        if not is_loaded:
            ((_, told),) = item.items()
            raise SearchError(f"passage in row {told.get('_id')} was not loaded: {told['error']}")


def _meta(fingerprint: str, count: int, vectors: Vectors | None) -> JsonObject:
    """What an index says of its passages while none of them is loaded."""
    told: JsonObject = {"fingerprint": fingerprint, "rows": 0, "count": count}
    if vectors is not None:
        told["fingerprint"] += f"+{vectors.encoder}"
        told["vectors"] = {
            "encoder": vectors.encoder,
            "folder": vectors.encoder_folder,
            "reading": vectors.reading,
        }
    return told


def _note(client: Client, name: str, meta: JsonObject) -> None:
    client.indices.put_mapping(index=name, body={"_meta": {_META: meta}})


def _finish(client: Client, name: str, meta: JsonObject) -> None:
    client.indices.put_settings(index=name, body={"index": {"refresh_interval": None}})
    client.indices.refresh(index=name)
    count, there = meta["count"], client.count(index=name)["count"]
    if there != count:
        raise SearchError(f"the index {name!r} has {there} passages of {count} after its load")
    _note(client, name, meta | {"rows": count})

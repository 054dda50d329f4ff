"""A search tool over HTTP: asks `/retrieve` services, such as `serve_search` or Search-R1's.

Request `{"queries": [...], "topk": 5, "return_scores": true}`, response `{"result": [[hit, ...]]}`
with a hit `{"document": {...}, "score": 1.2}` or the document itself, whose text is `text` (with
`title`) or `contents`, which `core.contents` splits.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import itertools
import json
import math
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeVar
from urllib.parse import urlsplit, urlunsplit

from masksearch_jax.core import contents
from masksearch_jax.core.retrieval import SearchError
from masksearch_jax.core.types import Hits, Passage
from masksearch_jax.search.gather import Batch, FailingBatchError, Gatherer
from masksearch_jax.search.http_client import HttpClient, Response, TooLargeError
from masksearch_jax.search.rate import RateLimit
from masksearch_jax.search.replicas import (
    FailedForNow,
    GaveUp,
    NoAnswerError,
    Patience,
    Replicas,
)

Told = TypeVar("Told")  # what one request of a service gets

_TRIED_TOGETHER = 2  # failures of a service at several calls, before these are tried one by one

INDEX = "X-Index"  # header of a reply: the fingerprint of the index that was searched
TIME_LEFT = "X-Time-Left"  # header: seconds after which nobody waits for the reply any more


class RemoteSearch:
    """Asks the services at `url`, replicas with commas between them; safe for threads.

    A call that fails for now is tried again until `timeout`, at another replica where there is one.
    Calls that start within `batch_wait` seconds become one request. Connections are used again,
    proxies are not. The other arguments are `Patience`'s.
    """

    def __init__(
        self,
        url: str,
        *,
        timeout: float,
        attempt_timeout: float = 5.0,
        retries: int = 20,
        backoff: float = 0.1,
        hedge: float = 0.0,
        batch_wait: float = 0.0,
        limit: RateLimit | None = None,
    ):
        self._url = url
        self._urls = [_service(one.strip()) for one in url.split(",")]
        patience = Patience(timeout, attempt_timeout, retries, backoff, hedge)
        self._timeout = timeout
        self._replicas: Replicas[Any] = Replicas(self._urls, patience, limit)
        self._index = ""  # the fingerprint of what was searched so far
        self._gatherer = Gatherer(self._ask, batch_wait, timeout)
        self.gathers = batch_wait > 0  # whether calls that begin together become one request
        self._client = HttpClient(is_secure=any(one.startswith("https:") for one in self._urls))

    @functools.cached_property
    def fingerprint(self) -> str:
        """Which index the services search, where /health or a reply so far says so; else empty.

        Raises SearchError for replicas of two indexes.
        """
        found, failures = set(), 0
        for url in self._urls:
            try:
                found.add(self._fingerprint(url, self._timeout))
            except FailedForNow:
                failures += 1
        if failures == len(self._urls):  # results would be kept as those of no index
            found.add(self._patient(self._fingerprint)[0])
        found.discard("")
        if len(found) > 1:
            raise SearchError(f"the replicas {self._url} search different indexes: {sorted(found)}")
        self._index = found.pop() if found else self._index
        return self._index

    def _fingerprint(self, url: str, seconds: float) -> str:
        """Of one service, by /health beside its path or of its host; "" where neither tells it.

        Raises FailedForNow.
        """
        parts = urlsplit(url)
        beside = parts.path.rstrip("/").rpartition("/")[0]
        for path in dict.fromkeys((f"{beside}/health", "/health")):
            health = urlunsplit((parts.scheme, parts.netloc, path, "", ""))
            with contextlib.suppress(SearchError, AttributeError, ValueError, RecursionError):
                response = self._send("GET", health, None, seconds)
                response.check_ok(health)
                found = json.loads(response.data).get("fingerprint")
                if found and isinstance(found, str):
                    return found
        return ""

    def _patient(
        self, send: Callable[[str, float], Told], deadline: float = math.inf
    ) -> tuple[Told, int]:
        """What `send` gets of a replica, and the number of attempts. Raises SearchError."""
        try:
            return self._replicas.request(send, deadline)
        except GaveUp as error:
            raise SearchError(f"the search failed, {error}") from error

    def search(self, queries: Sequence[str], top_k: int) -> list[list[Passage]]:
        return list(self._gatherer.search(queries, top_k)) if queries else []

    def _ask(self, queries: Sequence[str], top_k: int, batch: Batch) -> list[Hits]:
        """One request with its attempts; two where its reply is too large. Raises SearchError."""
        try:
            return self._ask_at_once(queries, top_k, batch)
        except TooLargeError:
            half = len(queries) // 2
            if not half:
                raise
        first, second = queries[:half], queries[half:]
        return self._ask(first, top_k, batch) + self._ask(second, top_k, batch)

    def _ask_at_once(self, queries: Sequence[str], top_k: int, batch: Batch) -> list[Hits]:
        request = {"queries": list(queries), "topk": top_k, "return_scores": True}
        # ASCII JSON: a lone surrogate in a query travels as its escape.
        body = json.dumps(request).encode()
        started = time.monotonic()
        failures = itertools.count(1)

        def post(url: str, seconds: float) -> tuple[list[_Found], str]:
            try:
                results, by = self._post(body, url, seconds)
                return _found(url, queries, [hits[:top_k] for hits in results]), by
            except FailedForNow as error:
                if batch.calls > 1 and error.is_own and next(failures) >= _TRIED_TOGETHER:
                    raise FailingBatchError(str(error)) from error
                raise

        (results, by), attempts = self._patient(post, batch.deadline)
        told = {"attempts": attempts, "seconds": time.monotonic() - started, "answered_by": by}
        return [Hits(found.passages, scores=found.scores, **told) for found in results]

    def _post(self, body: bytes, url: str, seconds: float) -> tuple[list[Any], str]:
        """What one attempt found, and who answered.

        Raises FailedForNow when another may succeed, NoAnswerError when one elsewhere may, else
        SearchError.
        """
        response = self._send("POST", url, body, seconds)
        response.check_ok(url)
        told = response.headers.get(INDEX, "")
        if told and self._index and told != self._index:
            raise SearchError(
                f"{url} searches index {told}, and this run began with index {self._index}: start "
                "the service with that index, or the run anew"
            )
        self._index = self._index or told
        try:
            answer = json.loads(response.data)
            found = answer["result"]
        except (ValueError, LookupError, TypeError, RecursionError) as error:
            raise NoAnswerError(f"{url} sent no JSON list `result`: {error!r}") from error
        if said := answer.get("error"):  # sent with 200: it is not that nothing was found
            raise FailedForNow(f"{url} sent an error: {said!r:.200}", is_own=True)
        if not isinstance(found, list) or not all(isinstance(hits, list) for hits in found):
            raise NoAnswerError(f"{url} sent no JSON list of lists `result`: {found!r:.200}")
        return found, f"{url} {told or self._index}".rstrip()

    def _send(self, method: str, url: str, body: bytes | None, seconds: float) -> Response:
        return self._client.send(method, url, body, seconds, {TIME_LEFT: f"{seconds:.3f}"})


def _service(url: str) -> str:
    """The address of a service, at /retrieve if it names no path. Raises SearchError."""
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError as error:
        raise SearchError(f"search.url is {url!r}: {error}") from None
    if parts.scheme not in ("http", "https") or not host:
        raise SearchError(
            f"search.url is {url!r}, must be like http://host:port/retrieve, with http or https"
        )
    path = parts.path if parts.path.strip("/") else "/retrieve"
    return urlunsplit((parts.scheme, parts.netloc, path, parts.query, ""))


class _Found(NamedTuple):
    """What one query found. scores: none where not each hit has a number."""

    passages: list[Passage]
    scores: Sequence[float]


def _found(url: str, queries: Sequence[str], results: Sequence[Sequence[Any]]) -> list[_Found]:
    """What the hits of each query say. Raises NoAnswerError for another form."""
    if len(results) != len(queries):
        raise NoAnswerError(f"{url} answered {len(queries)} queries with {len(results)} results")
    try:
        return [_Found([_passage(hit) for hit in hits], _scores(hits)) for hits in results]
    except (TypeError, LookupError, AttributeError) as error:
        raise NoAnswerError(f"{url} sent a document of unknown form: {error!r}") from error


def _scores(hits: Sequence[Any]) -> Sequence[float]:
    scores = [hit.get("score") for hit in hits]
    known = all(isinstance(s, int | float) and math.isfinite(s) for s in scores)
    return scores if known else ()


def _passage(hit: Any) -> Passage:
    """The passage of one hit. Raises TypeError, LookupError or AttributeError for another form."""
    document = hit.get("document", hit)
    if "text" in document:
        title, text = document.get("title", ""), document["text"]
    else:
        title, text = contents.split(document["contents"])
    if not isinstance(title, str) or not isinstance(text, str):
        raise TypeError(f"title and text must be strings, are {title!r:.80} and {text!r:.80}")
    digest = hashlib.sha256(f"{title}\n{text}".encode("utf-8", "replace")).hexdigest()[:16]
    given = document.get("id")
    name = digest if given in (None, "") else str(given)
    return Passage(name.encode("utf-8", "replace").decode(), title, text)  # no lone surrogates

"""A search tool over HTTP: asks a `/retrieve` service, such as `serve_search` or Search-R1's.

Request `{"queries": [...], "topk": 5, "return_scores": true}`, response `{"result": [[hit, ...]]}`
with a hit `{"document": {...}, "score": 1.2}` or the document itself, whose text is `text` (with
`title`) or `contents`, which `core.contents` splits.
"""

from __future__ import annotations

import functools
import hashlib
import http.client
import json
import random
import time
from collections.abc import Iterator, Sequence
from typing import Any
from urllib.parse import urlsplit

from masksearch_jax.core import contents
from masksearch_jax.core.retrieval import SearchError
from masksearch_jax.core.types import Passage

MAX_RESPONSE = 64 * 2**20  # bytes
_RETRIED = frozenset({408, 425, 429, 500, 502, 503, 504})


class RemoteSearch:
    """Asks the service at `url`; safe for threads, one connection per attempt, proxies unused.

    timeout: seconds for a call with all its attempts. retries: attempts after the first, made when
    the service cannot be reached or says that it failed, `backoff`·2^n seconds and some jitter
    later.
    """

    def __init__(self, url: str, *, timeout: float, retries: int = 2, backoff: float = 0.2):
        self._secure, self._host, self._port, self._path = _split(url)
        self._url = url
        self._timeout = timeout
        self._retries = retries
        self._backoff = backoff

    @functools.cached_property
    def fingerprint(self) -> str:
        """Which index the service searches, where its /health says so; else empty."""
        try:
            status, data = self._send("GET", "/health", None, time.monotonic() + self._timeout)
            found = json.loads(data).get("fingerprint", "") if status == 200 else ""
        except (OSError, http.client.HTTPException, AttributeError, ValueError, RecursionError):
            return ""
        return found if isinstance(found, str) else ""

    def search(self, queries: Sequence[str], top_k: int) -> list[list[Passage]]:
        if not queries:
            return []
        request = {"queries": list(queries), "topk": top_k, "return_scores": True}
        # ASCII JSON: a lone surrogate in a query travels as its escape.
        results = self._ask(json.dumps(request).encode())
        if len(results) != len(queries):
            raise SearchError(
                f"{self._url} answered {len(queries)} queries with {len(results)} results"
            )
        try:
            return [[_passage(hit) for hit in hits[:top_k]] for hits in results]
        except (TypeError, LookupError, AttributeError) as error:
            raise SearchError(f"{self._url} sent a document of unknown form: {error!r}") from error

    def _ask(self, body: bytes) -> list[Any]:
        """The results of the first attempt that works. Raises SearchError when none may follow."""
        deadline = time.monotonic() + self._timeout
        attempt = 0
        while True:
            try:
                return self._post(body, deadline)
            except (_FailedForNow, OSError, http.client.HTTPException) as error:
                wait = self._backoff * 2**attempt * random.uniform(1.0, 1.5)
                attempt += 1
                if attempt > self._retries or time.monotonic() + wait >= deadline:
                    raise SearchError(
                        f"{self._url} failed, attempt {attempt} within {self._timeout:g} s: "
                        f"{type(error).__name__} {error}"
                    ) from error
                time.sleep(wait)

    def _post(self, body: bytes, deadline: float) -> list[Any]:
        """One attempt. Raises _FailedForNow, OSError or HTTPException when another may succeed."""
        status, data = self._send("POST", self._path, body, deadline)
        if status != 200:
            reason = f"HTTP {status} {data[:200].decode('utf-8', 'replace')}"
            if status in _RETRIED:
                raise _FailedForNow(reason)
            raise SearchError(f"{self._url} refused the request: {reason}")
        try:
            return list(json.loads(data)["result"])
        except (ValueError, LookupError, TypeError, RecursionError) as error:
            raise SearchError(f"{self._url} sent no JSON list `result`: {error!r}") from error

    def _send(
        self, method: str, path: str, body: bytes | None, deadline: float
    ) -> tuple[int, bytes]:
        """Status and body of a reply. Raises OSError or HTTPException where none comes in time."""
        kind = http.client.HTTPSConnection if self._secure else http.client.HTTPConnection
        left = max(0.001, deadline - time.monotonic())
        connection = kind(self._host, self._port, timeout=left)
        try:
            connection.request(method, path, body, {"Content-Type": "application/json"})
            response = connection.getresponse()
            return response.status, b"".join(_chunks(response, deadline))
        finally:
            connection.close()


class _FailedForNow(Exception):
    """The service says that it failed, in a way that may pass."""


def _split(url: str) -> tuple[bool, str, int | None, str]:
    """(secure, host, port, path) of a service's address; the path is /retrieve if there is none."""
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise SearchError(f"search.url is {url!r}: {error}") from None
    if parts.scheme not in ("http", "https") or not host:
        raise SearchError(
            f"search.url is {url!r}, must be like http://host:port/retrieve, with http or https"
        )
    path = parts.path if parts.path.strip("/") else "/retrieve"
    return parts.scheme == "https", host, port, f"{path}?{parts.query}" if parts.query else path


def _chunks(response: http.client.HTTPResponse, deadline: float) -> Iterator[bytes]:
    """The whole body as it comes, which a slow service may not stretch beyond the deadline."""
    size = 0
    while chunk := response.read1(2**16):
        size += len(chunk)
        if size > MAX_RESPONSE:
            raise SearchError(f"the search service sent more than {MAX_RESPONSE} bytes")
        if time.monotonic() > deadline:
            raise TimeoutError("timed out within the answer")
        yield chunk
    if response.length:  # `read1` takes a connection that broke for the end
        raise http.client.IncompleteRead(b"", response.length)


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
    return Passage(str(document.get("id", digest)), title, text)

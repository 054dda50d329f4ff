"""A search tool over HTTP: asks a `/retrieve` service, such as `serve_search` or Search-R1's.

Request `{"queries": [...], "topk": 5, "return_scores": true}`; response `{"result": [[hit, ...], ...]}`
with a hit `{"document": {...}, "score": 1.2}` or the document itself, whose text is `text` (with
`title`) or `contents`, a title line and then the text.
"""

from __future__ import annotations

import hashlib
import http.client
import json
import random
import time
from collections.abc import Sequence
from typing import Any
from urllib.parse import urlsplit

from masksearch_jax.search.tool import SearchError
from masksearch_jax.types import Passage

MAX_RESPONSE = 64 * 2**20  # bytes
_RETRIED = frozenset({408, 425, 429, 500, 502, 503, 504})


class RemoteSearch:
    """Asks the service at `url`; safe for threads, one connection per attempt, proxies unused.

    timeout: seconds for a call with all its attempts; retries: attempts after the first, made when
    the service cannot be reached or says that it failed, after `backoff`·2^n seconds and some jitter.
    """

    def __init__(self, url: str, *, timeout: float, retries: int = 2, backoff: float = 0.2):
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise SearchError(
                f"search.url is {url!r}, must be like http://host:port/retrieve, with http or https"
            )
        secure = parts.scheme == "https"
        self._connect = http.client.HTTPSConnection if secure else http.client.HTTPConnection
        self._host, self._port = parts.hostname, parts.port
        self._path = parts.path if parts.path.strip("/") else "/retrieve"
        self._path += f"?{parts.query}" if parts.query else ""
        self._url = url
        self._timeout = timeout
        self._retries = retries
        self._backoff = backoff

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
        except (TypeError, LookupError) as error:
            raise SearchError(f"{self._url} sent a document of unknown form: {error!r}") from error

    def _ask(self, body: bytes) -> list[Any]:
        deadline = time.monotonic() + self._timeout
        for attempt in range(self._retries + 1):
            try:
                return self._post(body, deadline)
            except (_Retry, OSError, http.client.HTTPException) as error:
                wait = self._backoff * 2**attempt * random.uniform(1.0, 1.5)
                if attempt == self._retries or time.monotonic() + wait >= deadline:
                    raise SearchError(
                        f"{self._url} failed {attempt + 1} times within {self._timeout:g} s; "
                        f"the last time: {error or type(error).__name__}"
                    ) from error
            time.sleep(wait)
        raise AssertionError("unreachable: the last attempt returns or raises")

    def _post(self, body: bytes, deadline: float) -> list[Any]:
        """One attempt. Raises _Retry, OSError or HTTPException when another may succeed."""
        left = max(0.001, deadline - time.monotonic())
        connection = self._connect(self._host, self._port, timeout=left)
        try:
            connection.request("POST", self._path, body, {"Content-Type": "application/json"})
            response = connection.getresponse()
            data = response.read(MAX_RESPONSE + 1)
        finally:
            connection.close()
        if response.status != 200:
            reason = f"HTTP {response.status} {data[:200].decode('utf-8', 'replace')}"
            if response.status in _RETRIED:
                raise _Retry(reason)
            raise SearchError(f"{self._url} refused the request: {reason}")
        if len(data) > MAX_RESPONSE:
            raise SearchError(f"{self._url} sent more than {MAX_RESPONSE} bytes")
        try:
            return list(json.loads(data)["result"])
        except (ValueError, LookupError, TypeError) as error:
            raise SearchError(
                f"{self._url} sent no JSON with a list `result`: {error!r}"
            ) from error


class _Retry(Exception):
    """The service says that it failed for now."""


def _passage(hit: Any) -> Passage:
    """The passage of one hit. Raises TypeError or LookupError for an unknown form."""
    document = hit.get("document", hit)
    if isinstance(document, str):
        document = {"contents": document}
    if "text" in document:
        title, text = document.get("title", ""), document["text"]
    else:
        title, _, text = document["contents"].partition("\n")
        title = title.strip().strip('"')
    digest = hashlib.sha256(f"{title}\n{text}".encode("utf-8", "replace")).hexdigest()[:16]
    return Passage(str(document.get("id", digest)), title, text)

"""A search tool as an HTTP service that Search-R1's clients can talk to.

POST /retrieve  {"queries": ["..."], "topk": 5, "return_scores": true}
             →  {"result": [[{"document": {"id", "title", "text", "contents"}, "score": 7.1}, ...]]}
GET  /health →  {"status": "ok", "passages": 54533, "fingerprint": "1f0c..."}
Errors are {"error": "..."}, with a status of `http_service` or 503 (the search failed: of /health,
one that it makes itself).
"""

from __future__ import annotations

import threading
from collections.abc import Sequence, Sized
from http import HTTPStatus
from typing import Any

from masksearch_jax.core import contents
from masksearch_jax.core.retrieval import SearchError, SearchTool
from masksearch_jax.core.types import Passage
from masksearch_jax.runtime.http_service import Call, Refusal, Service

MAX_QUERIES = 512  # per request
MAX_TOP_K = 100
_DEFAULT_TOP_K = 5
_HEALTH_QUERY = "the capital city of a country"


class SearchServer(Service):
    """Serves `tool` on (host, port), as `Service` does.

    At most `workers` searches run at once, the others wait.
    """

    def __init__(self, tool: SearchTool, host: str, port: int, workers: int = 8):
        self.tool = tool
        self._free = threading.BoundedSemaphore(workers)
        routes = {("POST", "/retrieve"): self._retrieve, ("GET", "/health"): self._health}
        super().__init__(host, port, routes)

    @property
    def url(self) -> str:
        return f"{self.address}/retrieve"

    def _retrieve(self, call: Call) -> dict[str, Any]:
        queries, top_k, scored = _parse(call.json())
        try:
            with self._free:
                return {"result": _retrieve(self.tool, queries, top_k, scored)}
        except SearchError as error:
            raise Refusal(HTTPStatus.SERVICE_UNAVAILABLE, str(error)) from error

    def _health(self, _: Call) -> dict[str, Any]:
        try:
            self.tool.search([_HEALTH_QUERY], 1)
        except Exception as error:  # whatever it is, the tool cannot search
            raise Refusal(HTTPStatus.SERVICE_UNAVAILABLE, f"the search failed: {error}") from error
        told: dict[str, Any] = {"status": "ok"}
        if isinstance(self.tool, Sized):
            told["passages"] = len(self.tool)
        if fingerprint := getattr(self.tool, "fingerprint", ""):
            told["fingerprint"] = fingerprint
        return told


def _parse(request: dict[str, Any]) -> tuple[list[str], int, bool]:
    """(queries, top_k, scored) of a request. Raises Refusal naming what is wrong."""
    bad = HTTPStatus.BAD_REQUEST
    queries = request.get("queries")
    if not isinstance(queries, list) or not all(isinstance(q, str) for q in queries):
        raise Refusal(bad, "`queries` must be a list of strings")
    if len(queries) > MAX_QUERIES:
        raise Refusal(bad, f"{len(queries)} queries, at most {MAX_QUERIES} are taken")
    top_k = request.get("topk")
    top_k = _DEFAULT_TOP_K if top_k is None else top_k
    if type(top_k) is not int or not 1 <= top_k <= MAX_TOP_K:
        raise Refusal(bad, f"`topk` is {top_k!r}, must be a whole number of 1 to {MAX_TOP_K}")
    return queries, top_k, bool(request.get("return_scores", False))


def _retrieve(
    tool: SearchTool, queries: Sequence[str], top_k: int, scored: bool
) -> list[list[dict[str, Any]]]:
    """Hits per query; as Search-R1 does, bare documents unless scores are asked for.

    A tool that has no scores (no `search_scored`) gives none: the hit then has only `document`.
    """
    if not scored:
        return [[_document(p) for p in hits] for hits in tool.search(queries, top_k)]
    if not hasattr(tool, "search_scored"):
        return [[{"document": _document(p)} for p in hits] for hits in tool.search(queries, top_k)]
    return [
        [{"document": _document(passage), "score": score} for passage, score in hits]
        for hits in tool.search_scored(queries, top_k)
    ]


def _document(passage: Passage) -> dict[str, str]:
    return {
        "id": passage.id,
        "title": passage.title,
        "text": passage.text,
        "contents": contents.join(passage.title, passage.text),
    }

"""What `/retrieve` and `/health` take and reply, as Search-R1's retrieval server speaks it.

POST /retrieve  {"queries": ["..."], "topk": 5, "return_scores": true}
             →  {"result": [[{"document": {"id", "title", "text", "contents"}, "score": 7.1}, ...]]}
GET  /health →  {"status": "ok", "passages": 54533, "fingerprint": "1f0c..."}
"""

from __future__ import annotations

from collections.abc import Sequence
from http import HTTPStatus
from typing import Any, NamedTuple

from masksearch_jax.core import contents
from masksearch_jax.core.retrieval import SearchTool
from masksearch_jax.core.search_config import MAX_TOP_K
from masksearch_jax.core.types import Hits, JsonObject, Passage
from masksearch_jax.runtime.http_service import Refusal

_FALSE = ("", "0", "f", "false", "n", "no", "off")  # in texts
_HEALTH_QUERY = "the capital city of a country"


class Asked(NamedTuple):
    """A request of /retrieve."""

    queries: list[str]
    top_k: int
    scored: bool


def parse(request: JsonObject, default_top_k: int) -> Asked:
    """Raises Refusal naming what is wrong.

    As Search-R1's server does, a `topk` that is missing, null, empty or 0 is the default, and
    numbers and `return_scores` may come as text.
    """
    bad = HTTPStatus.BAD_REQUEST
    queries = request.get("queries")
    if not isinstance(queries, list) or not all(isinstance(q, str) for q in queries):
        raise Refusal(bad, "`queries` must be a list of strings")
    top_k = request.get("topk")
    if isinstance(top_k, str) and top_k.strip().isdecimal() and len(top_k) < 10:
        top_k = int(top_k)
    if isinstance(top_k, float) and top_k.is_integer():
        top_k = int(top_k)
    if top_k is None or (type(top_k) is int and top_k == 0) or top_k == "":
        top_k = default_top_k
    if type(top_k) is not int or not 1 <= top_k <= MAX_TOP_K:
        raise Refusal(bad, f"`topk` is {top_k!r:.80}, must be a whole number of 1 to {MAX_TOP_K}")
    scored = request.get("return_scores", False)
    if isinstance(scored, str):
        scored = scored.strip().lower() not in _FALSE
    return Asked(queries, top_k, bool(scored))


def result(hits: Sequence[Passage], scored: bool) -> list[JsonObject]:
    """What is replied to one query: bare documents unless scores are asked for.

    A tool that gives no scores has none: the hit then has only `document`.
    """
    documents = [_document(p) for p in hits]
    if not scored:
        return documents
    scores = hits.scores if isinstance(hits, Hits) else ()
    if not scores:
        return [{"document": d} for d in documents]
    return [{"document": d, "score": s} for d, s in zip(documents, scores, strict=True)]


def health(tool: SearchTool) -> JsonObject:
    """Raises Refusal with 503 where the tool cannot search: that is tried, whatever is kept."""
    try:
        getattr(tool, "uncached", tool).search([_HEALTH_QUERY], 1)
    except Exception as error:  # whatever it is, the tool cannot search
        unavailable = HTTPStatus.SERVICE_UNAVAILABLE
        raise Refusal(unavailable, f"the search failed: {error}") from error
    told: dict[str, Any] = {"status": "ok"}
    passages = getattr(tool, "passages", None)
    if passages is not None:
        told["passages"] = len(passages)
    if fingerprint := getattr(tool, "fingerprint", ""):
        told["fingerprint"] = fingerprint
    return told


def _document(passage: Passage) -> dict[str, str]:
    return {
        "id": passage.id,
        "title": passage.title,
        "text": passage.text,
        "contents": contents.join(passage.title, passage.text),
    }

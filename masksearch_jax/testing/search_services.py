"""Search services of others on the loopback, which answer or misbehave by script.

One of the web, and an OpenSearch cluster.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Callable
from http import HTTPStatus
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from masksearch_jax.core import chinese
from masksearch_jax.core.retrieval import SearchTool
from masksearch_jax.core.types import JsonObject, Passage
from masksearch_jax.runtime.http_service import Call, Refusal
from masksearch_jax.testing.services import WELL, Loopback, Script

_WORDS = re.compile(rf"[{chinese.CHARACTERS}]+|[^\W{chinese.CHARACTERS}]+")


class WebEndpoint(Loopback):
    """A service that searches `tool` and replies as Serper does to POST, as SerpAPI does to GET.

    key: what its clients must send. A passage's id is the address of its page.
    """

    unscripted = ()

    def __init__(self, tool: SearchTool, script: Script = WELL, key: str = "secret"):
        super().__init__(script)
        self.tool, self.key = tool, key

    @property
    def serper_url(self) -> str:
        return f"{self.address}/search"

    @property
    def serpapi_url(self) -> str:
        return f"{self.address}/search.json?engine=google&q={{query}}&num={{top_k}}&api_key={{key}}"

    def told(self, path: str, call: Call) -> JsonObject:
        return call.json() if call.body else dict(parse_qsl(urlsplit(path).query))

    def reply(self, route: tuple[str, str], call: Call, _: Any) -> JsonObject:
        method, path = route[0], urlsplit(route[1]).path
        asked = self.told(route[1], call)
        given = call.headers.get("x-api-key") if method == "POST" else asked.get("api_key")
        if given != self.key:
            raise Refusal(HTTPStatus.UNAUTHORIZED, f"Invalid API key: {given}")
        (found,) = self.tool.search([asked["q"]], int(asked["num"]))
        results = [self._result(rank, passage) for rank, passage in enumerate(found, start=1)]
        if (method, path) == ("POST", "/search"):
            return {"searchParameters": {"q": asked["q"], "type": "search"}, "organic": results}
        if (method, path) != ("GET", "/search.json"):
            raise Refusal(HTTPStatus.NOT_FOUND, f"no {method} {path}")
        said = {"search_metadata": {"status": "Success"}, "search_parameters": {"q": asked["q"]}}
        if not results:
            return said | {"error": "Google hasn't returned any results for this query."}
        return said | {"organic_results": results}

    @staticmethod
    def _result(rank: int, passage: Passage) -> JsonObject:
        return {
            "position": rank,
            "title": passage.title,
            "link": passage.id,
            "snippet": passage.text,
        }

    def error(self, message: str, code: str | None = None) -> JsonObject:
        return {"error": message}


class OpenSearchEndpoint(Loopback):
    """An OpenSearch cluster of one index, as far as its loading and searching need one.

    A passage scores by the words of the query that it has, or by its vector. version: what the
    cluster says of itself. user: who may ask, with a password. rejects: rows that are turned away
    so many times. refuses: rows that never fit. loses: rows that are lost. most_clauses: of a
    query, all fields together, as Lucene counts the terms of the index's analyser.
    """

    unscripted = ()

    def __init__(self, script: Script = WELL):
        super().__init__(script)
        self.version = {"distribution": "opensearch", "number": "2.19.1"}
        self.user: tuple[str, str] | None = None
        self.mappings: JsonObject = {}
        self.settings: JsonObject = {}
        self.documents: dict[str, JsonObject] = {}  # by id, which is the row
        self.rejects: dict[int, int] = {}
        self.refuses: set[int] = set()
        self.loses: set[int] = set()
        self.most_clauses = 1024

    def told(self, path: str, call: Call) -> JsonObject:
        """A JSON object, or the `lines` of several."""
        if not call.body:
            return {}
        if "ndjson" not in call.headers.get("content-type", "") and "\n" not in call.body.decode():
            return call.json()
        return {"lines": [json.loads(line) for line in call.body.splitlines() if line]}

    def reply(self, route: tuple[str, str], call: Call, _: Any) -> JsonObject:
        self._check_user(call)
        method, asked = route[0], self.told(route[1], call)
        path = urlsplit(route[1]).path.strip("/")
        index, _, action = path.rpartition("/") if "/" in path else ("", "", path)
        if path == "":
            return {"name": "node", "cluster_name": "loopback", "version": self.version}
        if action == "_bulk":
            return self._load(asked["lines"])
        if action == "_msearch":
            return {"took": 1, "responses": [self._found(q) for q in asked["lines"][1::2]]}
        if (method, index) == ("PUT", ""):
            self.mappings, self.settings = asked["mappings"], asked["settings"]["index"]
            return {"acknowledged": True, "shards_acknowledged": True, "index": action}
        if not self.mappings:
            raise Refusal(HTTPStatus.NOT_FOUND, f"no such index [{index}]")
        if (method, action) == ("GET", "_mapping"):
            return {index: {"mappings": self.mappings}}
        if (method, action) == ("PUT", "_mapping"):
            self.mappings |= asked
        elif (method, action) == ("PUT", "_settings"):
            self.settings |= asked["index"]
        elif action == "_count":
            return {"count": len(self.documents), "_shards": {"total": 1, "failed": 0}}
        elif action != "_refresh":
            raise Refusal(HTTPStatus.NOT_FOUND, f"no {method} {path}")
        return {"acknowledged": True}

    def _check_user(self, call: Call) -> None:
        if self.user:
            expected = base64.b64encode(":".join(self.user).encode()).decode()
            if call.headers.get("authorization") != f"Basic {expected}":
                raise Refusal(HTTPStatus.UNAUTHORIZED, "Unauthorized")

    def _load(self, lines: list[JsonObject]) -> JsonObject:
        items = [
            {"index": {"_id": action["index"]["_id"], **self._loaded(action["index"], document)}}
            for action, document in zip(lines[::2], lines[1::2], strict=True)
        ]
        return {"took": 1, "errors": any("error" in i["index"] for i in items), "items": items}

    def _loaded(self, action: JsonObject, document: JsonObject) -> JsonObject:
        row = int(action["_id"])
        if self.rejects.get(row):
            self.rejects[row] -= 1
            error = {"type": "rejected_execution_exception", "reason": "queue full"}
            return {"status": 429, "error": error}
        if row in self.refuses:
            error = {"type": "mapper_parsing_exception", "reason": "failed to parse"}
            return {"status": 400, "error": error}
        if row not in self.loses:
            self.documents[action["_id"]] = document
        return {"status": 201, "result": "created", "_version": 1}

    def _found(self, asked: JsonObject) -> JsonObject:
        analyser = self.mappings["properties"]["all"]["analyzer"]
        if _clauses(asked["query"], analyser) > self.most_clauses:
            return self._refused_clauses()
        score = _score_of(asked["query"])
        scored = ((score(d), int(name), d) for name, d in self.documents.items())
        best = sorted((hit for hit in scored if hit[0]), key=lambda hit: (-hit[0], hit[1]))
        hits = [
            {
                "_index": "passages",
                "_id": str(row),
                "_score": score,
                "_source": {name: document[name] for name in asked["_source"]},
            }
            for score, row, document in best[: asked["size"]]
        ]
        return {
            "took": 1,
            "timed_out": False,
            "_shards": {"total": 1, "successful": 1, "skipped": 0, "failed": 0},
            "hits": {"max_score": hits[0]["_score"] if hits else None, "hits": hits},
            "status": 200,
        }

    def _refused_clauses(self) -> JsonObject:
        """The reply to a query with too many clauses, which fails on each shard."""
        kind = "too_many_nested_clauses"
        said = (
            f"Query contains too many nested clauses; maxClauseCount is set to {self.most_clauses}"
        )
        error = {
            "root_cause": [{"type": kind, "reason": f"{kind}: {said}"}],
            "type": "search_phase_execution_exception",
            "reason": "all shards failed",
            "phase": "dfs",
            "grouped": True,
            "failed_shards": [
                {"shard": 0, "index": "passages", "node": "n", "reason": {"type": kind}}
            ],
        }
        return {"error": error, "status": 500}

    def error(self, message: str, code: str | None = None) -> JsonObject:
        cause = {"type": code or "exception", "reason": message}
        return {"error": {**cause, "root_cause": [cause]}}


def _clauses(query: JsonObject, analyser: str) -> int:
    """Terms of a query of words, of all its fields; 0 of another. cjk makes pairs of characters."""
    texts = [
        asked["query"]
        for match in query.get("bool", {}).get("should", ())
        for asked in match["match"].values()
    ]
    runs = [run for text in texts for run in _WORDS.findall(text)]
    fewer = int(analyser == "cjk")
    return sum(max(1, len(r) - fewer) if chinese.CHARACTER.match(r) else 1 for r in runs)


def _score_of(query: JsonObject) -> Callable[[JsonObject], float]:
    """How a document scores: by words in common, or by its vector as OpenSearch does it."""
    if "knn" in query:
        asked = query["knn"]["vector"]["vector"]

        def by_vector(document: JsonObject) -> float:
            product = sum(a * b for a, b in zip(asked, document["vector"], strict=True))
            return 1 + product if product >= 0 else 1 / (1 - product)

        return by_vector
    (match, _) = query["bool"]["should"]
    words = set(match["match"]["all"]["query"].lower().split())

    def by_words(document: JsonObject) -> float:
        return float(len(words & set(f"{document['title']} {document['text']}".lower().split())))

    return by_words

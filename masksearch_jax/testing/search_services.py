"""Search services of others on the loopback, answering or misbehaving by script: of the web."""

from __future__ import annotations

from http import HTTPStatus
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from masksearch_jax.core.retrieval import SearchTool
from masksearch_jax.core.types import Passage
from masksearch_jax.runtime.http_service import Call, Refusal
from masksearch_jax.testing.services import WELL, Loopback, Script


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

    def told(self, path: str, call: Call) -> dict[str, Any]:
        return call.json() if call.body else dict(parse_qsl(urlsplit(path).query))

    def reply(self, route: tuple[str, str], call: Call, _: Any) -> dict[str, Any]:
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
    def _result(rank: int, passage: Passage) -> dict[str, Any]:
        return {
            "position": rank,
            "title": passage.title,
            "link": passage.id,
            "snippet": passage.text,
        }

    def error(self, message: str, code: str | None = None) -> dict[str, Any]:
        return {"error": message}

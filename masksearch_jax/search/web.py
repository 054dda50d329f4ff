"""Search of the web by a service that replies in JSON: Serper, SerpAPI, or any other by config.

The key comes from the environment alone. It stands in no message, no log and no result: replies,
errors and the HTTP library's own lines have it struck out.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import logging
import os
import re
import time
import weakref
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import quote, urlsplit

from masksearch_jax.core.retrieval import SearchError
from masksearch_jax.core.search_services_config import WebConfig
from masksearch_jax.core.types import Hits, JsonObject, Passage
from masksearch_jax.search.http_client import HttpClient
from masksearch_jax.search.rate import RateLimit
from masksearch_jax.search.replicas import GaveUp, Patience, Replicas

MAX_QUERY_CHARS = 2048  # of a query; the rest is ignored, as services do
_AT_ONCE = 8  # queries of one call that are asked at the same time
_STRUCK_OUT = b"***"
_HTTP_LOGGER = "httpx2"

SERVICES = {
    "serper": WebConfig(
        url="https://google.serper.dev/search",
        body='{"q": "{query}", "num": "{top_k}"}',
        header="X-API-KEY: {key}",
        key_variable="SERPER_API_KEY",
        results="organic",
        title="title",
        text="snippet",
        id="link",
    ),
    "serpapi": WebConfig(
        url="https://serpapi.com/search.json?engine=google&q={query}&num={top_k}&api_key={key}",
        key_variable="SERPAPI_API_KEY",
        results="organic_results",
        title="title",
        text="snippet",
        id="link",
    ),
    "json": WebConfig(),
}


class WebSearch:
    """Asks a service of the web, one request a query; safe for threads.

    Raises SearchError for a config that lacks something, and for a key that is not there.
    """

    def __init__(self, cfg: WebConfig, patience: Patience, limit: RateLimit | None = None):
        self._cfg = cfg = completed(cfg)
        self._key = _key_of(cfg)
        parts = urlsplit(cfg.url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise SearchError(f"search.web.url is {cfg.url!r}, must begin with http:// or https://")
        self._service = f"{parts.scheme}://{parts.netloc}"
        self._body = _parsed_body(cfg.body)
        self._client = HttpClient(is_secure=parts.scheme == "https")
        self._replicas: Replicas[Any] = Replicas([self._service], patience, limit)
        if self._key:
            logger, of_log = logging.getLogger(_HTTP_LOGGER), functools.partial(_strike, self._key)
            logger.addFilter(of_log)
            weakref.finalize(self, logger.removeFilter, of_log)

    def search(self, queries: Sequence[str], top_k: int) -> list[list[Passage]]:
        if not queries:
            return []
        with ThreadPoolExecutor(min(_AT_ONCE, len(queries)), "web search") as pool:
            return list(pool.map(lambda query: self._ask(query, top_k), queries))

    def _ask(self, query: str, top_k: int) -> Hits:
        started = time.monotonic()
        query = query[:MAX_QUERY_CHARS].encode("utf-8", "replace").decode()
        send = functools.partial(self._send, query, top_k)
        try:
            reply, attempts = self._replicas.request(send)
        except GaveUp as error:
            raise SearchError(f"the search failed, {error}") from error
        passages = self._passages(reply)[:top_k]
        seconds = time.monotonic() - started
        return Hits(passages, attempts=attempts, seconds=seconds, answered_by=self._service)

    def _send(self, query: str, top_k: int, _: str, seconds: float) -> Any:
        """One attempt: the reply's JSON. Raises FailedForNow, and SearchError for other JSON."""
        values = {"{query}": query, "{top_k}": str(top_k), "{key}": self._key}
        url = _filled(self._cfg.url, {name: quote(v, safe="") for name, v in values.items()})
        body = None
        if self._body is not None:
            body = json.dumps(_filled_json(self._body, values, top_k)).encode()
        name, _, value = self._cfg.header.partition(":")
        headers = {name.strip(): _filled(value, values).strip()} if name else {}
        method = "GET" if body is None else "POST"
        given = (method, url, body, seconds, headers, self._service)
        response = self._client.send(*given)
        response = response._replace(data=_struck_out(self._key, response.data))
        response.check_ok(self._service)
        try:
            return json.loads(response.data)
        except (ValueError, RecursionError) as error:
            raise SearchError(f"{self._service} sent no JSON: {error}") from error

    def _passages(self, reply: Any) -> list[Passage]:
        """The results of a reply. Raises SearchError for a reply of another form."""
        cfg = self._cfg
        found = _at(reply, cfg.results)
        if not found and _is_without_results(reply):
            return []
        said = _at(reply, "error") or _at(reply, "message")
        if said and not found:  # it is not that nothing was found
            raise SearchError(f"{self._service} sent an error: {said!r:.200}")
        if not isinstance(found, list):
            where = f"{cfg.results!r} (search.web.results)"
            raise SearchError(f"{self._service} sent no list at {where}: {reply!r:.200}")
        return [self._passage(result) for result in found]

    def _passage(self, result: Any) -> Passage:
        cfg = self._cfg
        title, text, name = (_at(result, where) for where in (cfg.title, cfg.text, cfg.id))
        # A result may lack any of these, a text of no words say; one that lacks all is no result.
        if not isinstance(result, dict) or (title is None and text is None):
            raise SearchError(
                f"{self._service} sent a result without {cfg.title!r} and {cfg.text!r}: "
                f"{result!r:.200}"
            )
        title, text = str(title or ""), str(text or "")
        digest = hashlib.sha256(f"{title}\n{text}".encode("utf-8", "replace")).hexdigest()[:16]
        return Passage(str(name or digest), title, text)


def _struck_out(key: str, data: bytes) -> bytes:
    """The data without the key, however JSON, addresses or HTML write its characters."""
    return _written(key).sub(_STRUCK_OUT, data) if key else data


@functools.cache
def _written(key: str) -> re.Pattern[bytes]:
    """Each character of the key as it is or escaped: `\\/`, `\\u002F`, `%2f`, `&#47;`, `&#x2F;`."""
    characters = (
        rf"(?:{re.escape(c)}|\\{re.escape(c)}"
        rf"|(?i:\\u00{ord(c):02x}|%{ord(c):02x}|&#0*{ord(c)};|&#x0*{ord(c):x};))"
        for c in key
    )
    return re.compile("".join(characters).encode())


def _strike(key: str, record: logging.LogRecord) -> bool:
    """Strikes the key out of a line of the HTTP library's log, which has whole addresses."""
    line = _struck_out(key, record.getMessage().encode("utf-8", "replace"))
    record.msg, record.args = line.decode("utf-8", "replace"), ()
    return True


def completed(cfg: WebConfig) -> WebConfig:
    """The config with what its service needs in place of what is empty. Raises SearchError."""
    preset = dataclasses.asdict(SERVICES[cfg.service])
    given = {name: value for name, value in dataclasses.asdict(cfg).items() if value}
    cfg = WebConfig(**(preset | given))
    for name in ("url", "results", "text"):
        if not getattr(cfg, name):
            raise SearchError(f"search.web.{name} is empty, which service {cfg.service!r} needs")
    if "{query}" not in cfg.url + cfg.body:
        raise SearchError("search.web has {query} neither in its url nor in its body")
    return cfg


def cache_name(cfg: WebConfig) -> str:
    """What results are cached under: all that decides them, as a hash."""
    told = json.dumps(dataclasses.asdict(completed(cfg)), sort_keys=True)
    return f"web:{hashlib.sha256(told.encode()).hexdigest()[:16]}"


def _key_of(cfg: WebConfig) -> str:
    """The key, where one is needed. Raises SearchError where there is none."""
    if "{key}" not in cfg.url + cfg.body + cfg.header:
        return ""
    if not cfg.key_variable:
        raise SearchError("search.web.key_variable is empty, and its url, body or header has {key}")
    if not (found := os.environ.get(cfg.key_variable, "").strip()):
        raise SearchError(
            f"the environment variable {cfg.key_variable} (search.web.key_variable) has no key"
        )
    if not (found.isascii() and found.isprintable()):  # the library's errors would show it
        raise SearchError(
            f"the key in {cfg.key_variable} (search.web.key_variable) has characters that no "
            "header may have, such as a line break"
        )
    return found


def _parsed_body(text: str) -> JsonObject | None:
    if not text:
        return None
    try:
        found = json.loads(text)
    except ValueError as error:
        raise SearchError(f"search.web.body is no JSON: {error}") from None
    if not isinstance(found, dict):
        raise SearchError("search.web.body must be a JSON object")
    return found


def _filled(template: str, values: dict[str, str]) -> str:
    """With values in their places; what a value itself has in braces stays."""
    pieces, rest = [], template
    while rest:
        place, name = min(((rest.find(n), n) for n in values if n in rest), default=(-1, ""))
        if place < 0:
            return "".join([*pieces, rest])
        pieces += [rest[:place], values[name]]
        rest = rest[place + len(name) :]
    return "".join(pieces)


def _filled_json(value: Any, values: dict[str, str], top_k: int) -> Any:
    """A body with values in its texts; a text that is {top_k} alone becomes the number."""
    if isinstance(value, dict):
        return {name: _filled_json(v, values, top_k) for name, v in value.items()}
    if isinstance(value, list):
        return [_filled_json(v, values, top_k) for v in value]
    if value == "{top_k}":
        return top_k
    return _filled(value, values) if isinstance(value, str) else value


def _at(value: Any, path: str) -> Any:
    """What lies at dotted names, numbers in lists; None where nothing does."""
    for name in path.split(".") if path else ():
        if isinstance(value, dict):
            value = value.get(name)
        elif isinstance(value, list) and name.isdecimal() and int(name) < len(value):
            value = value[int(name)]
        else:
            return None
    return value if path else None


def _is_without_results(reply: Any) -> bool:
    """Whether the search succeeded and found nothing, as SerpAPI says it."""
    return _at(reply, "search_metadata.status") == "Success"

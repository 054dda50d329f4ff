"""Search of the web: both services and any other, their failures, and a key that nobody sees."""

import dataclasses
import json
import logging
import math
import sqlite3

import pytest

from masksearch_jax.core.config import SearchConfig
from masksearch_jax.core.retrieval import SearchError
from masksearch_jax.core.search_services_config import WebConfig
from masksearch_jax.core.types import Passage
from masksearch_jax.search.open import open_tool
from masksearch_jax.search.tool import FakeSearch
from masksearch_jax.testing.search_services import WebEndpoint
from masksearch_jax.testing.services import WELL, Answer, in_turn
from tests.search.fruit import ids

KEY = "k3y/of&mine"
CFG = SearchConfig("web", "", "", 3, 3, 2, timeout=5.0, workers=1)
CFG = dataclasses.replace(CFG, backoff=0.001, memory=0)


def tool_of(service, kind="serper", cfg=CFG, **changes):
    url = service.serper_url if kind == "serper" else service.serpapi_url
    web = WebConfig(**({"service": kind, "url": url} | changes))
    return open_tool(dataclasses.replace(cfg, web=web))


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    for name in ("SERPER_API_KEY", "SERPAPI_API_KEY", "OWN_KEY"):
        monkeypatch.setenv(name, KEY)


@pytest.fixture
def service(fruit):
    with WebEndpoint(fruit, key=KEY) as service:
        yield service


@pytest.mark.parametrize("kind", ["serper", "serpapi"])
def test_results_are_passages(service, fruit, kind):
    tool = tool_of(service, kind)
    queries = ["red fruit", "nosuchword", "tropic & smell? {top_k} {key}"]
    found = tool.search(queries, 2)
    assert found == fruit.search(queries, 2)
    assert (found[0].attempts, found[0].cached, found[0].scores) == (1, False, ())
    assert {hits.answered_by for hits in found} == {service.address}
    assert found[0].seconds > 0
    assert sorted(r["q"] for r in service.requests[1:]) == sorted(queries)
    assert {str(r["num"]) for r in service.requests[1:]} == {"2"}
    assert tool.search([], 2) == []
    assert len(ids(tool, "x " * 5000 + "\ud800")) == 0
    assert len(service.requests[-1]["q"]) == 2048


def test_any_service_that_replies_in_json_can_be_described():
    reply = {"data": {"hits": [[], [{"page": {"name": "T", "at": 7}, "says": ["x", "body"]}]]}}
    script = Answer(body=json.dumps(reply).encode())
    with WebEndpoint(FakeSearch({}), script) as service:
        web = WebConfig(
            service="json",
            url=f"{service.address}/any",
            body='{"find": [{"about": "so: {query}"}], "most": "{top_k}", "key": "{key}"}',
            header="Authorization: Bearer {key}",
            key_variable="OWN_KEY",
            results="data.hits.1",
            title="page.name",
            text="says.1",
            id="page.at",
        )
        tool = open_tool(dataclasses.replace(CFG, web=web))
        assert tool.search(["q"], 4) == [[Passage("7", "T", "body")]]
        asked = {"find": [{"about": "so: q"}], "most": 4, "key": KEY}
        assert service.requests[-1] == asked


def test_a_result_needs_a_title_or_a_text(service):
    found = {"organic": [{"title": "T"}, {"snippet": "s", "link": ""}]}
    service.script = Answer(body=json.dumps(found).encode())
    first, second = tool_of(service).search(["q"], 3)[0]
    assert (first.title, first.text) == ("T", "")
    assert (second.title, second.text) == ("", "s")
    assert len({first.id, second.id, ""}) == 3


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (Answer(body=b"<html>"), "sent no JSON"),
        (Answer(body=b"[]"), "sent no list at 'organic'"),
        (Answer(body=b'{"organic": {}}'), "sent no list at 'organic'"),
        (Answer(body=b'{"message": "soon"}'), "sent an error: 'soon'"),
        (Answer(body=b'{"error": "quota exceeded", "organic": []}'), "an error: 'quota exceeded'"),
        (Answer(body=b'{"organic": [3]}'), "a result without 'title' and 'snippet': 3"),
        (Answer(body=b'{"organic": [{"link": "l"}]}'), "a result without"),
        (Answer(status=403, message="no credit"), "refused the request: HTTP 403 .*no credit"),
        (Answer(status=302, headers={"Location": "http://127.0.0.1:1"}), "HTTP 302"),
    ],
)
def test_a_wrong_reply_is_an_error_at_once(service, answer, message):
    tool = tool_of(service)
    service.script = answer
    before = len(service.calls)
    with pytest.raises(SearchError, match=message):
        tool.search(["q"], 3)
    assert len(service.calls) == before + 1


def test_failures_that_may_pass_are_tried_again(service, fruit):
    tool = tool_of(service, cfg=dataclasses.replace(CFG, attempt_timeout=0.1))
    stalled, busy = Answer(hang=math.inf), Answer(status=429)
    service.script = in_turn(busy, stalled, Answer(cut=20), WELL)
    (found,) = tool.search(["red"], 2)
    assert (found, found.attempts) == (fruit.search(["red"], 2)[0], 4)


def test_a_service_that_is_gone_is_an_outage(service):
    cfg = dataclasses.replace(CFG, timeout=0.2)
    tool = tool_of(service, cfg=cfg)
    service.kill()
    with pytest.raises(SearchError, match=r"the search failed, attempt \d+ within 0\.19 s: http"):
        tool.search(["q"], 3)
    with pytest.raises(SearchError, match="the search tool does not answer"):
        tool_of(service, cfg=cfg)


def test_nobody_sees_the_key(service, tmp_path, caplog):
    """Not in messages, logs, results or the cache, of a service that tells what it was sent."""
    caplog.set_level(logging.DEBUG)
    cfg = dataclasses.replace(CFG, cache=str(tmp_path / "cache"))
    tool = tool_of(service, "serpapi", cfg)
    service.script = Answer(
        body=json.dumps(
            {"organic_results": [{"title": f"for {KEY}", "snippet": "s", "link": KEY}]}
        ).encode()
    )
    (hits,) = tool.search(["told"], 3)
    assert hits[0] == Passage("***", "for ***", "s")
    service.script, service.key = WELL, "another"
    with pytest.raises(SearchError, match=r"HTTP 401 .*Invalid API key: \*\*\*") as caught:
        tool.search(["refused"], 3)
    tool.close()
    assert any("api_key=***" in line for line in caplog.messages)  # the library logs addresses
    rows = sqlite3.connect(tmp_path / "cache").execute("select * from results, versions")
    told = [str(caught.value), repr(caught.value.__cause__), caplog.text, str(rows.fetchall())]
    seen = "\n".join(told)
    assert "told" in seen
    assert KEY not in seen
    assert "k3y%2Fof%26mine" not in seen


@pytest.mark.parametrize(
    "escaped",
    [
        rb"abc+DEF\/gh1==",
        rb"abc\u002BDEF\u002fgh1\u003d\u003D",
        b"abc%2bDEF%2fgh1%3d%3D",
        b"abc&#43;DEF&#x2F;gh1==",
    ],
)
def test_a_key_is_struck_out_however_a_reply_writes_it(monkeypatch, service, escaped):
    monkeypatch.setenv("SERPER_API_KEY", "abc+DEF/gh1==")
    service.key = "abc+DEF/gh1=="
    tool = tool_of(service)
    found = b'{"organic": [{"title": "T", "snippet": "key %s.", "link": "l"}]}' % escaped
    service.script = Answer(body=found)
    assert tool.search(["q"], 3) == [[Passage("l", "T", "key ***.")]]
    service.script = Answer(status=403, body=b"<h1>bad key %s</h1>" % escaped)
    with pytest.raises(SearchError, match=r"HTTP 403 <h1>bad key \*\*\*</h1>"):
        tool.search(["q2"], 3)


def test_a_key_that_is_missing_is_named(monkeypatch, service):
    monkeypatch.delenv("SERPER_API_KEY")
    with pytest.raises(SearchError, match=r"variable SERPER_API_KEY .* has no key"):
        tool_of(service)


def test_a_key_that_no_header_may_have_is_refused_unseen(monkeypatch, service):
    monkeypatch.setenv("SERPER_API_KEY", "half\nother")
    with pytest.raises(SearchError, match="a line break") as caught:
        tool_of(service)
    assert "half" not in str(caught.value)


@pytest.mark.parametrize(
    ("web", "message"),
    [
        (WebConfig(service="json"), r"search\.web\.url is empty, which service 'json' needs"),
        (WebConfig(service="json", url="http://x/{query}"), r"search\.web\.results is empty"),
        (WebConfig(url="http://x", body="{}"), r"\{query\} neither in its url nor in its body"),
        (WebConfig(url="ftp://x/{query}"), r"'ftp://x/\{query\}', must begin with http"),
        (WebConfig(body="{query}"), r"search\.web\.body is no JSON"),
        (WebConfig(body='["{query}"]'), "must be a JSON object"),
        (
            WebConfig(service="json", url="http://x/{query}{key}", results="r", text="t"),
            r"key_variable is empty, and its url, body or header has \{key\}",
        ),
    ],
)
def test_a_config_that_lacks_something_is_refused(web, message):
    with pytest.raises(SearchError, match=message):
        open_tool(dataclasses.replace(CFG, web=web))

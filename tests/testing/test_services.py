"""Services on the loopback: each way to misbehave as a client meets it, and that runs repeat."""

import contextlib
import email.utils
import http.client
import json
import math
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import openai
import pytest

from masksearch_jax.core.types import Passage
from masksearch_jax.search.remote import RemoteSearch
from masksearch_jax.search.server import SearchServer
from masksearch_jax.search.tool import FakeSearch, SearchError
from masksearch_jax.testing.services import (
    DEEP_JSON,
    WELL,
    Answer,
    Endpoint,
    SearchEndpoint,
    answer_of,
    by_number,
    in_turn,
    retry_after,
    serving,
    sometimes,
)

TOOL = FakeSearch(lambda query: [Passage(query, query.title(), f"about {query}")])
ASKED = {"model": "m", "messages": [{"role": "user", "content": "hello"}]}
CHAT = "/v1/chat/completions"


def post(service, path=CHAT, body=ASKED, timeout=10.0):
    """(status, headers, bytes) of one POST on a connection of its own."""
    connection = http.client.HTTPConnection("127.0.0.1", service.port, timeout=timeout)
    with contextlib.closing(connection):
        connection.request("POST", path, json.dumps(body))
        response = connection.getresponse()
        return response.status, dict(response.getheaders()), response.read()


def search(service, query="red", **options):
    given = {"timeout": 10.0, "retries": 0} | options
    return RemoteSearch(service.url, **given).search([query], 3)


# ---- scripts


def texts(script, *requests):
    return "".join(answer_of(script, {"q": r}).text for r in requests)


def test_calls_are_answered_in_turn_and_the_last_script_goes_on():
    assert texts(in_turn(Answer("a"), lambda body: Answer(body["q"]), Answer("c")), *"xyzzy") == (
        "ayccc"
    )


def test_calls_are_answered_by_their_number():
    script = by_number(lambda n: Answer("x") if n % 3 == 0 else Answer("."))
    assert texts(script, *"abcdefg") == "..x..x."


def test_a_share_of_requests_is_drawn_by_their_hash():
    def drawn(share, seed, requests):
        script = sometimes(share, Answer("x"), Answer("."), seed=seed)
        return {r for r in requests if answer_of(script, {"q": r}).text == "x"}

    requests = range(1000)
    found = drawn(0.2, 0, requests)
    assert 160 <= len(found) <= 240
    assert drawn(0.2, 0, reversed(requests)) == found  # whatever the order
    assert drawn(0.2, 1, requests) != found
    assert found < drawn(0.4, 0, requests)
    assert drawn(0.0, 0, requests) == set()
    assert drawn(1.0, 0, requests) == set(requests)


def test_a_drawn_request_may_be_well_after_some_calls():
    script = sometimes(1.0, Answer("x"), Answer("."), first=2)
    assert texts(script, *"aabaab") == "xxx..x"


# ---- what a client of an LLM meets


@pytest.mark.parametrize(
    ("answer", "status", "error"),
    [
        (Answer(status=402, message="Insufficient credits"), 402, "Insufficient credits"),
        (Answer(status=429, code="insufficient_quota"), 429, "scripted 429"),
        (Answer(message="upstream is down"), 200, "upstream is down"),
    ],
)
def test_an_error_is_an_object_with_a_message(answer, status, error):
    with Endpoint(answer) as llm:
        got, _, body = post(llm)
    assert (got, json.loads(body)) == (
        status,
        {"error": {"message": error, "code": answer.code}},
    )
    assert llm.paid == []


def test_openai_s_client_reads_what_it_says():
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    thought = "<think>hm</think>{}"
    script = in_turn(Answer(thought), Answer("cut off", finish="length"), Answer(parts))
    with Endpoint(script) as llm, openai.OpenAI(base_url=llm.url, api_key="none") as client:
        replies = [client.chat.completions.create(**ASKED).choices[0] for _ in range(3)]
    assert [r.message.content for r in replies] == [thought, "cut off", parts]
    assert [r.finish_reason for r in replies] == ["stop", "length", "stop"]
    assert llm.requests == llm.paid == [ASKED] * 3


@pytest.mark.parametrize("body", [b"<html>502 Bad Gateway</html>", DEEP_JSON])
def test_bytes_are_sent_as_they_are(body):
    with Endpoint(Answer("unsaid", body=body)) as llm:
        assert post(llm)[2] == body
    with pytest.raises((ValueError, RecursionError)):
        json.loads(body)


def test_another_address_has_nothing():
    with Endpoint(Answer("hi")) as llm:
        assert post(llm, "/v1/completions")[0] == 404


# ---- time


def test_a_slow_answer_comes_late():
    with Endpoint(Answer("hi", hang=0.3)) as llm:
        start = time.monotonic()
        assert post(llm)[0] == 200
        assert time.monotonic() - start >= 0.3


def test_a_stalled_call_is_accepted_and_never_answered():
    with SearchEndpoint(TOOL, Answer(hang=math.inf)) as service:
        with pytest.raises(TimeoutError):
            post(service, "/retrieve", {"queries": ["red"]}, timeout=0.2)
        with ThreadPoolExecutor(1) as pool:
            waiting = pool.submit(post, service, "/retrieve", {"queries": ["red"]})
            while len(service.calls) < 2:
                time.sleep(0.01)
            service.kill()
            with pytest.raises((http.client.HTTPException, ConnectionError)):
                waiting.result()


def test_a_stalled_call_is_over_when_its_client_goes():
    with Endpoint(Answer(hang=math.inf)) as service:
        with pytest.raises(TimeoutError):
            post(service, timeout=0.1)
        end = time.monotonic() + 5.0
        while service.in_flight and time.monotonic() < end:
            time.sleep(0.01)
        assert (len(service.calls), service.in_flight) == (1, 0)


@pytest.mark.parametrize("form", ["seconds", "date", "bare date"])
def test_a_pause_is_asked_for_in_each_form(form):
    with Endpoint(Answer(status=429, headers=retry_after(90, form))) as llm:
        said = post(llm)[1]["Retry-After"]
    if form == "seconds":
        assert said == "90"
        return
    date = email.utils.parsedate_to_datetime(said)
    assert (date.tzinfo is None) == (form == "bare date")
    utc = email.utils.parsedate_to_datetime(f"{said.removesuffix(' GMT')} GMT").timestamp()
    assert 85 < utc - time.time() <= 90


# ---- connections


def test_a_connection_may_end_within_the_body():
    with Endpoint(in_turn(Answer("hello", cut=20), Answer("hello"))) as llm:
        with pytest.raises(http.client.IncompleteRead) as error:
            post(llm)
        assert len(error.value.partial) == 20
        whole = post(llm)[2]
    assert error.value.partial == whole[:20]
    assert llm.paid == [ASKED]  # once: what was cut is of no use


def test_a_dead_service_refuses_and_comes_back_on_its_port():
    with SearchEndpoint(TOOL) as service:
        kept = http.client.HTTPConnection("127.0.0.1", service.port, timeout=10)
        with contextlib.closing(kept):
            kept.request("GET", "/health")
            assert json.load(kept.getresponse()) == {"status": "ok"}
            port = service.port
            service.kill()
            with pytest.raises((http.client.HTTPException, ConnectionError)):
                (kept.request("GET", "/health"), kept.getresponse())
        for _ in range(2):
            with pytest.raises(ConnectionRefusedError):
                socket.create_connection(("127.0.0.1", port), timeout=10)
        service.restart()
        assert (service.port, search(service)[0][0].id) == (port, "red")
        assert len(service.calls) == 1
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port), timeout=10)


def test_calls_are_recorded_once_each_whoever_asks():
    with Endpoint(lambda body: Answer(body["n"])) as llm, ThreadPoolExecutor(16) as pool:
        found = list(pool.map(lambda n: post(llm, body={"n": str(n)})[2], range(200)))
    said = [json.loads(body)["choices"][0]["message"]["content"] for body in found]
    assert said == [str(n) for n in range(200)]
    assert sorted(int(body["n"]) for body in llm.requests) == list(range(200))
    assert llm.times == sorted(llm.times)
    assert {call.path for call in llm.calls} == {CHAT}
    assert llm.in_flight == 0 < llm.most_in_flight <= 16


# ---- search


@pytest.mark.parametrize(
    "body",
    [
        {"queries": ["red", "blue"], "topk": 1, "return_scores": True},
        {"queries": ["red"]},
        {"queries": "red"},
        {"queries": ["red"], "topk": 101},
    ],
)
def test_a_healthy_search_service_answers_as_the_real_one(body):
    with SearchEndpoint(TOOL) as fake, serving(SearchServer(TOOL, "127.0.0.1", 0)) as real:
        real.port = real.server_address[1]
        expected, found = (post(s, "/retrieve", body) for s in (real, fake))
    assert found[::2] == expected[::2]


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (Answer(status=503), r"HTTP 503 .*scripted 503"),
        (Answer(status=404, message="no such index"), "refused the request: .*no such index"),
        (Answer(message="overloaded"), "no JSON list `result`"),
        (Answer(body=b"<html>"), "no JSON list `result`"),
        (Answer(cut=9), "RemoteProtocolError"),
    ],
)
def test_faults_of_search_reach_its_client(answer, says):
    with SearchEndpoint(TOOL, in_turn(answer, WELL)) as service:
        with pytest.raises(SearchError, match=says):
            search(service)
        assert search(service)[0][0].text == "about red"
    assert [given for _, given in service.served] == [answer, WELL]


def test_a_tool_that_fails_is_an_error_of_the_service():
    says = r"HTTP 503 .*scripted failure of query 'red'"
    broken = SearchEndpoint(FakeSearch({}, failing={"red"}))
    with broken as service, pytest.raises(SearchError, match=says):
        search(service)


def test_the_same_searches_fail_in_every_run():
    def failed(order, retries):
        script = sometimes(0.2, Answer(status=503), WELL, seed=3)
        found, lock = set(), threading.Lock()

        def ask(query):
            try:
                search(service, query, retries=retries, backoff=0.001)
            except SearchError:
                with lock:
                    found.add(query)

        with SearchEndpoint(TOOL, script) as service, ThreadPoolExecutor(8) as pool:
            list(pool.map(ask, order))
        return found, len(service.calls)

    queries = [f"q{i}" for i in range(100)]
    once, calls = failed(queries, retries=0)
    assert 10 < len(once) < 30
    assert calls == 100
    assert failed(queries[::-1], retries=2) == (once, 100 + 2 * len(once))

"""Search over HTTP: client and service on real sockets, failures, deadlines."""

import contextlib
import dataclasses
import http.client
import json
import socket
import threading
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from prometheus_client.parser import text_string_to_metric_families

from masksearch_jax.core.config import SearchConfig
from masksearch_jax.core.retrieval import SearchError
from masksearch_jax.core.types import Passage
from masksearch_jax.search import server as server_module
from masksearch_jax.search.cache import CachedSearch
from masksearch_jax.search.gather import RefusedError
from masksearch_jax.search.open import open_tool
from masksearch_jax.search.remote import TIME_LEFT, RemoteSearch
from masksearch_jax.search.server import SearchServer
from masksearch_jax.search.shared import SharedSearch
from masksearch_jax.search.tool import FakeSearch
from masksearch_jax.testing.services import WELL, Answer, SearchEndpoint, in_turn, serving
from tests.search.fruit import FRUIT, SPECIAL


@pytest.fixture(scope="module")
def service(fruit):
    with serving(SearchServer(fruit, "127.0.0.1", 0)) as server:
        yield server


def ask(server, method, path, body=None, headers=None):
    connection = http.client.HTTPConnection(*server.server_address, timeout=10)
    try:
        connection.request(method, path, body, headers or {})
        response = connection.getresponse()
        return response.status, json.loads(response.read())
    finally:
        connection.close()


def test_a_remote_search_finds_what_the_tool_finds(service, fruit):
    remote = RemoteSearch(service.url, timeout=10)
    queries = ["red fruit", "", "café", "\ud800 banana", *SPECIAL]
    assert remote.search(queries, 3) == fruit.search(queries, 3)
    assert remote.search([], 3) == []
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda _: remote.search(queries, 3), range(24)))
    assert found == [fruit.search(queries, 3)] * 24


def test_the_service_speaks_search_r1(service, fruit):
    body = json.dumps({"queries": ["red fruit"], "topk": 2, "return_scores": True})
    status, answer = ask(service, "POST", "/retrieve", body)
    (hits,) = fruit.search(["red fruit"], 2)
    assert status == 200
    assert answer["result"] == [
        [
            {
                "document": {
                    "id": p.id,
                    "title": p.title,
                    "text": p.text,
                    "contents": f'"{p.title}"\n{p.text}',
                },
                "score": score,
            }
            for p, score in zip(hits, hits.scores, strict=True)
        ]
    ]
    _, bare = ask(service, "POST", "/retrieve", json.dumps({"queries": ["red fruit"], "topk": 2}))
    assert bare["result"] == [[hit["document"] for hit in answer["result"][0]]]
    well = {"status": "ok", "passages": 6, "fingerprint": fruit.fingerprint}
    assert ask(service, "GET", "/health") == (200, well)


def test_a_client_of_verl_reads_titles_and_texts(service, fruit):
    """It names three passages and scores, and splits `contents` at the end of the title's line."""
    body = json.dumps({"queries": ["red fruit", "tropic"], "topk": 3, "return_scores": True})
    kind = "application/json"
    status, answer = ask(service, "POST", "/retrieve", body, {"Content-Type": kind, "Accept": kind})
    assert status == 200
    told = [
        [tuple(hit["document"]["contents"].split("\n", 1)) for hit in hits]
        for hits in answer["result"]
    ]
    found = fruit.search(["red fruit", "tropic"], 3)
    assert told == [[(f'"{p.title}"', p.text) for p in hits] for hits in found]
    assert all(told)


def test_a_service_that_cannot_search_is_not_well():
    with serving(SearchServer(FakeSearch({}, fail_first=1), "127.0.0.1", 0)) as server:
        status, told = ask(server, "GET", "/health")
        assert (status, told) == (503, {"error": "the search failed: scripted failure of call 1 of "
                                        "the first 1"})  # fmt: skip
        assert ask(server, "GET", "/health") == (200, {"status": "ok"})


class Down:
    """Answers until it is told to fail."""

    fails = False

    def search(self, queries, top_k):
        if self.fails:
            raise SearchError("down")
        return [FRUIT[:top_k] for _ in queries]


@pytest.mark.parametrize("kept", ["memory", "a cache", "memory of a cache"])
def test_a_service_that_keeps_results_is_well_only_while_it_can_search(tmp_path, kept):
    tool = wrapped = Down()
    if "cache" in kept:
        wrapped = CachedSearch(tool, tmp_path / "cache.sqlite")
    if "memory" in kept:
        wrapped = SharedSearch(wrapped, 10)
    with serving(SearchServer(wrapped, "127.0.0.1", 0)) as server:
        for _ in range(2):
            assert ask(server, "GET", "/health") == (200, {"status": "ok"})
        tool.fails = True
        assert ask(server, "GET", "/health") == (503, {"error": "the search failed: down"})
        tool.fails = False
        assert ask(server, "GET", "/health") == (200, {"status": "ok"})


@pytest.mark.parametrize("cache", ["", "cache.sqlite"])
def test_a_service_in_front_of_one_that_has_gone_is_not_well(fruit, tmp_path, cache):
    with contextlib.ExitStack() as stack:
        gone = stack.enter_context(contextlib.ExitStack())
        behind = gone.enter_context(serving(SearchServer(fruit, "127.0.0.1", 0)))
        cfg = SearchConfig("http", url=behind.url, timeout=10.0, retries=0)
        cfg = dataclasses.replace(cfg, cache=cache and str(tmp_path / cache))
        front = stack.enter_context(serving(SearchServer(open_tool(cfg), "127.0.0.1", 0)))
        well = {"status": "ok", "fingerprint": fruit.fingerprint}
        assert ask(front, "GET", "/health") == (200, well)
        gone.close()
        status, told = ask(front, "GET", "/health")
    assert status == 503
    assert "refused" in told["error"]


def test_a_remote_index_is_known_by_its_fingerprint(service, fruit):
    assert RemoteSearch(service.url, timeout=5).fingerprint == fruit.fingerprint
    with serving(SearchServer(FakeSearch({}), "127.0.0.1", 0)) as server:
        assert RemoteSearch(server.url, timeout=5).fingerprint == ""
    with pytest.raises(SearchError, match="Connection refused"):  # gone
        _ = RemoteSearch(server.url, timeout=0.2).fingerprint


def test_contents_in_replies_are_split_as_those_of_a_corpus():
    documents = [
        {"id": "1", "contents": '""Ash" (Lind song)"\n"Ash" is a song.'},
        {"id": "2", "contents": "The Ember is a river of the north."},
        {"id": "3", "contents": '"The Bridge "Old Jo""\nIt is old.'},
    ]

    class Replies(BaseHTTPRequestHandler):
        def do_POST(self):
            self.rfile.read(int(self.headers["Content-Length"]))
            body = json.dumps({"result": [[{"document": d, "score": 1.0} for d in documents]]})
            self.send_response(200)
            self.end_headers()
            self.wfile.write(body.encode())

        def log_message(self, *args):
            pass

    with serving(ThreadingHTTPServer(("127.0.0.1", 0), Replies)) as server:
        host, port = server.server_address
        found = RemoteSearch(f"http://{host}:{port}/retrieve", timeout=10).search(["x"], 3)
    assert found == [
        [
            Passage("1", '"Ash" (Lind song)', '"Ash" is a song.'),
            Passage("2", "", "The Ember is a river of the north."),
            Passage("3", 'The Bridge "Old Jo"', "It is old."),
        ]
    ]


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "message"),
    [
        ("POST", "/retrieve", "{", 400, "not JSON"),
        ("POST", "/retrieve", "[" * 100_000, 400, "not JSON"),
        ("POST", "/retrieve", b"\xff", 400, "not JSON"),
        ("POST", "/retrieve", "[]", 400, "JSON object"),
        ("POST", "/retrieve", "{}", 400, "list of strings"),
        ("POST", "/retrieve", '{"queries": "red"}', 400, "list of strings"),
        ("POST", "/retrieve", '{"queries": [1]}', 400, "list of strings"),
        ("POST", "/retrieve", '{"queries": ["red"], "topk": -1}', 400, "`topk` is -1"),
        ("POST", "/retrieve", '{"queries": ["red"], "topk": true}', 400, "`topk` is True"),
        ("POST", "/retrieve", '{"queries": ["red"], "topk": 10001}', 400, "1 to 10000"),
        ("POST", "/retrieve", '{"queries": ["red"], "topk": "many"}', 400, "`topk` is 'many'"),
        ("POST", "/retrieve", '{"queries": ["red"], "topk": 2.5}', 400, "`topk` is 2.5"),
        ("POST", "/search", "{}", 404, "'/search'"),
        ("GET", "/", None, 404, "there are /retrieve, /health and /metrics"),
        ("GET", "/retrieve", None, 405, "takes POST"),
        ("POST", "/health", "{}", 405, "takes GET"),
        ("DELETE", "/retrieve", None, 405, "takes POST"),
    ],
)
def test_a_bad_request_gets_a_json_error(service, method, path, body, status, message):
    got, answer = ask(service, method, path, body)
    assert got == status
    assert message in answer["error"]


@pytest.mark.parametrize("topk", [{}, {"topk": None}, {"topk": ""}, {"topk": 0}])
def test_a_request_that_names_no_number_gets_the_configured_one(fruit, topk):
    with serving(SearchServer(fruit, "127.0.0.1", 0, default_top_k=2)) as server:
        status, answer = ask(
            server, "POST", "/retrieve", json.dumps({"queries": ["fruit"], **topk})
        )
    assert (status, len(answer["result"][0])) == (200, 2)


def test_as_many_passages_as_an_index_finds_can_be_the_configured_number():
    tool = FakeSearch(lambda query: FRUIT)
    with serving(SearchServer(tool, "127.0.0.1", 0, default_top_k=10_000)) as server:
        status, answer = ask(server, "POST", "/retrieve", BODY)
    assert (status, len(answer["result"][0])) == (200, len(FRUIT))


@pytest.mark.parametrize("scored", ["false", "0", "No", False, None])
def test_what_is_false_may_come_as_text(service, scored):
    body = json.dumps({"queries": ["red"], "topk": 2.0, "return_scores": scored})
    status, answer = ask(service, "POST", "/retrieve", body)
    assert (status, [sorted(hit) for hit in answer["result"][0]]) == (
        200,
        [["contents", "id", "text", "title"]] * 2,
    )


def test_a_number_may_come_as_text(service):
    body = json.dumps({"queries": ["fruit"], "topk": "3"})
    assert len(ask(service, "POST", "/retrieve", body)[1]["result"][0]) == 3


def test_a_path_may_have_a_slash_behind_and_a_query(service):
    body = json.dumps({"queries": ["fruit"]})
    expected = ask(service, "POST", "/retrieve", body)
    for path in ("/retrieve/", "/retrieve?who=me", "/retrieve/?a=1&b=2"):
        assert ask(service, "POST", path, body) == expected
    assert ask(service, "GET", "/health/?x")[0] == 200


def test_a_body_may_come_in_chunks(service):
    body = json.dumps({"queries": ["fruit"]}).encode()
    chunked = b"".join(b"%x\r\n%s\r\n" % (1, body[i : i + 1]) for i in range(len(body)))
    found = ask(service, "POST", "/retrieve", chunked + b"0\r\n\r\n", CHUNKED)
    assert found == ask(service, "POST", "/retrieve", body)


CHUNKED = {"Transfer-Encoding": "chunked"}


def test_a_batch_of_any_size_is_answered_in_order(service, fruit):
    words = ["red", "yellow", "tropic", "rock", "smell", "bar", "fruit", "nosuchword"]
    queries = [words[i % 8] for i in range(2560)]
    body = json.dumps({"queries": queries, "topk": 3, "return_scores": True})
    status, answer = ask(service, "POST", "/retrieve", body)
    found = [[hit["document"]["id"] for hit in hits] for hits in answer["result"]]
    assert status == 200
    assert found == [[p.id for p in hits] for hits in fruit.search(queries, 3)]
    assert ask(service, "POST", "/retrieve", '{"queries": []}') == (200, {"result": []})


@pytest.mark.parametrize("headers", [{}, CHUNKED])
def test_a_refusal_of_too_large_a_body_arrives(fruit, monkeypatch, headers):
    monkeypatch.setattr(server_module, "MAX_BODY", 1000)
    body = b"x" * 3_000_000
    if headers:
        body = b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), body)
    with serving(SearchServer(fruit, "127.0.0.1", 0)) as server:
        status, answer = ask(server, "POST", "/retrieve", body, headers)
    sent = "more than 1000" if headers else "3000000"
    assert (status, answer) == (413, {"error": f"{sent} bytes, at most 1000 are read"})


@pytest.mark.parametrize(
    ("path", "mib", "refusal"),
    [("/retrieve", 257, 413), ("/nowhere", 20, 404), ("/health", 20, 405)],
)
def test_a_refusal_arrives_however_much_is_sent(service, path, mib, refusal):
    block = b"x" * 2**20
    host, port = service.server_address
    connection = http.client.HTTPConnection(host, port, timeout=60)
    length = {"Content-Length": str(mib * 2**20)}
    with contextlib.closing(connection):
        connection.request("POST", path, (block for _ in range(mib)), length)
        assert connection.getresponse().status == refusal


def test_a_failed_search_is_tried_again_until_the_retries_end():
    for fail_first, retries, works in ((2, 2, True), (2, 1, False)):
        tool = FakeSearch({"q": FRUIT[:1]}, fail_first=fail_first)
        with serving(SearchServer(tool, "127.0.0.1", 0)) as server:
            remote = RemoteSearch(server.url, timeout=10, retries=retries, backoff=0.001)
            if works:
                assert remote.search(["q"], 1) == [[FRUIT[0]]]
            else:
                with pytest.raises(SearchError, match=r"attempt 2 .*HTTP 503 .*scripted failure"):
                    remote.search(["q"], 1)
            assert len(tool.calls) == retries + 1


def test_a_refused_request_is_not_tried_again():
    tool = FakeSearch({})
    with (
        serving(SearchServer(tool, "127.0.0.1", 0)) as server,
        pytest.raises(SearchError, match="refused the request: HTTP 400"),
    ):
        RemoteSearch(server.url, timeout=10, backoff=60).search(["q"], 10_001)
    assert tool.calls == []


def test_a_defect_of_the_tool_is_a_json_error_and_its_traceback_is_shown(capfd):
    with serving(SearchServer(FakeSearch(lambda query: 1 / 0), "127.0.0.1", 0)) as server:
        status, answer = ask(server, "POST", "/retrieve", '{"queries": ["q"]}')
    assert (status, "ZeroDivisionError" in answer["error"]) == (500, True)
    said, end = "", time.monotonic() + 10
    while "ZeroDivisionError" not in said and time.monotonic() < end:
        said += capfd.readouterr().err  # its thread may still be writing
        time.sleep(0.01)
    assert "ZeroDivisionError" in said


def test_at_most_so_many_searches_run_at_once():
    running, most, lock = [0], [0], threading.Lock()

    def find(query):
        with lock:
            running[0] += 1
            most[0] = max(most[0], running[0])
        time.sleep(0.01)
        with lock:
            running[0] -= 1
        return ()

    with serving(SearchServer(FakeSearch(find), "127.0.0.1", 0, workers=2)) as server:
        remote = RemoteSearch(server.url, timeout=10)
        with ThreadPoolExecutor(6) as pool:
            list(pool.map(lambda i: remote.search([f"q{i}"], 1), range(12)))
    assert most[0] == 2


def slow_search(seconds=0.3, failing=()):
    return FakeSearch({"q": FRUIT[:1]}, latency=seconds, failing=failing)


def wait_for(condition):
    end = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)


BODY = json.dumps({"queries": ["q"]})


def test_a_closed_service_has_sent_the_replies_in_progress():
    tool = slow_search()
    with ThreadPoolExecutor(1) as pool:
        with serving(SearchServer(tool, "127.0.0.1", 0)) as server:
            waiting = pool.submit(ask, server, "POST", "/retrieve", BODY)
            wait_for(lambda: tool.calls)
        assert waiting.result()[0] == 200


def test_what_a_closing_service_cannot_answer_in_time_is_asked_to_come_again():
    tool = slow_search(1.5)
    with ThreadPoolExecutor(3) as pool:
        with serving(SearchServer(tool, "127.0.0.1", 0, workers=1, last_words=0)) as server:
            asked = [
                pool.submit(post_raw, server, json.dumps({"queries": ["q"], "topk": k}), {})
                for k in (1, 2, 3)
            ]
            wait_for(lambda: tool.calls and server._queue.waiting == 2)
        assert [f.result()[0] for f in asked] == [503] * 3


def test_requests_beyond_the_queue_are_asked_to_come_again():
    tool = slow_search()
    with (
        serving(SearchServer(tool, "127.0.0.1", 0, workers=1, waiting=2)) as server,
        ThreadPoolExecutor(8) as pool,
    ):
        first = pool.submit(ask, server, "POST", "/retrieve", BODY)
        wait_for(lambda: tool.calls)
        others = [pool.submit(post_raw, server, BODY) for _ in range(7)]
        answers = [other.result() for other in others]
        assert first.result()[0] == 200
    refused = [(status, headers["retry-after"]) for status, headers in answers if status != 200]
    assert refused == [(503, "1")] * 5
    assert sum(len(queries) for queries in tool.calls) == 3


def post_raw(server, body, headers=None):
    connection = http.client.HTTPConnection(*server.server_address, timeout=10)
    with contextlib.closing(connection):
        connection.request("POST", "/retrieve", body, headers or {})
        response = connection.getresponse()
        response.read()
        return response.status, {k.lower(): v for k, v in response.getheaders()}


def test_a_request_whose_client_has_gone_is_not_searched():
    tool = slow_search()
    with serving(SearchServer(tool, "127.0.0.1", 0, workers=1)) as server:
        with ThreadPoolExecutor(1) as pool:
            first = pool.submit(ask, server, "POST", "/retrieve", BODY)
            wait_for(lambda: tool.calls)
            gone = http.client.HTTPConnection(*server.server_address, timeout=10)
            gone.request("POST", "/retrieve", json.dumps({"queries": ["gone"]}))
            wait_for(lambda: server._queue.waiting == 1)
            gone.close()
            assert first.result()[0] == 200
        wait_for(lambda: server._queue.dropped == 1)
    assert tool.calls == [("q",)]


def test_a_request_whose_time_has_passed_is_not_searched():
    tool = slow_search()
    with (
        serving(SearchServer(tool, "127.0.0.1", 0, workers=1)) as server,
        ThreadPoolExecutor(1) as pool,
    ):
        first = pool.submit(ask, server, "POST", "/retrieve", BODY)
        wait_for(lambda: tool.calls)
        late = json.dumps({"queries": ["late"]})
        assert post_raw(server, late, {TIME_LEFT: "0.05"})[0] == 503
        assert first.result()[0] == 200
        assert post_raw(server, BODY, {TIME_LEFT: "nonsense"})[0] == 200
        assert [post_raw(server, BODY, {TIME_LEFT: t})[0] for t in ("0", "-5", "nan")] == [
            *(503, 503, 200),
        ]
    assert tool.calls == [("q",)] * 3


def test_requests_that_wait_together_are_one_search():
    tool = slow_search()
    with (
        serving(SearchServer(tool, "127.0.0.1", 0, workers=1)) as server,
        ThreadPoolExecutor(6) as pool,
    ):
        first = pool.submit(ask, server, "POST", "/retrieve", BODY)
        wait_for(lambda: tool.calls)
        body = {"queries": ["q"], "topk": 2}
        others = [pool.submit(ask, server, "POST", "/retrieve", BODY) for _ in range(4)]
        others.append(pool.submit(ask, server, "POST", "/retrieve", json.dumps(body)))
        wait_for(lambda: server._queue.waiting == 5)
        assert all(f.result()[0] == 200 for f in (first, *others))
    assert sorted(map(len, tool.calls)) in ([1, 1, 4], [1, 1, 1, 3], [1, 1, 2, 2])


def test_a_query_that_fails_harms_no_request_that_it_waits_with():
    tool = slow_search(0.1, failing=["bad"])
    with (
        serving(SearchServer(tool, "127.0.0.1", 0, workers=1)) as server,
        ThreadPoolExecutor(6) as pool,
    ):
        first = pool.submit(ask, server, "POST", "/retrieve", BODY)
        wait_for(lambda: tool.calls)
        bodies = [json.dumps({"queries": [q]}) for q in ("a", "bad", "b")]
        others = [pool.submit(ask, server, "POST", "/retrieve", body) for body in bodies]
        wait_for(lambda: server._queue.waiting == 3)
        assert [f.result()[0] for f in (first, *others)] == [200, 200, 503, 200]
    assert sorted(map(len, tool.calls)) == [1, 1, 1, 1, 3]


def test_a_query_that_the_tool_refuses_is_not_tried_again():
    class Picky:
        calls = 0

        def search(self, queries, top_k):
            self.calls += 1
            raise RefusedError("no such query")

    tool = Picky()
    with (
        serving(SearchServer(tool, "127.0.0.1", 0)) as server,
        pytest.raises(SearchError, match=r"refused the request: HTTP 422 .*no such query"),
    ):
        RemoteSearch(server.url, timeout=10, backoff=60).search(["q"], 3)
    assert tool.calls == 1


def test_a_tool_that_answers_too_few_queries_is_an_error():
    class Short:
        def search(self, queries, top_k):
            return [[] for _ in queries][1:]

    with serving(SearchServer(Short(), "127.0.0.1", 0)) as server:
        status, reply = ask(server, "POST", "/retrieve", json.dumps({"queries": ["a", "b"]}))[:2]
    assert status == 503
    assert "2 queries got 1 results" in str(reply)


def test_a_small_request_does_not_wait_for_all_of_a_large_one():
    tool = slow_search(0.05)
    with (
        serving(SearchServer(tool, "127.0.0.1", 0, workers=1)) as server,
        ThreadPoolExecutor(1) as pool,
    ):
        queries = [str(i) for i in range(320)]
        large = pool.submit(ask, server, "POST", "/retrieve", json.dumps({"queries": queries}))
        wait_for(lambda: tool.calls)
        assert ask(server, "POST", "/retrieve", BODY)[0] == 200
        before = tool.calls.index(("q",))
        assert large.result()[0] == 200
    assert before < 6
    assert [q for call in tool.calls if call != ("q",) for q in call] == queries


def test_a_large_batch_is_shared_by_the_threads():
    threads = set()

    def find(query):
        threads.add(threading.get_ident())
        time.sleep(0.001)
        return ()

    with serving(SearchServer(FakeSearch(find), "127.0.0.1", 0, workers=3)) as server:
        body = json.dumps({"queries": [str(i) for i in range(300)]})
        assert ask(server, "POST", "/retrieve", body)[0] == 200
    assert len(threads) == 3


def test_idle_connections_need_no_threads(fruit):
    with serving(SearchServer(fruit, "127.0.0.1", 0, workers=2)) as server:
        ask(server, "GET", "/health")
        before = threading.active_count()
        idle = [socket.create_connection(server.server_address) for _ in range(100)]
        assert ask(server, "POST", "/retrieve", BODY)[0] == 200
        assert threading.active_count() <= before + 1
        for connection in idle:
            connection.close()


def test_figures_are_told_to_prometheus(fruit):
    with serving(SearchServer(fruit, "127.0.0.1", 0)) as server:
        for body in ('{"queries": ["red", "band"]}', "{"):
            ask(server, "POST", "/retrieve", body)
        text = urllib.request.urlopen(server.url.replace("retrieve", "metrics")).read().decode()
    found = {
        family.name: {tuple(s.labels.values()): s.value for s in family.samples}
        for family in text_string_to_metric_families(text)
    }
    requests = found["search_requests"]
    assert requests["200",] == requests["400",] == 1
    assert found["search_searched"][()] == 2
    assert found["search_dropped"][()] == 0


@contextmanager
def answering(answer):
    """A service that sends the bytes that `answer` yields, whatever is asked."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(200)
            self.end_headers()
            for chunk in answer():
                self.wfile.write(chunk)
                self.wfile.flush()

        def log_message(self, *args):
            pass

    class Server(ThreadingHTTPServer):
        def handle_error(self, *args):
            pass

    with serving(Server(("127.0.0.1", 0), Handler)) as server:
        yield "http://{}:{}".format(*server.server_address)


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (b"<html>", "no JSON list `result`"),
        (b'{"results": []}', "no JSON list `result`"),
        (b'{"result": 5}', "no JSON list of lists `result`"),
        (b"[]", "no JSON list `result`"),
        (b"[" * 100_000, "no JSON list `result`"),  # deeper than Python reads
        (b'{"result": []}', "answered 1 queries with 0 results"),
        (b'{"result": [[{"document": {}}]]}', "document of unknown form"),
        (b'{"result": [[7]]}', "document of unknown form"),
        (b'{"result": [5]}', "no JSON list of lists `result`"),
        (b'{"result": [[{"text": null}]]}', "document of unknown form"),
        (b'{"result": [[{"contents": 5}]]}', "document of unknown form"),
    ],
)
def test_an_answer_of_another_form_is_an_error(answer, message):
    with answering(lambda: [answer]) as url, pytest.raises(SearchError, match=message):
        RemoteSearch(url, timeout=10).search(["q"], 5)


def test_documents_of_search_r1_are_understood():
    hits = [
        {"document": {"id": "17", "contents": '"Ada Lovelace"\nShe wrote\nnotes.'}, "score": 2},
        {"id": 18, "title": "T", "text": "x", "contents": "ignored"},
        {"document": {"contents": '"No id"\ntext'}},
    ]
    with answering(lambda: [json.dumps({"result": [hits]}).encode()]) as url:
        first, second, third = RemoteSearch(url, timeout=10).search(["q"], 3)[0]
        again = RemoteSearch(url, timeout=10).search(["q"], 3)[0][2]
    assert first == Passage("17", "Ada Lovelace", "She wrote\nnotes.")
    assert second == Passage("18", "T", "x")
    assert (third.title, third.text, len(third.id)) == ("No id", "text", 16)
    assert third == again


def drip():
    while True:
        time.sleep(0.02)
        yield b" "


def test_a_dripping_service_is_left_at_the_deadline():
    with answering(drip) as url, pytest.raises(SearchError, match=r"0\.3 s: .*Timeout"):
        RemoteSearch(url, timeout=0.3).search(["q"], 1)


def test_a_silent_service_is_left_at_the_deadline():
    over = threading.Event()

    def wait():
        over.wait(60)
        yield b""

    with answering(wait) as url:
        with pytest.raises(SearchError, match=r"0\.3 s: .*Timeout"):
            RemoteSearch(url, timeout=0.3).search(["q"], 1)
        over.set()


def test_an_answer_that_breaks_off_is_asked_for_again():
    tool = FakeSearch({"q": FRUIT[:1]})
    with SearchEndpoint(tool, in_turn(Answer(cut=9), Answer(cut=0), WELL)) as service:
        remote = RemoteSearch(service.url, timeout=10, retries=1, backoff=0.001)
        with pytest.raises(SearchError, match=r"attempt 2 .*RemoteProtocolError"):
            remote.search(["q"], 1)
        assert remote.search(["q"], 1) == [[FRUIT[0]]]


def test_a_service_that_is_not_there_is_an_error():
    with pytest.raises(SearchError, match=r"attempt 2 .*ConnectError .*refused"):
        RemoteSearch("http://127.0.0.1:1", timeout=10, retries=1, backoff=0.001).search(["q"], 1)
    for url in ("", "ftp://x", "http://", "http://x:port", "http://[x"):
        with pytest.raises(SearchError, match=r"search\.url is"):
            RemoteSearch(url, timeout=1)

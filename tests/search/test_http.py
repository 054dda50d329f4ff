"""Search over HTTP: client and service on real sockets, failures, deadlines."""

import http.client
import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from masksearch_jax.core.retrieval import SearchError
from masksearch_jax.core.types import Passage
from masksearch_jax.runtime.http_service import MAX_BODY
from masksearch_jax.search.remote import RemoteSearch
from masksearch_jax.search.server import MAX_QUERIES, SearchServer
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
    scored = fruit.search_scored(["red fruit"], 2)[0]
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
            for p, score in scored
        ]
    ]
    _, bare = ask(service, "POST", "/retrieve", json.dumps({"queries": ["red fruit"], "topk": 2}))
    assert bare["result"] == [[hit["document"] for hit in answer["result"][0]]]
    well = {"status": "ok", "passages": 6, "fingerprint": fruit.fingerprint}
    assert ask(service, "GET", "/health") == (200, well)


def test_a_service_that_cannot_search_is_not_well():
    with serving(SearchServer(FakeSearch({}, fail_first=1), "127.0.0.1", 0)) as server:
        status, told = ask(server, "GET", "/health")
        assert (status, told) == (503, {"error": "the search failed: scripted failure of call 1 of "
                                        "the first 1"})  # fmt: skip
        assert ask(server, "GET", "/health") == (200, {"status": "ok"})


def test_a_remote_index_is_known_by_its_fingerprint(service, fruit):
    assert RemoteSearch(service.url, timeout=5).fingerprint == fruit.fingerprint
    with serving(SearchServer(FakeSearch({}), "127.0.0.1", 0)) as server:
        assert RemoteSearch(server.url, timeout=5).fingerprint == ""
    assert RemoteSearch(server.url, timeout=1).fingerprint == ""  # gone


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
        ("POST", "/retrieve", '{"queries": ["red"], "topk": 0}', 400, "`topk` is 0"),
        ("POST", "/retrieve", '{"queries": ["red"], "topk": true}', 400, "`topk` is True"),
        ("POST", "/retrieve", '{"queries": ["red"], "topk": 101}', 400, "1 to 100"),
        (
            "POST",
            "/retrieve",
            json.dumps({"queries": ["x"] * (MAX_QUERIES + 1)}),
            400,
            "at most 512",
        ),
        ("POST", "/search", "{}", 404, "'/search'"),
        ("GET", "/", None, 404, "there are /retrieve and /health"),
        ("GET", "/retrieve", None, 405, "takes POST"),
        ("POST", "/health", "{}", 405, "takes GET"),
        ("DELETE", "/retrieve", None, 405, "takes POST"),
    ],
)
def test_a_bad_request_gets_a_json_error(service, method, path, body, status, message):
    got, answer = ask(service, method, path, body)
    assert got == status
    assert message in answer["error"]


def test_a_request_may_come_in_pieces_and_is_not_read_when_it_is_too_large(service):
    body = json.dumps({"queries": ["red fruit"]}).encode()
    status, answer = ask(service, "POST", "/retrieve", iter([body[:5], body[5:]]))
    assert (status, len(answer["result"])) == (200, 1)
    status, answer = ask(service, "POST", "/retrieve", None, {"Content-Length": str(MAX_BODY + 1)})
    assert (status, answer["error"]) == (413, f"{MAX_BODY + 1} bytes, at most {MAX_BODY} are read")
    pieces = (b" " * 2**20 for _ in range(5))
    assert ask(service, "POST", "/retrieve", pieces)[0] == 413


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
        RemoteSearch(server.url, timeout=10, backoff=60).search(["q"], 1000)
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


def test_a_closed_service_has_sent_the_replies_in_progress():
    tool = FakeSearch({"q": FRUIT[:1]}, latency=0.2)
    body = json.dumps({"queries": ["q"]})
    with ThreadPoolExecutor(1) as pool:
        with serving(SearchServer(tool, "127.0.0.1", 0)) as server:
            waiting = pool.submit(ask, server, "POST", "/retrieve", body)
            while not tool.calls:
                time.sleep(0.01)
        assert waiting.result()[0] == 200


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
        (b'{"result": 5}', "no JSON list `result`"),
        (b"[]", "no JSON list `result`"),
        (b"[" * 100_000, "no JSON list `result`"),  # deeper than Python reads
        (b'{"result": []}', "answered 1 queries with 0 results"),
        (b'{"result": [[{"document": {}}]]}', "document of unknown form"),
        (b'{"result": [[7]]}', "document of unknown form"),
        (b'{"result": [5]}', "document of unknown form"),
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
    with answering(drip) as url, pytest.raises(SearchError, match=r"0\.3 s: .*TimeoutError"):
        RemoteSearch(url, timeout=0.3).search(["q"], 1)


def test_a_silent_service_is_left_at_the_deadline():
    over = threading.Event()

    def wait():
        over.wait(60)
        yield b""

    with answering(wait) as url:
        with pytest.raises(SearchError, match=r"0\.3 s: .*TimeoutError"):
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

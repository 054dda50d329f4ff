"""A client that outlives its service: stalls, restarts, replicas, pauses, hedges, batches."""

import contextlib
import json
import math
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from masksearch_jax.core.retrieval import SearchError
from masksearch_jax.core.retry_after import retry_after
from masksearch_jax.core.types import Passage
from masksearch_jax.search import http_client
from masksearch_jax.search.cache import CachedSearch
from masksearch_jax.search.gather import MAX_BATCH, Gatherer
from masksearch_jax.search.remote import RemoteSearch
from masksearch_jax.search.replicas import (
    MAX_BACKOFF,
    FailedForNow,
    GaveUp,
    Patience,
    Replicas,
    jittered,
)
from masksearch_jax.search.server import SearchServer
from masksearch_jax.search.shared import SharedSearch
from masksearch_jax.search.tool import FakeSearch
from masksearch_jax.testing import services
from masksearch_jax.testing.services import WELL, Answer, SearchEndpoint, by_number, in_turn
from tests.search.fruit import FRUIT

TOOL = FakeSearch(lambda query: [Passage(query, query.title(), f"about {query}")])
STALL, DOWN = Answer(hang=math.inf), Answer(status=500)


def client(*services, **options):
    given = {"timeout": 20.0, "attempt_timeout": 0.2, "backoff": 0.01} | options
    return RemoteSearch(",".join(s.url for s in services), **given)


def everything(remote, queries, workers=16):
    with ThreadPoolExecutor(workers) as pool:
        return list(pool.map(lambda q: remote.search([q], 3), queries))


QUERIES = [f"q{i}" for i in range(60)]
EXPECTED = [TOOL.search([q], 3) for q in QUERIES]


def test_a_stall_is_tried_again_within_the_same_time():
    with SearchEndpoint(TOOL, in_turn(STALL, WELL)) as service:
        (hits,) = client(service).search(["red"], 3)
    assert hits == TOOL.search(["red"], 3)[0]
    assert hits.attempts == 2


def test_an_attempt_gets_more_time_where_the_last_had_too_little():
    slow = Answer(hang=0.3)
    with SearchEndpoint(TOOL, slow) as service:
        (hits,) = client(service, attempt_timeout=0.05).search(["red"], 3)
    assert hits.attempts == 4  # 0.05, 0.1, 0.2, 0.4 seconds


@pytest.mark.parametrize("fault", [STALL, DOWN])
def test_a_tenth_of_faults_loses_nothing(fault):
    script = by_number(lambda n: fault if n % 10 == 3 else WELL)
    with SearchEndpoint(TOOL, script) as service:
        assert everything(client(service), QUERIES) == EXPECTED


def test_a_service_that_does_not_answer_yet_is_told_once_and_at_once(capsys):
    with SearchEndpoint(TOOL, in_turn(DOWN, DOWN, WELL, DOWN, WELL)) as service:
        remote = client(service, retries=7)
        for query in ("red", "green"):
            remote.search([query], 3)
    (told,) = capsys.readouterr().err.splitlines()
    assert told.startswith(f"  the service does not answer yet ({service.url}: HTTP 500 ")
    assert told.endswith("); it is tried again, 7 times within 20 s at most")
    with SearchEndpoint(TOOL, in_turn(WELL, DOWN, WELL)) as service:
        remote = client(service)
        for query in ("red", "green"):
            remote.search([query], 3)
    assert capsys.readouterr().err == ""


def test_a_restart_loses_nothing():
    with SearchEndpoint(TOOL) as service:
        remote = client(service, attempt_timeout=5.0)
        remote.search(["first"], 3)
        service.kill()
        back = threading.Timer(1.0, service.restart)
        back.start()
        try:
            assert everything(remote, QUERIES) == EXPECTED
        finally:
            back.join()


def test_another_replica_answers_for_one_that_is_down():
    with SearchEndpoint(TOOL) as well, SearchEndpoint(TOOL, DOWN) as down:
        remote = client(well, down, backoff=60.0)
        assert everything(remote, QUERIES, 4) == EXPECTED
        assert 3 <= len(down.calls) <= 7  # three failures in a row, or four at once, then it rests
    assert len(well.calls) == len(QUERIES)


PAGE = Answer(body=b"<html>maintenance</html>")
OTHER_FORM = Answer(body=json.dumps({"result": [[{"document": {"id": "1"}}]]}).encode())
STRANGE = [Answer(status=404), Answer(status=401), Answer(status=302), PAGE, OTHER_FORM]


@pytest.mark.parametrize("strange", STRANGE)
def test_another_replica_answers_for_one_whose_reply_is_none(strange):
    with SearchEndpoint(TOOL) as well, SearchEndpoint(TOOL, strange) as broken:
        remote = client(well, broken, backoff=60.0)
        assert everything(remote, QUERIES, 4) == EXPECTED
        assert 3 <= len(broken.calls) <= 7  # as of one that is down


@pytest.mark.parametrize("strange", STRANGE)
def test_a_reply_that_is_none_is_an_error_once_every_replica_gave_one(strange):
    with SearchEndpoint(TOOL, strange) as one, SearchEndpoint(TOOL, strange) as two:
        with pytest.raises(SearchError, match=r"refused the request|no JSON list|unknown form"):
            client(one, two, backoff=60.0).search(["red"], 3)
        assert [len(one.calls), len(two.calls)] == [1, 1]


def test_a_request_that_one_replica_refuses_is_not_asked_of_another():
    refuses = Answer(status=422, message="no such query")
    with SearchEndpoint(TOOL, refuses) as one, SearchEndpoint(TOOL, refuses) as two:
        with pytest.raises(SearchError, match="refused the request: HTTP 422"):
            client(one, two).search(["red"], 3)
        assert len(one.calls) + len(two.calls) == 1


def test_all_replicas_are_asked_before_a_try_counts_as_over():
    with contextlib.ExitStack() as stack:
        opened = [SearchEndpoint(TOOL, in_turn(DOWN, DOWN, WELL)) for _ in range(8)]
        services = [stack.enter_context(one) for one in opened]
        (hits,) = client(*services, retries=2, attempt_timeout=20.0).search(["red"], 3)
        calls = [len(s.calls) for s in services]
    assert hits == TOOL.search(["red"], 3)[0]
    # The last try may begin at the one that the try before did not ask, having just failed.
    assert sorted(calls) in ([1, *[2] * 6, 3], [*[2] * 7, 3])
    assert hits.attempts == sum(calls)


def test_a_reply_that_is_too_large_is_asked_for_in_parts(monkeypatch):
    monkeypatch.setattr(http_client, "MAX_RESPONSE", 1000)
    queries = [f"q{i}" for i in range(40)]
    with SearchEndpoint(TOOL) as service:
        assert client(service).search(queries, 3) == TOOL.search(queries, 3)
        assert len(service.calls) > 4
        with pytest.raises(SearchError, match="sent more than 1000 bytes"):
            client(service).search(["q" * 1000], 3)


def test_an_index_is_asked_for_its_fingerprint_until_it_tells(fruit):
    shaky = FakeSearch({}, fail_first=3)
    shaky.fingerprint = fruit.fingerprint
    with services.serving(SearchServer(shaky, "127.0.0.1", 0)) as server:
        assert client(server).fingerprint == fruit.fingerprint
        assert len(shaky.calls) == 4
    with pytest.raises(SearchError, match=r"attempt \d+ within 0\.2 s"):
        _ = client(server, timeout=0.2).fingerprint


def test_an_index_without_health_is_known_by_its_replies(fruit):
    with SearchEndpoint(TOOL, Answer(headers={"X-Index": "one"})) as service:
        remote = client(service)
        remote.search(["red"], 3)
        assert remote.fingerprint == "one"


class _UnderPath(SearchEndpoint):
    def reply(self, route, call, answer):
        if route == ("GET", "/wiki/health"):
            return {"fingerprint": "of wiki"}
        return super().reply(route, call, answer)


def test_a_service_under_a_path_has_its_health_beside_it(fruit):
    for path, told in (("/wiki/retrieve", "of wiki"), ("/other/retrieve/", fruit.fingerprint)):
        with _UnderPath(fruit) as one:
            assert RemoteSearch(f"{one.address}{path}", timeout=5.0).fingerprint == told


def test_a_service_that_comes_back_with_another_index_is_an_error(fruit):
    def named(name):
        tool = FakeSearch(lambda query: FRUIT[:1])
        tool.fingerprint = name
        return SearchServer(tool, "127.0.0.1", port)

    port = 0
    with services.serving(named("one")) as server:
        port = server.server_address[1]
        remote = client(server)
        remote.search(["red"], 1)
    with services.serving(named("one")):
        assert remote.search(["red"], 1) == [[FRUIT[0]]]
    with (
        services.serving(named("other")),
        pytest.raises(SearchError, match="searches index other, and this run began with index one"),
    ):
        remote.search(["red"], 1)


def test_replicas_of_two_indexes_are_refused(fruit):
    other = FakeSearch({})
    other.fingerprint = "another"
    with SearchEndpoint(fruit) as one, SearchEndpoint(other) as two:
        assert client(one, one).fingerprint == fruit.fingerprint
        with pytest.raises(SearchError, match="search different indexes"):
            _ = client(one, two).fingerprint


def test_a_service_that_rests_is_tried_by_one_search_alone():
    script = by_number(lambda n: DOWN if n <= 8 else WELL)
    with SearchEndpoint(TOOL, script) as service:
        assert everything(client(service, backoff=0.05), QUERIES[:8], 8) == EXPECTED[:8]
        assert 16 <= len(service.calls) <= 8 + 8 + 3


@pytest.mark.parametrize("status", [429, 503])
def test_a_pause_that_a_service_asks_for_is_kept(status):
    asked = Answer(status=status, headers=services.retry_after(0.5))
    with SearchEndpoint(TOOL, in_turn(asked, WELL)) as service:
        client(service).search(["red"], 3)
        first, second = service.times
    assert second - first >= 0.5


def test_a_pause_beyond_the_time_of_the_search_is_an_error():
    asked = Answer(status=503, headers=services.retry_after(100))
    with SearchEndpoint(TOOL, asked) as service:
        with pytest.raises(SearchError, match=r"attempt 1 within 0\.3 s: .*HTTP 503"):
            client(service, timeout=0.3).search(["red"], 3)
        assert len(service.calls) == 1


def test_a_search_that_finds_every_replica_at_rest_says_why_they_rest():
    asked = Answer(status=503, headers=services.retry_after(100))
    with SearchEndpoint(TOOL, asked) as service:
        remote = client(service, timeout=0.3)
        with pytest.raises(SearchError, match=r"attempt 1 within 0\.3 s: .*HTTP 503"):
            remote.search(["red"], 3)
        why = r"attempt 0 within 0\.3 s: every replica rests after failures, the last: .*HTTP 503"
        with pytest.raises(SearchError, match=why):
            remote.search(["green"], 3)
        assert len(service.calls) == 1


@pytest.mark.parametrize("header", ["1e9", "inf", "90000", "Fri, 01 Jan 2999 00:00:00 GMT"])
def test_a_replica_rests_for_a_day_at_most(header):
    assert FailedForNow("busy", retry_after(header)).rest == 86_400.0


def test_a_pause_in_any_form_is_read():
    for form in ("seconds", "date", "bare date"):
        (header,) = services.retry_after(60, form).values()
        assert 58 < FailedForNow("busy", retry_after(header)).rest <= 60


def test_waits_double_with_jitter_up_to_a_bound():
    for number in (0, 3):
        waits = {jittered(0.1, number) for _ in range(100)}
        assert len(waits) > 50
        assert all(0.05 * 2**number <= w <= 0.1 * 2**number for w in waits)
    assert jittered(0.1, 10_000) <= MAX_BACKOFF


def test_a_trial_that_never_ends_keeps_no_replica_away():
    over, asked = threading.Event(), []

    def send(url, seconds):
        asked.append(url)
        if len(asked) <= 3:
            raise FailedForNow("down")
        if len(asked) == 4:
            over.wait()
        return "well"

    replicas = Replicas(["a"], Patience(1.0, 0.1, retries=20, backoff=0.001))
    with pytest.raises(GaveUp, match="no reply in time"):
        replicas.request(send)
    reply, _ = replicas.request(send)
    over.set()
    assert reply == "well"


def test_a_hedge_takes_the_first_reply():
    with SearchEndpoint(TOOL, STALL) as slow, SearchEndpoint(TOOL) as fast:
        remote = client(slow, fast, hedge=0.1, attempt_timeout=20.0)
        assert everything(remote, QUERIES[:8], 1) == EXPECTED[:8]
        assert len(fast.calls) == 8
    with SearchEndpoint(TOOL, in_turn(STALL, WELL)) as alone:
        (hits,) = client(alone, hedge=0.1, attempt_timeout=20.0).search(["red"], 3)
        assert (len(hits), len(alone.calls)) == (1, 2)


def test_searches_that_start_together_are_one_request():
    with SearchEndpoint(TOOL) as service:
        found = everything(client(service, batch_wait=0.5), QUERIES[:16])
        assert found == EXPECTED[:16]
        (request,) = service.requests
    assert sorted(request["queries"]) == sorted(QUERIES[:16])


def test_a_query_that_is_refused_harms_no_other_of_its_batch():
    refused = Answer(status=400, message="no such query")
    with SearchEndpoint(
        TOOL, lambda body: refused if "bad" in body["queries"] else WELL
    ) as service:
        remote = client(service, batch_wait=0.3)
        with ThreadPoolExecutor(4) as pool:
            good = [pool.submit(remote.search, [q], 3) for q in ("red", "blue")]
            with pytest.raises(SearchError, match="no such query"):
                pool.submit(remote.search, ["bad"], 3).result()
        assert [g.result() for g in good] == [TOOL.search([q], 3) for q in ("red", "blue")]


@pytest.mark.parametrize("status", [500, 503])
def test_a_query_that_fails_for_good_loses_no_other_answer_of_its_batch(status):
    broken = Answer(status=status, message="cannot search for this")
    with SearchEndpoint(TOOL, lambda body: broken if "bad" in body["queries"] else WELL) as service:
        remote = client(service, batch_wait=0.3, retries=3)
        with ThreadPoolExecutor(4) as pool:
            asked = [pool.submit(remote.search, [q], 3) for q in ("red", "bad", "blue")]
            for query, found in zip(("red", "blue"), (asked[0], asked[2]), strict=True):
                assert found.result() == TOOL.search([query], 3)
            with pytest.raises(SearchError, match=r"attempt 4 .*cannot search for this"):
                asked[1].result()
        sizes = [len(request["queries"]) for request in service.requests]
    assert sizes == [3, 3] + [1] * 6


def begun(service, calls, **options):
    """A future of each call, whose searches were begun together."""
    shared = SharedSearch(client(service, batch_wait=0.3, **options), 10)
    shared.begin(calls, 3)
    with ThreadPoolExecutor(len(calls)) as pool:
        return [pool.submit(shared.search, queries, 3) for queries in calls]


@pytest.mark.parametrize("status", [400, 500, 503])
def test_a_query_that_fails_loses_no_other_that_was_begun_with_it(status):
    broken = Answer(status=status, message="cannot search for this")
    with SearchEndpoint(TOOL, lambda body: broken if "bad" in body["queries"] else WELL) as service:
        red, bad, blue = begun(service, [["red"], ["bad"], ["blue"]], retries=3)
        assert [red.result(), blue.result()] == [TOOL.search([q], 3) for q in ("red", "blue")]
        with pytest.raises(SearchError, match="cannot search for this"):
            bad.result()


def test_one_query_of_several_calls_is_tried_as_long_as_any():
    with SearchEndpoint(TOOL, in_turn(DOWN, DOWN, DOWN, WELL)) as service:
        calls = begun(service, [["red"], ["red"]])
        assert [call.result() for call in calls] == [TOOL.search(["red"], 3)] * 2
        assert len(service.calls) == 4


def test_a_service_that_is_gone_is_waited_for_once_by_what_was_begun_together():
    with SearchEndpoint(TOOL, Answer(status=502)) as service:
        for call in begun(service, [["red"], ["blue"]], retries=2):
            with pytest.raises(SearchError, match=r"the search failed, attempt 3 .*502"):
                call.result()
        assert [len(request["queries"]) for request in service.requests] == [2] * 3


def test_a_batch_that_a_busy_service_puts_off_stays_together():
    busy = Answer(status=503, headers=services.retry_after(0.05))
    with SearchEndpoint(TOOL, in_turn(busy, busy, busy, WELL)) as service:
        remote = client(service, batch_wait=0.3)
        assert everything(remote, QUERIES[:8], 8) == EXPECTED[:8]
        assert [len(request["queries"]) for request in service.requests] == [8] * 4


def test_what_a_batch_took_is_of_the_time_of_its_searches():
    with SearchEndpoint(TOOL, Answer(status=500, hang=0.3)) as service:
        remote = client(service, timeout=1.0, attempt_timeout=5.0, batch_wait=0.1, retries=99)
        with ThreadPoolExecutor(2) as pool:
            asked = [pool.submit(remote.search, [q], 3) for q in ("red", "blue")]
            for found in asked:
                with pytest.raises(SearchError, match="attempt"):
                    found.result()
        sizes = [len(request["queries"]) for request in service.requests]
    assert sizes[:2] == [2, 2]
    assert len(sizes[2:]) <= 4  # of all their time each would be tried four times


def test_a_batch_has_a_bound_and_a_larger_call_is_cut():
    asked = []

    def ask(queries, top_k, batch):
        asked.append(len(queries))
        return list(queries)

    gatherer = Gatherer(ask, 0.2, 60.0)
    many = [str(i) for i in range(2 * MAX_BATCH + 5)]
    assert gatherer.search(many, 3) == many
    assert asked == [MAX_BATCH, MAX_BATCH, 5]
    with ThreadPoolExecutor(3) as pool:
        parts = [many[: MAX_BATCH - 1]] * 3
        assert list(pool.map(lambda part: gatherer.search(part, 3), parts)) == parts
    assert asked[3:] == [MAX_BATCH - 1] * 3


def test_a_first_call_that_is_interrupted_while_it_waits_leaves_none_behind(monkeypatch):
    def interrupted(_):
        monkeypatch.undo()
        raise KeyboardInterrupt

    gatherer = Gatherer(lambda queries, top_k, batch: list(queries), 0.01, 60.0)
    monkeypatch.setattr(time, "sleep", interrupted)
    with pytest.raises(KeyboardInterrupt):
        gatherer.search(["red"], 3)
    found = []
    other = threading.Thread(target=lambda: found.append(gatherer.search(["blue"], 3)), daemon=True)
    other.start()
    other.join(5.0)
    assert found == [["blue"]]


def test_an_answer_tells_which_replica_gave_it_and_of_which_index(fruit):
    with SearchEndpoint(TOOL, DOWN) as broken, SearchEndpoint(TOOL) as well:
        found = client(broken, well).search(["red", "blue"], 3)
        assert [hits.answered_by for hits in found] == [well.url] * 2
    with SearchEndpoint(TOOL, STALL) as slow, SearchEndpoint(TOOL) as fast:
        remote = client(slow, fast, hedge=0.05, attempt_timeout=20.0)
        assert {remote.search([q], 1)[0].answered_by for q in QUERIES[:6]} == {fast.url}
    with services.serving(SearchServer(fruit, "127.0.0.1", 0)) as server:
        (hits,) = RemoteSearch(server.url, timeout=10).search(["red"], 1)
        assert hits.answered_by == f"{server.url} {fruit.fingerprint}"


def test_connections_are_used_again():
    with SearchEndpoint(TOOL) as service:
        remote = client(service)
        for query in QUERIES[:5]:
            remote.search([query], 3)
        assert len(service._server._connections) == 1


@pytest.mark.parametrize("name", [None, ""])
def test_an_id_of_nothing_is_none(name):
    documents = [{"id": name, "title": p.title, "text": p.text} for p in FRUIT[:2]]
    body = json.dumps({"result": [documents]}).encode()
    with SearchEndpoint(TOOL, Answer(body=body)) as service:
        found = client(service).search(["q"], 3)[0]
    assert len({p.id for p in found}) == 2
    assert not {"None", ""} & {p.id for p in found}
    assert [p.text for p in found] == [p.text for p in FRUIT[:2]]


def test_a_search_is_over_at_its_end_whatever_drips():
    with SearchEndpoint(TOOL, STALL) as service:
        started = time.monotonic()
        with pytest.raises(SearchError, match=r"attempt \d+ within 0\.5 s: .*Timeout"):
            client(service, timeout=0.5).search(["red"], 3)
        assert time.monotonic() - started < 5


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({"error": "index is being loaded", "result": [[]]}, "sent an error: 'index is being load"),
        ({"result": [""]}, r"no JSON list of lists `result`: \[''\]"),
        ({"result": {"": 1}}, r"no JSON list of lists `result`: \{'': 1\}"),
        ({"result": [None]}, r"no JSON list of lists `result`: \[None\]"),
        ({"result": [{"document": {"id": "1"}}]}, "no JSON list of lists"),
    ],
)
def test_an_error_in_the_place_of_results_is_not_that_nothing_was_found(tmp_path, body, said):
    broken = Answer(body=json.dumps(body).encode())
    is_well = False
    with SearchEndpoint(TOOL, lambda request: WELL if is_well else broken) as service:
        cached = CachedSearch(
            client(service, timeout=0.5, retries=1), tmp_path / "c.sqlite", name="x"
        )
        with pytest.raises(SearchError, match=said):
            cached.search(["red"], 3)
        is_well = True
        assert cached.search(["red"], 3) == TOOL.search(["red"], 3)


def test_an_id_that_no_file_can_hold_is_mended():
    body = {"result": [[{"document": {"id": "p\ud800", "title": "T", "text": "x"}}]]}
    with SearchEndpoint(TOOL, Answer(body=json.dumps(body).encode())) as service:
        ((hit,),) = client(service).search(["red"], 3)
    assert hit == Passage("p?", "T", "x")

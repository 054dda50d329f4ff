"""Replies of other weights behind the same name are other replies."""

import asyncio
import contextlib
import dataclasses
import json
import sqlite3
from http import HTTPStatus

import pytest

from masksearch_jax.agents import judge
from masksearch_jax.agents.llm_client import LLM, JobError, served_by
from masksearch_jax.core.llm_config import LLMConfig
from masksearch_jax.core.types import QAExample
from masksearch_jax.runtime.http_service import Refusal
from masksearch_jax.testing.services import Answer, Endpoint

HELLO = [{"role": "user", "content": "hello"}]


class Listing(Endpoint):
    """An endpoint that counts who asks for its models, and answers that by `status` and `body`."""

    def __init__(self, said, models=(), status=200, body=None):
        super().__init__(Answer(said), dict(models))
        self.status, self.body, self.listed = status, body, 0

    def reply(self, route, call, answer):
        if route != ("GET", "/v1/models"):
            return super().reply(route, call, answer)
        self.listed += 1
        if self.status != 200:
            raise Refusal(HTTPStatus(self.status), "not now")
        return super().reply(route, call, answer) if self.body is None else self.body


def config(endpoint, tmp_path, **changes):
    given = {"base_url": endpoint.url, "model": "hf", "cache": str(tmp_path / "replies.sqlite")}
    given |= {"retries": 1, "backoff": 0.01, "timeout": 10.0, "deadline": 30.0}
    return LLMConfig(**given | {"api_key_env": "MASKSEARCH_TEST_NO_SUCH_KEY"} | changes)


def complete(cfg, *conversations):
    """What is said to conversations that are asked at once."""

    async def go():
        async with LLM(cfg) as llm:
            replies = await asyncio.gather(*map(llm.complete, conversations))
            return [reply.text for reply in replies]

    return asyncio.run(go())


def test_two_models_of_one_name_are_both_asked_through_one_cache(tmp_path):
    with Listing("a", {"hf": "1"}) as one, Listing("b", {"hf": "2"}) as other:
        for endpoint, said in ((one, "a"), (other, "b"), (one, "a"), (other, "b")):
            assert complete(config(endpoint, tmp_path), HELLO, HELLO) == [said] * 2
        assert (len(one.requests), len(other.requests)) == (1, 1)
        assert (one.listed, other.listed) == (2, 2)  # once in each process
        assert served_by(config(one, tmp_path)) == "1"
        assert served_by(config(one, tmp_path, model="another")) == ""


def test_a_replay_is_of_the_model_that_was_asked_last_and_asks_nobody(tmp_path):
    with Listing("a", {"hf": "1"}) as one, Listing("b", {"hf": "2"}) as other:
        replay = config(one, tmp_path, replay=True)
        for endpoint, said in ((one, "a"), (other, "b"), (one, "a")):
            complete(config(endpoint, tmp_path), HELLO)
            listed = one.listed, other.listed
            assert complete(replay, HELLO) == [said]
            assert served_by(replay) == {"a": "1", "b": "2"}[said]
            assert (one.listed, other.listed) == listed
    assert complete(replay, HELLO) == ["a"]


@pytest.mark.parametrize(
    ("status", "body"),
    [
        *((status, None) for status in (400, 401, 403, 404, 405, 501)),
        *((200, body) for body in ([], {"data": "hf"}, {"data": ["hf", {"id": "hf"}]})),
        (200, {"data": [{"id": "hf", "fingerprint": 7}, {"id": "other", "fingerprint": "7"}]}),
    ],
)
def test_an_endpoint_that_tells_no_fingerprint_is_asked_as_by_its_name_alone(
    tmp_path, status, body
):
    with Listing("a", {}, status, body) as endpoint, Endpoint(Answer("b")) as without:
        assert complete(config(endpoint, tmp_path), HELLO) == ["a"]
        assert complete(config(without, tmp_path), HELLO) == ["a"]  # from the cache
        assert served_by(config(endpoint, tmp_path)) == ""
        assert (endpoint.listed, len(endpoint.requests), len(without.requests)) == (2, 1, 0)


@pytest.mark.parametrize("status", [429, 500, 503])
def test_an_outage_is_no_endpoint_without_a_fingerprint(tmp_path, status):
    """Nobody is told a cached reply, which may be another model's, and nothing is asked."""
    with Listing("a", {"hf": "1"}) as endpoint:
        assert complete(config(endpoint, tmp_path), HELLO) == ["a"]
        endpoint.status = status
        said = rf"^{endpoint.url} does not say what it serves: HTTP {status}: not now after 2 "
        with pytest.raises(JobError, match=said):
            complete(config(endpoint, tmp_path), HELLO)
        assert endpoint.listed == 3
        endpoint.status = 200
        assert complete(config(endpoint, tmp_path), HELLO) == ["a"]
        assert len(endpoint.requests) == 1
    with pytest.raises(JobError, match="does not say what it serves: APIConnectionError"):
        complete(config(endpoint, tmp_path), HELLO)


def test_what_is_forgotten_is_the_served_models(tmp_path):
    async def forget(cfg):
        async with LLM(cfg) as llm:
            await llm.complete(HELLO)
            llm.forget(HELLO)

    with Listing("a", {"hf": "1"}) as one, Listing("b", {"hf": "2"}) as other:
        for endpoint in (one, other):
            complete(config(endpoint, tmp_path), HELLO)
        asyncio.run(forget(config(one, tmp_path)))
        for endpoint in (one, other):
            complete(config(endpoint, tmp_path), HELLO)
        assert (len(one.requests), len(other.requests)) == (2, 1)


def test_a_cache_from_before_fingerprints_were_asked_for_is_read(tmp_path):
    with Endpoint(Answer("a")) as endpoint:
        cfg = config(endpoint, tmp_path)
        complete(cfg, HELLO)
        with contextlib.closing(sqlite3.connect(cfg.cache)) as file:
            file.execute("drop table served")
            file.commit()
        assert complete(dataclasses.replace(cfg, replay=True), HELLO) == ["a"]
        assert complete(cfg, HELLO) == ["a"]
        assert len(endpoint.requests) == 1
        (asked,) = endpoint.requests
    assert json.dumps(asked).count("fingerprint") == 0


def test_a_judge_learns_whose_verdicts_it_keeps_when_it_is_opened(tmp_path):
    """So that one that is away at its first verdict, hours later, is waited for as at any other."""

    async def go(endpoint):
        cfg = judge.JudgeConfig(base_url=endpoint.url, cache=str(tmp_path / "judge.sqlite"))
        async with judge.Judge(cfg) as opened:
            assert endpoint.listed == 1
            endpoint.status = 503
            verdict = await opened(QAExample("q", "d", "Which?", ("Oslo",)), "Oslo")
        return verdict, endpoint.listed

    right = json.dumps({"reason": "so it is", "verdict": "correct"})
    with Listing(right, {"hf": "1"}) as endpoint:
        assert asyncio.run(go(endpoint)) == (True, 1)

"""`serve_model`: OpenAI's client, agents and span extractor on models that the engine decodes."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import http.client
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from importlib import resources

import jax
import jax.numpy as jnp
import numpy as np
import openai
import pytest
from flax import nnx

from configs import common
from masksearch_jax import serve_model
from masksearch_jax.agents.attempts import FailedError, RejectedError
from masksearch_jax.agents.llm_client import served_by
from masksearch_jax.agents.scripted_teacher import Rejection
from masksearch_jax.core.config import ComputeConfig, ModelConfig
from masksearch_jax.core.errors import ConfigError
from masksearch_jax.core.jsonl import read_jsonl
from masksearch_jax.core.llm_config import LLMConfig
from masksearch_jax.core.schema import to_dataclass
from masksearch_jax.core.tokenizer import Vocab, train_bpe
from masksearch_jax.core.tools import search_alone
from masksearch_jax.core.types import RampExample
from masksearch_jax.corpus.passages import write_passages
from masksearch_jax.models import hf
from masksearch_jax.models.transformer import Transformer
from masksearch_jax.parallel import sharding
from masksearch_jax.rollout.engine import Engine
from masksearch_jax.rollout.server import ChatServer
from masksearch_jax.runtime import cli
from masksearch_jax.search.tool import NoSearch
from masksearch_jax.testing.models import ScriptedModel, TextVocab
from tests.mains import trajectory_job
from tests.mains.commands import build, passages
from tests.rollout.word_engine import GREEDY, SEARCH

SIZES = {
    "hidden_size": 32, "intermediate_size": 48, "num_layers": 2, "num_heads": 2,
    "num_kv_heads": 1, "head_dim": 16, "vocab_size": 640,
}  # fmt: skip
ASKED = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Who are you?"}]
LIMIT = 32  # tokens of a reply


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A random model that ends a reply after 20 tokens or so, and its tokenizer, in HF format."""
    base = tmp_path_factory.mktemp("serve")
    prompts = resources.files("masksearch_jax.agents").joinpath("prompts")
    texts = [p.read_text("utf-8") for p in sorted(prompts.iterdir(), key=str)]
    train_bpe([t for t in texts for _ in range(3)], base / "tokenizer", 640)
    model = to_dataclass(ModelConfig, common.MODELS["tiny"] | SIZES)
    compute = ComputeConfig("float32", "float32", "xla", "none", 64)
    hf.save(
        Transformer(model, compute, nnx.Rngs(0)), base / "small", tokenizer_dir=base / "tokenizer"
    )
    end = Vocab.load(base / "tokenizer").eos_ids[0]
    settings = json.loads((base / "small" / "generation_config.json").read_text())
    settings["eos_token_id"] = [end, *range(600, 630)]
    (base / "small" / "generation_config.json").write_text(json.dumps(settings))
    return base / "small"


@pytest.fixture(scope="module")
def one_device():
    with pytest.MonkeyPatch.context() as patch:
        make_mesh = lambda cfg: sharding.make_mesh(cfg, jax.devices()[:1])  # noqa: E731
        patch.setattr(serve_model, "make_mesh", make_mesh)
        yield


def overrides(folder, **changes):
    given = {
        "init": folder, "port": 0, "deadline": 60.0, "grace": 30.0,
        "compute.dtype": "float32", "compute.param_dtype": "float32",
        "rollout.slots": 4, "rollout.max_len": 1536, "rollout.page_tokens": 64,
        "rollout.extend_tokens": 256, "rollout.tick_tokens": 8,
        "rollout.max_new_tokens": LIMIT, "rollout.temperature": 1.0,
    }  # fmt: skip
    given |= {k.replace("__", "."): v for k, v in changes.items()}
    return [f"--config.{k}={v}" for k, v in given.items()]


@pytest.fixture(scope="module")
def settings(folder, repository):
    config = f"--config={repository / 'configs' / 'serve_model.py'}"
    return lambda **changes: cli.parse(
        serve_model.ServeModelRun, ["serve_model", config, *overrides(folder, **changes)]
    )


@contextlib.contextmanager
def serving(opened):
    """The service that `opened` gives, served in a thread until the end."""
    ready, found = threading.Event(), []

    def serve():
        try:
            with opened as (server, model):
                found.append(server)
                ready.set()
                server.serve(model)
        finally:
            ready.set()

    thread = threading.Thread(target=serve)
    thread.start()
    ready.wait()
    yield found[0]
    found[0].stop()
    thread.join()


@pytest.fixture(scope="module")
def server(settings, one_device):
    """The service with four slots."""
    with serving(serve_model.opened(settings())) as server:
        yield server


def ask(server, **fields):
    """Status and JSON of a chat request with these fields besides the usual ones."""
    body = {"model": "small", "messages": ASKED} | fields
    return send(server, "POST", "/v1/chat/completions", json.dumps(body))


@pytest.fixture
def client(server):
    with openai.OpenAI(base_url=server.url, api_key="none") as found:
        yield found


def send(server, method, path, body=None):
    connection = http.client.HTTPConnection(*server.server_address, timeout=60)
    with contextlib.closing(connection):
        connection.request(method, path, body)
        response = connection.getresponse()
        return response.status, json.loads(response.read())


def text_of(found):
    status, answer = found
    assert status == 200, answer
    return answer["choices"][0]["message"]["content"]


def test_the_openai_client_reads_replies_and_models(server, folder):
    async def talk():
        async with openai.AsyncOpenAI(base_url=server.url, api_key="none") as client:
            models = await client.models.list()
            create = client.chat.completions.create
            asked = [create(model="small", messages=ASKED, seed=i, n=1) for i in range(8)]
            short = await create(model="small", messages=ASKED, seed=0, max_completion_tokens=2)
            return models, await asyncio.gather(*asked), short

    models, replies, short = asyncio.run(talk())
    assert [m.id for m in models.data] == ["small"]
    vocab = Vocab.load(folder)
    prompt = vocab.encode(vocab.apply_chat_template(ASKED))
    reasons = set()
    for reply in replies:
        (choice,) = reply.choices
        reasons.add(choice.finish_reason)
        assert (choice.message.role, reply.model) == ("assistant", "small")
        assert reply.usage.prompt_tokens == len(prompt)
        sampled = reply.usage.completion_tokens
        assert reply.usage.total_tokens == len(prompt) + sampled
        assert (sampled == LIMIT) if choice.finish_reason == "length" else (1 <= sampled <= LIMIT)
    assert reasons == {"stop", "length"}
    assert len({r.id for r in replies}) == 8
    assert short.usage.completion_tokens == 2
    assert short.choices[0].finish_reason == "length"
    assert replies[0].choices[0].message.content.startswith(short.choices[0].message.content)


def test_the_end_of_sequence_is_counted_and_not_shown(server):
    """With one token fewer a reply that has ended has the same text, and is cut there."""
    with ThreadPoolExecutor(12) as pool:
        found = list(pool.map(lambda seed: ask(server, seed=seed)[1], range(24)))
    ended = {
        seed: a["usage"]["completion_tokens"]
        for seed, a in enumerate(found)
        if a["choices"][0]["finish_reason"] == "stop" and a["usage"]["completion_tokens"] > 1
    }
    assert 3 < len(ended) < 24
    for seed, sampled in ended.items():
        _, cut = ask(server, seed=seed, max_tokens=sampled - 1)
        assert cut["choices"][0]["message"] == found[seed]["choices"][0]["message"]
        assert cut["choices"][0]["finish_reason"] == "length"


def test_equal_seeds_give_equal_texts_and_others_do_not(server):
    alone = [text_of(ask(server, seed=seed)) for seed in range(4)]
    assert len(set(alone)) == 4
    with ThreadPoolExecutor(12) as pool:  # in four slots
        crowd = list(pool.map(lambda i: text_of(ask(server, seed=i % 4)), range(24)))
    assert crowd == alone * 6
    assert len({text_of(ask(server)) for _ in range(4)}) == 4
    assert text_of(ask(server, seed=-1)) == text_of(ask(server, seed=-1))


def test_what_is_null_or_changes_nothing_is_as_if_it_were_absent(server):
    plain = text_of(ask(server, seed=5))
    names = ("temperature", "top_p", "max_tokens", "stream", "n", "stop")
    assert text_of(ask(server, seed=5, user="me", **dict.fromkeys(names))) == plain
    same = {"temperature": 1, "top_p": 1.0, "n": 1, "stream": False, "stop": [],
            "repetition_penalty": 1.0, "chat_template_kwargs": {}, "metadata": {"a": 1},
            "guided_json": None, "top_logprobs": 0}  # fmt: skip
    assert text_of(ask(server, seed=5, **same)) == plain


def test_text_parts_are_one_text(server):
    def answer(content):
        return text_of(ask(server, seed=5, messages=[{"role": "user", "content": content}]))

    parts = [{"type": "text", "text": t} for t in ("one", " two")]
    assert answer(parts) == answer("one two") != answer("one")


def test_a_model_is_found_by_its_name(client):
    assert client.models.retrieve("small") == client.models.list().data[0]
    with pytest.raises(openai.NotFoundError, match="there are"):
        client.models.retrieve("other")


def test_the_list_of_models_tells_what_decides_their_replies(
    server, client, settings, folder, tmp_path
):
    vocab = Vocab.load(folder)

    def told(init=folder, **changes):
        cfg = settings(init=init, **changes)
        return serve_model._fingerprints(cfg, str(init), vocab, NoSearch())

    of_model, of_agent = told()
    assert client.models.list().data[0].fingerprint == of_model != of_agent
    llm = LLMConfig(base_url=server.url, model="small", cache=str(tmp_path / "replies.sqlite"))
    assert served_by(llm) == of_model
    copy = shutil.copytree(folder, tmp_path / "elsewhere" / "small")
    assert told(copy, port=1, name="other", rollout__slots=2) == (of_model, of_agent)
    style, top_k = told(agent=True, prompt__style="minimal"), told(agent=True, search__top_k=2)
    assert style[0] == top_k[0] == of_model
    assert len({style[1], top_k[1], of_agent}) == 3
    (weights,) = copy.glob("*.safetensors")
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    others = [told(copy), told(rollout__temperature=0.5), told(compute__dtype="bfloat16")]
    assert len({of_model, *(found for found, _ in others)}) == 4
    assert len({of_agent, *(found for _, found in others)}) == 4


def test_a_page_of_this_machine_may_ask_and_no_other(server):
    def preflight(origin):
        connection = http.client.HTTPConnection(*server.server_address[:2], timeout=10)
        asked = {"Access-Control-Request-Method": "POST",
                 "Access-Control-Request-Headers": "Authorization, Content-Type"}  # fmt: skip
        headers = {"Origin": origin} | asked
        connection.request("OPTIONS", "/v1/chat/completions", headers=headers)
        reply = connection.getresponse()
        reply.read()
        connection.request("GET", "/v1/models", headers={"Origin": origin})
        found = connection.getresponse()
        found.read()
        connection.close()
        names = ("Access-Control-Allow-Origin", "Access-Control-Allow-Headers")
        return *(reply.headers[n] for n in names), found.headers[names[0]]

    for own in ("http://localhost:3000", "http://127.0.0.1", "http://[::1]:8080"):
        assert preflight(own) == (own, "Authorization, Content-Type", own)
    for other in ("https://example.org", "http://localhost.example.org", "null", "http://[::1"):
        assert preflight(other)[::2] == (None, None)


USER = {"role": "user", "content": "x"}


@pytest.mark.parametrize(
    ("fields", "status", "message"),
    [
        ({"model": "gpt-4"}, 404, "`model` is 'gpt-4'; this service has 'small'"),
        ({"model": None}, 400, "`model` is missing; this service has 'small'"),
        ({"stream": "yes"}, 400, "`stream` is 'yes', must be true or false"),
        ({"n": 0}, 400, "`n` is 0, must be a whole number from 1 to 128"),
        ({"agent": True}, 400, "start it with --config.agent=True"),
        ({"model": "small:agent"}, 404, "`model` is 'small:agent'; this service has 'small'"),
        ({"guided_json": {"type": "object"}}, 400, "`guided_json` is {'type': 'object'}, which"),
        (
            {"repetition_penalty": 1.2},
            400,
            "`repetition_penalty` is 1.2; this service knows",
        ),
        ({"chat_template_kwargs": {"enable_thinking": False}}, 400, "`chat_template_kwargs` is {"),
        ({"reasoning_effort": "low"}, 400, "`reasoning_effort` is 'low', which this service does"),
        ({"logprobs": 5}, 400, "`logprobs` is 5, must be true or false"),
        ({"tools": [1]}, 400, "`tools` is [1], which this service does not know: leave it out"),
        ({"top_logprobs": 3}, 400, "`top_logprobs` is 3; this service knows only 0"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]},
            400,
            "`messages[0].content[0]` is {'type': 'image_url', 'image_url': {}}; this",
        ),
        ({"messages": [{"role": "user", "content": []}]}, 400, "must be a string or a list of"),
        ({"stop": [""]}, 400, "`stop` is [''], must be a text, or a list of texts, none empty"),
        ({"temperature": -1}, 400, "`temperature` is -1, must be a number from 0 to 100"),
        ({"temperature": "hot"}, 400, "`temperature` is 'hot', must be a number"),
        ({"top_p": 1.5}, 400, "`top_p` is 1.5, must be a number from 0 to 1"),
        ({"max_tokens": 0}, 400, "`max_tokens` is 0, must be a whole number above 0"),
        ({"max_tokens": True}, 400, "`max_tokens` is True"),
        ({"max_completion_tokens": 2.5}, 400, "`max_tokens` is 2.5"),
        ({"seed": "7"}, 400, "`seed` is '7', must be a whole number"),
        ({"messages": []}, 400, "`messages` must be a list of at least one"),
        ({"messages": "hello"}, 400, "`messages` must be a list of at least one"),
        ({"messages": ["hello"]}, 400, "`messages[0].role` is None"),
        (
            {"messages": [USER, {"role": "tool", "content": "x"}]},
            400,
            "`messages[1].role` is 'tool', must be one of system, developer, user, assistant",
        ),
        (
            {"messages": [{"role": "user"}]},
            400,
            "`messages[0].content` is None, must be a",
        ),
        ({"messages": [{"role": "user", "content": "x" * 9000}]}, 400, "rollout.max_len is 1536"),
    ],
)
def test_what_cannot_be_served_is_refused_by_name(server, fields, status, message):
    got, answer = ask(server, **fields)
    assert got == status
    error = answer["error"]
    assert message in error["message"]
    assert error["type"] == "invalid_request_error"
    assert error["code"] == ("model_not_found" if status == 404 else None)


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "message"),
    [
        ("POST", "/v1/chat/completions", "{", 400, "not JSON"),
        ("POST", "/v1/completions", "{}", 400, "`model` is missing"),
        ("POST", "/v1/other", "{}", 404, "there are /v1/chat/completions, /v1/completions, /v1/m"),
        ("GET", "/v1/chat/completions", None, 405, "takes POST"),
        ("POST", "/v1/models", "{}", 405, "takes GET"),
        ("PUT", "/v1/models", "{}", 405, "takes GET"),
    ],
)
def test_errors_of_http_are_in_openais_format(server, method, path, body, status, message):
    got, answer = send(server, method, path, body)
    assert got == status
    assert message in answer["error"]["message"]
    assert answer["error"]["type"] == ("server_error" if status > 499 else "invalid_request_error")


def test_text_that_is_none_is_replaced(server):
    asked = [{"role": "user", "content": "a \ud800 b"}]
    replaced = [{"role": "user", "content": "a ? b"}]
    assert text_of(ask(server, messages=asked, seed=1)) == text_of(
        ask(server, messages=replaced, seed=1)
    )


# ---- what a request says of its reply


def raw(server, **fields):
    """Choices and usage of a completion of token ids."""
    body = {"model": "small", "prompt": [5, 6, 7], "return_token_ids": True} | fields
    status, answer = send(server, "POST", "/v1/completions", json.dumps(body))
    assert status == 200, answer
    return answer["choices"], answer["usage"]


def test_requests_with_samplers_of_their_own_are_decoded_side_by_side(server):
    ways = [{"temperature": 0}, {"temperature": 0.5, "seed": 1}, {"top_p": 0.4, "seed": 1},
            {"top_k": 2, "seed": 1}, {"min_p": 0.3, "seed": 1}, {"seed": 1}]  # fmt: skip
    alone = [text_of(ask(server, **way)) for way in ways]
    assert len(set(alone)) > 4
    before = server.engine.compiles
    with ThreadPoolExecutor(12) as pool:
        crowd = list(pool.map(lambda i: text_of(ask(server, **ways[i % 6])), range(18)))
    assert crowd == alone * 3
    assert server.engine.compiles == before
    assert alone[0] == text_of(ask(server, temperature=0, seed=9)) == text_of(ask(server, top_k=1))


def test_several_choices_are_of_one_prompt_and_the_first_is_the_one_alone(server):
    choices, usage = raw(server, n=3, seed=4)
    ids = [c["token_ids"] for c in choices]
    assert ids[0] == raw(server, seed=4)[0][0]["token_ids"]
    assert len({tuple(i) for i in ids}) == 3
    assert [c["index"] for c in choices] == [0, 1, 2]
    assert usage["prompt_tokens"] == 3
    assert usage["completion_tokens"] == sum(map(len, ids))


def test_a_completion_of_text_is_that_of_its_ids(server, folder):
    vocab = Vocab.load(folder)
    ids = vocab.encode("Who are you?")
    (of_text, of_ids), _ = raw(server, prompt=["Who are you?", vocab.decode(ids)], seed=2)
    assert of_text["prompt_token_ids"] == ids
    assert (
        of_text["token_ids"]
        == of_ids["token_ids"]
        == raw(server, prompt=ids, seed=2)[0][0]["token_ids"]
    )
    chat = json.dumps({"model": "small", "prompt": [640]})
    status, answer = send(server, "POST", "/v1/completions", chat)
    assert (status, "token ids from 0 to 639" in answer["error"]["message"]) == (400, True)


def test_a_reply_ends_before_its_stop_wherever_tokens_are_cut(server):
    replies = ((seed, raw(server, seed=seed)[0][0]) for seed in range(6, 60))
    chosen, plain = next(reply for reply in replies if len(reply[1]["text"]) > 8)
    text = plain["text"]
    for stop in (text[3:5], text[4], [text[2:5], "never"]):
        (cut,), usage = raw(server, seed=chosen, stop=stop)
        first = stop if isinstance(stop, str) else stop[0]
        assert cut["text"] == text[: text.index(first)]
        assert cut["finish_reason"] == "stop"
        n = len(cut["token_ids"])
        assert cut["token_ids"] == plain["token_ids"][:n]
        assert usage["completion_tokens"] == n
        (shorter,), _ = raw(server, seed=chosen, max_tokens=max(n - 1, 1))
        assert first not in shorter["text"] or n == 1


def test_log_probabilities_are_those_of_the_model(server, folder):
    (choice,), _ = raw(server, seed=3, logprobs=1)
    found = choice["logprobs"]
    spell = Vocab.load(folder).token_bytes
    assert found["tokens"] == [spell(i).decode("utf-8", "replace") for i in choice["token_ids"]]
    model = hf.load(folder, ComputeConfig("float32", "float32", "xla", "none", 64))
    ids = jnp.asarray([[5, 6, 7, *choice["token_ids"]]])
    at = jnp.arange(ids.shape[1])[None]
    logits = model.logits(model.hidden(ids, at, jnp.ones_like(ids)))
    expected = jax.nn.log_softmax(logits)[0, jnp.arange(2, ids.shape[1] - 1), ids[0, 3:]]
    np.testing.assert_allclose(found["token_logprobs"], expected, atol=1e-4)
    _, chat = ask(server, seed=3, logprobs=True)
    entries = chat["choices"][0]["logprobs"]["content"]
    assert len(entries) == chat["usage"]["completion_tokens"]
    assert all(bytes(e["bytes"]).decode("utf-8", "replace") == e["token"] for e in entries)


@pytest.mark.parametrize(
    "fields", [{}, {"n": 2}, {"stop": ["e", "an"]}, {"logprobs": True}], ids=str
)
def test_a_stream_comes_to_what_the_whole_reply_is(client, fields):
    create = client.chat.completions.create
    given = {"model": "small", "messages": ASKED, "seed": 8} | fields
    whole = create(**given)
    texts, reasons, tokens, usage = {}, {}, {}, None
    for chunk in create(**given, stream=True, stream_options={"include_usage": True}):
        usage = chunk.usage or usage
        for choice in chunk.choices:
            texts[choice.index] = texts.get(choice.index, "") + (choice.delta.content or "")
            reasons[choice.index] = choice.finish_reason or reasons.get(choice.index)
            if choice.logprobs:
                tokens.setdefault(choice.index, []).extend(choice.logprobs.content)
    for choice in whole.choices:
        assert texts[choice.index] == choice.message.content
        assert reasons[choice.index] == choice.finish_reason
        if choice.logprobs:
            assert tokens[choice.index] == choice.logprobs.content
    assert usage == whole.usage


def test_a_stream_of_a_completion(client):
    given = {"model": "small", "prompt": [5, 6, 7], "seed": 3}  # one of a long reply
    pieces = list(client.completions.create(**given, stream=True))
    assert len(pieces) > 2
    text = client.completions.create(**given).choices[0].text
    assert "".join(p.choices[0].text for p in pieces) == text


# ---- its clients here


def llm_settings(server, place, **changes):
    given = {"base_url": server.url, "model": "small", "api_key_env": "MASKSEARCH_TEST_NO_SUCH_KEY",
             "temperature": 1.0, "max_tokens": 24, "concurrency": 8, "timeout": 60.0,
             "backoff": 0.01, "cache": str(place / "replies.sqlite")}  # fmt: skip
    return given | changes


def test_agents_of_which_no_reply_can_be_read_are_asked_anew(server, tmp_path):
    """A random model plans nothing."""
    trajectory_job.write_towns(tmp_path, 6)
    llm = LLMConfig(**llm_settings(server, tmp_path))
    for _ in range(2):
        before = server.engine.stats.trajectories
        said = r"none of 6 attempts gave .*\(6 unreadable_planner\).*; not one of \d+ replies of co"
        with pytest.raises(RejectedError, match=said):
            trajectory_job.run(tmp_path, llm)
        assert server.engine.stats.trajectories - before >= 6
    (path,) = tmp_path.glob("demonstrations/train.parts/*/ramp-*.rejected.jsonl")
    lost = read_jsonl(path, Rejection)
    assert {r.example_id: r.reason for r in lost} == {
        f"e{n}": "unreadable_planner" for n in range(6)
    }


def test_another_name_is_what_the_agents_say_was_wrong(server, tmp_path):
    trajectory_job.write_towns(tmp_path, 1)
    llm = LLMConfig(**llm_settings(server, tmp_path, model="other"))
    with pytest.raises(FailedError, match="`model` is 'other'; this service has 'small'"):
        trajectory_job.run(tmp_path, llm)


# All that planner, rewriter, observer, judge and span extractor ask for, as one token.
SAID = json.dumps({
    "thought": "Where is it?", "need": "The river.", "queries": ["river", "town", "bishop"],
    "action": "answer", "answer": "It is the Glomma.", "reason": "The same.", "verdict": "correct",
    "spans": [{"text": "Glomma", "type": "PLACE"}],
})  # fmt: skip


@contextlib.contextmanager
def scripted(deadline=60.0, grace=30.0):
    """A service of a model that says SAID, whatever it is asked."""
    vocab = TextVocab(SAID)
    said = vocab.words.index(SAID)
    following = np.full(vocab.size, said, np.int32)
    following[said] = vocab.eos_ids[0]
    rollout = dataclasses.replace(GREEDY, max_len=4096, page_tokens=512, in_flight="keep")
    with (
        Engine(
            vocab, search_alone(NoSearch(), SEARCH), rollout, SEARCH, strict=True, by_row=True
        ) as engine,
        ChatServer(
            engine, vocab, "small", "127.0.0.1", 0, deadline=deadline, grace=grace
        ) as server,
    ):
        yield server, ScriptedModel(jnp.asarray(following))


def test_agents_and_span_extractor_get_what_the_model_says(tmp_path, repository):
    trajectory_job.write_towns(tmp_path, 6)
    write_passages(tmp_path / "towns.jsonl", list(passages())[:4])
    with serving(scripted()) as server:
        given = llm_settings(server, tmp_path, temperature=0.0)
        summary = trajectory_job.run(tmp_path, LLMConfig(**given))
        llm = {f"llm__{k}": v for k, v in given.items()}
        made = build(repository, tmp_path, corpus__questions="", clean__duplicates=0.0,
                     ramp__gazetteer=0, ramp__extractor="llm", **llm)  # fmt: skip
        calls = made["paid"]["calls"]
        assert server.engine.stats.trajectories == calls == 4 * 6 + 4
    assert (summary["demonstrations"], summary["rejected"]) == (6, {})
    assert summary["paid"]["completion_tokens"] == 2 * 4 * 6
    examples = [
        e
        for split in ("train", "heldout")
        for e in read_jsonl(tmp_path / "out" / "ramp" / f"{split}.jsonl", RampExample)
    ]
    assert sorted(e.passage_id for e in examples) == [f"town:{i}" for i in range(4)]
    assert {s.text for e in examples for s in e.spans} == {"Glomma"}


# ---- waiting, and the end


@pytest.fixture
def idle():
    """A service whose engine decodes nothing until `decodes` is set."""
    with scripted(deadline=0.6, grace=0.0) as (server, model):
        server.decodes = threading.Event()
        server.engine.check = server.decodes.wait
        thread = threading.Thread(target=server.serve, args=(model,))
        thread.start()
        yield server
        server.stop()
        server.decodes.set()
        thread.join()


def wait_until(condition, seconds=20):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_a_reply_that_does_not_come_is_given_up_at_the_deadline(idle):
    status, answer = ask(idle)
    assert status == 504
    assert answer["error"]["message"] == "no reply in 0.6 s (config.deadline); 1 in flight"
    (choice,) = idle._pending.values()
    assert choice.future.cancelled()


def test_a_client_that_goes_away_is_not_waited_for(idle):
    idle.deadline = 60.0
    body = json.dumps({"model": "small", "messages": ASKED}).encode()
    with socket.create_connection(idle.server_address) as client:
        client.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\n")
        client.sendall(f"Content-Length: {len(body)}\r\n\r\n".encode() + body)
        wait_until(lambda: idle._pending)
        (choice,) = idle._pending.values()
        assert not choice.future.cancelled()
    wait_until(choice.future.cancelled)
    assert send(idle, "GET", "/health")[1]["in_flight"] == 1  # until the engine drops it


def test_prompts_that_are_read_when_their_client_has_gone_are_not_decoded(idle, monkeypatch):
    idle.deadline = 60.0
    begun, goes_on, withdrawn, read = (threading.Event() for _ in range(4))
    encode, withdraw, submit = idle.vocab.encode, idle._withdraw, idle._submit

    def slow(text, *args, **kwargs):
        begun.set()
        assert goes_on.wait(20)
        return encode(text, *args, **kwargs)

    def withdraw_and_tell(choices):
        withdraw(choices)
        withdrawn.set()

    def submit_and_tell(*args):
        submit(*args)
        read.set()

    monkeypatch.setattr(idle.vocab, "encode", slow)
    monkeypatch.setattr(idle, "_withdraw", withdraw_and_tell)
    monkeypatch.setattr(idle, "_submit", submit_and_tell)
    body = json.dumps({"model": "small", "prompt": ["a", "b", "c"]}).encode()
    with socket.create_connection(idle.server_address) as client:
        client.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\n")
        client.sendall(f"Content-Length: {len(body)}\r\n\r\n".encode() + body)
        assert begun.wait(20)
    assert withdrawn.wait(20)
    goes_on.set()
    assert read.wait(20)
    assert idle._pending == {}


def test_a_reader_of_a_stream_that_goes_away_frees_its_slot(idle):
    idle.deadline = 60.0
    body = json.dumps({"model": "small", "messages": ASKED, "stream": True}).encode()
    with socket.create_connection(idle.server_address) as client:
        client.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\n")
        client.sendall(f"Content-Length: {len(body)}\r\n\r\n".encode() + body)
        assert client.recv(4096).startswith(b"HTTP/1.1 200 OK")
        (choice,) = idle._pending.values()
        assert not choice.future.cancelled()
    wait_until(choice.future.cancelled)
    idle.decodes.set()
    wait_until(lambda: send(idle, "GET", "/health")[1]["in_flight"] == 0)


def test_those_who_still_wait_at_the_end_are_refused(idle):
    idle.deadline = 60.0
    with ThreadPoolExecutor(3) as pool:
        waiting = [pool.submit(ask, idle) for _ in range(3)]
        wait_until(lambda: len(idle._pending) == 3)
        idle.stop()
        late = ask(idle)
        idle.decodes.set()  # but there is no time left
        answers = [w.result() for w in waiting]
    for status, answer in [late, *answers]:
        assert (status, answer["error"]["message"]) == (503, "the service is ending")
        assert answer["error"]["type"] == "server_error"


@contextlib.contextmanager
def handlers_kept():
    before = [(n, signal.getsignal(n)) for n in (signal.SIGINT, signal.SIGTERM)]
    yield
    for number, handler in before:
        signal.signal(number, handler)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it_once_those_in_flight_are_answered(
    server, settings, monkeypatch, capsys, number
):
    """Twelve requests in four slots; the signal comes once all of them are there."""
    made, answers = [], []

    class Seen(ChatServer):
        def serve(self, model):
            made.append(self)
            super().serve(model)

    def talk():
        wait_until(lambda: made)
        with ThreadPoolExecutor(12) as pool:
            waiting = [pool.submit(ask, made[0], seed=i % 4) for i in range(12)]
            wait_until(lambda: len(made[0]._pending) + made[0].engine.stats.trajectories == 12)
            os.kill(os.getpid(), number)
            answers.extend(w.result() for w in waiting)

    monkeypatch.setattr(serve_model, "ChatServer", Seen)
    client = threading.Thread(target=talk)
    client.start()
    with handlers_kept():
        serve_model.run(settings())
    client.join()
    assert re.search(r"serving small at http://127\.0\.0\.1:\d+/v1\n", capsys.readouterr().out)
    assert [text_of(a) for a in answers] == [text_of(ask(server, seed=i)) for i in range(4)] * 3
    with pytest.raises(OSError):
        ask(made[0])


def test_a_failed_engine_ends_it_and_refuses_those_who_wait():
    def fail():
        if server._pending:
            raise RuntimeError("the device is gone")

    with scripted() as (server, model), ThreadPoolExecutor(1) as pool:
        server.engine.check = fail
        waiting = pool.submit(ask, server)
        with pytest.raises(RuntimeError, match="the device is gone"):
            server.serve(model)
        assert waiting.result()[0] == 503


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rollout__in_flight": "drop"}, r"config\.rollout\.in_flight is 'drop'"),
        ({"init": "Qwen/none"}, r"config\.init is 'Qwen/none', which is not a local folder"),
    ],
)
def test_what_cannot_be_served_is_refused_at_the_start(settings, changes, message):
    with pytest.raises(ConfigError, match=message):
        serve_model.run(settings(**changes))


def test_it_needs_a_chat_template_and_a_free_port(folder, settings, server, tmp_path):
    shutil.copytree(folder, tmp_path / "bare")
    (tmp_path / "bare" / "chat_template.jinja").unlink()
    with pytest.raises(ConfigError, match=r"bare' has no chat template"):
        serve_model.run(settings(init=tmp_path / "bare"))
    (tmp_path / "bare" / "chat_template.jinja").write_text("{{ raise_exception('no roles') }}")
    with pytest.raises(ConfigError, match=r"template of '.*bare' fails: TemplateError: no roles;"):
        serve_model.run(settings(init=tmp_path / "bare"))
    with pytest.raises(OSError, match="in use"):
        serve_model.run(settings(port=server.server_address[1]))


@pytest.mark.slow  # a process that compiles
def test_the_command_serves_until_it_is_told_to_stop(folder, repository):
    command = [sys.executable, "-m", "masksearch_jax.serve_model"]
    command += [f"--config={repository / 'configs' / 'serve_model.py'}", *overrides(folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=repository) as process:
        line = process.stdout.readline().decode()
        url = re.search(r"serving small at (http\S+)", line)[1]
        with openai.OpenAI(base_url=url, api_key="none") as client:
            reply = client.chat.completions.create(model="small", messages=ASKED, seed=3)
            assert reply.usage.completion_tokens >= 1
        process.terminate()
        assert process.wait(30) == 0


def test_a_model_of_other_prompts_than_a_chat_templates_is_told(settings, tmp_path, capsys):
    cfg = dataclasses.replace(settings(), init=str(tmp_path))
    serve_model.tell_style(cfg)
    assert capsys.readouterr().err == ""
    (tmp_path / "agent.json").write_text(json.dumps({"prompt": {"style": "minimal"}}))
    told = f"  {tmp_path} was trained with prompts of style 'minimal': a chat template is strange"
    for is_agent, instead in (
        (False, "by config.agent=True"),
        (True, f"ask {tmp_path.name}:agent"),
    ):
        serve_model.tell_style(dataclasses.replace(cfg, agent=is_agent))
        said = capsys.readouterr().err
        assert said.startswith(told)
        assert said.endswith(f"{instead}\n")

"""An agent behind HTTP: answers with citations for OpenAI's client, and the page of `ask`."""

from __future__ import annotations

import contextlib
import dataclasses
import http.client
import importlib.util
import os
import subprocess
import sys
import threading
import time

import jax.numpy as jnp
import numpy as np
import openai
import pytest

from masksearch_jax import ask
from masksearch_jax.core.config import PromptConfig
from masksearch_jax.core.tools import search_alone
from masksearch_jax.core.types import Passage
from masksearch_jax.rollout.engine import Engine
from masksearch_jax.search.tool import FakeSearch
from masksearch_jax.testing.models import ScriptedModel, TextVocab
from tests.rollout.word_engine import GREEDY, SEARCH

EVIL = '<img src=x onerror="document.title=1">'
KRONE = Passage("2", f"Krone {EVIL}", f"The krone & the <b>øre</b> are money. {EVIL}")
OSLO = Passage("1", "Oslo", "Oslo is the capital of Norway.")
SAID = ("<think>I look it up: æ", f" <i>{EVIL}</i></think>", "<search>krone\nOslo</search>")
ANSWER = "<think>Found.</think><answer>the <b>øre</b></answer>"


@contextlib.contextmanager
def scripted(**search):
    """The page's service of an agent that says SAID, and ANSWER once it has read something."""
    vocab = TextVocab(*SAID, ANSWER)
    words = [vocab.words.index(w) for w in SAID]
    following = np.full(vocab.size, vocab.eos_ids[0], np.int32)
    for before, after in zip([*vocab.encode("\n"), *words], words, strict=False):
        following[before] = after
    following[vocab.words.index("</information>")] = vocab.words.index(ANSWER)
    rollout = dataclasses.replace(
        GREEDY, max_len=2048, page_tokens=256, extend_tokens=256, chunk_tokens=64, tick_tokens=1,
        max_observation_tokens=512, max_new_tokens=64, answer_tokens=16, in_flight="keep",
    )  # fmt: skip
    cfg = ask.AskRun(
        init="runs/small", web=True, prompt=PromptConfig("minimal"), search=SEARCH, rollout=rollout
    )
    tool = FakeSearch({"krone": [KRONE], "Oslo": [OSLO, KRONE]}, **search)
    model = ScriptedModel(jnp.asarray(following))
    with Engine(
        vocab, search_alone(tool, SEARCH), rollout, SEARCH, strict=True, by_row=True
    ) as engine:
        list(engine.run(model))
        agent = ask.Agent(cfg, vocab, engine, model)
        with ask.page_server(agent) as server:
            thread = threading.Thread(target=server.serve, args=(model,))
            thread.start()
            yield server
            server.stop()
            thread.join()


@pytest.fixture(scope="module")
def server():
    with scripted() as found:
        yield found


@pytest.fixture
def create(server):
    with openai.OpenAI(base_url=server.url, api_key="none", max_retries=0) as client:
        yield client.chat.completions.create


ASKED = {"messages": [{"role": "user", "content": "Which money has Norway?"}]}
DOCUMENTS = [{"id": p.id, "title": p.title, "text": p.text} for p in (KRONE, OSLO)]


def test_an_agent_answers_with_its_searches_and_citations(create):
    for named in ({"model": "small:agent"}, {"model": "small", "extra_body": {"agent": True}}):
        reply = create(**ASKED, **named)
        (choice,) = reply.choices
        assert (choice.message.content, choice.finish_reason) == ("the <b>øre</b>", "stop")
        assert choice.message.searches == [["krone", "Oslo"]]
        marks = [{"search": 0, "has_answer": has} for has in (True, False)]
        assert choice.message.citations == [d | m for d, m in zip(DOCUMENTS, marks, strict=True)]
        assert reply.model == "small:agent"
        assert reply.usage.completion_tokens == 4


def test_a_stream_of_an_agent_tells_what_it_does(create):
    chunks = list(create(model="small:agent", **ASKED, stream=True))
    deltas = [chunk.choices[0].delta.model_dump(exclude_none=True) for chunk in chunks]
    plan = "".join(d.get("reasoning_content", "") for d in deltas)
    assert plan == f"I look it up: æ <i>{EVIL}</i>Found."
    told = [d for d in deltas if "plan" not in d][1:]
    assert told[0] == {"search": ["krone", "Oslo"]}
    assert told[1] == {"documents": DOCUMENTS}
    assert (told[2]["answer"], told[2]["content"]) == ("the <b>øre</b>",) * 2
    assert [c["id"] for c in told[3]["citations"]] == ["2", "1"]
    assert chunks[-1].choices[0].finish_reason == "stop"


def test_a_reply_without_an_answer_says_why(create):
    """In a stream and whole alike."""
    given = {"model": "small:agent", "max_tokens": 1} | ASKED
    (choice,) = create(**given).choices
    assert (choice.message.content, choice.finish_reason) == ("", "length")
    deltas = [chunk.choices[0].delta.model_dump() for chunk in create(**given, stream=True)]
    (told,) = (d["failed"] for d in deltas if "failed" in d)
    assert choice.message.failed == told
    assert told.startswith("no answer: ")
    assert not hasattr(create(model="small:agent", **ASKED).choices[0].message, "failed")


def test_plain_requests_are_served_beside_it_and_never_search(create):
    plain = create(model="small", **ASKED)
    assert plain.choices[0].message.content == ""  # the script says nothing after its template
    with pytest.raises(openai.BadRequestError, match="an agent reads one question"):
        create(
            model="small:agent", messages=[{"role": "system", "content": "x"}, *ASKED["messages"]]
        )
    with pytest.raises(openai.BadRequestError, match="`logprobs` is of plain replies"):
        create(model="small:agent", **ASKED, logprobs=True)


def test_an_answer_ends_before_a_stop(create):
    given = {"model": "small:agent", "stop": ["ø", "\n\n"]} | ASKED
    assert create(**given).choices[0].message.content == "the <b>"
    told = [c.choices[0].delta.content or "" for c in create(**given, stream=True)]
    assert "".join(told) == "the <b>"


def test_a_search_that_is_down_is_an_error_and_no_answer():
    with (
        scripted(fail_first=2) as server,
        openai.OpenAI(base_url=server.url, api_key="none", max_retries=0) as client,
    ):
        create = client.chat.completions.create
        with pytest.raises(openai.APIStatusError, match=r"the search failed: .*scripted") as failed:
            create(model="small:agent", **ASKED)
        assert failed.value.status_code == 502
        with pytest.raises(openai.APIError, match=r"the search failed: .*scripted"):
            list(create(model="small:agent", **ASKED, stream=True))
        reply = create(model="small:agent", **ASKED)
        assert reply.choices[0].message.content == "the <b>øre</b>"


def test_a_page_is_for_this_machine_and_loads_nothing_from_elsewhere(server):
    def get(host):
        connection = http.client.HTTPConnection(*server.server_address, timeout=10)
        with contextlib.closing(connection):
            connection.request("GET", "/", headers={"Host": host})
            reply = connection.getresponse()
            return reply.status, reply.headers["Content-Security-Policy"], reply.read().decode()

    status, policy, text = get("localhost:80")
    assert (status, policy.partition(";")[0]) == (200, "default-src 'none'")
    assert "://" not in text
    assert get("evil.example")[0] == 400  # a name that leads here


# ---- in a browser


@contextlib.contextmanager
def opened(browser, server, refused=0, **options):
    """The page; nothing may be said on its console but the refusals, or asked elsewhere."""
    said, asked = [], []
    context = browser.new_context(**{"viewport": {"width": 1000, "height": 800}} | options)
    page = context.new_page()
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("request", lambda request: asked.append(request.url))
    page.goto(server.address)
    page.wait_for_selector("#model:not(:empty)")
    yield page
    assert len(said) == refused
    assert all("400 (Bad Request)" in line for line in said)
    assert {url.split("/")[2] for url in asked if "://" in url} == {server.address.split("/")[2]}
    context.close()


@pytest.mark.slow  # a browser starts
def test_the_page_shows_what_the_agent_does_as_text(browser, server, tmp_path):
    shots = os.environ.get("MASKSEARCH_SCREENSHOTS")
    for width, scheme in ((1000, "light"), (390, "dark")):
        size = {"width": width, "height": 800}
        with opened(browser, server, viewport=size, color_scheme=scheme) as page:
            page.fill("#question", f"Which money has {EVIL}?")
            page.press("#question", "Enter")
            page.wait_for_selector("article:not([aria-busy]) .answer")
            assert page.locator("h2").inner_text() == f"Which money has {EVIL}?"
            assert page.locator(".answer").inner_text() == "the <b>øre</b>"
            plans = page.locator(".plan").all_inner_texts()
            assert plans == [f"I look it up: æ <i>{EVIL}</i>", "Found."]
            assert page.locator(".search li").all_inner_texts() == ["krone", "Oslo"]
            assert page.locator("summary").all_inner_texts() == [KRONE.title, OSLO.title]
            assert page.locator("details.has-answer").count() == 1
            page.locator("summary").first.click()
            assert page.locator("details p").first.inner_text() == KRONE.text
            assert page.locator("img, i, b").count() == 0
            assert page.title() == "Ask the agent"
            assert page.evaluate("document.documentElement.scrollWidth") <= width
            if shots:
                page.screenshot(path=f"{shots}/ask-{width}-{scheme}.png")
            before = page.evaluate("getComputedStyle(document.body).backgroundColor")
            page.click("#theme")
            assert page.evaluate("getComputedStyle(document.body).backgroundColor") != before
            page.reload()
            assert page.evaluate("getComputedStyle(document.body).backgroundColor") != before


@pytest.mark.slow  # a browser starts
def test_the_last_answer_is_in_sight(browser, server):
    with opened(browser, server, viewport={"width": 390, "height": 700}) as page:
        for number in range(1, 4):
            page.fill("#question", f"Question {number}?")
            page.press("#question", "Enter")
            page.locator("article:not([aria-busy]) .answer").nth(number - 1).wait_for()
            answer = page.locator(".answer").last.bounding_box()
            assert answer["y"] + answer["height"] <= page.locator("#form").bounding_box()["y"]
            assert answer["y"] >= 0


@pytest.mark.slow  # a browser starts
def test_an_answer_can_be_stopped_and_an_error_is_shown(browser):
    with scripted(latency=2.0) as server, opened(browser, server, refused=1) as page:
        page.fill("#question", "Slow?")
        page.click("#send")
        page.wait_for_selector(".search li")
        page.click("#send")
        page.wait_for_selector("article:not([aria-busy]) .failed")
        assert page.locator(".failed").inner_text() == "stopped"
        end = time.monotonic() + 20
        while server._pending and time.monotonic() < end:
            time.sleep(0.01)
        assert not server._pending
        page.fill("#question", "x" * 4000)
        page.click("#send")
        page.wait_for_selector("article:nth-of-type(2):not([aria-busy]) .failed")
        assert "rollout.max_len is 2048" in page.locator(".failed").last.inner_text()


# ---- clients of others, as they are, each in a process of its own

INSPECT = """
import sys, inspect_ai
from inspect_ai.dataset import Sample
from inspect_ai.model import get_model
from inspect_ai.scorer import includes
from inspect_ai.solver import generate
samples = [Sample(input=f"Which money has {land}?", target="øre") for land in "AB"]
task = inspect_ai.Task(dataset=samples, solver=generate(), scorer=includes())
model = get_model("openai-api/local/small:agent", base_url=sys.argv[1], api_key="none")
(log,) = inspect_ai.eval(task, model=model, display="none", log_dir=sys.argv[2])
print(log.status, log.results.scores[0].metrics["accuracy"].value)
print([s.output.completion for s in log.samples])
"""
LM_EVAL = """
import json, sys
from lm_eval.api.instance import Instance
from lm_eval.models.api_models import JsonChatStr
from lm_eval.models.openai_completions import LocalChatCompletion
client = LocalChatCompletion(
    base_url=f"{sys.argv[1]}/chat/completions", model="small:agent", num_concurrent=2
)
asked = JsonChatStr(json.dumps([{"role": "user", "content": "Which money has Norway?"}]))
limits = {"until": ["\\n\\n"], "max_gen_toks": 32, "temperature": 0.0, "do_sample": False}
requests = [Instance("generate_until", {}, (asked, limits), 0)] * 2
print(client.generate_until(requests, disable_tqdm=True))
"""


@pytest.mark.slow  # heavy packages
@pytest.mark.parametrize(
    ("package", "script", "said"),
    [
        ("inspect_ai", INSPECT, "success 1.0\n['the <b>øre</b>', 'the <b>øre</b>']\n"),
        ("lm_eval", LM_EVAL, "['the <b>øre</b>', 'the <b>øre</b>']\n"),
    ],
)
def test_others_evaluate_the_agent(server, tmp_path, package, script, said):
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"{package} is not installed")
    done = subprocess.run(
        [sys.executable, "-c", script, server.url, str(tmp_path)],
        env=os.environ | {"OPENAI_API_KEY": "none"},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    assert done.stdout.endswith(said)

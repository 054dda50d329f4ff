"""The modules of examples/ that docs/extending.md names do what they say."""

import asyncio
import contextlib
import re
import runpy
import socket
import sys
import threading
import tomllib
from pathlib import Path

import numpy as np
import openai
import pytest
import uvicorn

from examples import (
    exact_judge,
    my_family,
    my_judge,
    my_masking,
    my_search,
    my_spans,
    my_teacher,
)
from masksearch_jax.agents.judge import Judge
from masksearch_jax.agents.llm_client import LLMError
from masksearch_jax.core import markup
from masksearch_jax.core.config import SearchConfig
from masksearch_jax.core.corpus_config import RampConfig
from masksearch_jax.core.jsonl import read_jsonl, write_jsonl
from masksearch_jax.core.llm_config import JudgeConfig
from masksearch_jax.core.types import (
    Demonstration,
    Passage,
    QAExample,
    RampExample,
    Segment,
    Span,
    Trajectory,
)
from masksearch_jax.core.watch_config import LogConfig
from masksearch_jax.data import prompt
from masksearch_jax.data.folder import Folder
from masksearch_jax.models import families
from masksearch_jax.runtime.metric_writer import MetricWriter
from masksearch_jax.search import bm25
from masksearch_jax.search.open import open_tool
from masksearch_jax.search.server import SearchServer
from masksearch_jax.testing.services import Answer, Endpoint, serving
from masksearch_jax.tools.registry import open_tools

ROOT = Path(__file__).resolve().parents[2]
RIVERS = [
    Passage(
        "p1", "River Thames", "It flooded in 1928 and again in 1953, when the barrier was begun."
    ),
    Passage(
        "p2", "Loire Valley", "Leonardo da Vinci came to Amboise in 1516 and died there in 1519."
    ),
]
CONFIG = RampConfig(heldout_fraction=0.0, max_masks=2, examples_per_passage=1)


def test_the_page_names_every_example():
    page = (ROOT / "docs" / "extending.md").read_text(encoding="utf-8")
    there = {p.stem for p in (ROOT / "examples").glob("*.py")} - {"__init__"}
    cells = [line.rpartition(" | ")[2] for line in page.splitlines() if line.startswith("| ")]
    assert set(re.findall(r"`(\w+)\.py`", "\n".join(cells))) == there
    assert set(re.findall(r"literalinclude\} \.\./examples/(\w+)\.py", page)) == there


def test_a_search_tool_is_asked_as_a_service():
    server = SearchServer(my_search.TitleSearch(RIVERS), "127.0.0.1", 0)
    with serving(server):
        tool = open_tool(SearchConfig(kind="http", url=server.address, top_k=1))
        (found,) = tool.search(["castles of the loire"], 1)
    assert list(found) == [RIVERS[1]]


@pytest.mark.parametrize(
    ("module", "given", "status", "said"),
    [
        ("my_search", [], 2, "usage: python -m examples.my_search PASSAGES.jsonl"),
        ("my_search", ["/none.jsonl"], 1, "[Errno 2] No such file or directory: '/none.jsonl'"),
        ("my_search", [__file__], 1, f"{__file__}:1: not a Passage: "),
        ("exact_judge", [], 2, "usage: python -m examples.exact_judge PORT, a number up to 65535"),
        ("exact_judge", ["judge"], 2, "usage: python -m examples.exact_judge PORT"),
        ("exact_judge", ["70000"], 2, "usage: python -m examples.exact_judge PORT"),
        ("postgres_search", ["dbname=a"], 2, "usage: python -m examples.postgres_search DATABASE "),
        ("postgres_search", ["port=x", __file__], 1, "PostgreSQL: "),
    ],
)
def test_a_wrong_argument_is_one_line(module, given, status, said, monkeypatch, capsys):
    if module == "postgres_search":
        pytest.importorskip("psycopg")
    path = ROOT / "examples" / f"{module}.py"
    monkeypatch.setattr(sys, "argv", [str(path), *given])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(path), run_name="__main__")
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {said}")
    assert ended.value.code == status


def test_an_extractor_decides_what_is_masked():
    examples = my_spans.build(RIVERS, CONFIG)["train"]
    assert {e.passage_id for e in examples} == {"p1", "p2"}
    masked = {span.text for e in examples for span in e.spans}
    assert masked <= {"1928", "1953", "1516", "1519"}


def test_a_scorer_is_a_masking_strategy():
    examples = my_masking.build(RIVERS, CONFIG)["train"]
    assert [[s.text for s in e.spans] for e in examples] == [["Leonardo da Vinci"]]


def test_a_teacher_writes_what_sft_reads(tmp_path):
    spans = (Span(14, 18, "1928", "DATE"),)
    text = RIVERS[0].text
    masked = text.replace("1928", "[mask]")
    example = RampExample("e1", "p1", "River Thames", masked, text, spans)
    (tmp_path / "ramp").mkdir()
    write_jsonl(tmp_path / "ramp" / "train.jsonl", [example])
    my_teacher.write(tmp_path, my_search.TitleSearch(RIVERS))
    (made,) = read_jsonl(tmp_path / "demonstrations" / "train.jsonl", Demonstration)
    assert markup.is_well_formed(made.segments)
    assert (made.task, made.turns[0].passage_ids) == ("ramp_k1", ("p1", "p2"))
    policy = "".join(s.text for s in made.segments if s.author == "policy")
    assert markup.extract_answer(policy) == text


def called(monkeypatch, module, *given: Path) -> None:
    monkeypatch.setattr("sys.argv", ["example", *map(str, given)])
    module.main()


@pytest.mark.parametrize(
    ("module", "masks"), [(my_spans, {"ramp_k1": 1, "ramp_k2": 1}), (my_masking, {"ramp_k1": 1})]
)
def test_what_examples_make_is_put_where_a_cache_reads_it(tmp_path, monkeypatch, module, masks):
    write_jsonl(tmp_path / "passages.jsonl", RIVERS)
    bm25.build(RIVERS, tmp_path / "index")
    monkeypatch.setattr(module, "RampConfig", lambda: CONFIG)
    called(monkeypatch, module, tmp_path)
    called(monkeypatch, my_teacher, tmp_path, tmp_path / "index")
    made = {task: {"train": count} for task, count in masks.items()}
    taught = {task.replace("ramp", "ramp_sft"): by_split for task, by_split in made.items()}
    assert Folder(tmp_path).counts() == {"ramp": made, "demonstrations": taught}


@pytest.mark.parametrize(
    ("module", "given", "status", "said"),
    [
        ("my_spans", [], 2, "usage: python -m examples.my_spans FOLDER, which build_ramp wrote"),
        ("my_spans", ["/none"], 1, "[Errno 2] No such file or directory: '/none/passages.jsonl'"),
        ("my_masking", [], 2, "usage: python -m examples.my_masking FOLDER, which build_ramp"),
        ("my_masking", ["/none"], 1, "[Errno 2] No such file or directory: '/none/passages.jsonl'"),
        ("my_teacher", ["/none"], 2, "usage: python -m examples.my_teacher FOLDER INDEX"),
        ("my_teacher", ["/none", "/index"], 1, "/index"),
    ],
)
def test_a_folder_that_is_none_is_one_line(module, given, status, said, monkeypatch, capsys):
    path = ROOT / "examples" / f"{module}.py"
    monkeypatch.setattr("sys.argv", [str(path), *given])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(path), run_name="__main__")
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert said in line
    assert ended.value.code == status


def test_the_package_of_a_family_is_whole():
    """Its pyproject.toml names the module and the family that the example has."""
    page = (ROOT / "docs" / "extending.md").read_text(encoding="utf-8")
    told = tomllib.loads(re.search(r"```toml\n(.*?)```", page, re.DOTALL)[1])
    (entry,) = told["project"]["entry-points"][families.GROUP].items()
    assert entry == ("mistral", "my_family:MISTRAL")
    assert told["tool"]["setuptools"]["py-modules"] == ["my_family"]
    assert isinstance(my_family.MISTRAL, families.Family)


def attempt(said: str) -> Trajectory:
    none = np.zeros(0)
    segments = (Segment("policy", said),)
    return Trajectory("q1", 0, none, none, none, none, 0, segments, (), "answered")


def test_a_judge_is_a_reward(monkeypatch):
    example = QAExample("q1", "made", "Which river?", ("the Thames",))

    def reply(body):
        asked = body["messages"][0]["content"]
        return Answer("Yes." if "Given: Thames\n" in asked else "no")

    with Endpoint(reply) as endpoint:
        monkeypatch.setenv("MY_JUDGE", endpoint.url)
        said = ["<answer>Thames</answer>", "<answer>Loire</answer>", "<search>river</search>"]
        scores = [asyncio.run(my_judge.reward(example, attempt(text))) for text in said]
        assert len(endpoint.calls) == 2
    assert scores == [1.0, 0.0, 0.0]
    monkeypatch.setenv("MY_JUDGE", "http://127.0.0.1:1/v1")
    with pytest.raises(openai.APIConnectionError):
        asyncio.run(my_judge.reward(example, attempt(said[0])))


@contextlib.contextmanager
def exact_judge_served():
    """Its address."""
    with socket.create_server(("127.0.0.1", 0)) as bound:
        server = uvicorn.Server(uvicorn.Config(exact_judge.app, log_level="warning"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [bound]})
        thread.start()
        try:
            yield f"http://127.0.0.1:{bound.getsockname()[1]}/v1"
        finally:
            server.should_exit = True
            thread.join()


def test_a_judge_without_a_model_compares_each_gap(tmp_path):
    text = "Leonardo died in Amboise in 1519."
    spans = (Span(17, 24, "Amboise", "GPE"), Span(28, 32, "1519", "DATE"))
    masked = "Leonardo died in [mask] in [mask]."
    paragraph = RampExample("e1", "p1", "Loire", masked, text, spans)
    question = QAExample("q1", "made", "Which river?", ("the Thames", "River Thames"))
    asked = [
        (paragraph, text, True),
        (paragraph, "Leonardo died in  amboise in 1519.", True),
        (paragraph, "Leonardo died in Amboise in 1516.", False),
        (paragraph, "Leonardo died in 1519 in Amboise.", False),
        (paragraph, "1519", False),
        (paragraph, f"{text}\n\nAnswer:\n{text}", False),
        (question, "Thames", True),
        (question, "Loire", False),
    ]

    def config(url, **changes):
        calls = {"base_url": url, "cache": str(tmp_path / "verdicts.sqlite"), "retries": 0}
        return JudgeConfig(**calls | {"model": "exact"} | changes)

    async def verdicts(url):
        async with Judge(config(url)) as judge:
            await judge.check_known(paragraph)
            await judge.check_known(question)
            return [await judge(example, answer) for example, answer, _ in asked]

    async def refused(url, **changes):
        async with Judge(config(url, **changes)) as judge:
            await judge(question, "Thames")

    with exact_judge_served() as url:
        assert asyncio.run(verdicts(url)) == [right for *_, right in asked]
        with pytest.raises(LLMError, match="HTTP 400: no task, known answer and answer in"):
            asyncio.run(refused(url, language="zh"))
        with pytest.raises(LLMError, match=r"no model 'Qwen2\.5-72B-Instruct' here; this judge is"):
            asyncio.run(refused(url, model="Qwen2.5-72B-Instruct"))


def test_a_tool_of_a_user_is_named_in_the_config():
    tools = open_tools(("examples.my_tool:Lengths",), my_search.TitleSearch(RIVERS), SearchConfig())
    assert tools.names == ("search", "convert")
    assert tools["convert"].call(("26.2 miles in km",), "").texts == ("42.16 km",)
    assert "converter of lengths" in prompt.instructions(tools.instructions)


def test_a_logger_has_every_step_once_after_a_resume(tmp_path):
    log = LogConfig(("jsonl", "examples.my_logger:Csv"))
    with MetricWriter(tmp_path, 0, log) as writer:
        for step in (1, 2, 3):
            writer.write(step, {"loss": 1 / step})
    with MetricWriter(tmp_path, 2, log) as writer:  # a run that goes on from its second step
        writer.write(3, {"loss": 0.25})
        writer.write(4, {"kept": 0})  # a step of DAPO without an update
    assert (tmp_path / "loss.csv").read_text() == "1,1.0\n2,0.5\n3,0.25\n4,\n"

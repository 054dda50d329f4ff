"""The clients of Search-R1 and verl, as their projects ship them, against the service.

TRAINERS_CLIENTS names a folder with a copy of both: Search-R1's `search_r1/llm_agent/generation.py`
and verl's `verl/tools/utils/search_r1_like_utils.py`. Only what searches is run of them.
"""

from __future__ import annotations

import ast
import importlib.util
import json
import os
import types
import typing
from pathlib import Path

import pytest

from masksearch_jax.core.types import Passage
from masksearch_jax.search.bm25 import BM25, build
from masksearch_jax.search.server import SearchServer
from masksearch_jax.testing.services import serving

pytestmark = pytest.mark.slow

FOLDER = os.environ.get("TRAINERS_CLIENTS", "")
DEFAULT = 4  # passages that the service gives where a request says nothing
METHODS = ("batch_search", "_batch_search", "_passages2string")  # of Search-R1's manager
BATCHES = [1, 600, 2560]
RIVER = 'The "{0}" river\nrises near {0} and ends in {1}.'


def copied(name: str) -> Path:
    path = Path(FOLDER) / name
    if not FOLDER or not path.is_file():
        pytest.skip(f"TRAINERS_CLIENTS is {FOLDER!r} and must name a folder that has {name}")
    pytest.importorskip("requests", reason="both clients need requests, which is not installed")
    return path


@pytest.fixture(scope="module")
def index(tmp_path_factory):
    folder = tmp_path_factory.mktemp("rivers") / "index"
    texts = [RIVER.format(f"place{i}", f"place{i // 2}") for i in range(500)]
    build((Passage(f"r{i}", f"River {i}", text) for i, text in enumerate(texts)), folder)
    return BM25.open(folder)


@pytest.fixture(scope="module")
def service(index):
    with serving(SearchServer(index, "127.0.0.1", 0, default_top_k=DEFAULT)) as server:
        yield server


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


def queries(count: int) -> list[str]:
    """Some that are empty, or find nothing, among those that find rivers."""
    said = ("river place{}", "who lives at place{}?", "", "nosuchword")
    return [said[i % len(said)].format(i % 500) for i in range(count)]


def manager(url: str, top_k: int | None):
    """Search-R1's manager of a generation, without all that needs a model."""
    tree = ast.parse(copied("generation.py").read_text(encoding="utf-8"))
    (found,) = (n for n in tree.body if getattr(n, "name", "") == "LLMGenerationManager")
    found.body = [node for node in found.body if getattr(node, "name", "") in METHODS]
    import requests

    names: dict[str, typing.Any] = {"requests": requests, "List": list}
    exec(compile(ast.Module([found], []), "generation.py", "exec"), names)
    made = names["LLMGenerationManager"]()
    made.config = types.SimpleNamespace(search_url=url, topk=top_k)
    return made


@pytest.mark.parametrize("count", BATCHES)
@pytest.mark.parametrize("top_k", [1, 3, 5, None])
def test_search_r1_is_shown_what_a_search_in_process_finds(service, index, count, top_k):
    found = manager(service.url, top_k).batch_search(queries(count))
    assert found == [
        "".join(f'Doc {n}(Title: "{p.title}") {p.text}\n' for n, p in enumerate(hits, start=1))
        for hits in index.search(queries(count), top_k or DEFAULT)
    ]


@pytest.mark.parametrize("count", BATCHES)
@pytest.mark.parametrize("top_k", [1, 3, 5])
def test_verl_is_shown_what_a_search_in_process_finds(service, index, count, top_k):
    path = copied("search_r1_like_utils.py")
    spec = importlib.util.spec_from_file_location("search_r1_like_utils", path)
    verl = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(verl)
    text, told = verl.perform_single_search_batch(service.url, queries(count), top_k)
    expected = index.search(queries(count), top_k)
    shown = [
        "\n\n".join(f'Doc {n} (Title: "{p.title}")\n{p.text}' for n, p in enumerate(hits, start=1))
        for hits in expected
    ]
    assert json.loads(text) == {"result": "\n---\n".join(shown)}
    assert (told["status"], told["total_results"]) == ("success", sum(map(len, expected)))
    assert [[hit["score"] for hit in hits] for hits in told["api_response"]["result"]] == [
        list(hits.scores) for hits in expected
    ]

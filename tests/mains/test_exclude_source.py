"""`search.exclude_source`: no agent finds a masked paragraph by searching for it."""

import contextlib
import dataclasses
import json
import random
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from masksearch_jax import build_trajectories, evaluate
from masksearch_jax.agents import agent_teacher, policy_teacher, scripted_teacher, selection
from masksearch_jax.core import markup, retrieval, scoring
from masksearch_jax.core.config import MeshConfig, PromptConfig, SearchConfig
from masksearch_jax.core.jsonl import read_jsonl, write_jsonl
from masksearch_jax.core.retrieval import SearchError
from masksearch_jax.core.tokenizer import Vocab
from masksearch_jax.core.tools import search_alone
from masksearch_jax.core.types import Demonstration, Passage, QAExample, RampExample
from masksearch_jax.data.batches import Prompt
from masksearch_jax.evals import sampling
from masksearch_jax.evals.items import Item
from masksearch_jax.evals.scores import Scorer
from masksearch_jax.parallel import hosts, sharding
from masksearch_jax.rl.group_sampler import GroupSampler
from masksearch_jax.rl.reward_pool import RewardPool
from masksearch_jax.rollout.engine import Engine
from masksearch_jax.search import bm25
from masksearch_jax.search.cache import CachedSearch
from masksearch_jax.search.open import check_source_passages
from masksearch_jax.search.remote import RemoteSearch
from masksearch_jax.search.server import SearchServer
from masksearch_jax.search.tool import FakeSearch, NoSearch, RandomSearch
from masksearch_jax.testing.services import serving
from tests.agents.scripted_student import LENIENT, scripted

WORDS = ("red", "fruit", "tree", "stone")
FRUIT = [
    Passage(f"p{i}", name, " ".join(WORDS[(i + j) % 4] for j in range(1 + i % 3)))
    for i, name in enumerate(("Apple", "Banana", "Cherry", "Durian", "Elder", "Fig", "Grape"))
]
HIDING = SearchConfig("bm25", "", "", 2, 3, 2, timeout=5.0, workers=2, exclude_source=True)
OPEN = dataclasses.replace(HIDING, exclude_source=False)


@pytest.fixture(scope="module")
def fruit(tmp_path_factory):
    folder = tmp_path_factory.mktemp("fruit") / "index"
    bm25.build(FRUIT, folder)
    return bm25.BM25.open(folder)


@pytest.fixture(scope="module")
def every_tool(fruit, tmp_path_factory):
    path = tmp_path_factory.mktemp("cache") / "results.sqlite"
    with serving(SearchServer(fruit, "127.0.0.1", 0)) as server:
        remote = RemoteSearch(server.url, timeout=10)
        with contextlib.closing(CachedSearch(fruit, path)) as cached:
            fake = FakeSearch(lambda query: FRUIT)
            yield [fruit, remote, cached, fake, RandomSearch(FRUIT), NoSearch()]


def example(passage: Passage) -> RampExample:
    return RampExample(f"{passage.id}@0", passage.id, passage.title, "[mask]", passage.text, ())


# ---- one search


QUERIES = st.lists(
    st.lists(st.sampled_from([*WORDS, "apple", "fig"]), min_size=1, max_size=3).map(" ".join),
    min_size=1, max_size=2,
)  # fmt: skip


@given(queries=QUERIES, source=st.sampled_from(FRUIT), top_k=st.integers(1, 4))
def test_what_is_shown_is_what_a_corpus_without_the_source_gives(
    every_tool, queries, source, top_k
):
    hiding, shown_all = (dataclasses.replace(c, top_k=top_k) for c in (HIDING, OPEN))
    for tool in every_tool:
        ranked = tool.search(queries, len(FRUIT))
        others = [[p for p in hits if p.id != source.id][:top_k] for hits in ranked]
        expected = markup.merge_results(others, hiding.max_passages)
        assert retrieval.find(tool, queries, hiding, source.id) == expected
        everything = markup.merge_results([h[:top_k] for h in ranked], hiding.max_passages)
        assert retrieval.find(tool, queries, shown_all, source.id) == everything
        assert retrieval.find(tool, queries, hiding, "") == everything


def test_questions_hide_nothing():
    assert retrieval.source_of(QAExample("q", "d", "Which?", ("It",), gold=("p1",))) == ""
    assert retrieval.source_of(example(FRUIT[1])) == "p1"


def test_a_cache_of_results_serves_every_example_and_mixes_nothing_up(tmp_path):
    asked = FakeSearch(lambda query: FRUIT)
    with contextlib.closing(CachedSearch(asked, tmp_path / "results.sqlite")) as tool:

        def shown(cfg, source):
            return [p.id for p in retrieval.find(tool, ["red"], cfg, source)]

        assert shown(OPEN, "p0") == ["p0", "p1"]
        assert shown(HIDING, "p0") == ["p1", "p2"]
        assert shown(HIDING, "p1") == ["p0", "p2"]
        assert shown(HIDING, "") == shown(OPEN, "p1") == ["p0", "p1"]
    assert len(asked.calls) == 2  # once for two passages, once for the three that hiding asks for


# ---- who searches


@pytest.fixture(scope="module")
def examples(miniature):
    return read_jsonl(miniature.data / "ramp" / "train.jsonl", RampExample)[:6]


@pytest.fixture(scope="module")
def sources(examples):
    """A tool that finds the passages of all examples, in this order, whatever it is asked."""
    ids = list(dict.fromkeys(e.passage_id for e in examples))
    assert len(ids) >= 4
    return FakeSearch(lambda query: [Passage(i, f"Title {i}", "A text.") for i in ids])


def shown_to(turns, ids, source, cfg):
    """Whether each turn shows the first passages of `ids`, but for the hidden one."""
    left = [i for i in ids if i != source or not cfg.exclude_source][: cfg.top_k]
    return bool(turns) and all(list(t.passage_ids) == left for t in turns)


class OneStep:
    """The prompts of one step of DAPO, and no more."""

    def __init__(self, prompts):
        self.prompts = prompts

    def __next__(self):
        return self.prompts

    def extra(self, groups):
        return []


@pytest.mark.parametrize("cfg", [HIDING, OPEN], ids=["hiding", "open"])
def test_the_student_evaluation_and_dapo(miniature, examples, sources, cfg, monkeypatch):
    """All that sample with the engine, each with a scripted model that searches once."""
    vocab = Vocab.load(miniature.tokenizer)
    ids = [p.id for p in sources.search(["any"], 99)[0]]
    model, mesh = scripted(vocab), sharding.make_mesh(MeshConfig(1, 1, 1), jax.devices()[:1])
    rollout = dataclasses.replace(
        miniature.cfg.rollout, slots=4, max_new_tokens=24, temperature=0.0, in_flight="drop"
    )
    source = {e.id: e.passage_id for e in examples}

    monkeypatch.setattr(policy_teacher, "make_mesh", lambda config: mesh)
    monkeypatch.setattr(policy_teacher, "initial", lambda *args: model)
    setting = selection.StudentConfig(
        init="",
        tokenizer=str(miniature.tokenizer),
        samples=2,
        rules=LENIENT,
        model=miniature.cfg.model,
        compute=miniature.cfg.compute,
        mesh=miniature.cfg.mesh,
        prompt=PromptConfig("minimal"),
        rollout=rollout,
    )
    limits = agent_teacher.TeacherConfig("en", 2, cfg)
    with contextlib.closing(
        policy_teacher.Student(setting, search_alone(sources, cfg), limits, None, seed=0)
    ) as teacher:
        made = teacher.solve(examples, lambda outcome: None)
    assert len(made) == 2 * len(examples)
    assert all(shown_to(d.turns, ids, source[d.example_id], cfg) for d in made)

    prompts = [np.asarray(vocab.encode(f"{e.masked}\n"), np.int32) for e in examples]
    with jax.set_mesh(mesh), Engine(vocab, search_alone(sources, cfg), rollout, cfg) as engine:
        found = []
        scorer = Scorer(scoring.OURS)
        items = [
            Item("ramp", "agent", i, *pair, retrieval.source_of(pair[0]), scorer)
            for i, pair in enumerate(zip(examples, prompts, strict=True))
        ]
        sampler = evaluate.EngineSampler(engine, evaluate.Model(model, vocab, "minimal"))

        def prepared(asked, most, goes_on):
            return map(sampling.Asked, asked)

        def keep(sampled, attempts):
            found.append(sampled.trajectory)

        assert not sampling.ask(sampler, prepared, items, 0, 0.0, keep, hosts.gather)
        assert {t.example_id for t in found} == source.keys()
        assert all(shown_to(t.turns, ids, source[t.example_id], cfg) for t in found)

        dapo = dataclasses.replace(
            miniature.cfg.dapo, groups=len(examples), group_size=2, max_refills=1, overlong_buffer=8
        )
        drawn = [Prompt(p, e) for p, e in zip(prompts, examples, strict=True)]
        with RewardPool(dapo) as pool:
            _, groups = GroupSampler(engine, OneStep(drawn), dapo, rollout, pool).step(model, 0)
    assert [g.example.id for g in groups] == list(source)
    for group in groups:
        assert len(group.trajectories) == 2
        for t in group.trajectories:
            assert shown_to(t.turns, ids, group.example.passage_id, cfg)


def test_the_scripted_teacher_reads_other_articles_alone(miniature):
    """Every fact of the atlas's articles stands in its own: without it next to none is found."""
    tool = bm25.BM25.open(miniature.index)
    asked = read_jsonl(miniature.data / "ramp" / "train.jsonl", RampExample)[:80]

    def solve(cfg):
        made = [
            scripted_teacher.demonstrate(e, search_alone(tool, cfg), random.Random(e.id))
            for e in asked
        ]
        return [m for m in made if isinstance(m, Demonstration)]

    cfg = dataclasses.replace(miniature.search, top_k=2, max_passages=2)
    shown = solve(cfg)
    hidden = solve(dataclasses.replace(cfg, exclude_source=True))
    source = {e.id: e.passage_id for e in asked}

    def reads_itself(made):
        return any(source[made.example_id] in t.passage_ids for t in made.turns)

    assert sum(map(reads_itself, shown)) > 0.9 * len(asked)
    assert not any(map(reads_itself, hidden))
    assert len(hidden) < 0.3 * len(shown)


# ---- what cannot be hidden is said at once


class Unnamed(BaseHTTPRequestHandler):
    """A service whose documents have no ids."""

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        hits = [{"document": {"contents": f'"{p.title}"\n{p.text}'}, "score": 1.0} for p in FRUIT]
        data = json.dumps({"result": [hits for _ in body["queries"]]}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_):
        pass


def test_a_tool_with_other_ids_is_refused_at_the_start(fruit, every_tool):
    examples = [example(p) for p in FRUIT]
    for tool in every_tool[:4]:
        check_source_passages(tool, HIDING, examples)
    renamed = [dataclasses.replace(e, passage_id=f"wiki-{e.passage_id}") for e in examples]
    with pytest.raises(SearchError, match=r"can hide nothing: .*7 paragraphs .*'wiki-p0' gave \["):
        check_source_passages(fruit, HIDING, renamed)
    check_source_passages(fruit, OPEN, renamed)
    check_source_passages(fruit, HIDING, [QAExample("q", "d", "Which?", ("It",))])
    for kind in ("none", "random"):
        check_source_passages(NoSearch(), dataclasses.replace(HIDING, kind=kind), renamed)
    with serving(ThreadingHTTPServer(("127.0.0.1", 0), Unnamed)) as server:
        url = f"http://127.0.0.1:{server.server_address[1]}/retrieve"
        with pytest.raises(SearchError, match="can hide nothing"):
            check_source_passages(RemoteSearch(url, timeout=10), HIDING, examples)


def test_the_mains_refuse_before_they_work(miniature, examples, tmp_path):
    other = [dataclasses.replace(e, passage_id="elsewhere") for e in examples]
    for kind in ("train", "heldout"):
        write_jsonl(tmp_path / "ramp" / f"{kind}.jsonl", other)
    hiding = dataclasses.replace(miniature.search, exclude_source=True)
    with pytest.raises(SearchError, match="can hide nothing"):
        build_trajectories.run(
            build_trajectories.BuildTrajectoriesRun(
                str(tmp_path), ("ramp",), hiding, max_searches=2, demonstrations=0, seed=0
            )
        )
    assert not (tmp_path / "demonstrations").exists()

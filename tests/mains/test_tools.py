"""An agent with a calculator and dates, from its questions to its evaluation by type, in small."""

from __future__ import annotations

import dataclasses
import json
import random
import re
from pathlib import Path

import numpy as np
import pytest

from masksearch_jax import ask, build_trajectories, evaluate, train_dapo, train_sft
from masksearch_jax.agents.attempts import RejectedError
from masksearch_jax.core import markup
from masksearch_jax.core.config import DapoRun, EvalRun, SftRun
from masksearch_jax.core.errors import ConfigError
from masksearch_jax.core.jsonl import read_jsonl, write_jsonl
from masksearch_jax.core.schema import to_dataclass
from masksearch_jax.core.tokenizer import Vocab, train_bpe
from masksearch_jax.core.types import Demonstration, QAExample, to_json
from masksearch_jax.corpus import atlas
from masksearch_jax.data import cache, demonstrations, prompt
from masksearch_jax.quickstart import QuickstartRun
from masksearch_jax.runtime import agent_settings, cli, run_record
from masksearch_jax.runtime.metric_writer import read_metrics
from masksearch_jax.search import bm25
from masksearch_jax.tools.registry import instructions_of

TYPES = ("discovery_gap", "population_difference", "population_sum")
TOOLS = ("calculate", "date")
FIGURE = re.compile(r"\d+(?:[.,]\d+)*")


@dataclasses.dataclass(frozen=True)
class Small:
    """The configuration of the quickstart with tools, and its folders."""

    cfg: QuickstartRun
    folder: Path

    def settings(self, name: str, init: str = "") -> dict:
        """What all mains are told."""
        cfg, folder = self.cfg, self.folder
        return {
            "workdir": str(folder / name),
            "data": str(folder / "cache"),
            "tokenizer": str(folder / "tokenizer"),
            "init": init,
            "model": cfg.model,
            "compute": cfg.compute,
            "mesh": cfg.mesh,
            "tools": cfg.tools,
            "search": dataclasses.replace(cfg.search, index=str(folder / "index")),
            "prompt": cfg.prompt,
            "rollout": cfg.rollout,
        }


@pytest.fixture(scope="module")
def small(repository, tmp_path_factory):
    """Questions that want tools, an index of what they ask about, and demonstrations."""
    c = cli.load_config(f"{repository / 'configs' / 'quickstart.py'}:tools,runlocal")
    c.model.hidden_size, c.model.intermediate_size, c.model.head_dim = 64, 128, 16
    c.model.num_layers, c.compute.remat, c.tokenizer_vocab_size = 2, "none", 512
    cfg = to_dataclass(QuickstartRun, c)
    folder = tmp_path_factory.mktemp("tools")
    built = atlas.build(seed=0, cities=150, arithmetic=True)
    asked = [q for q in built.questions if q.calls]
    random.Random(0).shuffle(asked)
    by_type = {name: [q for q in asked if q.type == name] for name in TYPES}
    for split, part in (("train", slice(0, 40)), ("heldout", slice(40, 44))):
        path = folder / "data" / "questions" / f"{split}.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_jsonl(path, [q for found in by_type.values() for q in found[part]])
    bm25.build(built.passages, folder / "index")
    return Small(cfg, folder)


@pytest.fixture(scope="module")
def demonstrated(small):
    """The counts of the demonstrations, which are made."""
    cfg = small.cfg
    return build_trajectories.run(
        build_trajectories.BuildTrajectoriesRun(
            folder=str(small.folder / "data"),
            kinds=("questions",),
            search=small.settings("")["search"],
            tools=cfg.tools,
            max_searches=cfg.rollout.max_turns,
            thoughts=cfg.thoughts,
        )
    )


def read(small, kind, cls):
    return read_jsonl(small.folder / "data" / kind / "train.jsonl", cls)


def test_the_script_searches_twice_and_then_calls_a_tool_with_what_it_has_read(small, demonstrated):
    questions = {q.id: q for q in read(small, "questions", QAExample)}
    made = read(small, "demonstrations", Demonstration)
    assert len(made) >= 0.7 * len(questions)
    assert {questions[d.example_id].type for d in made} == set(TYPES)
    assert set(demonstrated["rejected"]) <= {"gold_not_found", "answer_not_found"}
    names = ("search", *TOOLS)
    for d in made:
        question = questions[d.example_id]
        tool, _, request = question.calls[0].partition(": ")
        assert [t.tool for t in d.turns] == ["search"] * (len(d.turns) - 1) + [tool]
        assert d.turns[-1].queries == (request,)
        assert markup.is_well_formed(d.segments, names)
        *_, told, last = d.segments
        assert markup.extract_answer(last.text, names) == question.answers[0]
        assert told.text == f"<information>{question.answers[0]}</information>"
        shown = " ".join(s.text for s in d.segments[:-3] if s.author == "tool")
        assert set(FIGURE.findall(request)) <= set(FIGURE.findall(shown))


def test_without_its_tool_a_question_is_rejected(small, tmp_path):
    questions = tmp_path / "questions" / "train.jsonl"
    questions.parent.mkdir()
    write_jsonl(questions, read(small, "questions", QAExample)[:3])
    cfg = build_trajectories.BuildTrajectoriesRun(
        folder=str(tmp_path), kinds=("questions",), search=small.settings("")["search"]
    )
    with pytest.raises(RejectedError, match=r"^none of 3 attempts .*\(3 no_tool\)"):
        build_trajectories.run(cfg)
    cfg = dataclasses.replace(cfg, tools=TOOLS, max_searches=1)
    with pytest.raises(RejectedError, match=r"^none of 3 attempts .*\(3 no_turns_left\)"):
        build_trajectories.run(cfg)


@pytest.fixture(scope="module")
def cached(small, demonstrated):
    """The cache, written without seqio, which takes seconds to import: the same records."""
    cfg, folder = small.cfg, small.folder
    about = instructions_of(cfg.tools)
    names = [each.name for each in about]
    questions, made = (
        read(small, "questions", QAExample),
        read(small, "demonstrations", Demonstration),
    )
    texts = [s.text for d in made for s in d.segments] + [q.question for q in questions]
    train_bpe(texts, folder / "tokenizer", cfg.tokenizer_vocab_size, names)
    vocab = Vocab.load(folder / "tokenizer")
    by_id = {q.id: q for q in questions}

    def ask(question):
        return prompt.render(question, cfg.prompt.style, vocab, about)

    def sft():
        for d in made:
            ids, agent = demonstrations.tokenise(ask(by_id[d.example_id]), d, vocab)
            yield {"id": d.id, "ids": ids, "agent": agent}

    def prompts():
        for q in questions:
            ids = np.asarray(vocab.encode(ask(q)), np.int32)
            yield {"id": q.id, "ids": ids, "example": json.dumps(to_json(q))}

    limits = {"max_len": cfg.qa_sft.seq_len, "made_from": "x"}
    tasks = {
        "qa_sft_atlas": cache.write_split(folder / "cache", "qa_sft_atlas", "train", sft(),
                                          kind="sft", **limits),
        "qa_atlas": cache.write_split(folder / "cache", "qa_atlas", "train", prompts(),
                                      kind="prompt", **limits),
    }  # fmt: skip
    assert not any(split.dropped for split in tasks.values())
    manifest = cache.Manifest(
        folder=folder / "cache",
        made_from="x",
        tokenizer=vocab.fingerprint,
        vocab_size=vocab.size,
        eos_id=vocab.eos_ids[0],
        pad_id=vocab.pad_id,
        prompt_style=cfg.prompt.style,
        tasks={name: {"train": split} for name, split in tasks.items()},
        mixtures={},
        tools=cfg.tools,
    )
    manifest.save()
    return vocab


def test_what_a_tool_says_is_not_trained_on(small, cached):
    for d in read(small, "demonstrations", Demonstration)[:5]:
        ids, agent = demonstrations.tokenise("", d, cached)
        told = cached.decode(ids[~agent])
        assert told == "".join(s.text for s in d.segments if s.author == "tool")
        said = cached.decode(ids[agent][:-1])
        assert said == "".join(s.text for s in d.segments if s.author == "policy")


def sft_config(small) -> SftRun:
    cfg = small.cfg
    sft = dataclasses.replace(
        cfg.qa_sft, steps=8, curriculum="0:qa_sft_atlas", batch_size=2, log_every=1
    )
    optim = dataclasses.replace(cfg.qa_sft_optim, learning_rate=1e-2, warmup_steps=2, accumulate=1)
    every = dataclasses.replace(cfg.checkpoint, every=8)
    return SftRun(**small.settings("sft"), sft=sft, optim=optim, checkpoint=every)


@pytest.mark.slow
def test_sft_and_dapo_train_it_and_its_evaluation_tells_types_apart(
    small, cached, one_device, repository
):
    cfg = small.cfg
    train_sft.run(sft_config(small))
    losses = [row["loss"] for row in read_metrics(small.folder / "sft")]
    assert losses[-1] < 0.9 * losses[0]
    init = str(small.folder / "sft" / "checkpoints")
    argv = ["ask", f"--config={repository / 'configs' / 'ask.py'}", f"--config.init={init}"]
    assert cli.parse(ask.AskRun, argv, read_defaults=agent_settings.read).tools == TOOLS

    dapo = dataclasses.replace(
        cfg.qa_dapo, steps=1, split="train", curriculum="0:qa_atlas",
        reward="tests.rl.own_rewards:by_sample",
    )  # fmt: skip
    run = DapoRun(
        **small.settings("dapo", init),
        dapo=dapo,
        optim=cfg.qa_dapo_optim,
        checkpoint=cfg.checkpoint,
    )
    train_dapo.run(run)
    (row,) = read_metrics(small.folder / "dapo")
    assert row["searches"] == row["calls_search"]
    assert row["updates"] > 0
    kinds = ("calls", "failures", "unreadable")
    assert {f"{kind}_{name}" for kind in kinds for name in ("search", *TOOLS)} <= set(row)
    assert row["failures_calculate"] == row["failures_date"] == 0

    counts = dataclasses.replace(
        cfg.eval, suites=("questions",), methods=("agent",), examples=3, bootstrap=50
    )
    settings = small.settings("eval", init) | {"data": str(small.folder / "data")}
    found = evaluate.run(EvalRun(**settings, eval=counts))
    cells = found["breakdown"]["questions"]["agent"]["type"]
    assert set(cells) == set(TYPES)
    assert {"calls_search", "calls_calculate", "calls_date"} <= set(cells["population_sum"])


@pytest.mark.usefixtures("one_device")
def test_a_run_with_other_tools_than_its_cache_is_refused(small, cached):
    cfg = dataclasses.replace(sft_config(small), tools=("date",))
    with pytest.raises(
        cache.CacheError, match="built with tools 'calculate, date', the run has 'date'"
    ):
        train_sft.run(cfg)


def test_a_run_that_goes_on_with_other_tools_is_refused(small, cached, tmp_path):
    cfg = sft_config(small)
    run_record.write(tmp_path, cfg)
    with pytest.raises(ConfigError, match=r"tools: \['calculate', 'date'\] → \['date'\]"):
        run_record.resume(tmp_path, dataclasses.replace(cfg, tools=("date",)))

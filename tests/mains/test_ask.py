"""`ask`: one question to a folder in HF format, its searches shown while they happen."""

import dataclasses
import io
import re

import numpy as np
import optax
import pytest
from flax import nnx

from configs import common
from masksearch_jax import ask
from masksearch_jax.core import markup
from masksearch_jax.core.config import CheckpointConfig, ComputeConfig, MeshConfig, ModelConfig
from masksearch_jax.core.errors import ConfigError
from masksearch_jax.core.retrieval import SearchError
from masksearch_jax.core.schema import to_dataclass
from masksearch_jax.core.tokenizer import train_bpe
from masksearch_jax.core.types import Passage, QAExample, RampExample, Segment, Trajectory, Turn
from masksearch_jax.models import hf
from masksearch_jax.models.transformer import Transformer
from masksearch_jax.parallel.sharding import make_mesh
from masksearch_jax.runtime import cli
from masksearch_jax.search import bm25
from masksearch_jax.search.tool import FakeSearch
from masksearch_jax.training import train_state
from masksearch_jax.training.checkpoint import Checkpointer

OSLO = Passage("1", "Oslo", "Oslo is the capital of Norway, founded in 1040.")
KRONE = Passage("2", "Krone", "The krone is the currency of Norway since 1875.")


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A random model of other sizes than any config's, its tokenizer, and an index."""
    base = tmp_path_factory.mktemp("ask")
    train_bpe([OSLO.text, KRONE.text] * 3, base / "tokenizer", 400)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_layers": 2, "num_heads": 2,
             "num_kv_heads": 1, "head_dim": 16, "vocab_size": 400}  # fmt: skip
    model = to_dataclass(ModelConfig, common.MODELS["tiny"] | sizes)
    compute = ComputeConfig("float32", "float32", "xla", "none", 64)
    hf.save(Transformer(model, compute, nnx.Rngs(0)), base / "hf", tokenizer_dir=base / "tokenizer")
    bm25.build([OSLO, KRONE], base / "index")
    return base


def settings(folder, repository, question, **overrides):
    given = {"init": folder / "hf", "search.index": folder / "index", "question": question}
    given |= {"rollout.max_new_tokens": 24, "rollout.max_len": 128} | overrides
    argv = ["ask", f"--config={repository / 'configs' / 'ask.py'}"]
    return cli.parse(ask.AskRun, argv + [f"--config.{k}={v}" for k, v in given.items()])


def test_a_question_is_answered_from_a_folder_alone(folder, repository, capsys):
    cfg = settings(folder, repository, "Which currency has Norway?")
    first = ask.run(cfg)
    shown = capsys.readouterr().out
    assert re.search(rf"{len(first.turns)} searches, {int(first.sampled.sum())} tokens", shown)
    assert "\x1b" not in shown
    assert first.segments[0] == Segment("prompt", "Which currency has Norway?\n")
    assert 1 <= first.sampled.sum() <= 24
    np.testing.assert_array_equal(ask.run(cfg).ids, first.ids)  # greedy


def test_searches_are_shown_when_they_happen_and_handed_on():
    tool = FakeSearch({"currency of Norway": [KRONE, OSLO], "capital": [OSLO]})
    file = io.StringIO()
    shown = ask.ShownSearch(tool, ask.Screen(file), max_passages=2)
    assert shown.search(["currency of Norway", "capital"], 2) == [[KRONE, OSLO], [OSLO]]
    lines = [line.split() for line in file.getvalue().splitlines()]
    queries = [["search", "currency", "of", "Norway"], ["capital"]]
    assert lines == [*queries, ["Krone"], ["Oslo"]]
    assert shown.search(["else"], 2) == [[]]
    assert file.getvalue().splitlines()[-1].strip() == "nothing found"


def trajectory(text, status, turns=()):
    n = np.ones(3)
    return Trajectory(
        "q",
        0,
        n.astype(int),
        n,
        n.astype(bool),
        n.astype(int),
        0,
        (Segment("policy", text),),
        turns,
        status,
    )


def test_the_end_is_an_answer_or_a_reason():
    file = io.StringIO()
    ask.show_end(ask.Screen(file), trajectory("<answer> krone </answer>", "answered"))
    ask.show_end(ask.Screen(file), trajectory("<think>", "out_of_tokens"))
    lines = [line.strip() for line in file.getvalue().splitlines()]
    assert [lines[0], lines[2]] == ["answer  krone", "no answer (out of tokens)"]
    failed = trajectory("<search>x</search>", "tool_failure", (Turn(("x",), (), (), 1.0, "down"),))
    with pytest.raises(SearchError, match="the search failed: down"):
        ask.show_end(ask.Screen(file), failed)


def test_colour_is_for_terminals_that_want_it(monkeypatch):
    monkeypatch.delenv("NO_COLOR", raising=False)
    file = Terminal()
    ask.Screen(file).show("answer", "krone", "answer")
    assert file.getvalue() == "  answer  \x1b[1;32mkrone\x1b[0m\n"
    monkeypatch.setenv("NO_COLOR", "1")
    file = Terminal()
    ask.Screen(file).show("answer", "krone", "answer")
    assert file.getvalue() == "  answer  krone\n"


def test_a_paragraph_with_a_mask_is_filled_and_a_question_is_not():
    filled = ask.as_example(f" Oslo was founded in {markup.MASK}. ")
    assert isinstance(filled, RampExample)
    assert filled.masked == "Oslo was founded in [mask]."
    assert ask.as_example("Why?") == QAExample("question", "", "Why?", ())


def test_what_cannot_be_asked(folder, repository):
    for change, message in (
        ({"question": "  "}, r"config\.question is empty"),
        ({"init": "Qwen/Qwen2.5-1.5B"}, "'Qwen/Qwen2.5-1.5B', which is not a local folder"),
    ):
        cfg = dataclasses.replace(settings(folder, repository, "Why?"), **change)
        with pytest.raises(ConfigError, match=message):
            ask.run(cfg)
    with pytest.raises(SearchError, match="no search index"):
        ask.run(settings(folder, repository, "Why?", **{"search.index": folder / "none"}))
    with pytest.raises(ConfigError, match=r"no config\.json"):
        ask.run(settings(folder, repository, "Why?", init=folder / "tokenizer"))


def test_the_weights_may_be_split_over_devices(folder, repository):
    cfg = settings(folder, repository, "Which currency has Norway?")
    assert cfg.mesh == MeshConfig(data=1, fsdp=-1, tensor=1)
    whole = dataclasses.replace(cfg, mesh=MeshConfig(data=-1, fsdp=1, tensor=1))
    np.testing.assert_array_equal(ask.run(cfg).ids, ask.run(whole).ids)


def test_an_answer_is_streamed_as_it_is_sampled():
    file = io.StringIO()
    screen = ask.Screen(file)
    stream = ask.Stream(screen)
    said = [Segment("prompt", "Who?"), Segment("policy", "<think>caf\ufffd")]
    stream(None, said)
    assert file.getvalue() == "<think>caf"  # not half a character
    said[1] = Segment("policy", "<think>café</think>")
    stream(None, said)
    screen.show("search", "x", "search")
    assert file.getvalue() == "<think>café</think>\n  search  x\n"
    stream(None, [*said, Segment("tool", "found"), Segment("policy", "<answer>")])
    assert file.getvalue().endswith("  search  x\n<answer>")


def test_a_checkpoint_answers_as_the_same_weights_in_hf_format(folder, repository, tmp_path):
    cfg = settings(folder, repository, "Which currency has Norway?")
    model = hf.load(folder / "hf", cfg.compute, make_mesh(cfg.mesh))
    state = train_state.init_state(model, optax.sgd(0.1))
    with Checkpointer(tmp_path / "c", CheckpointConfig(1, 1), model.config) as checkpoints:
        checkpoints.save(3, state, {})
    given = {"init": tmp_path / "c", "tokenizer": folder / "tokenizer"}
    same = ask.run(settings(folder, repository, cfg.question, **given))
    assert same.ids.tolist() == ask.run(cfg).ids.tolist()
    with pytest.raises(ConfigError, match="give the folder of its tokenizer"):
        ask.run(settings(folder, repository, cfg.question, init=tmp_path / "c"))

"""`ask`: questions to a folder in HF format, its searches shown while they happen."""

import dataclasses
import io
import json
import re
import signal
import sys

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
from masksearch_jax.core.types import Passage, QAExample, RampExample, Segment
from masksearch_jax.data import prompt
from masksearch_jax.models import hf
from masksearch_jax.models.transformer import Transformer
from masksearch_jax.parallel.sharding import make_mesh
from masksearch_jax.rollout.episode import Rules
from masksearch_jax.rollout.narration import Narrator, Seen
from masksearch_jax.runtime import agent_settings, cli
from masksearch_jax.search import bm25
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


def settings(folder, repository, question="", **overrides):
    given = {"init": folder / "hf", "search.index": folder / "index", "question": question}
    given |= {"rollout.max_new_tokens": 24, "rollout.max_len": 128, "prompt.style": "minimal"}
    given |= {"rollout.extend_tokens": 64, "rollout.chunk_tokens": 32} | overrides
    argv = ["ask", f"--config={repository / 'configs' / 'ask.py'}"]
    argv += [f"--config.{k}={v}" for k, v in given.items() if v is not None]
    return cli.parse(ask.AskRun, argv, read_defaults=agent_settings.read)


def asked(cfg):
    """One trajectory, and its events."""
    told = []
    with ask.opened(cfg) as agent:
        return agent.ask(cfg.question, told.append), told


def test_a_model_stays_loaded_from_question_to_question(folder, repository, capsys, monkeypatch):
    cfg = settings(folder, repository)
    monkeypatch.setattr("sys.stdin", io.StringIO("Which currency has Norway?\n\n  Why?\n"))
    with ask.opened(cfg) as agent:
        assert ask.converse(agent, ask.Screen(sys.stdout)) == 0
        assert agent.engine.stats.trajectories == 2
        first, why = (agent.ask(q, lambda _: None) for q in ("Which currency has Norway?", "Why?"))
    shown = capsys.readouterr().out
    for found in (first, why):
        said = f"{len(found.turns)} searches, {int(found.sampled.sum())} tokens"
        assert shown.count(said) >= 1
    assert not re.search(r"\x1b|</?(think|search|answer|information)>|question>", shown)
    assert first.segments[0] == Segment("prompt", "Which currency has Norway?\n")
    assert asked(dataclasses.replace(cfg, question="Why?"))[0].ids.tolist() == why.ids.tolist()


@pytest.mark.parametrize("errors", ["strict", "surrogateescape"])  # as locales have them
def test_a_line_that_is_no_utf_8_is_told_and_the_next_is_asked(
    folder, repository, capsys, monkeypatch, errors
):
    typed = io.BytesIO("Where is Tromsø?\n".encode("latin-1") + "Où est Tromsø?\n".encode())
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(typed, encoding="utf-8", errors=errors))
    with ask.opened(settings(folder, repository)) as agent:
        assert ask.converse(agent, ask.Screen(sys.stdout)) == 1  # one was not asked
        assert agent.engine.stats.trajectories == 1
    shown = capsys.readouterr().out
    assert "the question 'Where is Troms\\udcf8?' is not valid UTF-8\n" in shown
    assert re.search(r"\d+ searches, \d+ tokens", shown.partition("valid UTF-8")[2])


TURN = "<think>é? plan</think><search>Krone\ncapital</search>"
ANSWER = "<think>Now</think><answer>krone</answer>"


def test_the_events_of_a_trajectory_are_told_once_and_without_tags():
    """However the text is cut, what is told comes to the same."""
    shown = ((KRONE, OSLO),)
    whole = [Segment("prompt", "Who?"), Segment("policy", TURN), Segment("tool", "<information>…"),
             Segment("policy", "No."), Segment("tool", "<information>Act.</information>"),
             Segment("policy", ANSWER)]  # fmt: skip
    documents = [{"id": p.id, "title": p.title, "text": p.text} for p in (KRONE, OSLO)]
    expected = [{"plan": "é? plan"}, {"search": ["Krone", "capital"]}, {"documents": documents},
                {"plan": "No."}, {"note": "Act."}, {"plan": "Now"},
                {"answer": "krone"}]  # fmt: skip
    for step in (1, 2, 5, 1000):
        narrator, told = Narrator({"search": 4}), []
        for i, segment in enumerate(whole):
            for end in range(step, len(segment.text) + step, step):
                text = segment.text[:end] + ("\ufffd" if end < len(segment.text) else "")
                text = text if segment.author == "policy" else segment.text
                told_of = (*whole[:i], Segment(segment.author, text))
                seen = Seen(told_of, (), shown[: i > 1], observed=(2,)[: i > 1])
                told += narrator.tell(seen)
        told += narrator.end(seen, "answered")
        merged = []
        for event in told:
            if "plan" in event and merged and "plan" in merged[-1]:
                merged[-1] = {"plan": merged[-1]["plan"] + event["plan"]}
            else:
                merged.append(event)
        assert merged == expected


@pytest.mark.parametrize(
    ("status", "text", "error", "said"),
    [
        ("out_of_tokens", "<think>", "", "no answer: its tokens were used up"),
        ("answered", "blue</answer>", "", "no answer: its answer is malformed"),
        ("tool_failure", "<search>x</search>", "no service", "the search failed: no service"),
    ],
)
def test_the_end_is_an_answer_or_a_reason(status, text, error, said):
    seen = Seen((Segment("policy", text),), (), ())
    assert list(Narrator({"search": 2}).end(seen, status, error))[-1] == {"failed": said}


def test_a_screen_shows_each_event_on_lines_of_its_own():
    file = io.StringIO()
    screen = ask.Screen(file)
    events = [{"plan": "a "}, {"plan": "b\x1b[2J"}, {"search": ["x", "y"]}, {"documents": []},
              {"documents": [{"id": "1", "title": "Krone", "text": "…"}]},
              {"answer": "k"}]  # fmt: skip
    for event in events:
        screen.tell(event)
    assert file.getvalue() == (
        "    plan  a b\ufffd[2J\n  search  x\n          y\n          nothing found\n"
        "          Krone\n  answer  k\n"
    )


def test_a_search_that_fails_is_said_and_is_no_answer(folder, repository, capsys, monkeypatch):
    class Down:
        def search(self, queries, top_k):
            raise SearchError("no service")

    def searches(rules, episode, *_):
        episode.segments.append(Segment("policy", "<search>Oslo</search>"))
        episode.ids.append(1), episode.logprobs.append(0.0), episode.versions.append(0)
        return ("Oslo",)

    monkeypatch.setattr(ask, "open_tool", lambda _: Down())
    monkeypatch.setattr(Rules, "read", searches)
    assert ask.run(settings(folder, repository, "Why?")) == 1
    shown = capsys.readouterr().out
    assert "search  Oslo" in shown
    assert "the search failed: SearchError: no service" in shown
    assert "answer" not in shown


def test_a_question_that_the_clock_ended_is_no_success(folder, repository, monkeypatch):
    cfg = settings(folder, repository, **{"question": "Why?", "rollout.deadline": 1e-6})
    assert ask.run(cfg) == 1
    monkeypatch.setattr("sys.stdin", io.StringIO("Why?\n"))
    assert ask.run(dataclasses.replace(cfg, question="")) == 1


def test_ctrl_c_stops_the_answer_and_the_next_is_given(folder, repository, capsys, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO("Which currency has Norway?\nWhy?\n"))
    with ask.opened(settings(folder, repository)) as agent:
        calls = []

        def interrupted():
            calls.append(1)
            if len(calls) == 2:
                signal.raise_signal(signal.SIGINT)

        agent.engine.check = interrupted
        assert ask.converse(agent, ask.Screen(sys.stdout)) == 0
        assert agent.engine.stats.trajectories == 1
    assert re.search(r"stopped\n(.*\n)*.*\d+ searches", capsys.readouterr().out)


def test_colour_is_for_terminals_that_want_it(monkeypatch):
    monkeypatch.delenv("NO_COLOR", raising=False)
    file = Terminal()
    ask.Screen(file).show("answer", "krone", "answer")
    assert file.getvalue() == "  answer  \x1b[1;32mkrone\x1b[0m\n"
    monkeypatch.setenv("NO_COLOR", "1")
    file = Terminal()
    ask.Screen(file).show("answer", "krone", "answer")
    assert file.getvalue() == "  answer  krone\n"


def test_an_agent_is_asked_as_its_folder_says_it_was_trained(folder, repository, tmp_path, capsys):
    def of(init, **given):
        cfg = settings(folder, repository, init=init, **given)
        return cfg.prompt.style, cfg.search.top_k, cfg.rollout.max_turns, cfg.compute.dtype

    free = {"prompt.style": None}
    assert of(folder / "hf", **free) == ("chat", 5, 4, "bfloat16")  # nothing is told
    told = {"prompt": {"style": "minimal"}, "search": {"top_k": 2, "timeout": 1.0},
            "rollout": {"max_turns": 1, "seed": 9}, "compute": {"dtype": "float32"}}  # fmt: skip
    (tmp_path / "hf").mkdir()
    (tmp_path / "hf" / "agent.json").write_text(json.dumps(told))
    assert of(tmp_path / "hf", **free) == ("minimal", 2, 1, "float32")
    assert of(tmp_path / "hf", **{"prompt.style": "chat", "search.top_k": 3})[:2] == ("chat", 3)
    said = capsys.readouterr().err.splitlines()[-1]
    assert said == f"  read from {tmp_path / 'hf'}: compute.dtype=float32 rollout.max_turns=1"
    (tmp_path / "run" / "checkpoints" / "7").mkdir(parents=True)
    record = {"config": told | {"optim": {}}, "content": {}, "sessions": []}
    (tmp_path / "run" / "run.json").write_text(json.dumps(record))
    for init in ("checkpoints", "checkpoints/7"):
        assert of(tmp_path / "run" / init, **free) == ("minimal", 2, 1, "float32")
    assert agent_settings.read(str(tmp_path / "run" / "checkpoints"))["search"] == {"top_k": 2}


def test_a_paragraph_with_a_mask_is_filled_and_a_question_is_not():
    filled = prompt.as_example(f" Oslo was founded in {markup.MASK}. ")
    assert isinstance(filled, RampExample)
    assert filled.masked == "Oslo was founded in [mask]."
    assert prompt.as_example("Why?") == QAExample("question", "", "Why?", ())


def test_what_cannot_be_asked(folder, repository):
    for change, message in (
        ({"init": "Qwen/Qwen2.5-1.5B"}, "'Qwen/Qwen2.5-1.5B', which is not a local folder"),
        (
            {"question": "Troms\udcf8?"},
            r"config\.question is 'Troms\\udcf8\?', whose bytes are not valid UTF-8",
        ),
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
    np.testing.assert_array_equal(asked(cfg)[0].ids, asked(whole)[0].ids)


def test_a_checkpoint_answers_as_the_same_weights_in_hf_format(folder, repository, tmp_path):
    cfg = settings(folder, repository, "Which currency has Norway?")
    model = hf.load(folder / "hf", cfg.compute, make_mesh(cfg.mesh))
    state = train_state.init_state(model, optax.sgd(0.1))
    with Checkpointer(tmp_path / "c", CheckpointConfig(1, 1), model.config) as checkpoints:
        checkpoints.save(3, state, {})
    given = {"init": tmp_path / "c", "tokenizer": folder / "tokenizer"}
    same, _ = asked(settings(folder, repository, cfg.question, **given))
    assert same.ids.tolist() == asked(cfg)[0].ids.tolist()
    with pytest.raises(ConfigError, match="give the folder of its tokenizer"):
        ask.run(settings(folder, repository, cfg.question, init=tmp_path / "c"))

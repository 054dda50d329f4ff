"""The engine: exact with a scripted model, equal to teacher forcing, deaf to search latency."""

from __future__ import annotations

import dataclasses
import itertools
import random
import re
import subprocess
import sys
import threading
import time
from pathlib import Path

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from benchmarks import rollout_model
from masksearch_jax.core import markup
from masksearch_jax.core.config import ComputeConfig, MeshConfig, ModelConfig, SearchConfig
from masksearch_jax.core.tokenizer import Vocab, train_bpe
from masksearch_jax.core.types import Demonstration, Passage
from masksearch_jax.data import demonstrations
from masksearch_jax.models import kv_cache
from masksearch_jax.models.head import token_logprobs
from masksearch_jax.models.transformer import Transformer
from masksearch_jax.parallel.sharding import make_mesh, shard_parameters
from masksearch_jax.rollout import decode
from masksearch_jax.rollout.engine import Engine
from masksearch_jax.rollout.episode import Request
from masksearch_jax.rollout.sampling import Sampler, sample
from masksearch_jax.search.tool import FakeSearch

WORDS = [
    "<eos>",
    *markup.TAG_TOKENS,
    "plan",
    "red",
    "blue",
    "green",
    "grey",
    " ",
    ":",
    "Nothing found.",
    ">",
    "</answer",
    "!\n",
]
ID = {w: i for i, w in enumerate(WORDS)}


class WordVocab:
    """Greedy longest-match over WORDS: enough to drive the engine exactly."""

    eos_ids = (0,)
    size = len(WORDS)

    def encode(self, text: str, *, literal: bool = False) -> list[int]:
        ids = []
        while text:
            words = WORDS[literal:]  # as text, `<eos>` has no word
            word = max((w for w in words if text.startswith(w)), key=len, default="")
            ids.append(ID[word or "!\n"])  # what it has no word for
            text = text[max(len(word), 1) :]
        return ids

    def decode(self, ids) -> str:
        return "".join(WORDS[i] for i in ids)

    def token_bytes(self, token_id: int) -> bytes:
        return WORDS[token_id].encode()


@flax.struct.dataclass
class ScriptedModel:
    """Says `following[t]` after token t, with logits 8 against 0; its cache is a plain array."""

    following: jax.Array

    @property
    def compute(self):
        return COMPUTE

    @property
    def config(self):
        return dataclasses.replace(MODEL, num_layers=2, vocab_size=len(self.following))

    def embed(self, ids):
        return ids[..., None].astype(jnp.float32)

    steps_per_token = 2

    def for_sampling(self, weights):
        return self

    def init_fresh(self, rows, tokens):
        return ()

    def decode_step(self, step, x, cache, fresh, table, length, backend):
        return x, fresh

    def write_cache(self, cache, fresh, table, start, count):
        return cache

    def copy_pages(self, cache, copies, source, target):
        return cache

    def final_norm(self, x):
        return x

    def logits(self, x):
        following = self.following[x[..., 0].astype(jnp.int32)]
        return 8.0 * jax.nn.one_hot(following, len(self.following))

    def extend(self, cache, ids, start, count, table):
        return None, cache

    def init_cache(self, shards, pages, page_tokens, dtype):
        return kv_cache.init_cache(MODEL, shards, pages, page_tokens, dtype)


MODEL = ModelConfig(
    family="qwen2",
    vocab_size=len(WORDS),
    hidden_size=32,
    intermediate_size=48,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_dim=8,
    rope_theta=1e4,
    rope_scaling=None,
    norm_eps=1e-6,
    qkv_bias=True,
    qk_norm=False,
    tie_embeddings=True,
    max_position=256,
)
COMPUTE = ComputeConfig("float32", "float32", "xla", "none", 64)
ROLLOUT = dataclasses.replace(
    rollout_model.ROLLOUT,
    slots=4,
    max_len=64,
    page_tokens=8,
    tick_tokens=4,
    extend_tokens=6,
    chunk_tokens=4,
    max_turns=2,
    max_new_tokens=24,
    max_observation_tokens=16,
    seed=3,
)
SEARCH = SearchConfig("bm25", "", "", 2, 2, 2, timeout=5.0, workers=4)


class Colours:
    """Finds one passage per query after a delay; scripted failures."""

    def __init__(self, delay=lambda query: 0.0, fail=()):
        self.delay, self.fail, self.asked = delay, fail, []

    def search(self, queries, top_k):
        self.asked.append(tuple(queries))
        time.sleep(self.delay(queries[0]))
        if queries[0] in self.fail:
            raise RuntimeError("index unplugged")
        return [[Passage(q, q, f"{q}:green")] for q in queries]


def chain(*words: str, **after: str) -> ScriptedModel:
    """A model that says the words one after the other."""
    following = np.zeros(len(WORDS), np.int32)
    for a, b in itertools.pairwise(words):
        following[ID[a]] = ID[b]
    return ScriptedModel(jnp.asarray(following))


def engine(search=None, *, rollout=ROLLOUT, search_config=SEARCH) -> Engine:
    return Engine(WordVocab(), search or Colours(), rollout, search_config, strict=True)


def request(text: str, stream: int = 0, sample: int = 0) -> Request:
    return Request(f"e{stream}", np.asarray(WordVocab().encode(text), np.int32), stream, sample)


GREEDY = dataclasses.replace(ROLLOUT, temperature=0.0)
SEARCHER = chain("plan", "<search>", "red", "</search>")
# `</search>` → tool → `</information>` → the answer
ANSWERER = ScriptedModel(
    SEARCHER.following.at[ID["</information>"]]
    .set(ID["<answer>"])
    .at[ID["<answer>"]]
    .set(ID["blue"])
    .at[ID["blue"]]
    .set(ID["</answer>"])
)
SAID = "<search>red</search><information>red:green</information><answer>blue</answer>"


def test_scripted_trajectory_is_exact():
    with engine(rollout=GREEDY) as e:
        (t,) = e.run(ANSWERER, [request("red blue plan")], version=7)
    said = WordVocab().encode(SAID)
    assert t.ids.tolist() == [*WordVocab().encode("red blue plan"), *said]
    assert [WORDS[i] for i in t.ids[t.sampled]] == [
        "<search>",
        "red",
        "</search>",
        "<answer>",
        "blue",
        "</answer>",
    ]
    expected = 8.0 - np.log(np.exp(8.0) + len(WORDS) - 1)
    np.testing.assert_allclose(t.logprobs[t.sampled], expected, atol=1e-6)
    assert not t.logprobs[~t.sampled].any()
    assert [(s.author, s.text) for s in t.segments] == [
        ("prompt", "red blue plan"),
        ("policy", "<search>red</search>"),
        ("tool", "<information>red:green</information>"),
        ("policy", "<answer>blue</answer>"),
    ]
    assert (t.status, t.prompt_len) == ("answered", 5)
    assert t.versions.tolist() == [7 if s else -1 for s in t.sampled]
    assert [(turn.queries, turn.passage_ids) for turn in t.turns] == [(("red",), ("red",))]


@pytest.mark.parametrize(
    ("words", "rollout", "status", "sampled"),
    [
        (("plan", "<eos>"), GREEDY, "no_answer", 1),
        (("plan", "plan"), GREEDY, "out_of_tokens", 24),
        (("plan", "plan"), dataclasses.replace(GREEDY, max_new_tokens=99), "out_of_tokens", 63),
        (
            ("plan", "<search>", "red", "</search>"),
            dataclasses.replace(GREEDY, max_turns=0),
            "out_of_turns",
            3,
        ),
    ],
)
def test_every_way_to_end(words, rollout, status, sampled):
    with engine(rollout=rollout) as e:
        (t,) = e.run(chain(*words), [request("plan")])
    assert (t.status, int(t.sampled.sum())) == (status, sampled)


def test_closing_tag_merged_with_its_neighbour_ends_the_turn_at_that_token():
    model = chain("plan", "<answer>", "red", "</answer", ">")
    with engine(rollout=GREEDY) as e:
        (t,) = e.run(model, [request("plan")])
    assert (t.status, t.segments[-1].text) == ("answered", "<answer>red</answer>")


def test_stop_table_marks_only_tokens_that_can_complete_a_stop():
    tokens = [
        b">",
        b"</think>",
        b"</answer>",
        b"r>\n",
        b"answer",
        b"x></search> y",
        b"<eos>",
        b"h>",
    ]
    table = decode.stop_table(tokens, (6,), markup.STOPS, 10)
    assert table.tolist() == [True, False, True, True, False, True, True, True, False, False]


class Malformed:
    def search(self, queries, top_k):
        return [None for _ in queries]


@pytest.mark.parametrize(
    ("search", "error"),
    [
        (Colours(fail=("red",)), "RuntimeError: index unplugged"),
        (Malformed(), "TypeError: .*"),
        (Colours(delay=lambda query: 0.5), r"no result in 0\.2 s"),
    ],
)
def test_a_failing_search_ends_its_own_trajectory_only(search, error):
    config = dataclasses.replace(SEARCH, timeout=0.2)
    with engine(search, rollout=GREEDY, search_config=config) as e:
        out = {t.example_id: t for t in e.run(ANSWERER, [request("plan", 0), request("blue", 1)])}
    assert (out["e0"].status, out["e1"].status) == ("tool_failure", "answered")
    assert re.fullmatch(error, out["e0"].turns[0].error)
    assert out["e0"].segments[-1].author == "policy"  # nothing was observed


def test_a_search_that_waits_its_turn_is_not_late():
    config = dataclasses.replace(SEARCH, timeout=1.0, workers=1)
    search = Colours(delay=lambda query: 0.35)
    with engine(search, rollout=GREEDY, search_config=config) as e:
        out = list(e.run(ANSWERER, [request("plan", i) for i in range(4)]))
    assert [t.status for t in out] == ["answered"] * 4
    assert max(t.turns[0].seconds for t in out) > 1.0


def test_a_hung_search_holds_no_worker():
    release = threading.Event()
    hangs = iter([True, False, False])
    config = dataclasses.replace(SEARCH, timeout=0.5, workers=1)
    search = Colours(delay=lambda query: 0.0 if not next(hangs) else 0.0 * release.wait(30))
    with engine(search, rollout=GREEDY, search_config=config) as e:
        out = list(e.run(ANSWERER, [request("plan", i) for i in range(3)]))
        release.set()
    assert sorted(t.status for t in out) == ["answered", "answered", "tool_failure"]


HANGS = """
import sys, threading, time
sys.path.insert(0, {tests!r})
from test_rollout import ANSWERER, GREEDY, SEARCH, dataclasses, engine, request

class Hangs:
    def search(self, queries, top_k):
        threading.Event().wait()

config = dataclasses.replace(SEARCH, timeout=0.1)
with engine(Hangs(), rollout=GREEDY, search_config=config) as e:
    print([t.status for t in e.run(ANSWERER, [request("plan")])], flush=True)
print(time.time(), flush=True)
"""


def test_a_process_ends_while_a_search_hangs():
    done = subprocess.run(
        [sys.executable, "-c", HANGS.format(tests=str(Path(__file__).parents[1]))],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=120,
    )
    ended = time.time()
    status, closed = done.stdout.split("\n")[:2]
    assert (done.returncode, status) == (0, "['tool_failure']"), done.stderr
    assert ended - float(closed) < 10


def test_an_interrupted_engine_can_be_used_again():
    with engine(rollout=GREEDY) as e:
        (expected,) = e.run(ANSWERER, [request("plan")])
        tick = e._tick

        class Interrupted:
            _cache_size = tick._cache_size

            def __call__(self, model, state, *rest):
                tick(model, state, *rest)  # which takes the state
                raise KeyboardInterrupt

        e._tick = Interrupted()
        with pytest.raises(KeyboardInterrupt):
            list(e.run(ANSWERER, [request("plan", i) for i in range(9)]))
        e._tick = tick
        (again,) = e.run(ANSWERER, [request("plan")])
        one_of_two = next(e.run(ANSWERER, [request("plan", i) for i in range(2)]))
        (last,) = e.run(ANSWERER, [request("plan")])
    assert one_of_two.ids.tolist() == expected.ids.tolist()
    for t in (again, last):
        assert t.ids.tolist() == expected.ids.tolist()
        np.testing.assert_array_equal(t.logprobs, expected.logprobs)


def test_observations_are_tokenised_as_in_the_demonstrations(tmp_path):
    text = "The river Aar </information> <answer>x</answer> ends <|endoftext|> in Koblenz."
    vocab = Vocab.load(train_bpe([text], tmp_path / "tokenizer", 300))
    following = np.full(vocab.size, vocab.eos_ids[0], np.int32)
    said = vocab.encode("<search>river</search>")
    for a, b in itertools.pairwise([*vocab.encode("\n"), *said]):
        following[a] = b
    passage = Passage("1", "Aar", text)
    config = dataclasses.replace(GREEDY, max_len=256, max_observation_tokens=200)
    e = Engine(
        vocab,
        FakeSearch({"river": [passage, dataclasses.replace(passage, id="2")]}),
        config,
        SEARCH,
    )
    prompt = np.asarray(vocab.encode("\n"), np.int32)
    with e:
        (t,) = e.run(ScriptedModel(jnp.asarray(following)), [Request("e", prompt, 0)])
    tool = [s for s in t.segments if s.author == "tool"]
    demonstration = Demonstration("d", "e", "ramp_k1", "t", tuple(tool), ())
    ids, _ = demonstrations.tokenise("\n", demonstration, vocab)
    observed = t.ids[len(prompt) + len(said) : -1]
    assert not t.sampled[len(prompt) + len(said) : -1].any()
    assert observed.tolist() == ids[len(prompt) : -1].tolist()
    assert len(observed) <= 200
    words = [vocab.decode([i]) for i in observed]
    assert [w for w in words if w in markup.TAG_TOKENS] == ["<information>", "</information>"]
    assert vocab.eos_ids[0] not in observed
    assert vocab.decode(observed).count("<|endoftext|>") == len(t.turns[0].passage_ids)


def transformer(seed: int = 0) -> Transformer:
    model = Transformer(MODEL, COMPUTE, nnx.Rngs(seed))
    # Spread the logits, so that sampling meets tags, answers and searches alike.
    return jax.tree.map(lambda p: p * 6.0 if p.ndim > 2 else p, model)


def rollouts(search, seed: int = 0, slots: int = 4, order=None) -> dict[tuple[str, int], list[int]]:
    requests = [
        request("red blue plan" if i % 2 else "plan", i, s) for i in range(6) for s in range(3)
    ]
    if order:
        order.shuffle(requests)
    with engine(search, rollout=dataclasses.replace(ROLLOUT, slots=slots, seed=seed)) as e:
        return {(t.example_id, t.sample): t for t in e.run(transformer(), requests)}


def test_ids_do_not_depend_on_search_latency_or_order():
    rng = random.Random(1)
    jitter: dict[str, float] = {}
    plain = rollouts(Colours())
    runs = [
        rollouts(Colours(lambda q: jitter.setdefault(q, rng.random() * 0.05))),
        rollouts(Colours(lambda q: 0.05 / (1 + len(q)))),
        rollouts(Colours(), order=random.Random(2)),
    ]
    assert sum(len(t.turns) for t in plain.values()) >= 3
    for run in runs:
        assert {k: t.ids.tolist() for k, t in run.items()} == {
            k: t.ids.tolist() for k, t in plain.items()
        }
    other = rollouts(Colours(), seed=4)
    assert any(other[k].ids.tolist() != plain[k].ids.tolist() for k in plain)


@pytest.mark.parametrize(
    ("sizes", "ways", "weights"),
    [
        (MeshConfig(2, 2, 2), 8, "whole"),
        (MeshConfig(2, 4, 1), 8, "whole"),
        pytest.param(MeshConfig(2, 2, 2), 8, "shared", marks=pytest.mark.slow),
        pytest.param(MeshConfig(2, 1, 2, context=2), 4, "whole", marks=pytest.mark.slow),
    ],
)
def test_a_mesh_changes_neither_tokens_nor_the_number_of_programs(sizes, ways, weights):
    cfg = dataclasses.replace(ROLLOUT, slots=8, weights=weights)
    requests = [request("plan", i, s) for i in range(6) for s in range(2)]
    with engine(rollout=cfg) as e:
        alone = {(t.example_id, t.sample): t for t in e.run(transformer(), requests)}
    mesh = make_mesh(sizes)
    model = shard_parameters(mesh, transformer())
    with engine(rollout=cfg) as e, jax.set_mesh(mesh):
        before = e.compiles
        split = list(e.run(model, requests))
        assert e.compiles == before + 1
        cache = jax.tree.leaves(e._cache)[0]
    assert cache.size == ways * np.prod(cache.sharding.shard_shape(cache.shape))
    for t in split:
        other = alone[t.example_id, t.sample]
        assert t.ids.tolist() == other.ids.tolist()
        np.testing.assert_allclose(t.logprobs, other.logprobs, atol=1e-4)


def test_logprobs_equal_a_teacher_forced_forward():
    model, positions = transformer(), jnp.arange(ROLLOUT.max_len, dtype=jnp.int32)[None]

    @jax.jit
    def forward(ids, targets, real):
        hidden = model.hidden(ids, positions, real)
        return token_logprobs(model, hidden, targets, ROLLOUT.temperature, 64)[0][0]

    found = rollouts(Colours()).values()
    for t in found:
        rows = np.zeros((3, ROLLOUT.max_len), np.int32)
        n = len(t.ids) - 1
        rows[:, :n] = t.ids[:-1], t.ids[1:], np.ones(n)
        logprobs, mask = np.asarray(forward(*rows[:, None]))[:n], t.sampled[1:]
        np.testing.assert_allclose(logprobs[mask], t.logprobs[1:][mask], atol=1e-4)
    assert sum(len(t.turns) > 0 for t in found) >= 2  # with observations in the middle


def test_each_request_ends_once_and_nothing_compiles_after_the_first_tick():
    with engine() as e:
        requests = [request("plan", i, s) for i in range(9) for s in range(2)]
        list(e.run(transformer(), requests[:1]))
        compiled = e.compiles
        out = list(e.run(transformer(), requests))
        assert e.compiles == compiled
        assert sorted((t.example_id, t.sample) for t in out) == sorted(
            (r.example_id, r.sample) for r in requests
        )
        assert e.stats.trajectories == len(out) + 1


def test_sampling_follows_the_softmax_and_its_logprobs():
    logits = jnp.log(jnp.asarray([0.5, 0.3, 0.2]))[None].repeat(4000, 0)
    stream = jnp.stack([jnp.arange(4000, dtype=jnp.uint32), jnp.zeros(4000, jnp.uint32)], 1)
    ids, logprobs = sample(logits, stream, jnp.zeros(4000, jnp.int32), np.uint32(0), Sampler(1.0))
    share = np.bincount(np.asarray(ids), minlength=3) / 4000
    np.testing.assert_allclose(share, [0.5, 0.3, 0.2], atol=4 * 0.5 / 4000**0.5)
    np.testing.assert_allclose(
        np.exp(logprobs), np.asarray([0.5, 0.3, 0.2])[np.asarray(ids)], rtol=1e-5
    )
    hot, _ = sample(logits, stream, jnp.zeros(4000, jnp.int32), np.uint32(0), Sampler(0.5))
    sharpened = np.asarray([0.25, 0.09, 0.04]) / 0.38
    np.testing.assert_allclose(
        np.bincount(np.asarray(hot), minlength=3) / 4000, sharpened, atol=4 * 0.5 / 4000**0.5
    )


def test_a_prompt_without_room_is_refused_by_name():
    with (
        engine() as e,
        pytest.raises(decode.RolloutError, match=r"'e0' has 64 tokens.*max_len is 64"),
    ):
        list(e.run(ANSWERER, [request("red" * 64)]))

"""The engine: exact with a scripted model, equal to teacher forcing, deaf to search latency."""

from __future__ import annotations

import dataclasses
import random
import threading
import time

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from masksearch_jax import markup
from masksearch_jax.config import ComputeConfig, ModelConfig, RolloutConfig, SearchConfig
from masksearch_jax.models import attention
from masksearch_jax.models.transformer import Transformer, token_logprobs
from masksearch_jax.rollout import decode
from masksearch_jax.rollout.engine import Engine, Request
from masksearch_jax.types import Passage

WORDS = [
    "<eos>",
    *markup.TAG_TOKENS,
    "plan",
    "red",
    "blue",
    "green",
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

    def encode(self, text: str) -> list[int]:
        ids = []
        while text:
            word = max((w for w in WORDS if text.startswith(w)), key=len, default="")
            ids.append(ID[word or "!\n"])  # what it has no word for
            text = text[max(len(word), 1) :]
        return ids

    def decode(self, ids) -> str:
        return "".join(WORDS[i] for i in ids)

    def token_bytes(self, id: int) -> bytes:
        return WORDS[id].encode()


@flax.struct.dataclass
class ScriptedModel:
    """Says `following[t]` after token t, with logits 8 against 0; its cache is a plain array."""

    following: jax.Array

    @property
    def config(self):
        return dataclasses.replace(MODEL, num_layers=2)

    def embed(self, ids):
        return ids[..., None].astype(jnp.float32)

    def layer(self, index):
        return index

    def block_step(self, block, x, cache, layer, positions):
        return x, cache

    def final_norm(self, x):
        return x

    def logits(self, x):
        return 8.0 * jax.nn.one_hot(self.following[x[..., 0].astype(jnp.int32)], len(WORDS))

    def extend(self, cache, ids, start, count):
        return None, cache


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
ROLLOUT = RolloutConfig(
    slots=4,
    max_len=64,
    tick_tokens=4,
    extend_tokens=6,
    max_turns=2,
    max_new_tokens=24,
    max_observation_tokens=16,
    temperature=1.0,
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
    for a, b in zip(words, words[1:], strict=False):
        following[ID[a]] = ID[b]
    return ScriptedModel(jnp.asarray(following))


def engine(search=None, *, model_config=MODEL, rollout=ROLLOUT, search_config=SEARCH) -> Engine:
    return Engine(
        WordVocab(),
        search or Colours(),
        rollout,
        search_config,
        model_cache=lambda s, t: attention.init_cache(model_config, s, t, jnp.float32),
        vocab_size=len(WORDS),
    )


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
    assert (t.status, t.policy_version, t.prompt_len) == ("answered", 7, 5)
    assert t.turns[0].queries == ("red",) and t.turns[0].passage_ids == ("red",)


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
    assert t.status == "answered" and t.segments[-1].text == "<answer>red</answer>"


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


@pytest.mark.parametrize("fault", ["raises", "hangs"])
def test_a_failing_search_ends_its_own_trajectory_only(fault):
    never = threading.Event()
    delay = (lambda q: never.wait(3.0) and 0.0 or 0.0) if fault == "hangs" else (lambda q: 0.0)
    search = Colours(delay, fail=("red",) if fault == "raises" else ())
    config = dataclasses.replace(SEARCH, timeout=0.2)
    with engine(search, rollout=GREEDY, search_config=config) as e:
        out = list(e.run(ANSWERER, [request("plan", 0), request("blue", 1)]))
        never.set()
    by_id = {t.example_id: t for t in out}
    assert by_id["e0"].status == "tool_failure" and by_id["e0"].turns[0].error
    assert by_id["e1"].status == "answered"


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


def test_logprobs_equal_a_teacher_forced_forward():
    model = transformer()
    checked = 0
    for t in rollouts(Colours()).values():
        ids = jnp.asarray(t.ids)[None]
        positions = jnp.arange(ids.shape[1], dtype=jnp.int32)[None]
        hidden = model.hidden(ids[:, :-1], positions[:, :-1], jnp.ones_like(ids[:, :-1]))
        logprobs, _ = token_logprobs(model, hidden, ids[:, 1:], ROLLOUT.temperature, 64)
        mask = t.sampled[1:]
        np.testing.assert_allclose(np.asarray(logprobs[0])[mask], t.logprobs[1:][mask], atol=1e-4)
        checked += len(t.turns) > 0
    assert checked >= 2  # trajectories with observations in the middle


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
    ids, logprobs = decode.sample(logits, stream, jnp.zeros(4000, jnp.int32), np.uint32(0), 1.0)
    share = np.bincount(np.asarray(ids), minlength=3) / 4000
    np.testing.assert_allclose(share, [0.5, 0.3, 0.2], atol=4 * 0.5 / 4000**0.5)
    np.testing.assert_allclose(
        np.exp(logprobs), np.asarray([0.5, 0.3, 0.2])[np.asarray(ids)], rtol=1e-5
    )
    hot, _ = decode.sample(logits, stream, jnp.zeros(4000, jnp.int32), np.uint32(0), 0.5)
    sharpened = np.asarray([0.25, 0.09, 0.04]) / 0.38
    np.testing.assert_allclose(
        np.bincount(np.asarray(hot), minlength=3) / 4000, sharpened, atol=4 * 0.5 / 4000**0.5
    )


def test_a_prompt_without_room_is_refused_by_name():
    with engine() as e, pytest.raises(ValueError, match="'e0' has 64 tokens.*max_len is 64"):
        list(e.run(ANSWERER, [request("red" * 64)]))

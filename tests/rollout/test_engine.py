"""The engine: exact with a scripted model, equal to teacher forcing, deaf to search latency."""

from __future__ import annotations

import dataclasses
import random
import re
import subprocess
import sys
import threading
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from masksearch_jax.core import markup
from masksearch_jax.core.config import MeshConfig
from masksearch_jax.core.tokenizer import Vocab, train_bpe
from masksearch_jax.core.tools import search_alone
from masksearch_jax.core.types import Demonstration, Passage
from masksearch_jax.data import demonstrations
from masksearch_jax.models.head import token_logprobs
from masksearch_jax.models.layout import shard_parameters
from masksearch_jax.parallel.sharding import make_mesh
from masksearch_jax.rollout import decode
from masksearch_jax.rollout.engine import Engine
from masksearch_jax.rollout.episode import Request
from masksearch_jax.rollout.sampling import Sampler, sample
from masksearch_jax.search.tool import FakeSearch
from masksearch_jax.testing.models import scripted_model
from tests.rollout.word_engine import (
    ANSWERER,
    GREEDY,
    ROLLOUT,
    SAID,
    SEARCH,
    VOCAB,
    chain,
    colours,
    engine,
    request,
    rollouts,
    transformer,
)


def test_scripted_trajectory_is_exact():
    with engine(rollout=GREEDY) as e:
        (t,) = e.run(ANSWERER, [request("red blue plan")], version=7)
    said = VOCAB.encode(SAID)
    assert t.ids.tolist() == [*VOCAB.encode("red blue plan"), *said]
    assert [VOCAB.WORDS[i] for i in t.ids[t.sampled]] == [
        "<search>",
        "red",
        "</search>",
        "<answer>",
        "blue",
        "</answer>",
    ]
    expected = 8.0 - np.log(np.exp(8.0) + VOCAB.size - 1)
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
    table = decode.stop_table(tokens, (6,), markup.stops(), 10)
    assert table.tolist() == [True, False, True, True, False, True, True, True, False, False]


class Malformed:
    def search(self, queries, top_k):
        return [None for _ in queries]


@pytest.mark.parametrize(
    ("search", "error"),
    [
        (colours(failing={"red"}), "SearchError: scripted failure of query 'red'"),
        (Malformed(), "TypeError: .*"),
        (colours(delay=lambda query: 0.5), r"no result in 0\.2 s"),
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
    search = colours(delay=lambda query: 0.35)
    with engine(search, rollout=GREEDY, search_config=config) as e:
        out = list(e.run(ANSWERER, [request("plan", i) for i in range(4)]))
    assert [t.status for t in out] == ["answered"] * 4
    assert max(t.turns[0].seconds for t in out) > 1.0


def test_a_hung_search_holds_no_worker():
    release = threading.Event()
    hangs = iter([True, False, False])
    config = dataclasses.replace(SEARCH, timeout=0.5, workers=1)
    search = colours(delay=lambda query: 0.0 if not next(hangs) else 0.0 * release.wait(30))
    with engine(search, rollout=GREEDY, search_config=config) as e:
        out = list(e.run(ANSWERER, [request("plan", i) for i in range(3)]))
        release.set()
    assert sorted(t.status for t in out) == ["answered", "answered", "tool_failure"]


HANGS = """
import dataclasses, threading, time
from tests.rollout.word_engine import ANSWERER, GREEDY, SEARCH, engine, request

class Hangs:
    def search(self, queries, top_k):
        threading.Event().wait()

config = dataclasses.replace(SEARCH, timeout=0.1)
with engine(Hangs(), rollout=GREEDY, search_config=config) as e:
    print([t.status for t in e.run(ANSWERER, [request("plan")])], flush=True)
print(time.time(), flush=True)
"""


def test_a_process_ends_while_a_search_hangs(repository):
    done = subprocess.run(
        [sys.executable, "-c", HANGS],
        cwd=repository,
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
    said = vocab.encode("<search>river</search>")
    model = scripted_model(vocab, [*vocab.encode("\n"), *said])
    passage = Passage("1", "Aar", text)
    config = dataclasses.replace(GREEDY, max_len=256, max_observation_tokens=200)
    found = FakeSearch({"river": [passage, dataclasses.replace(passage, id="2")]})
    e = Engine(vocab, search_alone(found, SEARCH), config, SEARCH)
    prompt = np.asarray(vocab.encode("\n"), np.int32)
    with e:
        (t,) = e.run(model, [Request("e", prompt, 0)])
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


def test_ids_do_not_depend_on_search_latency_or_order():
    rng = random.Random(1)
    jitter: dict[str, float] = {}
    plain = rollouts(colours())
    runs = [
        rollouts(colours(lambda q: jitter.setdefault(q, rng.random() * 0.05))),
        rollouts(colours(lambda q: 0.05 / (1 + len(q)))),
        rollouts(colours(), order=random.Random(2)),
    ]
    assert sum(len(t.turns) for t in plain.values()) >= 3
    for run in runs:
        assert {k: t.ids.tolist() for k, t in run.items()} == {
            k: t.ids.tolist() for k, t in plain.items()
        }
    other = rollouts(colours(), seed=4)
    assert any(other[k].ids.tolist() != plain[k].ids.tolist() for k in plain)


@pytest.mark.parametrize(
    ("sizes", "ways", "weights"),
    [
        (MeshConfig(2, 2, 2), 8, "whole"),
        pytest.param(MeshConfig(2, 4, 1), 8, "whole", marks=pytest.mark.slow),
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


def test_several_processes_want_a_slot_for_each_shard(monkeypatch):
    """Alone, a question has all devices; of several processes each would give them another."""
    with (
        engine(rollout=dataclasses.replace(ROLLOUT, slots=1)) as e,
        jax.set_mesh(make_mesh(MeshConfig(2), jax.devices()[:2])),
    ):
        monkeypatch.setattr(jax, "process_count", lambda: 2)
        with pytest.raises(
            decode.RolloutError, match=r"slots is 1; it must be a positive multiple of 2"
        ):
            list(e.run(transformer(), [request("plan", 0)]))


def test_logprobs_equal_a_teacher_forced_forward():
    model, positions = transformer(), jnp.arange(ROLLOUT.max_len, dtype=jnp.int32)[None]

    @jax.jit
    def forward(ids, targets, real):
        hidden = model.hidden(ids, positions, real)
        return token_logprobs(model, hidden, targets, ROLLOUT.temperature, 64)[0][0]

    found = rollouts(colours()).values()
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

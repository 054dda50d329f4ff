"""An engine over the word vocabulary: its settings, scripted models, and what it is asked."""

from __future__ import annotations

import dataclasses
import random

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from benchmarks import rollout_model
from masksearch_jax.core.config import SearchConfig
from masksearch_jax.core.tools import search_alone
from masksearch_jax.core.types import Passage, Trajectory
from masksearch_jax.models.head import token_logprobs
from masksearch_jax.models.transformer import Transformer
from masksearch_jax.rollout.engine import Engine
from masksearch_jax.rollout.episode import Request
from masksearch_jax.search.tool import FakeSearch
from masksearch_jax.testing.models import (
    FLOAT32,
    TINY_QWEN2,
    ScriptedModel,
    WordVocab,
    scripted_model,
)

VOCAB = WordVocab()
MODEL = dataclasses.replace(TINY_QWEN2, vocab_size=VOCAB.size, max_position=256)
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
GREEDY = dataclasses.replace(ROLLOUT, temperature=0.0)
OVERSUBSCRIBED = dataclasses.replace(ROLLOUT, slots=6, decode_share=(1 / 3, 1 / 2))
SEARCH = SearchConfig("bm25", "", "", 2, 2, 2, timeout=5.0, workers=4)


def colours(delay=lambda query: 0.0, failing=()) -> FakeSearch:
    """Finds one passage per query, after a delay that depends on the first query."""
    return FakeSearch(
        lambda query: [Passage(query, query, f"{query}:green")],
        latency=lambda queries: delay(queries[0]),
        failing=failing,
    )


def chain(*words: str) -> ScriptedModel:
    """A model that says the words one after the other."""
    return scripted_model(VOCAB, words_to_ids(*words))


def words_to_ids(*words: str) -> list[int]:
    return [VOCAB.WORDS.index(word) for word in words]


def engine(search=None, *, rollout=ROLLOUT, search_config=SEARCH) -> Engine:
    return Engine(
        VOCAB, search_alone(search or colours(), search_config), rollout, search_config, strict=True
    )


def request(text: str, stream: int = 0, sample: int = 0) -> Request:
    return Request(f"e{stream}", np.asarray(VOCAB.encode(text), np.int32), stream, sample)


SEARCHER = chain("plan", "<search>", "red", "</search>")
ANSWERER = scripted_model(
    VOCAB,
    words_to_ids("plan", "<search>", "red", "</search>"),  # then the tool speaks
    words_to_ids("</information>", "<answer>", "blue", "</answer>"),
)
SAID = "<search>red</search><information>red:green</information><answer>blue</answer>"
REQUESTS = [request("red blue plan" if i % 2 else "plan", i, s) for i in range(6) for s in range(3)]


def transformer(seed: int = 0) -> Transformer:
    model = Transformer(MODEL, FLOAT32, nnx.Rngs(seed))
    # Spread the logits, so that sampling meets tags, answers and searches alike.
    return jax.tree.map(lambda p: p * 6.0 if p.ndim > 2 else p, model)


def rollouts(
    search, seed: int = 0, slots: int = 4, order: random.Random | None = None
) -> dict[tuple[str, int], Trajectory]:
    """REQUESTS, in this order or shuffled, by (example, sample)."""
    requests = list(REQUESTS)
    if order:
        order.shuffle(requests)
    with engine(search, rollout=dataclasses.replace(ROLLOUT, slots=slots, seed=seed)) as e:
        return {(t.example_id, t.sample): t for t in e.run(transformer(), requests)}


def same_ids(found, plain) -> bool:
    return {k: t.ids.tolist() for k, t in found.items()} == {
        k: t.ids.tolist() for k, t in plain.items()
    }


def teacher_forced(model, t):
    """Log-probabilities float[T] of a trajectory's tokens by one whole forward; 0 for the first.

    As the trainer does it: no cache, no slots.
    """
    rows, n = np.zeros((3, 1, ROLLOUT.max_len), np.int32), len(t.ids) - 1
    rows[:, 0, :n] = t.ids[:-1], t.ids[1:], np.ones(n)
    return np.concatenate([[0.0], np.asarray(_forward(model, *rows))[0, :n]])


@jax.jit
def _forward(model, ids, targets, real):
    positions = jnp.arange(ids.shape[1], dtype=jnp.int32)[None]
    hidden = model.hidden(ids, positions, real)
    return token_logprobs(model, hidden, targets, ROLLOUT.temperature, 64)[0]

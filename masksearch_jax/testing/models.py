"""Vocabularies of a few words, and models for the rollout engine: scripted ones and random ones.

No accelerator and no downloaded weights are needed.
"""

from __future__ import annotations

import dataclasses
import itertools
import re
from collections.abc import Mapping, Sequence

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from masksearch_jax.core import markup
from masksearch_jax.core.config import ComputeConfig, ModelConfig
from masksearch_jax.core.tokenizer import Vocabulary
from masksearch_jax.models import hf, kv_cache
from masksearch_jax.models.kv_cache import KVCache
from masksearch_jax.models.transformer import Transformer

# ---- vocabularies


class WordVocab:
    """A vocabulary of whole words, `WORDS`: greedy longest match, one token each.

    Id 0 is the end of sequence. What has no word becomes the last one. With `literal`, the text of
    the end of sequence is only text, as with a real tokenizer.
    """

    WORDS = (
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
    )
    eos_ids = (0,)
    size = len(WORDS)

    def encode(self, text: str, *, literal: bool = False) -> list[int]:
        ids = []
        while text:
            words = self.WORDS[literal:]
            word = max((w for w in words if text.startswith(w)), key=len, default="")
            ids.append(self.WORDS.index(word or self.WORDS[-1]))
            text = text[max(len(word), 1) :]
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        return "".join(self.WORDS[i] for i in ids)

    def apply_chat_template(self, messages: Sequence[Mapping[str, str]]) -> str:
        return _contents(messages)

    def token_bytes(self, token_id: int) -> bytes:
        return self.WORDS[token_id].encode()


class TextVocab:
    """A vocabulary for any text: end of sequence, the tags, the given words, then the 256 bytes.

    Like a real tokenizer it encodes only valid UTF-8, and a token may be part of a character.
    """

    eos_ids = (0,)

    def __init__(self, *words: str):
        self.words = ("<eos>", *markup.TAG_TOKENS, *words)
        self.size = len(self.words) + 256

    def encode(self, text: str, *, literal: bool = False) -> list[int]:
        words = sorted(self.words[literal:], key=len, reverse=True)
        ids: list[int] = []
        for part in re.split("(" + "|".join(map(re.escape, words)) + ")", text):
            if part in words:
                ids.append(self.words.index(part))
            else:
                ids += [b + len(self.words) for b in part.encode()]
        return ids

    def token_bytes(self, token_id: int) -> bytes:
        first = len(self.words)
        return bytes([token_id - first]) if token_id >= first else self.words[token_id].encode()

    def decode(self, ids: Sequence[int]) -> str:
        return b"".join(map(self.token_bytes, ids)).decode("utf-8", "replace")

    def apply_chat_template(self, messages: Sequence[Mapping[str, str]]) -> str:
        return _contents(messages)


def _contents(messages: Sequence[Mapping[str, str]]) -> str:
    return "".join(message["content"] for message in messages)


# ---- models

TINY_QWEN2 = ModelConfig(
    family="qwen2",
    vocab_size=61,
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
    max_position=64,
)
FLOAT32 = ComputeConfig("float32", "float32", "xla", "none", 16)


def random_model(
    config: ModelConfig, compute: ComputeConfig = FLOAT32, *, seed: int = 0, scale: float = 0.2
) -> Transformer:
    """A model whose every parameter, norms and biases too, is normal with deviation `scale`."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda leaf: jnp.asarray(scale * rng.normal(size=leaf.shape), leaf.dtype),
        hf.abstract(config, compute),
    )


@flax.struct.dataclass
class ScriptedModel:
    """A model for the rollout engine that says `following[t]`, int[V], after token t.

    Its logits are 8 for that token and 0 for all others. Its cache is a plain array, unread.
    """

    following: jax.Array

    @property
    def compute(self) -> ComputeConfig:
        return FLOAT32

    @property
    def config(self) -> ModelConfig:
        return dataclasses.replace(TINY_QWEN2, vocab_size=len(self.following))

    def embed(self, ids: jax.Array) -> jax.Array:
        return ids[..., None].astype(jnp.float32)

    steps_per_token = 2

    def for_sampling(self, weights: str) -> ScriptedModel:
        return self

    def init_fresh(self, rows: int, tokens: int) -> tuple[()]:
        return ()

    def decode_step(
        self,
        step: jax.Array,
        x: jax.Array,
        cache: KVCache,
        fresh: tuple[()],
        table: jax.Array,
        length: jax.Array,
        backend: str,
    ) -> tuple[jax.Array, tuple[()]]:
        return x, fresh

    def write_cache(
        self,
        cache: KVCache,
        fresh: tuple[()],
        table: jax.Array,
        start: jax.Array,
        count: jax.Array,
    ) -> KVCache:
        return cache

    def copy_pages(
        self, cache: KVCache, copies: jax.Array, src: jax.Array, dst: jax.Array
    ) -> KVCache:
        return cache

    def final_norm(self, x: jax.Array) -> jax.Array:
        return x

    def logits(self, hidden: jax.Array) -> jax.Array:
        following = self.following[hidden[..., 0].astype(jnp.int32)]
        return 8.0 * jax.nn.one_hot(following, len(self.following))

    def extend(
        self, cache: KVCache, ids: jax.Array, start: jax.Array, count: jax.Array, table: jax.Array
    ) -> tuple[None, KVCache]:
        return None, cache

    def init_cache(self, shards: int, pages: int, page_tokens: int, dtype: str) -> KVCache:
        return kv_cache.init_cache(TINY_QWEN2, shards, pages, page_tokens, dtype)


def scripted_model(vocab: Vocabulary, *said: Sequence[int]) -> ScriptedModel:
    """A model that goes on from any token of a list of ids to the next, and otherwise ends.

    A token that several lists go on from takes the last.
    """
    following = np.full(vocab.size, vocab.eos_ids[0], np.int32)
    for ids in said:
        for token, after in itertools.pairwise(ids):
            following[token] = after
    return ScriptedModel(jnp.asarray(following))

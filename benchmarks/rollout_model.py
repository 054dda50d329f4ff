"""What the rollout benchmarks sample from: words of their own, random weights, a script of tags.

Axis key: B row, M model, V vocabulary, T time.
"""

from __future__ import annotations

import re
import time
import zlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from masksearch_jax.core import markup
from masksearch_jax.core.config import ComputeConfig, ModelConfig, SearchConfig
from masksearch_jax.core.rollout_config import RolloutConfig
from masksearch_jax.core.types import Passage
from masksearch_jax.models.transformer import Transformer
from masksearch_jax.models.unrolled import Unrolled
from masksearch_jax.rollout.episode import Request

UNKNOWN = "?"
COMPUTE = ComputeConfig("float32", "float32", "xla", "none", 64)
ROLLOUT = RolloutConfig(
    slots=64,
    decode_share=(1.0,),
    max_len=256,
    kv_tokens=0,
    page_tokens=64,
    kv_dtype="compute",
    attention="xla",
    weights="whole",
    tick_tokens=16,
    extend_tokens=64,
    chunk_tokens=16,
    max_turns=3,
    max_new_tokens=256,
    max_turn_tokens=0,
    max_observation_tokens=64,
    answer_tokens=0,
    corrections=0,
    temperature=1.0,
    top_k=0,
    top_p=1.0,
    min_p=0.0,
    max_repeats=0,
    deadline=0.0,
    in_flight="drop",
    max_staleness=0,
    seed=0,
)
SEARCH = SearchConfig("bm25", "", "", 1, 1, 1, timeout=60.0, workers=64)


class Words:
    """Token 0 is `<eos>`, then the tags, `?`, and words `w0000`, `w0001` ... up to `size`."""

    eos_ids = (0,)
    first_word = 2 + len(markup.TAG_TOKENS)

    def __init__(self, size: int):
        words = (f"w{i:04d}" for i in range(size - self.first_word))
        self.words = ["<eos>", *markup.TAG_TOKENS, UNKNOWN, *words]
        self.ids = {word: i for i, word in enumerate(self.words)}
        tags = "|".join(map(re.escape, markup.TAG_TOKENS))
        self._word = re.compile(rf"{tags}|w\d{{4}}|.", re.DOTALL)

    @property
    def size(self) -> int:
        return len(self.words)

    def encode(self, text: str, *, literal: bool = False) -> list[int]:
        """No text is `<eos>`, so that literal text is like any other."""
        return [self.ids.get(w, self.ids[UNKNOWN]) for w in self._word.findall(text)]

    def decode(self, ids: Sequence[int]) -> str:
        return "".join(self.words[i] for i in ids)

    def token_bytes(self, token_id: int) -> bytes:
        return self.words[token_id].encode()


class Wordless:
    """A vocabulary without tags or an end: sampling goes on to its limit."""

    eos_ids = ()

    def __init__(self, size: int):
        self.size = size

    def encode(self, text: str, *, literal: bool = False) -> list[int]:
        return []

    def decode(self, ids: Sequence[int]) -> str:
        return "." * len(ids)

    def token_bytes(self, token_id: int) -> bytes:
        return b"."


class SlowSearch:
    """Finds one passage of `words` words for a query, after `seconds(query)`."""

    def __init__(self, words: int, seconds: Callable[[str], float]):
        self.words, self.seconds = words, seconds

    def search(self, queries: Sequence[str], top_k: int) -> list[list[Passage]]:
        time.sleep(max(self.seconds(q) for q in queries))
        return [[self._passage(q)] for q in queries]

    def _passage(self, query: str) -> Passage:
        """Starts with its title, so that it is shown as it is."""
        first = zlib.crc32(query.encode())
        words = [f"w{(first + i) % 16:04d}" for i in range(self.words)]
        return Passage(query, words[0], "".join(words))


def log_normal(seed: int, median: float, p99: float) -> Callable[[str], float]:
    """Seconds of a query: one draw per query and seed, of that median and 99th percentile."""
    sigma = np.log(p99 / median) / 2.326  # the normal distribution's 99th percentile

    def seconds(query: str) -> float:
        draw = np.random.default_rng([seed, zlib.crc32(query.encode())]).standard_normal()
        return float(median * np.exp(sigma * draw))

    return seconds


def qwen2(vocab: int, hidden: int, intermediate: int, layers: int, heads: int) -> ModelConfig:
    """A Qwen2 architecture of these sizes, with two kv heads and tied embeddings."""
    return ModelConfig(
        family="qwen2",
        vocab_size=vocab,
        hidden_size=hidden,
        intermediate_size=intermediate,
        num_layers=layers,
        num_heads=heads,
        num_kv_heads=2,
        head_dim=hidden // heads,
        rope_theta=1e6,
        rope_scaling=None,
        norm_eps=1e-6,
        qkv_bias=True,
        qk_norm=False,
        tie_embeddings=True,
        max_position=2048,
    )


def transformer(config: ModelConfig, seed: int = 0) -> Transformer:
    return Transformer(config, COMPUTE, nnx.Rngs(seed))


def parameters(model: Any) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(model))


class At(NamedTuple):
    """A row's hidden state and the time of its token, which the engine passes on unseen."""

    hidden: jax.Array  # [B, M]
    time: jax.Array  # int32[B]


@flax.struct.dataclass
class Scripted:
    """The transformer, computed in full, but tags stand where the script has them.

    `script` int32[T]: the token at each time, or -1 for a word that the transformer draws.
    """

    inner: Transformer | Unrolled
    script: jax.Array
    first_word: int = flax.struct.field(pytree_node=False)

    @property
    def config(self) -> ModelConfig:
        return self.inner.config

    @property
    def compute(self) -> ComputeConfig:
        return self.inner.compute

    def embed(self, ids: jax.Array) -> At:
        return At(self.inner.embed(ids), jnp.zeros_like(ids))

    def for_sampling(self, weights: str) -> Scripted:
        return self

    @property
    def steps_per_token(self) -> int:
        return self.inner.steps_per_token

    def init_fresh(self, rows: int, tokens: int) -> Any:
        return self.inner.init_fresh(rows, tokens)

    def decode_step(self, step, x: At, cache, fresh, table, length, backend):
        hidden, fresh = self.inner.decode_step(step, x.hidden, cache, fresh, table, length, backend)
        return At(hidden, length + step // self.steps_per_token), fresh

    def write_cache(self, cache, fresh, table, start, count):
        return self.inner.write_cache(cache, fresh, table, start, count)

    def copy_pages(self, cache, copies, src, dst):
        return self.inner.copy_pages(cache, copies, src, dst)

    def final_norm(self, x: At) -> At:
        return At(self.inner.final_norm(x.hidden), x.time)

    def logits(self, x: At) -> jax.Array:
        logits = self.inner.logits(x.hidden)
        said = self.script[jnp.minimum(x.time + 1, len(self.script) - 1)][:, None]
        ids = jnp.arange(logits.shape[-1])[None]
        allowed = jnp.where(said >= 0, ids == said, ids >= self.first_word)
        return jnp.where(allowed, logits, -1e9)

    def extend(self, cache, ids, start, count, table):
        return self.inner.extend(cache, ids, start, count, table)

    def init_cache(self, shards: int, pages: int, page_tokens: int, dtype: str = ""):
        return self.inner.init_cache(shards, pages, page_tokens, dtype)


def search_script(
    vocab: Words, *, prompt: int, searches: int, turn: int, observation: int, query: int
) -> np.ndarray:
    """int32[T]: turns of `turn` tokens, each ended by a search of `query` words, then an answer.

    Prompt and observations have fixed lengths, so that a time says where in its turn a row is.
    """
    tag = vocab.ids
    search = [-1] * (turn - query - 2) + [tag["<search>"]] + [-1] * query + [tag["</search>"]]
    answer = [-1] * (turn - 3) + [tag["<answer>"], -1, tag["</answer>"]]
    script = [-1] * prompt + searches * (search + [-1] * observation) + answer
    return np.asarray(script, np.int32)


def requests(
    vocab_size: int, lengths: Sequence[int], *, first_word: int = 0, samples: int = 1, seed: int = 0
) -> list[Request]:
    """A prompt of random words per length, and `samples` requests for each."""
    draw = np.random.default_rng(seed)
    prompts = [draw.integers(first_word, vocab_size, n).astype(np.int32) for n in lengths]
    return [Request(f"e{i}", p, i, s) for i, p in enumerate(prompts) for s in range(samples)]

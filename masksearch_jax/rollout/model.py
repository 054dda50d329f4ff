"""What rollouts ask of a model: a policy gives the weights that ticks read.

Axis key: N shards, R rows of a shard, B = N·R rows shard by shard, T time, M model, V vocabulary,
W pages of a row. The cache and the fresh tokens are pytrees of the model's own; nobody else looks
into them.
"""

from __future__ import annotations

from typing import Any, Protocol, TypeVar

import jax

from masksearch_jax.core.config import ComputeConfig, ModelConfig

Cache = TypeVar("Cache")  # keys and values of what the host has put in pages
Fresh = TypeVar("Fresh")  # those of a tick's own tokens, not yet in the cache


class Policy(Protocol):
    """A model that an engine samples from."""

    def for_sampling(self, weights: str) -> SamplingModel[Any, Any]:
        """What ticks read under the mesh in force, as `rollout.weights` says."""
        ...


class SamplingModel(Protocol[Cache, Fresh]):
    """Weights as ticks read them, a pytree."""

    @property
    def config(self) -> ModelConfig: ...

    @property
    def compute(self) -> ComputeConfig: ...

    @property
    def steps_per_token(self) -> int:
        """How many of `decode_step` make a token."""
        ...

    def embed(self, ids: jax.Array) -> jax.Array:
        """[..., M] of ids [...]."""
        ...

    def final_norm(self, x: jax.Array) -> jax.Array: ...

    def logits(self, hidden: jax.Array) -> jax.Array:
        """float32[..., V] of normed [..., M]."""
        ...

    def init_cache(self, shards: int, pages: int, page_tokens: int, dtype: str) -> Cache: ...

    def copy_pages(self, cache: Cache, copies: jax.Array, src: jax.Array, dst: jax.Array) -> Cache:
        """The cache with page src[N, c] written over dst[N, c], for c below copies[N]."""
        ...

    def extend(
        self, cache: Cache, ids: jax.Array, start: jax.Array, count: jax.Array, table: jax.Array
    ) -> tuple[jax.Array | None, Cache]:
        """Hidden states of ids[B, T], and the cache with the first count[B] at times start[B].."""
        ...

    def init_fresh(self, rows: int, tokens: int) -> Fresh: ...

    def decode_step(
        self,
        step: jax.Array,
        x: jax.Array,
        cache: Cache,
        fresh: Fresh,
        table: jax.Array,
        length: jax.Array,
        backend: str,
    ) -> tuple[jax.Array, Fresh]:
        """Step `step` of x[B, M], one token per row after length[B] in the cache and the fresh."""
        ...

    def write_cache(
        self, cache: Cache, fresh: Fresh, table: jax.Array, start: jax.Array, count: jax.Array
    ) -> Cache:
        """The cache with the first count[B] fresh tokens of each row at times start[B].."""
        ...

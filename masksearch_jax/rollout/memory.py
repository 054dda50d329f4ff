"""How much memory the KV cache takes: one count for the engine and for planning a run."""

from __future__ import annotations

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from masksearch_jax.core.config import ComputeConfig, ModelConfig
from masksearch_jax.core.rollout_config import RolloutConfig
from masksearch_jax.rollout import schedule
from masksearch_jax.rollout.decode import RolloutError


class Room(NamedTuple):
    """What a KV cache takes and what it holds, on all devices together."""

    bytes: int
    tokens: int
    longest: int  # trajectories of rollout.max_len that it holds; shorter ones: more
    slots_that_fit: int  # of that length, in the free bytes


def cache_dtype(cfg: RolloutConfig, compute: ComputeConfig) -> str:
    return compute.dtype if cfg.kv_dtype == "compute" else cfg.kv_dtype


def page_bytes(config: ModelConfig, page_tokens: int, dtype: str) -> int:
    """Bytes of one page's keys and values, over all layers; with the scales of int8."""
    heads = 2 * config.num_layers * config.num_kv_heads * page_tokens
    scales = 4 if dtype == "int8" else 0
    return heads * (config.head_dim * jnp.dtype(dtype).itemsize + scales)


def room(config: ModelConfig, cfg: RolloutConfig, shards: int, dtype: str, free: int) -> Room:
    """Of the cache that `cfg` asks for; `free` bytes may be those of several devices."""
    sizes = schedule.sizes(cfg, shards)
    page = page_bytes(config, cfg.page_tokens, dtype)
    return Room(
        bytes=shards * sizes.pages * page,
        tokens=shards * sizes.pages * cfg.page_tokens,
        longest=shards * (sizes.pages // sizes.width),
        slots_that_fit=shards * max(0, free // (shards * sizes.width * page)),
    )


def check_room(config: ModelConfig, cfg: RolloutConfig, shards: int, dtype: str) -> None:
    """Raises RolloutError where devices that report their memory have no room for the cache."""
    stats = [d.memory_stats() for d in jax.local_devices()]
    if not all(s and "bytes_limit" in s for s in stats):
        return  # CPUs do not say
    free = sum(s["bytes_limit"] - s["bytes_in_use"] for s in stats) * jax.process_count()
    needs = room(config, cfg, shards, dtype, free)
    if needs.bytes > free:
        raise RolloutError(
            f"rollout: a KV cache of {needs.tokens:,} tokens in {dtype} takes "
            f"{math.ceil(needs.bytes / 2**20):,} MiB, and {free / 2**20:,.0f} MiB are free: "
            f"{needs.slots_that_fit} slots of rollout.max_len {cfg.max_len} fit; set "
            "rollout.kv_tokens, lower rollout.slots or take rollout.kv_dtype int8"
        )

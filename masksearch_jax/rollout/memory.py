"""How many slots a device has room for: one count for the engine and for planning a run."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp

from masksearch_jax.config import ModelConfig, RolloutConfig


def slot_bytes(config: ModelConfig, length: int, dtype: str) -> int:
    """Bytes of one slot's keys and values, over all layers; with the scales of int8."""
    heads = 2 * config.num_layers * config.num_kv_heads * length
    scales = 4 if dtype == "int8" else 0
    return heads * (config.head_dim * jnp.dtype(dtype).itemsize + scales)


def slots_that_fit(config: ModelConfig, length: int, dtype: str, free: int) -> int:
    """Slots of `length` tokens that fit in `free` bytes, which may be those of several devices."""
    return max(0, free // slot_bytes(config, length, dtype))


def check(model: Any, slots: int, cfg: RolloutConfig, dtype: str) -> None:
    """Raises ValueError where the devices report their memory and the slots do not fit in it."""
    stats = [d.memory_stats() for d in jax.local_devices()]
    if not all(s and "bytes_limit" in s for s in stats):
        return  # CPUs do not say
    free = sum(s["bytes_limit"] - s["bytes_in_use"] for s in stats) * jax.process_count()
    dtype = dtype or model.compute.dtype
    fit = slots_that_fit(model.config, cfg.max_len, dtype, free)
    if slots > fit:
        size = slot_bytes(model.config, cfg.max_len, dtype)
        raise ValueError(
            f"rollout: {slots} slots of {cfg.max_len} tokens in {dtype} take "
            f"{math.ceil(slots * size / 2**20):,} MiB, and {free / 2**20:,.0f} MiB are free: {fit} "
            "slots fit; lower rollout.slots or rollout.max_len, or take rollout.kv_dtype int8"
        )

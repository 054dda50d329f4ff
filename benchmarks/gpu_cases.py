"""What both sides of benchmarks/gpu.py are given and how their time is taken."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np

from configs import common
from masksearch_jax.core.config import ModelConfig
from masksearch_jax.core.schema import to_dataclass
from masksearch_jax.planning import flops

PEAK = 989.4e12  # FLOP/s in bfloat16 without sparsity, of an H100 or H200 SXM by its datasheet
ROWS, CONTEXTS, TICK, PAGE = (64, 256), (2048, 4096), 32, 128
LENGTH, PACKED, RECORDS = 4096, 16, (200, 1500)  # tokens of a row, rows, tokens of their records
MICRO = 4


def shape() -> ModelConfig:
    return to_dataclass(ModelConfig, common.model("qwen2.5-1.5b"))


def packed_batch(config: ModelConfig) -> dict[str, np.ndarray]:
    """Rows full of records of random ids, each a segment; half of the tokens count."""
    draw = np.random.default_rng(0)
    shape_ = (PACKED, LENGTH)
    segments, positions = np.zeros(shape_, np.int32), np.zeros(shape_, np.int32)
    for row in range(PACKED):
        at, number = 0, 0
        while at < LENGTH:
            size, number = min(int(draw.integers(*RECORDS)), LENGTH - at), number + 1
            segments[row, at : at + size], positions[row, at : at + size] = number, np.arange(size)
            at += size
    return {
        "ids": draw.integers(0, config.vocab_size, shape_, np.int32),
        "targets": draw.integers(0, config.vocab_size, shape_, np.int32),
        "segment_ids": segments,
        "positions": positions,
        "loss_weights": draw.choice([0.2, 1.0], shape_).astype(np.float32),
    }


def train_flops(config: ModelConfig, batch: dict[str, np.ndarray]) -> float:
    return sum(
        flops.of_training(config, int(size), int(size))
        for row in batch["segment_ids"]
        for size in np.unique(row, return_counts=True)[1]
    )


def seconds(call: Callable[[], Any], repeats: int) -> list[float]:
    """Of each of so many calls, each waiting for what it began; the first two are left out."""
    found = []
    for _ in range(repeats + 2):
        started = time.perf_counter()
        call()
        found.append(time.perf_counter() - started)
    return found[2:]

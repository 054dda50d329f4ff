"""One update of SFT or DAPO of a tiny model: its rows and its losses."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from masksearch_jax import train_dapo, train_sft
from masksearch_jax.core.config import DapoRun
from masksearch_jax.core.schema import to_dataclass
from masksearch_jax.runtime import cli
from masksearch_jax.testing.models import FLOAT32, TINY_QWEN2

COMPUTE = dataclasses.replace(FLOAT32, remat="block")
MODEL = dataclasses.replace(TINY_QWEN2, vocab_size=48, hidden_size=16, intermediate_size=24)
ROWS, TIME = 8, 12


def batch() -> dict[str, np.ndarray]:
    """Packed rows whose weights, masks and advantages all differ, for either loss."""
    rng = np.random.default_rng(0)
    ids = rng.integers(0, MODEL.vocab_size, (ROWS, TIME + 1), np.int32)
    sampler = rng.normal(-4.0, 0.3, (ROWS, TIME)).astype(np.float32)
    return {
        "ids": ids[:, :-1],
        "targets": ids[:, 1:],
        "positions": np.tile(np.int32([*range(7), *range(5)]), (ROWS, 1)),
        "segment_ids": np.tile(np.int32([1] * 7 + [2] * 3 + [0] * 2), (ROWS, 1)),
        "loss_weights": rng.choice(np.float32([0, 0.2, 1]), (ROWS, TIME)),
        "loss_mask": rng.random((ROWS, TIME)) < np.linspace(0.1, 0.9, ROWS)[:, None],
        "advantages": rng.normal(size=ROWS).astype(np.float32),
        "logp_sampler": sampler,
        "logp_old": sampler + rng.normal(0, 0.1, (ROWS, TIME)).astype(np.float32),
        "logp_ref": sampler + rng.normal(0, 0.2, (ROWS, TIME)).astype(np.float32),
    }


def losses(**switches: Any) -> dict[str, Callable]:
    """The loss functions of both trainers; switches: of DAPO's."""
    path = Path(__file__).parents[2] / "configs" / "ramp_dapo.py"
    dapo = to_dataclass(DapoRun, cli.load_config(f"{path}:tiny")).dapo
    return {
        "sft": train_sft.make_loss_fn(COMPUTE),
        "dapo": train_dapo.make_loss_fn(
            COMPUTE, dataclasses.replace(dapo, minibatches=2, **switches), 1.0
        ),
    }

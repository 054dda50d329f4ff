"""What a training run is watched by: where its figures go."""

from __future__ import annotations

import dataclasses

from masksearch_jax.core.schema import key

LOGS = ("jsonl", "tensorboard", "wandb")


@dataclasses.dataclass(frozen=True)
class LogConfig:
    """Where a training run's figures go; process 0 alone writes."""

    to: tuple[str, ...] = key(
        ("jsonl",),
        (
            "Of jsonl (WORKDIR/metrics.jsonl, always), tensorboard (WORKDIR/tensorboard) and wandb "
            "(Weights & Biases; WANDB_MODE=offline keeps it on this machine)."
        ),
        harmless=True,
    )
    project: str = key("masksearch_jax", "Of Weights & Biases.", harmless=True)

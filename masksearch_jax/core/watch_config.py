"""What a training run is watched by: where its figures go, held-out examples, alarms."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Literal

from masksearch_jax.core.schema import key, keys_but, seed_key, share

LOGS = ("jsonl", "tensorboard", "wandb")


@dataclasses.dataclass(frozen=True)
class LogConfig:
    """Where a training run's figures go; process 0 alone writes."""

    to: tuple[str, ...] = key(
        ("jsonl",),
        (
            "Of jsonl (WORKDIR/metrics.jsonl, always), tensorboard (WORKDIR/tensorboard), wandb "
            "(Weights & Biases; WANDB_MODE=offline keeps it on this machine) and loggers of your "
            "own, package.module:Class."
        ),
        harmless=True,
    )
    project: str = key("masksearch_jax", "Of Weights & Biases.", harmless=True)


@dataclasses.dataclass(frozen=True)
class HeldoutConfig:
    """Held-out examples that a training run is measured on."""

    every: int = key(0, "Steps between measurements, the last step has one too; 0: none.", least=0)
    data: str = key(
        "",
        "Folder that build_ramp wrote: its ramp/heldout.jsonl and questions/heldout.jsonl.",
        content="sampled",
    )
    examples: int = key(
        64,
        "Masked paragraphs of each number of masks, and questions; the same every time.",
        least=1,
    )
    temperature: float = key(1.0, "Of their rollouts, in place of rollout.temperature.", least=0)
    seed: int = seed_key("Of the choice of examples.")


@dataclasses.dataclass(frozen=True)
class AlarmsConfig:
    """Figures beyond which a training run has gone wrong; 0: that alarm is off.

    They change the result of a run that they roll back; where the action is another one, a resumed
    run may change them.
    """

    action: Literal["warn", "stop", "rollback"] = key(
        "warn",
        (
            "Say so; end the run with 1; or, of DAPO, go back to the last checkpoint whose weights "
            "are from before the alarm, with a lower learning rate and another seed of sampling."
        ),
    )
    steps: int = key(3, "Steps in a row beyond a threshold that are an alarm.", least=1)
    rollbacks: int = key(
        2, "Rollbacks of a run; the next alarm ends the run with 1.", harmless=True, least=0
    )
    rollback_lr: float = share(0.5, "Learning rate after a rollback / before it.")
    answer_length: float = key(0.0, "Words of answers / of the right ones; rings above.", least=0)
    answers: float = key(0.0, "Answers that a trajectory opens; rings above.", least=0)
    enumeration: float = share(0.0, "Share of answers that list alternatives; rings above.")
    tags: float = key(0.0, "Tags that a turn opens; rings above.", least=0)
    copied: float = share(
        0.0,
        "Share of an answer that is copied from what search showed; rings above.",
    )
    entropy: float = key(0.0, "Entropy of sampled tokens, nats; rings below.", least=0)
    repetition: float = share(0.0, "Share of trajectories that repeat themselves; rings above.")
    invalid: float = key(0.0, "Malformed turns of a trajectory; rings above.", least=0)
    searches: float = key(0.0, "Searches of a trajectory; rings below.", least=0)
    thoughts: float = share(0.0, "Share of turns that begin with a thought; rings below.")
    sampler_gap: float = key(
        0.0,
        "Gap between log-probabilities of trainer and sampler; rings above.",
        least=0,
    )
    grad_norm: float = key(0.0, "Norm of the gradient before clipping; rings above.", least=0)
    diversity: float = share(0.0, "Share of different answers in a group; rings below.")
    plateau: int = key(0, "Held-out measurements without a better one; rings at as many.", least=0)

    def idle(self) -> Iterator[tuple[str, str]]:
        """See `Switched`."""
        of_all = ("action", "steps", "rollbacks", "rollback_lr")
        if not any(getattr(self, name) for name in keys_but(AlarmsConfig, *of_all)):
            for name in of_all:
                yield name, "it is read with an alarm that is on, such as config.alarms.entropy"
        if self.action != "rollback":
            for name in ("rollbacks", "rollback_lr"):
                yield name, "it is read with config.alarms.action=rollback"

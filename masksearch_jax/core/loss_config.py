"""The keys of section `dapo` that choose the loss; the defaults are DAPO's."""

from __future__ import annotations

import dataclasses
from typing import Literal

from masksearch_jax.core.schema import key, share


@dataclasses.dataclass(frozen=True, kw_only=True)
class LossConfig:
    """How rewards become advantages, and these a loss. Formulas and sources are in docs/dapo.md."""

    advantage: Literal["group", "group_no_std", "rloo", "batch"] = key(
        "group",
        (
            "Reward less the group's mean, over the group's deviation (group), as it is "
            "(group_no_std), or over the deviation of the whole step (batch); or less the mean of "
            "the other samples (rloo)."
        ),
    )
    ratio: Literal["token", "sequence"] = key(
        "token",
        "Policy now over policy before, by token, or its geometric mean over a sample (GSPO).",
    )
    aggregation: Literal["token", "sequence", "fixed"] = key(
        "token",
        (
            "Mean over all tokens; over samples, of the mean over a sample's tokens; or over "
            "samples, of the sum over a sample's tokens / fixed_length."
        ),
    )
    fixed_length: int = key(
        0,
        "Of aggregation=fixed: tokens that a sample's sum is divided by; needed there.",
        least=0,
    )
    clip_low: float = share(0.2, "The ratio is clipped at 1 - clip_low; the paper's.")
    clip_high: float = key(0.28, "The ratio is clipped at 1 + clip_high; the paper's.", least=0)
    dual_clip: float = key(
        0.0, "A negative advantage counts so many times at most, above 1; 0: any number of times."
    )
    tis_cap: float = key(2.0, "Cap of the truncated importance weight.", least=0)
    proximal: Literal["step", "sampler"] = key(
        "step",
        (
            "The policy that the ratio is taken to: that of the step's start, older tokens "
            "weighted (decoupled); or the one that sampled the token, without a weight."
        ),
    )
    kl: Literal["none", "k1", "k3", "positive"] = key(
        "none",
        (
            "Penalty on the divergence from the weights that the run starts from, in the advantage "
            "(k1) or in the loss (k3); or from the step's policy, on tokens of positive advantage "
            "whose ratio fell below 1 - clip_low (positive)."
        ),
    )
    kl_weight: float = key(0.001, "Of that penalty.")
    likelihood_floor: float = key(
        0.0, "Weight of the fall of log-probabilities in samples of no negative advantage."
    )
    sequence_gap: float = key(
        0.0,
        (
            "Samples are left out whose log-probabilities by trainer and sampler differ by more in "
            "the mean over their tokens, nats; 0: none are."
        ),
    )

"""The keys of section `dapo` that choose the loss; the defaults are DAPO's."""

from __future__ import annotations

import dataclasses
from typing import Literal

from masksearch_jax.core.errors import ConfigError
from masksearch_jax.core.schema import check_idle, key, share


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
    kl_weight: float = key(0.001, "Weight of the penalty `kl`.")
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


def check_loss(cfg: LossConfig, minibatches: int) -> None:
    """Raises ConfigError for switches of the loss that contradict each other or do nothing."""
    if (cfg.aggregation == "fixed") != (cfg.fixed_length > 0):
        raise ConfigError(
            f"config.dapo.aggregation is {cfg.aggregation}, and dapo.fixed_length is "
            f"{cfg.fixed_length}: aggregation=fixed needs a length, such as "
            "rollout.max_new_tokens, and the others read none (0)"
        )
    if cfg.dual_clip and cfg.dual_clip <= 1:
        raise ConfigError(f"config.dapo.dual_clip is {cfg.dual_clip}; it must be above 1, or 0")
    if cfg.kl != "none" and not cfg.kl_weight:
        raise ConfigError(f"config.dapo.kl is {cfg.kl}, which does nothing with dapo.kl_weight 0")
    if cfg.tis_cap <= 0:
        raise ConfigError(
            f"config.dapo.tis_cap is {cfg.tis_cap}; it must be above 0: no token would count"
        )
    for name in ("kl_weight", "likelihood_floor", "sequence_gap"):
        if getattr(cfg, name) < 0:
            raise ConfigError(f"config.dapo.{name} is {getattr(cfg, name)}; it must not be below 0")
    if cfg.kl == "none":
        instead = "choose dapo.kl=k1, k3 or positive"
        check_idle(cfg, "config.dapo", "dapo.kl=none", instead, kl_weight=0.0)
    if cfg.proximal == "sampler":
        instead = "choose dapo.proximal=step"
        check_idle(cfg, "config.dapo", "dapo.proximal=sampler", instead, tis_cap=None)
    still = {
        "ratio": cfg.ratio == "sequence",
        "kl": cfg.kl == "positive",
        "likelihood_floor": cfg.likelihood_floor > 0,
        "dual_clip": cfg.dual_clip > 0,
    }
    if minibatches == 1 and cfg.proximal == "step":
        because = "dapo.minibatches 1: the policy of the step's start is then the policy now"
        instead = "choose more minibatches or dapo.proximal=sampler"
        for name in [name for name, on in still.items() if on]:
            raise ConfigError(
                f"config.dapo.{name} is {getattr(cfg, name)}, which does nothing with {because}; "
                f"{instead}"
            )
        check_idle(cfg, "config.dapo", because, instead, clip_low=None, clip_high=None)

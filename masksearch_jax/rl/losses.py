"""Token-level losses as (sum, count, metrics): the caller divides once, over the global batch.

A mean of micro-batch means is another loss, since micro-batches hold unequal numbers of tokens.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from masksearch_jax.core.config import DapoConfig

Metrics = dict[str, tuple[jax.Array, jax.Array]]
Loss = tuple[jax.Array, jax.Array, Metrics]  # sum, count, and sum and count of each figure

# exp(20) is far outside any clip range; the bound only keeps an outlier from overflowing float32.
_MAX_LOG_RATIO = 20.0


def sft_loss(logprobs: jax.Array, loss_weights: jax.Array) -> Loss:
    """Weighted negative log-likelihood: -Σ w·logp and Σ w.

    logprobs: float32[B, T] of the target tokens. loss_weights: [B, T], 1 on the agent's tokens,
    less on others, 0 on padding. Positions of weight 0 contribute nothing, whatever their value.
    metrics: `agent_nll`, mean over the tokens of weight 1, and `agent_confident`, the share of
    these that got more than half of the probability.
    """
    weights = loss_weights.astype(jnp.float32)
    nll = jnp.where(weights > 0, -logprobs, 0.0)
    agent = (weights >= 1).astype(jnp.float32)
    agents = agent.sum()
    metrics = {
        "agent_nll": (jax.lax.stop_gradient(agent * nll).sum(), agents),
        "agent_confident": (jnp.where(nll < jnp.log(2.0), agent, 0.0).sum(), agents),
    }
    return (weights * nll).sum(), weights.sum(), metrics


def dapo_loss(
    logp: jax.Array,
    logp_old: jax.Array,
    logp_sampler: jax.Array,
    advantages: jax.Array,
    loss_mask: jax.Array,
    cfg: DapoConfig,
    entropy: jax.Array | None = None,
) -> Loss:
    """-Σ m·w·min(r·A, clip(r, 1-low, 1+high)·A) and Σ m: DAPO (arXiv 2503.14476, eq. 8).

    logp, logp_old, logp_sampler: float32[B, T] under the policy now, the policy at the start of the
    step, and the sampler, all at the sampling temperature; gradients flow through `logp` only.
    advantages: [B] or [B, T]. loss_mask: [B, T], true on tokens that the policy sampled.
    r = exp(logp - logp_old), w = min(exp(logp_old - logp_sampler), tis_cap) without gradient. A
    token whose sampler log-probability is not finite is dropped from sum and count. `entropy`
    [B, T] is only reported.
    """
    old, sampler = jax.lax.stop_gradient((logp_old, logp_sampler))
    asked = loss_mask.astype(bool)
    kept = asked & jnp.isfinite(sampler)
    if advantages.ndim == 1:
        advantages = advantages[:, None]
    gain = jnp.where(kept, jax.lax.stop_gradient(advantages), 0.0)
    log_ratio = jnp.clip(jnp.where(kept, logp - old, 0.0), -_MAX_LOG_RATIO, _MAX_LOG_RATIO)
    ratio = jnp.exp(log_ratio)
    gap = jnp.where(kept, old - sampler, 0.0)
    weight = jnp.exp(jnp.minimum(gap, jnp.log(cfg.tis_cap)))
    clipped = jnp.clip(ratio, 1 - cfg.clip_low, 1 + cfg.clip_high)
    objective = weight * jnp.minimum(ratio * gain, clipped * gain)
    m = kept.astype(jnp.float32)
    metrics = _policy_metrics(ratio, log_ratio, gain, m, cfg) | _sampler_metrics(gap, weight, m)
    count_asked = asked.sum(dtype=jnp.float32)
    metrics["dropped_tokens"] = (count_asked - m.sum(), count_asked)
    if entropy is not None:
        metrics["entropy"] = (jnp.where(kept, entropy, 0.0).sum(), m.sum())
    return -(m * objective).sum(), m.sum(), jax.lax.stop_gradient(metrics)


def _policy_metrics(
    ratio: jax.Array, log_ratio: jax.Array, gain: jax.Array, m: jax.Array, cfg: DapoConfig
) -> Metrics:
    """Movement since the step began; `kl_k1`, `kl_k3` estimate KL(old ‖ now), unclipped."""
    count = m.sum()
    low = (gain < 0) & (ratio < 1 - cfg.clip_low)
    high = (gain > 0) & (ratio > 1 + cfg.clip_high)
    return {
        "ratio": ((m * ratio).sum(), count),
        "clip_low": (jnp.where(low, m, 0.0).sum(), count),
        "clip_high": (jnp.where(high, m, 0.0).sum(), count),
        "kl_k1": (-(m * log_ratio).sum(), count),
        "kl_k3": ((m * (ratio - 1 - log_ratio)).sum(), count),
    }


def _sampler_metrics(gap: jax.Array, weight: jax.Array, m: jax.Array) -> Metrics:
    """Distance of the trainer's log-probabilities from those the tokens were sampled with."""
    count = m.sum()
    return {
        "tis_weight": ((m * weight).sum(), count),
        "sampler_gap": ((m * jnp.abs(gap)).sum(), count),
        "sampler_gap_max": ((m * jnp.abs(gap)).max(), jnp.ones(())),
        "sampler_kl": (-(m * gap).sum(), count),
    }

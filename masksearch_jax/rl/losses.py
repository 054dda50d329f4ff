"""Token-level losses as (sum, count, metrics): the caller divides once, over the global batch.

A mean of micro-batch means is another loss, since micro-batches hold unequal numbers of tokens.

The switches of `dapo_loss`, with y the sampled tokens of a sample and sg no gradient:

- proximal `sampler`: r = exp(logp - logp_sampler), w = 1 (PPO, arXiv 1707.06347). The default
  is the decoupled objective: staleness in w, the step in r (arXiv 2110.00641, 2505.24298).
- ratio `sequence`: r = sg(s)·exp(logp - sg(logp)), s = exp(mean over y of logp - logp_old)
  (GSPO-token, arXiv 2507.18071, eq. 13).
- dual_clip c: max(min(…), c·A) where A < 0 (arXiv 1912.09729, eq. 6).
- kl `k1`: A - β·sg(logp - logp_ref) in place of A, of the token itself; REINFORCE++ (arXiv
  2501.03262, eq. 8) takes the sum over the tokens from it on. As a term of the loss its gradient
  would be 0 in the mean. kl `k3`: β·(exp(d) - 1 - d) is added, d = logp_ref - logp (GRPO, arXiv
  2402.03300, eq. 4). kl `positive`: β·(r - 1 - log r) is added where A > 0 and r < 1 - low; the
  condition is SAPO's (arXiv 2603.10069), the estimate ours.
- likelihood_floor λ: λ·max(0, logp_old - logp) is added on the tokens of samples whose
  log-probability fell in sum, where A >= 0 (LLDS, arXiv 2512.04220).
- aggregation `sequence`: Σ over samples of the mean over y, and the number of samples with
  tokens (GRPO). `fixed`: Σ over tokens, and that number times fixed_length (Dr. GRPO, arXiv
  2503.20783).
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from masksearch_jax.core.loss_config import LossConfig

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
    cfg: LossConfig,
    entropy: jax.Array | None = None,
    segment_ids: jax.Array | None = None,
    logp_ref: jax.Array | None = None,
) -> Loss:
    """-Σ m·w·min(r·A, clip(r, 1-low, 1+high)·A) and Σ m: DAPO (arXiv 2503.14476, eq. 8).

    logp, logp_old, logp_sampler: float32[B, T] under the policy now, the policy at the start of the
    step, and the sampler, all at the sampling temperature; gradients flow through `logp` only.
    advantages: [B] or [B, T]. loss_mask: [B, T], true on tokens that the policy sampled.
    r = exp(logp - logp_old), w = min(exp(logp_old - logp_sampler), tis_cap) without gradient. A
    token whose sampler log-probability is not finite is dropped from sum and count. `entropy`
    [B, T] is only reported. segment_ids: int[B, T], the sample that a token is of, in its row;
    None: a row is one sample. logp_ref: under the reference of `kl` k1 and k3. What `cfg` switches
    is in the module's docstring.
    """
    old, sampler = jax.lax.stop_gradient((logp_old, logp_sampler))
    asked = loss_mask.astype(bool)
    kept = asked & jnp.isfinite(sampler)
    samples = _Samples(asked.shape, segment_ids)
    if advantages.ndim == 1:
        advantages = advantages[:, None]
    gain = jnp.where(kept, jax.lax.stop_gradient(advantages), 0.0)
    gap = jnp.where(kept, old - sampler, 0.0)
    weight = jnp.exp(jnp.minimum(gap, jnp.log(cfg.tis_cap)))
    m = kept.astype(jnp.float32)
    metrics = _step_metrics(jnp.where(kept, logp - old, 0.0), m) | _sampler_metrics(gap, weight, m)
    if cfg.proximal == "sampler":
        old, weight = sampler, jnp.ones_like(weight)
    moved = jnp.where(kept, logp - old, 0.0)
    log_ratio = jnp.clip(moved, -_MAX_LOG_RATIO, _MAX_LOG_RATIO)
    if cfg.ratio == "sequence":
        log_ratio = samples.of_sequence(log_ratio, kept)
    ratio = jnp.exp(log_ratio)
    clipped = jnp.clip(ratio, 1 - cfg.clip_low, 1 + cfg.clip_high)
    drift = None if logp_ref is None else jnp.where(kept, logp - logp_ref, 0.0)
    if cfg.kl == "k1":
        gain = gain - cfg.kl_weight * jax.lax.stop_gradient(_given(drift))
    objective = jnp.minimum(ratio * gain, clipped * gain)
    if cfg.dual_clip:
        objective = jnp.where(gain < 0, jnp.maximum(objective, cfg.dual_clip * gain), objective)
    objective = weight * objective
    metrics |= _clip_metrics(ratio, gain, m, cfg)
    for name, penalty in _penalties(cfg, samples, kept, gain, log_ratio, moved, drift).items():
        objective = objective - penalty
        metrics[name] = ((m * penalty).sum(), m.sum())
    count_asked = asked.sum(dtype=jnp.float32)
    metrics["dropped_tokens"] = (count_asked - m.sum(), count_asked)
    if entropy is not None:
        metrics["entropy"] = (jnp.where(kept, entropy, 0.0).sum(), m.sum())
    total, count = _aggregated(cfg, samples, kept, objective)
    return -total, count, jax.lax.stop_gradient(metrics)


class _Samples:
    """Sums over the tokens of each sample, of which a row may hold several."""

    def __init__(self, shape: tuple[int, ...], segment_ids: jax.Array | None):
        rows, self._time = shape
        self._ids = jnp.ones((rows, self._time), jnp.int32) if segment_ids is None else segment_ids

    def table(self, x: jax.Array) -> jax.Array:
        """float32[B, T + 1]: the sum over the tokens of each sample of a row."""

        def row(values: jax.Array, ids: jax.Array) -> jax.Array:
            return jax.ops.segment_sum(values, ids, num_segments=self._time + 1)

        return jax.vmap(row)(x.astype(jnp.float32), self._ids)

    def sum(self, x: jax.Array) -> jax.Array:
        """float32[B, T]: on each token, the sum over its sample."""
        return jnp.take_along_axis(self.table(x), self._ids, axis=1)

    def mean(self, x: jax.Array, kept: jax.Array) -> jax.Array:
        """float32[B, T]: on each token, the mean over its sample's kept tokens; else x is 0."""
        return self.sum(x) / jnp.maximum(self.sum(kept), 1.0)

    def of_sequence(self, log_ratio: jax.Array, kept: jax.Array) -> jax.Array:
        """The mean over a sample, on each of its tokens, with the gradient of the token's own."""
        own = jax.lax.stop_gradient(log_ratio)
        return self.mean(own, kept) + (log_ratio - own)

    def count(self, kept: jax.Array) -> jax.Array:
        """float32[]: samples that have a kept token."""
        return (self.table(kept) > 0).sum(dtype=jnp.float32)


def _penalties(
    cfg: LossConfig,
    samples: _Samples,
    kept: jax.Array,
    gain: jax.Array,
    log_ratio: jax.Array,
    moved: jax.Array,
    drift: jax.Array | None,
) -> dict[str, jax.Array]:
    """What is taken off the objective of each token, [B, T], by the figure that reports it."""
    found = {}
    if cfg.kl == "k3":
        d = jnp.clip(-_given(drift), -_MAX_LOG_RATIO, _MAX_LOG_RATIO)
        found["kl_penalty"] = cfg.kl_weight * (jnp.exp(d) - 1 - d)
    if cfg.kl == "positive":
        fell = (gain > 0) & (log_ratio < jnp.log1p(-cfg.clip_low))
        k3 = jnp.exp(log_ratio) - 1 - log_ratio
        found["kl_penalty"] = cfg.kl_weight * jnp.where(fell, k3, 0.0)
    if cfg.likelihood_floor:
        fell = (samples.sum(jax.lax.stop_gradient(moved)) < 0) & (gain >= 0) & kept
        found["floor_penalty"] = cfg.likelihood_floor * jnp.where(fell, jnp.maximum(-moved, 0), 0.0)
    return found


def _aggregated(
    cfg: LossConfig, samples: _Samples, kept: jax.Array, objective: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """The objective's sum, and what the caller divides it by."""
    m = kept.astype(jnp.float32)
    if cfg.aggregation == "token":
        return (m * objective).sum(), m.sum()
    if cfg.aggregation == "sequence":
        return (m * objective / jnp.maximum(samples.sum(kept), 1.0)).sum(), samples.count(kept)
    return (m * objective).sum(), samples.count(kept) * cfg.fixed_length


def _given(drift: jax.Array | None) -> jax.Array:
    if drift is None:
        raise ValueError("kl k1 and k3 need logp_ref, the log-probabilities under the reference")
    return drift


def _step_metrics(moved: jax.Array, m: jax.Array) -> Metrics:
    """Movement since the step began, by token, whatever ratio the objective takes.

    moved: logp - logp_old, 0 where m is. `kl_k1`, `kl_k3` estimate KL(old ‖ now).
    """
    count, log_ratio = m.sum(), jnp.clip(moved, -_MAX_LOG_RATIO, _MAX_LOG_RATIO)
    ratio = jnp.exp(log_ratio)
    return {
        "ratio": ((m * ratio).sum(), count),
        "kl_k1": (-(m * log_ratio).sum(), count),
        "kl_k3": ((m * (ratio - 1 - log_ratio)).sum(), count),
    }


def _clip_metrics(ratio: jax.Array, gain: jax.Array, m: jax.Array, cfg: LossConfig) -> Metrics:
    """Shares of the tokens whose ratio, that of the objective, is clipped."""
    count = m.sum()
    low = (gain < 0) & (ratio < 1 - cfg.clip_low)
    high = (gain > 0) & (ratio > 1 + cfg.clip_high)
    return {
        "clip_low": (jnp.where(low, m, 0.0).sum(), count),
        "clip_high": (jnp.where(high, m, 0.0).sum(), count),
    }


def _sampler_metrics(gap: jax.Array, weight: jax.Array, m: jax.Array) -> Metrics:
    """Distance of the trainer's log-probabilities from those the tokens were sampled with.

    weight: of the decoupled objective, which `proximal` sampler does not take.
    """
    count = m.sum()
    return {
        "tis_weight": ((m * weight).sum(), count),
        "sampler_gap": ((m * jnp.abs(gap)).sum(), count),
        "sampler_gap_max": ((m * jnp.abs(gap)).max(), jnp.ones(())),
        "sampler_kl": (-(m * gap).sum(), count),
    }

"""Frequencies of rotary positions, and what slows them for longer contexts."""

from __future__ import annotations

import math

import numpy as np

from masksearch_jax.core.config import RopeScaling

# Turns in the original context beyond which yarn keeps a channel, and below which it slows it.
YARN_BETAS = {"beta_fast": 32.0, "beta_slow": 1.0}
UNUSED_BY_LINEAR = {"low_freq_factor": 0.0, "high_freq_factor": 0.0, "original_max_position": 0}


def frequencies(head_dim: int, theta: float, scaling: RopeScaling | None) -> np.ndarray:
    """Radians per position of each pair of channels, float32[D/2], scaled when `scaling` is given.

    Scaling divides the frequency of wavelengths beyond `original / low_freq_factor` by `factor`,
    keeps those below `original / high_freq_factor`, and blends in between: over the turns in the
    original context (llama3: Llama 3.1 model card's code), or over the channels (yarn: arXiv
    2309.00071, channels rounded outwards as its authors do). linear divides all (arXiv 2306.15595).
    """
    exponent = np.arange(0, head_dim, 2, dtype=np.float64) / head_dim
    plain = theta**-exponent
    if scaling is None:
        return plain.astype(np.float32)
    kept = _kept(plain, head_dim, theta, scaling)
    return (plain * (kept + (1 - kept) / scaling.factor)).astype(np.float32)


def _kept(
    plain: np.ndarray, head_dim: int, theta: float, scaling: RopeScaling
) -> np.ndarray | float:
    """The share of each frequency that scaling leaves as it is."""
    if scaling.kind == "linear":
        return 0.0
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    if scaling.kind == "llama3":
        turns = scaling.original_max_position * plain / (2 * math.pi)
        return np.clip((turns - low) / (high - low), 0.0, 1.0)

    def channel(turns: float) -> float:
        wavelength = scaling.original_max_position / (turns * 2 * math.pi)
        return head_dim * math.log(wavelength) / (2 * math.log(theta))

    first = max(math.floor(channel(high)), 0)
    last = min(math.ceil(channel(low)), head_dim - 1)
    width = max(last - first, 0.001)
    return 1 - np.clip((np.arange(head_dim // 2) - first) / width, 0.0, 1.0)


def yarn_attention_factor(factor: float, weight: float = 1.0) -> float:
    """What yarn multiplies cosines and sines by (arXiv 2309.00071, section 3.4)."""
    return 0.1 * weight * math.log(factor) + 1.0 if factor > 1 else 1.0

"""Low-rank factors beside a layer's matrices, as the forward pass applies them: W + scale · A·B.

Axis key: L layers, I inputs and O outputs of a matrix, R rank. A [L, I, R] and B [L, R, O] are
float32 and stacked as the matrices are.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx

TARGETS = ("q", "k", "v", "o", "gate", "up", "down")


class Adapters(nnx.Module):
    """A and B of every target, `q_a`, `q_b`, …, of all layers, or of one once sliced; others None.

    `scale`: alpha / rank.
    """

    def __init__(self, factors: dict[str, jax.Array], scale: float) -> None:
        self.scale = scale
        for name in TARGETS:
            for half in ("a", "b"):
                factor = factors.get(f"{name}_{half}")
                setattr(self, f"{name}_{half}", None if factor is None else nnx.Param(factor))

    def __call__(self, name: str, x: jax.Array) -> jax.Array | None:
        """What x [..., I] gets besides its product with the matrix `name`, or None: no target."""
        a, b = getattr(self, f"{name}_a"), getattr(self, f"{name}_b")
        if a is None:
            return None
        low = jnp.einsum("...i,ir->...r", x, a[...].astype(x.dtype))
        return self.scale * jnp.einsum("...r,ro->...o", low, b[...].astype(x.dtype))

"""A product with a weight, whose gradients suit XLA's CPU backend as well as TPUs."""

from __future__ import annotations

import jax
import jax.numpy as jnp


@jax.custom_vjp
def matmul(x: jax.Array, w: jax.Array) -> jax.Array:
    """x [B, T, I] times w [I, O].

    JAX's own rule transposes w's gradient, a product that XLA's CPU backend then runs with both
    operands transposed, at half the speed.
    """
    return jnp.einsum("bti,io->bto", x, w)


def _forward(x: jax.Array, w: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return matmul(x, w), (x, w)


def _backward(kept: tuple[jax.Array, jax.Array], g: jax.Array) -> tuple[jax.Array, jax.Array]:
    x, w = kept
    return jnp.einsum("bto,io->bti", g, w), jnp.einsum("bti,bto->io", x, g)


matmul.defvjp(_forward, _backward)

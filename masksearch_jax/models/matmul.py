"""A product with a weight, whose gradients suit XLA's CPU backend as well as TPUs."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from masksearch_jax.models import context


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
    of_x = jnp.einsum("bto,io->bti", g, w)
    if context.parts(x.shape[1]) > 1:  # a mesh splits both axes: they cannot be one
        return of_x, jnp.einsum("bti,bto->io", x, g)
    return of_x, summed(x, g)


matmul.defvjp(_forward, _backward)


def summed(x: jax.Array, g: jax.Array, dtype: jnp.dtype | None = None) -> jax.Array:
    """Σ x[B, T, I] g[B, T, O] as [I, O], by default in the operands' dtype.

    Over one axis: of two XLA's CPU backend makes one by a transposed copy of x.
    """
    x, g = (a.reshape(-1, a.shape[-1]) for a in (x, g))
    return jnp.einsum("ni,no->io", x, g, preferred_element_type=dtype)

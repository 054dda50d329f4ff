"""A product with a weight, whose gradients suit XLA's CPU backend as well as TPUs."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from masksearch_jax.models import context


@jax.custom_vjp
def matmul(x: jax.Array, w: jax.Array) -> jax.Array:
    """x [B, T, I] times w [I, O].

    JAX's own rule transposes w's gradient, a product that XLA's CPU backend then runs with both
    operands transposed, at half the speed. That backend also makes one of several summed axes, by
    a transposed copy of x: so they are one here, unless a mesh splits them both.
    """
    return jnp.einsum("bti,io->bto", x, w)


def _forward(x: jax.Array, w: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return matmul(x, w), (x, w)


def _backward(kept: tuple[jax.Array, jax.Array], g: jax.Array) -> tuple[jax.Array, jax.Array]:
    x, w = kept
    of_x = jnp.einsum("bto,io->bti", g, w)
    if context.parts(x.shape[1]) > 1:
        return of_x, jnp.einsum("bti,bto->io", x, g)
    x, g = (a.reshape(-1, a.shape[-1]) for a in (x, g))
    return of_x, jnp.einsum("ni,no->io", x, g)


matmul.defvjp(_forward, _backward)

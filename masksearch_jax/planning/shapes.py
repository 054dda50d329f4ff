"""Shapes with places on a mesh: what a program is compiled for without any array."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from masksearch_jax.parallel import sharding


def at(tree: Any, places: Any) -> Any:
    """Shapes of a tree whose leaves lie at `places`, a tree of shardings like it."""
    return jax.tree.map(
        lambda x, place: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), tree, places
    )


def placed(tree: Any, mesh: Any, *logical: str) -> Any:
    """Shapes of a tree whose leaves have these leading logical axes."""
    place = jax.sharding.NamedSharding(mesh, sharding.spec(*logical))
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), tree)


def batch(
    mesh: Any, micro: int, rows: int, length: int, floats: tuple[str, ...], masks: tuple[str, ...]
) -> dict[str, Any]:
    """Those of a batch of `micro` micro-batches (axis absent for 1) of rows [rows, length]."""
    axes = ("micro", "batch", "any")[micro == 1 :]
    shape = (micro, rows, length)[micro == 1 :]
    kinds = dict.fromkeys(("ids", "targets", "positions", "segment_ids"), jnp.int32)
    kinds |= dict.fromkeys(floats, jnp.float32) | dict.fromkeys(masks, jnp.bool_)
    return {
        name: placed(jax.ShapeDtypeStruct(shape, kind), mesh, *axes) for name, kind in kinds.items()
    }

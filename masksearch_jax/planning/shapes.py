"""Shapes with places on a mesh: what a program is compiled for without any array."""

from __future__ import annotations

import jax
from jax.sharding import Mesh

from masksearch_jax.core.rows import PLACES, Fields
from masksearch_jax.parallel import sharding
from masksearch_jax.parallel.sharding import PyTree


def at(tree: PyTree, places: PyTree) -> PyTree:
    """Shapes of a tree whose leaves lie at `places`, a tree of shardings like it."""
    return jax.tree.map(
        lambda x, place: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), tree, places
    )


def placed(tree: PyTree, mesh: Mesh, *logical: str) -> PyTree:
    """Shapes of a tree whose leaves have these leading logical axes."""
    place = jax.sharding.NamedSharding(mesh, sharding.spec(*logical))
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), tree)


def batch(
    mesh: Mesh, micro: int, rows: int, seq_len: int, fields: Fields
) -> dict[str, jax.ShapeDtypeStruct]:
    """Those of a batch of `micro` micro-batches (axis absent for 1) of rows [rows, seq_len]."""
    axes = ("micro", "batch", "any")[micro == 1 :]
    shape = (micro, rows, seq_len)[micro == 1 :]
    kinds = {**fields, **PLACES}
    return {
        name: placed(jax.ShapeDtypeStruct(shape, kind), mesh, *axes) for name, kind in kinds.items()
    }

"""What all processes must do alike: which program to run next, and whether anything is left.

Decoding is one program over all devices; a process that called another, or one call more, would
hang the rest. Each says what it needs, and all take the most.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec


class Needs(NamedTuple):
    """What one process needs of the next tick, or all of them."""

    rows: int  # of the program
    work: bool  # something to write or decode
    left: bool  # trajectories that are not done


class Agreement:
    """`reach` gives the most that any process needs; every process must call it each tick."""

    def __init__(self, mesh: Mesh | None):
        alone = jax.process_count() == 1
        if not alone and mesh is None:
            raise ValueError(f"{jax.process_count()} processes sample together only under a mesh")
        self._mesh = None if alone else mesh

    @property
    def is_alone(self) -> bool:
        """Whether there is no other process to agree with."""
        return self._mesh is None

    def reach(self, needs: Needs) -> Needs:
        if self._mesh is None:
            return needs
        own = np.repeat(np.asarray(needs, np.int32)[None], jax.local_device_count(), axis=0)
        split = NamedSharding(self._mesh, PartitionSpec(self._mesh.axis_names))
        shape = (jax.device_count(), len(needs))
        most = np.asarray(
            _most(self._mesh)(jax.make_array_from_process_local_data(split, own, shape))
        )
        return Needs(int(most[0]), bool(most[1]), bool(most[2]))


@functools.lru_cache
def _most(mesh: Mesh) -> jax.stages.Wrapped:
    return jax.jit(
        lambda rows: jnp.max(rows, axis=0), out_shardings=NamedSharding(mesh, PartitionSpec())
    )

"""The nearest of many vectors by inner product, on this process's devices, each with a part.

Axis key: B query, N vector, M dimension, K found, D device.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterable

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

_BATCHES = (1, 8, 64)  # queries of one program; more are cut
_DEPTHS = (16, 128, 1024)  # rows found by one program; those of more have one each


class DeviceNearest:
    """Keeps the vectors, float16 [N, M], on the devices; safe for threads.

    Its programs have no collective: those of two threads, or of a thread and the trainer, would
    wait for each other where devices get them in another order. The host joins the devices' parts.
    approximate: a device takes its part's top by `approx_max_k`, which misses a few and is faster
    on TPUs.
    """

    def __init__(self, table: np.ndarray, *, approximate: bool = False):
        self.way = "device_approximate" if approximate else "device"
        devices = jax.local_devices()
        self._mesh = Mesh(np.array(devices), ("shard",))
        self._count = len(table)
        rows = -(-len(table) // len(devices)) * len(devices)
        sharding = NamedSharding(self._mesh, P("shard"))

        def shard_of(index: tuple[slice, ...]) -> np.ndarray:
            start, stop, _ = index[0].indices(rows)
            held = table[start:stop]
            return np.pad(held, ((0, stop - start - len(held)), (0, 0)))

        self._table = jax.make_array_from_callback((rows, table.shape[1]), sharding, shard_of)
        self._search = jax.jit(
            functools.partial(_search, self._mesh, self._count, approximate), static_argnums=2
        )

    def __call__(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        parts = [
            self._batch(queries[start : start + _BATCHES[-1]], k)
            for start in range(0, len(queries), _BATCHES[-1])
        ]
        rows, scores = zip(*parts, strict=True)
        return np.concatenate(rows).astype(np.int64), np.concatenate(scores)

    def searches(self, depths: Iterable[int]) -> list[Callable[[], jax.stages.Compiled]]:
        """What compiles each program of searches for so many, so that none compiles one itself."""
        needed = itertools.product(_BATCHES, sorted({self._depth(k) for k in depths}))
        return [functools.partial(self._compiled, *sizes) for sizes in needed]

    def _compiled(self, size: int, depth: int) -> jax.stages.Compiled:
        queries = jax.ShapeDtypeStruct((size, self._table.shape[1]), np.float32)
        with jax.set_mesh(self._mesh):
            return self._search.lower(self._table, queries, depth).compile()

    def _batch(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        size = next(b for b in _BATCHES if b >= len(queries))
        padded = np.zeros((size, queries.shape[1]), np.float32)
        padded[: len(queries)] = queries
        with jax.set_mesh(self._mesh):  # in place of the run's own, if one is in force
            found = self._search(self._table, padded, self._depth(k))
        rows, scores = (np.asarray(x)[: len(queries)] for x in found)
        best = np.argsort(-scores, axis=1, kind="stable")[:, : min(k, self._count)]  # equal by row
        return np.take_along_axis(rows, best, axis=1), np.take_along_axis(scores, best, axis=1)

    def _depth(self, k: int) -> int:
        """How many rows a program finds for k: few programs serve all."""
        most = min(k, self._count)
        return next((depth for depth in _DEPTHS if depth >= most), most)


def _search(
    mesh: Mesh, count: int, approximate: bool, table: jax.Array, queries: jax.Array, k: int
) -> tuple[jax.Array, jax.Array]:
    """rows int32 [B, DK] and scores float32 [B, DK]: the best of each device's part, in turn."""
    held = table.shape[0] // mesh.size  # vectors of a device
    top = min(k, held)

    def own(table: jax.Array, queries: jax.Array) -> tuple[jax.Array, jax.Array]:
        scores = jnp.einsum(
            "BM,NM->BN",
            queries,
            table.astype(jnp.float32),
            precision=jax.lax.Precision.HIGHEST,
        )
        first = jax.lax.axis_index("shard") * held
        scores = jnp.where(first + jnp.arange(held) < count, scores, -jnp.inf)
        best, rows = (
            jax.lax.approx_max_k(scores, top) if approximate else jax.lax.top_k(scores, top)
        )
        return rows + first, best

    parts = P(None, "shard")
    specs = {"in_specs": (P("shard"), P()), "out_specs": (parts, parts)}
    return jax.shard_map(own, mesh=mesh, check_vma=False, **specs)(table, queries)

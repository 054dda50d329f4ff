"""A small model of texts on several devices: each computes a part of every batch.

Axis key: B text, T token.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, Literal

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from masksearch_jax.models.hf_config import HfError

Place = Literal["device", "host"]
Rows = Sequence[Sequence[int]]

_BATCHES = (1, 8, 64)  # texts of a device in one program; more are cut
# What a CPU computes of more outgrows its caches, and malloc maps that memory anew each time.
_CPU_BATCHES = (1, 8, 16)
_STEP = 32  # tokens: rows of many texts are padded to a multiple


class TextProgram:
    """`run(model, *tables, lengths)` of int32 tables [B, T]; safe for threads.

    Its programs have no collective: those of two threads, or of a thread and the trainer, would
    wait for each other where devices get them in another order. The host joins the devices' parts.
    """

    def __init__(
        self, run: Callable[..., jax.Array], model: Any, *, tables: int, most: int, place: Place
    ):
        """most: tokens of a row. place: this process's devices, or its host's CPU.

        Raises HfError where JAX has no CPU.
        """
        # In force while it computes, in place of the run's own, which may have other devices.
        devices = _devices(place)
        self._batches = _CPU_BATCHES if devices[0].platform == "cpu" else _BATCHES
        self._mesh = Mesh(np.array(devices), ("text",))
        self._parts = NamedSharding(self._mesh, PartitionSpec("text"))
        self._model = jax.device_put(model, NamedSharding(self._mesh, PartitionSpec()))
        self._run = jax.jit(run, out_shardings=self._parts)
        self._tables = tables
        self._fine = (*range(_STEP, most, _STEP), most)
        self._coarse = tuple(n for n in self._fine if n.bit_count() == 1 or n == most)

    def __call__(self, *tables: Rows, is_search: bool) -> np.ndarray:
        """`run`'s rows for those of the tables, in batches of texts of similar length.

        is_search: of few texts, which go through one of the programs that `searches` compiles.
        """
        ids, *_ = tables
        order = sorted(range(len(ids)), key=lambda i: len(ids[i]))
        most, found = self._batches[-1] * self._mesh.size, []
        for start in range(0, len(order), most):
            rows = order[start : start + most]
            batch = self._padded([[table[i] for i in rows] for table in tables], is_search)
            arrays = jax.device_put(batch, self._parts)
            with jax.set_mesh(self._mesh):
                found.append((self._run(self._model, *arrays), len(rows)))
        joined = np.concatenate([np.asarray(part)[:count] for part, count in found])
        out = np.empty_like(joined)
        out[order] = joined
        return out

    def searches(self) -> list[Callable[[], jax.stages.Compiled]]:
        """What compiles each program of searches, so that none compiles one itself."""
        return [
            functools.partial(self.compiled, count * self._mesh.size, length)
            for count in self._batches
            for length in self._coarse
        ]

    def compiled(self, rows: int, length: int) -> jax.stages.Compiled:
        """The program of so many texts of so many tokens."""
        shapes = [(rows, length)] * self._tables + [(rows,)]
        batch = [jax.ShapeDtypeStruct(s, np.int32, sharding=self._parts) for s in shapes]
        with jax.set_mesh(self._mesh):
            return self._run.lower(self._model, *batch).compile()

    def _padded(self, tables: Sequence[Rows], is_search: bool) -> list[np.ndarray]:
        """One batch, padded to a size that has a program: int32 tables [B, T] and lengths [B]."""
        counts = [len(row) for row in tables[0]]
        size = next(b for b in self._batches if b * self._mesh.size >= len(counts))
        size *= self._mesh.size
        sizes = self._coarse if is_search else self._fine
        out = np.zeros((len(tables), size, next(n for n in sizes if n >= max(counts))), np.int32)
        for table, rows in zip(out, tables, strict=True):
            for at, row in enumerate(rows):
                table[at, : len(row)] = row
        return [*out, np.pad(np.asarray(counts, np.int32), (0, size - len(counts)))]


def _devices(place: Place) -> list[jax.Device]:
    if place == "device":
        return jax.local_devices()
    try:
        return jax.local_devices(backend="cpu")
    except RuntimeError as error:
        raise HfError(
            f"a model is to compute on the host, of which JAX has no CPU ({error}): JAX_PLATFORMS "
            f"is {jax.config.jax_platforms!r}, add cpu"
        ) from error

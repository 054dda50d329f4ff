"""Several trajectories to a row, so that an update spends nothing on what is not there.

A batch has as many rows as trajectories, whose lengths differ severalfold. Packed, each part of the
mesh needs the first few of its rows, and the update goes over these.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

Batch = dict[str, np.ndarray]


def plan_rows(lengths: Sequence[int], room: int) -> list[list[int]]:
    """Which of them share a row of `room` tokens: longest first, each into the first that has room.

    Needs at most 11/9 of the fewest rows and one more. Empty ones are left out; no length may
    exceed `room`.
    """
    order = sorted((i for i, n in enumerate(lengths) if n), key=lambda i: (-lengths[i], i))
    rows: list[list[int]] = []
    free: list[int] = []
    for i in order:
        row = next((r for r, left in enumerate(free) if left >= lengths[i]), len(rows))
        if row == len(rows):
            rows.append([])
            free.append(room)
        rows[row].append(i)
        free[row] -= lengths[i]
    return rows


def split(batch: Batch, parts: int, count: int) -> list[Batch]:
    """Batches of `count` updates, which each take as many rows of each of `parts` equal runs."""
    cut = {name: x.reshape(parts, count, -1, *x.shape[1:]) for name, x in batch.items()}
    return [
        {name: x[:, i].reshape(-1, *x.shape[3:]) for name, x in cut.items()} for i in range(count)
    ]


def pack(batch: Batch, parts: int, per_part: int) -> tuple[Batch, int]:
    """The batch with the segments of each of `parts` equal runs of rows in the first rows of it.

    batch: leaves [B, T] of rows that begin with one segment or none (segment_ids 0). Those where
    nothing is asked (`mask`) are left out. Also the number of micro-batches, of `per_part` rows of
    each run, that hold all of it; at least 1. A run is packed by itself: what a device gets does
    not depend on how many others its process has.
    """
    rows, room = batch["segment_ids"].shape
    found = {name: np.zeros_like(x) for name, x in batch.items()}
    lengths = np.count_nonzero(batch["segment_ids"], axis=1) * batch["mask"].any(axis=1)
    most = 1
    for first in range(0, rows, rows // parts):
        planned = plan_rows(lengths[first : first + rows // parts].tolist(), room)
        most = max(most, len(planned))
        for row, members in enumerate(planned, first):
            own = first + np.asarray(members)
            source = np.repeat(own, lengths[own])
            time = np.concatenate([np.arange(n) for n in lengths[own]])
            for name, x in batch.items():
                found[name][row, : len(time)] = x[source, time]
            segments = np.repeat(np.arange(len(own)) + 1, lengths[own])
            found["segment_ids"][row, : len(time)] = segments
    return found, -(-most // per_part)


def micro_rows(batch: Batch, parts: int, per_part: int) -> list[np.ndarray]:
    """The rows of each micro-batch of `per_part` rows of each of `parts` equal runs, int[rows]."""
    rows = np.arange(len(batch["ids"])).reshape(parts, -1, per_part)
    return [*rows.swapaxes(0, 1).reshape(-1, parts * per_part)]


def fill(batch: Batch, rows: int) -> float:
    """The share of the tokens of `rows` rows that is no padding."""
    return float(np.count_nonzero(batch["segment_ids"])) / (rows * batch["segment_ids"].shape[1])

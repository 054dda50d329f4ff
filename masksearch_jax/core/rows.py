"""Packed rows: how sequences of unequal length lie in a batch, and which of them share a row.

A batch is {name: array[B, T]}. Each row holds whole sequences, one after the other: `segment_ids`
tells them apart (1, 2, … within a row, 0 where there is none), `positions` counts from 0 within
each. All else are fields of the sequences, such as `ids` and the `targets` that follow them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

Batch = dict[str, np.ndarray]
Tokens = Mapping[str, np.ndarray]  # a sequence: array[length] of each of its fields
Fields = Mapping[str, type]  # each field's dtype

PLACES: Fields = {"positions": np.int32, "segment_ids": np.int32}  # which every batch has

# Sequences of a stream that fit no row are kept for the next batch, up to this many; more fill rows
# better and make the stream's state longer.
LOOKAHEAD = 32


class Filled(NamedTuple):
    """The sequences of each row, the next of the stream, and those put off to the next batch."""

    rows: list[list[int]]
    next: int
    pending: tuple[int, ...]


def lay(rows: Sequence[Sequence[Tokens]], seq_len: int, fields: Fields, padding: int = 0) -> Batch:
    """The batch [len(rows), seq_len] of the sequences of each row, in order, with these fields.

    Where no sequence lies, `ids` and `targets` are `padding`, all else is 0.
    """
    shape = (len(rows), seq_len)
    fields = {**fields, **PLACES}
    batch: Batch = {name: np.zeros(shape, kind) for name, kind in fields.items()}
    batch["ids"][:] = batch["targets"][:] = padding
    for row, members in enumerate(rows):
        end = 0
        for segment, tokens in enumerate(members, 1):
            start, end = end, end + len(tokens["ids"])
            for name, values in tokens.items():
                batch[name][row, start:end] = values
            batch["positions"][row, start:end] = np.arange(end - start)
            batch["segment_ids"][row, start:end] = segment
    return batch


def fill_rows(
    length: Callable[[int], int],
    start: int,
    pending: Sequence[int],
    *,
    rows: int,
    seq_len: int,
    shortest: int = 1,
) -> Filled:
    """First-fit of an endless stream, in order, into `rows` rows; `length(number)` in tokens.

    Sequences put off last time come first. Ends when LOOKAHEAD of them fit nowhere, or when no row
    has room for `shortest` tokens. Every length must be at most `seq_len`.
    """
    free = np.full(rows, seq_len)
    filled: list[list[int]] = [[] for _ in range(rows)]
    left: list[int] = []
    waiting = list(pending)
    while waiting or (len(left) < LOOKAHEAD and free.max() >= shortest):
        if waiting:
            number = waiting.pop(0)
        else:
            number, start = start, start + 1
        size = length(number)
        row = int(np.argmax(free >= size))
        if free[row] >= size:
            free[row] -= size
            filled[row].append(number)
        else:
            left.append(number)
    return Filled(filled, start, tuple(left))


def fewest_rows(lengths: Sequence[int], seq_len: int) -> list[list[int]]:
    """First-fit of a fixed set, longest first: as few rows as come easily.

    At most 11/9 of the fewest and one more. Sequences of length 0 are left out; none may exceed
    `seq_len`.
    """
    order = sorted((i for i, n in enumerate(lengths) if n), key=lambda i: (-lengths[i], i))
    rows: list[list[int]] = []
    free: list[int] = []
    for i in order:
        row = next((r for r, left in enumerate(free) if left >= lengths[i]), len(rows))
        if row == len(rows):
            rows.append([])
            free.append(seq_len)
        rows[row].append(i)
        free[row] -= lengths[i]
    return rows

"""Rows: no sequence lost or changed, none put where an earlier row had room."""

from __future__ import annotations

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from masksearch_jax.core import rows

ROOM = 12
FIELDS = {"ids": np.int32, "targets": np.int32, "loss_mask": np.bool_, "weights": np.float32}


def tokens(first: int, length: int) -> rows.Tokens:
    """A sequence whose ids tell it from others."""
    ids = first + np.arange(length)
    return {
        "ids": ids,
        "targets": ids + 1,
        "loss_mask": ids % 2 == 0,
        "weights": ids / 8,
    }


# ---- how they lie


def test_rows_as_laid_by_hand():
    laid = [[tokens(10, 2), tokens(20, 3)], [], [tokens(30, 6)]]
    found = rows.lay(laid, 6, FIELDS, padding=-1)
    assert {k: (x.dtype.type, x.shape) for k, x in found.items()} == {
        k: (kind, (3, 6)) for k, kind in (FIELDS | {
            "positions": np.int32, "segment_ids": np.int32
        }).items()
    }  # fmt: skip
    nothing = [-1] * 6
    assert found["ids"].tolist() == [[10, 11, 20, 21, 22, -1], nothing, [*range(30, 36)]]
    assert found["targets"].tolist() == [[11, 12, 21, 22, 23, -1], nothing, [*range(31, 37)]]
    assert found["positions"].tolist() == [[0, 1, 0, 1, 2, 0], [0] * 6, [*range(6)]]
    assert found["segment_ids"].tolist() == [[1, 1, 2, 2, 2, 0], [0] * 6, [1] * 6]
    assert found["loss_mask"][0].tolist() == [True, False, True, False, True, False]
    assert found["weights"][0].tolist() == [10 / 8, 11 / 8, 20 / 8, 21 / 8, 22 / 8, 0.0]


def test_a_row_takes_no_more_than_fits():
    with pytest.raises(ValueError, match="broadcast"):
        rows.lay([[tokens(0, 4), tokens(9, 3)]], 6, FIELDS)


@hypothesis.given(st.lists(st.lists(st.integers(1, 4), max_size=3), max_size=5))
def test_every_sequence_is_there_once_and_as_it_was(lengths):
    laid = [[tokens(100 * r, n) for n in row] for r, row in enumerate(lengths)]
    found = rows.lay(laid, ROOM, FIELDS)
    for row, members in enumerate(laid):
        end = 0
        for segment, one in enumerate(members, 1):
            start, end = end, end + len(one["ids"])
            for name, kind in FIELDS.items():
                np.testing.assert_array_equal(found[name][row, start:end], one[name].astype(kind))
            assert found["positions"][row, start:end].tolist() == [*range(end - start)]
            assert (found["segment_ids"][row, start:end] == segment).all()
        assert not any(x[row, end:].any() for x in found.values())


# ---- a stream


@hypothesis.given(
    sizes=st.lists(st.integers(1, 16), min_size=1, max_size=40),
    count=st.integers(1, 5),
    steps=st.integers(1, 6),
)
def test_rows_of_a_stream_lose_and_repeat_nothing(sizes, count, steps):
    def length(number):
        return sizes[number % len(sizes)]

    start, pending, seen = 0, (), []
    for _ in range(steps):
        found = rows.fill_rows(length, start, pending, rows=count, seq_len=16, shortest=min(sizes))
        assert all(sum(map(length, row)) <= 16 for row in found.rows)
        assert len(found.pending) <= rows.LOOKAHEAD
        free = [16 - sum(map(length, row)) for row in found.rows]
        assert all(length(n) > max(free) for n in found.pending), "one that would fit was put off"
        if pending:
            assert pending[0] in found.rows[0], "the oldest must not wait again"
        seen += [n for row in found.rows for n in row]
        start, pending = found.next, found.pending
    assert sorted([*seen, *pending]) == list(range(start))


def test_first_fit_exactly():
    sizes = [6, 5, 4, 5, 3, 9, 2, 8]
    found = rows.fill_rows(sizes.__getitem__, 0, (), rows=2, seq_len=10, shortest=2)
    assert found == ([[0, 2], [1, 3]], 4, ())
    sizes = [6, 7, 9, 4, 3]
    found = rows.fill_rows(sizes.__getitem__, 0, (), rows=2, seq_len=10, shortest=3)
    assert found == ([[0, 3], [1, 4]], 5, (2,))


# ---- a fixed set


@hypothesis.given(st.lists(st.integers(0, ROOM), max_size=40))
def test_rows_hold_each_once_and_none_could_have_gone_further_up(lengths):
    found = rows.fewest_rows(lengths, ROOM)
    assert sorted(i for row in found for i in row) == [i for i, n in enumerate(lengths) if n]
    sizes = [sum(lengths[i] for i in row) for row in found]
    assert all(0 < size <= ROOM for size in sizes)
    for later, row in enumerate(found):
        for i in row:
            longer = [sum(lengths[j] for j in r if lengths[j] >= lengths[i]) for r in found[:later]]
            assert all(size + lengths[i] > ROOM for size in longer)


def test_fewest_rows_as_worked_out_by_hand():
    assert rows.fewest_rows([5, 12, 0, 7, 4, 3, 1], 12) == [[1], [3, 0], [4, 5, 6]]
    assert rows.fewest_rows([], 12) == []

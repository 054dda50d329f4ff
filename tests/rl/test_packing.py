"""Trajectories packed into rows: none lost, none changed, the same update as one to a row."""

from __future__ import annotations

import hypothesis
import jax
import numpy as np
import optax
import pytest
from hypothesis import strategies as st

from masksearch_jax.parallel.hosts import split_micro
from masksearch_jax.rl import packing
from masksearch_jax.testing.models import random_model
from masksearch_jax.training.train_state import init_state, make_train_step
from tests.training.updates import COMPUTE, MODEL, losses

ROOM = 12


def padded(lengths: list[int], seed: int = 0) -> packing.Batch:
    """A batch of `groups.to_batch`: a trajectory to a row, of so many targets; 0: none."""
    rng = np.random.default_rng(seed)
    shape = (len(lengths), ROOM)
    real = np.arange(ROOM) < np.asarray(lengths)[:, None]
    asked = real & (rng.random(shape) < 0.6)
    asked[:, 0] |= real[:, 0]
    ids = rng.integers(1, MODEL.vocab_size, (len(lengths), ROOM + 1), np.int32)
    sampler = rng.normal(-4.0, 0.3, shape).astype(np.float32)
    gains = rng.normal(size=(len(lengths), 1)).astype(np.float32)
    batch = {
        "ids": ids[:, :-1],
        "targets": ids[:, 1:],
        "positions": np.tile(np.arange(ROOM, dtype=np.int32), (len(lengths), 1)),
        "segment_ids": np.ones(shape, np.int32),
        "mask": asked,
        "advantages": np.broadcast_to(gains, shape),
        "logp_sampler": sampler,
        "logp_old": sampler + rng.normal(0, 0.1, shape).astype(np.float32),
    }
    return {name: np.where(real, x, np.zeros((), x.dtype)) for name, x in batch.items()}


def segments(batch: packing.Batch) -> list[dict[str, list]]:
    """What each segment of a packed batch holds, row by row."""
    found = []
    for row, ids in enumerate(batch["segment_ids"]):
        for segment in range(1, ids.max(initial=0) + 1):
            at = np.flatnonzero(ids == segment)
            assert np.array_equal(at, np.arange(at[0], at[-1] + 1))
            found.append({k: x[row, at].tolist() for k, x in batch.items() if k != "segment_ids"})
    return found


lengths_lists = st.lists(st.integers(0, ROOM), max_size=40)


@hypothesis.given(lengths_lists)
def test_rows_hold_each_once_and_none_could_have_gone_further_up(lengths):
    rows = packing.plan_rows(lengths, ROOM)
    assert sorted(i for row in rows for i in row) == [i for i, n in enumerate(lengths) if n]
    sizes = [sum(lengths[i] for i in row) for row in rows]
    assert all(0 < size <= ROOM for size in sizes)
    for later, row in enumerate(rows):
        for i in row:
            longer = [sum(lengths[j] for j in r if lengths[j] >= lengths[i]) for r in rows[:later]]
            assert all(size + lengths[i] > ROOM for size in longer)


def test_rows_as_worked_out_by_hand():
    assert packing.plan_rows([5, 12, 0, 7, 4, 3, 1], 12) == [[1], [3, 0], [4, 5, 6]]
    assert packing.plan_rows([], 12) == []


@hypothesis.settings(deadline=None)
@hypothesis.given(st.lists(st.integers(0, ROOM), min_size=8, max_size=8), st.sampled_from([1, 2]))
def test_every_trajectory_that_counts_is_there_once_and_as_it_was(lengths, parts):
    batch = padded(lengths)
    batch["mask"][1] = False  # a sample that does not count
    packed, micros = packing.pack(batch, parts, per_part=1)
    kept = [i for i, n in enumerate(lengths) if n and i != 1]
    expected = [{k: x[i, : lengths[i]].tolist() for k, x in batch.items()} for i in kept]
    for one in expected:
        del one["segment_ids"]
    key = repr
    assert sorted(segments(packed), key=key) == sorted(expected, key=key)
    size = len(lengths) // parts
    for part in range(parts):
        own = {k: x[part * size :][:size] for k, x in batch.items()}
        alone, least = packing.pack(own, 1, per_part=1)
        for name, x in alone.items():
            np.testing.assert_array_equal(packed[name][part * size :][:size], x)
        assert least <= micros
    used = np.concatenate(packing.micro_rows(packed, parts, 1)[:micros])
    assert not np.delete(packed["segment_ids"], used, axis=0).any()
    total = sum(lengths[i] for i in kept)
    assert packing.fill(packed, len(used)) == pytest.approx(total / (len(used) * ROOM))


def test_an_update_takes_as_many_rows_of_every_part():
    batch = {"ids": np.arange(8)[:, None]}
    first, second = packing.split(batch, parts=2, count=2)
    assert first["ids"].ravel().tolist() == [0, 1, 4, 5]
    assert second["ids"].ravel().tolist() == [2, 3, 6, 7]
    rows = packing.micro_rows({"ids": np.zeros((8, 1))}, parts=2, per_part=2)
    assert [r.tolist() for r in rows] == [[0, 1, 4, 5], [2, 3, 6, 7]]


def update(batch: packing.Batch, accumulate: int, used: int | None) -> tuple[float, list]:
    """Loss and gradient of a DAPO update."""
    model = random_model(MODEL, COMPUTE, seed=1)
    before = jax.tree.map(np.asarray, model)
    tx = optax.sgd(1.0)
    step = make_train_step(losses()["dapo"], tx, accumulate)
    batch = split_micro(batch, accumulate)
    state, metrics = step(init_state(model, tx), batch, None if used is None else np.int32(used))
    gradient = jax.tree.map(lambda a, b: a - np.asarray(b), before, state.params)
    return {k: float(v) for k, v in metrics.items()}, jax.tree.leaves(gradient)


def test_loss_and_gradient_are_those_of_a_trajectory_to_a_row():
    batch = padded([3, 12, 5, 0, 4, 7, 2, 4])
    expected, gradients = update(batch, 1, None)
    packed, micros = packing.pack(batch, parts=1, per_part=2)
    assert micros == 2  # 37 targets in four rows of 12, for eight
    rest = np.concatenate(packing.micro_rows(packed, 1, 2)[micros:])
    for name in ("ids", "targets", "advantages", "mask", "segment_ids"):
        packed[name][rest] = 1  # what is not used is not computed
    found, mine = update(packed, 4, micros)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name] == pytest.approx(value, rel=1e-5, abs=1e-6), name
    for a, b in zip(mine, gradients, strict=True):
        np.testing.assert_allclose(a, b, atol=2e-6)
    everything, _ = update(packed, 4, 4)
    assert everything["loss_weight"] > found["loss_weight"]

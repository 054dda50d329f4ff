"""Trajectories packed into rows: none lost, none changed, the same update as one to a row."""

from __future__ import annotations

import dataclasses
import itertools

import hypothesis
import jax
import numpy as np
import optax
import pytest
from hypothesis import strategies as st

from masksearch_jax import train_dapo
from masksearch_jax.core import rows
from masksearch_jax.core.config import DapoConfig, MeshConfig, OptimConfig, SurvivalConfig
from masksearch_jax.core.rollout_config import RolloutConfig
from masksearch_jax.core.types import QAExample, Trajectory
from masksearch_jax.models.load import initial
from masksearch_jax.parallel.hosts import split_micro
from masksearch_jax.parallel.sharding import make_mesh
from masksearch_jax.rl.groups import DAPO_FIELDS, Group
from masksearch_jax.rl.rewards import RewardTerms
from masksearch_jax.rl.update import Minibatch, Update, combined, cut_minibatches, micro_batches
from masksearch_jax.testing.models import random_model
from masksearch_jax.training import guard
from masksearch_jax.training.train_state import (
    TrainState,
    copied,
    init_state,
    is_decayed,
    make_optimizer,
    make_schedule,
    make_train_step,
    split,
)
from tests.training.updates import COMPUTE, MODEL, losses

ROOM = 12


def samples(lengths: list[int], seed: int = 0) -> list[rows.Tokens]:
    """Trajectories of so many targets, as `groups.to_tokens` has them; 0: none."""
    rng = np.random.default_rng(seed)
    found = []
    for length in lengths:
        ids = rng.integers(1, MODEL.vocab_size, length + 1, np.int32)
        loss_mask = rng.random(length) < 0.6
        loss_mask[:1] = True
        sampler = rng.normal(-4.0, 0.3, length).astype(np.float32)
        found.append(
            {
                "ids": ids[:-1],
                "targets": ids[1:],
                "loss_mask": loss_mask,
                "logp_sampler": sampler,
                "logp_old": sampler + rng.normal(0, 0.1, length).astype(np.float32),
                "advantages": np.full(length, rng.normal(), np.float32),
            }
        )
    return found


def segments(batch: rows.Batch) -> list[dict[str, list]]:
    """What each segment of a batch holds, row by row."""
    found = []
    for row, ids in enumerate(batch["segment_ids"]):
        for segment in range(1, ids.max(initial=0) + 1):
            at = np.flatnonzero(ids == segment)
            assert np.array_equal(at, np.arange(at[0], at[-1] + 1))
            found.append({k: x[row, at].tolist() for k, x in batch.items() if k != "segment_ids"})
    return found


@hypothesis.settings(deadline=None)
@hypothesis.given(
    st.lists(st.integers(0, ROOM), min_size=8, max_size=8),
    st.sampled_from([1, 2]),
    st.sampled_from([1, 2]),
)
def test_every_trajectory_is_there_once_and_as_it_was(lengths, parts, count):
    given = samples(lengths)
    expected = [
        {k: x.tolist() for k, x in one.items()} | {"positions": [*range(n)]}
        for one, n in zip(given, lengths, strict=True)
        if n
    ]
    size = len(lengths) // (parts * count)
    minibatches = cut_minibatches(given, parts, count, size, 1, ROOM)
    found = [one for minibatch in minibatches for one in segments(minibatch.batch)]
    assert sorted(found, key=repr) == sorted(expected, key=repr)
    for part in range(parts):
        own = given[part * size * count :][: size * count]
        made = cut_minibatches(own, 1, count, size, 1, ROOM)
        for whole, alone in zip(minibatches, made, strict=True):
            assert alone.used <= whole.used
            for name, x in alone.batch.items():
                np.testing.assert_array_equal(whole.batch[name][part * size :][:size], x)
    for number, minibatch in enumerate(minibatches):
        used = np.concatenate(minibatch.micro_batches[: minibatch.used])
        assert not np.delete(minibatch.batch["segment_ids"], used, axis=0).any()
        own = np.reshape(lengths, (parts, size, count))[..., number]
        assert minibatch.row_fill == pytest.approx(own.sum() / (len(used) * ROOM))


def test_an_update_takes_as_many_samples_of_every_part():
    given = samples([ROOM] * 8)
    first, second = cut_minibatches(given, 2, 2, 2, 1, ROOM)
    for minibatch, taken in ((first, [0, 2, 4, 6]), (second, [1, 3, 5, 7])):
        expected = [given[i]["ids"].tolist() for i in taken]
        assert minibatch.batch["ids"].tolist() == expected
    (whole,) = cut_minibatches(given, 2, 1, 4, 2, ROOM)
    assert [r.tolist() for r in whole.micro_batches] == [[0, 1, 4, 5], [2, 3, 6, 7]]


@hypothesis.given(st.integers(0, 24), st.sampled_from([1, 2, 3]), st.sampled_from([1, 2, 4]))
def test_samples_are_spread_over_parts_and_minibatches(number, parts, count):
    given = samples([1 + i % ROOM for i in range(number)])
    size = -(-24 // (parts * count))
    minibatches = cut_minibatches(given, parts, count, size, 1, ROOM)
    counts = [
        sum(ids.max(initial=0) for ids in minibatch.batch["segment_ids"][part * size :][:size])
        for minibatch in minibatches
        for part in range(parts)
    ]
    assert sum(counts) == number
    assert max(counts) - min(counts) <= 1


@hypothesis.given(st.integers(0, 24), st.sampled_from([1, 2, 3, 4]), st.integers(0, 24))
@hypothesis.settings(deadline=None)
def test_no_mesh_and_no_number_of_processes_moves_a_sample_to_another_minibatch(number, count, cut):
    """Sample i of a step is in minibatch i % count; the second process begins at sample `cut`."""
    given = samples([1 + i % ROOM for i in range(number)])
    expected = [{*range(minibatch, number, count)} for minibatch in range(count)]
    for parts in (1, 2, 4):
        size = -(-24 // (parts * count))
        found: list[list[int]] = [[] for _ in range(count)]
        for own, first in ((given[:cut], 0), (given[cut:], min(cut, number))):
            made = cut_minibatches(own, parts, count, size, 1, ROOM, first=first)
            for minibatch, into in zip(made, found, strict=True):
                assert len(minibatch.members) == parts * size
                into += [first + i for row in minibatch.members for i in row]
        assert [{*each} for each in found] == expected
        assert sum(map(len, found)) == number


def test_figures_of_a_step_are_means_over_tokens_but_for_what_adds_up_and_maxima():
    found = combined(
        [
            {"loss_weight": 30.0, "loss": 1.0, "gap_max": 0.5, "skipped": 3.0, "lr": 0.2},
            {"loss_weight": 10.0, "loss": 2.0, "gap_max": 0.1, "skipped": 4.0, "lr": 0.1},
        ]
    )
    assert found == {"loss_weight": 40.0, "loss": 1.25, "gap_max": 0.5, "skipped": 4.0, "lr": 0.1}


# ---- steps that lack groups

DAPO = DapoConfig(
    steps=9, curriculum="", groups=4, group_size=2, minibatches=4, micro_batch=1, overlong_buffer=0
)
MESH = make_mesh(MeshConfig(1, 1, 1), jax.devices()[:1])
ADAM = OptimConfig(learning_rate=0.1, schedule="linear", warmup_steps=0, weight_decay=0.1)


def group(stream: int, status: str = "answered") -> Group:
    """Two samples of rewards 1 and 0."""
    rng = np.random.default_rng(stream)
    made = []
    for number in range(2):
        sampled = np.arange(6) > 1
        ids = rng.integers(1, MODEL.vocab_size, 6, np.int32)
        logprobs = np.where(sampled, -4.0, 0.0).astype(np.float32)
        versions = np.where(sampled, 0, -1).astype(np.int32)
        made.append(Trajectory("e", number, ids, logprobs, sampled, versions, 2, (), (), status))
    return Group(EXAMPLE, made, [RewardTerms(r, r, 0.0, r) for r in (1.0, 0.0)], stream)


EXAMPLE = QAExample("e", "made", "?", ("a",))


@pytest.fixture(scope="module")
def update_step():
    """`update(state, kept, step)` of a whole configuration, and the state that it begins with."""
    tx = make_optimizer(ADAM, total_steps=36)
    state = init_state(random_model(MODEL, COMPUTE, seed=1), tx)
    rollout = RolloutConfig(max_len=ROOM)
    step = make_train_step(losses()["dapo"], tx, micro_batches(DAPO))
    logprobs = train_dapo.make_logprob_fn(COMPUTE, 1.0)

    def fresh() -> TrainState:
        return jax.tree.map(jax.numpy.copy, state)

    with jax.set_mesh(MESH):
        yield Update(MESH, DAPO, rollout, step, logprobs), fresh


@pytest.mark.parametrize(("kept", "updates"), [(0, 0), (1, 1), (2, 2), (3, 3), (4, 4)])
def test_groups_that_there_are_are_spread_and_no_minibatch_is_empty(update_step, kept, updates):
    """Each update is counted, and trains as many tokens as the others.

    An empty one would move the weights by the momentum, and decay them.
    """
    update, fresh = update_step
    state, metrics = update(fresh(), [group(i) for i in range(kept)], 0)
    assert metrics["updates"] == int(state.step) == updates
    if not updates:
        assert metrics == {"updates": 0.0, "row_fill": 0.0}
        return
    assert metrics["loss_weight"] == kept * 2 * 4
    assert metrics["ratio"] > 0.9  # of empty minibatches it would be 0


@pytest.mark.parametrize("kept", [1, 2, 3])
def test_the_schedule_ends_with_the_run_however_few_updates_its_steps_make(update_step, kept):
    """A step's last update has the learning rate of the last of as many as there could be."""
    update, fresh = update_step
    state, schedule = fresh(), make_schedule(ADAM, 36)
    for step in (0, 3, 8):
        state, metrics = update(state, [group(i) for i in range(kept)], step)
        assert metrics["lr"] == pytest.approx(float(schedule(step * 4 + 3)))
    assert metrics["lr"] == pytest.approx(ADAM.end_lr_ratio * ADAM.learning_rate)


@pytest.mark.parametrize("kept", [2, 4])
def test_the_mesh_changes_no_update(kept):
    """Of two to a step: the second is of the weights that the first has made."""

    def after(shards: int) -> tuple[list[np.ndarray], dict[str, float]]:
        mesh = make_mesh(MeshConfig(1, shards, 1), jax.devices()[:shards])
        dapo = train_dapo.on_mesh(dataclasses.replace(DAPO, minibatches=2, micro_batch=0), mesh)
        tx = make_optimizer(ADAM, total_steps=36)
        with jax.set_mesh(mesh):
            state = init_state(initial("", MODEL, COMPUTE, mesh, seed=1), tx)
            step = make_train_step(losses()["dapo"], tx, micro_batches(dapo), like=state)
            logprobs = train_dapo.make_logprob_fn(COMPUTE, 1.0)
            update = Update(mesh, dapo, RolloutConfig(max_len=ROOM), step, logprobs)
            state, metrics = update(state, [group(i) for i in range(kept)], 0)
        return [np.asarray(x) for x in jax.tree.leaves(state.params)], metrics

    expected, figures = after(1)
    assert figures["updates"] == 2
    for shards in (2, 4):
        found, metrics = after(shards)
        for a, b in zip(found, expected, strict=True):
            np.testing.assert_allclose(a, b, atol=1e-4)
        for name in ("loss", "loss_weight", "ratio", "grad_norm", "lr"):
            assert metrics[name] == pytest.approx(figures[name], rel=1e-4, abs=1e-5), name


@pytest.mark.parametrize(("bad", "applied"), [((), 4), ((1,), 3), ((0, 3), 2), ((0, 1, 2, 3), 0)])
def test_an_update_that_the_guard_leaves_out_is_not_counted(update_step, bad, applied):
    """Its advantages are not finite; the others of the step, before or after, are counted."""
    whole, _ = update_step
    tx = guard.guarded(make_optimizer(ADAM, total_steps=36), SurvivalConfig(guard="skip"))
    guarded_step = make_train_step(losses()["dapo"], tx, micro_batches(DAPO))
    numbers = itertools.count()

    def step(state, batch, used, place):
        spoilt = np.nan if next(numbers) in bad else 1.0
        batch = batch | {"advantages": batch["advantages"] * spoilt}
        return guarded_step(state, batch, used, place)

    update = Update(MESH, DAPO, RolloutConfig(max_len=ROOM), step, whole._logprobs)
    state = init_state(random_model(MODEL, COMPUTE, seed=1), tx)
    for number in range(2):  # `skipped` grows over the run, `updates` are of the step
        state, metrics = update(state, [group(i) for i in range(4)], number)
        assert metrics["updates"] == applied
        numbers = itertools.count()
    assert guard.updates(state.opt_state) == 2 * applied
    assert int(state.step) == 2 * 4


def test_a_minibatch_of_samples_that_do_not_count_changes_nothing(update_step):
    """Tool failures beside two groups that train: as if these were alone."""
    update, fresh = update_step
    failed = [group(i, "tool_failure") for i in (0, 3)]
    state, metrics = update(fresh(), [group(1), failed[0], group(2), failed[1]], 0)
    alone, expected = update(fresh(), [group(1), group(2)], 0)
    assert metrics == expected
    assert metrics["updates"] == 2
    for a, b in zip(jax.tree.leaves(state), jax.tree.leaves(alone), strict=True):
        np.testing.assert_array_equal(a, b)
    unmoved, metrics = update(fresh(), failed, 0)
    assert metrics == {"updates": 0.0, "row_fill": 0.0}
    for a, b in zip(jax.tree.leaves(unmoved), jax.tree.leaves(fresh()), strict=True):
        np.testing.assert_array_equal(a, b)


def test_each_sample_has_its_log_probabilities_by_the_trainer(update_step):
    """Read back from packed rows, they are those of the sample in a row of its own."""
    whole, fresh = update_step
    keeping = Update(MESH, DAPO, RolloutConfig(max_len=ROOM), *whole_parts(whole), True)
    kept = [group(0), group(1, "tool_failure"), group(2)]
    state, metrics = keeping(fresh(), kept, 0)
    alone, expected = whole(fresh(), kept, 0)
    assert metrics == expected
    for a, b in zip(jax.tree.leaves(state), jax.tree.leaves(alone), strict=True):
        np.testing.assert_array_equal(a, b)
    np.testing.assert_array_equal(keeping.trained.advantages[1], 0.0)
    np.testing.assert_allclose(keeping.trained.advantages[0], [2**-0.5, -(2**-0.5)], rtol=1e-5)
    assert [len(x) for x in keeping.trained.logprobs] == [5, 5, 0, 0, 5, 5]
    assert [len(x) for x in whole.trained.logprobs] == [0] * 6
    samples_of = [t for g in kept for t in g.trajectories]
    for trajectory, found in zip(samples_of, keeping.trained.logprobs, strict=True):
        if len(found):
            one = {"ids": trajectory.ids[:-1], "targets": trajectory.ids[1:]}
            row = rows.lay([[one]], ROOM, DAPO_FIELDS)
            logprobs = train_dapo.make_logprob_fn(COMPUTE, 1.0)(fresh().model, row)
            np.testing.assert_allclose(found, logprobs[0, :5], atol=1e-5)


def test_the_reference_outlives_updates_that_donate_what_is_frozen():
    dapo = dataclasses.replace(DAPO, minibatches=1, micro_batch=8, kl="k3", kl_weight=1.0)
    tx = make_optimizer(ADAM, total_steps=9)
    params, frozen = split(random_model(MODEL, COMPUTE, seed=1), is_decayed)
    reference = copied(params)
    state = init_state(params, tx, frozen)
    step = make_train_step(train_dapo.make_loss_fn(COMPUTE, dapo, 1.0), tx, like=state)
    logprobs = train_dapo.make_logprob_fn(COMPUTE, 1.0)
    rollout = RolloutConfig(max_len=ROOM)
    update = Update(MESH, dapo, rollout, step, logprobs, reference=reference)
    penalties = []
    with jax.set_mesh(MESH):
        for number in range(3):
            state, metrics = update(state, [group(number)], number)
            penalties.append(metrics["kl_penalty"])
    assert penalties[0] == pytest.approx(0.0, abs=1e-6)
    assert min(penalties[1:]) > 1e-4


def test_samples_beyond_the_sampler_gap_are_masked(update_step):
    whole, fresh = update_step
    kept = [group(0), group(1)]
    for limit, share in ((1e-9, 1.0), (9.0, 0.0)):
        dapo = dataclasses.replace(DAPO, sequence_gap=limit)
        masking = Update(MESH, dapo, RolloutConfig(max_len=ROOM), *whole_parts(whole))
        state, metrics = masking(fresh(), kept, 0)
        assert metrics["masked_sequences"] == share
        assert (metrics["updates"] == 0) == (share == 1.0)
        if share == 1.0:
            assert metrics == {"row_fill": 0.0, "updates": 0.0, "masked_sequences": 1.0}
            for a, b in zip(jax.tree.leaves(state), jax.tree.leaves(fresh()), strict=True):
                np.testing.assert_array_equal(a, b)


def test_the_samples_beyond_a_sampler_gap_are_those_that_their_own_means_say(update_step):
    """Of eight samples in packed rows three are masked, with the gaps of float64 NumPy."""
    whole, fresh = update_step
    kept = [group(i) for i in range(4)]
    keeping = Update(MESH, DAPO, RolloutConfig(max_len=ROOM), *whole_parts(whole), True)
    keeping(fresh(), kept, 0)
    trajectories = [t for g in kept for t in g.trajectories]
    gaps = [
        abs(np.mean(np.float64(old)[t.sampled[1:]] - t.logprobs[1:][t.sampled[1:]]))
        for old, t in zip(keeping.trained.logprobs, trajectories, strict=True)
    ]
    low, high = sorted(gaps)[4:6]
    dapo = dataclasses.replace(DAPO, sequence_gap=(low + high) / 2)
    masking = Update(MESH, dapo, RolloutConfig(max_len=ROOM), *whole_parts(whole))
    _, metrics = masking(fresh(), kept, 0)
    assert metrics["masked_sequences"] == 3 / 8
    assert metrics["loss_weight"] == 5 * 4  # tokens of each sample


def whole_parts(update: Update):
    return update._train_step, update._logprobs


def update(batch: rows.Batch, accumulate: int, used: int | None) -> tuple[dict, list]:
    """Figures and gradient of a DAPO update."""
    model = random_model(MODEL, COMPUTE, seed=1)
    before = jax.tree.map(np.asarray, model)
    tx = optax.sgd(1.0)
    step = make_train_step(losses()["dapo"], tx, accumulate)
    batch = split_micro(batch, accumulate)
    state, metrics = step(init_state(model, tx), batch, None if used is None else np.int32(used))
    gradient = jax.tree.map(lambda a, b: a - np.asarray(b), before, state.params)
    return {k: float(v) for k, v in metrics.items()}, jax.tree.leaves(gradient)


@pytest.mark.slow
def test_loss_and_gradient_are_those_of_a_trajectory_to_a_row():
    given = samples([3, 12, 5, 0, 4, 7, 2, 4])
    padded = rows.lay([[one] for one in given], ROOM, DAPO_FIELDS)
    expected, gradients = update(padded, 1, None)
    packed: Minibatch
    (packed,) = cut_minibatches(given, 1, 1, size=8, rows_per_shard=2, seq_len=ROOM)
    assert packed.used == 2  # 37 targets in four rows of 12, for eight
    rest = np.concatenate(packed.micro_batches[packed.used :])
    for name in ("ids", "targets", "advantages", "loss_mask", "segment_ids"):
        packed.batch[name][rest] = 1  # what is not used is not computed
    found, mine = update(packed.batch, 4, packed.used)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name] == pytest.approx(value, rel=1e-5, abs=1e-6), name
    for a, b in zip(mine, gradients, strict=True):
        np.testing.assert_allclose(a, b, atol=2e-6)
    everything, _ = update(packed.batch, 4, 4)
    assert everything["loss_weight"] > found["loss_weight"]

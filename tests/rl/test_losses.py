"""Losses against an independent NumPy reference and their invariances; advantages and sampling."""

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from jax.test_util import check_grads

from masksearch_jax.core.config import DapoConfig
from masksearch_jax.rl.advantages import (
    group_advantages,
    keep_groups,
    overlong_penalty,
)
from masksearch_jax.rl.losses import dapo_loss, sft_loss

CFG = DapoConfig(
    steps=1,
    groups=2,
    group_size=4,
    minibatches=1,
    micro_batch=4,
    length_penalty=0.1,
    accuracy_threshold=0.5,
    max_refills=2,
    overlong_buffer=0,
    curriculum="0:ramp_k1",
)
LOSS = jax.jit(functools.partial(dapo_loss, cfg=CFG))
FLOATS = ("logp", "logp_old", "logp_sampler", "advantages")


@jax.jit
def gradients(x: dict[str, jax.Array]) -> dict[str, jax.Array]:
    """d sum / d each float input of the loss."""
    floats = {name: x[name] for name in FLOATS}
    return jax.grad(lambda floats: dapo_loss(**x | floats, cfg=CFG)[0])(floats)


def rollout(seed: int, batch: int = 8, time: int = 12) -> dict[str, np.ndarray]:
    """Log-probabilities far enough apart that every branch of the loss is taken; uneven masks."""
    rng = np.random.default_rng(seed)
    old = -rng.exponential(1.0, (batch, time))
    lengths = rng.integers(0, time + 1, batch)
    mask = (np.arange(time) < lengths[:, None]) & (rng.random((batch, time)) < 0.7)
    arrays = {
        "logp": old + rng.normal(0, 0.4, old.shape),
        "logp_old": old,
        "logp_sampler": old + rng.normal(0, 0.7, old.shape),
        "advantages": rng.normal(0, 1, batch),
    }
    return {k: v.astype(np.float32) for k, v in arrays.items()} | {"loss_mask": mask}


def reference(x: dict[str, np.ndarray], cfg: DapoConfig = CFG) -> tuple[float, int]:
    """DAPO's sum and count, token by token in float64, from the formula alone."""
    total, count = 0.0, 0
    for b, t in np.argwhere(x["loss_mask"]):
        now, old, sampler = (float(x[k][b, t]) for k in ("logp", "logp_old", "logp_sampler"))
        gain = float(x["advantages"][b])
        ratio, weight = np.exp(now - old), min(np.exp(old - sampler), cfg.tis_cap)
        bounded = min(max(ratio, 1 - cfg.clip_low), 1 + cfg.clip_high)
        total -= weight * min(ratio * gain, bounded * gain)
        count += 1
    return total, count


def reference_gradient(x: dict[str, np.ndarray], cfg: DapoConfig = CFG) -> np.ndarray:
    """d sum / d logp: -w·r·A where the unclipped branch is the smaller one, else 0."""
    ratio = np.exp(x["logp"].astype(np.float64) - x["logp_old"])
    weight = np.minimum(np.exp(x["logp_old"].astype(np.float64) - x["logp_sampler"]), cfg.tis_cap)
    gain = x["advantages"][:, None].astype(np.float64)
    stopped = ((gain > 0) & (ratio > 1 + cfg.clip_high)) | ((gain < 0) & (ratio < 1 - cfg.clip_low))
    return np.where(x["loss_mask"] & ~stopped, -weight * ratio * gain, 0.0)


@pytest.mark.parametrize("seed", range(5))
def test_dapo_equals_the_reference_and_its_gradient(seed):
    x = rollout(seed)
    total, count, _ = LOSS(**x)
    expected, tokens = reference(x)
    np.testing.assert_allclose(total, expected, rtol=1e-5, atol=1e-5)
    assert float(count) == tokens
    gradient = gradients(x)["logp"]
    np.testing.assert_allclose(gradient, reference_gradient(x), rtol=1e-5, atol=1e-6)


def test_dapo_gradient_by_finite_differences():
    # Ratios well inside each branch: a finite difference across a kink has no meaning.
    old = jnp.full((2, 4), -1.0)
    logp = old + jnp.asarray([[0.05, 0.5, -0.5, 0.0], [0.05, 0.5, -0.5, 0.1]])
    gains, mask = jnp.asarray([1.0, -1.0]), jnp.ones((2, 4), bool)
    sampler = old - 0.1

    def loss(logp):
        return LOSS(logp, old, sampler, gains, mask)[0]

    check_grads(loss, (logp,), order=1, modes=["rev"], rtol=1e-2)
    # Raised too far with A > 0, or lowered too far with A < 0: no gradient. The other way: some.
    moved = np.asarray(jax.grad(loss)(logp)) != 0
    np.testing.assert_array_equal(moved, [[1, 0, 1, 1], [1, 1, 0, 1]])


def test_dapo_gradient_flows_through_the_present_policy_only():
    moved = {name for name, gradient in gradients(rollout(0)).items() if np.any(gradient)}
    assert moved == {"logp"}


def test_what_the_policy_did_not_sample_changes_nothing():
    x = rollout(1)
    noisy = dict(x)
    for name, junk in (("logp", -50.0), ("logp_old", np.nan), ("logp_sampler", -np.inf)):
        noisy[name] = np.where(x["loss_mask"], x[name], np.float32(junk))
    entropy = np.ones_like(x["logp"])
    calm = jax.tree.leaves(LOSS(**x, entropy=entropy))
    disturbed = LOSS(**noisy, entropy=np.where(x["loss_mask"], entropy, np.nan))
    np.testing.assert_array_equal(calm, jax.tree.leaves(disturbed))
    gradient = gradients(noisy)["logp"]
    assert np.isfinite(gradient).all()
    assert not np.asarray(gradient)[~x["loss_mask"]].any()


def test_padding_changes_nothing():
    x = rollout(2)
    padded = {k: np.pad(v, [(0, 3)] + [(0, 5)] * (v.ndim - 1)) for k, v in x.items()}
    for mine, theirs in zip(LOSS(**x)[:2], LOSS(**padded)[:2], strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-6)


@pytest.mark.parametrize("cuts", [[8], [4, 4], [1, 7], [1] * 8])
def test_sum_and_count_do_not_depend_on_the_cut(cuts):
    x = rollout(3)
    bounds = np.cumsum([0, *cuts])
    parts = [LOSS(**{k: v[a:b] for k, v in x.items()})[:2] for a, b in itertools.pairwise(bounds)]
    total, count = np.sum(np.asarray(parts), axis=0)
    expected = reference(x)
    np.testing.assert_allclose(total / count, expected[0] / expected[1], rtol=1e-5)
    means = [t / c for t, c in parts if c]
    if len(cuts) > 1:  # the trap: a mean of means is another number
        assert abs(np.mean(means) - expected[0] / expected[1]) > 1e-3


@pytest.mark.parametrize("shape", [(1, 8), (2, 4), (8, 1)])
def test_a_mesh_changes_nothing(shape):
    if jax.device_count() < 8:
        pytest.skip(f"needs 8 devices, has {jax.device_count()}")
    x = rollout(4, time=16)
    mesh = jax.make_mesh(shape, ("data", "fsdp"), axis_types=(AxisType.Auto,) * 2)
    placed = {
        k: jax.device_put(v, NamedSharding(mesh, PartitionSpec("data", *["fsdp"][: v.ndim - 1])))
        for k, v in x.items()
    }

    def loss(logp, rest):
        return dapo_loss(logp, **rest, cfg=CFG)[0]

    rest = {k: v for k, v in placed.items() if k != "logp"}
    value, gradient = jax.jit(jax.value_and_grad(loss))(placed["logp"], rest)
    np.testing.assert_allclose(value, reference(x)[0], rtol=1e-5)
    np.testing.assert_allclose(gradient, reference_gradient(x), rtol=1e-5, atol=1e-6)


def test_advantages_may_be_given_per_token():
    x = rollout(5)
    spread = np.broadcast_to(x["advantages"][:, None], x["logp"].shape)
    one, other = LOSS(**x), LOSS(**x | {"advantages": spread})
    np.testing.assert_array_equal(jax.tree.leaves(one), jax.tree.leaves(other))


def test_a_token_without_a_finite_sampler_logprob_is_dropped():
    x = rollout(6)
    b, t = np.argwhere(x["loss_mask"])[0]
    without = x | {"loss_mask": x["loss_mask"].copy()}
    without["loss_mask"][b, t] = False
    broken = x | {"logp_sampler": x["logp_sampler"].copy()}
    broken["logp_sampler"][b, t] = -np.inf
    np.testing.assert_allclose(LOSS(**broken)[:2], reference(without), rtol=1e-5)
    dropped, asked = LOSS(**broken)[2]["dropped_tokens"]
    assert (float(dropped), float(asked)) == (1.0, x["loss_mask"].sum())


def test_nothing_sampled_gives_zero_and_no_nan():
    x = rollout(7) | {"loss_mask": np.zeros((8, 12), bool)}
    total, count, metrics = LOSS(**x)
    assert float(total) == float(count) == 0.0
    assert all(np.isfinite(v).all() for v in jax.tree.leaves(metrics))


def test_an_outlier_ratio_stays_finite():
    one = np.ones((1, 1), np.float32)
    x = {"logp": 0 * one, "logp_old": -500 * one, "logp_sampler": -500 * one, "loss_mask": one > 0}
    for gain in (1.0, -1.0):
        x["advantages"] = np.full(1, gain, np.float32)
        assert all(np.isfinite(v).all() for v in jax.tree.leaves((LOSS(**x), gradients(x))))


def test_dapo_metrics_by_hand():
    old = np.log(np.full((2, 2), 0.5, np.float32))
    ratio = np.asarray([[1.5, 1.0], [0.5, 1.1]], np.float32)
    gap = np.asarray([[0.0, 1.0], [-0.5, 0.0]], np.float32)  # log pi_old - log pi_sampler
    metrics = LOSS(
        old + np.log(ratio), old, old - gap, np.asarray([1, -1], np.float32),
        np.ones((2, 2), bool), entropy=np.full((2, 2), 0.25, np.float32),
    )[2]  # fmt: skip
    weights = np.minimum(np.exp(gap), 2.0)
    expected = {
        "ratio": ratio.mean(),
        "clip_low": 0.25,
        "clip_high": 0.25,
        "kl_k1": -np.log(ratio).mean(),
        "kl_k3": (ratio - 1 - np.log(ratio)).mean(),
        "tis_weight": weights.mean(),
        "sampler_gap": np.abs(gap).mean(),
        "sampler_gap_max": 1.0,
        "sampler_kl": -gap.mean(),
        "dropped_tokens": 0.0,
        "entropy": 0.25,
    }
    assert metrics.keys() == expected.keys()
    for name, (total, count) in metrics.items():
        np.testing.assert_allclose(
            total / count, expected[name], rtol=1e-5, atol=1e-6, err_msg=name
        )


def test_clip_bounds_come_from_the_config():
    x = rollout(8)
    wide = dataclasses.replace(CFG, clip_low=0.9, clip_high=9.0, tis_cap=1e9)
    np.testing.assert_allclose(
        jax.jit(functools.partial(dapo_loss, cfg=wide))(**x)[0], reference(x, wide)[0], rtol=1e-5
    )


def test_sft_loss_is_the_weighted_sum():
    logprobs = np.asarray([[-1.0, -2.0, -0.5], [-np.inf, -4.0, np.nan]], np.float32)
    weights = np.asarray([[1.0, 0.2, 1.0], [0.0, 1.0, 0.0]], np.float32)
    total, count, metrics = jax.jit(sft_loss)(logprobs, weights)
    np.testing.assert_allclose([total, count], [1 + 0.4 + 0.5 + 4, 3.2], rtol=1e-6)
    np.testing.assert_allclose(metrics["agent_nll"], [5.5, 3.0])
    np.testing.assert_allclose(metrics["agent_confident"], [1.0, 3.0])
    gradient = jax.grad(lambda v: sft_loss(v, weights)[0])(jnp.nan_to_num(logprobs))
    np.testing.assert_array_equal(gradient, -weights)


def test_group_advantages_use_the_unbiased_std():
    rewards = np.asarray([[1.0, 0.0, 0.0, 1.0], [0.3, 0.3, 0.3, 0.3]])
    expected = np.asarray([0.5, -0.5, -0.5, 0.5]) / (np.std([1, 0, 0, 1], ddof=1) + 1e-6)
    got = group_advantages(rewards)
    np.testing.assert_allclose(got[0], expected, rtol=1e-6)
    np.testing.assert_allclose(got[1], 0.0, atol=1e-9)
    assert got.dtype == np.float32


def test_a_group_of_one_has_no_advantage():
    np.testing.assert_array_equal(group_advantages(np.asarray([[3.0], [0.0]])), [[0.0], [0.0]])


def test_tool_failures_are_outside_the_groups_statistics():
    rewards = np.asarray([[1.0, 0.0, 7.0], [1.0, np.nan, np.nan]])
    valid = np.asarray([[True, True, False], [True, False, False]])
    got = group_advantages(rewards, valid)
    np.testing.assert_allclose(got[0, :2], group_advantages(rewards[:1, :2])[0])
    np.testing.assert_array_equal([got[0, 2], *got[1]], 0.0)


@settings(max_examples=40)
@given(hnp.arrays(np.float64, (3, 5), elements=st.floats(-2, 2)), st.floats(-3, 3), st.randoms())
def test_advantages_ignore_a_shift_and_follow_a_permutation(rewards, shift, random):
    base = group_advantages(rewards)
    if np.ptp(rewards, axis=1).min() > 1e-3:
        np.testing.assert_allclose(group_advantages(rewards + shift), base, atol=1e-3)
    order = list(range(5))
    random.shuffle(order)
    np.testing.assert_allclose(group_advantages(rewards[:, order]), base[:, order], atol=1e-5)
    np.testing.assert_allclose(base.sum(axis=1), 0.0, atol=1e-4)


def test_keep_groups_by_threshold_not_by_equality():
    accuracy = np.asarray(
        [[0.5, 0.5 + 1e-9, 0.5], [0.1, 0.2, 0.3], [0.0, 0.9, 0.2], [1.0, 0.9, 0.8]]
    )
    np.testing.assert_array_equal(keep_groups(accuracy, 0.5), [False, False, True, False])
    np.testing.assert_array_equal(keep_groups(accuracy, 0.25), [False, True, True, False])


def test_keep_groups_also_wants_spread_in_reward_and_looks_at_valid_samples():
    accuracy = np.asarray([[0.0, 1.0, 1.0], [0.0, 1.0, 1.0], [0.0, 1.0, 1.0]])
    rewards = np.asarray([[0.3, 0.3 + 1e-8, 0.3], [0.3, 0.6, 0.3], [0.3, 0.6, 0.6]])
    valid = np.asarray([[True] * 3, [True] * 3, [False, True, True]])
    got = keep_groups(accuracy, 0.5, rewards, valid=valid)
    np.testing.assert_array_equal(got, [False, True, False])
    np.testing.assert_array_equal(keep_groups(accuracy[:1], 0.5, rewards[:1], 1e-9), [True])


def test_groups_may_be_kept_by_spread_alone():
    accuracy = np.asarray([[0.0, 0.75, 0.5], [0.0, 0.0, 0.0], [0.9, 0.9, 0.9], [0.0, 0.005, 0.0]])
    np.testing.assert_array_equal(keep_groups(accuracy, 0.999, accuracy, 0.01), [False] * 4)
    got = keep_groups(accuracy, None, accuracy, 0.01)
    np.testing.assert_array_equal(got, [True, False, False, False])


def test_overlong_penalty_ramps_over_the_buffer():
    got = overlong_penalty(np.asarray([0, 60, 80, 90, 100, 130]), 100, 40, 0.5)
    np.testing.assert_allclose(got, [0.0, 0.0, -0.25, -0.375, -0.5, -0.5])
    np.testing.assert_array_equal(overlong_penalty(np.asarray([99, 100]), 100, 0, 1.0), [0.0, 0.0])
    with pytest.raises(ValueError, match=r"buffer is 101.*max_len=100"):
        overlong_penalty(np.asarray([1]), 100, 101, 1.0)

"""Each switch of the loss against float64 NumPy, sample by sample, from its formula alone."""

import dataclasses
import functools
import itertools
import math

import jax
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from masksearch_jax.core.config import DapoConfig
from masksearch_jax.core.errors import ConfigError
from masksearch_jax.core.loss_config import check_loss
from masksearch_jax.rl.advantages import Moments, group_advantages, own_moments
from masksearch_jax.rl.losses import dapo_loss
from masksearch_jax.rl.update import is_within_gap

DAPO = DapoConfig(steps=1, curriculum="", groups=2, group_size=4, tis_cap=2.0)
SWITCHES = {
    "dapo": {},
    "gspo": {"ratio": "sequence", "aggregation": "sequence", "clip_low": 0.05, "clip_high": 0.05},
    "sequence_ratio": {"ratio": "sequence"},
    "sequence_mean": {"aggregation": "sequence"},
    "fixed": {"aggregation": "fixed", "fixed_length": 7},
    "dual_clip": {"dual_clip": 1.2},
    "k1": {"kl": "k1", "kl_weight": 0.3},
    "k3": {"kl": "k3", "kl_weight": 0.3},
    "positive": {"kl": "positive", "kl_weight": 0.5},
    "floor": {"likelihood_floor": 0.4},
    "sampler": {"proximal": "sampler"},
    "many": {
        "ratio": "sequence",
        "aggregation": "sequence",
        "dual_clip": 1.1,
        "kl": "k3",
        "kl_weight": 0.2,
        "likelihood_floor": 0.1,
    },
}
BATCHES = ("uneven", "empty_rows", "all_masked", "one_token")
TIME = 9


def config(switches: dict) -> DapoConfig:
    return dataclasses.replace(DAPO, **switches)


def packed(kind: str, seed: int = 0) -> dict[str, np.ndarray]:
    """Rows of up to three samples of uneven length, with padding behind them."""
    rng = np.random.default_rng(seed)
    lengths = {
        "uneven": [(4, 2, 3), (9,), (1, 5), (7, 1)],
        "empty_rows": [(3, 4), (), (8,), ()],
        "all_masked": [(4, 4), (9,), (2,), (1, 1)],
        "one_token": [(), (2,), (), ()],
    }[kind]
    ids = np.zeros((len(lengths), TIME), np.int32)
    gains = np.zeros(ids.shape)
    for row, each in enumerate(lengths):
        ends = np.cumsum([0, *each])
        for segment, (start, end) in enumerate(itertools.pairwise(ends), 1):
            ids[row, start:end] = segment
            gains[row, start:end] = rng.normal()
    mask = (ids > 0) & (rng.random(ids.shape) < 0.8)
    if kind == "all_masked":
        mask[:] = False
    if kind == "one_token":
        mask = np.zeros(ids.shape, bool)
        mask[1, 1] = True
    old = -rng.exponential(1.0, ids.shape)
    arrays = {
        "logp": old + rng.normal(0, 0.4, ids.shape),
        "logp_old": old,
        "logp_sampler": old + rng.normal(0, 0.7, ids.shape),
        "advantages": gains,
        "logp_ref": old + rng.normal(0, 0.5, ids.shape),
    }
    made = {name: x.astype(np.float32) for name, x in arrays.items()}
    return made | {"loss_mask": mask, "segment_ids": ids}


def reference(x: dict[str, np.ndarray], cfg: DapoConfig, fixed=None) -> tuple[float, float]:
    """Sum and count; `fixed`: the log-probabilities of what has no gradient (None: as given)."""
    fixed = x["logp"] if fixed is None else fixed
    total, tokens, samples = 0.0, 0, 0
    for row in range(len(x["segment_ids"])):
        for segment in range(1, int(x["segment_ids"][row].max()) + 1):
            at = np.flatnonzero((x["segment_ids"][row] == segment) & x["loss_mask"][row])
            if not len(at):
                continue
            now, old, sampler, ref, gain, still = (
                np.asarray(v[row, at], np.float64) for v in (*(x[k] for k in NAMES), fixed)
            )
            objective = one_sample(now, old, sampler, ref, gain, still, cfg)
            samples, tokens = samples + 1, tokens + len(at)
            total += objective.mean() if cfg.aggregation == "sequence" else objective.sum()
    count = {"token": tokens, "sequence": samples, "fixed": samples * cfg.fixed_length}
    return -total, count[cfg.aggregation]


NAMES = ("logp", "logp_old", "logp_sampler", "logp_ref", "advantages")


def one_sample(now, old, sampler, ref, gain, still, cfg: DapoConfig) -> np.ndarray:
    weight = np.minimum(np.exp(old - sampler), cfg.tis_cap)
    if cfg.proximal == "sampler":
        old, weight = sampler, np.ones_like(weight)
    ratio = np.exp(now - old)
    if cfg.ratio == "sequence":
        ratio = np.exp((still - old).sum() / len(now)) * np.exp(now - still)
    if cfg.kl == "k1":
        gain = gain - cfg.kl_weight * (still - ref)
    found = []
    for r, a in zip(ratio, gain, strict=True):
        one = min(r * a, min(max(r, 1 - cfg.clip_low), 1 + cfg.clip_high) * a)
        found.append(max(one, cfg.dual_clip * a) if cfg.dual_clip and a < 0 else one)
    objective = weight * np.asarray(found)
    if cfg.kl == "k3":
        objective -= cfg.kl_weight * (np.exp(ref - now) - 1 - (ref - now))
    if cfg.kl == "positive":
        fell = (gain > 0) & (ratio < 1 - cfg.clip_low)
        objective -= cfg.kl_weight * np.where(fell, ratio - 1 - np.log(ratio), 0.0)
    if cfg.likelihood_floor and (still - old).sum() < 0:
        lost = np.maximum(old - now, 0.0)
        objective -= cfg.likelihood_floor * np.where(gain >= 0, lost, 0.0)
    return objective


def numeric_gradient(x: dict[str, np.ndarray], cfg: DapoConfig, step: float = 1e-6) -> np.ndarray:
    """Central differences of the reference in float64."""
    exact = x | {"logp": x["logp"].astype(np.float64)}
    found = np.zeros(x["logp"].shape)
    for at in np.argwhere(x["loss_mask"]):
        sides = []
        for sign in (1, -1):
            moved = exact["logp"].copy()
            moved[tuple(at)] += sign * step
            sides.append(reference(exact | {"logp": moved}, cfg, fixed=exact["logp"])[0])
        found[tuple(at)] = (sides[0] - sides[1]) / (2 * step)
    return found


@functools.cache
def compiled(name: str):
    def loss(logp, rest):
        total, count, metrics = dapo_loss(logp, **rest, cfg=config(SWITCHES[name]))
        return total, (count, metrics)

    return jax.jit(jax.value_and_grad(loss, has_aux=True))


def run(name: str, x: dict):
    """Sum, count, metrics and gradient."""
    rest = {k: v for k, v in x.items() if k != "logp"}
    (total, (count, metrics)), gradient = compiled(name)(x["logp"], rest)
    return total, count, metrics, gradient


@pytest.mark.parametrize("kind", BATCHES)
@pytest.mark.parametrize("name", SWITCHES)
def test_a_switch_is_its_formula_in_value_and_gradient(name, kind):
    x, cfg = packed(kind), config(SWITCHES[name])
    total, count, metrics, gradient = run(name, x)
    expected, divisor = reference(x, cfg)
    np.testing.assert_allclose(total, expected, rtol=2e-5, atol=1e-5)
    assert float(count) == divisor
    np.testing.assert_allclose(gradient, numeric_gradient(x, cfg), rtol=1e-4, atol=1e-5)
    assert all(np.isfinite(v).all() for v in jax.tree.leaves(metrics))


@pytest.mark.parametrize("name", [n for n in SWITCHES if n != "dapo"])
def test_a_switch_changes_the_gradient(name):
    x = packed("uneven")
    (*_, dapo), (_, count, _, other) = run("dapo", x), run(name, x)
    change = np.asarray(other) / float(count) - np.asarray(dapo) / x["loss_mask"].sum()
    assert np.abs(change).max() > 1e-4


def test_without_a_sampler_gap_the_sequence_ratio_is_gspo():
    """The gradient of (1/N)·Σ min(s·A, clip(s)·A) with s as it is, of equal advantages in y."""
    x = packed("uneven")
    x = x | {"logp_sampler": x["logp_old"]}
    cfg = config(SWITCHES["gspo"])

    def gspo(logp):
        total = 0.0
        for row, ids in enumerate(x["segment_ids"]):
            for segment in range(1, ids.max() + 1):
                at = np.flatnonzero((ids == segment) & x["loss_mask"][row])
                if len(at):
                    s = np.exp((logp[row, at] - x["logp_old"][row, at]).mean())
                    a = float(x["advantages"][row, at[0]])
                    total -= min(s * a, np.clip(s, 1 - cfg.clip_low, 1 + cfg.clip_high) * a)
        return total

    exact, expected = x["logp"].astype(np.float64), np.zeros(x["logp"].shape)
    for at in np.argwhere(x["loss_mask"]):
        step = np.zeros(exact.shape)
        step[tuple(at)] = 1e-6
        expected[tuple(at)] = (gspo(exact + step) - gspo(exact - step)) / 2e-6
    total, *_, gradient = run("gspo", x)
    np.testing.assert_allclose(total, gspo(exact), rtol=1e-5)
    np.testing.assert_allclose(gradient, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", SWITCHES)
def test_sum_and_count_do_not_depend_on_micro_batches(name):
    """Down to one row, which holds fewer samples than a group."""
    x = packed("uneven")
    whole = run(name, x)
    parts = [run(name, {k: v[i : i + 1] for k, v in x.items()}) for i in range(4)]
    np.testing.assert_allclose(sum(p[0] for p in parts), whole[0], rtol=1e-5, atol=1e-6)
    assert sum(float(p[1]) for p in parts) == float(whole[1])
    gradient = np.concatenate([p[3] for p in parts])
    np.testing.assert_allclose(gradient, whole[3], rtol=1e-5, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("name", SWITCHES)
@pytest.mark.parametrize("shape", [(1, 8), (2, 4), (8, 1)])
def test_a_mesh_changes_nothing(name, shape):
    if jax.device_count() < 8:
        pytest.skip(f"needs 8 devices, has {jax.device_count()}")
    x = {k: np.pad(np.tile(v, (2, 1)), ((0, 0), (0, 7))) for k, v in packed("uneven").items()}
    mesh = jax.make_mesh(shape, ("data", "fsdp"), axis_types=(AxisType.Auto,) * 2)
    place = NamedSharding(mesh, PartitionSpec("data", "fsdp"))
    total, count, _, gradient = run(name, {k: jax.device_put(v, place) for k, v in x.items()})
    alone = run(name, x)
    np.testing.assert_allclose(total, alone[0], rtol=1e-5)
    assert float(count) == float(alone[1])
    np.testing.assert_allclose(gradient, alone[3], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["many", "fixed"])
def test_how_samples_share_rows_changes_nothing(name):
    x = packed("uneven")
    alone = []
    for row, ids in enumerate(x["segment_ids"]):
        for segment in range(1, ids.max() + 1):
            at = np.flatnonzero(ids == segment)
            one = {k: np.pad(v[row, at], (0, TIME - len(at)))[None] for k, v in x.items()}
            alone.append(one | {"segment_ids": (one["segment_ids"] > 0).astype(np.int32)})
    spread = {k: np.concatenate([one[k] for one in alone]) for k in x}
    for mine, theirs in zip(run(name, x)[:2], run(name, spread)[:2], strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-5)


MOVED = [0.8, -0.8, 0.8, -0.8]


def figures(switches: dict, moved=MOVED, lag: float = 0.0) -> dict[str, float]:
    """Of a sample of four tokens that moved since the step began, its sampler `lag` behind."""
    old = np.full((1, 4), -1.0, np.float32)
    now, sampler = old + np.asarray([moved], np.float32), old - np.float32(lag)
    cfg = config(switches | {"clip_low": 0.1, "clip_high": 0.1})
    gains, mask = np.ones(1, np.float32), np.ones((1, 4), bool)
    metrics = dapo_loss(now, old, sampler, gains, mask, cfg)[2]
    return {name: float(total / count) for name, (total, count) in metrics.items()}


@pytest.mark.parametrize("switches", [{}, {"ratio": "sequence"}, {"proximal": "sampler"}])
def test_divergences_are_by_token_to_the_policy_of_the_steps_start(switches):
    """Whatever ratio the objective takes: the tokens' differences cancel in a sample's mean."""
    found, up, down = figures(switches), math.exp(0.8), math.exp(-0.8)
    assert found["ratio"] == pytest.approx((up + down) / 2, rel=1e-6)
    assert found["kl_k1"] == pytest.approx(0.0, abs=1e-7)
    assert found["kl_k3"] == pytest.approx((up + down) / 2 - 1, rel=1e-6)
    still = figures(switches, [0.0] * 4, lag=1.0)
    assert (still["ratio"], still["kl_k1"], still["kl_k3"]) == (1.0, 0.0, 0.0)


@pytest.mark.parametrize(
    ("switches", "clipped"),
    [({}, 0.5), ({"ratio": "sequence"}, 0.0), ({"proximal": "sampler"}, 0.5)],
)
def test_what_is_clipped_is_the_ratio_of_the_objective(switches, clipped):
    assert figures(switches)["clip_high"] == clipped
    lags = figures({"proximal": "sampler"}, [0.0] * 4, lag=1.0)
    assert lags["clip_high"] == 1.0


@pytest.mark.parametrize("proximal", ["step", "sampler"])
def test_the_importance_weight_is_told_though_the_objective_has_none(proximal):
    found = figures({"proximal": proximal}, lag=0.5)
    assert found["tis_weight"] == pytest.approx(math.exp(0.5), rel=1e-6)
    assert figures({"proximal": proximal}, lag=1.0)["tis_weight"] == 2.0  # tis_cap


def test_a_reference_that_is_not_given_is_an_error():
    x = {k: v for k, v in packed("uneven").items() if k != "logp_ref"}
    with pytest.raises(ValueError, match="k1 and k3 need logp_ref"):
        dapo_loss(**x, cfg=config(SWITCHES["k3"]))


# ---- advantages

KINDS = ("group", "group_no_std", "rloo", "batch")


def advantage_of(rewards: np.ndarray, valid: np.ndarray, kind: str) -> np.ndarray:
    """Sample by sample, from the formulas; a group with fewer than two valid samples gets 0."""
    groups = [row[there].tolist() for row, there in zip(rewards, valid, strict=True)]
    centred = [r - np.mean(g) for g in groups if len(g) > 1 for r in g]
    found = np.zeros(rewards.shape)
    for (i, j), reward in np.ndenumerate(rewards):
        group = groups[i]
        if not valid[i, j] or len(group) < 2:
            continue
        mean = np.mean(group)
        if kind == "rloo":
            found[i, j] = reward - (sum(group) - reward) / (len(group) - 1)
            continue
        by = {"group_no_std": 1.0, "group": np.std(group, ddof=1) + 1e-6}
        if kind == "batch":
            by["batch"] = math.sqrt(sum(c**2 for c in centred) / (len(centred) - 1)) + 1e-6
        found[i, j] = (reward - mean) / by[kind]
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_advantages_are_their_formula_for_uneven_groups(kind):
    rng = np.random.default_rng(3)
    rewards = rng.random((6, 5))
    valid = rng.random((6, 5)) < 0.7
    valid[1] = [False] * 5
    valid[2] = [True] + [False] * 4
    got = group_advantages(rewards, valid, kind)
    np.testing.assert_allclose(got, advantage_of(rewards, valid, kind), rtol=1e-5, atol=1e-6)
    assert got.dtype == np.float32


@pytest.mark.parametrize("kind", KINDS)
def test_without_valid_samples_or_groups_no_advantage_is_nan(kind):
    nothing = np.zeros((3, 4), bool)
    np.testing.assert_array_equal(group_advantages(np.ones((3, 4)), nothing, kind), 0.0)
    assert group_advantages(np.zeros((0, 4)), None, kind).shape == (0, 4)
    np.testing.assert_array_equal(group_advantages(np.ones((1, 1)), None, kind), 0.0)


def test_the_deviation_of_a_batch_is_that_of_all_processes():
    rng = np.random.default_rng(4)
    rewards, valid = rng.random((6, 5)), rng.random((6, 5)) < 0.8
    each = [own_moments(rewards[i::2], valid[i::2]) for i in range(2)]
    both = Moments(*map(sum, zip(*each, strict=True)))
    whole = group_advantages(rewards, valid, "batch")
    for i in range(2):
        got = group_advantages(rewards[i::2], valid[i::2], "batch", both)
        np.testing.assert_allclose(got, whole[i::2], rtol=1e-6)


# ---- the gap between sampler and trainer


def test_a_sample_is_masked_by_the_mean_gap_over_its_sampled_tokens():
    old, sampler = np.asarray([-1.0, -2.0, -9.0]), np.asarray([-1.5, -2.1, 0.0])
    asked = np.asarray([True, True, False])
    assert is_within_gap(old, sampler, asked, 0.31)  # (0.5 + 0.1) / 2
    assert not is_within_gap(old, sampler, asked, 0.29)
    assert not is_within_gap(sampler, old, asked, 0.29)
    assert is_within_gap(old, np.full(3, -np.inf), asked, 0.1)  # dropped token by token
    assert is_within_gap(old, sampler, np.zeros(3, bool), 0.1)


# ---- what cannot work


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"aggregation": "fixed"}, r"aggregation is fixed, and dapo\.fixed_length is 0: .* needs"),
        (
            {"fixed_length": 512},
            r"aggregation is token, and dapo\.fixed_length is 512: .*read none",
        ),
        ({"kl": "k3", "kl_weight": 0.0}, r"kl is k3, which does nothing with dapo\.kl_weight 0"),
        ({"tis_cap": 0.0}, r"tis_cap is 0\.0; it must be above 0"),
        ({"dual_clip": 0.5}, r"dual_clip is 0\.5; it must be above 1, or 0"),
        ({"kl_weight": -1.0}, r"kl_weight is -1\.0; it must not be below 0"),
        ({"minibatches": 1, "kl": "positive"}, r"dapo\.kl is positive, which does nothing with"),
        (
            {"minibatches": 1, "likelihood_floor": 0.1},
            r"likelihood_floor is 0\.1, which does nothi",
        ),
        ({"minibatches": 1, "dual_clip": 3.0}, r"dual_clip is 3\.0, which does nothing with"),
        ({"minibatches": 1, "ratio": "sequence"}, r"ratio is sequence, which does nothing with"),
        (
            {"kl_weight": 0.1},
            r"kl_weight is 0\.1, which does nothing with dapo\.kl=none; choose .*it at 0\.001$",
        ),
        (
            {"proximal": "sampler", "tis_cap": 3.0},
            r"tis_cap is 3\.0, which does nothing with dapo\.proximal=sampler",
        ),
        (
            {"minibatches": 1, "clip_low": 0.1},
            r"clip_low is 0\.1, which does nothing with dapo\.mi",
        ),
        ({"minibatches": 1, "clip_high": 0.2}, r"clip_high is 0\.2, which does nothing with dapo"),
    ],
)
def test_switches_that_contradict_or_do_nothing_are_refused(settings, said):
    with pytest.raises(ConfigError, match=said):
        check_loss(config(settings), config(settings).minibatches)
    check_loss(config({"dual_clip": 3.0, "proximal": "sampler"}), minibatches=1)


@pytest.mark.parametrize(
    "settings",
    [
        {"kl_weight": 0.0},
        {"kl": "k3", "kl_weight": 0.1},
        {"tis_cap": 3.0},
        {"minibatches": 1, "proximal": "sampler", "clip_low": 0.1, "clip_high": 0.2},
    ],
)
def test_switches_that_do_something_or_say_that_they_do_nothing_are_taken(settings):
    check_loss(config(settings), config(settings).minibatches)

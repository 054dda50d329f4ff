"""The update: schedules, AdamW by hand, and invariance to micro-batches and meshes."""

import dataclasses
import functools
import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from masksearch_jax.core.config import ComputeConfig, ModelConfig, OptimConfig
from masksearch_jax.core.errors import ConfigError
from masksearch_jax.core.schema import to_dataclass
from masksearch_jax.models.transformer import Transformer
from masksearch_jax.parallel.hosts import split_micro
from masksearch_jax.training.train_state import (
    TrainState,
    check_rounding,
    init_state,
    is_decayed,
    make_optimizer,
    make_schedule,
    make_train_step,
    round_stochastically,
    rounding_seed,
)

OPTIM = OptimConfig(
    learning_rate=0.1,
    schedule="constant",
    warmup_steps=0,
    end_lr_ratio=0.1,
    b1=0.9,
    b2=0.95,
    eps=1e-8,
    weight_decay=0.0,
    clip_norm=0.0,
    accumulate=1,
)


class Tiny(nnx.Module):
    """[B, 4] -> [B]: a matrix, a bias and a norm's scale."""

    def __init__(self, seed: int = 0, dtype: str = "float32") -> None:
        key = jax.random.key(seed)
        self.kernel = nnx.Param(jax.random.normal(key, (4, 8), dtype))
        self.bias = nnx.Param(jnp.full((8,), 0.5, dtype))
        self.out_norm = nnx.Param(jnp.ones((8,), dtype))

    def __call__(self, x: jax.Array) -> jax.Array:
        hidden = jnp.tanh(x @ self.kernel[...] + self.bias[...][None])
        return (hidden * self.out_norm[...][None]).sum(axis=-1)


def loss_fn(model: Tiny, batch: dict[str, jax.Array]):
    """A weighted square error whose weights make every micro-batch count differently."""
    error = (model(batch["x"]) - batch["y"]) ** 2
    weight = batch["weight"]
    metrics = {
        "error": (error.sum(), jnp.float32(error.size)),
        "error_max": (error.max(), jnp.ones(())),
    }
    return (weight * error).sum(), weight.sum(), metrics


def make_batch(rows: int = 16) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    batch = {
        "x": rng.normal(size=(rows, 4)),
        "y": rng.normal(size=rows),
        "weight": rng.integers(0, 5, rows) * (np.arange(rows) > rows // 4),
    }
    return {k: v.astype(np.float32) for k, v in batch.items()}


def update(model: Tiny, tx: optax.GradientTransformation, accumulate: int = 1, batch=None):
    batch = split_micro(make_batch() if batch is None else batch, accumulate)
    return make_train_step(loss_fn, tx, accumulate)(init_state(model, tx), batch)


def leaves(tree) -> list[np.ndarray]:
    return [np.asarray(x) for x in jax.tree.leaves(tree)]


# ---- schedules


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("constant", [0.5, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0]),
        ("linear", [0.5, 1.0, 1.0, 0.8, 0.6, 0.4, 0.2]),
        ("cosine", [0.5, 1.0, 1.0, 0.2 + 0.4 * (1 + 0.5**0.5), 0.6, 0.6 - 0.4 * 0.5**0.5, 0.2]),
    ],
)
def test_schedules_warm_up_then_decay_to_the_ratio(schedule, expected):
    config = dataclasses.replace(
        OPTIM, learning_rate=2.0, schedule=schedule, warmup_steps=2, end_lr_ratio=0.2
    )
    rate = make_schedule(config, total_steps=7)
    np.testing.assert_allclose([rate(jnp.int32(i)) / 2 for i in range(7)], expected, rtol=1e-5)
    assert float(rate(jnp.int32(99))) == pytest.approx(2 * expected[-1])


def test_an_unknown_schedule_names_the_choices():
    with pytest.raises(ValueError, match=r"'step'.*constant.*linear.*cosine"):
        make_optimizer(dataclasses.replace(OPTIM, schedule="step"), 10)


# ---- the optimizer


@pytest.mark.parametrize(
    ("key", "bad", "good", "rule"),
    [
        ("eps", 0.0, 1e-30, "above 0"),
        ("b1", 1.0, 0.0, "below 1"),
        ("b2", 1.0, 0.999999, "below 1"),
    ],
)
def test_constants_of_adam_that_divide_by_nothing_are_refused(key, bad, good, rule):
    values = {"learning_rate": 0.1}
    assert getattr(to_dataclass(OptimConfig, values | {key: good}), key) == good
    with pytest.raises(ConfigError, match=rf"^config\.{key} is {bad}; it must be {rule}$"):
        to_dataclass(OptimConfig, values | {key: bad})


def test_three_adamw_updates_by_hand():
    config = dataclasses.replace(
        OPTIM, weight_decay=0.1, clip_norm=0.5, schedule="linear", warmup_steps=1, end_lr_ratio=0.0
    )
    tx = make_optimizer(config, total_steps=4)
    update = jax.jit(tx.update, static_argnames="place")
    params = {"kernel": np.asarray([1.0, -2.0]), "bias": np.asarray([0.5])}
    grads = [
        {"kernel": np.asarray([0.3, -0.1]) * s, "bias": np.asarray([2.0]) * s} for s in (1, 9, 0.1)
    ]
    got, state = jax.tree.map(jnp.float32, params), None
    state = tx.init(got)
    m = dict.fromkeys(params, 0.0)
    v = dict.fromkeys(params, 0.0)
    for t, grad in enumerate(grads, start=1):
        updates, state = update(jax.tree.map(jnp.float32, grad), state, got, place=t - 1)
        got = optax.apply_updates(got, updates)
        norm = np.sqrt(sum((g**2).sum() for g in grad.values()))
        rate = 0.1 * (1 - (t - 1 - (t > 1)) / 2 if t > 1 else 1.0)
        for k in params:
            g = grad[k] * min(1.0, 0.5 / norm)
            m[k] = 0.9 * m[k] + 0.1 * g
            v[k] = 0.95 * v[k] + 0.05 * g**2
            step = m[k] / (1 - 0.9**t) / (np.sqrt(v[k] / (1 - 0.95**t)) + 1e-8)
            params[k] = params[k] - rate * (step + (0.1 * params[k] if k == "kernel" else 0.0))
        np.testing.assert_allclose(got["kernel"], params["kernel"], rtol=1e-5)
        np.testing.assert_allclose(got["bias"], params["bias"], rtol=1e-5)


def test_weight_decay_spares_norms_and_biases_of_the_real_model():
    config = ModelConfig(
        family="qwen3", vocab_size=9, hidden_size=8, intermediate_size=8, num_layers=2, num_heads=2,
        num_kv_heads=1, head_dim=4, rope_theta=1e4, rope_scaling=None, norm_eps=1e-6, qkv_bias=True,
        qk_norm=True, tie_embeddings=False, max_position=32,
    )  # fmt: skip
    compute = ComputeConfig("float32", "float32", "xla", "none", 8)
    model = jax.eval_shape(lambda: Transformer(config, compute, nnx.Rngs(0)))
    decayed = {
        jax.tree_util.keystr(path).split(".")[-2]
        for path, _ in jax.tree_util.tree_flatten_with_path(model)[0]
        if is_decayed(path)
    }
    assert decayed == {"embedding", "head", "q", "k", "v", "o", "gate", "up", "down"}


def test_bfloat16_weights_have_float32_moments_and_stay_bfloat16():
    state, _ = update(Tiny(dtype="bfloat16"), make_optimizer(OPTIM, 10), batch=jax.tree.map(
        jnp.bfloat16, make_batch()))  # fmt: skip
    assert {x.dtype for x in jax.tree.leaves(state.params)} == {jnp.dtype("bfloat16")}
    floats = [x for x in jax.tree.leaves(state.opt_state) if x.dtype != jnp.int32]
    assert len(floats) == 7  # two moments of three parameters, and the learning rate
    assert {x.dtype for x in floats} == {jnp.dtype("float32")}


# ---- the step


def test_a_step_is_the_gradient_of_the_weighted_mean():
    batch, model = make_batch(), Tiny()
    expected, gradient = jax.value_and_grad(
        lambda m: (
            (batch["weight"] * (m(batch["x"]) - batch["y"]) ** 2).sum() / batch["weight"].sum()
        )
    )(model)
    error = np.asarray((model(batch["x"]) - batch["y"]) ** 2)
    want = leaves(jax.tree.map(lambda p, g: p - 0.5 * g, model, gradient))
    state, metrics = update(model, optax.sgd(0.5))
    for mine, theirs in zip(leaves(state.params), want, strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-5, atol=1e-6)
    assert int(state.step) == 1
    assert metrics.keys() == {"loss", "loss_weight", "grad_norm", "error", "error_max"}
    np.testing.assert_allclose(metrics["loss"], expected, rtol=1e-5)
    np.testing.assert_allclose(metrics["loss_weight"], batch["weight"].sum())
    np.testing.assert_allclose(metrics["grad_norm"], optax.tree.norm(gradient), rtol=1e-5)
    np.testing.assert_allclose(metrics["error"], error.mean(), rtol=1e-5)
    np.testing.assert_allclose(metrics["error_max"], error.max(), rtol=1e-5)


@functools.cache
def whole_update() -> tuple[list[np.ndarray], dict[str, float]]:
    state, metrics = update(Tiny(), optax.sgd(0.5))
    return leaves(state.params), {k: float(v) for k, v in metrics.items()}


@pytest.mark.parametrize("accumulate", [2, 4, 16])
def test_the_cut_into_micro_batches_changes_nothing(accumulate):
    params, metrics = whole_update()
    state, got = update(Tiny(), optax.sgd(0.5), accumulate)
    for mine, theirs in zip(leaves(state.params), params, strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-5, atol=1e-6)
    assert {k: float(v) for k, v in got.items()} == pytest.approx(metrics, rel=1e-5)


@pytest.mark.parametrize(
    ("shape", "accumulate"), [((1, 8), 2), ((2, 4), 1), ((2, 4), 2), ((8, 1), 2)]
)
def test_a_mesh_changes_nothing_and_keeps_its_shardings(shape, accumulate):
    if jax.device_count() < 8:
        pytest.skip(f"needs 8 devices, has {jax.device_count()}")
    mesh = jax.make_mesh(shape, ("data", "fsdp"), axis_types=(AxisType.Auto,) * 2)

    def place(tree, *spec):
        return jax.tree.map(
            lambda x: jax.device_put(x, NamedSharding(mesh, PartitionSpec(*spec))), tree
        )

    model = Tiny()
    model.kernel[...] = place(model.kernel[...], None, "fsdp")
    model.bias[...], model.out_norm[...] = place((model.bias[...], model.out_norm[...]), "fsdp")
    tx = optax.sgd(0.5, momentum=0.9)
    state = init_state(model, tx)
    shardings = [x.sharding for x in jax.tree.leaves(state)]
    moment = NamedSharding(mesh, PartitionSpec("fsdp"))
    assert shardings[-1].is_equivalent_to(moment, ndim=1)  # as its parameter
    step = make_train_step(loss_fn, tx, accumulate, like=state)
    axes = (None,) * (accumulate > 1)
    batch = place(split_micro(make_batch(), accumulate), *axes, ("data", "fsdp"))
    state, metrics = step(state, batch)
    assert [x.sharding for x in jax.tree.leaves(state)] == shardings
    params, expected = whole_update()
    for mine, theirs in zip(leaves(state.params), params, strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-5, atol=1e-6)
    assert {k: float(v) for k, v in metrics.items()} == pytest.approx(expected, rel=1e-5)


def test_a_batch_of_no_weight_moves_nothing():
    batch = make_batch() | {"weight": np.zeros(16, np.float32)}
    before = leaves(Tiny())
    state, metrics = update(Tiny(), make_optimizer(OPTIM, 10), batch=batch)
    for mine, theirs in zip(leaves(state.params), before, strict=True):
        np.testing.assert_array_equal(mine, theirs)
    assert float(metrics["loss"]) == float(metrics["loss_weight"]) == 0.0


def test_the_learning_rate_reported_is_the_one_used():
    tx = make_optimizer(dataclasses.replace(OPTIM, schedule="linear", end_lr_ratio=0.0), 3)
    state = init_state(Tiny(), tx)
    step = make_train_step(loss_fn, tx)
    rates = []
    for _ in range(3):
        state, metrics = step(state, make_batch())
        rates.append(float(metrics["lr"]))
    np.testing.assert_allclose(rates, [0.1, 0.05, 0.0], atol=1e-8)
    _, metrics = step(state, make_batch(), None, np.int32(1))
    assert float(metrics["lr"]) == pytest.approx(0.05)


def test_the_old_state_is_donated():
    tx = optax.sgd(0.1)
    old = init_state(Tiny(), tx)
    make_train_step(loss_fn, tx)(old, make_batch())
    assert isinstance(old, TrainState)
    assert all(x.is_deleted() for x in jax.tree.leaves(old.params))


def test_batches_that_cannot_be_cut_are_refused():
    with pytest.raises(ValueError, match="16 rows, on 1 shards of the mesh, is no multiple of 3"):
        split_micro(make_batch(), 3)
    with pytest.raises(ValueError, match=r"\[16\]; every one must be 2"):
        make_train_step(loss_fn, optax.sgd(0.1), 2)(
            init_state(Tiny(), optax.sgd(0.1)), make_batch()
        )


# ---- stochastic rounding


def test_stochastic_rounding_takes_a_neighbour_and_is_right_in_the_mean():
    below, above = 1.0, 1.0 + 2**-7
    x = jnp.float32([1.0 + 2**-7 * 0.3, -(1.0 + 2**-7 * 0.3), 1.0, jnp.inf, 3e-39])
    many = jnp.broadcast_to(x, (20_000, 5))
    got = np.asarray(round_stochastically(many, jax.random.key(0)).astype(jnp.float32))
    assert set(got[:, 0].tolist()) == {below, above}
    assert set(got[:, 1].tolist()) == {-below, -above}
    error = 2**-7 * (0.3 * 0.7 / len(many)) ** 0.5  # one standard deviation of the mean
    np.testing.assert_allclose(got[:, :2].mean(0), x[:2], atol=4 * error)
    assert (got[:, 2] == 1.0).all()
    assert np.isposinf(got[:, 3]).all()
    assert got[:, 4].max() < 1e-38


def descend(dtype: str, rounding: int | None, steps: int = 60, cut: int = 0):
    """Weights after small steps of plain descent; stopped and taken up again after `cut`."""
    tx = optax.sgd(2e-3)
    state = init_state(jax.tree.map(lambda x: x.astype(dtype), {"w": jnp.full(512, 4.0)}), tx)
    batch = {"target": np.linspace(-1.0, 1.0, 512, dtype=np.float32)}

    def loss(params, batch):
        error = params["w"].astype(jnp.float32) - batch["target"]
        return (0.5 * error**2).sum(), jnp.float32(1.0), {}

    for part in (cut, steps - cut):
        step = make_train_step(loss, tx, rounding=rounding)
        for _ in range(part):
            state, _ = step(state, batch)
        state = jax.tree.map(jnp.copy, state)
    return np.asarray(state.params["w"].astype(jnp.float32))


def test_stochastic_rounding_follows_float32_where_the_nearest_stays():
    exact, nearest = descend("float32", None), descend("bfloat16", None)
    drawn = descend("bfloat16", 7)
    assert (nearest == 4.0).mean() > 0.4  # updates under half a step of the weight are lost
    assert np.abs(nearest - exact).mean() > 0.2
    assert np.abs(drawn - exact).mean() < 0.2 * np.abs(nearest - exact).mean()
    assert abs((drawn - exact).mean()) < 0.01
    np.testing.assert_array_equal(descend("bfloat16", 7, cut=23), drawn)
    assert not np.array_equal(descend("bfloat16", 8), drawn)


def test_stochastic_rounding_of_float32_weights_is_refused():
    drawn = dataclasses.replace(OPTIM, rounding="stochastic")
    assert (rounding_seed(OPTIM, 3), rounding_seed(drawn, 3)) == (None, 3)

    def check(optim, dtype, rank=0):
        compute = types.SimpleNamespace(param_dtype=dtype)
        lora = types.SimpleNamespace(rank=rank)
        check_rounding(types.SimpleNamespace(optim=optim, compute=compute, lora=lora))

    check(OPTIM, "float32", 8)
    check(drawn, "bfloat16")
    with pytest.raises(ConfigError, match=r"config\.compute\.param_dtype is float32; give compute"):
        check(drawn, "float32")
    with pytest.raises(ConfigError, match=r"config\.lora\.rank is 8, and adapters are float32"):
        check(drawn, "bfloat16", 8)

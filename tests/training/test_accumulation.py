"""Micro-batches of one update: the same loss and gradient, in the memory of one gradient."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from masksearch_jax import train_sft
from masksearch_jax.core.config import (
    CheckpointConfig,
    ComputeConfig,
    LoraConfig,
    MeshConfig,
    OptimConfig,
)
from masksearch_jax.models import hf, lora
from masksearch_jax.models.layout import shard_parameters
from masksearch_jax.models.transformer import Transformer
from masksearch_jax.parallel.hosts import shard_batch, split_micro
from masksearch_jax.parallel.sharding import make_mesh, to_host
from masksearch_jax.planning.hlo import Module
from masksearch_jax.testing.models import random_model
from masksearch_jax.training.checkpoint import Checkpointer
from masksearch_jax.training.train_state import init_state, make_optimizer, make_train_step
from tests.training import updates
from tests.training.updates import COMPUTE, batch

MODEL = dataclasses.replace(updates.MODEL, num_layers=3)
OPTIM = OptimConfig(3e-2, "constant", 0, 1.0, 0.9, 0.95, 1e-8, 0.1, 1.0, 1)


def three_layers(compute: ComputeConfig = COMPUTE) -> Transformer:
    return random_model(MODEL, compute, seed=1)


@pytest.fixture(scope="module")
def losses():
    return updates.losses()


@pytest.mark.parametrize(("name", "remat", "rank"), [("sft", "block", 0), ("dapo", "none", 2)])
def test_loss_and_gradient_are_those_of_the_whole_batch(name, remat, rank, losses):
    model = three_layers(dataclasses.replace(COMPUTE, remat=remat))
    mesh = make_mesh(MeshConfig(1, 1, 1), jax.devices()[:1])
    params, frozen = lora.trained(model, LoraConfig(rank=rank), mesh, 0)
    before = jax.tree.map(np.asarray, params)
    found = []
    for accumulate in (1, 4):
        tx = optax.sgd(1.0)
        own, rest = jax.tree.map(jnp.copy, (params, frozen))  # a step takes its state
        state = init_state(own, tx, rest)
        step = make_train_step(losses[name], tx, accumulate)
        state, metrics = step(state, split_micro(batch(), accumulate))
        gradient = jax.tree.map(lambda a, b: a - np.asarray(b), before, state.params)
        found.append((float(metrics["loss"]), jax.tree.leaves(gradient)))
    (whole, expected), (cut, gradients) = found
    assert abs(cut - whole) < 1e-6
    assert len(expected) == 14
    for mine, theirs in zip(gradients, expected, strict=True):
        np.testing.assert_allclose(mine, theirs, atol=1e-6)


def test_accumulated_updates_go_on_bitwise_from_a_checkpoint(losses, tmp_path):
    tx = make_optimizer(OPTIM, 20)
    step = make_train_step(losses["sft"], tx, accumulate=2)

    def go_on(state, count: int):
        for _ in range(count):
            state, _ = step(state, split_micro(batch(), 2))
        return state

    whole = go_on(init_state(three_layers(), tx), 4)
    with Checkpointer(tmp_path, CheckpointConfig(every=1, keep=9), MODEL) as checkpointer:
        checkpointer.save(2, go_on(init_state(three_layers(), tx), 2), {})
        state, _ = checkpointer.restore(init_state(three_layers(), tx))
    jax.tree.map(np.testing.assert_array_equal, go_on(state, 2), whole)


# ---- memory, by the compiler

WIDE = dataclasses.replace(
    MODEL, vocab_size=256, hidden_size=128, intermediate_size=384, num_layers=8, head_dim=32
)


def needs(accumulate: int, param_dtype: str) -> tuple[int, int]:
    """Bytes of an update of `accumulate` micro-batches of the same size, and of its gradient."""
    compute = dataclasses.replace(COMPUTE, param_dtype=param_dtype)
    model, tx = hf.abstract(WIDE, compute), make_optimizer(OPTIM, 20)
    state = jax.eval_shape(lambda m: init_state(m, tx), model)
    shape = (accumulate, 2, 32)[accumulate == 1 :]
    kinds = dict.fromkeys(("ids", "targets", "positions", "segment_ids"), jnp.int32)
    kinds |= {"loss_weights": jnp.float32}
    rows = {name: jax.ShapeDtypeStruct(shape, kind) for name, kind in kinds.items()}
    step = make_train_step(train_sft.make_loss_fn(compute), tx, accumulate)
    found = step.lower(state, rows).compile().memory_analysis()
    total = found.argument_size_in_bytes + found.temp_size_in_bytes
    gradient = 4 * sum(x.size for x in jax.tree.leaves(model))
    return total - sum(x.size * 4 for x in rows.values()), gradient


@pytest.mark.parametrize(("param_dtype", "most"), [("float32", 0.1), ("bfloat16", 1.05)])
def test_micro_batches_need_no_second_gradient(param_dtype, most):
    once, gradient = needs(1, param_dtype)
    cut, _ = needs(4, param_dtype)
    assert once > 3 * gradient
    assert (cut - once) / gradient <= most


def test_replicas_sum_their_gradients_once_for_all_micro_batches():
    mesh, tx = make_mesh(MeshConfig(4, 1, 1), jax.devices()[:4]), optax.sgd(1.0)
    state = init_state(shard_parameters(mesh, three_layers()), tx)
    step = make_train_step(train_sft.make_loss_fn(COMPUTE), tx, 2, like=state)
    with jax.set_mesh(mesh):
        rows = shard_batch(mesh, batch(), 2)
        text = step.lower(state, rows).compile().as_text()
    gradient = 4 * sum(x.size for x in jax.tree.leaves(state.params))
    sums = Module(text).collectives()
    assert {c.kind for c in sums} == {"all-reduce"}
    assert {c.times for c in sums} == {1}
    assert gradient <= sum(c.size for c in sums) < gradient + 1000  # and the figures


@pytest.mark.slow
@pytest.mark.parametrize("sizes", [(4, 1, 1), (2, 2, 1)])
def test_adapters_on_replicas_have_the_gradient_of_one_device(sizes, losses):
    found = []
    for config, accumulate in ((MeshConfig(1, 1, 1), 1), (MeshConfig(*sizes), 2)):
        mesh = make_mesh(config, jax.devices()[: config.data * config.fsdp])
        model = shard_parameters(mesh, three_layers())
        params, frozen = lora.trained(model, LoraConfig(rank=2), mesh, 0)
        before, tx = to_host(params), optax.sgd(1.0)
        state = init_state(params, tx, frozen)
        step = make_train_step(losses["sft"], tx, accumulate, like=state)
        with jax.set_mesh(mesh):
            state, metrics = step(state, shard_batch(mesh, batch(), accumulate))
        gradient = jax.tree.map(lambda a, b: a - b, before, to_host(state.params))
        found.append((float(metrics["loss"]), jax.tree.leaves(gradient)))
    (whole, expected), (cut, gradients) = found
    assert abs(cut - whole) < 1e-5
    assert max(np.abs(g).max() for g in expected) > 1e-2
    for mine, theirs in zip(gradients, expected, strict=True):
        np.testing.assert_allclose(mine, theirs, atol=1e-6)

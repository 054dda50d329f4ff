"""Updates of SFT and DAPO on 1, 2 and 4 processes and meshes: the loss and gradient of one."""

from __future__ import annotations

import dataclasses
import socket
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from masksearch_jax import train_dapo, train_sft
from masksearch_jax.core.config import ComputeConfig, DapoRun, MeshConfig, ModelConfig
from masksearch_jax.core.schema import to_dataclass
from masksearch_jax.models import hf
from masksearch_jax.parallel import hosts, sharding
from masksearch_jax.runtime import cli
from masksearch_jax.training import train_state

CHILD = """
import sys
process, count, port, folder = int(sys.argv[2]), int(sys.argv[3]), sys.argv[4], sys.argv[5]
sys.path.insert(0, sys.argv[1])
import conftest, jax
jax.config.update("jax_num_cpu_devices", 4 // count)
jax.config.update("jax_cpu_collectives_implementation", "gloo")
jax.distributed.initialize(f"localhost:{port}", count, process)
import numpy as np
from test_mesh_parity import MESHES, updates
for name, mesh in MESHES.items():
    found = updates(mesh, process, count)
    if process == 0:
        np.savez(f"{folder}/{name}.npz", **found)
"""
MESHES = {
    "data_fsdp": MeshConfig(2, 2, 1),
    "fsdp_tensor": MeshConfig(1, 2, 2),
    "fsdp_context": MeshConfig(1, 2, 1, 2),
}
REPLICAS = {
    "data": MeshConfig(4, 1, 1),
    "data_fsdp": MESHES["data_fsdp"],
    "data_tensor": MeshConfig(2, 1, 2),
    "data_context": MeshConfig(2, 1, 1, 2),
}
COMPUTE = ComputeConfig("float32", "float32", "xla", "block", 16)
MODEL = ModelConfig(
    family="qwen2",
    vocab_size=48,
    hidden_size=16,
    intermediate_size=24,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_dim=8,
    rope_theta=1e4,
    rope_scaling=None,
    norm_eps=1e-6,
    qkv_bias=True,
    qk_norm=False,
    tie_embeddings=True,
    max_position=64,
)
ROWS, TIME = 8, 12


def batch() -> dict[str, np.ndarray]:
    """Packed rows whose weights, masks and advantages all differ, for either loss."""
    rng = np.random.default_rng(0)
    ids = rng.integers(0, MODEL.vocab_size, (ROWS, TIME + 1), np.int32)
    sampler = rng.normal(-4.0, 0.3, (ROWS, TIME)).astype(np.float32)
    return {
        "ids": ids[:, :-1],
        "targets": ids[:, 1:],
        "positions": np.tile(np.int32([*range(7), *range(5)]), (ROWS, 1)),
        "segment_ids": np.tile(np.int32([1] * 7 + [2] * 3 + [0] * 2), (ROWS, 1)),
        "loss_weights": rng.choice(np.float32([0, 0.2, 1]), (ROWS, TIME)),
        "mask": rng.random((ROWS, TIME)) < np.linspace(0.1, 0.9, ROWS)[:, None],
        "advantages": rng.normal(size=ROWS).astype(np.float32),
        "logp_sampler": sampler,
        "logp_old": sampler + rng.normal(0, 0.1, (ROWS, TIME)).astype(np.float32),
    }


def losses() -> dict[str, Callable]:
    path = Path(__file__).parents[2] / "configs" / "ramp_dapo.py"
    dapo = to_dataclass(DapoRun, cli.load_config(f"{path}:tiny")).dapo
    return {
        "sft": train_sft.make_loss_fn(COMPUTE),
        "dapo": train_dapo.make_loss_fn(COMPUTE, dataclasses.replace(dapo, minibatches=2), 1.0),
    }


def updates(
    config: MeshConfig, process: int, count: int, devices=None, accumulate: int = 1
) -> dict[str, np.ndarray]:
    """Loss and gradient, by parameter, of an SFT and a DAPO update with this process's rows.

    Those of SFT are read by all processes of a share, those of DAPO made by one and exchanged.
    """
    mesh, tx = sharding.make_mesh(config, devices), optax.sgd(1.0)
    share, shares = hosts.share(mesh)
    own = {k: np.split(v, count)[process] for k, v in batch().items()}
    rows = {
        "sft": {k: np.split(v, shares)[share] for k, v in batch().items()},
        "dapo": hosts.exchange(mesh, own),
    }
    rng = np.random.default_rng(1)
    shapes = hf.abstract(MODEL, COMPUTE)
    host = jax.tree.map(lambda x: rng.normal(0, 0.2, x.shape).astype(np.float32), shapes)
    placed = sharding.parameter_shardings(mesh, shapes)
    found = {}
    for name, loss_fn in losses().items():
        model = jax.tree.map(
            lambda x, at: jax.make_array_from_callback(x.shape, at, lambda i, x=x: x[i]),
            host,
            placed,
        )
        state = train_state.init_state(model, tx)
        step = train_state.make_train_step(loss_fn, tx, accumulate, like=state)
        used = accumulate if name == "dapo" and accumulate > 1 else None
        with jax.set_mesh(mesh):
            state, metrics = step(state, hosts.shard_batch(mesh, rows[name], accumulate), used)
        after = sharding.to_host(state.params)
        found[f"{name}.loss"] = np.asarray(metrics["loss"])
        pairs = zip(
            jax.tree_util.tree_flatten_with_path(host)[0], jax.tree.leaves(after), strict=True
        )
        for (path, before), new in pairs:
            found[f"{name}.{sharding.parameter_name(path)}"] = before - new
    return found


@pytest.fixture(scope="module")
def alone():
    return updates(MeshConfig(1, 1, 1), 0, 1, jax.devices()[:1])


def test_the_gradients_compared_are_of_every_parameter(alone):
    for name in ("sft", "dapo"):
        gradients = {k: v for k, v in alone.items() if k.startswith(name)}
        assert len(gradients) == 1 + 14
        assert all(np.abs(v).max() > 0 for v in gradients.values())
    assert jnp.isfinite(alone["dapo.loss"])


def assert_as_alone(found: Mapping[str, np.ndarray], alone: dict[str, np.ndarray]) -> None:
    assert set(found) == set(alone)
    for key, expected in alone.items():
        np.testing.assert_allclose(found[key], expected, rtol=1e-5, atol=1e-5, err_msg=key)


@pytest.mark.slow
@pytest.mark.parametrize("mesh", MESHES.values(), ids=MESHES)
def test_meshes_update_as_one_device_does(alone, mesh):
    assert_as_alone(updates(mesh, 0, 1, jax.devices()[:4]), alone)


@pytest.mark.slow
@pytest.mark.parametrize("mesh", REPLICAS.values(), ids=REPLICAS)
def test_micro_batches_on_replicas_update_as_one_device_does(alone, mesh):
    assert_as_alone(updates(mesh, 0, 1, jax.devices()[:4], accumulate=2), alone)


@pytest.mark.slow
@pytest.mark.parametrize("count", [2, 4])
def test_processes_and_meshes_update_as_one_device_does(alone, count, tmp_path):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    tests = str(Path(__file__).parents[1])
    started = [
        subprocess.Popen(
            [sys.executable, "-c", CHILD, tests, str(p), str(count), str(port), str(tmp_path)],
            cwd=Path(tests).parent,
            stderr=subprocess.PIPE,
            text=True,
        )
        for p in range(count)
    ]
    try:
        for process in started:
            _, errors = process.communicate(timeout=240)
            assert process.returncode == 0, errors[-3000:]
    finally:
        for process in started:
            process.kill()
    for name in MESHES:
        assert_as_alone(np.load(tmp_path / f"{name}.npz"), alone)

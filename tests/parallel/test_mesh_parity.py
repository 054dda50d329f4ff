"""Updates of SFT and DAPO on 1, 2 and 4 processes and meshes: the loss and gradient of one."""

from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from masksearch_jax.core.config import MeshConfig
from tests.parallel.mesh_updates import MESHES, SWITCHES, updates

CHILD = """
import sys
process, count, port, folder, *names = sys.argv[1:]
process, count = int(process), int(count)
import jax
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_num_cpu_devices", 4 // count)
jax.config.update("jax_cpu_collectives_implementation", "gloo")
jax.distributed.initialize(f"localhost:{port}", count, process)
import numpy as np
from tests.parallel.mesh_updates import MESHES, SWITCHES, updates
for name in names:
    mesh = MESHES.get(name, MESHES["data_fsdp"])
    found = updates(mesh, process, count, switches=SWITCHES.get(name))
    if process == 0:
        np.savez(f"{folder}/{name}.npz", **found)
"""
REPLICAS = {
    "data": MeshConfig(4, 1, 1),
    "data_fsdp": MESHES["data_fsdp"],
    "data_tensor": MeshConfig(2, 1, 2),
    "data_context": MeshConfig(2, 1, 1, 2),
}


@pytest.fixture(scope="module")
def alone():
    return updates(MeshConfig(1, 1, 1), 0, 1, jax.devices()[:1])


@pytest.fixture(scope="module")
def switched():
    config, device = MeshConfig(1, 1, 1), jax.devices()[:1]
    return {name: updates(config, 0, 1, device, switches=set_) for name, set_ in SWITCHES.items()}


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
def test_each_set_of_switches_changes_the_update(alone, switched):
    changed = [alone, *switched.values()]
    assert len({float(found["dapo.loss"]) for found in changed}) == len(changed)


@pytest.mark.slow
@pytest.mark.parametrize("mesh", MESHES.values(), ids=MESHES)
def test_meshes_update_as_one_device_does(alone, mesh):
    assert_as_alone(updates(mesh, 0, 1, jax.devices()[:4]), alone)


@pytest.mark.slow
@pytest.mark.parametrize("mesh", REPLICAS.values(), ids=REPLICAS)
def test_micro_batches_on_replicas_update_as_one_device_does(alone, mesh):
    assert_as_alone(updates(mesh, 0, 1, jax.devices()[:4], accumulate=2), alone)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("count", "names"), [(2, ["data_fsdp", *SWITCHES]), (4, ["fsdp_tensor", "fsdp_context"])]
)
def test_processes_and_meshes_update_as_one_device_does(alone, switched, count, names, tmp_path):
    """Every axis of a mesh spans processes once."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    started = [
        subprocess.Popen(
            [sys.executable, "-c", CHILD, str(p), str(count), str(port), str(tmp_path), *names],
            cwd=Path(__file__).parents[2],
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
    for name in names:
        expected = alone if name in MESHES else switched[name]
        assert_as_alone(np.load(tmp_path / f"{name}.npz"), expected)


@pytest.mark.slow
@pytest.mark.parametrize("name", SWITCHES)
@pytest.mark.parametrize("shape", [(1, 8), (8, 1)])
def test_the_switches_of_the_loss_update_on_meshes_as_on_one_device(switched, shape, name):
    config = MeshConfig(*shape, 1)
    found = updates(config, 0, 1, jax.devices()[:8], switches=SWITCHES[name])
    assert_as_alone(found, switched[name])


@pytest.mark.slow
@pytest.mark.parametrize("name", SWITCHES)
def test_the_switches_of_the_loss_update_in_micro_batches_as_in_one(switched, name):
    """Of one row each, which holds fewer samples than a group has."""
    config = MeshConfig(1, 1, 1)
    found = updates(config, 0, 1, jax.devices()[:1], accumulate=8, switches=SWITCHES[name])
    assert_as_alone(found, switched[name])

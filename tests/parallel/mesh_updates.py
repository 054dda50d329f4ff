"""The same update on meshes and processes of any shape."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
import optax

from masksearch_jax.core.config import MeshConfig
from masksearch_jax.models import hf, layout
from masksearch_jax.parallel import hosts, sharding
from masksearch_jax.training import train_state
from tests.training.updates import COMPUTE, MODEL, batch, losses

# Switches of DAPO's loss in two sets that go together; what the loss is given is not of them.
SWITCHES: dict[str, dict[str, Any]] = {
    "sequences": {
        "ratio": "sequence",
        "aggregation": "sequence",
        "kl": "k3",
        "kl_weight": 0.1,
        "likelihood_floor": 0.1,
        "dual_clip": 1.5,
    },
    "tokens": {
        "aggregation": "fixed",
        "fixed_length": 24,
        "kl": "positive",
        "kl_weight": 0.1,
        "sequence_gap": 0.5,
    },
}
MESHES = {
    "data_fsdp": MeshConfig(2, 2, 1),
    "fsdp_tensor": MeshConfig(1, 2, 2),
    "fsdp_context": MeshConfig(1, 2, 1, 2),
}


def updates(
    config: MeshConfig,
    process: int,
    count: int,
    devices=None,
    accumulate: int = 1,
    switches: Mapping[str, Any] | None = None,
) -> dict[str, np.ndarray]:
    """Loss and gradient, by parameter, of an SFT and a DAPO update with this process's rows.

    Those of SFT are read by all processes of a share, those of DAPO made by one and exchanged.
    switches: of the loss of DAPO, which is then the only one.
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
    placed = layout.parameter_shardings(mesh, shapes)
    found = {}
    chosen = losses(**switches or {})
    for name in ["dapo"] if switches else list(chosen):
        loss_fn = chosen[name]
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

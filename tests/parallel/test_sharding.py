"""Meshes: where every parameter lies, equal results on all of them, refusals that name the axis."""

from __future__ import annotations

import dataclasses
import math
import os
import re
import subprocess
import sys

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from configs import common
from masksearch_jax.core.config import ComputeConfig, LoraConfig, MeshConfig, ModelConfig
from masksearch_jax.core.schema import to_dataclass
from masksearch_jax.models import hf, kv_cache, layout, lora, shared_weights, unrolled
from masksearch_jax.models.head import token_logprobs
from masksearch_jax.models.transformer import Transformer
from masksearch_jax.parallel import hosts, sharding
from masksearch_jax.parallel.processes import join_processes
from masksearch_jax.planning.hlo import Module
from masksearch_jax.testing.models import FLOAT32, TINY_QWEN2, random_model

MODEL = dataclasses.replace(
    TINY_QWEN2, vocab_size=64, num_heads=8, num_kv_heads=4, qk_norm=True, tie_embeddings=False
)
MESHES = {
    "1x8": MeshConfig(1, 8, 1),
    "2x4": MeshConfig(2, 4, 1),
    "8x1": MeshConfig(8, 1, 1),
    "2x2x2": MeshConfig(2, 2, 2),
}


def model_of(compute: ComputeConfig = FLOAT32, config: ModelConfig = MODEL) -> Transformer:
    return random_model(config, compute, scale=0.1)


def batch() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(1)
    ids = rng.integers(0, MODEL.vocab_size, (8, 9), np.int32)
    return {
        "ids": ids[:, :8],
        "targets": ids[:, 1:],
        "positions": np.broadcast_to(np.int32([0, 1, 2, 3, 4, 0, 1, 2]), (8, 8)),
        "segment_ids": np.broadcast_to(np.int32([1, 1, 1, 1, 1, 2, 2, 2]), (8, 8)),
    }


@jax.jit
def loss_and_gradient(model: Transformer, batch: dict[str, jax.Array]) -> tuple:
    def loss(model: Transformer) -> jax.Array:
        hidden = model.hidden(batch["ids"], batch["positions"], batch["segment_ids"])
        return -token_logprobs(model, hidden, batch["targets"], 1.0, 16)[0].mean()

    return jax.value_and_grad(loss)(model)


@pytest.fixture(scope="module")
def single() -> tuple:
    return sharding.to_host(loss_and_gradient(model_of(), batch()))


SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in ("2x4", "8x1")]


@pytest.mark.parametrize("name", ["1x8", "2x2x2", *SLOW])
def test_loss_and_gradient_are_the_same_on_every_mesh(name: str, single: tuple) -> None:
    mesh = sharding.make_mesh(MESHES[name])
    model = layout.shard_parameters(mesh, model_of())
    with jax.set_mesh(mesh):
        found = loss_and_gradient(model, hosts.shard_batch(mesh, batch()))
    found, expected = (jax.tree.leaves(t) for t in (sharding.to_host(found), single))
    assert len(found) == len(expected) == 18
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)


def test_cached_decoding_is_the_same_on_a_mesh() -> None:
    mesh = sharding.make_mesh(MESHES["2x2x2"])
    ids, counts = batch()["ids"], np.full(8, 8, np.int32)
    cache = kv_cache.init_cache(MODEL, 4, 4, 5, jnp.float32)
    table = np.tile(np.int32([[[2, 0], [1, 3]]]), (4, 1, 1))
    extend = jax.jit(Transformer.extend)
    expected, expected_cache = extend(model_of(), cache, ids, 0 * counts, counts, table)
    model, shards = (
        layout.shard_parameters(mesh, model_of()),
        jax.device_put(cache, NamedSharding(mesh, sharding.spec(*sharding.CACHE))),
    )
    assert shards.v.addressable_shards[0].data.shape == (2, 1, 4, 2, 5, 8)
    with jax.set_mesh(mesh):
        found, found_cache = extend(model, shards, ids, 0 * counts, counts, table)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    np.testing.assert_allclose(found_cache.k, expected_cache.k, atol=1e-5)


def test_each_device_holds_its_part_of_the_weights() -> None:
    mesh = sharding.make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    model = layout.shard_parameters(mesh, model_of())
    assert model.blocks.q[...].sharding.spec == PartitionSpec(None, ("fsdp", "context"), "tensor")
    assert model.blocks.q[...].addressable_shards[0].data.shape == (2, 16, 32)
    assert model.embedding[...].addressable_shards[0].data.shape == (32, 16)
    assert model.norm[...].sharding.is_fully_replicated
    jax.tree.map(np.testing.assert_array_equal, sharding.to_host(model), model_of())


@pytest.mark.parametrize("name", sorted(common.MODELS))
def test_every_parameter_of_every_model_has_a_rule(name: str) -> None:
    config = to_dataclass(ModelConfig, common.model(name))
    tensor = math.gcd(2, config.num_heads, config.num_kv_heads)
    mesh = sharding.make_mesh(MeshConfig(data=1, fsdp=8 // tensor, tensor=tensor))
    model = hf.abstract(config, FLOAT32)
    placed = layout.parameter_shardings(mesh, model)
    held = sum(
        math.prod(at.shard_shape(leaf.shape))
        for at, leaf in zip(jax.tree.leaves(placed), jax.tree.leaves(model), strict=True)
    )
    whole = sum(leaf.size for leaf in jax.tree.leaves(model))
    assert whole / 8 <= held < whole / 8 * 1.02


@pytest.mark.parametrize("adapted", [False, True], ids=["plain", "adapted"])
@pytest.mark.parametrize(
    ("sizes", "parts", "kind"),
    [
        (MeshConfig(1, 2, 2, context=2), 2, Transformer),
        (MeshConfig(2, 2, 1, context=2), 1, unrolled.Unrolled),
    ],
)
def test_rollouts_have_whole_weights_on_every_device(sizes, parts, kind, adapted) -> None:
    model = model_of(dataclasses.replace(FLOAT32, dtype="bfloat16"))
    if adapted:
        model = lora.add(model, LoraConfig(rank=4), 0)
    mesh = sharding.make_mesh(sizes)
    placed = layout.shard_parameters(mesh, model)
    with jax.set_mesh(mesh):
        assert placed.for_sampling("shared") is placed
        copy = placed.for_sampling("whole")
    assert isinstance(copy, kind)
    for path, leaf in jax.tree_util.tree_leaves_with_path(copy):
        own = math.prod(leaf.sharding.shard_shape(leaf.shape))
        assert own in (leaf.size, leaf.size // parts)
        name = jax.tree_util.keystr(path)
        assert leaf.dtype == ("float32" if "adapters" in name else "bfloat16")
    biggest = max(jax.tree.leaves(copy), key=lambda leaf: leaf.size)
    assert math.prod(biggest.sharding.shard_shape(biggest.shape)) == biggest.size // parts
    alone = model.for_sampling()
    if kind is unrolled.Unrolled:
        jax.tree.map(np.testing.assert_array_equal, sharding.to_host(copy), alone)


def test_no_device_sums_a_whole_table() -> None:
    """The gradient of the embedding and the head: of each device's own columns alone."""
    mesh = sharding.make_mesh(MESHES["2x4"])
    config = dataclasses.replace(MODEL, vocab_size=80)  # no other array has as many rows
    model = layout.shard_parameters(mesh, model_of(config=config))
    with jax.set_mesh(mesh):
        placed = hosts.shard_batch(mesh, batch())
        text = loss_and_gradient.lower(model, placed).compile().as_text()
    sums = re.findall(r"= (.*?) all-reduce\(", text)
    assert sums
    assert not any("[80,32]" in shape for shape in sums)
    assert "10,8]" in "".join(re.findall(r"= (.*?) reduce-scatter\(", text))


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize(
    ("sizes", "round_size", "sums"),
    [
        (MeshConfig(1, 8, 1), 2, 2),
        (MeshConfig(1, 8, 1), 4, 1),
        (MeshConfig(1, 2, 1, context=4), 4, 2),
        (MeshConfig(2, 2, 1, context=2), 4, 2),
        (MeshConfig(2, 2, tensor=2), 4, 1),
    ],
    ids=str,
)
def test_sums_in_rounds_are_each_device_s_part(sizes, round_size, sums, axis, monkeypatch) -> None:
    monkeypatch.setattr(
        shared_weights, "_ROUND", round_size
    )  # more than twice as many devices: in two rounds
    mesh = sharding.make_mesh(sizes)
    rng = np.random.default_rng(0)
    x, g = rng.normal(size=(8, 4, 16)), rng.normal(size=(8, 4, 24))
    weight = rng.normal(size=(16, 24))

    def loss(w: jax.Array, x: jax.Array) -> jax.Array:
        return jnp.sum(shared_weights.matmul(x, w, axis) * jnp.float32(g))

    place = sharding.spec(*(sharding.SHARED if i == axis else "any" for i in range(2)))
    with jax.set_mesh(mesh):
        out = NamedSharding(mesh, place), None
        run = jax.jit(jax.grad(loss, argnums=(0, 1)), out_shardings=out)
        text = run.lower(jnp.float32(weight), jnp.float32(x)).compile().as_text()
        found = run(jnp.float32(weight), jnp.float32(x))
    np.testing.assert_allclose(found[0], np.einsum("bti,bto->io", x, g), atol=1e-4)
    np.testing.assert_allclose(found[1], g @ weight.T, atol=1e-4)
    found = [c for c in Module(text).collectives() if c.kind == "reduce-scatter"]
    assert len(found) == sums


def test_the_cpu_is_split_unless_jax_has_begun() -> None:
    code = (
        "import jax; from masksearch_jax.parallel import sharding; sharding.split_cpu(3); "
        "print(jax.device_count()); sharding.split_cpu(2); print(jax.device_count())"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, check=True
    )
    assert done.stdout.split() == ["3", "3"]


def test_what_the_user_tells_the_tpu_compiler_is_kept() -> None:
    ours = "--xla_jf_spmd_threshold_for_windowed_einsum_mib=1000000"
    assert sharding.libtpu_args(None) == ours
    assert sharding.libtpu_args("") == ""  # for a compiler that does not know the flag
    assert sharding.libtpu_args("--a=1") == f"--a=1 {ours}"
    other = "--xla_jf_spmd_threshold_for_windowed_einsum_mib=8 --a=1"
    assert sharding.libtpu_args(other) == other


def test_the_tpu_compiler_is_told_before_jax_looks_for_devices(monkeypatch) -> None:
    monkeypatch.setenv("LIBTPU_INIT_ARGS", "--a=1")
    told = f"--a=1 {sharding.libtpu_args(None)}"
    seen = []
    devices = jax.devices()
    monkeypatch.setattr(
        jax, "devices", lambda: seen.append(os.environ["LIBTPU_INIT_ARGS"]) or devices
    )
    sharding.make_mesh(MESHES["1x8"])
    assert seen == [told]
    monkeypatch.setenv("LIBTPU_INIT_ARGS", "--a=1")
    join_processes()  # whose caller may ask for its number next
    assert os.environ["LIBTPU_INIT_ARGS"] == told


def test_one_axis_takes_the_devices_that_are_left() -> None:
    mesh = sharding.make_mesh(MeshConfig(data=-1, fsdp=2, tensor=1))
    assert dict(mesh.shape) == {"data": 4, "fsdp": 2, "context": 1, "tensor": 1}
    assert mesh.axis_types == (AxisType.Auto,) * 4
    one = sharding.make_mesh(MeshConfig(1, -1, 1), jax.devices()[:3])
    assert dict(one.shape) == {"data": 1, "fsdp": 3, "context": 1, "tensor": 1}


@pytest.mark.parametrize("sizes", [(3, 1, 1), (2, 2, 1), (-1, 3, 1), (16, 1, 1)])
def test_a_mesh_that_does_not_fill_the_devices_is_refused(sizes: tuple[int, ...]) -> None:
    with pytest.raises(sharding.MeshError, match=rf"data={sizes[0]}, .* does not divide 8 devices"):
        sharding.make_mesh(MeshConfig(*sizes))


@pytest.mark.parametrize("sizes", [(-1, -1, 1), (0, 1, 1), (-2, 1, 1)])
def test_a_mesh_of_impossible_sizes_is_refused(sizes: tuple[int, ...]) -> None:
    with pytest.raises(sharding.MeshError, match="at most one is -1"):
        sharding.make_mesh(MeshConfig(*sizes))


def test_a_mesh_that_does_not_divide_the_model_names_the_axis() -> None:
    mesh = sharding.make_mesh(MeshConfig(data=1, fsdp=1, tensor=8))
    with pytest.raises(sharding.MeshError, match=r"model\.num_kv_heads 4 does not divide over 8"):
        layout.shard_parameters(mesh, model_of())


@flax.struct.dataclass
class Adapted:
    adapter: jax.Array
    config: ModelConfig = flax.struct.field(pytree_node=False, default=MODEL)


def test_a_parameter_without_a_rule_is_refused() -> None:
    mesh = sharding.make_mesh(MESHES["8x1"])
    with pytest.raises(sharding.MeshError, match="'adapter' has no sharding rule; known:"):
        layout.parameter_shardings(mesh, Adapted(jnp.zeros((2, 2))))


def test_micro_batches_have_rows_of_every_part_of_the_mesh() -> None:
    """Each part's own rows in their order, whichever process they came through."""
    mesh = sharding.make_mesh(MeshConfig(2, 2, 2))
    rows = np.arange(48, dtype=np.int32).reshape(16, 3)
    found = hosts.shard_batch(mesh, {"ids": rows}, accumulate=2)["ids"]
    assert found.addressable_shards[0].data.shape == (2, 2, 3)
    np.testing.assert_array_equal(
        sharding.to_host(found)[:, :, 0] // 3,
        [[0, 1, 4, 5, 8, 9, 12, 13], [2, 3, 6, 7, 10, 11, 14, 15]],
    )
    halves = (hosts.split_micro(half, 2, shards=2) for half in np.split(rows, 2))  # two processes'
    np.testing.assert_array_equal(sharding.to_host(found), np.concatenate([*halves], axis=1))
    with pytest.raises(ValueError, match="8 rows, on 4 shards of the mesh, is no multiple of 4"):
        hosts.shard_batch(mesh, {"ids": rows[:8]}, accumulate=4)
    with pytest.raises(sharding.MeshError, match="batch: batch of 2 does not divide over 4"):
        hosts.shard_batch(mesh, {"ids": rows[:2]})


def test_a_replica_on_every_device() -> None:
    mesh = sharding.make_mesh(MESHES["2x4"])
    found = sharding.replicate(mesh, {"a": np.arange(3)})["a"]
    assert [s.data.shape for s in found.addressable_shards] == [(3,)] * 8


def test_constrain_does_nothing_without_a_mesh_and_leaves_odd_axes() -> None:
    x = jnp.ones((8, 3))
    assert sharding.constrain(x, "batch", "hidden") is x
    mesh = sharding.make_mesh(dataclasses.replace(MESHES["8x1"], data=4, tensor=2))
    with jax.set_mesh(mesh):
        found = jax.jit(lambda x: sharding.constrain(x, "batch", "hidden"))(x)
    assert found.addressable_shards[0].data.shape == (2, 3)

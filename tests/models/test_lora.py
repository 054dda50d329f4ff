"""Low-rank adapters: what they compute, what trains, what a checkpoint holds, what is exported."""

import dataclasses
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file

from masksearch_jax import plan, train_dapo, train_sft
from masksearch_jax.core.config import (
    CheckpointConfig,
    DapoRun,
    LoraConfig,
    MeshConfig,
    OptimConfig,
    SftRun,
)
from masksearch_jax.core.errors import ConfigError
from masksearch_jax.core.schema import to_dataclass
from masksearch_jax.models import head, hf, lora
from masksearch_jax.models.layout import shard_parameters
from masksearch_jax.models.load import InitError, from_checkpoint, initial, pinned, weights
from masksearch_jax.models.transformer import Transformer
from masksearch_jax.parallel.hosts import shard_batch
from masksearch_jax.parallel.sharding import (
    bytes_on_device,
    make_mesh,
    parameter_name,
    to_host,
)
from masksearch_jax.runtime import cli
from masksearch_jax.testing.models import FLOAT32, TINY_QWEN2, random_model
from masksearch_jax.training import train_state
from masksearch_jax.training.checkpoint import Checkpointer
from masksearch_jax.training.checkpoint_files import CheckpointError

MODEL = dataclasses.replace(TINY_QWEN2, vocab_size=64, tie_embeddings=False)
COMPUTE = dataclasses.replace(FLOAT32, remat="block")
LORA = LoraConfig(rank=3, alpha=6.0)
SAVING = CheckpointConfig(every=1, keep=9)
OPTIM = OptimConfig(3e-2, "constant", 0, 1.0, 0.9, 0.95, 1e-8, 0.0, 1.0, 1)


@pytest.fixture(scope="module")
def mesh():
    return make_mesh(MeshConfig(1, 1, 1), jax.devices()[:1])


@pytest.fixture(scope="module")
def dapo_settings(repository):
    path = repository / "configs" / "ramp_dapo.py"
    return to_dataclass(DapoRun, cli.load_config(f"{path}:tiny")).dapo


def full_model(seed: int = 0, dtype: str = "float32") -> Transformer:
    return random_model(MODEL, dataclasses.replace(COMPUTE, param_dtype=dtype), seed=seed)


def adapted(model: Transformer, config: LoraConfig = LORA, seed: int = 1) -> Transformer:
    """With adapters as after training: no B is zero."""
    rng = np.random.default_rng(seed)
    model = lora.add(model, config, 0)
    adapters = jax.tree.map(
        lambda leaf: jnp.asarray(0.2 * rng.normal(size=leaf.shape), leaf.dtype),
        model.blocks.adapters,
    )
    return lora.attach(model, adapters)


def rows() -> dict[str, np.ndarray]:
    """Two packed rows of two segments."""
    rng = np.random.default_rng(2)
    ids = rng.integers(0, MODEL.vocab_size, (2, 13), np.int32)
    return {
        "ids": ids[:, :-1],
        "targets": ids[:, 1:],
        "positions": np.tile(np.int32([*range(7), *range(5)]), (2, 1)),
        "segment_ids": np.tile(np.int32([1] * 7 + [2] * 5), (2, 1)),
        "loss_weights": np.ones((2, 12), np.float32),
    }


@jax.jit
def logprobs(model: Transformer, batch: dict[str, jax.Array]) -> jax.Array:
    hidden = model.hidden(batch["ids"], batch["positions"], batch["segment_ids"])
    return head.token_logprobs(model, hidden, batch["targets"], 1.0, 16)[0]


def names(tree) -> set[str]:
    return {parameter_name(path) for path, _ in jax.tree_util.tree_flatten_with_path(tree)[0]}


def start(mesh, config: LoraConfig = LORA, dtype: str = "float32") -> train_state.TrainState:
    params, frozen = lora.trained(full_model(dtype=dtype), config, mesh, 0)
    return train_state.init_state(params, train_state.make_optimizer(OPTIM, 20), frozen)


# ---- what they compute


def test_fresh_adapters_change_nothing(mesh):
    model, batch = full_model(), rows()
    state = start(mesh)
    np.testing.assert_array_equal(logprobs(state.model, batch), logprobs(model, batch))
    wide = state.params.blocks.adapters.down_a[...]
    assert wide.shape == (2, 48, 3)
    assert 0.9 * 48**-0.5 < float(jnp.abs(wide).max()) <= 48**-0.5


@pytest.mark.parametrize("targets", [lora.TARGETS, ("q", "down")])
def test_adapters_applied_are_adapters_merged(targets):
    model = adapted(full_model(), dataclasses.replace(LORA, targets=targets))
    merged = lora.merge(model, "float32")
    assert names(merged) == names(full_model())
    changed = {
        n for n in lora.TARGETS if not np.array_equal(getattr(merged.blocks, n)[...],
                                                      getattr(model.blocks, n)[...])
    }  # fmt: skip
    assert changed == set(targets)
    np.testing.assert_allclose(logprobs(model, rows()), logprobs(merged, rows()), atol=1e-5)


def test_sampler_and_trainer_agree():
    model, batch = adapted(full_model()), rows()
    ids = batch["ids"][:, :7]
    cache, zeros = model.init_cache(1, 2, 7), jnp.zeros(2, jnp.int32)
    pages = jnp.arange(2, dtype=jnp.int32)[None, :, None]
    extend = jax.jit(Transformer.extend)
    hidden, cache = extend(model, cache, ids[:, :3], zeros, zeros + 3, pages)
    found = [model.logits(hidden[:, -1])]
    for time in range(3, 6):
        at = zeros + time, zeros + 1, pages
        hidden, cache = extend(model, cache, ids[:, time : time + 1], *at)
        found.append(model.logits(hidden[:, 0]))
    sampled = jax.nn.log_softmax(jnp.stack(found, 1))
    own = jnp.take_along_axis(sampled, batch["targets"][:, 2:6, None], axis=2)[..., 0]
    np.testing.assert_allclose(own, logprobs(model, batch)[:, 2:6], atol=1e-5)


# ---- what trains


def dapo_batch() -> dict[str, np.ndarray]:
    batch = rows()
    del batch["loss_weights"]
    sampled = np.asarray(logprobs(full_model(), batch))
    return batch | {
        "advantages": np.float32([1.0, -1.0]),
        "loss_mask": np.ones((2, 12), np.bool_),
        "logp_sampler": sampled,
        "logp_old": sampled,
    }


@pytest.mark.parametrize(("kind", "dtype"), [("sft", "float32"), ("dapo", "bfloat16")])
def test_an_update_moves_adapters_alone(kind, dtype, mesh, dapo_settings):
    if kind == "sft":
        loss_fn, batch = train_sft.make_loss_fn(COMPUTE), rows()
    else:
        loss_fn, batch = train_dapo.make_loss_fn(COMPUTE, dapo_settings, 1.0), dapo_batch()
    state = start(mesh, dtype=dtype)
    before = to_host(state.frozen)
    assert names(state.params) == {f"blocks.adapters.{n}_{h}" for n in lora.TARGETS for h in "ab"}
    moments = [x for x in jax.tree.leaves(state.opt_state) if x.ndim]
    assert [x.shape for x in moments] == 2 * [x.shape for x in jax.tree.leaves(state.params)]
    assert {x.dtype for x in jax.tree.leaves(state.params)} == {jnp.dtype("float32")}
    step = train_state.make_train_step(loss_fn, train_state.make_optimizer(OPTIM, 20), like=state)
    losses = []
    for _ in range(12):
        state, metrics = step(state, batch)
        losses.append(float(metrics["loss"]))
    assert losses[-1] < losses[0] - 0.1
    jax.tree.map(np.testing.assert_array_equal, to_host(state.frozen), before)
    assert {x.dtype for x in jax.tree.leaves(state.frozen)} == {jnp.dtype(dtype)}
    assert all(float(jnp.abs(x).max()) > 0 for x in jax.tree.leaves(state.params))


@pytest.mark.slow
def test_a_mesh_splits_adapters_and_changes_nothing(mesh):
    step = train_state.make_train_step(
        train_sft.make_loss_fn(COMPUTE), train_state.make_optimizer(OPTIM, 20)
    )
    alone, metrics = step(start(mesh), rows())
    wide = make_mesh(MeshConfig(1, 2, 2), jax.devices()[:4])
    params, frozen = lora.trained(shard_parameters(wide, full_model()), LORA, wide, 0)
    state = train_state.init_state(params, train_state.make_optimizer(OPTIM, 20), frozen)
    shards = {
        n: getattr(params.blocks.adapters, n)[...].addressable_shards[0].data.shape
        for n in ("q_a", "q_b", "o_a", "o_b", "down_a", "down_b")
    }
    assert shards == {
        "q_a": (2, 16, 3), "q_b": (2, 3, 16), "o_a": (2, 16, 3), "o_b": (2, 3, 16),
        "down_a": (2, 24, 3), "down_b": (2, 3, 16),
    }  # fmt: skip
    with jax.set_mesh(wide):
        state, found = step(state, shard_batch(wide, rows()))
    np.testing.assert_allclose(found["loss"], metrics["loss"], rtol=1e-5)
    np.testing.assert_allclose(found["grad_norm"], metrics["grad_norm"], rtol=1e-4)
    for a, b in zip(jax.tree.leaves(state.params), jax.tree.leaves(alone.params), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-4)


@pytest.mark.parametrize(
    ("change", "says"),
    [({"rank": -1}, "rank is -1"), ({"targets": ()}, "choose some of"),
     ({"alpha": 0.0}, r"alpha is 0\.0, with which adapters add nothing"),
     ({"targets": ("q", "embedding")}, r"\('q', 'embedding'\); choose some of")],
)  # fmt: skip
def test_adapters_that_cannot_be_are_refused(change, says, mesh):
    with pytest.raises(ConfigError, match=says):
        lora.trained(full_model(), dataclasses.replace(LORA, **change), mesh, 0)


@pytest.mark.parametrize("change", [{"alpha": 16.0}, {"targets": ("q",)}])
def test_settings_of_adapters_that_a_run_has_not_are_refused(change):
    lora.check_lora(LoraConfig())
    (name, value), *_ = change.items()
    with pytest.raises(ConfigError) as error:
        lora.check_lora(LoraConfig(**change))
    said = (
        f"config.lora.{name} is {value}, which does nothing with lora.rank=0; choose a rank, such"
    )
    assert str(error.value).startswith(said)


# ---- checkpoints


def saved(folder: Path, base: str, mesh, *, dtype: str = "float32") -> Transformer:
    """Adapters on a base, in a checkpoint of step 1; the model they make."""
    base = pinned(base, MODEL)
    model = initial(base, MODEL, dataclasses.replace(COMPUTE, param_dtype=dtype), mesh, 5)
    whole = adapted(model)
    adapters = lora.describe(LORA, model, base, 5)
    params, frozen = lora._split(whole)
    state = train_state.TrainState(jnp.int32(1), params, (), frozen)
    with Checkpointer(folder, SAVING, MODEL, adapters) as checkpointer:
        checkpointer.save(1, state, {})
    return whole


@pytest.mark.parametrize("dtype", ["float32", pytest.param("bfloat16", marks=pytest.mark.slow)])
def test_a_checkpoint_of_adapters_is_loaded_merged_into_its_base(dtype, mesh, tmp_path):
    hf.save(full_model(), tmp_path / "base")
    whole = saved(tmp_path / "c", str(tmp_path / "base"), mesh, dtype=dtype)
    arrays = sum(f.stat().st_size for f in (tmp_path / "c").rglob("*") if f.is_file())
    assert arrays < 4 * sum(x.size for x in jax.tree.leaves(full_model()))  # no base in it
    found = initial(str(tmp_path / "c"), MODEL, COMPUTE, mesh, 0)
    assert found.compute == COMPUTE
    jax.tree.map(np.testing.assert_array_equal, found, lora.merge(whole, "float32"))
    # A base that moved is given, and known by its values.
    (tmp_path / "base").rename(tmp_path / "moved")
    with pytest.raises(InitError, match=r"adapters for .*base, but .*base is not there; .*\.base$"):
        initial(str(tmp_path / "c"), MODEL, COMPUTE, mesh, 0)
    again = initial(str(tmp_path / "c"), MODEL, COMPUTE, mesh, 0, str(tmp_path / "moved"))
    jax.tree.map(np.testing.assert_array_equal, again, found)
    hf.save(full_model(seed=8), tmp_path / "other")
    with pytest.raises(InitError, match=r"other holds another one \([0-9a-f]{16}\)"):
        from_checkpoint(str(tmp_path / "c"), MODEL, COMPUTE, mesh, str(tmp_path / "other"))


@pytest.mark.slow
def test_adapters_may_be_for_the_model_of_other_adapters(mesh, tmp_path):
    first = saved(tmp_path / "sft", "", mesh)  # on random weights: they are their seed's
    second = saved(tmp_path / "dapo", str(tmp_path / "sft"), mesh)
    found = initial(str(tmp_path / "dapo"), MODEL, COMPUTE, mesh, 0)
    jax.tree.map(np.testing.assert_array_equal, found, lora.merge(second, "float32"))
    assert lora.fingerprint(lora.merge(first, "float32")) == lora.fingerprint(
        lora.attach(second, None)
    )


@pytest.mark.slow
def test_adapters_name_the_step_that_they_are_for(mesh, tmp_path):
    base, models = tmp_path / "base", [full_model(seed) for seed in (3, 4)]

    def train_on(step: int) -> None:
        state = train_state.TrainState(jnp.int32(step), models[step - 1], ())
        with Checkpointer(base, SAVING, MODEL) as checkpointer:
            checkpointer.save(step, state, {})

    train_on(1)
    expected = lora.merge(saved(tmp_path / "c", str(base), mesh), "float32")
    train_on(2)
    found = initial(str(tmp_path / "c"), MODEL, COMPUTE, mesh, 0)
    jax.tree.map(np.testing.assert_array_equal, found, expected)
    base.rename(tmp_path / "moved")
    again = initial(str(tmp_path / "c"), MODEL, COMPUTE, mesh, 0, str(tmp_path / "moved"))
    jax.tree.map(np.testing.assert_array_equal, again, expected)
    (tmp_path / "moved").rename(base)
    # A run that goes on takes the latest step, unless it is told the one it began with.
    latest = lora.describe(LORA, models[1], pinned(str(base), MODEL), 0)
    says = rf"for step 1 of {base}, config\.init is step 2 of {base}: base_fingerprint: .* stored"
    with (
        Checkpointer(tmp_path / "c", SAVING, MODEL, latest) as checkpointer,
        pytest.raises(CheckpointError, match=says),
    ):
        checkpointer.restore(start(mesh))
    shutil.rmtree(base / "1")
    with pytest.raises(InitError, match=rf"for step 1 of {base}, but {base}/1 is not there"):
        initial(str(tmp_path / "c"), MODEL, COMPUTE, mesh, 0)


def test_a_checkpoint_refuses_another_base_rank_or_kind(mesh, tmp_path):
    tx = train_state.make_optimizer(OPTIM, 20)

    def opened(model: Transformer, config: LoraConfig):
        adapters = lora.describe(config, model, "", 0)
        params, frozen = lora.trained(model, config, mesh, 0)
        state = train_state.init_state(params, tx, frozen)
        return Checkpointer(tmp_path / "c", SAVING, MODEL, adapters), state

    first, state = opened(full_model(), LORA)
    with first:
        first.save(1, state, {})
        restored, _ = first.restore(state)
        assert jax.tree.structure(restored) == jax.tree.structure(state)
    for model, config, says in (
        (full_model(seed=8), LORA, "for random weights of seed 0, config.init is .*fingerprint"),
        (full_model(dtype="bfloat16"), LORA, "base_dtype: 'float32' stored, 'bfloat16' asked"),
        (full_model(), dataclasses.replace(LORA, rank=4), "rank: 3 stored, 4 asked for"),
        (full_model(), dataclasses.replace(LORA, alpha=1.0), "alpha: 6.0 stored, 1.0 asked"),
        (full_model(), LoraConfig(), "rank 3 stored, config.lora asks for all weights"),
    ):
        checkpointer, like = opened(model, config)
        with checkpointer, pytest.raises(CheckpointError, match=says):
            checkpointer.restore(like)


def test_training_goes_on_bitwise_from_a_checkpoint(mesh, tmp_path):
    batch, tx = rows(), train_state.make_optimizer(OPTIM, 20)
    adapters = lora.describe(LORA, full_model(), "", 0)
    step = train_state.make_train_step(train_sft.make_loss_fn(COMPUTE), tx, like=start(mesh))

    def go_on(state: train_state.TrainState, count: int) -> train_state.TrainState:
        for _ in range(count):
            state, _ = step(state, batch)
        return state

    whole = go_on(start(mesh), 4)
    with Checkpointer(tmp_path, SAVING, MODEL, adapters) as checkpointer:
        checkpointer.save(2, go_on(start(mesh), 2), {})
        state, _ = checkpointer.restore(start(mesh))
    jax.tree.map(np.testing.assert_array_equal, go_on(state, 2), whole)


def test_a_plan_counts_the_moments_of_adapters_alone(repository):
    path = repository / "configs" / "ramp_sft.py"
    cfg = to_dataclass(SftRun, cli.load_config(f"{path}:qwen2.5-7b"))
    compute = dataclasses.replace(cfg.compute, param_dtype="bfloat16")
    cfg = dataclasses.replace(cfg, compute=compute, lora=LoraConfig(rank=16))
    state, _ = plan.state_of(cfg, make_mesh(MeshConfig(1, 4, 2)))
    count = sum(x.size for x in jax.tree.leaves(state.params))
    assert count == 28 * 16 * (9 * 3584 + 2 * 512 + 3 * 18944)  # inputs and outputs of a layer
    by_fsdp, by_tensor = (
        7 * 3584,
        2 * 3584 + 2 * 512 + 3 * 18944,
    )  # of these, the model's and others
    held = 28 * 16 * (by_fsdp / 4 + by_tensor / 2)
    assert bytes_on_device(state.params) == 4 * held
    assert (
        bytes_on_device(state.opt_state) == 2 * 4 * held + 32
    )  # and eight scalars, six the guard's
    assert bytes_on_device(state.frozen) == pytest.approx(2 * 7_615_616_512 / 8, rel=0.001)
    assert plan.held_of([plan.Program("update", None, (state, {}), (0,), 0.0)]) == {
        "base_weights": bytes_on_device(state.frozen),
        "adapters": 4 * held,
        "optimizer": 2 * 4 * held + 32,
    }


def test_a_fingerprint_tells_values_and_their_places(mesh):
    model = full_model()
    whole = lora.fingerprint(model)
    wide = make_mesh(MeshConfig(1, 2, 2), jax.devices()[:4])
    assert lora.fingerprint(shard_parameters(wide, model)) == whole
    low = full_model(dtype="bfloat16")
    assert lora.fingerprint(low) != whole
    assert lora.fingerprint(jax.tree.map(lambda x: x.astype(jnp.float32), low)) == (
        lora.fingerprint(low)
    )
    swapped = full_model()
    swapped.blocks.q = nnx.Param(model.blocks.q[...][:, ::-1])
    assert lora.fingerprint(swapped) != whole


# ---- export

HF = {
    "q": "self_attn.q_proj", "k": "self_attn.k_proj", "v": "self_attn.v_proj",
    "o": "self_attn.o_proj", "gate": "mlp.gate_proj", "up": "mlp.up_proj", "down": "mlp.down_proj",
}  # fmt: skip


def as_peft(model: Transformer) -> dict[str, np.ndarray]:
    """Adapters by the names and in the orientation of peft: A [R, I], B [O, R]."""
    found = {}
    for name, module in HF.items():
        for half in "ab":
            leaf = np.asarray(getattr(model.blocks.adapters, f"{name}_{half}")[...])
            for layer in range(MODEL.num_layers):
                key = f"base_model.model.model.layers.{layer}.{module}.lora_{half.upper()}.weight"
                found[key] = np.ascontiguousarray(leaf[layer].T)
    return found


def test_the_exported_folder_is_base_plus_scaled_b_times_a(tmp_path):
    model = adapted(full_model())
    hf.save(full_model(), tmp_path / "base")
    hf.save(lora.merge(model, "float32"), tmp_path / "merged")
    base, merged = (load_file(tmp_path / n / hf.SINGLE) for n in ("base", "merged"))
    assert base.keys() == merged.keys()
    factors = as_peft(model)
    for name, weight in base.items():
        key = f"base_model.model.{name.removesuffix('.weight')}.lora_A.weight"
        expected = weight.astype(np.float64)
        if key in factors:
            expected = expected + 2.0 * factors[key.replace("_A", "_B")] @ factors[key]
            assert not np.array_equal(merged[name], weight)
        np.testing.assert_allclose(merged[name], expected, atol=1e-6)
    with pytest.raises(hf.HfError, match=r"without a row in the HF table: \['blocks\.adapters"):
        hf.save(model, tmp_path / "unmerged")


@pytest.mark.slow
def test_an_export_of_adapters_streams_what_merging_gives(mesh, tmp_path):
    """On an HF folder, on random weights, on other adapters; kept shards are of the same base."""
    hf.save(full_model(), tmp_path / "base")
    wide = make_mesh(MeshConfig(1, 2, 2), jax.devices()[:4])
    shapes = hf.abstract(MODEL, COMPUTE)
    sources, stack = (
        {"hf": str(tmp_path / "base"), "random": "", "nested": str(tmp_path / "hf")},
        [],
    )
    for name, base in sources.items():
        whole = lora.merge(saved(tmp_path / name, base, mesh, dtype="bfloat16"), "float32")
        hf.save(whole, tmp_path / f"{name}_whole")
        with weights(str(tmp_path / name), MODEL, COMPUTE, wide) as found:
            assert (found.step, found.dtype) == (1, "bfloat16")
            stack.append(found.made_from)
            hf.save(shapes, tmp_path / f"{name}_out", read=found.read, made_from=found.made_from)
        expected = load_file(tmp_path / f"{name}_whole" / hf.SINGLE)
        written = load_file(tmp_path / f"{name}_out" / hf.SINGLE)
        assert written.keys() == expected.keys()
        for key, value in expected.items():  # products of two layouts may round differently
            np.testing.assert_allclose(written[key], value, atol=1e-6, err_msg=key)
    assert len(set(stack)) == 3
    hf.save(full_model(seed=8), tmp_path / "other")
    with (
        pytest.raises(InitError, match=r"other holds another one \([0-9a-f]{16}\)"),
        weights(str(tmp_path / "hf"), MODEL, COMPUTE, mesh, str(tmp_path / "other")),
    ):
        pass


PEFT = """
    import sys
    from pathlib import Path

    import numpy as np
    import torch
    from peft import LoraConfig, get_peft_model, set_peft_model_state_dict
    from transformers import AutoModelForCausalLM

    folder = Path(sys.argv[1])
    model = AutoModelForCausalLM.from_pretrained(folder / "base", dtype=torch.float32)
    modules = "q_proj k_proj v_proj o_proj gate_proj up_proj down_proj".split()
    model = get_peft_model(model, LoraConfig(r=3, lora_alpha=6, target_modules=modules))
    factors = {k: torch.from_numpy(v) for k, v in np.load(folder / "peft.npz").items()}
    unknown = set_peft_model_state_dict(model, factors).unexpected_keys
    assert not unknown, unknown
    ids = torch.from_numpy(np.load(folder / "ids.npy").astype(np.int64))
    with torch.no_grad():
        logits = model(ids).logits.numpy()
    merged = {k: v.numpy() for k, v in model.merge_and_unload().state_dict().items()}
    np.savez(folder / "found.npz", logits=logits, **merged)
"""


@pytest.mark.slow
def test_peft_computes_and_merges_the_same(tmp_path):
    model = adapted(full_model())
    hf.save(full_model(), tmp_path / "base")
    hf.save(lora.merge(model, "float32"), tmp_path / "merged")
    np.savez(tmp_path / "peft.npz", **as_peft(model))
    ids = rows()["ids"][:, :7]
    np.save(tmp_path / "ids.npy", ids)
    subprocess.run([sys.executable, "-c", textwrap.dedent(PEFT), str(tmp_path)], check=True)
    found = dict(np.load(tmp_path / "found.npz"))
    place = np.broadcast_to(np.arange(7, dtype=np.int32), ids.shape)
    logits = model.logits(model.hidden(ids, place, np.ones_like(ids)))
    np.testing.assert_allclose(logits, found.pop("logits"), atol=1e-4)
    ours = load_file(tmp_path / "merged" / hf.SINGLE)
    assert ours.keys() == found.keys()
    for name, weight in ours.items():
        np.testing.assert_allclose(weight, found[name], atol=1e-6)

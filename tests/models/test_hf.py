"""HF folders: parity with transformers, bit-equal round trips, refusals that name the tensor."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from masksearch_jax import export_hf
from masksearch_jax.core.config import (
    CheckpointConfig,
    MeshConfig,
    ModelConfig,
    SftRun,
)
from masksearch_jax.core.tokenizer import Vocab, train_bpe
from masksearch_jax.models import hf, reload_check
from masksearch_jax.models.hf_card import Card
from masksearch_jax.models.hf_config import HfError, read_config, to_hf_config
from masksearch_jax.models.load import InitError, describe, initial
from masksearch_jax.models.transformer import Transformer
from masksearch_jax.parallel.sharding import make_mesh
from masksearch_jax.runtime import cli
from masksearch_jax.testing.models import FLOAT32, TINY_QWEN2, random_model
from masksearch_jax.training.checkpoint import Checkpointer
from masksearch_jax.training.train_state import TrainState
from tests.models.hf_folders import FAMILIES, LLAMA, PROMPTS, QWEN3, write_with_transformers


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    hf.save(random_model(TINY_QWEN2), tmp_path / "model")
    return tmp_path / "model"


def rewrite(folder: Path, change) -> None:
    """Applies `change` to the dict of tensors in the folder's single file."""
    tensors = load_file(folder / hf.SINGLE)
    change(tensors)
    save_file(tensors, folder / hf.SINGLE, metadata={"format": "pt"})


def edit_config(folder: Path, **values: object) -> None:
    edit_json(folder / "config.json", **values)


def edit_json(path: Path, **values: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


@pytest.mark.parametrize("name", FAMILIES)
def test_logits_equal_those_of_transformers(name: str, tmp_path: Path) -> None:
    config = FAMILIES[name]
    expected = write_with_transformers(config, tmp_path / "model")
    model = hf.load(tmp_path / "model", FLOAT32)
    assert model.config == config
    positions = np.broadcast_to(np.arange(24, dtype=np.int32), PROMPTS.shape)
    hidden = jax.jit(Transformer.hidden)(model, PROMPTS, positions, np.ones_like(PROMPTS))
    np.testing.assert_allclose(np.asarray(model.logits(hidden)), expected, atol=1e-4)


@pytest.mark.parametrize("shard", [None, "20KB"])
def test_import_then_export_is_bit_equal(shard: str | None, tmp_path: Path) -> None:
    config = FAMILIES["qwen2-untied"]
    write_with_transformers(config, tmp_path / "from", **{"max_shard_size": shard} if shard else {})
    assert (tmp_path / "from" / hf.INDEX).is_file() == bool(shard)
    model = hf.load(tmp_path / "from", FLOAT32)
    counts = hf.save(model, tmp_path / "to", max_shard_bytes=20e3 if shard else 5e9)
    given, written = (
        {k: v for f in (tmp_path / d).glob("*.safetensors") for k, v in load_file(f).items()}
        for d in ("from", "to")
    )
    assert given.keys() == written.keys()
    assert counts["tensors"] == len(given)
    for name, array in given.items():
        assert array.dtype == written[name].dtype
        np.testing.assert_array_equal(array.view(np.uint32), written[name].view(np.uint32))


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_files_survive_a_float32_model_bit_for_bit(
    dtype: str, tmp_path: Path
) -> None:
    hf.save(random_model(QWEN3), tmp_path / "a", dtype=dtype)
    hf.save(hf.load(tmp_path / "a", FLOAT32), tmp_path / "b", dtype=dtype)
    assert (tmp_path / "a" / hf.SINGLE).read_bytes() == (tmp_path / "b" / hf.SINGLE).read_bytes()
    with safe_open(tmp_path / "b" / hf.SINGLE, "numpy") as file:
        name = "model.layers.1.self_attn.q_norm.weight"
        assert hf.DTYPES[file.get_slice(name).get_dtype()] == dtype
    assert json.loads((tmp_path / "b" / "config.json").read_text())["torch_dtype"] == dtype


def test_shards_keep_to_their_size_and_their_index(tmp_path: Path) -> None:
    model = random_model(TINY_QWEN2)
    counts = hf.save(model, tmp_path / "model", max_shard_bytes=15e3)
    index = json.loads((tmp_path / "model" / hf.INDEX).read_text())
    files = sorted((tmp_path / "model").glob("*.safetensors"))
    assert len(files) > 2
    assert [f.name for f in files] == sorted(set(index["weight_map"].values()))
    assert files[0].name == f"model-00001-of-{len(files):05d}.safetensors"
    sizes = {f.name: [a.nbytes for a in load_file(f).values()] for f in files}
    assert all(sum(s) <= 15e3 for s in sizes.values())
    assert sum(map(sum, sizes.values())) == index["metadata"]["total_size"]
    assert counts == hf.verify(tmp_path / "model")
    jax.tree.map(np.testing.assert_array_equal, hf.load(tmp_path / "model", FLOAT32), model)


@pytest.mark.parametrize("config", FAMILIES.values(), ids=FAMILIES)
def test_config_round_trips_in_both_forms(config: ModelConfig, tmp_path: Path) -> None:
    raw = to_hf_config(config, "bfloat16")
    (tmp_path / "config.json").write_text(json.dumps(raw))
    assert read_config(tmp_path) == config
    rope = raw.pop("rope_scaling", {"rope_type": "default"}) | {"rope_theta": raw.pop("rope_theta")}
    (tmp_path / "config.json").write_text(json.dumps(raw | {"rope_parameters": rope}))
    assert read_config(tmp_path) == config


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"model_type": "gpt2"}, r"model_type 'gpt2' is unknown; choices: \['qwen2', 'qwen3'"),
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu'; only 'silu'"),
        ({"use_sliding_window": True}, "use_sliding_window is True"),
        ({"layer_types": ["full_attention", "sliding_attention"]}, "sliding_attention"),
        ({"rope_scaling": {"type": "longrope", "factor": 4.0}}, "default, llama3, yarn, linear"),
        ({"rope_scaling": {"type": "yarn"}}, r"yarn rope scaling lacks \['factor'\]"),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 4.0}}, "lacks .*low_freq_factor"),
        ({"rope_theta": None}, "no rope_theta"),
        ({"hidden_size": None}, "no 'hidden_size'"),
    ],
)
def test_a_config_we_do_not_compute_is_refused(folder: Path, values: dict, message: str) -> None:
    edit_config(folder, **values)
    with pytest.raises(HfError, match=message):
        read_config(folder)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"num_attention_heads": 0}, "num_attention_heads is 0; it must be at least 1"),
        ({"num_attention_heads": "4"}, "num_attention_heads is '4' (str); it must be int"),
        ({"num_key_value_heads": 0}, "num_key_value_heads is 0; it must be at least 1"),
        ({"num_key_value_heads": [2, 2]}, "num_key_value_heads is [2, 2] (list); it must be int"),
        ({"num_key_value_heads": 3}, "num_key_value_heads is 3; it must be a divisor of 4"),
        ({"head_dim": 0}, "head_dim is 0; it must be at least 1"),
        ({"head_dim": 7}, "head_dim is 7; it must be even"),
        ({"head_dim": None, "hidden_size": 3}, "head_dim is 0; it must be at least 1"),
        ({"num_hidden_layers": -1}, "num_hidden_layers is -1; it must be at least 1"),
        ({"max_position_embeddings": 0}, "max_position_embeddings is 0; it must be at least 1"),
        ({"rms_norm_eps": "1e-6"}, "rms_norm_eps is '1e-6' (str); it must be float"),
        ({"rope_theta": 0}, "rope_theta is 0.0; it must be above 1"),
        ({"rope_theta": "1e4"}, "rope_theta is '1e4' (str); it must be float"),
        ({"tie_word_embeddings": "false"}, "tie_word_embeddings is 'false' (str); it must be"),
        ({"model_type": ["qwen2"]}, "model_type ['qwen2'] is unknown; choices: ['qwen2', "),
    ],
)
def test_a_config_of_wrong_numbers_is_refused_by_file_key_and_rule(
    folder: Path, values: dict, said: str
) -> None:
    edit_config(folder, **values)
    with pytest.raises(HfError, match=f"^{re.escape(f'{folder}/config.json: {said}')}"):
        read_config(folder)


def test_weights_of_any_sizes_are_trained_on_without_naming_one(tmp_path: Path, repository) -> None:
    """A folder whose sizes are in no table, as SmolLM2's: its config.json says them."""
    sizes = {"num_heads": 9, "num_kv_heads": 3, "head_dim": 8, "hidden_size": 72}
    config = dataclasses.replace(LLAMA, rope_scaling=None, norm_eps=9.999999747378752e-06, **sizes)
    model = random_model(config)
    hf.save(model, tmp_path / "model")
    flags = [f"--config={repository}/configs/ramp_sft.py:hf", f"--config.init={tmp_path / 'model'}"]
    cfg = cli.parse(SftRun, ["train_sft", *flags, "--config.compute.dtype=float32"], read_config)
    assert cfg.model == config
    mesh = make_mesh(MeshConfig(1, 1, 1), jax.devices()[:1])
    read = initial(cfg.init, cfg.model, cfg.compute, mesh, 0)
    leaves = zip(jax.tree.leaves(model), jax.tree.leaves(read), strict=True)
    assert all(np.array_equal(a, b) for a, b in leaves)


def test_a_model_that_hf_cannot_describe_is_refused() -> None:
    with pytest.raises(HfError, match="qwen3 model has qkv_bias, qk_norm"):
        to_hf_config(dataclasses.replace(QWEN3, qkv_bias=True), "float32")


READERS = pytest.mark.parametrize("read", [hf.verify, lambda f: hf.load(f, FLOAT32)])


@READERS
def test_a_missing_tensor_is_named(folder: Path, read) -> None:
    rewrite(folder, lambda t: t.pop("model.layers.1.mlp.up_proj.weight"))
    with pytest.raises(HfError, match=r"1 tensors are missing: \['model\.layers\.1\.mlp\.up_proj"):
        read(folder)


@READERS
def test_a_tensor_without_a_place_is_named(folder: Path, read) -> None:
    rewrite(folder, lambda t: t.update({"model.layers.2.mlp.bias": np.zeros(3, np.float32)}))
    with pytest.raises(HfError, match=r"1 tensors have no place: \['model\.layers\.2\.mlp\.bias'"):
        read(folder)


@READERS
def test_a_misshapen_tensor_is_named_with_both_shapes(folder: Path, read) -> None:
    name = "model.layers.0.self_attn.k_proj.weight"
    rewrite(folder, lambda t: t.update({name: t[name].T.copy()}))
    with pytest.raises(HfError, match=re.escape(f"{name} has shape (32, 16), expected (16, 32)")):
        read(folder)


@READERS
def test_a_tensor_of_whole_numbers_is_refused(folder: Path, read) -> None:
    rewrite(folder, lambda t: t.update({"model.norm.weight": np.ones(32, np.int32)}))
    with pytest.raises(HfError, match=r"model\.norm\.weight is I32, expected one of"):
        read(folder)


@READERS
def test_a_cut_file_is_refused(folder: Path, read) -> None:
    data = (folder / hf.SINGLE).read_bytes()
    (folder / hf.SINGLE).write_bytes(data[:-100])
    with pytest.raises(HfError, match="no whole safetensors file"):
        read(folder)


@READERS
def test_a_missing_shard_is_named(tmp_path: Path, read) -> None:
    hf.save(random_model(TINY_QWEN2), tmp_path / "model", max_shard_bytes=15e3)
    gone = sorted((tmp_path / "model").glob("*.safetensors"))[1]
    gone.unlink()
    with pytest.raises(FileNotFoundError, match=gone.name):
        read(tmp_path / "model")


def test_an_index_that_points_at_the_wrong_shard_is_refused(tmp_path: Path) -> None:
    hf.save(random_model(TINY_QWEN2), tmp_path / "model", max_shard_bytes=15e3)
    path = tmp_path / "model" / hf.INDEX
    index = json.loads(path.read_text())
    files = sorted(set(index["weight_map"].values()))
    index["weight_map"]["model.embed_tokens.weight"] = files[-1]
    path.write_text(json.dumps(index))
    with pytest.raises(HfError, match=r"its files lack: \['model\.embed_tokens\.weight'\]"):
        hf.verify(tmp_path / "model")
    path.write_text("{}")
    with pytest.raises(HfError, match="has no weight_map"):
        hf.verify(tmp_path / "model")


def test_an_empty_folder_is_no_model(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no config\.json"):
        hf.verify(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(HfError, match="is not JSON"):
        hf.verify(tmp_path)


def test_a_tied_model_may_repeat_its_head_but_not_change_it(folder: Path) -> None:
    def repeat(tensors: dict) -> None:
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].copy()

    rewrite(folder, repeat)
    jax.tree.map(np.testing.assert_array_equal, hf.load(folder, FLOAT32), random_model(TINY_QWEN2))
    rewrite(folder, lambda t: t["lm_head.weight"].__setitem__(0, 0.0))
    said = r"lm_head\.weight differs.* set tie_word_embeddings to false .*config\.model\.tie_emb"
    with pytest.raises(HfError, match=said):
        hf.load(folder, FLOAT32)
    edit_config(folder, tie_word_embeddings=False)
    assert hf.load(folder, FLOAT32).config == FAMILIES["qwen2-untied"]


@READERS
def test_a_tied_model_saved_with_its_head_alone_has_its_table(folder: Path, read) -> None:
    table = "model.embed_tokens.weight"
    rewrite(folder, lambda t: t.update({"lm_head.weight": t.pop(table)}))
    read(folder)
    jax.tree.map(np.testing.assert_array_equal, hf.load(folder, FLOAT32), random_model(TINY_QWEN2))
    rewrite(folder, lambda t: t.pop("lm_head.weight"))
    with pytest.raises(HfError, match=r"1 tensors are missing: \['model\.embed_tokens\.weight'"):
        read(folder)


@READERS
def test_an_untied_model_without_its_head_may_be_a_tied_one(tmp_path: Path, read) -> None:
    hf.save(random_model(FAMILIES["qwen2-untied"]), tmp_path / "model")
    rewrite(tmp_path / "model", lambda t: t.pop("lm_head.weight"))
    with pytest.raises(HfError, match=r"lm_head\.weight is missing.* set tie_word_embeddings to"):
        read(tmp_path / "model")


@READERS
@pytest.mark.parametrize(
    "name",
    [
        *("model.rotary_emb.inv_freq", "rotary_emb.inv_freq", "model.rotary_emb.original_inv_freq"),
        *(f"model.layers.1.self_attn.rotary_emb.{n}" for n in ("inv_freq", "cos_cached")),
    ],
)
def test_buffers_that_the_config_decides_are_left_out(folder: Path, read, name: str) -> None:
    rewrite(folder, lambda t: t.update({name: np.ones(4, np.float32)}))
    read(folder)
    jax.tree.map(np.testing.assert_array_equal, hf.load(folder, FLOAT32), random_model(TINY_QWEN2))


def renamed(change):
    """Names changed by `change`, of all tensors."""

    def rename(tensors: dict) -> None:
        for name in list(tensors):
            tensors[change(name)] = tensors.pop(name)

    return rename


def wrapped_layers(name: str) -> str:
    return re.sub(r"(layers\.\d\.)", r"\1_checkpoint_wrapped_module.", name)


@READERS
@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            "_orig_mod.{}".format,
            (
                "its tensors have '_orig_mod.' in their names (_orig_mod.model.embed_tokens.weight"
                ", _orig_mod.model.layers.0.input_layernorm.weight), of torch.compile"
            ),
        ),
        ("module.{}".format, "its tensors have 'module.' in their names (module.model.embed"),
        (
            wrapped_layers,
            (
                "its tensors have '_checkpoint_wrapped_module.' in their names (model.layers.0."
                "_checkpoint_wrapped_module.input_layernorm.weight, model.layers.0."
            ),
        ),
        (
            "module._orig_mod.{}".format,
            (
                "its tensors have 'module.' and '_orig_mod.' in their names (module._orig_mod."
                "model.embed_tokens.weight, module._orig_mod.model.layers.0.input_layernorm."
                "weight), of DataParallel and torch.compile: save the module that is wrapped"
            ),
        ),
        (
            lambda name: name.removeprefix("model."),
            (
                "the names of its tensors lack the 'model.' in front (embed_tokens.weight, "
                "layers.0.input_layernorm.weight)"
            ),
        ),
        (
            lambda name: f"language_{name}",
            "the names of its tensors begin with 'language_model.' (language_model.embed_tokens",
        ),
        (
            lambda name: re.sub(r"(q_proj)\.weight", r"\1.base_layer.weight", name),
            "its tensors are those of a PEFT adapter (model.layers.0.self_attn.q_proj.base_layer",
        ),
        (
            lambda name: re.sub(r"(_proj)\.weight", r"\1.qweight", name),
            (
                "its weights are quantised (model.layers.0.mlp.down_proj.qweight, "
                "model.layers.0.mlp.gate_proj.qweight); give the folder of the model that"
            ),
        ),
        (
            lambda name: name.replace("gate_proj", "w1"),
            (
                "2 tensors are missing: ['model.layers.0.mlp.gate_proj.weight', "
                "'model.layers.1.mlp.gate_proj.weight']; 2 have no place: model.layers.0.mlp.w1."
            ),
        ),
    ],
)
def test_names_that_are_not_the_tables_are_given_with_the_cause(
    folder: Path, read, change, said: str
) -> None:
    rewrite(folder, renamed(change))
    with pytest.raises(HfError, match=re.escape(f"{folder}: {said}")) as error:
        read(folder)
    assert "\n" not in str(error.value)


@READERS
def test_a_quantised_tensor_beside_the_weights_is_named(folder: Path, read) -> None:
    name = "model.layers.1.mlp.up_proj.weight_scale_inv"
    rewrite(folder, lambda t: t.update({name: np.ones((1, 1), np.float32)}))
    with pytest.raises(HfError, match=re.escape(f"its weights are quantised ({name})")):
        read(folder)


@READERS
@pytest.mark.parametrize(
    ("values", "said"),
    [
        (
            {"quantization_config": {"quant_method": "gptq", "bits": 4}},
            "quantization_config (gptq)",
        ),
        ({"quantization_config": {"quant_method": "fp8"}}, "quantization_config (fp8)"),
        ({"quantization_config": "gptq"}, "quantization_config (gptq)"),
        ({"quantization_config": {"load_in_4bit": True}}, "quantization_config (load_in_4bit)"),
        ({"compression_config": {"quant_method": "sparse"}}, "compression_config (sparse)"),
    ],
)
def test_quantised_weights_are_refused(folder: Path, read, values: dict, said: str) -> None:
    edit_config(folder, **values)
    with pytest.raises(HfError, match=re.escape(f"{folder / 'config.json'} has {said}: ")):
        read(folder)


@READERS
@pytest.mark.parametrize("settings", [None, {}])
def test_empty_settings_of_quantisation_say_nothing(folder: Path, read, settings) -> None:
    edit_config(folder, quantization_config=settings)
    read(folder)


@READERS
@pytest.mark.parametrize("alone", [True, False])
def test_a_peft_adapter_is_named_with_its_base(folder: Path, read, alone: bool) -> None:
    settings = {"peft_type": "LORA", "base_model_name_or_path": "org/base"}
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    if alone:
        (folder / hf.SINGLE).rename(folder / "adapter_model.safetensors")
        (folder / "config.json").unlink()
    said = r"has adapter_config\.json: a PEFT adapter of 'org/base'; merge it into its model first"
    with pytest.raises(HfError, match=said):
        read(folder)
    with pytest.raises(HfError, match=said):
        describe(str(folder), "")
    with pytest.raises(HfError, match=said):
        initial(str(folder), TINY_QWEN2, FLOAT32, make_mesh(MeshConfig(1, -1, 1)), 0)


@pytest.mark.parametrize("family", ["qwen2", "qwen3", "llama"])
def test_head_dim_left_out_is_what_transformers_takes_it_for(tmp_path: Path, family: str) -> None:
    transformers = pytest.importorskip("transformers")
    raw = to_hf_config(next(c for c in FAMILIES.values() if c.family == family), "float32")
    del raw["head_dim"]
    (tmp_path / "config.json").write_text(json.dumps(raw))
    theirs = transformers.AutoConfig.from_pretrained(tmp_path, local_files_only=True)
    width = theirs.hidden_size // theirs.num_attention_heads
    assert read_config(tmp_path).head_dim == getattr(theirs, "head_dim", width)
    assert read_config(tmp_path).head_dim == {"qwen3": 128}.get(family, 8)


def sharded(folder: Path) -> list[str]:
    """A model written in shards; the names of these."""
    hf.save(random_model(TINY_QWEN2), folder, max_shard_bytes=15e3)
    return sorted(p.name for p in folder.glob("*.safetensors"))


@READERS
def test_a_single_file_beside_an_index_of_shards_is_refused(tmp_path: Path, read) -> None:
    files = sharded(tmp_path / "model")
    hf.save(random_model(TINY_QWEN2, seed=1), tmp_path / "other")
    shutil.copy(tmp_path / "other" / hf.SINGLE, tmp_path / "model")
    said = f"has weights twice, {hf.SINGLE} and {hf.INDEX} with {files[0]} to {files[-1]}"
    with pytest.raises(HfError, match=re.escape(said)):
        read(tmp_path / "model")
    for gone, count in ((files[:1], 1), (files[1:], len(files))):
        for name in gone:
            (tmp_path / "model" / name).unlink()
        said = f"{count} of the {len(files)} shards that it names are gone"
        with pytest.raises(HfError, match=rf"{said} .*: delete the index to read {hf.SINGLE}"):
            read(tmp_path / "model")
    (tmp_path / "model" / hf.INDEX).unlink()
    read(tmp_path / "model")


@READERS
def test_an_index_of_the_single_file_is_no_other(folder: Path, read) -> None:
    where = dict.fromkeys(load_file(folder / hf.SINGLE), hf.SINGLE)
    (folder / hf.INDEX).write_text(json.dumps({"weight_map": where}))
    read(folder)


@READERS
@pytest.mark.parametrize(
    ("where", "said"),
    [
        ({}, rf"has an empty weight_map; where {hf.SINGLE} is there, delete the index"),
        ({"model.norm.weight": 3}, r"weight_map has 3 for model\.norm\.weight, not a file name"),
    ],
)
def test_an_index_that_is_none_is_refused(folder: Path, read, where: dict, said: str) -> None:
    (folder / hf.INDEX).write_text(json.dumps({"weight_map": where}))
    with pytest.raises(HfError, match=said):
        read(folder)


@READERS
def test_a_folder_without_safetensors_is_listed(folder: Path, read) -> None:
    (folder / hf.SINGLE).rename(folder / "pytorch_model.bin")
    with pytest.raises(FileNotFoundError, match=r"has neither .*; it has .*'pytorch_model\.bin'"):
        read(folder)


def test_a_failed_save_leaves_the_earlier_folder(folder: Path, file_size_limit) -> None:
    before = {p.name: p.read_bytes() for p in folder.iterdir()}
    file_size_limit(10_000)
    with pytest.raises(OSError, match=r"File too large: '.*model\.safetensors'"):
        hf.save(random_model(TINY_QWEN2, seed=1), folder)
    file_size_limit(None)
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == before
    assert [p.name for p in folder.parent.iterdir()] == ["model"]


def test_a_second_save_replaces_the_first(folder: Path) -> None:
    model = random_model(TINY_QWEN2, seed=1)
    hf.save(model, folder)
    jax.tree.map(np.testing.assert_array_equal, hf.load(folder, FLOAT32), model)
    assert [p.name for p in folder.parent.iterdir()] == ["model"]


def test_a_folder_of_something_else_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(HfError, match="is no HF model folder"):
        hf.save(random_model(TINY_QWEN2), tmp_path)
    assert (tmp_path / "thesis.tex").read_text() == "years of work"


def test_generation_config_and_its_token_ids(folder: Path) -> None:
    hf.save(random_model(TINY_QWEN2), folder, generation_config={"eos_token_id": [3], "top_k": 5})
    read = [json.loads((folder / f).read_text()) for f in ("generation_config.json", "config.json")]
    assert read[0] == {"eos_token_id": [3], "top_k": 5}
    assert read[1]["eos_token_id"] == [3]
    assert "top_k" not in read[1]


def test_a_folder_without_a_tokenizer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no tokenizer in"):
        hf.save(random_model(TINY_QWEN2), tmp_path / "model", tokenizer_dir=tmp_path)
    assert not (tmp_path / "model").exists()


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer") / "bpe"
    train_bpe(["the capital of Peru is Lima"] * 4, folder, vocab_size=300)
    return folder


@pytest.mark.slow
def test_export_reloads_with_transformers(tokenizer: Path, tmp_path: Path) -> None:
    if not reload_check.has_transformers():
        pytest.skip("torch and transformers are not both installed")
    model = random_model(dataclasses.replace(LLAMA, vocab_size=300))
    report = export_hf.export(model, tmp_path / "model", tokenizer, max_shard_bytes=30e3)
    assert report["reload"] == "transformers"
    assert report["max_logit_difference"] < 1e-4
    assert report["greedy_tokens_equal"] is True
    assert report["tensors"] == 20
    from transformers import AutoTokenizer

    text = "the capital of Peru"
    ids = AutoTokenizer.from_pretrained(tmp_path / "model")(text)["input_ids"]
    assert ids == AutoTokenizer.from_pretrained(tokenizer)(text)["input_ids"]


def always(config: ModelConfig, token: int) -> Transformer:
    """A model whose likeliest next token is always `token`."""
    model = jax.tree.map(jnp.zeros_like, random_model(config))
    model.embedding, model.norm = jnp.ones_like(model.embedding), jnp.ones_like(model.norm)
    model.head = model.head.at[token].set(1.0)
    return model


@pytest.mark.parametrize(
    "given", [None, {}, {"eos_token_id": 0}, {"eos_token_id": [0, 5], "pad_token_id": 1}]
)
def test_transformers_ends_where_we_end(tokenizer: Path, tmp_path: Path, given) -> None:
    """The tokenizer says `<|im_end|>`, generation_config.json another id or none."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    source = shutil.copytree(tokenizer, tmp_path / "source")
    edit_json(source / "tokenizer_config.json", eos_token="<|im_end|>")
    if given is not None:
        (source / "generation_config.json").write_text(json.dumps(given))
    vocab = Vocab.load(source)
    (end,) = vocab.encode("<|im_end|>")
    config = dataclasses.replace(TINY_QWEN2, vocab_size=300, tie_embeddings=False)
    export_hf.export(always(config, end), tmp_path / "model", source, reload="table")
    for name in ("generation_config.json", "config.json"):
        written = json.loads((tmp_path / "model" / name).read_text())
        assert written["eos_token_id"] == list(vocab.eos_ids)
        assert written["pad_token_id"] == (given or {}).get("pad_token_id", vocab.pad_id)
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    prompt = torch.tensor([vocab.encode("the capital of Peru")])
    found = model.generate(prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=8)
    assert found[0, prompt.shape[1] :].tolist() == [end]
    assert Vocab.load(tmp_path / "model").eos_ids == vocab.eos_ids


def test_what_a_folder_says_of_generation_is_kept(tokenizer: Path, tmp_path: Path) -> None:
    source = shutil.copytree(tokenizer, tmp_path / "source")
    said = {"eos_token_id": 0, "top_k": 5, "pad_token_id": 7}
    (source / "generation_config.json").write_text(json.dumps(said))
    model = random_model(dataclasses.replace(TINY_QWEN2, vocab_size=300))
    export_hf.export(model, tmp_path / "model", source, reload="table")
    written = json.loads((tmp_path / "model" / "generation_config.json").read_text())
    assert written == said | {"eos_token_id": list(Vocab.load(source).eos_ids)}


def test_export_checks_the_table_where_told(tokenizer: Path, tmp_path: Path) -> None:
    model = random_model(dataclasses.replace(TINY_QWEN2, vocab_size=300))
    report = export_hf.export(model, tmp_path / "model", tokenizer, reload="table")
    size = (tmp_path / "model" / hf.SINGLE).stat().st_size
    assert report == {"tensors": 26, "bytes": size, "reload": "table"}
    ids = json.loads((tmp_path / "model" / "generation_config.json").read_text())["eos_token_id"]
    assert json.loads((tmp_path / "model" / "config.json").read_text())["eos_token_id"] == ids


def test_a_checkpoint_is_exported(tokenizer: Path, tmp_path: Path, capsys) -> None:
    config = dataclasses.replace(TINY_QWEN2, vocab_size=300)
    model = random_model(config)
    folder = str(tmp_path / "run" / "checkpoints")
    with Checkpointer(folder, CheckpointConfig(every=1, keep=2), config) as checkpointer:
        for step in (1, 2):
            scaled = jax.tree.map(lambda leaf, by=step: leaf * by, model)
            checkpointer.save(step, TrainState(jnp.int32(step), scaled, ()), {})
    run = export_hf.ExportRun(
        checkpoint=folder,
        step=-1,
        folder=str(tmp_path / "model"),
        tokenizer=str(tokenizer),
        dtype="float32",
        max_shard_gigabytes=5.0,
        reload="table",
        card=Card(base_model="org/base", license="mit"),
        mesh=MeshConfig(1, -1, 1),
        model=config,
    )
    trained = {"config": {"sft": {"curriculum": "0:ramp_sft_mixed"}}, "content": {}, "sessions": []}
    (tmp_path / "run" / "run.json").write_text(json.dumps(trained))
    report = export_hf.run(run)
    assert "| training | SFT (ramp_sft_mixed) |" in (tmp_path / "model" / "README.md").read_text()
    assert json.loads(capsys.readouterr().out) == {"folder": run.folder, "step": 2} | report
    twice = jax.tree.map(lambda leaf: leaf * 2, model)
    jax.tree.map(np.testing.assert_array_equal, hf.load(run.folder, FLOAT32), twice)
    card = dataclasses.replace(run.card, training="by hand")
    export_hf.run(dataclasses.replace(run, card=card))
    assert "| training | by hand |" in (tmp_path / "model" / "README.md").read_text()
    capsys.readouterr()
    export_hf.run(dataclasses.replace(run, step=1))
    changed = "step: -1 → 1; card.training: 'by hand' → ''"
    told = f"  {run.folder}: the export of other settings is replaced ({changed})\n"
    assert told in capsys.readouterr().err
    record = json.loads((tmp_path / "model" / "run.json").read_text())
    assert record["config"]["step"] == 1
    jax.tree.map(np.testing.assert_array_equal, hf.load(run.folder, FLOAT32), model)


def test_export_refuses_a_folder_that_computes_something_else(
    tokenizer: Path, tmp_path: Path, monkeypatch
) -> None:
    model = random_model(dataclasses.replace(TINY_QWEN2, vocab_size=300))
    monkeypatch.setattr(reload_check, "has_transformers", lambda: True)
    monkeypatch.setattr(
        reload_check, "reference", lambda *_: (np.zeros((2, 16, 300)), np.zeros((2, 16)))
    )
    with pytest.raises(export_hf.ExportError, match=r"logits .* differ from ours by"):
        export_hf.export(model, tmp_path / "model", tokenizer)
    load = hf.load
    other = random_model(dataclasses.replace(TINY_QWEN2, vocab_size=300), seed=9)
    monkeypatch.setattr(hf, "load", lambda *_: other)
    with pytest.raises(export_hf.ExportError, match="does not hold the weights"):
        export_hf.export(model, tmp_path / "model", tokenizer)
    monkeypatch.setattr(hf, "load", load)
    with pytest.raises(export_hf.ExportError, match="choices: auto, transformers, table"):
        export_hf.export(model, tmp_path / "model", tokenizer, reload="torch")


@pytest.mark.parametrize("fails", ["reload", "logits", "weights"])
def test_an_export_that_fails_its_check_leaves_the_earlier_one(
    tokenizer: Path, tmp_path: Path, monkeypatch, fails
) -> None:
    one, two = (
        random_model(dataclasses.replace(TINY_QWEN2, vocab_size=300), seed=s) for s in (0, 1)
    )
    export_hf.export(one, tmp_path / "model", tokenizer, reload="table")
    before = {p.name: p.read_bytes() for p in (tmp_path / "model").iterdir()}

    def reference(*_):
        if fails == "reload":  # as where the child is killed for memory
            raise reload_check.ReloadError("exit status -9")
        return np.zeros((2, 16, 300)), np.zeros((2, 16))

    monkeypatch.setattr(reload_check, "has_transformers", lambda: True)
    monkeypatch.setattr(reload_check, "reference", reference)
    with monkeypatch.context() as patch:
        if fails == "weights":
            patch.setattr(hf, "load", lambda *_: one)
        with pytest.raises((export_hf.ExportError, reload_check.ReloadError)):
            export_hf.export(two, tmp_path / "model", tokenizer, made_from="two")
    assert {p.name: p.read_bytes() for p in (tmp_path / "model").iterdir()} == before
    export_hf.export(two, tmp_path / "model", tokenizer, made_from="two", reload="table")
    jax.tree.map(np.testing.assert_array_equal, hf.load(tmp_path / "model", FLOAT32), two)


@pytest.mark.slow
def test_a_folder_transformers_cannot_load_says_why(tmp_path: Path) -> None:
    if not reload_check.has_transformers():
        pytest.skip("torch and transformers are not both installed")
    hf.save(random_model(TINY_QWEN2), tmp_path / "model")
    shutil.copy(tmp_path / "model" / "config.json", tmp_path / "config.json")
    with pytest.raises(reload_check.ReloadError, match=r"could not reload .*safetensors"):
        reload_check.reference(tmp_path, PROMPTS, 1)


def test_what_no_architecture_can_be_read_from_is_named(tmp_path):
    (tmp_path / "text.txt").write_text("no GGUF")
    for name, said in (("absent.gguf", "is not there"), ("text.txt", "is a file, neither")):
        with pytest.raises(FileNotFoundError, match=rf"{name} {said}"):
            hf.read_config(tmp_path / name)
    with pytest.raises(FileNotFoundError, match=r"no config\.json in .*: not a whole HF model"):
        hf.read_config(tmp_path)


def test_a_folder_without_a_model_is_told_with_what_it_has(tmp_path):
    (tmp_path / "tokenizer.json").write_text("{}")
    mesh = make_mesh(MeshConfig(1, -1, 1))
    said = r"config\.init is '.*', which is not a folder in .*; it has \['tokenizer\.json'\]"
    with pytest.raises(InitError, match=said):
        initial(str(tmp_path), TINY_QWEN2, FLOAT32, mesh, 0)
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(InitError, match=r"did you mean .*/checkpoints\?"):
        initial(str(tmp_path), TINY_QWEN2, FLOAT32, mesh, 0)

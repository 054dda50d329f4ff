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
)
from masksearch_jax.core.tokenizer import train_bpe
from masksearch_jax.models import hf, reload_check
from masksearch_jax.models.hf_card import Card
from masksearch_jax.models.hf_config import HfError, read_config, to_hf_config
from masksearch_jax.models.transformer import Transformer
from masksearch_jax.testing.models import FLOAT32, TINY_QWEN2, random_model
from masksearch_jax.training.checkpoint import Checkpointer
from masksearch_jax.training.train_state import TrainState
from tests.models.hf_folders import FAMILIES, LLAMA, QWEN3


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
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def write_with_transformers(config: ModelConfig, folder: Path, **how: object) -> np.ndarray:
    """A random model saved by transformers itself; returns its logits [2, 24, V] of `PROMPTS`."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    raw = to_hf_config(config, "float32")
    model = transformers.AutoModelForCausalLM.from_config(
        transformers.AutoConfig.for_model(raw.pop("model_type"), **raw), dtype=torch.float32
    ).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.2)
        model.save_pretrained(folder, **how)
        return model(torch.from_numpy(PROMPTS.astype(np.int64))).logits.numpy()


PROMPTS = np.random.default_rng(5).integers(0, TINY_QWEN2.vocab_size, (2, 24), np.int32)


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
        ({"rope_scaling": {"type": "yarn", "factor": 4.0}}, "'yarn' is unsupported"),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 4.0}}, "lacks .*low_freq_factor"),
        ({"rope_theta": None}, "no rope_theta"),
        ({"hidden_size": None}, "no 'hidden_size'"),
    ],
)
def test_a_config_we_do_not_compute_is_refused(folder: Path, values: dict, message: str) -> None:
    edit_config(folder, **values)
    with pytest.raises(HfError, match=message):
        read_config(folder)


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
    with pytest.raises(HfError, match=r"lm_head\.weight differs"):
        hf.load(folder, FLOAT32)


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


def test_export_reloads_with_transformers(tokenizer: Path, tmp_path: Path) -> None:
    if not reload_check.available():
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
    folder = str(tmp_path / "checkpoints")
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
    report = export_hf.run(run)
    assert json.loads(capsys.readouterr().out) == {"folder": run.folder, "step": 2} | report
    twice = jax.tree.map(lambda leaf: leaf * 2, model)
    jax.tree.map(np.testing.assert_array_equal, hf.load(run.folder, FLOAT32), twice)
    export_hf.run(dataclasses.replace(run, step=1))
    jax.tree.map(np.testing.assert_array_equal, hf.load(run.folder, FLOAT32), model)


def test_export_refuses_a_folder_that_computes_something_else(
    tokenizer: Path, tmp_path: Path, monkeypatch
) -> None:
    model = random_model(dataclasses.replace(TINY_QWEN2, vocab_size=300))
    monkeypatch.setattr(reload_check, "available", lambda: True)
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


@pytest.mark.slow
def test_a_folder_transformers_cannot_load_says_why(tmp_path: Path) -> None:
    if not reload_check.available():
        pytest.skip("torch and transformers are not both installed")
    hf.save(random_model(TINY_QWEN2), tmp_path / "model")
    shutil.copy(tmp_path / "model" / "config.json", tmp_path / "config.json")
    with pytest.raises(reload_check.ReloadError, match=r"could not reload .*safetensors"):
        reload_check.reference(tmp_path, PROMPTS, 1)

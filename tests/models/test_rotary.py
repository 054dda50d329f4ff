"""Rotary positions of longer contexts: frequencies and logits are those of transformers."""

from __future__ import annotations

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from masksearch_jax.core.config import RopeScaling
from masksearch_jax.core.errors import ConfigError
from masksearch_jax.models import hf, load, rotary
from masksearch_jax.models.hf_config import HfError, read_config, to_hf_config
from masksearch_jax.models.transformer import Transformer
from masksearch_jax.testing.models import FLOAT32, TINY_QWEN2
from tests.models import gguf_files
from tests.models.hf_folders import FAMILIES, LINEAR, YARN

LENGTH = 40  # tokens, of an original context of 16
CONFIGS = {name: FAMILIES[name] for name in ("qwen2-yarn", "qwen3-yarn", "llama-linear")}


def settings(config, **rope):
    """The config.json of a model as transformers' own configuration."""
    transformers = pytest.importorskip("transformers")
    raw = to_hf_config(config, "float32")
    raw["rope_scaling"] = raw["rope_scaling"] | rope
    return transformers.AutoConfig.for_model(raw.pop("model_type"), **raw)


@pytest.mark.parametrize(
    ("kind", "rope"),
    [
        ("yarn", {}),
        ("yarn", {"factor": 2.5, "beta_fast": 24, "beta_slow": 2}),
        ("yarn", {"mscale": 0.7, "mscale_all_dim": 1.3}),
        ("yarn", {"attention_factor": 1.5}),
        ("linear", {"factor": 3.0}),
    ],
)
def test_frequencies_are_those_of_transformers_at_real_sizes(kind, rope, tmp_path):
    rope_utils = pytest.importorskip("transformers.modeling_rope_utils")
    config = dataclasses.replace(
        TINY_QWEN2, head_dim=128, rope_theta=1e6, max_position=131072, rope_scaling=YARN
    )
    raw = to_hf_config(config, "float32")
    raw["rope_scaling"] = {"rope_type": kind, "factor": 4.0} | rope
    if kind == "yarn":
        raw["rope_scaling"]["original_max_position_embeddings"] = 32768
    (tmp_path / "config.json").write_text(json.dumps(raw))
    ours = read_config(tmp_path)
    transformers = pytest.importorskip("transformers")
    theirs = transformers.AutoConfig.from_pretrained(tmp_path)
    expected, gain = rope_utils.ROPE_INIT_FUNCTIONS[kind](theirs, "cpu")
    found = rotary.frequencies(128, ours.rope_theta, ours.rope_scaling)
    np.testing.assert_allclose(found, expected.numpy(), rtol=1e-6)
    assert ours.rope_scaling.attention_factor == pytest.approx(gain, rel=1e-12)


def test_the_original_context_is_the_models_where_yarn_names_none(tmp_path):
    raw = to_hf_config(TINY_QWEN2, "float32")
    raw["rope_scaling"] = {"type": "yarn", "factor": 4.0}
    (tmp_path / "config.json").write_text(json.dumps(raw))
    gain = 0.1 * np.log(4) + 1
    assert read_config(tmp_path).rope_scaling == RopeScaling(4.0, 1.0, 32.0, 64, "yarn", gain)
    raw["rope_scaling"]["truncate"] = False
    (tmp_path / "config.json").write_text(json.dumps(raw))
    with pytest.raises(HfError, match="truncate of yarn rope scaling is False; only True"):
        read_config(tmp_path)


def test_positions_reach_as_far_as_rope_scaling_has_them():
    plain = dataclasses.replace(TINY_QWEN2, max_position=100)
    reach = {
        None: 100,
        RopeScaling(4.0, 1.0, 4.0, 25, "llama3"): 100,  # whose max_position is the scaled one
        RopeScaling(4.0, 1.0, 32.0, 100, "yarn"): 400,
        RopeScaling(4.0, 1.0, 32.0, 25, "yarn"): 100,
        RopeScaling(2.5, 0.0, 0.0, 0, "linear"): 250,
    }
    for scaling, tokens in reach.items():
        config = dataclasses.replace(plain, rope_scaling=scaling)
        assert load.context_of(config) == tokens
        load.check_context(config, tokens, "x")
        with pytest.raises(ConfigError, match=f"x is {tokens + 1}, .* is of {tokens} tokens"):
            load.check_context(config, tokens + 1, "x")


@pytest.mark.parametrize("name", CONFIGS)
def test_whole_and_cached_logits_are_those_of_transformers_beyond_the_original_context(
    name, tmp_path
):
    torch, transformers = map(pytest.importorskip, ("torch", "transformers"))
    config = CONFIGS[name]
    torch.manual_seed(0)
    theirs = transformers.AutoModelForCausalLM.from_config(settings(config), dtype=torch.float32)
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.normal_(std=0.2)
    theirs.eval().save_pretrained(tmp_path)
    ids = np.random.default_rng(5).integers(0, config.vocab_size, (2, LENGTH), np.int32)
    with torch.no_grad():
        expected = theirs(torch.from_numpy(ids.astype(np.int64))).logits.numpy()
    model = hf.load(tmp_path, FLOAT32)
    assert model.config == config
    positions = np.broadcast_to(np.arange(LENGTH, dtype=np.int32), ids.shape)
    close = 1e-5 * np.abs(expected).max()

    whole = model.logits(jax.jit(Transformer.hidden)(model, ids, positions, np.ones_like(ids)))
    np.testing.assert_allclose(np.asarray(whole), expected, atol=close)

    cache, found = model.init_cache(1, 2, LENGTH, "float32"), []
    pages, start = jnp.arange(2, dtype=jnp.int32)[None, :, None], jnp.zeros(2, jnp.int32)
    extend = jax.jit(Transformer.extend)
    for width in (12, 20, *[1] * 8):  # within, across and beyond it; then token by token
        at = int(start[0])
        hidden, cache = extend(
            model, cache, ids[:, at : at + width], start, start * 0 + width, pages
        )
        found.append(np.asarray(model.logits(hidden)))
        start = start + width
    np.testing.assert_allclose(np.concatenate(found, axis=1), expected, atol=close)


@pytest.mark.parametrize("scaling", [YARN, LINEAR], ids=["yarn", "linear"])
def test_a_gguf_file_says_how_it_is_scaled(scaling, tmp_path):
    pytest.importorskip("gguf")
    config = dataclasses.replace(gguf_files.config_of("qwen2"), rope_scaling=scaling)
    rope = {"type": scaling.kind, "factor": scaling.factor}
    if scaling.kind == "yarn":
        rope["original_context_length"] = scaling.original_max_position
    told = {f"qwen2__rope__scaling__{key}": value for key, value in rope.items()}
    table = {"model.embed_tokens.weight": np.zeros((config.vocab_size, 256), np.float32)}
    table["lm_head.weight"] = table["model.embed_tokens.weight"]
    assert read_config(gguf_files.write(tmp_path / "m.gguf", config, table, **told)) == config
    told["qwen2__rope__scaling__type"] = "longrope"
    with pytest.raises(ValueError, match="'longrope' is not one of none, linear, yarn"):
        read_config(gguf_files.write(tmp_path / "n.gguf", config, table, **told))

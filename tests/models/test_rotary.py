"""Rotary positions of longer contexts: frequencies and logits are those of transformers."""

from __future__ import annotations

import dataclasses
import json
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from masksearch_jax.core.config import ModelConfig, RopeScaling
from masksearch_jax.core.errors import ConfigError
from masksearch_jax.core.gguf_file import GgufError
from masksearch_jax.core.schema import to_dataclass
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


YARN_OF_4 = {"rope_type": "yarn", "factor": 4.0}
LLAMA3 = {"rope_type": "llama3", "low_freq_factor": 1.0, "high_freq_factor": 4.0, "factor": 8.0}
LLAMA3 |= {"original_max_position_embeddings": 8192}


@pytest.mark.parametrize(
    ("rope", "said"),
    [
        ({"rope_type": "linear", "factor": 0}, ".factor is 0.0; it must be at least 1"),
        ({"rope_type": "linear", "factor": -2}, ".factor is -2.0; it must be at least 1"),
        ({"rope_type": "linear", "factor": 0.5}, ".factor is 0.5; it must be at least 1"),
        ({"rope_type": "linear", "factor": "4"}, ".factor is '4' (str); it must be float"),
        ({"rope_type": "linear", "factor": math.inf}, ".factor is inf; it must be finite"),
        ({"rope_type": "linear", "factor": math.nan}, ".factor is nan; it must be finite"),
        ({"rope_type": "linear", "factor": None}, ": linear rope scaling lacks ['factor']"),
        (YARN_OF_4 | {"factor": 0.0}, ".factor is 0.0; it must be at least 1"),
        (YARN_OF_4 | {"factor": None}, ": yarn rope scaling lacks ['factor']"),
        (YARN_OF_4 | {"factor": [4.0]}, ".factor is [4.0] (list); it must be float"),
        (
            YARN_OF_4 | {"original_max_position_embeddings": 0},
            ".original_max_position_embeddings is 0; it must be at least 1",
        ),
        (YARN_OF_4 | {"beta_slow": 0}, ".beta_slow is 0.0; it must be above 0"),
        (YARN_OF_4 | {"beta_fast": 1}, ".beta_fast is 1.0; it must be above the lower one, 1"),
        (YARN_OF_4 | {"attention_factor": 0}, ".attention_factor is 0.0; it must be above 0"),
        (YARN_OF_4 | {"mscale": "1"}, ".mscale is '1'; it must be a number of at least 0"),
        (YARN_OF_4 | {"mscale_all_dim": -1}, ".mscale_all_dim is -1; it must be a number of"),
        (LLAMA3 | {"factor": 0.0}, ".factor is 0.0; it must be at least 1"),
        (LLAMA3 | {"high_freq_factor": 1.0}, ".high_freq_factor is 1.0; it must be above the"),
        (
            LLAMA3 | {"original_max_position_embeddings": -1},
            ".original_max_position_embeddings is -1; it must be at least 0",
        ),
        ({"rope_type": ["yarn"]}, ": rope_type ['yarn'] is unsupported; choices: default, llama3"),
        ([1], " is [1]; it must be an object"),
        ("yarn", " is 'yarn'; it must be an object"),
    ],
)
def test_a_scaling_of_wrong_numbers_is_refused_by_file_key_and_rule(rope, said, tmp_path):
    path = tmp_path / "config.json"
    raw = to_hf_config(TINY_QWEN2, "float32")
    for key in ("rope_scaling", "rope_parameters"):
        path.write_text(json.dumps(raw | {key: rope}))
        at = f"{path}{said}" if said.startswith(": ") else f"{path}: {key}{said}"
        with pytest.raises(HfError, match=f"^{re.escape(at)}"):
            read_config(tmp_path)


@pytest.mark.parametrize(
    ("kind", "key", "value", "rule"),
    [
        ("linear", "factor", 0.0, "at least 1"),
        ("linear", "factor", -1.0, "at least 1"),
        ("yarn", "factor", math.nan, "finite"),
        ("yarn", "factor", math.inf, "finite"),
        ("yarn", "original_max_position", 0, "at least 1"),
        ("llama3", "original_max_position", 0, "at least 1"),
        ("yarn", "low_freq_factor", 0.0, "above 0"),
        ("llama3", "high_freq_factor", 1.0, "above the lower one, 1"),
        ("yarn", "attention_factor", 0.0, "above 0"),
    ],
)
def test_a_scaling_that_no_frequencies_can_be_made_of_is_refused_in_a_config(
    kind, key, value, rule
):
    given = {"linear": LINEAR, "yarn": YARN, "llama3": RopeScaling(8.0, 1.0, 4.0, 8192)}[kind]
    model = dataclasses.asdict(dataclasses.replace(TINY_QWEN2, rope_scaling=given))
    assert to_dataclass(ModelConfig, model).rope_scaling == given
    assert np.isfinite(rotary.frequencies(8, 1e4, given)).all()
    model["rope_scaling"][key] = value
    said = f"config.rope_scaling.{key} is {value}; it must be {rule}"
    with pytest.raises(ConfigError, match=f"^{re.escape(said)}$"):
        to_dataclass(ModelConfig, model)


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


def gguf_scaled(path, **rope):
    """The scaling that is read from a small file that says so of it; yarn__factor: yarn.factor."""
    config = gguf_files.config_of("qwen2")
    table = {"model.embed_tokens.weight": np.zeros((config.vocab_size, 256), np.float32)}
    table["lm_head.weight"] = table["model.embed_tokens.weight"]
    told = {f"qwen2__rope__{key}": value for key, value in rope.items()}
    read = read_config(gguf_files.write(path, config, table, **told))
    assert dataclasses.replace(read, rope_scaling=None) == config
    return read.rope_scaling


@pytest.mark.parametrize("scaling", [YARN, LINEAR], ids=["yarn", "linear"])
def test_a_gguf_file_says_how_it_is_scaled(scaling, tmp_path):
    pytest.importorskip("gguf")
    told = {"scaling__type": scaling.kind, "scaling__factor": scaling.factor}
    if scaling.kind == "yarn":
        told["scaling__original_context_length"] = scaling.original_max_position
    assert gguf_scaled(tmp_path / "m.gguf", **told) == scaling
    told["scaling__type"] = "longrope"
    with pytest.raises(ValueError, match="'longrope' is not one of none, linear, yarn"):
        gguf_scaled(tmp_path / "n.gguf", **told)


@pytest.mark.parametrize(
    ("told", "expected"),
    [
        ({}, None),
        ({"scaling__type": "none", "scaling__factor": 2.5}, None),
        ({"scaling__factor": 2.5}, LINEAR),
        ({"scale_linear": 2.5}, LINEAR),
        ({"scaling__type": "linear", "scale_linear": 2.5}, LINEAR),
        ({"scaling__factor": 2.5, "scale_linear": 8.0}, LINEAR),
    ],
)
def test_a_gguf_file_that_names_no_kind_is_scaled_linearly_as_by_llama_cpp(
    told, expected, tmp_path
):
    pytest.importorskip("gguf")
    assert gguf_scaled(tmp_path / "m.gguf", **told) == expected


@pytest.mark.parametrize(
    ("told", "said"),
    [
        (
            {"scaling__type": "linear", "scaling__factor": 0.0},
            ": qwen2.rope.scaling.factor is 0.0; it must be at least 1",
        ),
        ({"scale_linear": -2.0}, ": qwen2.rope.scale_linear is -2.0; it must be at least 1"),
        (
            {"scaling__type": "linear", "scaling__factor": "4"},
            ": qwen2.rope.scaling.factor is '4' (str); it must be float",
        ),
        (
            {
                "scaling__type": "yarn",
                "scaling__factor": 4.0,
                "scaling__original_context_length": 0,
            },
            ": qwen2.rope.scaling.original_context_length is 0; it must be at least 1",
        ),
        ({"scaling__type": "linear"}, " has no 'qwen2.rope.scaling.factor'"),
    ],
)
def test_a_gguf_file_of_a_wrong_scaling_is_refused_by_file_key_and_rule(told, said, tmp_path):
    pytest.importorskip("gguf")
    with pytest.raises(GgufError, match=re.escape(f"m.gguf{said}")):
        gguf_scaled(tmp_path / "m.gguf", **told)

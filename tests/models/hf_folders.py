"""Small configurations of every family, and an export to an HF folder that is interrupted."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import jax
import numpy as np
import pytest

from masksearch_jax.core.config import ModelConfig, RopeScaling
from masksearch_jax.models import hf
from masksearch_jax.models.hf_config import to_hf_config
from masksearch_jax.parallel import sharding
from masksearch_jax.testing.models import TINY_QWEN2

QWEN3 = dataclasses.replace(TINY_QWEN2, family="qwen3", qkv_bias=False, qk_norm=True, head_dim=16)
LLAMA = dataclasses.replace(
    TINY_QWEN2,
    family="llama",
    qkv_bias=False,
    norm_eps=1e-5,
    rope_scaling=RopeScaling(4.0, 1.0, 4.0, 8),
)
YARN = RopeScaling(4.0, 1.0, 32.0, 16, "yarn", 0.1 * math.log(4) + 1.0)
LINEAR = RopeScaling(2.5, 0.0, 0.0, 0, "linear")
FAMILIES = {
    "qwen2": TINY_QWEN2,
    "qwen2-untied": dataclasses.replace(TINY_QWEN2, tie_embeddings=False),
    "qwen3": QWEN3,
    "llama3": LLAMA,
    "qwen2-yarn": dataclasses.replace(TINY_QWEN2, rope_scaling=YARN),
    "qwen3-yarn": dataclasses.replace(QWEN3, rope_scaling=YARN),
    "llama-linear": dataclasses.replace(LLAMA, rope_scaling=LINEAR),
    "llama3-untied": dataclasses.replace(LLAMA, tie_embeddings=False),
}
SPLIT = dataclasses.replace(TINY_QWEN2, vocab_size=64, tie_embeddings=False)  # divides over a mesh
SHARD = 15e3
PROMPTS = np.random.default_rng(5).integers(0, TINY_QWEN2.vocab_size, (2, 24), np.int32)


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


def interrupted(
    model, folder: Path, at: str, error: BaseException, made_from: str = "run 1"
) -> None:
    """A save that ends with `error` when the parameter `at` is read."""
    leaves = {sharding.parameter_name(p): x for p, x in jax.tree_util.tree_leaves_with_path(model)}

    def read(name: str) -> jax.Array:
        if name == at:
            raise error
        return leaves[name]

    hf.save(model, folder, read=read, made_from=made_from, max_shard_bytes=SHARD)

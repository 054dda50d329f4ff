"""Small GGUF files, written by the package gguf as llama.cpp's converter writes them."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from masksearch_jax.core.config import ModelConfig
from masksearch_jax.models import hf
from masksearch_jax.testing.models import FLOAT32, TINY_QWEN2

# Rows of 256 numbers: the superblock of Q4_K and Q6_K.
_WIDE = {"hidden_size": 256, "intermediate_size": 256, "num_layers": 2, "head_dim": 64}
_WIDE |= {"num_heads": 4, "num_kv_heads": 2, "norm_eps": 1e-5, "max_position": 64}
CONFIGS = {
    "llama": {"family": "llama", "qkv_bias": False, "rope_scaling": None},
    "qwen2": {"family": "qwen2", "tie_embeddings": False},
    "qwen3": {"family": "qwen3", "qkv_bias": False, "qk_norm": True, "head_dim": 128},
}
_NAMES = (
    ("model.embed_tokens", "token_embd"),
    ("model.norm", "output_norm"),
    ("lm_head", "output"),
    ("model.layers.", "blk."),
    ("input_layernorm", "attn_norm"),
    ("post_attention_layernorm", "ffn_norm"),
    ("self_attn.q_", "attn_q_"),
    ("self_attn.k_", "attn_k_"),
    ("self_attn.v_", "attn_v_"),
    ("self_attn.o_", "attn_output_"),
    ("mlp.", "ffn_"),
    ("_proj", ""),
)


def config_of(family: str) -> ModelConfig:
    return dataclasses.replace(TINY_QWEN2, **_WIDE | CONFIGS[family])


def random_weights(config: ModelConfig, seed: int = 0) -> dict[str, np.ndarray]:
    """Random tensors by HF name, as HF stores them."""
    rng = np.random.default_rng(seed)
    model = hf.abstract(config, FLOAT32)
    return {
        name: rng.normal(size=tensor.hf, scale=0.2).astype(np.float32)
        for name, tensor in hf.tensors(model).items()
    }


def gguf_name(hf: str) -> str:
    for theirs, ours in _NAMES:
        hf = hf.replace(theirs, ours)
    return hf


def turned(weight: np.ndarray, heads: int) -> np.ndarray:
    """A rotated matrix as llama.cpp keeps those of llama models: its halves' rows alternate."""
    return weight.reshape(heads, 2, -1, weight.shape[1]).swapaxes(1, 2).reshape(weight.shape)


def stored_form(config: ModelConfig, name: str, weight: np.ndarray) -> np.ndarray:
    heads = {"q_proj": config.num_heads, "k_proj": config.num_kv_heads}
    mine = next((n for part, n in heads.items() if f"{part}.weight" in name), None)
    return turned(weight, mine) if config.family == "llama" and mine else weight


def in_blocks(weight: np.ndarray, kind: str) -> tuple[np.ndarray, object]:
    """The bytes of a matrix in a quantisation, and its type. Vectors stay as they are.

    The package cannot write Q4_K and Q6_K: their blocks are random bytes with small scales.
    """
    import gguf

    if weight.ndim == 1:
        kind = "F32"
    kind_of = gguf.GGMLQuantizationType[kind]
    if kind not in ("Q4_K", "Q6_K", "IQ4_XS"):
        return gguf.quantize(weight, kind_of), kind_of
    block, size = gguf.GGML_QUANT_SIZES[kind_of]
    rng = np.random.default_rng(len(weight))
    made = rng.integers(0, 256, (*weight.shape[:-1], weight.shape[-1] // block, size), np.uint8)
    at = {"Q4_K": (0, 2), "Q6_K": (size - 2,), "IQ4_XS": (0,)}[kind]
    for start in at:
        made[..., start : start + 2] = np.frombuffer(np.float16(1e-3).tobytes(), np.uint8)
    return made.reshape(*weight.shape[:-1], -1), kind_of


def write(
    path: Path,
    config: ModelConfig,
    weights: Mapping[str, np.ndarray],
    kind: str = "F32",
    tokenizer: Path | None = None,
    **settings: object,
) -> Path:
    """A file of HF weights in a quantisation; `settings` replace those of the config.

    tokenizer: a folder; its tokens, merges and template go into the file, and what `pre` names.
    """
    import gguf

    family = str(settings.pop("architecture", config.family))
    writer = gguf.GGUFWriter(path, family)
    writer.add_name("small")
    writer.add_block_count(config.num_layers)
    writer.add_context_length(config.max_position)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_heads)
    writer.add_head_count_kv(config.num_kv_heads)
    writer.add_key_length(config.head_dim)
    writer.add_rope_freq_base(config.rope_theta)
    writer.add_layer_norm_rms_eps(config.norm_eps)
    writer.add_vocab_size(config.vocab_size)
    if tokenizer is not None:
        _add_tokenizer(writer, tokenizer, settings)
    for key, value in settings.items():
        {str: writer.add_string, int: writer.add_uint32, list: writer.add_array}.get(
            type(value), writer.add_float32
        )(key.replace("__", "."), value)
    for name, weight in weights.items():
        made, kind_of = in_blocks(stored_form(config, name, weight), kind)
        writer.add_tensor(gguf_name(name), made, raw_dtype=kind_of)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _add_tokenizer(writer, folder: Path, settings: dict[str, object]) -> None:
    spec = json.loads((folder / "tokenizer.json").read_text())
    special = {t["id"]: t["special"] for t in spec["added_tokens"]}
    names = {i: t for t, i in spec["model"]["vocab"].items()}
    names |= {t["id"]: t["content"] for t in spec["added_tokens"]}
    tokens = [names[i] for i in range(len(names))]
    writer.add_tokenizer_model(str(settings.pop("tokenizer_model", "gpt2")))
    if pre := settings.pop("pre", "gpt-2"):
        writer.add_tokenizer_pre(str(pre))
    writer.add_token_list(tokens)
    writer.add_token_types(
        [{None: 1, True: 3, False: 4}[special.get(i)] for i in range(len(tokens))]
    )
    writer.add_token_merges([" ".join(pair) for pair in spec["model"]["merges"]])
    told = json.loads((folder / "tokenizer_config.json").read_text())
    writer.add_eos_token_id(tokens.index(told["eos_token"]))
    writer.add_pad_token_id(tokens.index(told["pad_token"]))
    writer.add_chat_template((folder / "chat_template.jinja").read_text())

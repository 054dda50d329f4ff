"""A GGUF file as a source of weights: its architecture, and its tensors under their HF names.

The package gguf turns blocks of quantised numbers into float32 with NumPy, rows at a time.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from masksearch_jax.core import gguf_file
from masksearch_jax.core.config import ModelConfig, RopeScaling
from masksearch_jax.core.gguf_file import GgufError, Header
from masksearch_jax.models.file_config import checked, head_dim
from masksearch_jax.models.rotary import (
    UNUSED_BY_LINEAR,
    YARN_BETAS,
    frequencies,
    yarn_attention_factor,
)

if TYPE_CHECKING:
    from gguf.gguf_reader import ReaderTensor

ARCHITECTURES = ("llama", "qwen2", "qwen3")
QUANTISATIONS = (*("F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q4_K", "Q6_K"),)
# GGUF's name of a tensor, of a layer without its "blk.N.", and HF's.
_NAMES = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
# GGUF's name, behind the architecture's, of each number.
_KEYS = {
    "hidden_size": "embedding_length",
    "intermediate_size": "feed_forward_length",
    "num_layers": "block_count",
    "num_heads": "attention.head_count",
    "num_kv_heads": "attention.head_count_kv",
    "head_dim": "attention.key_length",
    "rope_theta": "rope.freq_base",
    "norm_eps": "attention.layer_norm_rms_epsilon",
    "max_position": "context_length",
}
_YARN_KEYS = {
    "low_freq_factor": "yarn_beta_slow",
    "high_freq_factor": "yarn_beta_fast",
    "original_max_position": "original_context_length",
    "attention_factor": "attn_factor",
}
_ROPE_THETA = 10000.0  # of a file that does not say it
_PLACE = re.compile(r"(?:blk\.(\d+)\.)?(\w+)\.(weight|bias)")
_TURNED = re.compile(r"model\.layers\.\d+\.self_attn\.([qk])_proj\.weight")
_ROPE_FREQUENCIES = "rope_freqs.weight"  # by what Llama 3 divides them; the config says it
_TABLE = "token_embd.weight"
# What all models of Llama 3.1 to 3.3 have: their files keep the quotients alone.
_LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position": 8192}


def read_config(path: str | Path) -> ModelConfig:
    """The architecture of a file. Raises GgufError for one that the decoder does not compute."""
    header = gguf_file.read_header(path)
    family = header.need("general.architecture")
    if family not in ARCHITECTURES:
        choices = ", ".join(ARCHITECTURES)
        raise GgufError(f"{path}: architecture {family!r} is unknown; choices: {choices}")
    keys = {ours: f"{family}.{key}" for ours, key in _KEYS.items()}
    tensors = {tensor.name: tensor for tensor in header.tensors()}
    if _TABLE not in tensors:
        raise GgufError(f"{path} has no tensor {_TABLE!r}: it holds no whole model")
    hidden, heads = header.need(keys["hidden_size"]), header.need(keys["num_heads"])
    defaults = {
        "num_kv_heads": heads,
        "head_dim": head_dim(hidden, heads),
        "rope_theta": _ROPE_THETA,
    }
    values = {ours: header.need(key, defaults.get(ours)) for ours, key in keys.items()} | {
        "family": family,
        "vocab_size": int(tensors[_TABLE].shape[-1]),
        "rope_scaling": None,
        "qkv_bias": family == "qwen2",
        "qk_norm": family == "qwen3",
        "tie_embeddings": "output.weight" not in tensors,
    }
    values |= {ours: _decimal(values[ours]) for ours in ("rope_theta", "norm_eps")}
    config = checked(ModelConfig, values, path, keys, GgufError)
    turned = header.get(f"{family}.rope.dimension_count", config.head_dim)
    if turned != config.head_dim:
        raise GgufError(
            f"{path}: {turned} of a head's {config.head_dim} dimensions are rotated; only all is "
            "supported"
        )
    scaling = _read_scaling(header, config, tensors.get(_ROPE_FREQUENCIES))
    return dataclasses.replace(config, rope_scaling=scaling)


def _decimal(value: Any) -> Any:
    """The shortest number that a file's float32 may have been made from: 1e-05."""
    return float(str(np.float32(value))) if type(value) in (int, float) else value


def _read_scaling(
    header: Header, config: ModelConfig, divisors: ReaderTensor | None
) -> RopeScaling | None:
    """The scaling that a file says, by factor or by Llama 3's quotients; linear where of no kind.

    llama.cpp takes linear too, and the factor of the older key where the newer one is not there.
    """
    at = f"{config.family}.rope"
    keys = (f"{at}.scaling.factor", f"{at}.scale_linear")
    given = next((key for key in keys if header.get(key) is not None), None)
    kind = header.get(f"{at}.scaling.type", "linear" if given else "none")
    if kind not in ("none", "linear", "yarn"):
        choices = "none, linear, yarn"
        raise GgufError(f"{header.path}: rope.scaling.type {kind!r} is not one of {choices}")
    if kind == "none":
        return None if divisors is None else _read_quotients(header, config, divisors)
    if divisors is not None:
        raise GgufError(
            f"{header.path} has {_ROPE_FREQUENCIES} beside {kind} rope scaling; only one is read"
        )
    return _read_slowing(header, f"{at}.scaling", kind, given or keys[0])


def _read_quotients(header: Header, config: ModelConfig, divisors: ReaderTensor) -> RopeScaling:
    """The scaling of Llama 3, of which a file keeps what each frequency is divided by."""
    found = np.asarray(divisors.data, np.float64)
    plain = frequencies(config.head_dim, config.rope_theta, None)
    if found.shape == plain.shape and np.isfinite(found).all() and found.min() >= 1:
        scaling = RopeScaling(factor=float(found.max()), **_LLAMA3)
        slowed = frequencies(config.head_dim, config.rope_theta, scaling)
        if np.allclose(found, plain / slowed, rtol=1e-4):
            return scaling
    raise GgufError(f"{header.path}: {_ROPE_FREQUENCIES} is not the scaling of Llama 3")


def _read_slowing(header: Header, at: str, kind: str, factor: str) -> RopeScaling:
    """linear or yarn. factor: the key that has it."""
    keys = {"factor": factor}
    values = {**UNUSED_BY_LINEAR, "kind": kind, "factor": _decimal(header.need(factor))}
    if kind == "yarn":
        keys |= {ours: f"{at}.{key}" for ours, key in _YARN_KEYS.items()}
        beta_slow = header.get(keys["low_freq_factor"], YARN_BETAS["beta_slow"])
        beta_fast = header.get(keys["high_freq_factor"], YARN_BETAS["beta_fast"])
        values |= {
            "low_freq_factor": _decimal(beta_slow),
            "high_freq_factor": _decimal(beta_fast),
            "original_max_position": header.need(keys["original_max_position"]),
            "attention_factor": _decimal(header.get(keys["attention_factor"], 1.0)),
        }
    scaling = checked(RopeScaling, values, header.path, keys, GgufError)
    gain = yarn_attention_factor(scaling.factor) if kind == "yarn" else 1.0
    return dataclasses.replace(scaling, attention_factor=scaling.attention_factor * gain)


class GgufFile:
    """A file's tensors by HF name, as `safetensors.safe_open` gives those of its files."""

    def __init__(self, path: Path) -> None:
        self._config = read_config(path)
        self._tensors = {
            _hf_name(tensor.name): tensor
            for tensor in gguf_file.read_header(path).tensors()
            if tensor.name != _ROPE_FREQUENCIES
        }
        for tensor in self._tensors.values():
            if (kind := tensor.tensor_type.name) not in QUANTISATIONS:
                choices = ", ".join(QUANTISATIONS)
                raise GgufError(f"{path}: {tensor.name} is {kind}; choices: {choices}")

    def keys(self) -> Iterator[str]:
        yield from self._tensors

    def get_slice(self, name: str) -> GgufTensor:
        config, turned = self._config, _TURNED.fullmatch(name)
        if config.family != "llama" or turned is None:
            return GgufTensor(self._tensors[name], None)
        heads = config.num_heads if turned[1] == "q" else config.num_kv_heads
        return GgufTensor(self._tensors[name], _halves(heads, config.head_dim))


class GgufTensor:
    """A tensor that is float32 where it is cut; `order`: HF's rows, by their number in the file."""

    def __init__(self, tensor: ReaderTensor, order: np.ndarray | None) -> None:
        self._tensor = tensor
        self._order = order

    def get_shape(self) -> list[int]:
        return [int(size) for size in self._tensor.shape[::-1]]  # GGUF names the columns first

    def get_dtype(self) -> str:
        return "F32"

    def __getitem__(self, index: tuple[slice, ...]) -> np.ndarray:
        from gguf import dequantize

        rows, *rest = index
        stored = self._tensor.data
        cut = stored[rows] if self._order is None else stored[self._order[rows]]
        return dequantize(cut, self._tensor.tensor_type)[(slice(None), *rest)]


def _hf_name(name: str) -> str:
    """HF's name; the same for a tensor that no HF model has."""
    found = _PLACE.fullmatch(name)
    if found is None or found[2] not in _NAMES:
        return name
    layer = "" if found[1] is None else f"model.layers.{found[1]}."
    return f"{layer}{_NAMES[found[2]]}.{found[3]}"


def _halves(heads: int, head_dim: int) -> np.ndarray:
    """Where a file keeps each row of a rotated matrix [heads · head_dim, M] of HF.

    llama.cpp turns neighbouring rows of llama models together, and HF those half a head apart.
    """
    rows = np.arange(heads * head_dim).reshape(heads, head_dim // 2, 2)
    return rows.swapaxes(1, 2).reshape(-1)

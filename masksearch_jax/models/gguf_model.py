"""A GGUF file as a source of weights: its architecture, and its tensors under their HF names.

The package gguf turns blocks of quantised numbers into float32 with NumPy, rows at a time.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from masksearch_jax.core import gguf_file
from masksearch_jax.core.config import ModelConfig, RopeScaling
from masksearch_jax.core.gguf_file import GgufError, Header
from masksearch_jax.models.rotary import YARN_BETAS, frequencies, yarn_attention_factor

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

    def need(key: str) -> Any:
        return header.need(f"{family}.{key}")

    tensors = {tensor.name: tensor for tensor in header.tensors()}
    if _TABLE not in tensors:
        raise GgufError(f"{path} has no tensor {_TABLE!r}: it holds no whole model")
    hidden, heads = need("embedding_length"), need("attention.head_count")
    head_dim = header.get(f"{family}.attention.key_length") or hidden // heads
    if (turned := header.get(f"{family}.rope.dimension_count", head_dim)) != head_dim:
        raise GgufError(
            f"{path}: {turned} of a head's {head_dim} dimensions are rotated; only all is supported"
        )
    return ModelConfig(
        family=family,
        vocab_size=int(tensors[_TABLE].shape[1]),
        hidden_size=hidden,
        intermediate_size=need("feed_forward_length"),
        num_layers=need("block_count"),
        num_heads=heads,
        num_kv_heads=header.get(f"{family}.attention.head_count_kv") or heads,
        head_dim=head_dim,
        rope_theta=_decimal(header.get(f"{family}.rope.freq_base", 10000.0)),
        rope_scaling=_read_scaling(header, family, head_dim, tensors.get(_ROPE_FREQUENCIES)),
        norm_eps=_decimal(need("attention.layer_norm_rms_epsilon")),
        qkv_bias=family == "qwen2",
        qk_norm=family == "qwen3",
        tie_embeddings="output.weight" not in tensors,
        max_position=need("context_length"),
    )


def _decimal(value: float) -> float:
    """The shortest number that a file's float32 may have been made from: 1e-05."""
    return float(str(np.float32(value)))


def _read_scaling(
    header: Header, family: str, head_dim: int, divisors: ReaderTensor | None
) -> RopeScaling | None:
    kind = header.get(f"{family}.rope.scaling.type", "none")
    if kind not in ("none", "linear", "yarn"):
        choices = "none, linear, yarn"
        raise GgufError(f"{header.path}: rope.scaling.type {kind!r} is not one of {choices}")
    if kind != "none":
        return _read_slowing(header, f"{family}.rope.scaling", kind)
    if divisors is None:
        return None
    found = np.asarray(divisors.data, np.float64)
    theta = header.get(f"{family}.rope.freq_base", 10000.0)
    scaling = RopeScaling(factor=float(found.max()), **_LLAMA3)
    slowed = frequencies(head_dim, theta, scaling)
    expected = frequencies(head_dim, theta, None) / slowed
    if found.shape != expected.shape or not np.allclose(found, expected, rtol=1e-4):
        raise GgufError(f"{header.path}: {_ROPE_FREQUENCIES} is not the scaling of Llama 3")
    return scaling


def _read_slowing(header: Header, at: str, kind: str) -> RopeScaling:
    factor = _decimal(header.need(f"{at}.factor"))
    if kind == "linear":
        return RopeScaling(factor, 0.0, 0.0, 0, kind="linear")
    return RopeScaling(
        factor,
        _decimal(header.get(f"{at}.yarn_beta_slow", YARN_BETAS["beta_slow"])),
        _decimal(header.get(f"{at}.yarn_beta_fast", YARN_BETAS["beta_fast"])),
        header.need(f"{at}.original_context_length"),
        kind="yarn",
        attention_factor=_decimal(header.get(f"{at}.attn_factor", 1.0))
        * yarn_attention_factor(factor),
    )


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

"""HF `config.json` to `ModelConfig` and back, for the families of `families`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from masksearch_jax.core.config import ModelConfig, RopeScaling
from masksearch_jax.core.gguf_file import is_gguf
from masksearch_jax.core.types import JsonObject
from masksearch_jax.models import families, gguf_model
from masksearch_jax.models.rotary import YARN_BETAS, yarn_attention_factor


class HfError(ValueError):
    """An HF folder that cannot be read as a model, or a model that has no HF form."""


PEFT_ADVICE = "merge it into its model first (merge_and_unload) and give the merged folder"

# Keys whose other values would change the function: value that we compute, by key.
_REQUIRED = {
    "hidden_act": "silu",
    "attention_bias": False,
    "mlp_bias": False,
    "use_sliding_window": False,
}
# Ours, by HF's name, of the scalings of rotary frequencies that are computed.
_LENGTH = {"original_max_position": "original_max_position_embeddings"}
_SCALING = {
    "llama3": {"low_freq_factor": "low_freq_factor", "high_freq_factor": "high_freq_factor"}
    | {"factor": "factor"}
    | _LENGTH,
    "yarn": {"factor": "factor", "low_freq_factor": "beta_slow", "high_freq_factor": "beta_fast"}
    | {"attention_factor": "attention_factor"}
    | _LENGTH,
    "linear": {"factor": "factor"},
}


def read_json(path: Path) -> JsonObject:
    """The object in a JSON file. Raises FileNotFoundError, or HfError naming the file."""
    if not path.is_file():
        folder = path.parent
        if not folder.exists():
            raise FileNotFoundError(f"{folder} is not there")
        if not folder.is_dir():
            raise FileNotFoundError(f"{folder} is a file, neither an HF folder nor of GGUF")
        raise FileNotFoundError(f"no {path.name} in {folder}: not a whole HF model folder")
    try:
        found = json.loads(path.read_text())
    except ValueError as error:
        raise HfError(f"{path} is not JSON: {error}") from error
    if not isinstance(found, dict):
        raise HfError(f"{path} holds a {type(found).__name__}, not an object")
    return found


def check_no_adapter(folder: str | Path) -> None:
    """Raises HfError for a folder that PEFT wrote: its weights are not a whole model's."""
    path = Path(folder) / "adapter_config.json"
    if path.is_file():
        base = read_json(path).get("base_model_name_or_path")
        raise HfError(f"{folder} has {path.name}: a PEFT adapter of {base!r}; {PEFT_ADVICE}")


def read_config(folder: str | Path) -> ModelConfig:
    """The architecture of a GGUF file, or in `folder/config.json` as transformers 4 and 5 write it.

    Raises HfError naming the file and key for a model or option that the decoder does not compute,
    and for weights that are quantised or an adapter's.
    """
    if is_gguf(folder):
        return gguf_model.read_config(folder)
    check_no_adapter(folder)
    path = Path(folder) / "config.json"
    raw = read_json(path)
    _check_not_quantised(raw, path)

    def need(key: str) -> Any:
        if raw.get(key) is None:
            raise HfError(f"{path} has no {key!r}; it has {sorted(raw)}")
        return raw[key]

    name = need("model_type")
    family = families.find(name)
    if family is None:
        raise HfError(f"{path}: model_type {name!r} is unknown; choices: {families.names()}")
    for key, value in _REQUIRED.items():
        if raw.get(key, value) != value:
            raise HfError(f"{path}: {key} is {raw[key]!r}; only {value!r} is supported")
    for key, value in family.fixed.items():
        if key not in raw or raw[key] != value:
            is_what = f"is {raw[key]!r}" if key in raw else "is not there"
            raise HfError(f"{path}: {key} {is_what}; of {name} only {value!r} is supported")
    if odd := set(raw.get("layer_types") or ()) - {"full_attention"}:
        raise HfError(f"{path}: layer_types has {sorted(odd)}; only 'full_attention' is supported")
    theta, scaling = _read_rope(raw, path)
    heads = need("num_attention_heads")
    return ModelConfig(
        family=name,
        vocab_size=need("vocab_size"),
        hidden_size=need("hidden_size"),
        intermediate_size=need("intermediate_size"),
        num_layers=need("num_hidden_layers"),
        num_heads=heads,
        num_kv_heads=raw.get("num_key_value_heads") or heads,
        head_dim=raw.get("head_dim") or family.head_dim or need("hidden_size") // heads,
        rope_theta=theta,
        rope_scaling=scaling,
        norm_eps=need("rms_norm_eps"),
        qkv_bias=family.qkv_bias,
        qk_norm=family.qk_norm,
        tie_embeddings=bool(raw.get("tie_word_embeddings", False)),
        max_position=need("max_position_embeddings"),
    )


def _check_not_quantised(raw: JsonObject, path: Path) -> None:
    for key in ("quantization_config", "compression_config"):
        if not (settings := raw.get(key)):
            continue
        method = settings
        if isinstance(settings, dict):
            method = settings.get("quant_method") or ", ".join(settings)
        raise HfError(
            f"{path} has {key} ({method}): quantised weights are not read; "
            "give the folder of the model that they were made from"
        )


def _read_rope(raw: JsonObject, path: Path) -> tuple[float, RopeScaling | None]:
    """Theta and scaling: `rope_parameters` (transformers 5), or `rope_theta` and `rope_scaling`."""
    rope = raw.get("rope_parameters") or raw.get("rope_scaling") or {}
    theta = rope.get("rope_theta", raw.get("rope_theta"))
    if theta is None:
        raise HfError(f"{path} has no rope_theta, at the top or in rope_parameters")
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind == "default":
        return float(theta), None
    if kind not in _SCALING:
        choices = ", ".join(("default", *_SCALING))
        raise HfError(f"{path}: rope_type {kind!r} is unsupported; choices: {choices}")
    return float(theta), _read_scaling(kind, _with_defaults(kind, rope, raw, path), path)


def _read_scaling(kind: str, rope: JsonObject, path: Path) -> RopeScaling:
    if missing := [key for key in _SCALING[kind].values() if key not in rope]:
        raise HfError(f"{path}: {kind} rope scaling lacks {missing}")
    found = {ours: rope[key] for ours, key in _SCALING[kind].items()}
    unused = {"low_freq_factor": 0.0, "high_freq_factor": 0.0, "original_max_position": 0}
    return RopeScaling(**unused | found, kind=kind)


def _with_defaults(kind: str, rope: JsonObject, raw: JsonObject, path: Path) -> JsonObject:
    """What a file says of scaling, with what transformers takes where yarn leaves it out."""
    if kind != "yarn" or rope.get("factor") is None:
        return rope
    if not rope.get("truncate", True):
        raise HfError(f"{path}: truncate of yarn rope scaling is False; only True is supported")
    length = raw.get("original_max_position_embeddings", raw.get("max_position_embeddings"))
    given = {key: value for key, value in rope.items() if value is not None}
    factors = [given.get(key) for key in ("mscale", "mscale_all_dim")]
    over, under = factors if all(factors) else (1.0, 0.0)
    gains = [yarn_attention_factor(rope["factor"], weight) for weight in (over, under)]
    defaults = YARN_BETAS | {"attention_factor": gains[0] / gains[1]}
    return defaults | {_LENGTH["original_max_position"]: length} | given


def to_hf_config(config: ModelConfig, dtype: str) -> JsonObject:
    """The `config.json` object of an architecture, in the form that transformers 4 and 5 read.

    Raises HfError when the family has no such biases or norms: HF derives them from `model_type`.
    """
    family = families.of_config(config.family)
    expected = (family.qkv_bias, family.qk_norm)
    if (config.qkv_bias, config.qk_norm) != expected:
        raise HfError(
            f"an HF {config.family} model has qkv_bias, qk_norm = {expected}, not "
            f"{(config.qkv_bias, config.qk_norm)}"
        )
    out: JsonObject = {
        "architectures": [family.architecture],
        "model_type": config.family,
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_dim,
        "hidden_act": "silu",
        "rms_norm_eps": config.norm_eps,
        "rope_theta": config.rope_theta,
        "max_position_embeddings": config.max_position,
        "tie_word_embeddings": config.tie_embeddings,
        "torch_dtype": dtype,
        "use_cache": True,
        **family.fixed,
    }
    if (scaling := config.rope_scaling) is not None:
        values = {key: getattr(scaling, ours) for ours, key in _SCALING[scaling.kind].items()}
        out["rope_scaling"] = values | {"rope_type": scaling.kind}
    return out

"""HF `config.json` to `ModelConfig` and back, for the families of `families`."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from masksearch_jax.core.config import ModelConfig, RopeScaling
from masksearch_jax.core.gguf_file import is_gguf
from masksearch_jax.core.types import JsonObject
from masksearch_jax.models import families, gguf_model
from masksearch_jax.models.file_config import checked, head_dim
from masksearch_jax.models.rotary import UNUSED_BY_LINEAR, YARN_BETAS, yarn_attention_factor


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
# HF's name of each number of an architecture.
_KEYS = {
    "vocab_size": "vocab_size",
    "hidden_size": "hidden_size",
    "intermediate_size": "intermediate_size",
    "num_layers": "num_hidden_layers",
    "num_heads": "num_attention_heads",
    "num_kv_heads": "num_key_value_heads",
    "head_dim": "head_dim",
    "rope_theta": "rope_theta",
    "norm_eps": "rms_norm_eps",
    "tie_embeddings": "tie_word_embeddings",
    "max_position": "max_position_embeddings",
}
# HF's name of each number of the scalings of rotary frequencies that are computed.
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
    for a number that cannot work, and for weights that are quantised or an adapter's.
    """
    if is_gguf(folder):
        return gguf_model.read_config(folder)
    check_no_adapter(folder)
    path = Path(folder) / "config.json"
    raw = read_json(path)
    _check_not_quantised(raw, path)

    def need(key: str, default: Any = None) -> Any:
        found = default if raw.get(key) is None else raw[key]
        if found is None:
            raise HfError(f"{path} has no {key!r}; it has {sorted(raw)}")
        return found

    name = need("model_type")
    family = families.find(name) if isinstance(name, str) else None
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
    defaults = {
        "num_key_value_heads": heads,
        "head_dim": family.head_dim or head_dim(need("hidden_size"), heads),
        "tie_word_embeddings": False,
        "rope_theta": theta,
    }
    numbers = {ours: need(key, defaults.get(key)) for ours, key in _KEYS.items()}
    rest = {"family": name, "qkv_bias": family.qkv_bias, "qk_norm": family.qk_norm}
    rest |= {"rope_theta": theta, "rope_scaling": scaling and dataclasses.asdict(scaling)}
    return checked(ModelConfig, numbers | rest, path, _KEYS, HfError)


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


def _read_rope(raw: JsonObject, path: Path) -> tuple[Any, RopeScaling | None]:
    """Theta and scaling: `rope_parameters` (transformers 5), or `rope_theta` and `rope_scaling`."""
    at = "rope_parameters" if raw.get("rope_parameters") else "rope_scaling"
    rope = raw.get(at) or {}
    if not isinstance(rope, Mapping):
        raise HfError(f"{path}: {at} is {rope!r}; it must be an object")
    theta = rope.get("rope_theta", raw.get("rope_theta"))
    if theta is None:
        raise HfError(f"{path} has no rope_theta, at the top or in rope_parameters")
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind == "default":
        return theta, None
    if kind not in [*_SCALING]:
        choices = ", ".join(("default", *_SCALING))
        raise HfError(f"{path}: rope_type {kind!r} is unsupported; choices: {choices}")
    given = {key: value for key, value in rope.items() if value is not None}
    if kind != "yarn":
        return theta, _read_scaling(kind, given, path, at)
    if not given.get("truncate", True):
        raise HfError(f"{path}: truncate of yarn rope scaling is False; only True is supported")
    return theta, _read_yarn(given, raw, path, at)


def _read_scaling(kind: str, rope: JsonObject, path: Path, at: str) -> RopeScaling:
    keys = _SCALING[kind]
    if missing := [key for key in keys.values() if key not in rope]:
        raise HfError(f"{path}: {kind} rope scaling lacks {missing}")
    found = {ours: rope[key] for ours, key in keys.items()}
    named = {ours: f"{at}.{key}" for ours, key in keys.items()}
    values = {**UNUSED_BY_LINEAR, **found, "kind": kind}
    return checked(RopeScaling, values, path, named, HfError)


def _read_yarn(rope: JsonObject, raw: JsonObject, path: Path, at: str) -> RopeScaling:
    """yarn's scaling, with what transformers takes where a file leaves it out."""
    length = raw.get("original_max_position_embeddings", raw.get("max_position_embeddings"))
    defaults = YARN_BETAS | {"attention_factor": 1.0, _LENGTH["original_max_position"]: length}
    scaling = _read_scaling("yarn", defaults | rope, path, at)
    if "attention_factor" in rope:
        return scaling
    weights = [rope.get(key, 0) for key in ("mscale", "mscale_all_dim")]
    for key, weight in zip(("mscale", "mscale_all_dim"), weights, strict=True):
        if type(weight) not in (int, float) or not 0 <= weight < math.inf:
            raise HfError(f"{path}: {at}.{key} is {weight!r}; it must be a number of at least 0")
    over, under = weights if all(weights) else (1.0, 0.0)
    gains = [yarn_attention_factor(scaling.factor, weight) for weight in (over, under)]
    return dataclasses.replace(scaling, attention_factor=gains[0] / gains[1])


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
        "hidden_act": "silu",
        **{key: getattr(config, ours) for ours, key in _KEYS.items()},
        "torch_dtype": dtype,
        "use_cache": True,
        **family.fixed,
    }
    if (scaling := config.rope_scaling) is not None:
        values = {key: getattr(scaling, ours) for ours, key in _SCALING[scaling.kind].items()}
        out["rope_scaling"] = values | {"rope_type": scaling.kind}
    return out

"""Families of decoders: those that this package knows, and those that installed packages add.

A package adds one by an entry point: its name is the `model_type` of the family's config.json, its
value names a `Family`. It is imported where a folder or a config is of that family.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from importlib import metadata
from typing import Any

from masksearch_jax.core.errors import ConfigError, nearest
from masksearch_jax.core.user_code import import_named

GROUP = "masksearch_jax.families"  # of entry points


@dataclasses.dataclass(frozen=True)
class Family:
    """What a `model_type` tells of a decoder that `models.transformer` computes.

    architecture: the class of transformers that reads an exported folder. qkv_bias, qk_norm: as in
    ModelConfig. head_dim: where config.json has none; 0: the hidden size over the heads. fixed:
    keys of config.json with the one value that is computed; a folder must say it, and ours do.
    """

    architecture: str
    qkv_bias: bool = False
    qk_norm: bool = False
    head_dim: int = 0
    fixed: Mapping[str, Any] = dataclasses.field(default_factory=dict)


BUILT_IN = {
    "qwen2": Family("Qwen2ForCausalLM", qkv_bias=True),
    "qwen3": Family("Qwen3ForCausalLM", qk_norm=True, head_dim=128),
    "llama": Family("LlamaForCausalLM"),
}


def names() -> list[str]:
    """Every `model_type` that is known."""
    return [*BUILT_IN, *sorted({e.name for e in _entries()} - set(BUILT_IN))]


def find(name: str) -> Family | None:
    """The family of a `model_type`; None of one that is not known.

    Raises ConfigError for an entry point that gives no family, and for two of one name.
    """
    if name in BUILT_IN:
        return BUILT_IN[name]
    entries = [entry for entry in _entries() if entry.name == name]
    if not entries:
        return None
    owners = [entry.dist.name if entry.dist else "?" for entry in entries]
    if len(entries) > 1:
        raise ConfigError(f"the model family {name!r} is of {len(entries)} packages: {owners}")
    said = f"the model family {name!r} of the package {owners[0]} is {entries[0].value!r}"
    found = import_named(entries[0].value, said, "family")
    if not isinstance(found, Family):
        raise ConfigError(f"{said}, which is {type(found).__name__}, not a Family")
    return found


def of_config(name: str) -> Family:
    """The family that a config names. Raises ConfigError for one that is not known."""
    family = find(name)
    if family is None:
        near = nearest(name, names())
        raise ConfigError(f"config.model.family is {name!r}, which no package has; {near}")
    return family


def _entries() -> metadata.EntryPoints:
    return metadata.entry_points(group=GROUP)

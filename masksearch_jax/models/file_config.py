"""Sections of a config that a model's file gives, checked as those that a user gives are."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from masksearch_jax.core.errors import ConfigError
from masksearch_jax.core.schema import Section, to_dataclass

T = TypeVar("T", bound=Section)


def checked(
    schema: type[T],
    values: Mapping[str, Any],
    path: str | Path,
    keys: Mapping[str, str],
    error: type[ValueError],
) -> T:
    """The section of these values. keys: what the file calls each of them.

    Raises `error`, which names the file, its key, the value and the rule that the value breaks.
    """
    names = {f"config.{ours}": f"{path}: {key}" for ours, key in keys.items()}
    try:
        return to_dataclass(schema, values, names=names)
    except ConfigError as refused:
        raise error(str(refused)) from refused


def head_dim(hidden_size: Any, heads: Any) -> int:
    """Of a file that does not say it; 0, which `checked` refuses, where it comes to nothing."""
    is_known = type(hidden_size) is int and type(heads) is int and heads > 0
    return hidden_size // heads if is_known else 0

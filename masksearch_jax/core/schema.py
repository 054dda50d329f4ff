"""A ConfigDict or dict to a frozen dataclass: every key known, every value of its type."""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Mapping
from typing import Any, TypeVar

from masksearch_jax.core.errors import ConfigError, nearest

T = TypeVar("T")


def flat_keys(schema: type, prefix: str = "") -> dict[str, Any]:
    """Dotted name to type of every key of a dataclass, sections and their keys alike."""
    keys: dict[str, Any] = {}
    for name, kind in typing.get_type_hints(schema).items():
        keys[prefix + name] = kind
        inner = _not_none(kind)
        if dataclasses.is_dataclass(inner):
            keys |= flat_keys(inner, f"{prefix}{name}.")
    return keys


def to_dataclass(schema: type[T], config: Any, path: str = "config") -> T:
    """The frozen dataclass `schema` filled from a ConfigDict or dict of exactly its keys.

    An int is taken for a float and a list for a tuple; nothing else is converted. Raises
    ConfigError that names the dotted key and the nearest valid ones (unknown), or the value and the
    type it should have.
    """
    values = config.to_dict() if hasattr(config, "to_dict") else config
    if not isinstance(values, Mapping):
        raise ConfigError(f"{path} is {values!r}; it must be a section with {_names(schema)}")
    kinds = typing.get_type_hints(schema)
    for key in values:
        if key not in kinds:
            near = nearest(key, kinds, prefix=f"{path}.")
            raise ConfigError(f"{path}.{key} is not a key of {schema.__name__}; {near}")
    required = {f.name for f in dataclasses.fields(schema) if _has_no_default(f)}
    if missing := sorted(required - set(values)):
        raise ConfigError(f"{path} lacks {', '.join(f'{path}.{m}' for m in missing)}")
    return schema(**{k: _convert(kinds[k], v, f"{path}.{k}") for k, v in values.items()})


def _names(schema: type) -> str:
    return ", ".join(f.name for f in dataclasses.fields(schema))


def _has_no_default(field: dataclasses.Field) -> bool:
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


def _not_none(kind: Any) -> Any:
    """T of `T | None`, and any other type itself."""
    if typing.get_origin(kind) in (types.UnionType, typing.Union):
        return next(a for a in typing.get_args(kind) if a is not types.NoneType)
    return kind


def _convert(kind: Any, value: Any, path: str) -> Any:
    inner = _not_none(kind)
    if value is None and inner is not kind:
        return None
    if dataclasses.is_dataclass(inner):
        return to_dataclass(inner, value, path)
    origin, args = typing.get_origin(inner), typing.get_args(inner)
    if origin is typing.Literal:
        if value not in args:
            near = nearest(str(value), map(str, args))
            raise ConfigError(f"{path} is {value!r}, not one of {', '.join(args)}; {near}")
        return value
    if origin is tuple and isinstance(value, (tuple, list)):
        return tuple(_convert(args[0], v, f"{path}[{i}]") for i, v in enumerate(value))
    if inner is float and type(value) is int:
        return float(value)
    if isinstance(inner, type) and type(value) is inner:
        return value
    name = inner.__name__ if isinstance(inner, type) and not args else str(inner)
    name += " or None" if inner is not kind else ""
    raise ConfigError(f"{path} is {value!r} ({type(value).__name__}); it must be {name}")


def differences(a: Any, b: Any, path: str = "") -> list[str]:
    """`key: old → new` of each leaf where two nested dicts differ; a top-level `workdir` may."""
    if isinstance(a, dict) and isinstance(b, dict):
        keys = [k for k in sorted(a.keys() | b.keys()) if path or k != "workdir"]
        return [
            d for k in keys for d in differences(a.get(k), b.get(k), f"{path}.{k}" if path else k)
        ]
    return [] if a == b else [f"{path}: {a!r} → {b!r}"]

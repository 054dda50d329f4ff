"""Configs as text: what each key means and is (`--help`), and a whole one (`--print-config`)."""

from __future__ import annotations

import dataclasses
import textwrap
import typing
from collections.abc import Mapping, Sequence
from typing import Any

from masksearch_jax.core.errors import ConfigError, nearest
from masksearch_jax.core.schema import REQUIRED, Key, Section, describe_keys

WIDTH = 100


def config_lines(cfg: Section) -> list[str]:
    """`key = value` of every key, dotted and in the schema's order; values as Python spells them.

    A section that is None is one line.
    """
    values = dataclasses.asdict(cfg)
    return [f"{name} = {value!r}" for name, value in leaves(type(cfg), values).items()]


def leaves(schema: type[Section], values: Mapping[str, Any]) -> dict[str, Any]:
    """Dotted key to value of all keys that have one; of a section that is None, itself."""
    found = {}
    for known in describe_keys(schema):
        value = lookup(values, known.name)
        if value is not REQUIRED and (not known.section or value is None):
            found[known.name] = value
    return found


def lookup(values: Any, dotted: str) -> Any:
    """The value at a dotted key of nested dicts; REQUIRED where there is none."""
    for part in dotted.split("."):
        if not isinstance(values, Mapping) or part not in values:
            return REQUIRED
        values = values[part]
    return values


def help_lines(
    schemas: Sequence[type[Section]], section: str = "", values: Mapping[str, Any] | None = None
) -> list[str]:
    """Each key with its value and its sentence, as the flag that would set it.

    section: that one alone, by its dotted name. values: of a config; None: the defaults. Raises
    ConfigError for a section that does not exist.
    """
    keys: dict[str, Key] = {}
    for schema in schemas:
        keys |= {k.name: k for k in describe_keys(schema) if k.name not in keys}
    if section and section not in keys:
        raise ConfigError(f"--help={section} is no key; {nearest(section, keys)}")
    # Keys of no section first: after one they would seem to be of it.
    groups = ["", *(k.name for k in keys.values() if k.section)]
    lines: list[str] = []
    for group in groups:
        asked = not section or f"{group}.".startswith(f"{section}.")
        inside = [k for k in keys.values() if not k.section and k.name.rpartition(".")[0] == group]
        inside = [k for k in inside if asked or k.name == section]
        if asked and group:
            lines += ["", *_wrapped(f"{group}: {keys[group].sentence}", "")]
        lines += [line for k in inside for line in _of_key(k, values)]
    return lines


def _of_key(known: Key, values: Mapping[str, Any] | None) -> list[str]:
    value = known.default if values is None else lookup(values, known.name)
    flag = f"--config.{known.name}"
    first = f"{flag} (no default)" if value is REQUIRED else f"{flag}={spell(value)}"
    choices = typing.get_args(known.kind) if typing.get_origin(known.kind) is typing.Literal else ()
    said = f"{known.sentence} [{' | '.join(map(str, choices))}]" if choices else known.sentence
    return [first, *_wrapped(said, "    ")]


def _wrapped(text: str, indent: str) -> list[str]:
    return textwrap.wrap(
        text, WIDTH, initial_indent=indent, subsequent_indent=indent, break_on_hyphens=False
    )


def spell(value: Any) -> str:
    """A value as a flag takes it: a tuple with commas."""
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)

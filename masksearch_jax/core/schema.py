"""What a config can say: keys with their default and a sentence, and a ConfigDict made a dataclass.

A section is a frozen dataclass whose fields are made by `key` or `required`. `to_dataclass` turns a
ConfigDict or dict into one, strictly: every key known, every value of its type.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import re
import types
import typing
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, Literal, NamedTuple, Protocol, TypeVar

from masksearch_jax.core.errors import ConfigError, nearest


class Section(Protocol):
    """A dataclass, such as a section of a config or a whole one."""

    __dataclass_fields__: ClassVar[dict[str, dataclasses.Field[Any]]]


@typing.runtime_checkable
class Ruled(Protocol):
    """A section with rules beyond the bounds of its keys."""

    def broken(self) -> Iterator[tuple[str, str]]:
        """The keys whose values break a rule, each with what it must be."""
        ...


@typing.runtime_checkable
class Switched(Protocol):
    """A section, or a whole config, whose keys may switch each other off."""

    def idle(self) -> Iterator[tuple[str, str]]:
        """The keys and sections that nothing reads by its other keys, each with what would."""
        ...


T = TypeVar("T", bound=Section)

_UNNAMED: Mapping[str, str] = types.MappingProxyType({})
_USER = re.compile(r"//[^/?#]*@")  # of an address, or of one of several

# What tells the files that a key names from others: all of each (text); of a model's or an index's
# folder, samples of each file, as weights differ everywhere (sampled); of each NAME=PATH of a list,
# all of PATH, where a NAME alone is no file (named).
Content = Literal["", "text", "sampled", "named"]
_SEEDS = 2**32
REQUIRED = dataclasses.MISSING  # in place of a default: the config file, or a flag, must give it


def key(
    default: Any,
    sentence: str,
    *,
    harmless: bool = False,
    content: Content = "",
    least: float | None = None,
    most: float | None = None,
    user: str = "",
) -> Any:
    """A field of a section: its default, and what it means with units and choices.

    harmless: a run that is resumed with another value comes to the same result (to rounding), but
    for what it does where something goes wrong.
    content: names files whose content decides, not where they are; see `Content`. least, most: of a
    number, the smallest and the largest that can work. user: of an address, in which there must be
    no user, as logs and records keep it: where user and password go instead.
    """
    said = {"sentence": sentence, "harmless": harmless, "content": content}
    bounds = {"least": least, "most": most, "user": user}
    return dataclasses.field(default=default, metadata=said | bounds)


def share(default: float, sentence: str, *, harmless: bool = False) -> Any:
    """A field of a section that lies in 0..1."""
    return key(default, sentence, harmless=harmless, least=0, most=1)


def seed_key(sentence: str) -> Any:
    """A field of a section: what random numbers begin with, a uint32 as all generators take it."""
    return key(0, sentence, least=0, most=_SEEDS - 1)


def later_seed(seed: int, more: int) -> int:
    """The seed so many after another; after the last one comes 0."""
    return (seed + more) % _SEEDS


def required(
    sentence: str, *, harmless: bool = False, content: Content = "", least: float | None = None
) -> Any:
    """A field of a section without a default: whoever writes the config decides."""
    return key(REQUIRED, sentence, harmless=harmless, content=content, least=least)


def section(cls: type[Section], sentence: str = "") -> Any:
    """A field that is a section: its defaults, or required where one of its keys is.

    The sentence is the first line of the dataclass's docstring where none is given.
    """
    keys = dataclasses.fields(cls)
    default = REQUIRED if any(f.default is REQUIRED for f in keys) else cls()
    return key(default, sentence or (cls.__doc__ or "").partition("\n")[0])


def keys_but(section: type[Section], *left_out: str) -> list[str]:
    """Names of the keys of a section without some."""
    return [field.name for field in dataclasses.fields(section) if field.name not in left_out]


class Key(NamedTuple):
    """One key of a schema, or one of its sections; `name` is dotted."""

    name: str
    kind: Any
    default: Any  # REQUIRED for none
    sentence: str
    harmless: bool
    content: Content

    @property
    def section(self) -> type[Section] | None:
        """The dataclass of a section, optional ones too; None of a key with a value."""
        return _section_of(self.kind)


@functools.cache
def describe_keys(schema: type[Section]) -> tuple[Key, ...]:
    """Every key of a schema in its order, a section before its keys.

    The defaults of a section's keys are those of its dataclass.
    """
    kinds, keys = typing.get_type_hints(schema), []
    for field in dataclasses.fields(schema):
        name, said = field.name, field.metadata
        sentence, harmless = said.get("sentence", ""), said.get("harmless", False)
        content = said.get("content", "")
        found = Key(name, kinds[name], field.default, sentence, harmless, content)
        inner = describe_keys(found.section) if found.section else ()
        keys += [found, *(k._replace(name=f"{name}.{k.name}") for k in inner)]
    return tuple(keys)


def harmless_keys(section: type[Section]) -> frozenset[str]:
    """Names of the keys of a section that do not change a result."""
    return frozenset(k.name for k in describe_keys(section) if k.harmless)


def flat_keys(schema: type[Section]) -> dict[str, Any]:
    """Dotted name to type of every key of a dataclass, sections and their keys alike."""
    return {k.name: k.kind for k in describe_keys(schema)}


def to_dataclass(
    schema: type[T], config: Any, path: str = "config", names: Mapping[str, str] = _UNNAMED
) -> T:
    """The frozen dataclass `schema` filled from a ConfigDict or dict; other keys by their default.

    An int is taken for a float, which must be finite, and a list for a tuple; nothing else is
    converted. names: what messages call a key in place of its dotted name. Raises ConfigError that
    names the dotted key and the nearest valid ones (unknown), what is missing, or the value and the
    type it should have, or the least or the most that it may be, or the rule of a `Ruled` section;
    and for a user in an address, without the value.
    """
    values = config.to_dict() if hasattr(config, "to_dict") else config
    if not isinstance(values, Mapping):
        raise ConfigError(f"{path} is {values!r}; it must be a section with {_names(schema)}")
    kinds = typing.get_type_hints(schema)
    for name in values:
        if name not in kinds:
            near = nearest(name, kinds, prefix=f"{path}.")
            raise ConfigError(f"{path}.{name} is not a key of {schema.__name__}; {near}")
    needed = {f.name for f in dataclasses.fields(schema) if f.default is REQUIRED}
    if missing := sorted(needed - set(values)):
        raise ConfigError(f"{path} lacks {', '.join(f'{path}.{m}' for m in missing)}")
    found = {k: _convert(kinds[k], v, f"{path}.{k}", names) for k, v in values.items()}
    called = {name: names.get(f"{path}.{name}", f"{path}.{name}") for name in kinds}
    for field in dataclasses.fields(schema):
        if (value := found.get(field.name)) is not None:
            _check_bounds(called[field.name], value, field.metadata)
            if (instead := field.metadata.get("user")) and _USER.search(value):
                raise ConfigError(
                    f"{path}.{field.name} has a user or a password in it, and logs and records "
                    f"would keep it; {instead}"
                )
    made = schema(**found)
    if isinstance(made, Ruled):
        for name, rule in made.broken():
            raise ConfigError(f"{called[name]} is {getattr(made, name)}; it must be {rule}")
    return made


def check_idle(section: Section, path: str, because: str, instead: str, **keys: Any) -> None:
    """Raises ConfigError for the first of the keys that has a value which nothing reads.

    because: the setting that they do nothing with. instead: what to choose. keys: each with the
    value, besides its default, that says no more than what happens.
    """
    defaults = {field.name: field.default for field in dataclasses.fields(section)}
    for name, same in keys.items():
        value = getattr(section, name)
        if value not in (defaults[name], same):
            raise ConfigError(
                f"{path}.{name} is {value}, which does nothing with {because}; {instead}, or leave "
                f"it at {defaults[name]}"
            )


def _check_bounds(name: str, value: Any, said: Mapping[str, Any]) -> None:
    """Raises ConfigError for a number beyond the bounds of its key."""
    least, most = said.get("least"), said.get("most")
    if least is not None and value < least:
        raise ConfigError(f"{name} is {value}; it must be at least {least:g}")
    if most is not None and value > most:
        raise ConfigError(f"{name} is {value}; it must be at most {most:.10g}")


def _names(schema: type[Section]) -> str:
    return ", ".join(f.name for f in dataclasses.fields(schema))


def _not_none(kind: Any) -> Any:
    """T of `T | None`, and any other type itself."""
    if typing.get_origin(kind) in (types.UnionType, typing.Union):
        return next(a for a in typing.get_args(kind) if a is not types.NoneType)
    return kind


def _section_of(kind: Any) -> type[Section] | None:
    """The dataclass that a type is, or is one or None; None of any other type."""
    inner = _not_none(kind)
    return inner if isinstance(inner, type) and dataclasses.is_dataclass(inner) else None


def _convert(kind: Any, value: Any, path: str, names: Mapping[str, str]) -> Any:
    inner, called = _not_none(kind), names.get(path, path)
    if value is None and inner is not kind:
        return None
    if section := _section_of(kind):
        return to_dataclass(section, value, path, names)
    origin, args = typing.get_origin(inner), typing.get_args(inner)
    if origin is typing.Literal:
        if value not in args:
            near = nearest(str(value), map(str, args))
            raise ConfigError(f"{called} is {value!r}, not one of {', '.join(args)}; {near}")
        return value
    if origin is tuple and isinstance(value, (tuple, list)):
        return tuple(_convert(args[0], v, f"{called}[{i}]", names) for i, v in enumerate(value))
    if inner is float and type(value) in (int, float):
        if not math.isfinite(value):
            raise ConfigError(f"{called} is {value}; it must be finite")
        return float(value)
    if isinstance(inner, type) and type(value) is inner:
        return value
    name = inner.__name__ if isinstance(inner, type) and not args else str(inner)
    name += " or None" if inner is not kind else ""
    raise ConfigError(f"{called} is {value!r} ({type(value).__name__}); it must be {name}")

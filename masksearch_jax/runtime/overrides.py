"""A config file over the defaults of its schema, and flags over both."""

from __future__ import annotations

import dataclasses
import itertools
import re
import sys
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

from masksearch_jax.core.config import ModelConfig
from masksearch_jax.core.errors import ConfigError, Restart, nearest
from masksearch_jax.core.schema import (
    REQUIRED,
    Key,
    Section,
    describe_keys,
    flat_keys,
    to_dataclass,
)

# In place of a model's keys: the HF folder whose config.json has them; empty: what the key beside
# it names that the weights come from.
HF_FOLDER = "hf_folder"
_SOURCES = ("init", "checkpoint")
T = TypeVar("T", bound=Section)

_OVERRIDE = re.compile(r"--?(?:no)?config\.([^=]+)")


def split_config(args: Sequence[str]) -> tuple[str | None, list[str]]:
    """The value of the last `--config`, and the arguments without it."""
    spec, rest, left = None, [], iter(args)
    for arg in left:
        if arg in ("--config", "-config"):
            spec = next(left, None)
        elif re.match(r"--?config=", arg):
            spec = arg.partition("=")[2]
        else:
            rest.append(arg)
    return spec, rest


class Resolved(NamedTuple):
    """All keys of a schema. changed: dotted, those that flags gave another value."""

    values: dict[str, Any]
    changed: frozenset[str]


def resolve(
    schema: type[Section],
    config: Any,
    flags: Sequence[str],
    read_model: Callable[[str], ModelConfig] | None = None,
    read_defaults: Callable[[str], Mapping[str, Any]] | None = None,
) -> Resolved:
    """All keys of the schema: a config file's, else its defaults, then what the flags override.

    read_defaults: what the folder that the key `init` names says in place of the defaults; not
    asked where the model is an endpoint. The keys that it decides are told on stderr.

    config: the ConfigDict of the file; it is changed. read_model: reads the architecture of an HF
    folder. A key that nobody gives and that has no default is not in the result. Raises ConfigError
    for a flag that is no key, and for a value that is none of its kind.
    """
    flags = _checked_flags(schema, flags)
    if read_model is not None:
        _read_models(schema, config, flags, read_model)
    named = {m[1] for flag in flags if (m := _OVERRIDE.match(flag))}
    if read_defaults is not None and not _said(config, flags, "endpoint.base_url"):
        folder = _said(config, flags, "init")
        own = {k.name: k.default for k in describe_keys(schema)}
        read = sorted(set(_put_defaults(config, read_defaults(folder))) - named)
        values = {name: _value(config, name) for name in read}
        if told := [_flag(name, value) for name, value in values.items() if value != own[name]]:
            print(f"  read from {folder}: {' '.join(told)}", file=sys.stderr, flush=True)
    _fill(schema, config, named)
    before, values = config.to_dict(), _overridden(config, flags)
    changed = frozenset(name for name in named if _at(before, name) != _at(values, name))
    return Resolved(_without_unset(schema, values), changed)


def override(cfg: T, given: Sequence[str]) -> T:
    """A config with other values of keys, each as KEY=VALUE. Raises ConfigError as `resolve`."""
    from ml_collections import ConfigDict

    flags = [f"--config.{one}" for one in given]
    found = resolve(type(cfg), ConfigDict(dataclasses.asdict(cfg)), flags)
    return to_dataclass(type(cfg), found.values)


def _checked_flags(schema: type[Section], args: Iterable[str]) -> list[str]:
    """The arguments, of a list the last flag alone, with `a,b` spelled as a tuple.

    Raises ConfigError on a flag that is no key of the schema.
    """
    keys, found, left = flat_keys(schema), [], iter(args)
    for arg in left:
        match = _OVERRIDE.match(arg)
        flag, equals, value = arg.partition("=")
        name = match[1] if match else flag.lstrip("-")
        if not match and not arg.startswith("--"):
            found.append(arg)  # the value of the flag before it
            continue
        if not match or name not in keys:
            raise ConfigError(f"{flag} is not a flag; {nearest(name, keys, prefix='--config.')}")
        if typing.get_origin(keys[name]) is tuple:
            # ml_collections would join the values of several flags.
            found = [f for f in found if not ((m := _OVERRIDE.match(f)) and m[1] == name)]
            after = value if equals else next(left, None)
            arg = arg if after is None else f"{flag}={_tuple_text(keys[name], after)}"
        found.append(arg)
    return found


def _tuple_text(kind: Any, text: str) -> str:
    """A list's value as Python writes it, of `a,b` too."""
    if text[:1] in ("(", "["):
        return text
    (of, *_), parts = typing.get_args(kind), [v.strip() for v in text.split(",") if v.strip()]
    return repr(tuple(_number(of, part) for part in parts))


def _number(kind: type, text: str) -> Any:
    """The text as an int or float where it should be and can be one."""
    try:
        return kind(text)
    except ValueError:
        return text


def _top_keys(schema: type) -> Iterable[Key]:
    return (k for k in describe_keys(schema) if "." not in k.name)


def _fill(schema: type[Section], config: Any, named: set[str], path: str = "") -> None:
    """Puts into a ConfigDict what it does not say; of optional sections where `named` is in them.

    References between keys stay. A key without a default becomes None, of its type.
    """
    from ml_collections import ConfigDict
    from ml_collections.config_dict import placeholder

    for found in _top_keys(schema):
        name, dotted = found.name, path + found.name
        if found.section:
            optional = found.section is not found.kind
            asked = not optional or any(n.startswith(f"{dotted}.") for n in named)
            if asked and config.get(name) is None:
                config[name] = ConfigDict()
            if isinstance(config.get(name), ConfigDict):
                _fill(found.section, config[name], named, f"{dotted}.")
        if name not in config and found.default is not REQUIRED:
            config[name] = found.default
        elif name not in config and not found.section:
            config[name] = placeholder(_type_of(found.kind))


def _type_of(kind: Any) -> type:
    """The Python type of a key's values: int of Literal[1, 2], tuple of tuple[int, ...]."""
    if typing.get_origin(kind) is typing.Literal:
        return type(typing.get_args(kind)[0])
    return typing.get_origin(kind) or kind


def _without_unset(schema: type[Section], values: dict[str, Any]) -> dict[str, Any]:
    """`values` without keys that have no default and were given none."""
    found = {k.name: k for k in _top_keys(schema)}
    kept = {}
    for name, value in values.items():
        known = found.get(name)
        if known and known.section and isinstance(value, dict):
            value = _without_unset(known.section, value)
        elif known and not known.section and known.default is REQUIRED and value is None:
            continue
        kept[name] = value
    return kept


def _in_words(said: str) -> str:
    """What Python says of a text that is no number, as a user knows it."""
    said = re.sub(r"invalid literal for int\(\) with base 10: (.*)", r"\1 is no whole number", said)
    return re.sub(r"could not convert string to float: (.*)", r"\1 is no number", said)


def _overridden(config: Any, flags: Sequence[str]) -> dict[str, Any]:
    from absl import flags as absl_flags
    from ml_collections import config_flags

    values, argv = absl_flags.FlagValues(), ["main", *flags]
    try:
        config_flags.DEFINE_config_dict("config", config, flag_values=values, sys_argv=argv)
        extra = values(argv)[1:]
    except (absl_flags.Error, ValueError, TypeError, AttributeError, KeyError) as error:
        raise ConfigError(_in_words(str(error))) from error
    if extra:
        raise ConfigError(f"unexpected argument {extra[0]!r}; flags are --config.KEY=VALUE")
    return values.config.to_dict()


# ---- architectures read from folders


def _read_models(
    schema: type[Section],
    config: Any,
    flags: Sequence[str],
    read_model: Callable[[str], ModelConfig],
) -> None:
    """Puts the architecture of an HF folder where the config names one in place of a model."""
    keys = flat_keys(schema)
    for found in (k for k in describe_keys(schema) if k.section is ModelConfig):
        parent, _, name = found.name.rpartition(".")
        beside = _at(config, parent)
        model = beside.get(name) if beside else None
        if not model or HF_FOLDER not in model:
            continue
        beside_it = [f"{parent}.{source}".lstrip(".") for source in _SOURCES]
        init = next((key for key in beside_it if key in keys), beside_it[0])
        folder = model[HF_FOLDER] or _said(config, flags, init)
        if not folder:
            raise ConfigError(
                f"config.{found.name} is to be read from a Hugging Face folder and none is named; "
                f"give it as --config.{init}, or name it in place of a model, as in "
                "--config=FILE.py:PATH/FOLDER"
            )
        try:
            read = dataclasses.asdict(read_model(folder))
        except Restart:  # a bucket that is out says nothing of the config
            raise
        except (OSError, ValueError) as error:
            raise ConfigError(
                f"config.{found.name} is to be read from {folder!r}: {error}"
            ) from error
        del model[HF_FOLDER]
        model.update({k: v for k, v in read.items() if k not in model})


def _put_defaults(config: Any, values: Mapping[str, Any], path: str = "") -> list[str]:
    """Puts into a ConfigDict what it does not say; the dotted keys that it lacked."""
    from ml_collections import ConfigDict

    found: list[str] = []
    for name, value in values.items():
        if isinstance(value, Mapping):
            if name not in config:
                config[name] = ConfigDict()
            found += _put_defaults(config[name], value, f"{path}{name}.")
        elif name not in config:
            config[name] = tuple(value) if isinstance(value, list) else value
            found.append(path + name)
    return found


def _flag(dotted: str, value: Any) -> str:
    """The flag that gives a key its value, without `--config.`."""
    return f"{dotted}={','.join(map(str, value)) if isinstance(value, tuple) else value}"


def _value(config: Any, dotted: str) -> Any:
    section, _, name = dotted.rpartition(".")
    return _at(config, section)[name]


def _at(config: Any, path: str) -> Any:
    """The value or section at a dotted path; None where a section on the way is not there."""
    for part in filter(None, path.split(".")):
        config = config.get(part) if config else None
    return config


def _said(config: Any, flags: Sequence[str], name: str) -> str:
    """What a flag, else the config file, says of a key; empty where neither does."""
    parent, _, own = name.rpartition(".")
    beside = _at(config, parent)
    return _given(flags, name) or (beside.get(own) if beside else "") or ""


def _given(flags: Sequence[str], name: str) -> str:
    """What the last flag for a key says; empty where there is none."""
    said = ""
    for flag, after in itertools.pairwise([*flags, ""]):
        if (match := _OVERRIDE.match(flag)) and match[1] == name:
            said = flag.partition("=")[2] if "=" in flag else after
    return said

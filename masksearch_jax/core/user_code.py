"""Functions, classes and values that users name in a config, as `package.module:name`."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import pkgutil
from collections.abc import Callable
from typing import Any

from masksearch_jax.core.errors import ConfigError, nearest


def import_function(
    spec: str, key: str, arguments: tuple[str, ...], what: str = "function"
) -> Callable[..., Any]:
    """What `spec` names, callable with as many positional arguments.

    key, what: where the config says it and what that is, for the message. Raises ConfigError that
    names the module, the function and what is there instead.
    """
    said = f"{key} is {spec!r}"
    function = import_named(spec, said, what)
    if not callable(function):
        raise ConfigError(f"{said}, which is {type(function).__name__}, not a {what}")
    check_call(function, spec.partition(":")[2], arguments, said)
    return function


def import_named(spec: str, said: str, what: str) -> Any:
    """What `spec` names, package.module:name; said, what: for the message of a ConfigError."""
    name, _, attribute = spec.partition(":")
    if not all(part.isidentifier() for part in [*name.split("."), attribute]):
        raise ConfigError(f"{said}; a {what} is named as package.module:{what}")
    module = _import_module(name, said)
    if not hasattr(module, attribute):
        near = nearest(attribute, _callables(module))
        raise ConfigError(f"{said}, but module {name!r} has no {attribute!r}; {near}")
    return getattr(module, attribute)


def check_call(
    function: Callable[..., Any], name: str, arguments: tuple[str, ...], said: str
) -> None:
    """Raises ConfigError unless a function can be called with as many positional arguments.

    name, said: of it, and what the config says, for the message.
    """
    try:
        inspect.signature(function).bind(*arguments)
    except TypeError as error:
        takes = f"{name}{inspect.signature(function)}"
        raise ConfigError(
            f"{said}, but it cannot be called as {name}({', '.join(arguments)}): {error}; "
            f"it is {takes}"
        ) from error
    except ValueError:  # a builtin without a signature: the first call will tell
        pass


def _callables(module: Any) -> list[str]:
    """Names of what can be called in a module; of what it imports only where nothing is its own."""
    there = [n for n in vars(module) if callable(getattr(module, n)) and not n.startswith("_")]
    own = [n for n in there if getattr(getattr(module, n), "__module__", "") == module.__name__]
    return own or there


def _import_module(name: str, said: str) -> Any:
    path = name.split(".")
    for end in range(1, len(path) + 1):
        whole = ".".join(path[:end])
        try:
            found = importlib.util.find_spec(whole)
        except Exception as error:  # its parent is no package, or raises
            raise ConfigError(
                f"{said}, but {whole!r} cannot be imported: {type(error).__name__}: {error}"
            ) from error
        if found is None:
            near = _near_modules(path[: end - 1], path[end - 1])
            raise ConfigError(f"{said}, but there is no module {whole!r}; {near}")
    try:
        return importlib.import_module(name)
    except Exception as error:
        raise ConfigError(
            f"{said}, but importing {name!r} raised {type(error).__name__}: {error}"
        ) from error


def _near_modules(parent: list[str], word: str) -> str:
    """The modules beside it that are most like it; at the top, those of the working folder."""
    folders = importlib.import_module(".".join(parent)).__path__ if parent else ["."]
    names = {m.name for m in pkgutil.iter_modules(folders)}
    return nearest(word, {n for n in names if n.isidentifier() and not n.startswith("_")})

"""The tools that a config names beside search: this package's, and a user's own classes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from masksearch_jax.core import markup
from masksearch_jax.core.config import SearchConfig
from masksearch_jax.core.errors import ConfigError, nearest
from masksearch_jax.core.retrieval import SearchTool
from masksearch_jax.core.tools import (
    SEARCHING,
    Answering,
    Instructions,
    Searching,
    Toolbox,
    instructions,
)
from masksearch_jax.core.user_code import import_function
from masksearch_jax.tools import around
from masksearch_jax.tools.calculator import Calculator
from masksearch_jax.tools.dates import Dates

KEY = "config.tools"
BUILT_IN: dict[str, type[Any]] = {tool.name: tool for tool in (Calculator, Dates)}


def instructions_of(names: Sequence[str]) -> tuple[Instructions, ...]:
    """What search and the tools tell an agent; makes none of them.

    Raises ConfigError for a name that there is not, a class that is no tool, and a tag twice.
    """
    found = [SEARCHING, *(instructions(_class(name), _said(name)) for name in names)]
    for about, said in zip(found[1:], map(_said, names), strict=True):
        if not markup.is_name(about.name):
            raise ConfigError(
                f"{said} has the name {about.name!r}; it must be of lower-case letters and '_', "
                f"and none of {', '.join(markup.tags_of(()))}"
            )
    tags = [about.name for about in found]
    if twice := next((tag for tag in tags if tags.count(tag) > 1), ""):
        raise ConfigError(
            f"{KEY} is {', '.join(names)!r}: two tools have the tag {twice!r}; search is there "
            "without being named"
        )
    return tuple(found)


def open_tools(names: Sequence[str], search: SearchTool, cfg: SearchConfig) -> Toolbox:
    """Search and the tools, each of which has answered its own example, if it is not replayed.

    Raises what `instructions_of` does, and ToolError for a tool that does not answer.
    """
    instructions_of(names)
    return Toolbox(Searching(search, cfg), (_answering(name, cfg) for name in names))


def _answering(name: str, cfg: SearchConfig) -> Answering:
    try:
        made = _class(name)()
    except ConfigError:
        raise
    except Exception as error:
        raise ConfigError(
            f"{_said(name)} cannot be made: {type(error).__name__}: {error}"
        ) from error
    tool = Answering(made, _said(name), around.of_tool(made, name, _said(name), cfg))
    if not around.is_replayed(made, name, cfg):
        tool.check_example()
    return tool


def _class(name: str) -> Any:
    """The class of a tool; of a user's it is imported."""
    if name in BUILT_IN:
        return BUILT_IN[name]
    if ":" not in name:
        choices = f"{', '.join(BUILT_IN)} or package.module:Class"
        raise ConfigError(f"{KEY} has {name!r}, not {choices}; {nearest(name, BUILT_IN)}")
    return import_function(name, KEY, (), "class")


def _said(name: str) -> str:
    return f"the tool {name!r} of {KEY}"

"""Keys that other keys switch off: a flag for such a key would do nothing, unnoticed.

What a config file says is let be: several runs may share the file, and each reads what it needs.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterator
from typing import Any

from masksearch_jax.core.errors import ConfigError
from masksearch_jax.core.schema import Section, Switched, describe_keys


def check_changed(cfg: Section, changed: Collection[str]) -> None:
    """Raises ConfigError for a key that a command line gives another value, and nothing reads.

    changed: dotted keys. A default that means none (0, False, empty) takes away what the config
    file has, and passes. Of a study each arm switches keys as it likes, and all pass.
    """
    if getattr(cfg, "ARMS_SWITCH", False):
        return
    defaults = {known.name: known.default for known in describe_keys(type(cfg))}
    for idle, why in idle_keys(cfg):
        for name in sorted(changed):
            if name == idle or name.startswith(f"{idle}."):
                value = _value(cfg, name)
                if value or value != defaults[name]:
                    raise ConfigError(f"config.{name} is {value!r}, which does nothing here: {why}")


def idle_keys(cfg: Section, path: str = "") -> Iterator[tuple[str, str]]:
    """Dotted names of the keys and sections that nothing reads, each with what would."""
    if isinstance(cfg, Switched):
        for name, why in cfg.idle():
            yield path + name, why
    for field in dataclasses.fields(cfg):
        section = getattr(cfg, field.name)
        if dataclasses.is_dataclass(section) and not isinstance(section, type):
            yield from idle_keys(section, f"{path}{field.name}.")


def _value(cfg: Any, dotted: str) -> Any:
    for name in dotted.split("."):
        cfg = getattr(cfg, name)
    return cfg

"""The folder that an export replaces: never what it reads, nor what something else made."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from pathlib import Path

from masksearch_jax.core.errors import ConfigError
from masksearch_jax.core.files import is_bucket
from masksearch_jax.runtime import run_record, storage


def check_replaceable(folder: str | os.PathLike[str], keys: Collection[str]) -> None:
    """Raises ConfigError unless a folder is unmade, empty, or an earlier export.

    keys: those of an export's config that no other record has together. Raises UserError for a
    record that cannot be read.
    """
    if storage.is_unmade(folder):
        return
    record = run_record.read(folder)
    if record is None or not set(keys) <= set(record["config"]):
        raise ConfigError(
            f"config.folder is {os.fspath(folder)!r}, which is there and has no run.json of an "
            "earlier export; the export replaces its folder: name a new one, or an earlier export"
        )


def check_apart(folder: str | os.PathLike[str], sources: Mapping[str, str]) -> None:
    """Raises ConfigError for a folder that is, contains or lies within one that is read.

    sources: what is read, by the name that the message has of it; "" and buckets are passed over.
    """
    place = Path(folder).resolve()
    for name, source in sources.items():
        if not source or is_bucket(source):
            continue
        other = Path(source).resolve()
        if place == other:
            met = "is"
        elif place in other.parents:
            met = "contains"
        elif other in place.parents:
            met = "lies within"
        else:
            continue
        raise ConfigError(
            f"config.folder is {os.fspath(folder)!r}, which {met} {name}, {source!r}; the export "
            "replaces its folder: name another one, apart from what is read"
        )

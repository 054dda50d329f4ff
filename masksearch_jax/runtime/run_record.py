"""run.json: what made a folder, so that it can be made again, and what a resumed run may change.

    {"config": {…}, "defaults": {…}, "content": {…},
     "sessions": [{"date", "command", "commit", "versions", …}]}

`config` is the whole one, `defaults` has the default of each key that differs from it, null where
there is none; `content` tells the files of the folders that the config names, a session is one
start of the command; `changed` lists what it changed of the one before.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import itertools
import json
import os
import platform
import shlex
import sys
import types
from collections.abc import Collection, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

from masksearch_jax.core import stamp
from masksearch_jax.core.errors import ConfigError, UserError
from masksearch_jax.core.files import write_json
from masksearch_jax.core.schema import REQUIRED, Key, Section, describe_keys
from masksearch_jax.core.types import JsonObject
from masksearch_jax.runtime import installed, storage
from masksearch_jax.runtime.config_text import leaves, lookup
from masksearch_jax.runtime.process import devices, process_index

PACKAGES = (
    *("masksearch_jax", "jax", "flax", "optax", "orbax-checkpoint", "grain", "seqio", "tantivy"),
    *("transformers", "numpy"),
)

# What a service has that is not as it was, by the key that names the service; else its weights.
_SERVED = dict.fromkeys(("search.url", "search.opensearch.url"), "searches another index")
_NOTHING: Mapping[str, str] = types.MappingProxyType({})


def write(folder: str | os.PathLike, cfg: Section, content: Mapping[str, str] = _NOTHING) -> None:
    """Says what makes the folder from here on; from process 0 only. content: as in `resume`."""
    if process_index() == 0:
        _write(folder, cfg, contents(cfg, content), [_session([])])


def begin(
    folder: str | os.PathLike,
    cfg: Section,
    *,
    replaces: str = "",
    otherwise: str = "",
    stands: bool = False,
    harmless: Collection[str] = (),
) -> None:
    """Says at its start what a builder makes in a folder; from process 0.

    A builder makes anew what it made by other settings. replaces: what that is; it is told on
    stderr, in one line with each setting that differs and both values, or with `otherwise` where
    none does. stands: an earlier output stays until the new one is whole, and its record with it:
    `write` is then for the end. harmless: keys that decide nothing. A build that goes on adds a
    session. Raises UserError for a record that cannot be read.
    """
    if process_index() != 0:
        return
    before, content = read(folder), contents(cfg)
    found = changes(before, cfg, content, harmless) if before else Changes([], [])
    if replaces and (why := "; ".join(found.of_result) or otherwise):
        print(f"  {folder}: {replaces} replaced ({why})", file=sys.stderr, flush=True)
    if not stands:
        earlier = before["sessions"] if before and not found.of_result else []
        _write(folder, cfg, content, [*earlier, _session([*found.of_result, *found.harmless])])


def resume(
    folder: str | os.PathLike,
    cfg: Section,
    harmless: Collection[str] = (),
    content: Mapping[str, str] = _NOTHING,
    checkpoints: str = "",
) -> None:
    """Adds a session to the record of a run that goes on, with what it changes; from process 0.

    checkpoints: a folder of their own, whose record is compared and kept as that of the folder: a
    run may be moved to another folder, and another run does not go on from its checkpoints. A
    folder without a record gets one. What does not change the result is taken and told on stderr,
    as are other changes where `cfg.survival.changed` accepts them. harmless: keys that do not,
    besides those of the schema. content: by key, what tells the files that it names from others,
    where the schema does not say how. Raises ConfigError for changes of the result.
    """
    if process_index() != 0:
        return
    content = contents(cfg, content)
    keys = {"checkpoint.folder": checkpoints} if checkpoints else {}
    places = keys | {"workdir": folder}
    records = {key: read(place) for key, place in places.items()}
    changed: dict[str, None] = {}
    for key, before in records.items():
        if before is not None:
            found = changes(before, cfg, content, harmless)
            _check_result(cfg, found, key, places[key])
            changed |= dict.fromkeys([*found.of_result, *found.harmless])
    if changed:
        print(f"  settings changed: {'; '.join(changed)}", file=sys.stderr, flush=True)
    earlier: list[JsonObject] = next((r["sessions"] for r in records.values() if r), [])
    for place in places.values():
        _write(place, cfg, content, [*earlier, _session([*changed])])


def _check_result(cfg: Section, found: Changes, key: str, place: str | os.PathLike) -> None:
    """Raises ConfigError for changes of the result that are not accepted; key: names the folder."""
    survival = getattr(cfg, "survival", None)
    if found.of_result and not (survival and survival.changed == "accept"):
        way = "go on with the new ones by --config.survival.changed=accept"
        raise ConfigError(
            f"{place} holds a run with other settings ({'; '.join(found.of_result)}), which "
            f"change its result: choose another --config.{key}, or "
            f"{way if survival else 'delete it'}"
        )


def read(folder: str | os.PathLike) -> JsonObject | None:
    """A folder's record, None where there is none. Raises UserError for one that cannot be read."""
    path = storage.path(folder) / storage.RUN_RECORD
    if not path.exists():
        return None
    try:
        found = json.loads(path.read_text())
        return {name: found[name] for name in ("config", "content", "sessions")}
    except (ValueError, TypeError, KeyError) as error:
        raise UserError(
            f"{path} is no record of a run ({type(error).__name__}: {error}); without it the run "
            "goes on and is not compared"
        ) from error


def of_checkpoints(folder: str | os.PathLike) -> JsonObject | None:
    """The record of the run that wrote a folder of checkpoints, or one of these, as `read` does."""
    path = storage.path(folder)
    own = read(path)  # of a folder of their own, or of an export, which has no such section
    keys = own["config"].get("checkpoint") if own is not None else None
    if isinstance(keys, dict) and keys.get("folder"):
        return own
    places = (path.parent, path.parent.parent)
    return next((record for place in places if (record := read(place)) is not None), None)


class Changes(NamedTuple):
    """`key: old → new` of each key that differs from a record, by what it does to the result."""

    of_result: list[str]
    harmless: list[str]


def changes(
    before: Mapping[str, Any],
    cfg: Section,
    content: Mapping[str, str],
    harmless: Collection[str] = (),
) -> Changes:
    """How a config, with the content of its folders, differs from a record.

    A key that the record lacks, of an older version, had its default. A folder that holds the same
    files elsewhere is harmless; one that holds others is not, at the same path either. Alarms are
    harmless where neither config rolls back by them.
    """
    found = Changes([], [])
    then, now = leaves(type(cfg), before["config"]), leaves(type(cfg), _plain(cfg))
    rolls_back = "rollback" in (then.get("alarms.action"), now.get("alarms.action"))
    for known in describe_keys(type(cfg)):
        name, old, new = known.name, _of(then, known), _of(now, known)
        was, is_now = (at.get(name, "") for at in (before["content"], content))
        if old != new:
            is_harmless = known.harmless or name in harmless or (was and was == is_now)
            is_harmless = is_harmless or (name.startswith("alarms.") and not rolls_back)
            told = found.harmless if is_harmless else found.of_result
            told.append(f"{name}: {old!r} → {new!r}")
        elif was and is_now and was != is_now:
            what = "holds other files" if known.content else _SERVED.get(name, "has other weights")
            found.of_result.append(f"{name}: {new!r} {what} than before")
    return found


def _of(found: Mapping[str, Any], known: Key) -> Any:
    """The value of a key among `leaves`; of one that is not there its default, None for none."""
    if known.name in found:
        return found[known.name]
    parents = itertools.accumulate(known.name.split(".")[:-1], "{}.{}".format)
    if known.section or known.default is REQUIRED or any(p in found for p in parents):
        return None
    return json.loads(json.dumps(known.default))


def contents(cfg: Section, given: Mapping[str, str] = _NOTHING) -> dict[str, str]:
    """What tells the files that a config names, by key, unless it is given."""
    values, found = dataclasses.asdict(cfg), dict(given)
    for known in describe_keys(type(cfg)):
        if known.content and known.name not in found:
            found[known.name] = content_of(known, lookup(values, known.name))
    return {name: content for name, content in found.items() if content}


def content_of(known: Key, value: Any) -> str:
    """What tells the files that a key's value names from others, see `Content`; "" for none."""
    told = _sampled if known.content == "sampled" else stamp.content
    if isinstance(value, str):
        return told(value)
    names = value if isinstance(value, list | tuple) else ()
    each = [("", "", path) for path in names]
    if known.content == "named":
        each = [one.partition("=") for one in names]
    found = [(name, told(path) if path else "") for name, _, path in each]
    return stamp.hash_of(found) if any(content for _, content in found) else ""


def _sampled(folder: str) -> str:
    """The fingerprint that a folder's manifest names, as an index's does, else one of its files."""
    manifest = Path(folder) / "manifest.json"
    if folder and manifest.is_file():
        with contextlib.suppress(ValueError, AttributeError):
            if said := json.loads(manifest.read_text(encoding="utf-8")).get("fingerprint"):
                return str(said)
    return storage.fingerprint(folder).hex()


def versions() -> dict[str, str]:
    """Of this package and those that results depend on, as far as they are installed.

    And of the machine: CPUs, memory, and the accelerators where a mesh was made of them.
    """
    found = {"python": platform.python_version(), "machine": platform.machine()}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    kind, count = devices()
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    found |= {"cpus": str(os.cpu_count()), "memory": f"{memory:.1f} GiB"}
    return found | ({"accelerators": f"{count} × {kind}"} if count else {})


def _session(changed: list[str]) -> JsonObject:
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command": shlex.join(sys.orig_argv),
        "commit": installed.commit(),
        "versions": versions(),
        "changed": changed,
    }


def _plain(cfg: Section) -> JsonObject:
    """A config as JSON has it: tuples are lists."""
    return json.loads(json.dumps(dataclasses.asdict(cfg)))


def _defaults(cfg: Section) -> JsonObject:
    """The default of each key that has another value, by its dotted name; None for no default."""
    values = leaves(type(cfg), dataclasses.asdict(cfg))
    known = {k.name: k.default for k in describe_keys(type(cfg)) if not k.section}
    found = {k: known[k] for k, value in values.items() if k in known and value != known[k]}
    return {k: None if v is REQUIRED else json.loads(json.dumps(v)) for k, v in found.items()}


def _write(
    folder: str | os.PathLike,
    cfg: Section,
    content: Mapping[str, str],
    sessions: list[JsonObject],
) -> None:
    place = storage.path(folder)
    place.mkdir(parents=True, exist_ok=True)
    made_by = {"config": _plain(cfg), "defaults": _defaults(cfg), "content": dict(content)}
    record = made_by | {"sessions": sessions}
    write_json(os.fspath(place / storage.RUN_RECORD), record)

"""A stamp: the JSON file that finished work writes last, so that the same work is not done again.

    {"made_from": HASH, "files": {NAME: BYTES}, …}      beside them the work's own record

Work is done where its stamp says that it was made from the same inputs, and the files that it wrote
are there and as large as they were.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable
from typing import IO

from etils import epath

from masksearch_jax.core.files import write_json
from masksearch_jax.core.types import JsonObject


def hash_of(inputs: object) -> str:
    """16 hex digits that tell inputs, as JSON, from others: format, settings, contents of files."""
    return hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()[:16]


def content(path: str | os.PathLike[str]) -> str:
    """A hash of a file's bytes, or of the names and bytes of all in a folder; "" where neither is.

    The path itself does not matter: what was moved is still the same. Files may be in a bucket.
    """
    place = epath.Path(path)
    if not os.fspath(path) or not place.exists():
        return ""
    if not place.is_dir():
        with place.open("rb") as file:
            return _digest(file)
    inside = sorted(epath.Path(folder) / n for folder, _, names in place.walk() for n in names)
    return hash_of([[p.relative_to(place).as_posix(), content(p)] for p in inside])


def write(
    path: str | os.PathLike[str],
    record: JsonObject,
    made_from: str = "",
    files: Iterable[str] = (),
) -> None:
    """Says that work is done. files: what it wrote, as paths in the folder of `path`.

    made_from: a hash of its inputs; "" for work whose folder belongs to one set of inputs.
    """
    sizes = _sizes(epath.Path(path).parent, files)
    write_json(path, {"made_from": made_from, "files": sizes} | dict(record))


def read(
    path: str | os.PathLike[str], made_from: str = "", files: Iterable[str] = ()
) -> JsonObject | None:
    """The record of work that is done, as `write` was given it; None where there is work to do.

    files: all that the work may have written, whether it is there or not.
    """
    place = epath.Path(path)
    if not place.exists():
        return None
    try:
        record = json.loads(place.read_text())
    except ValueError:
        return None
    if not isinstance(record, dict) or record.pop("made_from", None) != made_from:
        return None
    return record if record.pop("files", {}) == _sizes(place.parent, files) else None


def inputs_of(path: str | os.PathLike[str]) -> str:
    """The hash of the inputs of finished work, "" where there is no stamp."""
    try:
        return str(json.loads(epath.Path(path).read_text())["made_from"])
    except (OSError, ValueError, LookupError, TypeError):
        return ""


def has_others(paths: Iterable[str | os.PathLike[str]], made_from: str) -> bool:
    """Whether work that is finished by one of these stamps was made from other inputs."""
    return bool({inputs_of(path) for path in paths} - {"", made_from})


def _sizes(folder: epath.Path, names: Iterable[str]) -> dict[str, int]:
    """Bytes of each of the files that are there."""
    present = (n for n in names if (folder / n).exists())
    return {name: int((folder / name).stat().length) for name in present}


def _digest(file: IO[bytes]) -> str:
    digest = hashlib.sha256()
    while chunk := file.read(1 << 20):
        digest.update(chunk)
    return digest.hexdigest()

"""What an operating system's error says of a path, in the words of the user's config."""

from __future__ import annotations

import dataclasses
import errno
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

# What is wrong with the path that an error names, by its number.
_WRONG = {
    errno.ENOTDIR: "a file where a folder is needed",
    errno.EEXIST: "a file where a folder is needed",
    errno.EISDIR: "a folder where a file is needed",
}


def path_error(error: OSError, settings: object = None) -> str | None:
    """One line of an error about a path: which key of `settings` names it, and what it must be.

    None of an error of another kind, and of a missing file that no key names.
    """
    if not isinstance(error.filename, str) or error.errno not in {*_WRONG, errno.ENOENT}:
        return None
    path = Path(os.path.abspath(error.filename))
    key, value = max(_naming(settings, path), key=lambda found: len(found[1]), default=("", ""))
    if error.errno == errno.ENOENT:
        return _missing(key, value, path) if key else None
    there = next(p for p in (path, *path.parents) if p.exists())
    named = f"{key} is {value!r}" if key else repr(str(there))
    is_it = not key or Path(os.path.abspath(value)) == there
    wrong = _WRONG[error.errno]
    return f"{named}, {wrong}" if is_it else f"{named}, in which {str(there)!r} is {wrong}"


def _missing(key: str, value: str, path: Path) -> str:
    folder = Path(os.path.abspath(value))
    if folder.is_dir() and folder != path:
        return f"{key} is {value!r}, which holds no {path.relative_to(folder)}"
    return f"{key} is {value!r}, which does not exist"


def _naming(settings: object, path: Path) -> Iterator[tuple[str, str]]:
    """The keys whose value is the path or a folder above it, each with its value."""
    for key, value in _texts(settings, "config"):
        named = os.path.abspath(value)
        if value.strip() and (str(path) == named or str(path).startswith(f"{named}{os.sep}")):
            yield key, value


def _texts(value: Any, key: str) -> Iterator[tuple[str, str]]:
    if isinstance(value, str):
        yield key, value
    elif isinstance(value, (tuple, list)):
        for item in value:
            yield from _texts(item, key)
    elif dataclasses.is_dataclass(value):
        for field in dataclasses.fields(value):
            yield from _texts(getattr(value, field.name), f"{key}.{field.name}")

"""How files of an index are known to be as they were written: sizes, checksums, a seal."""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

VERIFIED_BYTES = 2**30  # files up to this size in all are read through when an index is opened
_END = 2**20  # bytes of a file's beginning and end that are read of a larger index


def entry(path: Path) -> list[int]:
    """What is written down of a file: its bytes, its checksum, and the checksum of its ends."""
    return [path.stat().st_size, checksum(path), ends_checksum(path)]


def checksum(path: Path) -> int:
    found = 0
    with open(path, "rb") as file:
        while chunk := file.read(2**20):
            found = zlib.crc32(chunk, found)
    return found


def ends_checksum(path: Path) -> int:
    """Of a file's first and last MiB, which of a small file overlap."""
    with open(path, "rb") as file:
        found = zlib.crc32(file.read(_END))
        file.seek(max(0, path.stat().st_size - _END))
        return zlib.crc32(file.read(_END), found)


def verify(folder: Path, files: Mapping[str, list[int]]) -> None:
    """Compares files with what was written down, name → `entry`. Raises ValueError.

    All of each file is read, or its first and last MiB where they have more than VERIFIED_BYTES.
    """
    is_small = sum(size for size, *_ in files.values()) <= VERIFIED_BYTES
    for name, (size, whole, *ends) in files.items():
        path = folder / name
        if not path.is_file():
            raise ValueError(f"{name} is missing")
        if path.stat().st_size != size:
            raise ValueError(f"{name} has {path.stat().st_size} bytes of {size}")
        found = [whole, checksum(path)] if is_small else [*ends, ends_checksum(path)]
        if found[0] != found[-1]:
            raise ValueError(f"{name} has another content than was written")


def seal(manifest: Mapping[str, Any]) -> int:
    """A checksum of the manifest itself, without its entry `seal`."""
    rest = {key: value for key, value in manifest.items() if key != "seal"}
    return zlib.crc32(json.dumps(rest, sort_keys=True).encode())

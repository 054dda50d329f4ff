"""How files of an index are known to be as they were written: sizes, checksums, a seal."""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

VERIFIED_BYTES = 2**30  # files up to this size in all are read through when an index is opened


def checksum(path: Path) -> int:
    found = 0
    with open(path, "rb") as file:
        while chunk := file.read(2**20):
            found = zlib.crc32(chunk, found)
    return found


def verify(folder: Path, files: Mapping[str, list[int]]) -> None:
    """Compares files with what was written down, name → [bytes, checksum]. Raises ValueError."""
    whole = sum(size for size, _ in files.values()) <= VERIFIED_BYTES
    for name, (size, expected) in files.items():
        path = folder / name
        if not path.is_file():
            raise ValueError(f"{name} is missing")
        if path.stat().st_size != size:
            raise ValueError(f"{name} has {path.stat().st_size} bytes of {size}")
        if whole and checksum(path) != expected:
            raise ValueError(f"{name} has another content than was written")


def seal(manifest: Mapping[str, Any]) -> int:
    """A checksum of the manifest itself, without its entry `seal`."""
    rest = {key: value for key, value in manifest.items() if key != "seal"}
    return zlib.crc32(json.dumps(rest, sort_keys=True).encode())

"""Where a run's files lie: a local folder, or a bucket (gs://...), by one kind of path."""

from __future__ import annotations

import hashlib
import os
import pathlib

from etils import epath

from masksearch_jax.core import files

RUN_RECORD = "run.json"  # in a folder: when and by what it was made
_SAMPLE = 65_536  # bytes of a file's beginning, middle and end that tell it from others


def path(text: str | os.PathLike) -> epath.Path:
    """A path with pathlib's methods. `pathlib.Path` would make the folder `gs:` of a bucket."""
    return epath.Path(os.fspath(text))


def modified(file: epath.Path) -> float:
    """When a file was last written, seconds since 1970; of a bucket's, to the second."""
    return float(file.stat().mtime) if files.is_bucket(file) else os.stat(file).st_mtime


def fingerprint(folder: str) -> bytes:
    """What tells a local file, or a folder's, from others: names, sizes and samples of each.

    When and by what they were made is left out.
    Weights that were trained further differ everywhere, so samples do. Empty where nothing is.
    """
    digest = hashlib.sha256()
    root = pathlib.Path(folder)
    found = [p for p in sorted(root.rglob("*")) if p.is_file()] if folder and root.is_dir() else []
    if folder and root.is_file():
        root, found = root.parent, [root]
    found = [p for p in found if p.name != RUN_RECORD]
    for file in found:
        size = file.stat().st_size
        digest.update(f"{file.relative_to(root).as_posix()} {size}\n".encode())
        with file.open("rb") as stream:
            for start in (0, size // 2, max(0, size - _SAMPLE)):
                stream.seek(start)
                digest.update(stream.read(_SAMPLE))
    return digest.digest() if found else b""


def is_unmade(folder: str | os.PathLike) -> bool:
    """Whether a folder is not there, or holds nothing yet but its record."""
    place = path(folder)
    return not place.exists() or (
        place.is_dir() and all(p.name == RUN_RECORD for p in place.iterdir())
    )


def truncate(file: epath.Path, size: int) -> None:
    """Cuts a file, if there is one, to its first `size` bytes."""
    if not file.exists() or file.stat().length == size:
        return
    if files.is_bucket(file):
        file.write_bytes(file.read_bytes()[:size])
    else:
        os.truncate(file, size)


def append(file: epath.Path, text: str) -> None:
    """Adds text to a file, which need not exist; on disk when it returns, all of it or nothing.

    Objects of a bucket cannot grow: there the whole file is written again, which suits the few
    megabytes of a run's curves and no more.
    """
    if files.is_bucket(file):
        before = file.read_text() if file.exists() else ""
        file.write_text(before + text)
        return
    size = file.stat().length if file.exists() else 0
    try:
        with file.open("a") as stream:
            stream.write(text)
    except OSError:
        os.truncate(file, size)  # a full disk takes a part
        raise

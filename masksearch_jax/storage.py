"""Where a run's files lie: a local folder, or a bucket (gs://...), by one kind of path."""

from __future__ import annotations

import os

from etils import epath


def path(text: str | os.PathLike) -> epath.Path:
    """A path with pathlib's methods. `pathlib.Path` would make the folder `gs:` of a bucket."""
    return epath.Path(os.fspath(text))


def is_bucket(place: epath.Path) -> bool:
    return "://" in os.fspath(place)


def modified(file: epath.Path) -> float:
    """When a file was last written, seconds since 1970; of a bucket's, to the second."""
    return float(file.stat().mtime) if is_bucket(file) else os.stat(file).st_mtime


def append(file: epath.Path, text: str) -> None:
    """Adds text to a file, which need not exist; on disk when it returns, all of it or nothing.

    Objects of a bucket cannot grow: there the whole file is written again, which suits the few
    megabytes of a run's curves and no more.
    """
    if is_bucket(file):
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

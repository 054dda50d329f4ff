"""Files and folders written whole: a reader, or a process that goes on after a kill, sees no half.

What is written lies beside its place, under a hidden name that ends in `.partial`, until it is on
the disk; a rename then gives it its name. In a bucket (gs://…) it is an object beside the other,
and the rename a copy, which is there at once. What a killed writer left goes with the next one.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import secrets
import shutil
import stat
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from typing import IO, Any, Literal

from masksearch_jax.core.bucket import BucketPath
from masksearch_jax.core.errors import UserError

_PARTIAL = ".partial"
_MADE_FROM = ".made_from"  # in a folder that is being written
_OF_A_DISK = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO}


class BeingWrittenError(UserError):
    """A folder that another process is writing."""


def is_bucket(path: str | os.PathLike[str]) -> bool:
    return "://" in os.fspath(path)


@contextlib.contextmanager
def writing(path: str | os.PathLike[str], mode: Literal["w", "wb"] = "w") -> Iterator[IO[Any]]:
    """A new file that is `path` when the block ends, and gone when the block raises.

    Until then `path` is what it was, whatever kills the process. Folders that are missing are made;
    text is UTF-8. The file has the permissions of the one that it replaces. Of several writers at
    once the last one to end is kept. Raises OSError; that of a full disk names `path`, that of a
    bucket is a StorageError.
    """
    kind = _in_bucket if is_bucket(path) else _on_disk
    with _named(path), kind(os.fspath(path), mode) as file:
        yield file


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Replaces a file's text, see `writing`."""
    with writing(path) as file:
        file.write(text)


def write_json(path: str | os.PathLike[str], value: object, indent: int | None = 1) -> None:
    """`write_text` of JSON."""
    write_text(path, json.dumps(value, indent=indent) + "\n")


def write_lines(path: str | os.PathLike[str], lines: Iterable[str]) -> int:
    """Writes lines as they come, see `writing`, and returns their number."""
    count = 0
    with writing(path) as file:
        for line in lines:
            file.write(f"{line}\n")
            count += 1
    return count


@contextlib.contextmanager
def writing_folder(
    path: str | os.PathLike[str], made_from: str = "", kept: Collection[str] | None = None
) -> Iterator[Path]:
    """A new local folder to write in, which is `path` when the block ends; an old one is replaced.

    made_from: names what is written. What a cut-off writing of the same left is there again, to go
    on from, or of it the files in `kept`; with "" the folder is empty, and gone when the block
    raises. A kill between the two renames of a replacement, which follow one another at once,
    leaves the old folder beside `path` for the next writer to put back. Raises BeingWrittenError,
    OSError as `writing`.
    """
    path = Path(os.path.abspath(path))
    partial, old = (path.with_name(f".{path.name}{end}") for end in (_PARTIAL, ".replaced"))
    with _named(path), _owned(partial):
        if old.exists():
            shutil.rmtree(old) if path.exists() else old.rename(path)
        begun = partial / _MADE_FROM
        if not made_from or not begun.is_file() or begun.read_text(encoding="utf-8") != made_from:
            kept = ()
        if kept is not None:
            _empty(partial, kept)
        try:
            if made_from:
                write_text(begun, made_from)
            yield partial
            begun.unlink(missing_ok=True)
            _sync_all(partial)
            _replace(partial, path, old)
        except BaseException:
            if not made_from:
                shutil.rmtree(partial, ignore_errors=True)
            raise


# ---- a file


@contextlib.contextmanager
def _on_disk(name: str, mode: str) -> Iterator[IO[Any]]:
    path = Path(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    _clear(path)
    partial, handle = _new_file(path)
    try:
        with open(handle, mode, encoding=None if "b" in mode else "utf-8") as file:
            with contextlib.suppress(OSError):  # nothing there yet
                os.fchmod(handle, stat.S_IMODE(path.stat().st_mode))
            yield file
            file.flush()
            os.fsync(handle)
            partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    _sync_folder(path.parent)


@contextlib.contextmanager
def _in_bucket(name: str, mode: str) -> Iterator[IO[Any]]:
    path = BucketPath(name)
    partial = path.parent / _partial_name(path.name)
    try:
        with partial.open(mode) as file:
            file.write(b"" if "b" in mode else "")  # TensorFlow makes no object of no write
            yield file
        partial.replace(path)
    except BaseException:
        with contextlib.suppress(Exception):  # what failed is told, not what could not be removed
            partial.unlink(missing_ok=True)
        raise


def _partial_name(name: str) -> str:
    return f".{name}.{secrets.token_hex(4)}{_PARTIAL}"


def _new_file(path: Path) -> tuple[Path, int]:
    """An empty file beside `path`, and a handle with its lock, which ends with the process."""
    while True:
        partial = path.with_name(_partial_name(path.name))
        handle = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:  # `_clear` of another writer is about to remove it
            os.close(handle)
            continue
        except OSError:
            return partial, handle  # a file system without locks: there `_clear` does nothing
        if partial.exists():
            return partial, handle
        os.close(handle)  # `_clear` had it before its lock


def _clear(path: Path) -> None:
    """Removes what killed writers of `path` left: files that no living process has locked."""
    with os.scandir(path.parent) as entries:
        names = [e.path for e in entries if e.name.startswith(f".{path.name}.")]
    for name in names:
        if not name.endswith(_PARTIAL):
            continue
        with contextlib.suppress(OSError):  # locked, no file, or gone
            handle = os.open(name, os.O_WRONLY)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                os.unlink(name)
            finally:
                os.close(handle)


# ---- a folder


@contextlib.contextmanager
def _owned(partial: Path) -> Iterator[None]:
    """Makes the folder and holds its lock, which ends with the process."""
    partial.mkdir(parents=True, exist_ok=True)
    handle = os.open(partial, os.O_RDONLY)
    other = BeingWrittenError(f"{partial} is being written by another process")
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise other from None
        except OSError:
            pass  # a file system without locks
        if not partial.exists() or not os.path.samestat(os.fstat(handle), partial.stat()):
            raise other  # who has just ended
        yield
    finally:
        os.close(handle)


def _empty(folder: Path, kept: Collection[str]) -> None:
    for path in (p for p in folder.iterdir() if p.name not in kept):
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def _replace(partial: Path, path: Path, old: Path) -> None:
    try:
        if path.exists():
            path.rename(old)
        partial.rename(path)
    except BaseException:
        if old.exists() and not path.exists():
            old.rename(path)
        raise
    _sync_folder(path.parent)
    shutil.rmtree(old, ignore_errors=True)


# ---- the disk


def _sync_all(folder: Path) -> None:
    """Brings all files of a folder, and their names, to the disk."""
    for place, _, names in os.walk(folder):
        for name in names:
            with open(os.path.join(place, name), "rb") as file:
                os.fsync(file.fileno())
        _sync_folder(place)


def _sync_folder(folder: str | os.PathLike[str]) -> None:
    with contextlib.suppress(OSError):  # file systems that do not sync folders
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


@contextlib.contextmanager
def _named(path: str | os.PathLike[str]) -> Iterator[None]:
    """Gives a disk's error the path that was written, where the system names none."""
    try:
        yield
    except OSError as error:
        if error.filename is None and error.errno in _OF_A_DISK:
            error.filename = os.fspath(path)
        raise

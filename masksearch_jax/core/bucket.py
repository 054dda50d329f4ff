"""Paths in buckets, whose failures are of one class, whichever library asks the service.

etils asks by TensorFlow, Orbax by TensorStore too; the errors of neither are OSErrors. Both have
tried again before they raise.
"""

from __future__ import annotations

import contextlib
import functools
import os
import re
from collections.abc import Callable, Iterator
from typing import IO, Any, Concatenate, ParamSpec, TypeVar

from etils import epath
from etils.epath import gpath

from masksearch_jax.core.errors import Restart

_P = ParamSpec("_P")
_T = TypeVar("_T")

# Statuses, as TensorFlow's classes and TensorStore's texts begin, that say nothing of the request.
_PASSING = re.compile(r"(unknown|deadline_?exceeded|aborted|internal|unavailable)", re.IGNORECASE)
_NO_NETWORK = "libcurl code 6 "  # a name of Google's that was not found: TensorFlow tells it apart
_STATUS = re.compile(r"[A-Z]+(_[A-Z]+)*(?=: )")


class StorageError(OSError):
    """A bucket did not do what it was asked; the message has the address and the reason."""


class StorageOutageError(StorageError, Restart):
    """One that passes."""


def failure(error: BaseException, address: str | os.PathLike[str]) -> StorageError | None:
    """What an error of TensorFlow's or TensorStore's says of a bucket; None of any other."""
    if isinstance(error, StorageError):
        return error
    text = " ".join(str(error).split())
    if any(kind.__name__ == "OpError" for kind in type(error).__mro__):
        status = type(error).__name__.removesuffix("Error")
    elif type(error) is ValueError and (found := _STATUS.match(text)):
        status = found[0]
    else:
        return None
    passes = _PASSING.match(status) or _NO_NETWORK in text
    kind = StorageOutageError if passes else StorageError
    return kind(f"{os.fspath(address)}: {text[:400]} ({status})")


@contextlib.contextmanager
def asking(address: str | os.PathLike[str]) -> Iterator[None]:
    """Raises StorageError in the place of the libraries' own errors about a bucket."""
    try:
        yield
    except Exception as error:
        if found := failure(error, address):
            raise found from error
        raise


def _method(
    method: Callable[Concatenate[Any, _P], _T],
) -> Callable[Concatenate[Any, _P], _T]:
    @functools.wraps(method)
    def call(self: BucketPath, *args: _P.args, **kwargs: _P.kwargs) -> _T:
        with asking(self):
            return method(self, *args, **kwargs)

    return call


def _iterator(
    method: Callable[Concatenate[Any, _P], Iterator[_T]],
) -> Callable[Concatenate[Any, _P], Iterator[_T]]:
    @functools.wraps(method)
    def each(self: BucketPath, *args: _P.args, **kwargs: _P.kwargs) -> Iterator[_T]:
        with asking(self):
            yield from method(self, *args, **kwargs)

    return each


@epath.register_path_cls(("gs://", "s3://", "az://", "hf://"))
class BucketPath(gpath.PosixGPath):
    """What `epath.Path` makes of an address, ours and libraries' alike. Raises StorageError."""

    exists = _method(gpath.PosixGPath.exists)
    stat = _method(gpath.PosixGPath.stat)
    mkdir = _method(gpath.PosixGPath.mkdir)
    rmdir = _method(gpath.PosixGPath.rmdir)
    rmtree = _method(gpath.PosixGPath.rmtree)
    unlink = _method(gpath.PosixGPath.unlink)
    rename = _method(gpath.PosixGPath.rename)
    replace = _method(gpath.PosixGPath.replace)
    copy = _method(gpath.PosixGPath.copy)
    iterdir = _iterator(gpath.PosixGPath.iterdir)
    glob = _iterator(gpath.PosixGPath.glob)
    walk = _iterator(gpath.PosixGPath.walk)

    def is_dir(self) -> bool:
        """TensorFlow's own takes an outage for a no."""
        try:
            return bool(self.stat().is_directory)
        except FileNotFoundError:
            return False

    @contextlib.contextmanager
    def open(self, *args: Any, **kwargs: Any) -> Iterator[IO[Any]]:
        with asking(self), super().open(*args, **kwargs) as file:
            yield file

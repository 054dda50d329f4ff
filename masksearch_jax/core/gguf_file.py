"""The header of a GGUF file: its settings and its tensors. Loads gguf, an optional extra."""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gguf import GGUFReader
    from gguf.gguf_reader import ReaderTensor


class GgufError(ValueError):
    """A file that is no whole GGUF file of a model, or one of a kind that is not read."""


def is_gguf(path: str | Path) -> bool:
    """True for a local file whose name ends in .gguf."""
    return Path(path).suffix == ".gguf" and Path(path).is_file()


class Header:
    """What a GGUF file says before its tensors' bytes, which stay in the file."""

    def __init__(self, path: Path, reader: GGUFReader) -> None:
        self.path = path
        self._reader = reader

    def get(self, key: str, default: Any = None) -> Any:
        """A setting, as "general.architecture"; the default where the file has none of it."""
        field = self._reader.get_field(key)
        return default if field is None else field.contents()

    def need(self, key: str, default: Any = None) -> Any:
        """A setting, or its default. Raises GgufError where there is neither."""
        if (found := self.get(key, default)) is None:
            raise GgufError(f"{self.path} has no {key!r}; it has {sorted(self._reader.fields)}")
        return found

    def tensors(self) -> Iterator[ReaderTensor]:
        yield from self._reader.tensors


def read_header(path: str | Path) -> Header:
    """The header of a local file. Raises GgufError, or FileNotFoundError."""
    path = Path(path).resolve()
    stat = path.stat()
    return _read(path, stat.st_mtime_ns, stat.st_size)


def let_go() -> None:
    """Unmaps the files read last; the next header is read anew."""
    _read.cache_clear()


@functools.lru_cache(maxsize=2)  # a vocabulary of 150,000 tokens takes seconds
def _read(path: Path, changed: int, size: int) -> Header:
    del changed, size  # they tell a file from another one of its name
    if importlib.util.find_spec("gguf") is None:
        raise GgufError(
            f"{path} is read by the package gguf, which is not installed: "
            "pip install 'masksearch_jax[gguf]'"
        )
    from gguf import GGUFReader

    try:
        header = Header(path, GGUFReader(path))
    except Exception as error:  # of a file that is cut, the reader raises whatever it runs into
        said = f"{type(error).__name__}: {' '.join(str(error).split())}"
        raise GgufError(f"{path} is no whole GGUF file: {said}") from error
    if (parts := header.get("split.count", 1)) > 1:
        raise GgufError(f"{path} is one of {parts} files: merge them (llama-gguf-split --merge)")
    return header

"""Safetensors files: headers checked, slices read when wanted, shards written array by array.

No function holds more of a file than one block beside what it returns or was given.
"""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from safetensors import SafetensorError, safe_open

from masksearch_jax.core.files import writing
from masksearch_jax.core.gguf_file import is_gguf
from masksearch_jax.core.types import JsonObject
from masksearch_jax.models.gguf_model import GgufFile
from masksearch_jax.models.hf_config import HfError, read_json

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
# Safetensors' names of the dtypes that we read and write.
DTYPES = {"BF16": "bfloat16", "F16": "float16", "F32": "float32"}
BLOCK = 16 * 2**20  # bytes read at once
TILE = 256  # rows and columns

Index = tuple[slice, ...]


class Stored(NamedTuple):
    """A tensor in a file: where, its shape, and safetensors' name of its dtype."""

    path: Path
    name: str
    shape: tuple[int, ...]
    dtype: str


def stored(folder: Path) -> dict[str, Stored]:
    """Every tensor of a GGUF file, or the folder's single file or indexed shards, by headers alone.

    Raises FileNotFoundError or HfError naming a file that is missing or cut, or an index that names
    tensors which its files lack.
    """
    if is_gguf(folder):
        return _in_file(folder)
    where = _weight_map(folder)
    found: dict[str, Stored] = {}
    for file in sorted(set(where.values())):
        there = _in_file(folder / file)
        found |= {name: tensor for name, tensor in there.items() if where.get(name) == file}
    if lacking := sorted(set(where) - set(found)):
        raise HfError(f"{folder}: the index names tensors its files lack: {lacking[:5]}")
    return found


def _in_file(path: Path) -> dict[str, Stored]:
    with _open(path) as content:
        pieces = {name: content.get_slice(name) for name in content.keys()}  # noqa: SIM118 (no dict)
        return {
            name: Stored(path, name, tuple(piece.get_shape()), piece.get_dtype())
            for name, piece in pieces.items()
        }


def read(tensor: Stored, index: Index, transposed: bool, out: np.ndarray) -> None:
    """Fills `out` with the slice `index` of a tensor, or of its transpose, cast to out's dtype.

    Of the file only that slice is read, and it is mapped no longer than that: mapped pages count as
    memory of the process. A GGUF file stays mapped until `gguf_file.let_go`.
    """
    shape = tensor.shape[::-1] if transposed else tensor.shape
    bounds = [slice(*cut.indices(size)[:2]) for cut, size in zip(index, shape, strict=True)]
    rows, *rest = bounds[::-1] if transposed else bounds
    target = out.T if transposed else out
    with _open(tensor.path) as content:
        piece = content.get_slice(tensor.name)
        for block in _blocks(rows, target[:1].size * out.dtype.itemsize):
            found = piece[(block, *rest)]
            into = target[block.start - rows.start : block.stop - rows.start]
            copy_transposed(into, found) if transposed else np.copyto(into, found, "unsafe")
        del piece  # it would keep the file mapped


def copy_transposed(dst: np.ndarray, src: np.ndarray) -> None:
    """dst[...] = src for matrices of which one is a transpose, in tiles that fit a cache."""
    for i in range(0, dst.shape[0], TILE):
        for j in range(0, dst.shape[1], TILE):
            dst[i : i + TILE, j : j + TILE] = src[i : i + TILE, j : j + TILE]


def is_equal(a: Stored, b: Stored) -> bool:
    """Whether two tensors hold the same values."""
    if a.shape != b.shape:
        return False
    for rows in _blocks(slice(0, a.shape[0]), math.prod(a.shape[1:]) * 4):
        index = (rows, *(slice(0, size) for size in a.shape[1:]))
        pair = np.empty((2, rows.stop - rows.start, *a.shape[1:]), np.float32)
        read(a, index, False, pair[0])
        read(b, index, False, pair[1])
        if not np.array_equal(*pair):
            return False
    return True


class Shard(NamedTuple):
    """A file to write: its tensors' names, its first bytes, and its size when whole."""

    file: str
    names: list[str]
    header: bytes
    size: int


def shards(shapes: Mapping[str, tuple[int, ...]], dtype: np.dtype, max_bytes: float) -> list[Shard]:
    """Files of at most `max_bytes` of tensors each (one tensor may exceed it), in order."""
    groups: list[list[str]] = [[]]
    room = max_bytes
    for name, shape in shapes.items():
        size = math.prod(shape) * dtype.itemsize
        if groups[-1] and size > room:
            groups.append([])
            room = max_bytes
        groups[-1].append(name)
        room -= size
    count = len(groups)
    files = [f"model-{i + 1:05d}-of-{count:05d}.safetensors" for i in range(count)]
    return [
        _shard(file, {name: shapes[name] for name in group}, dtype)
        for file, group in zip([SINGLE] if count == 1 else files, groups, strict=True)
    ]


def index_of(shards: Sequence[Shard]) -> JsonObject:
    """The object of the index file that goes with several shards."""
    total = sum(s.size - len(s.header) for s in shards)
    where = {name: shard.file for shard in shards for name in shard.names}
    return {"metadata": {"total_size": total}, "weight_map": where}


def is_whole(folder: Path, shard: Shard) -> bool:
    """Whether the shard was written to its end: only then does a file have its name."""
    path = folder / shard.file
    if not path.is_file() or path.stat().st_size != shard.size:
        return False
    with path.open("rb") as stream:
        return stream.read(len(shard.header)) == shard.header


def write(folder: Path, shard: Shard, arrays: Iterable[np.ndarray]) -> None:
    """Writes one array after the other and gives the file its name when it is on disk, whole."""
    with writing(folder / shard.file, "wb") as stream:
        stream.write(shard.header)
        for array in arrays:
            stream.write(np.ascontiguousarray(array).reshape(-1).view(np.uint8))


def _shard(file: str, shapes: Mapping[str, tuple[int, ...]], dtype: np.dtype) -> Shard:
    kind = next(kind for kind, name in DTYPES.items() if name == dtype.name)
    entries: JsonObject = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, shape in shapes.items():
        begin, end = end, end + math.prod(shape) * dtype.itemsize
        entries[name] = {"dtype": kind, "shape": shape, "data_offsets": [begin, end]}
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    header = len(text).to_bytes(8, "little") + text
    return Shard(file, list(shapes), header, len(header) + end)


def _blocks(rows: slice, row_bytes: int) -> Iterator[slice]:
    step = max(1, BLOCK // max(row_bytes, 1))
    for start in range(rows.start, rows.stop, step):
        yield slice(start, min(start + step, rows.stop))


def _weight_map(folder: Path) -> dict[str, str]:
    """Tensor name to file name, from the index or the single file's header.

    Raises HfError where a single file lies beside an index of others: which are the weights?
    """
    if (folder / INDEX).is_file():
        where = _read_index(folder / INDEX)
        files = sorted(set(where.values()))
        if SINGLE not in files and (folder / SINGLE).is_file():
            raise HfError(_ambiguous(folder, files))
        return where
    if not (folder / SINGLE).is_file():
        names = sorted(p.name for p in folder.iterdir())[:10]
        raise FileNotFoundError(f"{folder} has neither {SINGLE} nor {INDEX}; it has {names}")
    with _open(folder / SINGLE) as content:
        return dict.fromkeys(content.keys(), SINGLE)


def _read_index(path: Path) -> dict[str, str]:
    index = read_json(path)
    where = index.get("weight_map")
    if not isinstance(where, dict):
        raise HfError(f"{path} has no weight_map; it has {sorted(index)}")
    if odd := [name for name, file in where.items() if not isinstance(file, str)]:
        raise HfError(f"{path}: weight_map has {where[odd[0]]!r} for {odd[0]}, not a file name")
    if not where:
        raise HfError(f"{path} has an empty weight_map; where {SINGLE} is there, delete the index")
    return where


def _ambiguous(folder: Path, files: Sequence[str]) -> str:
    """What is wrong with a single file beside an index of `files`, and what to delete."""
    shards = files[0] if len(files) == 1 else f"{files[0]} to {files[-1]}"
    if gone := [file for file in files if not (folder / file).is_file()]:
        return (
            f"{folder} has {SINGLE} and {INDEX}, but {len(gone)} of the {len(files)} shards that "
            f"it names are gone ({shards}): delete the index to read {SINGLE}"
        )
    return (
        f"{folder} has weights twice, {SINGLE} and {INDEX} with {shards}: delete the index and its "
        f"shards, or {SINGLE}, whichever is old"
    )


@contextlib.contextmanager
def _open(path: Path) -> Iterator[safe_open | GgufFile]:
    if is_gguf(path):
        yield GgufFile(path)
        return
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing, though {INDEX} names it")
    try:
        content = safe_open(path, framework="numpy")
    except SafetensorError as error:
        raise HfError(f"{path} is no whole safetensors file: {error}") from error
    with content:
        yield content

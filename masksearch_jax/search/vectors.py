"""Vectors of an index's passages on disk: float16, one row a passage, mapped into memory.

They lie in a folder beside the index, so that an index made anew does not take them along. The
manifest names the index and the encoder that they are of: vectors of another one are refused.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from masksearch_jax.core.files import write_json, writing_folder
from masksearch_jax.core.retrieval import SearchError
from masksearch_jax.core.types import Passage
from masksearch_jax.search import manifest

FORMAT = 1
SHARD_ROWS = 4096  # passages encoded between two writings
DTYPE = np.dtype("<f2")
GRAPH = "graph.usearch"
_VECTORS, _MANIFEST, _DONE = "vectors.f16", "manifest.json", "done.json"
_COMMAND = "python -m masksearch_jax.build_index with config.vectors.encoder"


class Encoder(Protocol):
    """Texts to vectors, float32 [B, dim]."""

    folder: str
    dim: int
    dtype: str  # that it computes in
    fingerprint: str

    @property
    def told(self) -> dict[str, str | int]:
        """How texts are read, as JSON, to read them so again."""
        ...

    def encode_queries(self, texts: Sequence[str]) -> np.ndarray: ...
    def encode_passages(self, texts: Sequence[str]) -> np.ndarray: ...


def folder_of(index: str | os.PathLike[str]) -> Path:
    """Where the vectors of an index lie."""
    path = Path(index)
    return path.with_name(f"{path.name}.vectors")


def build(
    passages: Sequence[Passage],
    folder: Path,
    encoder: Encoder,
    *,
    index: str,
    graph: bool = False,
    progress: Callable[[int], None] | None = None,
) -> None:
    """Encodes `passages`, the store of the index with this fingerprint, into `folder`.

    A cut-off build of the same goes on after its last whole shard, and one that is done is left as
    it is. `graph` adds an HNSW graph, for which nothing is encoded again. Space for all vectors is
    taken first, so that a full disk is known before anything is encoded. Raises SearchError.
    """
    made_from = {
        "format": FORMAT,
        "index": index,
        "encoder": encoder.fingerprint,
        "dtype": encoder.dtype,
    }
    before = _files_of(folder, made_from)
    if before and progress:
        progress(len(passages))
    if before and (GRAPH in before or not graph):
        return
    try:
        with writing_folder(folder, json.dumps(made_from)) as partial:
            if before:
                _take(folder / _VECTORS, partial / _VECTORS)
                files = {_VECTORS: before[_VECTORS]}
            else:
                files = _write(passages, partial, encoder, progress)
            if graph:
                _write_graph(partial, len(passages), encoder.dim)
                files[GRAPH] = manifest.entry(partial / GRAPH)
            told: dict[str, Any] = {
                **made_from,
                "encoder_folder": os.path.abspath(encoder.folder),
                "reading": encoder.told,
                "count": len(passages),
                "dim": encoder.dim,
                "files": files,
            }
            write_json(partial / _MANIFEST, told | {"seal": manifest.seal(told)})
            (partial / _DONE).unlink(missing_ok=True)
    except OSError as error:
        raise SearchError(f"the vectors {folder} could not be written: {error}") from error


def _files_of(folder: Path, made_from: dict[str, Any]) -> dict[str, list[int]]:
    """What is told of the files of whole vectors of the same; {} where there are none."""
    try:
        Vectors.open(folder, made_from["index"])
        told = _read_manifest(folder)
    except SearchError:
        return {}
    return told["files"] if made_from.items() <= told.items() else {}


def _take(file: Path, place: Path) -> None:
    """The same file at another place: by a link, or as a copy on a disk that has no links."""
    place.unlink(missing_ok=True)
    try:
        place.hardlink_to(file)
    except OSError:
        shutil.copyfile(file, place)


def _write(
    passages: Sequence[Passage],
    folder: Path,
    encoder: Encoder,
    progress: Callable[[int], None] | None,
) -> dict[str, list[int]]:
    path = folder / _VECTORS
    shape = (len(passages), encoder.dim)
    done = _whole_shards(folder, shape)
    with open(path, "r+b" if path.exists() else "w+b") as file:
        os.posix_fallocate(file.fileno(), 0, shape[0] * shape[1] * DTYPE.itemsize)
    table = np.memmap(path, DTYPE, "r+", shape=shape)
    for start in range(len(done) * SHARD_ROWS, len(passages), SHARD_ROWS):
        rows = range(start, min(start + SHARD_ROWS, len(passages)))
        texts = [text_of(passages[row]) for row in rows]
        shard = encoder.encode_passages(texts).astype(DTYPE)
        if not np.isfinite(shard).all():
            raise SearchError(f"the encoder gave no finite vector for a passage of {rows}")
        table[rows.start : rows.stop] = shard
        table.flush()
        done.append(zlib.crc32(shard.tobytes()))
        write_json(folder / _DONE, done)
        if progress:
            progress(rows.stop)
    return {_VECTORS: manifest.entry(path)}


def text_of(passage: Passage) -> str:
    """What is encoded of a passage."""
    return f"{passage.title}\n{passage.text}" if passage.title else passage.text


def _whole_shards(folder: Path, shape: tuple[int, int]) -> list[int]:
    """Checksums of the shards that a cut-off build wrote and that are as it wrote them."""
    path, shard_bytes = folder / _VECTORS, SHARD_ROWS * shape[1] * DTYPE.itemsize
    try:
        done = json.loads((folder / _DONE).read_bytes())
        with open(path, "rb") as file:
            whole = [zlib.crc32(file.read(shard_bytes)) == crc for crc in done]
    except (OSError, ValueError, TypeError):
        return []
    return done[: whole.index(False)] if False in whole else done


def _write_graph(folder: Path, count: int, dim: int) -> None:
    from usearch.index import Index, MetricKind

    table = np.memmap(folder / _VECTORS, DTYPE, "r", shape=(count, dim))
    graph = Index(ndim=dim, metric=MetricKind.IP, dtype="f16")
    graph.add(np.arange(count), table)
    try:
        graph.save(str(folder / GRAPH))
    except RuntimeError as error:  # what a full disk comes as
        raise OSError(f"{GRAPH}: {error}") from error


class Vectors:
    """The vectors of an index, float16 [N, dim], mapped."""

    def __init__(self, folder: Path, table: np.ndarray, told: dict[str, Any]):
        self.folder, self.table = folder, table
        self.encoder_folder: str = told["encoder_folder"]
        self.encoder: str = told["encoder"]  # its fingerprint
        self.reading: dict[str, str | int] = told["reading"]  # as `Encoder.told`

    @classmethod
    def open(cls, folder: Path, index: str) -> Vectors:
        """Vectors of the index with this fingerprint. Raises SearchError for any others."""
        told = _read_manifest(folder)
        if told["index"] != index:
            raise SearchError(
                f"{folder} is of index {told['index']}, and the index beside it is {index}: the "
                f"corpus has changed since it was encoded; encode it again: {_COMMAND}"
            )
        try:
            manifest.verify(folder, told["files"])
            shape = (told["count"], told["dim"])
            return cls(folder, np.memmap(folder / _VECTORS, DTYPE, "r", shape=shape), told)
        except (OSError, ValueError) as error:
            raise SearchError(
                f"{folder} is damaged ({error}); encode it again: {_COMMAND}"
            ) from error

    def check_encoder(self, encoder: Encoder) -> None:
        """Raises SearchError where the vectors are another encoder's."""
        if encoder.fingerprint != self.encoder:
            raise SearchError(
                f"{self.folder} has vectors of encoder {self.encoder}, and {encoder.folder} is "
                f"{encoder.fingerprint}: give the folder that they were made with as "
                f"search.encoder, or encode again: {_COMMAND}"
            )


def _read_manifest(folder: Path) -> dict[str, Any]:
    path = folder / _MANIFEST
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        try:
            told = json.loads(path.read_bytes())
            if told["format"] != FORMAT:
                raise SearchError(f"{folder} has format {told['format']}, must be {FORMAT}")
            if told.get("seal") != manifest.seal(told):
                raise ValueError("it is not as it was written")
        except (ValueError, LookupError, TypeError) as error:
            raise SearchError(
                f"{path} is damaged ({error}); encode it again: {_COMMAND}"
            ) from error
        return told
    raise SearchError(f"no vectors in {str(folder)!r}; encode them: {_COMMAND}")

"""The offline cache: tokenised records as ArrayRecord shards, and one manifest that describes them.

    CACHE/manifest.json                   tasks, counts, mixture rates, tokenizer, prompt style
    CACHE/TASK-SPLIT/data-00000.array_record  lengths.npy  split.json  dropped.jsonl

A record is a flat dict of text and 1-D numpy arrays. Kinds of split: `sft` records have `id`, `ids`
int32[T] and `agent` bool[T] (True where the agent wrote the token); `prompt` records have `id`,
`ids` int32[P] and `example`, the example's JSON. `dropped.jsonl` has `id` and `tokens` of each
record that was too long; where none was, there is no such file.
"""

from __future__ import annotations

import dataclasses
import difflib
import errno
import itertools
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import msgpack
import numpy as np

from masksearch_jax.core import files, stamp

FORMAT = 3
MANIFEST = "manifest.json"
DROPPED = "dropped.jsonl"
_STAMP = "split.json"
Kind = Literal["sft", "prompt"]
Record = dict[str, Any]


class CacheError(ValueError):
    """A cache, or a name or position in it, that cannot be used; the message says what to do."""


_ARRAY = 1  # msgpack extension code of a numpy array


def _near(folder: Path) -> str:
    """Where the cache may be instead, for a message."""
    if not folder.is_dir():
        return "; there is no such folder"
    below = folder / "cache"
    return f"; did you mean {below}?" if (below / MANIFEST).is_file() else ""


@dataclasses.dataclass(frozen=True)
class Split:
    """What one task's split holds. `made_from` is a hash of its inputs.

    `tokens` and `agent_tokens` are totals, `longest` the most tokens of one record. `dropped` is
    how many records had more than `max_len` tokens and were left out. `shards` are (file name,
    bytes, records).
    """

    kind: Kind
    made_from: str
    max_len: int
    records: int
    tokens: int
    agent_tokens: int
    longest: int
    dropped: int
    shards: tuple[tuple[str, int, int], ...]


@dataclasses.dataclass(frozen=True)
class Manifest:
    """Everything a trainer needs to know of a cache but the records themselves.

    tasks: task → split → `Split`. mixtures: mixture → task → rate. made_from: a hash of inputs.
    search: keys of `config.search` by which the demonstrations searched.
    """

    folder: Path
    made_from: str
    tokenizer: str
    vocab_size: int
    eos_id: int
    pad_id: int
    prompt_style: str
    tasks: Mapping[str, Mapping[str, Split]]
    mixtures: Mapping[str, Mapping[str, float]]
    tools: tuple[str, ...] = ()  # besides search, as `config.tools` names them
    search: Mapping[str, Any] = dataclasses.field(default_factory=dict)  # of demonstrations

    @classmethod
    def load(
        cls,
        folder: str | Path,
        *,
        tokenizer: str = "",
        prompt_style: str = "",
        tools: tuple[str, ...] | None = None,
    ) -> Manifest:
        """The manifest of a cache folder, checked against what is given of the run that reads it.

        Raises FileNotFoundError where no build finished, CacheError on another format, tokenizer,
        prompt style or other tools.
        """
        folder = Path(folder)
        path = folder / MANIFEST
        if not path.is_file():
            raise FileNotFoundError(
                f"no {MANIFEST} in {str(folder)!r} (config.data): the cache was not built, or its "
                f"build did not finish{_near(folder)}; run `python -m masksearch_jax.build_cache` "
                "to build or resume it"
            )
        obj = json.loads(path.read_text(encoding="utf-8"))
        if (found := obj.pop("format", None)) != FORMAT:
            raise CacheError(
                f"{path}: format {found!r}, this code reads {FORMAT}; rebuild the cache"
            )
        obj["tasks"] = {
            task: {split: _split_from_json(s) for split, s in splits.items()}
            for task, splits in obj["tasks"].items()
        }
        obj["tools"] = tuple(obj.get("tools", ()))
        manifest = cls(folder=folder, **obj)
        for name, key, wanted, found in (
            ("tokenizer", "tokenizer", tokenizer or None, manifest.tokenizer),
            ("prompt style", "prompt.style", prompt_style or None, manifest.prompt_style),
            ("tools", "tools", None if tools is None else _named(tools), _named(manifest.tools)),
        ):
            if wanted is not None and wanted != found:
                raise CacheError(
                    f"{path}: the cache was built with {name} {found!r}, the run has {wanted!r} "
                    f"(config.{key}); rebuild the cache or give the run the other one"
                )
        return manifest

    def save(self) -> Path:
        """Write the manifest atomically, last of all: a cache without one is not finished."""
        obj = dataclasses.asdict(self) | {"format": FORMAT}
        del obj["folder"]
        if not self.tools:
            del obj["tools"]
        path = self.folder / MANIFEST
        files.write_json(path, obj)
        return path

    def rates(self, name: str) -> dict[str, float]:
        """Tasks and rates of a mixture, or of a task alone; CacheError names the nearest."""
        if name in self.mixtures:
            return dict(self.mixtures[name])
        if name in self.tasks:
            return {name: 1.0}
        raise CacheError(f"the cache {unknown('mixture or task', name, self.names())}")

    def names(self) -> list[str]:
        """Mixtures and tasks, as a curriculum may name them."""
        return [*self.mixtures, *self.tasks]

    def open(self, task: str, split: str) -> Records:
        """The records of one task's split, after checking its files against the manifest."""
        if task not in self.tasks:
            raise CacheError(f"the cache {unknown('task', task, self.tasks)}")
        if split not in self.tasks[task]:
            raise CacheError(f"task {task!r} {unknown('split', split, self.tasks[task])}")
        return Records(split_folder(self.folder, task, split), self.tasks[task][split])


class Records:
    """Random access to one split: `len(records)`, `records[i] -> Record`, `lengths` int32[n].

    Safe to read from several threads. Raises CacheError on open when a file is missing, cut short
    or holds another number of records than the manifest says.
    """

    def __init__(self, folder: Path, split: Split) -> None:
        from array_record.python import array_record_data_source

        self.name = folder.name
        if damage := _damage(folder, split):
            raise CacheError(f"{damage}; the cache is damaged: build it again")
        paths = [str(folder / name) for name, _, _ in split.shards]
        self.lengths = np.load(folder / "lengths.npy")
        self._reader = array_record_data_source.ArrayRecordDataSource(paths) if paths else []
        counts = {"manifest": split.records, "lengths": len(self.lengths), "shards": len(self)}
        if len(set(counts.values())) != 1:
            raise CacheError(f"{folder}: numbers of records disagree: {counts}")

    def __len__(self) -> int:
        return len(self._reader)

    def __getitem__(self, index: int) -> Record:
        return decode(self._reader[int(index)])

    def __iter__(self) -> Iterator[Record]:
        return (self[i] for i in range(len(self)))


def write_split(
    cache: str | Path,
    task: str,
    split: str,
    records: Iterable[Record],
    *,
    kind: Kind,
    max_len: int,
    made_from: str,
    records_per_shard: int = 65_536,
) -> Split:
    """Write one split and return its description; the folder appears whole or not at all.

    Records of more than `max_len` tokens are dropped, counted, and named in `dropped.jsonl`.
    """
    folder = split_folder(Path(cache), task, split)
    tally = _Tally(max_len)
    with files.writing_folder(folder) as partial:
        shards = _write_shards(partial, map(encode, filter(tally.add, records)), records_per_shard)
        np.save(partial / "lengths.npy", np.asarray(tally.lengths, np.int32))
        if tally.dropped:
            rows = (json.dumps(row, ensure_ascii=False) for row in tally.dropped)
            files.write_lines(partial / DROPPED, rows)
        written = tally.split(kind, made_from, shards)
        stamp.write(
            partial / _STAMP, dataclasses.asdict(written), made_from, _files_beside_stamp(partial)
        )
    return written


@dataclasses.dataclass
class _Tally:
    """What was kept and dropped while writing a split."""

    max_len: int
    lengths: list[int] = dataclasses.field(default_factory=list)
    dropped: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    agent_tokens: int = 0

    def add(self, record: Record) -> bool:
        """Counts a record; whether it is short enough, and so taken."""
        size = len(record["ids"])
        if size > self.max_len:
            self.dropped.append({"id": record["id"], "tokens": size})
            return False
        self.lengths.append(size)
        self.agent_tokens += int(np.sum(record.get("agent", 0)))
        return True

    def split(self, kind: Kind, made_from: str, shards: tuple[tuple[str, int, int], ...]) -> Split:
        return Split(
            kind=kind,
            made_from=made_from,
            max_len=self.max_len,
            records=len(self.lengths),
            tokens=sum(self.lengths),
            agent_tokens=self.agent_tokens,
            longest=max(self.lengths, default=0),
            dropped=len(self.dropped),
            shards=shards,
        )


def _named(tools: Sequence[str]) -> str:
    return ", ".join(tools) or "search alone"


def finished_split(cache: str | Path, task: str, split: str, made_from: str) -> Split | None:
    """The description of a split of these inputs that was written to its end and is whole."""
    folder = split_folder(Path(cache), task, split)
    record = stamp.read(folder / _STAMP, made_from, _files_beside_stamp(folder))
    return None if record is None else _split_from_json(record | {"made_from": made_from})


def _files_beside_stamp(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("*") if path.name != _STAMP)


def _damage(folder: Path, split: Split) -> str:
    """What is wrong with the sizes of a split's shards; empty when nothing is."""
    for name, size, _ in split.shards:
        path = folder / name
        found = path.stat().st_size if path.is_file() else None
        if found != size:
            state = "is missing" if found is None else f"has {found} bytes"
            return f"{path} {state}, the manifest says {size} bytes"
    return ""


def split_folder(cache: Path, task: str, split: str) -> Path:
    return cache / f"{task}-{split}"


def encode(record: Record) -> bytes:
    """A record as msgpack; arrays keep their dtype."""
    return msgpack.packb(record, default=_pack_array)


def decode(data: bytes) -> Record:
    """The inverse of `encode`; arrays are read-only views of `data`."""
    return msgpack.unpackb(data, ext_hook=_unpack_array)


def _pack_array(value: Any) -> msgpack.ExtType:
    if not isinstance(value, np.ndarray) or value.ndim != 1:
        raise TypeError(f"a record holds text and 1-D arrays, not {type(value).__name__}")
    return msgpack.ExtType(_ARRAY, value.dtype.str.encode() + b"\0" + value.tobytes())


def _unpack_array(code: int, data: bytes) -> np.ndarray:
    if code != _ARRAY:
        raise CacheError(f"record with unknown msgpack extension {code}")
    dtype, _, body = data.partition(b"\0")
    return np.frombuffer(body, np.dtype(dtype.decode()))


def _write_shards(
    folder: Path, records: Iterable[bytes], per_shard: int
) -> tuple[tuple[str, int, int], ...]:
    """Write shards of at most `per_shard` records. Raises OSError when the disk takes no more."""
    from array_record.python import array_record_module

    records = iter(records)
    shards: list[tuple[str, int, int]] = []
    for first in records:
        path = folder / f"data-{len(shards):05d}.array_record"
        writer = array_record_module.ArrayRecordWriter(str(path), "group_size:1")
        count = 0
        try:
            for record in itertools.chain([first], itertools.islice(records, per_shard - 1)):
                writer.write(record)
                count += 1
        finally:
            _close(writer, path)
        shards.append((path.name, path.stat().st_size, count))
    return tuple(shards)


def _close(writer: Any, path: Path) -> None:
    """Close a shard; the writer reports a failed write only here, as RuntimeError."""
    try:
        writer.close()
    except RuntimeError as error:
        code = errno.ENOSPC if os.strerror(errno.ENOSPC) in str(error) else errno.EIO
        raise OSError(code, str(error), str(path)) from error


def _split_from_json(obj: Mapping[str, Any]) -> Split:
    values = dict(obj)
    values["shards"] = tuple(tuple(s) for s in values["shards"])
    return Split(**values)


def unknown(what: str, name: str, choices: Iterable[str]) -> str:
    """The tail of an error about a name that is not among `choices`, with the nearest one."""
    choices = sorted(choices)
    near = difflib.get_close_matches(name, choices, n=1, cutoff=0.0)
    hint = f"; nearest is {near[0]!r}" if near else ""
    return f"has no {what} {name!r}{hint}; choices: {choices}"

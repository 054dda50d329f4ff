"""Which rows of a batch each process has, their way to the devices and back, and what all agree on.

A mesh splits a batch into shards. Where the devices of a shard lie on several processes, as where
`tensor` spans hosts, all of these need the shard's rows: they read the same rows of the data, and
where each has made its own, as in rollouts, they give them to each other.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from masksearch_jax.core.errors import ConfigError, Restart, UserError
from masksearch_jax.core.rows import Fields, Tokens
from masksearch_jax.parallel import sharding
from masksearch_jax.parallel.sharding import MeshError

Tree = TypeVar("Tree")
Json = TypeVar("Json")


def share(mesh: Mesh) -> tuple[int, int]:
    """Which share of a batch's rows this process's devices hold, and how many shares there are.

    Raises MeshError where processes have some shards of a batch in common and others not.
    """
    held = _held(mesh)
    shares = sorted(set(held.values()))
    return shares.index(held[jax.process_index()]), len(shares)


def peers(mesh: Mesh) -> list[int]:
    """The processes, ascending, that have this one's share: itself, and maybe others."""
    held = _held(mesh)
    return [process for process, shards in held.items() if shards == held[jax.process_index()]]


def before(mesh: Mesh) -> list[int]:
    """The processes, ascending, whose shares come before this one's."""
    held = _held(mesh)
    return [process for process, shards in held.items() if shards < held[jax.process_index()]]


def _held(mesh: Mesh) -> dict[int, tuple[int, ...]]:
    """The shards of a batch that each process's devices hold, ascending."""
    found: dict[int, set[int]] = {}
    count = sharding.batch_shards(mesh)
    rows = mesh.devices.reshape(count, -1)  # `context`, `tensor` are the last axes
    for shard, devices in enumerate(rows):
        for device in devices:
            found.setdefault(device.process_index, set()).add(shard)
    held = {process: tuple(sorted(shards)) for process, shards in sorted(found.items())}
    if sum(map(len, set(held.values()))) != count or len(set(map(len, held.values()))) > 1:
        raise MeshError(
            f"mesh {dict(mesh.shape)}: the {count} shards of a batch lie on {len(held)} processes "
            f"as {held}; two processes must have all their shards in common, or none"
        )
    return held


def exchange(mesh: Mesh, batch: Tree) -> Tree:
    """The rows of all peers, in their order, of a host batch that each has made for itself.

    All must call it, with equally many rows.
    """
    among = peers(mesh)
    if len(among) == 1:
        return batch
    leaves, structure = jax.tree.flatten(batch)
    packed = np.concatenate([np.ascontiguousarray(x).view(np.uint8).reshape(-1) for x in leaves])
    found = np.asarray(multihost_utils.process_allgather(packed))[among]  # one for all leaves
    ends = np.cumsum([x.nbytes for x in leaves])[:-1]
    pieces = (np.ascontiguousarray(x) for x in np.split(found, ends, axis=1))
    together = [
        piece.view(x.dtype).reshape(-1, *x.shape[1:])
        for piece, x in zip(pieces, leaves, strict=True)
    ]
    return jax.tree.unflatten(structure, together)


def exchange_sequences(mesh: Mesh, sequences: list[Tokens], fields: Fields) -> list[Tokens]:
    """The sequences of all peers, in their order, each with these fields; all must call it.

    Every process has equally many, of any lengths. What crosses is their tokens end to end, as
    many as the process with the most has.
    """
    if len(peers(mesh)) == 1:
        return sequences
    lengths = np.asarray([len(tokens["ids"]) for tokens in sequences])
    room = most([int(lengths.sum())])[0]
    own = {"": lengths[None]}
    for name, kind in fields.items():
        joined: np.ndarray = np.concatenate([tokens[name] for tokens in sequences]).astype(kind)
        own[name] = np.pad(joined, (0, room - len(joined)))[None]
    found = exchange(mesh, own)
    ends = np.cumsum(found.pop(""), axis=1)
    return [
        {name: x[peer, start:end] for name, x in found.items()}
        for peer, until in enumerate(ends)
        for start, end in zip([0, *until[:-1]], until, strict=True)
    ]


def shard_batch(mesh: Mesh, batch: Tree, accumulate: int = 1) -> Tree:
    """Global arrays of a host batch [B, …]; each process brings the rows of its share.

    `accumulate` above 1: [accumulate, B / accumulate, …], micro-batches that have equally many rows
    of each shard of the mesh, so that they are the same on any number of processes.

    Raises MeshError when the rows of all shares do not divide over `data` and `fsdp`, or those of a
    shard are no multiple of `accumulate`.
    """
    _, shares = share(mesh)
    shards = sharding.batch_shards(mesh) // shares
    axis = int(accumulate > 1)
    batch = split_micro(batch, accumulate, shards)

    def put(rows: np.ndarray) -> jax.Array:
        shape = list(rows.shape)
        shape[axis] *= shares
        logical = ("any",) * axis + ("batch",) + ("any",) * (rows.ndim - axis - 1)
        place = sharding.fitting(mesh, logical, tuple(shape), "batch")
        return jax.make_array_from_process_local_data(place, rows, tuple(shape))

    return jax.tree.map(put, batch)


def split_micro(batch: Tree, accumulate: int, shards: int = 1) -> Tree:
    """A host batch of `shards` shards as micro-batches, each with as many rows of every shard.

    Raises MeshError for rows that cannot be cut so.
    """
    if accumulate == 1:
        return batch

    def cut(x: np.ndarray) -> np.ndarray:
        if x.shape[0] % (accumulate * shards):
            raise MeshError(
                f"batch of {x.shape[0]} rows, on {shards} shards of the mesh, is no multiple of "
                f"{accumulate} micro-batches on each"
            )
        rows = x.reshape(shards, accumulate, -1, *x.shape[1:]).swapaxes(0, 1)
        return rows.reshape(accumulate, -1, *x.shape[1:])

    return jax.tree.map(cut, batch)


def is_on_any(flag: bool) -> bool:
    """Whether it holds on any process; all must call it."""
    return bool(mean_over_processes({"flag": float(flag)})["flag"])


def mean_over_processes(figures: dict[str, float]) -> dict[str, float]:
    """Each figure's mean over the processes; all must call it, with the same names."""
    if jax.process_count() == 1:
        return figures
    own = np.asarray(list(figures.values()), np.float32)
    mean = np.asarray(multihost_utils.process_allgather(own)).mean(axis=0)
    return dict(zip(figures, mean.tolist(), strict=True))


def means(values: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """Of each name the mean over the values of all processes, where there are any.

    All must call it; with any names.
    """
    own = {name: [float(np.sum(found)), len(found)] for name, found in values.items()}
    total: dict[str, tuple[float, int]] = {}
    for text in gather_texts(json.dumps(own)):
        for name, (amount, count) in json.loads(text).items():
            before = total.get(name, (0.0, 0))
            total[name] = before[0] + amount, before[1] + count
    return {name: amount / count for name, (amount, count) in total.items() if count}


def gather_texts(text: str) -> list[str]:
    """The text of each process, in their order; all must call it."""
    if jax.process_count() == 1:
        return [text]
    own = np.frombuffer(text.encode(), np.uint8)
    sizes = np.asarray(multihost_utils.process_allgather(np.int32(len(own)))).reshape(-1)
    padded = np.pad(own, (0, int(sizes.max()) - len(own)))
    rows = np.asarray(multihost_utils.process_allgather(padded))
    return [row[:size].tobytes().decode() for row, size in zip(rows, sizes, strict=True)]


def gather(value: Json) -> list[Json]:
    """The value of each process, JSON-ready, in their order; all must call it.

    Where no process was joined no device is looked for.
    """
    if not jax.distributed.is_initialized():
        return [value]
    return [json.loads(text) for text in gather_texts(json.dumps(value))]


def from_first(make: Callable[[], Json]) -> Json:
    """What process 0 makes by itself, JSON-ready; all must call it. Where it raises, all raise.

    `make` must not wait for other processes. These raise a UserError that ends them with the same
    exit status.
    """
    if not jax.distributed.is_initialized():
        return make()
    if jax.process_index() != 0:
        kind, told = json.loads(gather_texts("")[0])
        if kind:
            raise {"ConfigError": ConfigError, "Restart": Restart}.get(kind, UserError)(told)
        return told
    try:
        found = make()
    except Exception as error:
        known = (k.__name__ for k in (ConfigError, Restart) if isinstance(error, k))
        gather_texts(json.dumps([next(known, "UserError"), f"of process 0: {error}"]))
        raise
    gather_texts(json.dumps(["", found]))
    return found


def gather_counts(count: int) -> list[int]:
    """The count of each process, in their order; all must call it."""
    if jax.process_count() == 1:
        return [count]
    return np.asarray(multihost_utils.process_allgather(np.int32(count))).reshape(-1).tolist()


def most(sizes: list[int]) -> list[int]:
    """The largest of each size on any process; all must call it, with equally many."""
    if jax.process_count() == 1:
        return sizes
    return np.max(multihost_utils.process_allgather(np.asarray(sizes, np.int32)), axis=0).tolist()


def local_rows(x: jax.Array) -> np.ndarray:
    """The rows, along axis 0, that this process's devices hold, in order: those of its share."""
    if x.is_fully_addressable:
        return np.asarray(x)
    found = {shard.index[0].start or 0: shard.data for shard in x.addressable_shards}
    return np.concatenate([np.asarray(found[start]) for start in sorted(found)])


def own_rows(mesh: Mesh, x: jax.Array) -> np.ndarray:
    """Of what became of exchanged rows, along axis 0, that of this process's own."""
    found = local_rows(x)
    among = peers(mesh)
    return np.split(found, len(among))[among.index(jax.process_index())]


def shards(mesh: Mesh | None) -> int:
    """The fewest shards of which all shards of a batch, and all processes, have equally many."""
    if mesh is None or mesh.empty:
        return 1
    hosts = {device.process_index for device in mesh.devices.flat}
    return math.lcm(sharding.batch_shards(mesh), len(hosts))

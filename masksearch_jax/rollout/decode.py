"""The device side of rollouts: one jitted `tick` copies pages, writes chunks and decodes rows.

Axes: N shards, R rows of a shard that decode, M tokens per tick, C chunks, E rows per chunk, P
tokens per chunk, W pages of a row, V vocabulary, L layers.

A trajectory of n tokens has n-1 of them in the cache and one pending (`last`), which the next
decode step feeds. The host owns places and lengths: which pages of the cache a row reads and writes
is in the table that comes with each tick, so that a trajectory that waits costs nothing but its
pages, and may have another row when it goes on. The device keeps the cache alone.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Generic, NamedTuple, TypeAlias, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from masksearch_jax.parallel.sharding import CACHE, PyTree, constrain
from masksearch_jax.rollout.model import Cache, Fresh, SamplingModel
from masksearch_jax.rollout.sampling import Sampler, sample, sample_by_row

Array = TypeVar("Array")  # np.ndarray on the host, jax.Array in a tick

# (logits, stream, position, seed) → ids and log-probabilities, as `sample`.
Draw: TypeAlias = Callable[..., tuple[jax.Array, jax.Array]]


class RolloutError(ValueError):
    """Settings of a rollout that no engine can be made of, or not on these devices."""


class Inbox(NamedTuple, Generic[Array]):
    """What the host sends with a tick; leading axis N. Pages are counted within a shard.

    Done in this order: copies, chunks, decoding.
    """

    copies: Array  # int32[N], copies in use
    copy_from: Array  # int32[N, R], page that copy c writes over page copy_to[c], in order
    copy_to: Array  # int32[N, R]
    table: Array  # int32[N, R, W], the pages of each row, in order of time
    chunks: Array  # int32[N], chunks in use
    row: Array  # int32[N, C, E], whose chunk it is
    ids: Array  # int32[N, C, E, P]
    start: Array  # int32[N, C, E], time of ids[..., 0]
    # A method of tuples, which nobody asks an inbox for.
    count: Array  # type: ignore[assignment]  # int32[N, C, E], ids to write
    length: Array  # int32[N, R], tokens in the cache once all chunks are written
    last: Array  # int32[N, R], the pending token
    budget: Array  # int32[N, R], tokens that a row may sample in this tick; 0: it rests
    stream: Array  # uint32[N, R, 2], the trajectory's own randomness
    sampler: Array  # float32[N, R, 4], its own Sampler, where samplers are of rows


class Sampled(NamedTuple):
    """What a tick sampled: the first count[n, r] of M are valid."""

    ids: jax.Array  # int32[N, R, M]
    logprobs: jax.Array  # float32[N, R, M]
    # A method of tuples, which nobody asks these for.
    count: jax.Array  # type: ignore[assignment]  # int32[N, R]


def empty_inbox(
    shards: int, rows: int, pages: int, extend_tokens: int, chunk_tokens: int, chunk_rows: int
) -> Inbox[np.ndarray]:
    """An inbox that does nothing, to be filled in place.

    For rows of at most `pages` pages that write up to `extend_tokens` each, in chunks of one size,
    `chunk_rows` rows of `chunk_tokens`, so that numerics do not depend on who else waits.
    """
    pieces = -(-extend_tokens // chunk_tokens)
    chunks = (shards, -(-rows // chunk_rows) * pieces, chunk_rows)
    zeros = functools.partial(np.zeros, dtype=np.int32)
    return Inbox(
        copies=zeros(shards),
        copy_from=zeros((shards, rows)),
        copy_to=zeros((shards, rows)),
        table=zeros((shards, rows, pages)),
        chunks=zeros(shards),
        row=zeros(chunks),
        ids=zeros((*chunks, chunk_tokens)),
        start=zeros(chunks),
        count=zeros(chunks),
        length=zeros((shards, rows)),
        last=zeros((shards, rows)),
        budget=zeros((shards, rows)),
        stream=np.zeros((shards, rows, 2), np.uint32),
        sampler=np.zeros((shards, rows, len(Sampler._fields)), np.float32),
    )


def stop_table(
    token_bytes: list[bytes], eos_ids: tuple[int, ...], stops: tuple[str, ...], size: int
) -> np.ndarray:
    """bool[V]: tokens after which a row waits for the host: EOS, or what may complete a stop.

    A token may complete a stop `s` when up to some place in it, it ends with `s` or `s` with it.
    """
    ends = [s.encode() for s in stops]

    def is_completing(token: bytes) -> bool:
        heads = (token[: i + 1] for i, b in enumerate(token) if any(b == s[-1] for s in ends))
        return any(h.endswith(s) or s.endswith(h) for h in heads for s in ends)

    table = np.zeros(size, np.bool_)
    table[: len(token_bytes)] = [is_completing(t) for t in token_bytes]
    table[list(eos_ids)] = True
    return table


def _extend(model: SamplingModel[Cache, Fresh], cache: Cache, inbox: Inbox[jax.Array]) -> Cache:
    """Write the chunks in use, one after the other, each into the pages of its rows."""
    length = inbox.ids.shape[-1]

    def write(c: jax.Array, cache: Cache) -> Cache:
        ids = inbox.ids[:, c].reshape(-1, length)
        start, count = inbox.start[:, c].reshape(-1), inbox.count[:, c].reshape(-1)
        table = jnp.take_along_axis(inbox.table, inbox.row[:, c, :, None], axis=1)
        return model.extend(cache, ids, start, count, table)[1]

    return jax.lax.fori_loop(0, jnp.max(inbox.chunks), write, cache)


def _emit(
    model: SamplingModel[Cache, Fresh],
    draw: Draw,
    stream: jax.Array,
    budget: jax.Array,
    seed: jax.Array,
    stop: jax.Array,
    length: jax.Array,
    x: jax.Array,
    last: jax.Array,
    live: jax.Array,
    out: Sampled,
) -> tuple[jax.Array, jax.Array, jax.Array, Sampled]:
    """The end of a step: sample from x[B, D], record what live rows drew, embed it for the next.

    length: tokens in the cache as the tick began, which `out.count` fresh ones follow.
    """
    logits = model.logits(model.final_norm(x))
    ids, logprobs = draw(logits, stream, length + out.count + 1, seed)
    rows = jnp.arange(length.shape[0])
    at = jnp.where(live, out.count, out.ids.shape[1])  # rows at rest write nowhere
    out = Sampled(
        ids=out.ids.at[rows, at].set(ids, mode="drop"),
        logprobs=out.logprobs.at[rows, at].set(logprobs, mode="drop"),
        count=out.count + live.astype(jnp.int32),
    )
    last = jnp.where(live, ids, last)
    live = live & ~stop[ids] & (out.count < budget)
    return model.embed(last), last, live, out


def _nothing(rows: int, tokens: int) -> Sampled:
    return Sampled(
        ids=jnp.zeros((rows, tokens), jnp.int32),
        logprobs=jnp.zeros((rows, tokens), jnp.float32),
        count=jnp.zeros(rows, jnp.int32),
    )


def _flat(a: jax.Array, rows: int) -> jax.Array:
    """The first rows of all shards, [N·R, ...], of a[N, S, ...]."""
    return a[:, :rows].reshape(-1, *a.shape[2:])


# Of the loop over decode steps: the step, x, the fresh tokens, the pending ones, who is live, what
# was sampled.
_Carry: TypeAlias = tuple[jax.Array, jax.Array, Fresh, jax.Array, jax.Array, Sampled]


def _decode(
    model: SamplingModel[Cache, Fresh],
    cache: Cache,
    inbox: Inbox[jax.Array],
    seed: jax.Array,
    stop: jax.Array,
    *,
    tokens: int,
    sampler: Sampler | None,
    attention: str,
    rows: int,
) -> tuple[Cache, Sampled]:
    """Up to `tokens` tokens for every row that has a budget, in one flat loop over decode steps.

    The loop reads the cache, and what it adds is written at its end.
    """
    steps = model.steps_per_token
    flat = functools.partial(_flat, rows=rows)
    budget, last = flat(inbox.budget), flat(inbox.last)
    live = budget > 0
    length = jnp.where(live, flat(inbox.length), 0)  # a row at rest reads no page
    table = inbox.table[:, :rows]
    if sampler is None:
        draw: Draw = functools.partial(sample_by_row, samplers=flat(inbox.sampler))
    else:
        draw = functools.partial(sample, sampler=sampler)
    emit = functools.partial(_emit, model, draw, flat(inbox.stream), budget, seed, stop, length)

    def body(carry: _Carry[Fresh]) -> _Carry[Fresh]:
        i, x, fresh, last, live, out = carry
        x, fresh = model.decode_step(i, x, cache, fresh, table, length, attention)
        rest = (x, last, live, out)
        if steps == 1:
            x, last, live, out = emit(*rest)
        else:
            ended = i % steps == steps - 1
            x, last, live, out = jax.lax.cond(ended, lambda a: emit(*a), lambda a: a, rest)
        return i + 1, x, fresh, last, live, out

    def unfinished(carry: _Carry[Fresh]) -> jax.Array:
        return (carry[0] < tokens * steps) & jnp.any(carry[4])

    out = _nothing(len(length), tokens)
    fresh = model.init_fresh(len(length), tokens)
    carry = (jnp.int32(0), model.embed(last), fresh, last, live, out)
    _, _, fresh, _, _, out = jax.lax.while_loop(unfinished, body, carry)
    cache = model.write_cache(cache, fresh, table, length, out.count)
    return cache, jax.tree.map(lambda a: a.reshape(-1, rows, *a.shape[1:]), out)


@functools.lru_cache
def make_tick(tokens: int, sampler: Sampler | None, attention: str = "xla") -> jax.stages.Wrapped:
    """The jitted `tick(model, cache, inbox, seed, stop, rows) -> (cache, Sampled)`.

    The cache is donated. One function per argument here, shared by all engines of the process, and
    one program of it per shape. seed: uint32[]. stop: bool[V] from `stop_table`. A row stops on a
    `stop` token or at its budget. sampler: of all rows; None: each has its own. `attention` is how
    a decode step reads the cache.
    """

    @functools.partial(jax.jit, donate_argnums=1, static_argnums=5)
    def tick(
        model: SamplingModel[Cache, Fresh],
        cache: Cache,
        inbox: Inbox[jax.Array],
        seed: jax.Array,
        stop: jax.Array,
        rows: int,
    ) -> tuple[Cache, Sampled]:
        cache = model.copy_pages(cache, inbox.copies, inbox.copy_from, inbox.copy_to)
        cache = _extend(model, cache, inbox)
        decode = functools.partial(_decode, tokens=tokens, sampler=sampler, attention=attention)
        cache, sampled = decode(model, cache, inbox, seed, stop, rows=rows)
        return _laid_out(cache), jax.tree.map(
            lambda a: constrain(a, "batch", *("any",) * (a.ndim - 1)), sampled
        )

    return tick


def init_cache(
    model: SamplingModel[Cache, Fresh], shards: int, pages: int, page_tokens: int, dtype: str
) -> Cache:
    """An empty KV cache of `shards` × `pages` pages, laid out as every tick leaves it."""
    return jax.jit(lambda: _laid_out(model.init_cache(shards, pages, page_tokens, dtype)))()


def check_backend(attention: str) -> None:
    """Raises RolloutError for a way to read the KV cache that these devices do not have."""
    if attention == "pallas" and jax.default_backend() not in ("tpu", "gpu"):
        found = jax.default_backend()
        raise RolloutError(
            "rollout.attention is 'pallas', a kernel for TPUs and one for GPUs, and this is "
            f"{found!r}; choose 'xla'"
        )


def is_alive(cache: PyTree) -> bool:
    """False where there is none yet, and after an interrupt in a tick, which had taken it."""
    return cache is not None and not any(leaf.is_deleted() for leaf in jax.tree.leaves(cache))


def _laid_out(cache: Cache) -> Cache:
    """The cache split over the mesh in force, if any: shards as a batch, kv heads over `tensor`.

    Fixed, so that a tick takes the layout that it returns: another one would compile it again.
    """
    return jax.tree.map(lambda leaf: constrain(leaf, *CACHE[: leaf.ndim]), cache)

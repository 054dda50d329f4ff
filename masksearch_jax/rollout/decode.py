"""The device side of rollouts: one jitted `tick` moves, extends and decodes slots.

Axes: N shards, S slots of a shard, R slots that decode, M tokens per tick, C chunks, E slots per
chunk, P tokens per chunk, V vocabulary, L layers.

A slot's sequence of n tokens has n-1 of them in the cache and one pending (`last`), which the next
decode step feeds. The host owns lengths and places: it may set a slot back, copy one slot to
another (to park one that waits for its search, or to give a prompt to all of its group), and
decodes the first R slots of each shard, R and the times read being of a short list of programs.
Rows that take no part write only beyond their own length.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from masksearch_jax.rollout.sampling import Sampler, sample
from masksearch_jax.sharding import CACHE, constrain, on_shards

COPIES = 4  # per slot and tick: out of a row, into it, into a smaller program, of a prompt
EXTEND_ROWS = 8  # slots per extend chunk; fixed, so that numerics do not depend on who else waits


class DeviceState(NamedTuple):
    """What stays on device between ticks."""

    cache: Any  # KVCache, [L, N, S, ...]
    length: jax.Array  # int32[N, S], tokens in the cache
    last: jax.Array  # int32[N, S], the pending token


class Inbox(NamedTuple):
    """What the host sends with a tick; numpy, leading axis N. Slots are counted within a shard.

    Done in this order: copies, lengths, chunks, decoding.
    """

    copies: np.ndarray  # int32[N], copies in use
    source: np.ndarray  # int32[N, 4S], copy c writes slot source[c] over slot target[c], in order
    target: np.ndarray  # int32[N, 4S]
    length: np.ndarray  # int32[N, S], tokens in the cache once all is written; -1: as it was
    last: np.ndarray  # int32[N, S], the pending token, where length is set
    chunks: np.ndarray  # int32[N], chunks in use
    slot: np.ndarray  # int32[N, C, E], whose row it is, or none (= S)
    ids: np.ndarray  # int32[N, C, E, P]
    start: np.ndarray  # int32[N, C, E], time of ids[..., 0]
    count: np.ndarray  # int32[N, C, E], ids to write
    decode: np.ndarray  # bool[N, S], slots that decode in this tick, below R
    budget: np.ndarray  # int32[N, S], tokens a slot may sample in this tick
    stream: np.ndarray  # uint32[N, S, 2], the trajectory's own randomness


class Sampled(NamedTuple):
    """What a tick sampled: the first count[n, r] of M are valid."""

    ids: jax.Array  # int32[N, R, M]
    logprobs: jax.Array  # float32[N, R, M]
    count: jax.Array  # int32[N, R]


class Program(NamedTuple):
    """One of the shapes that a tick is compiled for."""

    rows: int  # R, slots of each shard that decode
    window: int  # times of the cache that are read


def empty_inbox(shards: int, slots: int, extend_tokens: int) -> Inbox:
    """An inbox that does nothing, to be filled in place."""
    rows = (shards, -(-slots // EXTEND_ROWS), EXTEND_ROWS)
    zeros = functools.partial(np.zeros, dtype=np.int32)
    return Inbox(
        copies=zeros(shards),
        source=zeros((shards, COPIES * slots)),
        target=np.full((shards, COPIES * slots), slots, np.int32),
        length=np.full((shards, slots), -1, np.int32),
        last=zeros((shards, slots)),
        chunks=zeros(shards),
        slot=np.full(rows, slots, np.int32),
        ids=zeros((*rows, extend_tokens)),
        start=zeros(rows),
        count=zeros(rows),
        decode=np.zeros((shards, slots), np.bool_),
        budget=zeros((shards, slots)),
        stream=np.zeros((shards, slots, 2), np.uint32),
    )


def stop_table(
    token_bytes: list[bytes], eos_ids: tuple[int, ...], stops: tuple[str, ...], size: int
):
    """bool[V]: tokens after which a row waits for the host: EOS, or what may complete a stop.

    A token may complete a stop `s` when up to some place in it, it ends with `s` or `s` with it.
    """
    ends = [s.encode() for s in stops]

    def completes(token: bytes) -> bool:
        heads = (token[: i + 1] for i, b in enumerate(token) if any(b == s[-1] for s in ends))
        return any(h.endswith(s) or s.endswith(h) for h in heads for s in ends)

    table = np.zeros(size, np.bool_)
    table[: len(token_bytes)] = [completes(t) for t in token_bytes]
    table[list(eos_ids)] = True
    return table


def _copy(state: DeviceState, inbox: Inbox) -> DeviceState:
    """Slots copied over slots, one after the other, so that a copy may read what one wrote."""
    shard = jnp.arange(inbox.source.shape[0])
    unused = jnp.arange(inbox.source.shape[1]) >= inbox.copies[:, None]
    target = jnp.where(unused, inbox.source, inbox.target)  # onto itself

    def row(c, a):
        return a.at[shard, target[:, c]].set(a[shard, inbox.source[:, c]])

    own = ("batch",)
    copy_cache = on_shards(_copy_slots, (CACHE[:2], own, own, own), CACHE[:2])
    return DeviceState(
        copy_cache(state.cache, inbox.copies, inbox.source, target),
        *(jax.lax.fori_loop(0, jnp.max(inbox.copies), row, a) for a in (state.length, state.last)),
    )


def _copy_slots(cache: Any, copies: jax.Array, source: jax.Array, target: jax.Array) -> Any:
    """The copies of leaves [L, N, S, ...], a layer at a time: no more is held twice."""
    shards, layers = len(copies), len(jax.tree.leaves(cache)[0])

    def one(i, cache):
        layer, n, c = i % layers, i // layers % shards, i // layers // shards

        def put(leaf):
            place = lambda slot: (layer, n, slot, *(0,) * (leaf.ndim - 3))  # noqa: E731
            slot = jax.lax.dynamic_slice(leaf, place(source[n, c]), (1, 1, 1, *leaf.shape[3:]))
            return jax.lax.dynamic_update_slice(leaf, slot, place(target[n, c]))

        return jax.tree.map(put, cache)

    return jax.lax.fori_loop(0, layers * shards * jnp.max(copies), one, cache)


def _extend(model, cache: Any, inbox: Inbox, window: int):
    """Write the chunks in use, one after the other, each into the cache of its slots."""
    length = inbox.ids.shape[-1]

    def write(c, cache):
        ids = inbox.ids[:, c].reshape(-1, length)
        start, count = inbox.start[:, c].reshape(-1), inbox.count[:, c].reshape(-1)
        return model.extend(cache, ids, start, count, inbox.slot[:, c], window)[1]

    return jax.lax.fori_loop(0, jnp.max(inbox.chunks), write, cache)


def _emit(model, sampler, stream, budget, seed, stop, length, x, last, live, out):
    """The end of a step: sample from x[B, D], record what live rows drew, embed it for the next.

    length: tokens in the cache as the tick began, which `out.count` fresh ones follow.
    """
    logits = model.logits(model.final_norm(x))
    ids, logprobs = sample(logits, stream, length + out.count + 1, seed, sampler)
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


def _decode(model, state: DeviceState, inbox: Inbox, seed, stop, *, tokens, sampler, program):
    """Up to `tokens` steps for every slot in `inbox.decode`: one flat loop over (token, layer).

    The loop reads the cache, and what it adds is written at its end. A scan over layers inside a
    loop over tokens would hold a second KV cache.
    """
    layers = model.config.num_layers
    flat = functools.partial(_flat, rows=program.rows)
    stream, budget = flat(inbox.stream), flat(inbox.budget)
    length, last = flat(state.length), flat(state.last)
    emit = functools.partial(_emit, model, sampler, stream, budget, seed, stop, length)

    def body(carry):
        i, x, fresh, last, live, out = carry
        step, layer = i // layers, i % layers
        x, fresh = model.block_step(
            model.layer(layer), x, state.cache, fresh, layer, step, length, program.window
        )
        x, last, live, out = jax.lax.cond(
            layer == layers - 1,
            lambda operand: emit(*operand),
            lambda operand: operand,
            (x, last, live, out),
        )
        return i + 1, x, fresh, last, live, out

    def unfinished(carry):
        return (carry[0] < tokens * layers) & jnp.any(carry[4])

    out = _nothing(len(length), tokens)
    live = flat(inbox.decode) & (budget > 0)
    fresh = model.init_fresh(len(length), tokens)
    carry = (jnp.int32(0), model.embed(last), fresh, last, live, out)
    _, _, fresh, last, _, out = jax.lax.while_loop(unfinished, body, carry)
    cache = model.write_cache(state.cache, fresh, length, out.count)
    unflat = lambda a: a.reshape(-1, program.rows, *a.shape[1:])  # noqa: E731
    put = lambda a, new: a.at[:, : program.rows].set(unflat(new))  # noqa: E731
    state = DeviceState(cache, put(state.length, length + out.count), put(state.last, last))
    return state, jax.tree.map(unflat, out)


@functools.lru_cache
def make_tick(*, tokens: int, sampler: Sampler):
    """The jitted `tick(model, state, inbox, seed, stop, program) -> (state, Sampled)`.

    The state is donated. One function per (tokens, sampler), shared by all engines of the process,
    and one program of it per shape. seed: uint32[]. stop: bool[V] from `stop_table`. A row stops on
    a `stop` token or at its budget.
    """

    @functools.partial(jax.jit, donate_argnums=1, static_argnums=5)
    def tick(model, state: DeviceState, inbox: Inbox, seed, stop, program: Program):
        state = _copy(state, inbox)
        given = inbox.length >= 0
        state = DeviceState(
            cache=_extend(model, state.cache, inbox, program.window),
            length=jnp.where(given, inbox.length, state.length),
            last=jnp.where(given, inbox.last, state.last),
        )
        state, sampled = _decode(
            model, state, inbox, seed, stop, tokens=tokens, sampler=sampler, program=program
        )
        return _laid_out(state), jax.tree.map(
            lambda a: constrain(a, "batch", *("any",) * (a.ndim - 1)), sampled
        )

    return tick


def init_state(model: Any, shards: int, slots: int, length: int, dtype: str) -> DeviceState:
    """Empty slots around a fresh KV cache, laid out as every tick leaves them."""

    @jax.jit
    def make():
        zeros = jnp.zeros((2, shards, slots), jnp.int32)
        return _laid_out(DeviceState(model.init_cache(shards, slots, length, dtype), *zeros))

    return make()


def is_alive(state: DeviceState | None) -> bool:
    """False where there is none yet, and after an interrupt in a tick, which had taken it."""
    return state is not None and not any(leaf.is_deleted() for leaf in jax.tree.leaves(state))


def _laid_out(state: DeviceState) -> DeviceState:
    """The state split over the mesh in force, if any: shards as a batch, kv heads over `tensor`.

    Fixed, so that a tick takes the layout that it returns: another one would compile it again.
    """
    return DeviceState(
        cache=jax.tree.map(lambda leaf: constrain(leaf, *CACHE[: leaf.ndim]), state.cache),
        length=constrain(state.length, "batch", "any"),
        last=constrain(state.last, "batch", "any"),
    )

"""The device side of rollouts: one jitted `tick` extends some slots and decodes all that can.

Axes: S slots, N tokens per tick, C chunks, E slots per chunk, P tokens per chunk, V vocabulary,
L layers.

A slot's sequence of n tokens has n-1 of them in the cache and one pending (`last`), which the next
decode step feeds. The host owns lengths: an inbox row says where its first token goes, so rewinding
a slot is writing at an earlier place. Rows that take no part write only beyond their own length.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from masksearch_jax.sharding import CACHE, constrain

EXTEND_ROWS = 8  # slots per extend chunk; fixed, so that numerics do not depend on who else waits


class DeviceState(NamedTuple):
    """What stays on device between ticks."""

    cache: Any  # KVCache, [L, S, ...]
    length: jax.Array  # int32[S], tokens in the cache
    last: jax.Array  # int32[S], the pending token


class Inbox(NamedTuple):
    """What the host sends with a tick; numpy. Row r of chunk c is of slot[c, r], or of none (= S).

    Of a row's valid ids all but the last are written to the cache, the last becomes pending.
    """

    chunks: np.ndarray  # int32[], chunks in use
    slot: np.ndarray  # int32[C, E]
    ids: np.ndarray  # int32[C, E, P]
    start: np.ndarray  # int32[C, E], position of ids[..., 0]
    count: np.ndarray  # int32[C, E], valid ids
    decode: np.ndarray  # bool[S], slots that decode in this tick
    budget: np.ndarray  # int32[S], tokens a slot may sample in this tick
    stream: np.ndarray  # uint32[S, 2], the trajectory's own randomness


class Sampled(NamedTuple):
    """What a tick sampled: the first count[s] of N are valid."""

    ids: jax.Array  # int32[S, N]
    logprobs: jax.Array  # float32[S, N]
    count: jax.Array  # int32[S]


def empty_inbox(slots: int, extend_tokens: int) -> Inbox:
    """An inbox that does nothing, to be filled in place."""
    chunks = -(-slots // EXTEND_ROWS)
    rows = (chunks, EXTEND_ROWS)
    return Inbox(
        chunks=np.zeros((), np.int32),
        slot=np.full(rows, slots, np.int32),
        ids=np.zeros((*rows, extend_tokens), np.int32),
        start=np.zeros(rows, np.int32),
        count=np.zeros(rows, np.int32),
        decode=np.zeros(slots, np.bool_),
        budget=np.zeros(slots, np.int32),
        stream=np.zeros((slots, 2), np.uint32),
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


def sample(logits, stream, position, seed, temperature: float):
    """Tokens and their log-probabilities at the sampling temperature: int32[S], float32[S].

    logits: float32[S, V]. Each row draws one uniform from `fold_in(seed, stream, position)` and
    inverts the cumulative distribution: its token depends on its own logits and stream alone.
    Temperature 0 takes the argmax and reports log-probabilities at temperature 1.
    """
    logprobs = jax.nn.log_softmax(logits / (temperature or 1.0), axis=-1)
    if temperature == 0.0:
        ids = jnp.argmax(logits, axis=-1).astype(jnp.int32)
    else:
        uniform = jax.vmap(_uniform, in_axes=(None, 0, 0))(seed, stream, position)
        cumulative = jnp.cumsum(jnp.exp(logprobs), axis=-1)
        ids = jnp.sum(cumulative <= uniform[:, None] * cumulative[:, -1:], axis=-1, dtype=jnp.int32)
        ids = jnp.where(ids < logits.shape[-1], ids, jnp.argmax(logits, axis=-1).astype(jnp.int32))
    return ids, jnp.take_along_axis(logprobs, ids[:, None], axis=-1)[:, 0]


def _uniform(seed, stream, position):
    key = jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), stream[0]), stream[1])
    return jax.random.uniform(jax.random.fold_in(key, position))


def _extend(model, state: DeviceState, inbox: Inbox) -> DeviceState:
    """Write the chunks in use, one after the other, each into the cache rows of its slots."""

    def write(c, state):
        slot, ids, start, count = inbox.slot[c], inbox.ids[c], inbox.start[c], inbox.count[c]
        rows = jax.tree.map(lambda a: a.at[:, slot].get(mode="clip"), state.cache)
        _, rows = model.extend(rows, ids, start, jnp.maximum(count - 1, 0))
        put = lambda a, r: a.at[:, slot].set(r, mode="drop")  # noqa: E731
        last = jnp.take_along_axis(ids, jnp.maximum(count - 1, 0)[:, None], axis=1)[:, 0]
        return DeviceState(
            cache=jax.tree.map(put, state.cache, rows),
            length=state.length.at[slot].set(start + count - 1, mode="drop"),
            last=state.last.at[slot].set(last, mode="drop"),
        )

    return jax.lax.fori_loop(0, inbox.chunks, write, state)


def _emit(model, inbox, seed, stop, tokens: int, temperature: float, x, length, last, live, out):
    """The end of a step: sample from x[S, M], record what live rows drew, embed it for the next."""
    ids, logprobs = sample(
        model.logits(model.final_norm(x)), inbox.stream, length + 1, seed, temperature
    )
    rows = jnp.arange(length.shape[0])
    at = jnp.where(live, out.count, tokens)  # rows at rest write nowhere
    out = Sampled(
        ids=out.ids.at[rows, at].set(ids, mode="drop"),
        logprobs=out.logprobs.at[rows, at].set(logprobs, mode="drop"),
        count=out.count + live.astype(jnp.int32),
    )
    length = length + live.astype(jnp.int32)
    last = jnp.where(live, ids, last)
    live = live & ~stop[ids] & (out.count < inbox.budget)
    return model.embed(last), length, last, live, out


def _decode(model, state: DeviceState, inbox: Inbox, seed, stop, tokens: int, temperature: float):
    """Up to `tokens` steps for every slot in `inbox.decode`: one flat loop over (token, layer).

    A scan over layers inside a loop over tokens would hold a second KV cache.
    """
    layers = model.config.num_layers
    slots = state.length.shape[0]

    def emit(operand):
        return _emit(model, inbox, seed, stop, tokens, temperature, *operand)

    def body(carry):
        step, x, cache, length, last, live, out = carry
        layer = step % layers
        x, cache = model.block_step(model.layer(layer), x, cache, layer, length)
        x, length, last, live, out = jax.lax.cond(
            layer == layers - 1, emit, lambda operand: operand, (x, length, last, live, out)
        )
        return step + 1, x, cache, length, last, live, out

    def unfinished(carry):
        step, live = carry[0], carry[5]
        return (step < tokens * layers) & jnp.any(live)

    out = Sampled(
        ids=jnp.zeros((slots, tokens), jnp.int32),
        logprobs=jnp.zeros((slots, tokens), jnp.float32),
        count=jnp.zeros((slots,), jnp.int32),
    )
    live = inbox.decode & (inbox.budget > 0)
    carry = (jnp.int32(0), model.embed(state.last), *state, live, out)
    _, _, cache, length, last, _, out = jax.lax.while_loop(unfinished, body, carry)
    return DeviceState(cache, length, last), out


@functools.lru_cache
def make_tick(*, tokens: int, temperature: float):
    """The jitted `tick(model, state, inbox, seed, stop) -> (state, Sampled)`; the state is donated.

    One program per (tokens, temperature), shared by all engines of the process.
    seed: uint32[]. stop: bool[V] from `stop_table`. A row stops on a `stop` token or at its budget.
    """

    def tick(model, state: DeviceState, inbox: Inbox, seed, stop):
        state = _extend(model, state, inbox)
        state, sampled = _decode(model, state, inbox, seed, stop, tokens, temperature)
        return _laid_out(state), sampled

    return jax.jit(tick, donate_argnums=1)


def init_state(make_cache: Callable[[], Any], slots: int) -> DeviceState:
    """Empty slots around a fresh KV cache, laid out as every tick leaves them."""

    @jax.jit
    def make():
        length, last = jnp.zeros((2, slots), jnp.int32)
        return _laid_out(DeviceState(make_cache(), length, last))

    return make()


def is_alive(state: DeviceState | None) -> bool:
    """False where there is none yet, and after an interrupt in a tick, which had taken it."""
    return state is not None and not any(leaf.is_deleted() for leaf in jax.tree.leaves(state))


def _laid_out(state: DeviceState) -> DeviceState:
    """The state split over the mesh in force, if any: slots as a batch, kv heads over `tensor`.

    Fixed, so that a tick takes the layout that it returns: another one would compile it again.
    """
    return DeviceState(
        cache=jax.tree.map(lambda leaf: constrain(leaf, *CACHE), state.cache),
        length=constrain(state.length, "batch"),
        last=constrain(state.last, "batch"),
    )

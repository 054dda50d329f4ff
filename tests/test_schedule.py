"""Slots: who has which, what is copied, how many fit, and that none of it changes a token."""

from __future__ import annotations

import dataclasses
import logging
import random
import re
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from masksearch_jax.models import kv_cache
from masksearch_jax.models.head import token_logprobs
from masksearch_jax.rollout import decode, memory, schedule
from masksearch_jax.rollout.engine import CompileError, Engine
from tests.test_rollout import (
    ANSWERER,
    COMPUTE,
    GREEDY,
    MODEL,
    ROLLOUT,
    SEARCH,
    Colours,
    ScriptedModel,
    WordVocab,
    chain,
    engine,
    request,
    rollouts,
    transformer,
)

REQUESTS = [request("red blue plan" if i % 2 else "plan", i, s) for i in range(6) for s in range(3)]
OVERSUBSCRIBED = dataclasses.replace(ROLLOUT, slots=6, decode_share=(1 / 3, 1 / 2))


@pytest.fixture(scope="module")
def plain():
    """REQUESTS with four slots that all decode, by (example, sample)."""
    return rollouts(Colours(), seed=ROLLOUT.seed)


def same_ids(found, plain) -> bool:
    return {k: t.ids.tolist() for k, t in found.items()} == {
        k: t.ids.tolist() for k, t in plain.items()
    }


def teacher_forced(model, t):
    """Log-probabilities float[T] of a trajectory's tokens by one whole forward; 0 for the first.

    As the trainer does it: no cache, no slots.
    """
    rows, n = np.zeros((3, 1, ROLLOUT.max_len), np.int32), len(t.ids) - 1
    rows[:, 0, :n] = t.ids[:-1], t.ids[1:], np.ones(n)
    return np.concatenate([[0.0], np.asarray(_forward(model, *rows))[0, :n]])


@jax.jit
def _forward(model, ids, targets, real):
    positions = jnp.arange(ids.shape[1], dtype=jnp.int32)[None]
    hidden = model.hidden(ids, positions, real)
    return token_logprobs(model, hidden, targets, ROLLOUT.temperature, 64)[0]


# ---- sizes


@pytest.mark.parametrize(
    ("slots", "share", "shards", "expected"),
    [
        (6, (1 / 3, 1 / 2), 1, ((2, 3), 6, 7)),
        (4, (1.0,), 1, ((4,), 4, 4)),
        (4, (0.5, 1.0), 1, ((2, 4), 4, 5)),
        (8, (0.25, 0.3), 2, ((1,), 4, 5)),
        (4, (0.01,), 2, ((1,), 2, 3)),
        (1, (1.0,), 1, ((1,), 1, 1)),
    ],
)
def test_sizes_of_a_shard(slots, share, shards, expected):
    cfg = dataclasses.replace(ROLLOUT, slots=slots, decode_share=share)
    assert schedule.sizes(cfg, shards) == expected


@pytest.mark.parametrize(
    ("change", "shards", "says"),
    [
        ({"slots": 0}, 1, "rollout.slots is 0; it must be a positive multiple of 1"),
        ({"slots": -4}, 2, "rollout.slots is -4; it must be a positive multiple of 2"),
        ({"slots": 6}, 4, "rollout.slots is 6; it must be a positive multiple of 4"),
        ({"decode_share": ()}, 1, "rollout.decode_share is (); it must ascend"),
        ({"decode_share": (0.5, 0.5)}, 1, "rollout.decode_share is (0.5, 0.5); it must"),
        ({"decode_share": (1.0, 0.5)}, 1, "rollout.decode_share is (1.0, 0.5); it must"),
        ({"decode_share": (0.0, 0.5)}, 1, "rollout.decode_share is (0.0, 0.5); it must"),
        ({"decode_share": (0.5, 1.5)}, 1, "rollout.decode_share is (0.5, 1.5); it must"),
    ],
)
def test_sizes_that_are_none_are_refused_by_name(change, shards, says):
    with pytest.raises(ValueError, match=re.escape(says)):
        schedule.sizes(dataclasses.replace(ROLLOUT, **change), shards)


def test_windows_are_the_lengths_and_the_whole():
    assert schedule.windows(ROLLOUT) == (64,)
    assert schedule.windows(dataclasses.replace(ROLLOUT, lengths=(16, 32))) == (16, 32, 64)


@pytest.mark.parametrize("lengths", [(32, 16), (16, 16), (64,), (65,), (0,), (-1, 16)])
def test_windows_that_do_not_ascend_are_refused_by_name(lengths):
    says = f"rollout.lengths is {lengths}; it must ascend from 1 to below max_len, 64"
    with pytest.raises(ValueError, match=re.escape(says)):
        schedule.windows(dataclasses.replace(ROLLOUT, lengths=lengths))


# ---- plans, without a device


@dataclasses.dataclass(eq=False)
class Pretender:
    """What a Shard sees of an episode; its cache should hold ids[:written]."""

    ids: list[int]
    prompt_len: int
    place: int = -1
    written: int = 0
    search: object | None = None
    asked: float = 0.0
    turns: list = dataclasses.field(default_factory=list)

    @property
    def key(self) -> bytes:
        return bytes(self.ids[: self.prompt_len])


class World:
    """Drives one Shard at random; `contents` is what the device would have in each slot."""

    def __init__(self, seed: int):
        self.rng = rng = random.Random(seed)
        share = sorted(rng.sample([0.2, 0.34, 0.5, 0.75, 1.0], rng.randint(1, 3)))
        cfg = dataclasses.replace(ROLLOUT, slots=rng.randint(1, 9), decode_share=tuple(share))
        self.sizes = schedule.sizes(cfg, 1)
        self.shard = schedule.Shard.empty(self.sizes)
        self.contents: list[list[int]] = [[] for _ in range(self.sizes.slots)]
        prompts = [[rng.randrange(250) for _ in range(rng.randint(1, 9))] for _ in range(5)]
        self.queue = [Pretender(list(p), len(p)) for p in prompts for _ in range(rng.randint(1, 5))]
        self.requested, self.done = list(self.queue), []
        self.time = 0.0

    def open_next(self):
        return self.queue.pop(0) if self.queue else None

    def step(self) -> None:
        asked, before = self.rng.randint(0, len(self.queue)), len(self.queue)
        self.shard.plan(self.open_next, asked)
        self.check_plan(asked, before)
        waiting = self.shard.share_prompts()
        assert len(self.shard.copies) <= decode.COPIES * self.sizes.slots
        for source, target in self.shard.copies:
            self.contents[target] = list(self.contents[source])
        for e in self.shard.open_episodes():
            assert self.contents[e.place][: e.written] == e.ids[: e.written]
        for e in self.shard.running():
            if e not in waiting:
                self.advance(e)
        for e in list(self.shard.open_episodes()):
            if e.search and self.rng.random() < 0.4:
                e.search = None
                e.ids += [self.rng.randrange(250) for _ in range(3)]

    def check_plan(self, asked: int, before: int) -> None:
        places, sizes = self.shard.places, self.sizes
        opened = [e for e in places if e is not None]
        assert all(places[e.place] is e for e in opened)
        assert len(opened) <= sizes.open
        assert before - len(self.queue) <= asked
        everyone = [*opened, *self.queue, *self.done]
        assert sorted(map(id, everyone)) == sorted(map(id, self.requested))
        running = self.shard.running()
        # The smallest program that holds them all will do.
        rows = schedule.fitting(sizes.rows, len(running))
        assert all(e.place < rows for e in running)
        if len(running) < sizes.rows[-1]:  # a row is free: nobody who could run is kept from it
            assert not [e for e in opened if e.search is None and e not in running]
            room = len(opened) < sizes.open and before - len(self.queue) < asked
            assert not (room and self.queue)

    def advance(self, e: Pretender) -> None:
        end = min(e.written + 4, len(e.ids) - 1)
        self.contents[e.place] = self.contents[e.place][: e.written] + e.ids[e.written : end]
        e.written = end
        if end < len(e.ids) - 1:
            return
        e.ids += [self.rng.randrange(250) for _ in range(self.rng.randint(0, 3))]
        self.contents[e.place] = e.ids[:-1]
        e.written = len(e.ids) - 1
        fate = self.rng.random()
        if fate < 0.15:
            self.shard.places[e.place] = None
            self.done.append(e)
        elif fate < 0.5:
            self.time += 1
            e.search, e.asked = object(), self.time


@pytest.mark.parametrize("seed", range(8))
def test_plans_lose_nobody_and_keep_everyone_s_cache(seed):
    for world in map(World, range(seed * 40, seed * 40 + 40)):
        for _ in range(600):
            world.step()
            if len(world.done) == len(world.requested):
                break
        assert len(world.done) == len(world.requested)  # nobody starves


def test_those_who_asked_first_run_first():
    shard = schedule.Shard.empty(schedule.Sizes((1,), 3, 4))
    late, early = Pretender([1, 2], 2, asked=2.0), Pretender([3, 4], 2, asked=1.0)
    for place, e in enumerate((late, early), 1):
        shard.places[place], e.place, e.written = e, place, 1
    shard.plan(lambda: None, 0)
    assert (early.place, late.place, shard.copies) == (0, 1, [(2, 0)])


# ---- engines


def written_tokens(e) -> list[int]:
    """Appends the tokens that each tick of the engine writes into caches, but those sampled."""
    counts, call = [], e._call

    def counted(model, mesh, inbox, program):
        used = [inbox.count[n, : inbox.chunks[n]].sum() for n in range(len(inbox.chunks))]
        counts.append(int(sum(used)))
        return call(model, mesh, inbox, program)

    e._call = counted
    return counts


def test_a_group_s_prompt_is_written_once():
    prompt, babbler = "red" * 12 + "plan", chain("plan", "plan")
    with engine(rollout=GREEDY) as e:
        counts = written_tokens(e)
        out = list(e.run(babbler, [request(prompt, 0, s) for s in range(4)]))
        assert sum(counts) == 12
        assert max(counts) <= GREEDY.extend_tokens
        out += list(e.run(babbler, [request("blue" * i + prompt, i) for i in range(1, 5)]))
        assert sum(counts) == 12 + 13 + 14 + 15 + 16
    assert [t.status for t in out] == ["out_of_tokens"] * 8
    assert {tuple(t.ids[13:]) for t in out[:4]} == {tuple(t.ids[t.prompt_len :]) for t in out[4:]}


@pytest.mark.slow
def test_a_group_samples_what_its_members_alone_sample():
    group, model = [request("red blue green plan", 3, s) for s in range(4)], transformer()
    with engine() as e:
        counts = written_tokens(e)
        together = {t.sample: t for t in e.run(model, group)}
        shared, counts[:] = sum(counts), []
        alone = {r.sample: next(e.run(model, [r])) for r in group}
    assert same_ids(together, alone)
    assert len({tuple(t.ids) for t in together.values()}) > 1
    assert sum(counts) - shared == 3 * (len(group[0].prompt_ids) - 1)


def test_a_prompt_of_many_chunks_is_whole_where_a_short_trajectory_was():
    rng, model = random.Random(5), transformer()
    short = [request("plan", i) for i in range(8, 24)]
    long = [request("".join(rng.choices(["red", "blue", "green"], k=24)), i) for i in range(8)]
    with engine() as e:
        out = list(e.run(model, [*short, *long]))
    for t in out:
        error = np.abs(teacher_forced(model, t) - t.logprobs)[t.sampled]
        assert error.max() < 1e-4, t.example_id


@pytest.mark.parametrize("seed", [1, 2])
def test_trajectories_that_wait_in_slots_of_their_own_change_no_token(plain, seed):
    rng = random.Random(seed)
    search = Colours(delay=lambda query: rng.random() * 0.03)
    with engine(search, rollout=OVERSUBSCRIBED) as e:
        out = list(e.run(transformer(), REQUESTS))
        assert e._state.length.shape == (1, 7)
    found = {(t.example_id, t.sample): t for t in out}
    assert len(out) == len(found) == len(REQUESTS)
    assert same_ids(found, plain)


def test_what_an_engine_counts():
    """Five requests of one group in two slots, each with one search; four searches repeat one."""
    colours = Colours()
    colours.hits = 0
    search, config = colours.search, dataclasses.replace(GREEDY, slots=2)

    def remembering(queries, top_k):
        colours.hits += len(colours.asked) > 0
        return search(queries, top_k)

    colours.search = remembering
    one = dataclasses.replace(SEARCH, workers=1)
    with engine(colours, rollout=config, search_config=one) as e:
        before = dataclasses.replace(e.stats)
        out = list(e.run(ANSWERER, [request("red blue plan", sample=i) for i in range(5)]))
        stats = e.stats.since(before)
    assert [len(t.turns) for t in out] == [1] * 5
    assert (stats.trajectories, stats.prompts, stats.searches, stats.queries) == (5, 5, 5, 5)
    assert 1 <= stats.shared_prompts <= 4
    figures = stats.figures()
    assert figures["prompts_shared"] == stats.shared_prompts / 5
    assert figures["search_cache_hits"] == 4 / 5
    assert 0 < figures["queue_length"] <= 3
    assert 0 <= figures["searches_in_flight"] <= 2


@pytest.mark.slow
def test_programs_of_shorter_caches_change_no_token(plain):
    with engine(rollout=dataclasses.replace(ROLLOUT, lengths=(16, 32))) as e:
        called, call = set(), e._call
        e._call = lambda *a: (called.add(a[3].window), call(*a))[1]
        found = {(t.example_id, t.sample): t for t in e.run(transformer(), REQUESTS)}
        called.clear()
        list(e.run(transformer(), [request("plan")]))
    assert same_ids(found, plain)
    assert min(called) == 16  # and the short ones are used


def test_a_compile_after_the_warm_up_is_an_error_or_a_warning(caplog):
    config = dataclasses.replace(GREEDY, max_len=40)
    other = ScriptedModel(ANSWERER.following.astype(jnp.int16))
    with engine(rollout=config) as e:
        (before,) = e.run(ANSWERER, [request("plan")])
        with pytest.raises(CompileError, match=r"Program\(rows=4, window=40\) was compiled again"):
            list(e.run(other, [request("plan")]))
        (after,) = e.run(ANSWERER, [request("plan")])
    assert before.ids.tolist() == after.ids.tolist()
    unsigned = ScriptedModel(ANSWERER.following.astype(jnp.uint16))
    with Engine(WordVocab(), Colours(), config, SEARCH) as e, caplog.at_level(logging.WARNING):
        list(e.run(ANSWERER, [request("plan")]))
        assert not caplog.records
        (found,) = e.run(unsigned, [request("plan")])
    assert found.ids.tolist() == before.ids.tolist()
    assert [r.getMessage() for r in caplog.records] == [
        "rollout Program(rows=4, window=40) was compiled again after the warm-up"
    ]


# ---- the cache's types and sizes


def test_int8_is_off_by_half_a_scale_at_most():
    x = np.random.default_rng(0).normal(size=(50, 3, 8)).astype(np.float32)
    x *= 10.0 ** np.arange(-25, 25)[:, None, None]
    x[7, 1] = 0.0
    q, scale = (np.asarray(a) for a in kv_cache.quantise(jnp.asarray(x)))
    assert (q.dtype, scale.dtype) == (np.int8, np.float32)
    error = np.abs(q.astype(np.float64) * scale[..., None] - x)
    assert (error <= scale[..., None] * (0.5 + 1e-4)).all()
    highest = np.abs(q.astype(int)).max(axis=-1)
    assert highest[7, 1] == 0
    assert (np.delete(highest.reshape(-1), 7 * 3 + 1) == 127).all()


def test_an_int8_cache_samples_nearly_what_the_trainer_scores():
    model = transformer()
    with engine(rollout=dataclasses.replace(ROLLOUT, kv_dtype="int8")) as e:
        out = list(e.run(model, REQUESTS))
        assert e._state.cache.k.dtype == jnp.int8
    errors = np.concatenate([np.abs(teacher_forced(model, t) - t.logprobs)[t.sampled] for t in out])
    # Half a step of 127 in what is in the cache: about half a percent of logits that span 10.
    assert np.quantile(errors, 0.99) < 0.05
    assert np.median(errors) < 1e-3  # a turn's own tokens are exact until its tick ends
    assert errors.max() > 1e-4  # it is int8


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8"])
def test_a_slot_s_bytes_are_those_of_its_cache(dtype):
    cache = kv_cache.init_cache(MODEL, 2, 3, 16, dtype)
    size = memory.slot_bytes(MODEL, 16, dtype)
    assert sum(leaf.nbytes for leaf in jax.tree.leaves(cache)) == 6 * size
    fit = lambda free: memory.slots_that_fit(MODEL, 16, dtype, free)  # noqa: E731
    assert [fit(5 * size), fit(5 * size - 1), fit(size - 1), fit(0), fit(-size)] == [5, 4, 0, 0, 0]


def devices(*stats: dict | None):
    return lambda: [SimpleNamespace(memory_stats=lambda s=s: s) for s in stats]


def test_slots_that_do_not_fit_are_refused_with_how_many_do(monkeypatch):
    model = SimpleNamespace(config=MODEL, compute=COMPUTE)
    config = dataclasses.replace(ROLLOUT, max_len=4096)
    assert memory.slot_bytes(MODEL, 4096, "float32") == 2**20
    half = {"bytes_limit": 6 * 2**20, "bytes_in_use": 2**20}
    monkeypatch.setattr(jax, "local_devices", devices(half, half))
    memory.check(model, 10, config, "")
    memory.check(model, 26, config, "int8")  # 3/8 of the bytes
    says = "rollout: 11 slots of 4096 tokens in float32 take 11 MiB, and 10 MiB are free: 10 slots"
    with pytest.raises(ValueError, match=says):
        memory.check(model, 11, config, "")
    with pytest.raises(ValueError, match=r"27 slots of 4096 tokens in int8 .*: 26 slots fit"):
        memory.check(model, 27, config, "int8")
    monkeypatch.setattr(jax, "local_devices", devices(half, None))
    memory.check(model, 11, config, "")  # one does not say

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

from masksearch_jax.core.tools import search_alone
from masksearch_jax.core.types import Hits
from masksearch_jax.models import kv_cache
from masksearch_jax.rollout import memory, schedule
from masksearch_jax.rollout.decode import RolloutError
from masksearch_jax.rollout.engine import CompileError, Engine
from masksearch_jax.rollout.episode import Episode, Request, key_of
from masksearch_jax.rollout.pages import PagePool
from masksearch_jax.testing.models import ScriptedModel
from tests.rollout.word_engine import (
    ANSWERER,
    GREEDY,
    MODEL,
    OVERSUBSCRIBED,
    REQUESTS,
    ROLLOUT,
    SEARCH,
    VOCAB,
    chain,
    colours,
    engine,
    request,
    same_ids,
    teacher_forced,
    transformer,
)

# ---- sizes


@pytest.mark.parametrize(
    ("change", "shards", "expected"),
    [
        ({"slots": 6, "decode_share": (1 / 3, 1 / 2)}, 1, ((2, 3), 6, 48, 8, 8)),
        ({"slots": 4}, 1, ((4,), 4, 32, 8, 8)),
        ({"slots": 4, "page_tokens": 60}, 1, ((4,), 4, 8, 60, 2)),
        ({"slots": 4, "page_tokens": 64}, 1, ((4,), 4, 4, 64, 1)),
        ({"slots": 8, "decode_share": (0.25, 0.3)}, 2, ((1,), 4, 32, 8, 8)),
        ({"slots": 4, "decode_share": (0.01,)}, 2, ((1,), 2, 16, 8, 8)),
        ({"slots": 8, "kv_tokens": 159}, 2, ((4,), 4, 9, 8, 8)),
        ({"slots": 1, "kv_tokens": 64}, 1, ((1,), 1, 8, 8, 8)),
    ],
)
def test_sizes_of_a_shard(change, shards, expected):
    assert schedule.sizes(dataclasses.replace(ROLLOUT, **change), shards)[:5] == expected


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
        ({"page_tokens": 0}, 1, "rollout.page_tokens is 0; it must be positive"),
        ({"chunk_tokens": 0}, 1, "rollout.chunk_tokens is 0; it must be from 1 to"),
        ({"chunk_tokens": 7}, 1, "is 7; it must be from 1 to rollout.extend_tokens, 6"),
        ({"kv_tokens": 127}, 2, "in pages of 8: at least 128, or 0 for 4 of them"),
        ({"kv_tokens": -1}, 1, "rollout.kv_tokens is -1; each of 1 shards must hold one"),
    ],
)
def test_sizes_that_are_none_are_refused_by_name(change, shards, says):
    with pytest.raises(RolloutError, match=re.escape(says)):
        schedule.sizes(dataclasses.replace(ROLLOUT, **change), shards)


# ---- rows, without a device


@pytest.mark.parametrize("lanes", [1, 3, 8])
@pytest.mark.parametrize("seed", range(4))
def test_chunks_are_as_few_as_can_be_and_a_row_s_pieces_are_in_order(seed, lanes):
    draw = np.random.default_rng(seed)
    cfg = dataclasses.replace(ROLLOUT, slots=20, extend_tokens=22, chunk_tokens=5, chunk_rows=lanes)
    shard = schedule.Shard(schedule.sizes(cfg, 1))
    shard.rows = [Pretender(list(range(n, 2 * n)), n) for n in draw.integers(1, 40, 20)]
    before = [draw.integers(0, len(e.ids)) for e in shard.rows]
    for episode, written in zip(shard.rows, before, strict=True):
        episode.written = int(written)
    inbox = schedule.write_inbox([shard], cfg, SimpleNamespace(room=lambda episode: 9)).inbox

    chunks, written, pieces = int(inbox.chunks[0]), list(before), []
    for c in range(chunks):
        used = np.flatnonzero(inbox.count[0, c])
        assert len(set(inbox.row[0, c, used])) == len(used)  # none needs another of its chunk
        for lane in used:
            row, count = inbox.row[0, c, lane], inbox.count[0, c, lane]
            assert inbox.start[0, c, lane] == written[row]
            expected = shard.rows[row].ids[written[row] : written[row] + count]
            assert inbox.ids[0, c, lane, :count].tolist() == expected
            written[row] += count
            pieces.append(row)
    assert not inbox.count[0, chunks:].any()
    ends = [min(w + 22, len(e.ids) - 1) for w, e in zip(before, shard.rows, strict=True)]
    assert written == ends == [e.written for e in shard.rows]
    most = max(pieces.count(row) for row in range(20))
    assert chunks == max(most, -(-len(pieces) // lanes))
    assert len(pieces) == sum(-(-(e - w) // 5) for w, e in zip(before, ends, strict=True))


def test_a_page_is_free_again_after_its_last_user():
    pool = PagePool(4)
    mine = pool.take(3)
    yours = pool.share(mine[:2])
    assert (sorted(mine), yours, pool.free, pool.used) == ([0, 1, 2], mine[:2], 1, 3)
    pool.release(mine)
    assert (pool.free, sorted(pool.take(2))) == (2, sorted([3, mine[2]]))
    with pytest.raises(ValueError, match="1 pages wanted, 0 are free"):
        pool.take(1)
    pool.release(yours)
    assert pool.free == 2


class Pretender(Episode):
    """An episode of tokens alone."""

    def __init__(self, prompt: list[int], stream: int = 0):
        ids = np.asarray(prompt, np.int32)
        wanted = Request(f"e{stream}", ids, stream)
        super().__init__(wanted, key_of(wanted), list(prompt), [], [], [], 0.0)


class World:
    """Drives one Shard at random; `contents` is what the device would have in each page."""

    TICK, CHUNK = 3, 4

    def __init__(self, seed: int):
        self.rng = rng = random.Random(seed)
        share = sorted(rng.sample([0.2, 0.34, 0.5, 0.75, 1.0], rng.randint(1, 3)))
        cfg = dataclasses.replace(
            ROLLOUT,
            slots=rng.randint(1, 9),
            decode_share=tuple(share),
            max_len=40,
            page_tokens=rng.choice([1, 3, 8, 40, 64]),
        )
        whole = schedule.sizes(cfg, 1)._replace(whole_pieces=rng.random() < 0.7)
        pages = rng.choice([whole.pages, rng.randint(whole.width, whole.pages)])
        self.scarce = pages < whole.pages
        self.sizes = whole._replace(pages=pages)
        self.shard = schedule.Shard(self.sizes)
        self.contents = [[-1] * self.sizes.page_tokens for _ in range(pages)]
        task = [rng.randrange(250) for _ in range(rng.choice((0, 6)))]
        prompts = [task + [rng.randrange(250) for _ in range(rng.randint(1, 9))] for _ in range(5)]
        self.queue = [
            Pretender(p, i) for i, p in enumerate(prompts) for _ in range(rng.choice((1, 5)))
        ]
        self.requested, self.done = list(self.queue), []
        self.time = 0.0

    def open_next(self, fits):
        return self.queue.pop(0) if self.queue and fits(self.queue[0].request) else None

    def reach(self, e, written):
        end = min(written + self.CHUNK, len(e.ids) - 1)
        return end if end < len(e.ids) - 1 else min(end + self.TICK, 40)

    def at(self, e, time):
        page, offset = divmod(time, self.sizes.page_tokens)
        return e.pages[page], offset

    def step(self) -> None:
        asked, before = self.rng.randint(0, len(self.queue)), len(self.queue)
        self.shard.assign_rows(self.open_next, asked, self.reach)
        self.check_rows(asked, before)
        assert len(self.shard.copies) <= len(self.shard.rows)
        for src, dst in self.shard.copies:
            self.contents[dst] = list(self.contents[src])
        for e in self.shard.episodes:
            for time in range(e.written):
                page, offset = self.at(e, time)
                assert self.contents[page][offset] == e.ids[time]
        for e in list(self.shard.rows):
            self.advance(e)
        for e in self.shard.episodes:
            if e.search and self.rng.random() < 0.4:
                e.search = None
                e.turns.append("a search")
                e.ids += [self.rng.randrange(250) for _ in range(3)]

    def check_rows(self, asked: int, before: int) -> None:
        shard, sizes = self.shard, self.sizes
        opened, rows = shard.episodes, shard.rows
        assert len(opened) <= sizes.open
        assert len(rows) <= sizes.rows[-1]
        assert before - len(self.queue) <= asked
        everyone = [*opened, *self.queue, *self.done]
        assert sorted(map(id, everyone)) == sorted(map(id, self.requested))
        assert len(set(rows)) == len(rows)
        assert all(e in opened and e.search is None for e in rows)
        assert shard.pool.used == len({page for e in opened for page in e.pages})
        for e in rows:
            assert self.reach(e, e.written) <= len(e.pages) * sizes.page_tokens
        able = [e for e in opened if e.search is None]
        assert rows or not able
        if len(rows) < sizes.rows[-1] and not self.scarce:
            # A row is free: only those wait whose prompt another one in the rows writes.
            writing = [e.key for e in rows if e.written < e.prompt_len - 1]
            assert all(e in rows or (not e.written and e.key in writing) for e in able)
            assert len(opened) == sizes.open or before - len(self.queue) == asked

    def advance(self, e: Pretender) -> None:
        end = min(e.written + self.CHUNK, len(e.ids) - 1)
        whole = end == len(e.ids) - 1
        new = self.rng.randint(0, min(self.TICK, 40 - len(e.ids))) if whole else 0
        e.ids += [self.rng.randrange(250) for _ in range(new)]
        for time in range(e.written, end + new):
            page, offset = self.at(e, time)
            self.contents[page][offset] = e.ids[time]
        e.written = end + new
        if not whole:
            return
        fate = self.rng.random()
        if fate < 0.15 or len(e.ids) > 36:
            self.shard.close(e)
            self.done.append(e)
        elif fate < 0.5:
            self.time += 1
            e.search, e.asked = object(), self.time


@pytest.mark.parametrize("seed", range(8))
def test_plans_lose_nobody_and_keep_everyone_s_cache(seed):
    evicted = shared = alike = 0
    for world in map(World, range(seed * 40, seed * 40 + 40)):
        for _ in range(900):
            world.step()
            if len(world.done) == len(world.requested):
                break
        assert len(world.done) == len(world.requested)  # nobody starves
        assert world.shard.pool.free == world.sizes.pages
        assert world.scarce or not world.shard.evicted
        evicted, shared = evicted + world.shard.evicted, shared + world.shard.shared
        assert world.sizes.whole_pieces or not world.shard.prefix_tokens
        alike += world.shard.prefix_tokens
    assert evicted > 0
    assert shared > 0
    assert alike > 0


def shard_of(rows: int, open_: int, pages: int, *episodes: Pretender) -> schedule.Shard:
    """Of pages of 4 tokens; all the episodes have written what they have and none had a row."""
    shard = schedule.Shard(schedule.Sizes((rows,), open_, pages, 4, pages))
    shard.episodes = list(episodes)
    for e in episodes:
        e.written = len(e.ids) - 1
        e.pages = shard.pool.take(-(-e.written // 4))
    return shard


def plan_of(shard: schedule.Shard, grow: int = 0, requests: tuple[Pretender, ...] = ()) -> None:
    queue = list(requests)

    def open_next(fits):
        return queue.pop(0) if queue and fits(queue[0].request) else None

    shard.assign_rows(open_next, len(queue), lambda e, written: len(e.ids) - 1 + grow)


def test_those_who_asked_first_run_first():
    late, early = Pretender([1, 2], 1), Pretender([3, 4], 2)
    late.turns, early.turns, late.asked, early.asked = ["a"], ["a"], 2.0, 1.0
    shard = shard_of(1, 3, 4, late, early)
    plan_of(shard)
    assert (shard.rows, shard.copies) == ([early], [])


def test_one_that_waits_costs_no_copy_and_keeps_its_pages():
    first, second = Pretender(list(range(9)), 1), Pretender(list(range(20, 25)), 2)
    shard = shard_of(1, 2, 4, first, second)
    plan_of(shard)
    assert shard.rows == [first]
    pages, first.search = list(first.pages), object()
    plan_of(shard)
    assert (shard.rows, shard.copies, first.pages, shard.evicted) == ([second], [], pages, 0)


def test_a_prompt_s_full_pages_are_shared_and_the_last_is_copied():
    prompt = list(range(11))
    writer = Pretender(prompt)
    shard = shard_of(3, 3, 9, writer)
    others = Pretender(prompt), Pretender(prompt)
    plan_of(shard, 2, others)
    assert shard.rows == [writer, *others]
    assert [e.pages[:2] for e in others] == [writer.pages[:2]] * 2
    own = [e.pages[2] for e in (writer, *others)]
    assert len(set(own)) == 3
    assert shard.copies == [(own[0], own[1]), (own[0], own[2])]
    assert [e.written for e in others] == [10, 10]
    assert (shard.pool.used, shard.shared) == (2 + 3, 2)
    shard.close(writer)
    assert shard.pool.used == 2 + 2


@pytest.mark.parametrize("whole", [False, True])
def test_one_that_lost_its_pages_is_seated_before_new_ones_though_its_prompt_begins_alike(whole):
    """A beginning that it shares in vain, as the rest finds no room, is given back."""
    task = list(range(9))
    lost = Pretender([*task, 50], 0)
    lost.ids += range(60, 80)
    lost.turns = ["a search"]
    first = Pretender([*task, 40, 41], 1)
    first.ids += range(200, 209)
    shard = shard_of(2, 6, 9, first)
    shard.sizes = shard.sizes._replace(whole_pieces=whole)
    shard.episodes, shard.rows = [lost, first], [first]
    new = [Pretender([*task, 100 + i], 100 + i) for i in range(20)]
    opened = 0

    def open_next(fits):
        nonlocal opened
        if opened == len(new) or not fits(new[opened].request):
            return None
        opened += 1
        return new[opened - 1]

    for tick in range(4):
        shard.assign_rows(open_next, len(new) - opened, lambda e, written: len(e.ids) + 1)
        if lost in shard.rows:
            break
        assert (lost.pages, lost.written, shard.prefix_tokens) == ([], 0, 0)
        for episode in list(shard.rows):
            episode.written = len(episode.ids) - 1
        if tick == 2:
            shard.close(first)
    assert (lost in shard.rows, opened) == (True, 0)


def test_prompts_that_begin_alike_share_their_full_pages():
    """The most that another has, of its prompt, written by the weights that there are."""
    task = list(range(9))  # two pages of 4 and a token
    one, more = Pretender([*task[:5], 99], 1), Pretender([*task, 20, 21], 2)
    shard = shard_of(4, 4, 12, one, more)
    shard.sizes = shard.sizes._replace(whole_pieces=True)
    new, short = Pretender([*task, 30, 31, 32, 33, 34], 3), Pretender(task[:5], 4)
    plan_of(shard, 1, (new, short))
    assert (new.pages[:2], new.written) == (more.pages[:2], 8)
    assert new.pages[2] not in more.pages
    assert (short.pages[:1], short.written) == (one.pages[:1], 4)  # the first of equals
    assert (shard.copies, shard.prefix_tokens, shard.shared) == ([], 8 + 4, 0)
    more.key = b""  # its prompt was written by other weights
    shard.close(new)
    again = Pretender([*task, 30, 31], 5)
    plan_of(shard, 1, (again,))
    assert (again.pages[:1], again.written) == (one.pages[:1], 4)


@pytest.mark.parametrize(
    ("page", "extend", "chunk", "whole"),
    [(8, 8, 4, True), (8, 6, 3, False), (6, 8, 4, False), (8, 12, 4, True), (8, 10, 4, False)],
)
def test_beginnings_are_shared_where_pieces_end_with_pages(page, extend, chunk, whole):
    cfg = dataclasses.replace(ROLLOUT, page_tokens=page, extend_tokens=extend, chunk_tokens=chunk)
    assert schedule.sizes(cfg, 1).whole_pieces == whole


def test_pages_are_taken_from_the_last_to_wait_then_from_the_youngest():
    old, young, waits, waits_longer = (Pretender([i] * 5, i) for i in range(4))
    waits.search, waits.asked = object(), 2.0
    waits_longer.search, waits_longer.asked = object(), 1.0
    shard = shard_of(2, 4, 4, old, young, waits, waits_longer)
    assert shard.pool.free == 0
    plan_of(shard, 1)  # each needs a second page
    assert (shard.rows, shard.evicted) == ([old, young], 2)
    assert (waits.pages, waits_longer.pages, waits.written) == ([], [], 0)
    old.ids += [9] * 5
    young.ids += [9] * 4
    plan_of(shard)  # the one needs a third page, the other keeps to two
    assert (shard.rows, young.pages, len(old.pages), shard.evicted) == ([old], [], 3, 3)


def test_nobody_is_opened_into_pages_that_others_need():
    one, new = Pretender([1] * 5, 1), Pretender([2] * 5, 2)
    shard = shard_of(2, 4, 3, one)
    plan_of(shard, 0, (new,))  # one page for it, one for each row to grow by
    assert shard.rows == [one]
    shard = shard_of(2, 4, 4, one)
    plan_of(shard, 0, (new,))
    assert shard.rows == [one, new]


# ---- engines


def written_tokens(e) -> list[int]:
    """Appends the tokens that each tick of the engine writes into caches, but those sampled."""
    counts, call = [], e._call

    def counted(model, mesh, inbox, rows):
        used = [inbox.count[n, : inbox.chunks[n]].sum() for n in range(len(inbox.chunks))]
        counts.append(int(sum(used)))
        return call(model, mesh, inbox, rows)

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


def test_prompts_that_begin_alike_sample_what_they_sample_alone():
    """To the last bit: what others have written of a prompt was cut into the same pieces."""
    rng, model = random.Random(7), transformer()
    words = ["red", "blue", "green"]
    task = "".join(rng.choices(words, k=19))  # two pages of 8 and three tokens
    asked = [request(task + "".join(rng.choices(words, k=1 + i)), i) for i in range(10)]
    with engine(rollout=dataclasses.replace(ROLLOUT, extend_tokens=8)) as e:
        counts = written_tokens(e)
        together = {t.example_id: t for t in e.run(model, asked)}
        shared, found, counts[:] = sum(counts), e.stats.prefix_tokens, []
        alone = {r.example_id: next(e.run(model, [r])) for r in asked}
        assert e.stats.prefix_tokens == found > 0
    assert found % 16 == 0
    assert found == sum(counts) - shared
    for name, t in alone.items():
        assert t.ids.tolist() == together[name].ids.tolist()
        np.testing.assert_array_equal(t.logprobs, together[name].logprobs)


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
    search = colours(delay=lambda query: rng.random() * 0.03)
    with engine(search, rollout=OVERSUBSCRIBED) as e:
        out = list(e.run(transformer(), REQUESTS))
        assert e._layout == (None, 1, ((2, 3), 6, 48, 8, 8, False))
    found = {(t.example_id, t.sample): t for t in out}
    assert len(out) == len(found) == len(REQUESTS)
    assert same_ids(found, plain)


def remembering():
    """A tool that says of all its results but the first that it remembered them."""
    tool = colours()
    search = tool.search

    def recalled(queries, top_k):
        return [Hits(hits, cached=len(tool.calls) > 1) for hits in search(queries, top_k)]

    tool.search = recalled
    return tool


def test_what_an_engine_counts():
    """Five requests of one group in two slots, each with one search; four searches repeat one."""
    config, one = dataclasses.replace(GREEDY, slots=2), dataclasses.replace(SEARCH, workers=1)
    with engine(remembering(), rollout=config, search_config=one) as e:
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


def test_an_engine_counts_the_results_of_its_own_queries_alone():
    """Two engines ask one tool, as a run and its held-out examples do, one after the other."""
    tool, one = remembering(), dataclasses.replace(SEARCH, workers=1)
    tool.hits = 0  # of both engines, as a tool counts them
    shares = []
    with (
        engine(tool, rollout=GREEDY, search_config=one) as first,
        engine(tool, rollout=GREEDY, search_config=one) as second,
    ):
        for e, count in ((first, 1), (second, 5), (first, 2)):
            before, tool.hits = dataclasses.replace(e.stats), tool.hits + count
            assert len(list(e.run(ANSWERER, [request("plan", i) for i in range(count)]))) == count
            shares.append(e.stats.since(before).figures()["search_cache_hits"])
    assert shares == [0.0, 1.0, 1.0]


SCARCE = [
    {"kv_tokens": 72},  # hardly more than the longest trajectory
    {"kv_tokens": 96, "page_tokens": 3},
    {"kv_tokens": 128, "page_tokens": 64},  # whole trajectories: two of them
]


@pytest.mark.parametrize(
    "change", SCARCE[:1] + [pytest.param(c, marks=pytest.mark.slow) for c in SCARCE[1:]]
)
def test_when_pages_run_out_caches_are_written_again_and_no_token_changes(plain, change):
    """Each ends once, and samples what it would with room for all."""
    search = colours(delay=lambda query: 0.01)
    with engine(search, rollout=dataclasses.replace(OVERSUBSCRIBED, **change)) as e:
        out = list(e.run(transformer(), REQUESTS))
        # With larger pages it depends on how long searches take whether anybody must give way.
        assert e.stats.evicted > 0 or change != SCARCE[0]
        assert 0 < e.stats.figures()["kv_pages_used"] <= 1
        assert all(shard.pool.used == 0 for shard in e._shards)
    found = {(t.example_id, t.sample): t for t in out}
    assert len(out) == len(found) == len(REQUESTS)
    assert same_ids(found, plain)
    for name, t in found.items():
        np.testing.assert_allclose(t.logprobs, plain[name].logprobs, atol=1e-4)


def test_a_compile_after_the_warm_up_is_an_error_or_a_warning(caplog):
    config = dataclasses.replace(GREEDY, max_len=40)
    other = ScriptedModel(ANSWERER.following.astype(jnp.int16))
    with engine(rollout=config) as e:
        (before,) = e.run(ANSWERER, [request("plan")])
        with pytest.raises(CompileError, match="the rollout program of 4 rows was compiled again"):
            list(e.run(other, [request("plan")]))
        (after,) = e.run(ANSWERER, [request("plan")])
    assert before.ids.tolist() == after.ids.tolist()
    unsigned = ScriptedModel(ANSWERER.following.astype(jnp.uint16))
    with (
        Engine(VOCAB, search_alone(colours(), SEARCH), config, SEARCH) as e,
        caplog.at_level(logging.WARNING),
    ):
        list(e.run(ANSWERER, [request("plan")]))
        assert not caplog.records
        (found,) = e.run(unsigned, [request("plan")])
    assert found.ids.tolist() == before.ids.tolist()
    assert [r.getMessage() for r in caplog.records] == [
        "the rollout program of 4 rows was compiled again after the warm-up"
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
        assert e._cache.k.dtype == jnp.int8
    errors = np.concatenate([np.abs(teacher_forced(model, t) - t.logprobs)[t.sampled] for t in out])
    # Half a step of 127 in what is in the cache: about half a percent of logits that span 10.
    assert np.quantile(errors, 0.99) < 0.05
    assert np.median(errors) < 1e-3  # a turn's own tokens are exact until its tick ends
    assert errors.max() > 1e-4  # it is int8


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8"])
def test_a_page_s_bytes_are_those_of_its_cache(dtype):
    cache = kv_cache.init_cache(MODEL, 2, 3, 16, dtype)
    size = memory.page_bytes(MODEL, 16, dtype)
    assert sum(leaf.nbytes for leaf in jax.tree.leaves(cache)) == 6 * size
    config = dataclasses.replace(ROLLOUT, slots=4, page_tokens=16)  # max_len 64: 4 pages
    fit = lambda free, shards=1: memory.room(MODEL, config, shards, dtype, free).slots_that_fit  # noqa: E731
    assert [fit(20 * size), fit(20 * size - 1), fit(4 * size - 1), fit(-size)] == [5, 4, 0, 0]
    assert [fit(16 * size, 2), fit(15 * size, 2)] == [4, 2]  # each part has its own
    scarce = dataclasses.replace(config, kv_tokens=64 + 3 * 16)
    assert memory.room(MODEL, scarce, 1, dtype, 0)[:3] == (7 * size, 7 * 16, 1)


def devices(*stats: dict | None):
    return lambda: [SimpleNamespace(memory_stats=lambda s=s: s) for s in stats]


def test_a_cache_that_does_not_fit_is_refused_with_how_many_slots_do(monkeypatch):
    config = dataclasses.replace(ROLLOUT, max_len=4096, page_tokens=1024)
    assert memory.page_bytes(MODEL, 4096, "float32") == 2**20
    half = {"bytes_limit": 6 * 2**20, "bytes_in_use": 2**20}
    monkeypatch.setattr(jax, "local_devices", devices(half, half))

    def check(slots: int, dtype: str, kv_tokens: int = 0) -> None:
        wanted = dataclasses.replace(config, slots=slots, kv_tokens=kv_tokens)
        memory.check_room(MODEL, wanted, 1, dtype)

    check(10, "float32")
    check(26, "int8")  # 3/8 of the bytes
    check(99, "float32", 10 * 4096)
    says = (
        "rollout: a KV cache of 45,056 tokens in float32 takes 11 MiB, and 10 MiB are free: 10 "
        "slots of rollout.max_len 4096 fit"
    )
    with pytest.raises(RolloutError, match=says):
        check(11, "float32")
    with pytest.raises(RolloutError, match=r"110,592 tokens in int8 .*: 26 slots of"):
        check(27, "int8")
    monkeypatch.setattr(jax, "local_devices", devices(half, None))
    check(11, "float32")  # one does not say

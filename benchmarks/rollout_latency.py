"""What waiting for search costs: the engine at zero and at real latency, and a loop that waits."""

from __future__ import annotations

import dataclasses
import functools
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from concurrent import futures
from typing import Any

import jax
import numpy as np

from benchmarks import rollout_model as stand_in
from masksearch_jax.core import markup
from masksearch_jax.core.config import SearchConfig
from masksearch_jax.core.retrieval import SearchTool
from masksearch_jax.core.rollout_config import RolloutConfig
from masksearch_jax.core.tools import search_alone
from masksearch_jax.core.types import Trajectory
from masksearch_jax.rollout import decode, schedule
from masksearch_jax.rollout.engine import Engine
from masksearch_jax.rollout.episode import Episode, Request, Rules, finish
from masksearch_jax.rollout.sampling import Sampler
from masksearch_jax.runtime.call_pool import CallPool

TRAJECTORIES, SEARCHES = 64, 3
PROMPT, TURN, OBSERVATION, QUERY = 48, 48, 34, 4  # tokens
MEDIAN, P99 = 0.5, 3.0  # seconds of a search
SHARES = (0.125, 0.25)
LENGTH = PROMPT + (SEARCHES + 1) * TURN + SEARCHES * OBSERVATION
CONFIG = dataclasses.replace(
    stand_in.ROLLOUT,
    slots=TRAJECTORIES,
    decode_share=SHARES,
    max_len=LENGTH + 10,
    max_turns=SEARCHES,
    max_observation_tokens=OBSERVATION,
)


class TurnSynchronous:
    """The engine's own parts without its schedule: rows decode until all have stopped, then wait.

    Takes `rows` requests at a time. A search begins when its row stops; the next turn begins when
    the last search of the batch has ended.
    """

    def __init__(
        self,
        model: Any,
        vocab: stand_in.Words,
        search: SearchTool,
        rollout: RolloutConfig,
        search_config: SearchConfig,
    ):
        rows = rollout.slots
        self.model, self.search, self.cfg, self.search_cfg = model, search, rollout, search_config
        self.rules = Rules(vocab, rollout, search_alone(search, search_config))
        self.sizes = schedule.sizes(dataclasses.replace(rollout, decode_share=(1.0,)), 1)
        self.pool = CallPool(rows)
        self._tick = decode.make_tick(
            tokens=rollout.tick_tokens, sampler=Sampler(rollout.temperature)
        )
        self._reach = functools.partial(schedule.reach, cfg=rollout, rules=self.rules)
        size = model.config.vocab_size
        self._stop = decode.stop_table(self.rules.token_bytes, vocab.eos_ids, markup.stops(), size)
        self._cache = decode.init_cache(model, 1, self.sizes.pages, rollout.page_tokens, "")
        chunks = schedule.chunking(rollout)
        self._call(decode.empty_inbox(1, rows, self.sizes.width, *chunks))  # compiles

    def run(self, requests: Sequence[Request]) -> list[Trajectory]:
        rows, done = self.cfg.slots, []
        for first in range(0, len(requests), rows):
            batch = iter([self.rules.open(r) for r in requests[first : first + rows]])
            shard = schedule.Shard(self.sizes)
            while True:
                done += self._turn(shard, lambda fits, batch=batch: next(batch, None))
                if not shard.episodes:
                    break
                futures.wait([e.search for e in shard.episodes])
                for episode in shard.episodes:
                    seen, episode.search = episode.search.result(), None
                    self.rules.observe(episode, seen, 0.0)
        return done

    def close(self) -> None:
        self.pool.close()

    def _turn(self, shard: schedule.Shard, open_next: Callable) -> list[Trajectory]:
        """Decode until every row has ended or searches; those that ended."""
        done = []
        while True:
            shard.assign_rows(open_next, self.cfg.slots, self._reach)
            letter = schedule.write_inbox([shard], self.cfg, self.rules)
            if not letter.has_work:
                return done
            ids, logprobs, count = self._call(letter.inbox)
            for at, episode in letter.decoding:
                c = count[at]
                outcome = self.rules.read(episode, ids[at][:c], logprobs[at][:c], 0)
                if isinstance(outcome, tuple):
                    self._ask(episode, outcome)
                elif outcome:
                    shard.close(episode)
                    done.append(finish(episode, outcome))

    def _call(self, inbox: decode.Inbox) -> list[np.ndarray]:
        seed, rows = np.uint32(self.cfg.seed), self.cfg.slots
        self._cache, sampled = self._tick(self.model, self._cache, inbox, seed, self._stop, rows)
        return [np.asarray(a) for a in jax.block_until_ready(sampled)]

    def _ask(self, episode: Episode, queries: tuple[str, ...]) -> None:
        def find():
            found = self.search.search(queries, self.search_cfg.top_k)
            found = markup.merge_results(found, self.search_cfg.max_passages)
            return self.rules.render(found, room)

        episode.queries, room = queries, self.rules.observation_room(episode)
        episode.search = self.pool.submit(find)


def measure(model: Any, vocab: stand_in.Words, repeats: int) -> dict[str, list[float]]:
    """Tokens per second of each way to wait, and their ratios, one value per repeat.

    The searches' latencies are drawn anew for each repeat, and are the same for all in it.
    """
    script = stand_in.search_script(
        vocab,
        prompt=PROMPT,
        searches=SEARCHES,
        turn=TURN,
        observation=OBSERVATION,
        query=QUERY,
    )
    model = stand_in.Scripted(model, script, vocab.first_word)
    requests = stand_in.requests(
        vocab.size, [PROMPT] * TRAJECTORIES, first_word=vocab.first_word, seed=1
    )
    rows = round(SHARES[-1] * TRAJECTORIES)
    values = defaultdict(list)
    for repeat in range(repeats):
        late = stand_in.SlowSearch(OBSERVATION - 2, stand_in.log_normal(repeat, MEDIAN, P99))
        soon = stand_in.SlowSearch(OBSERVATION - 2, lambda query: 0.0)
        at_once, _ = through_engine(model, vocab, soon, requests)
        waiting, stats = through_engine(model, vocab, late, requests)
        by_turn = turn_by_turn(model, vocab, late, requests, rows)
        for name, value in (
            ("zero_latency_tokens_per_second", at_once),
            ("tokens_per_second", waiting),
            ("turn_synchronous_tokens_per_second", by_turn),
            ("ratio_to_zero_latency", waiting / at_once),
            ("ratio_to_turn_synchronous", waiting / by_turn),
            ("search_wait_seconds", stats.search_wait_seconds),
            ("host_seconds", stats.host_seconds),
            ("occupancy", stats.decode_rows / stats.program_rows),
        ):
            values[name].append(value)
        if repeat == 0:  # once, since it is no target: the loop with a decode row for every slot
            wide = turn_by_turn(model, vocab, late, requests, TRAJECTORIES)
            values["ratio_to_turn_synchronous_with_all_slots"].append(waiting / wide)
    return values


def through_engine(
    model: Any, vocab: stand_in.Words, search: SearchTool, requests: Sequence[Request]
):
    """Tokens per second of the engine, and its counts."""
    with Engine(
        vocab, search_alone(search, stand_in.SEARCH), CONFIG, stand_in.SEARCH, strict=True
    ) as engine:
        list(engine.run(model))  # compiles
        before = dataclasses.replace(engine.stats)
        started = time.perf_counter()
        done = list(engine.run(model, requests))
        seconds = time.perf_counter() - started
        return sampled(done, vocab) / seconds, engine.stats.since(before)


def turn_by_turn(
    model: Any, vocab: stand_in.Words, search: SearchTool, requests: Sequence[Request], rows: int
) -> float:
    """Tokens per second of the turn-synchronous loop."""
    config = dataclasses.replace(CONFIG, slots=rows)
    loop = TurnSynchronous(model, vocab, search, config, stand_in.SEARCH)
    started = time.perf_counter()
    done = loop.run(requests)
    seconds = time.perf_counter() - started
    loop.close()
    return sampled(done, vocab) / seconds


def sampled(done: Sequence[Trajectory], vocab: stand_in.Words) -> int:
    """Sampled tokens, once it is sure that every trajectory has the shape of the script."""
    for t in done:
        shape = (t.status, len(t.turns), int(t.sampled.sum()), len(t.ids))
        expected = ("answered", SEARCHES, (SEARCHES + 1) * TURN, LENGTH)
        if shape != expected:
            raise RuntimeError(f"{t.example_id}: {shape}, expected {expected}")
    if len(done) != TRAJECTORIES:
        raise RuntimeError(f"{len(done)} trajectories of {TRAJECTORIES}")
    return sum(int(t.sampled.sum()) for t in done)

"""The loop around the device's `tick`: searches, stops, refills, on any number of hosts.

A trajectory that waits for its search holds nobody: another decodes in its row. Every process
serves rows of its own; each tick they agree on the program to run and on whether there is anything
left, so all make the same calls in the same order, and give each other what their devices share.
"""

from __future__ import annotations

import collections
import contextlib
import functools
import logging
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent import futures

import jax
import numpy as np
from jax.sharding import Mesh

from masksearch_jax.core import markup
from masksearch_jax.core.config import SearchConfig
from masksearch_jax.core.rollout_config import RolloutConfig
from masksearch_jax.core.tokenizer import Vocabulary
from masksearch_jax.core.tools import Toolbox
from masksearch_jax.core.types import SEARCH, Status, Trajectory
from masksearch_jax.parallel import hosts, sharding
from masksearch_jax.rollout import decode, memory, schedule
from masksearch_jax.rollout.agreement import Agreement, Needs
from masksearch_jax.rollout.episode import Episode, Observation, Request, Rules, finish
from masksearch_jax.rollout.model import Policy, SamplingModel
from masksearch_jax.rollout.sampling import sampler_of
from masksearch_jax.rollout.stats import EngineStats
from masksearch_jax.runtime.call_pool import CallPool

_IDLE_SECONDS = 0.02  # a process without work looks again, since others may have some


class CompileError(RuntimeError):
    """A program was compiled after the warm-up: a shape that the configuration does not name."""


class Engine:
    """Samples trajectories with live search, on a KV cache of a fixed size.

    `run` lays the cache out over the mesh in force. Tools are called from `search_config.workers`
    threads, each call within `search_config.timeout`, whichever tool it is of. With `strict` a
    compile after the warm-up raises CompileError; else it is logged. `by_row`: a request may have a
    sampler of its own. `watch` sees a trajectory each time that there is more of it; `check` is
    called before each tick, equally often on all processes, and ends the run by raising. Use as a
    context manager, or call `close`; after an interrupted `run` there may be another.
    """

    def __init__(
        self,
        vocab: Vocabulary,
        tools: Toolbox,
        rollout: RolloutConfig,
        search_config: SearchConfig,
        *,
        strict: bool = False,
        by_row: bool = False,
        watch: Callable[[Episode], None] | None = None,
        check: Callable[[], None] = lambda: None,
    ):
        self.tools, self.cfg, self.search_cfg, self.strict = tools, rollout, search_config, strict
        self.stats, self.watch, self.check = EngineStats(), watch, check
        self.by_row = by_row
        self.rules = Rules(vocab, rollout, tools)
        self._tick = decode.make_tick(
            tokens=rollout.tick_tokens,
            sampler=None if by_row else sampler_of(rollout),
            attention=rollout.attention,
        )
        self._warm: set[tuple[Mesh | None, int]] = set()
        self._pool: CallPool[Observation] = CallPool(search_config.workers)
        self._queue: collections.deque[Request] = collections.deque()
        self._finished: collections.deque[tuple[Request, Trajectory]] = collections.deque()
        self._shards: list[schedule.Shard] = []
        # How the cache lies: the mesh, the number of shards, and what each has.
        self._layout: tuple[Mesh | None, int, schedule.Sizes] | None = None
        self._cache: sharding.PyTree = None
        self._stop: np.ndarray | jax.Array | None = None  # of `decode.stop_table`
        self._version = 0
        self._rests_since: float | None = None  # the end of the last run

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self.drop()
        self._pool.close()

    def drop(self) -> None:
        """Forgets all that is in flight."""
        self._queue.clear()
        self._finished.clear()
        for episode in self._episodes():
            self._abandon(episode)
        self._shards = [schedule.Shard(shard.sizes) for shard in self._shards]

    @property
    def compiles(self) -> int:
        """Programs of this kind compiled in this process."""
        # Jitted functions have it, their type has not.
        return self._tick._cache_size()  # type: ignore[attr-defined]

    @property
    def in_flight(self) -> int:
        """Requests that are open, wait for a slot, or have ended and were not taken yet."""
        return len(self._queue) + len(self._episodes()) + len(self._finished)

    def submit(self, request: Request) -> None:
        """Adds a request to the `run` in progress, or to the next; callable from any thread.

        Raises RolloutError for a prompt that leaves no room to answer, for a sampler of its own in
        an engine that has one for all, and where rollout.in_flight is "drop".
        """
        if request.sampler and not self.by_row:
            raise decode.RolloutError(
                f"{request.example_id!r} has a sampler of its own; this engine has one for all: "
                "make it with by_row=True"
            )
        if self.cfg.in_flight == "drop":
            raise decode.RolloutError(
                "rollout.in_flight is 'drop': a run that ends as a request is added would lose it; "
                "choose 'keep'"
            )
        self.rules.check_request(request)
        self._queue.append(request)

    def run(
        self,
        model: Policy,
        requests: Iterable[Request] = (),
        version: int = 0,
        *,
        enough: Callable[[], bool] = lambda: False,
    ) -> Iterator[Trajectory]:
        """Trajectories as they finish, one per request, in no fixed order.

        It ends early once `enough` says so, on all processes; what is in flight then is dropped or,
        as `rollout.in_flight` says, goes on in the next `run`. Under several processes all must
        call it and take all that it yields. Raises RolloutError for a prompt that leaves no room to
        answer.
        """
        found = jax.sharding.get_mesh()
        mesh = found if found.size > 1 else None
        sampling = model.for_sampling(self.cfg.weights)
        self._begin(sampling, mesh, version)
        self._queue.extend(requests)
        try:
            yield from self._ticks(sampling, mesh, enough)
        except (Exception, KeyboardInterrupt):
            self._forget()  # the device may be ahead of us
            raise
        finally:
            self._rests_since = time.perf_counter()
            if self.cfg.in_flight == "drop":
                self.drop()

    def _ticks(
        self, model: SamplingModel, mesh: Mesh | None, enough: Callable[[], bool]
    ) -> Iterator[Trajectory]:
        agreement = Agreement(mesh)
        while True:
            while self._finished:
                yield self._finished.popleft()[1]
            self.check()
            started = time.perf_counter()
            self._collect()
            letter = self._next_letter()
            self.stats.host_seconds += time.perf_counter() - started
            told_to_end, dropped = enough(), self.cfg.in_flight == "drop"
            left = bool(self._finished) or (self.in_flight > 0 and not told_to_end)
            work = letter.has_work and not (dropped and told_to_end)
            needs = agreement.reach(Needs(letter.rows, work, left))
            if needs.work and (needs.left or not dropped):
                self._advance(model, mesh, letter, needs)
            elif needs.left and not self._finished:
                # With "keep" a request may come, or be withdrawn, while all wait.
                self._wait_for_search(agreement.is_alone and dropped)
            if not needs.left:
                return

    # ---- the state between runs

    def _begin(self, model: SamplingModel, mesh: Mesh | None, version: int) -> None:
        """A cache for this mesh, programs for these shapes; what was in flight made to go on."""
        parts = hosts.shards(mesh)
        alone = self.cfg.slots < parts and jax.process_count() == 1
        shards = 1 if alone else parts  # a question alone: every device has it
        sizes = schedule.sizes(self.cfg, shards)
        own = max(shards // jax.process_count(), 1)
        decode.check_backend(self.cfg.attention)
        if not decode.is_alive(self._cache) or self._layout != (mesh, shards, sizes):
            self._forget()
            dtype = memory.cache_dtype(self.cfg, model.compute)
            memory.check_room(model.config, self.cfg, shards, dtype)
            self._cache = decode.init_cache(model, shards, sizes.pages, sizes.page_tokens, dtype)
            if self._layout != (mesh, shards, sizes):
                self._layout, self._stop = (mesh, shards, sizes), None
                self._deal([schedule.Shard(sizes) for _ in range(own)])
        self._warm_up(model, mesh, shards, sizes)
        if version != self._version:
            self._renew(version)
        self._leave_out_rest()

    def _deal(self, shards: list[schedule.Shard]) -> None:
        """Gives what is open to other shards, in turn; what has no place there begins again."""
        opened, self._shards = self._episodes(), shards
        for place, episode in enumerate(opened):
            shard = shards[place % len(shards)]
            if shard.free:
                shard.episodes.append(episode)
            else:
                self._abandon(episode)
                self._begin_again(episode.request)

    def _renew(self, version: int) -> None:
        """Trajectories in flight under new weights: those too old begin again, ended ones too."""
        self._version = version

        def is_too_old(versions: Sequence[int] | np.ndarray) -> bool:
            first = min((v for v in versions if v >= 0), default=version)
            return version - first > self.cfg.max_staleness

        ended = [request for request, t in self._finished if is_too_old(t.versions)]
        self._finished = collections.deque(
            pair for pair in self._finished if not is_too_old(pair[1].versions)
        )
        for request in ended:
            self._begin_again(request)
        for shard in self._shards:
            for episode in shard.episodes:
                if is_too_old(episode.versions):
                    self._abandon(episode)
                    shard.close(episode)
                    self._begin_again(episode.request)
                elif not (self.cfg.in_flight == "keep" and episode.new_tokens and episode.written):
                    shard.forget(episode)
                else:
                    episode.key = b""  # old weights wrote its prompt: nobody may share it

    def _leave_out_rest(self) -> None:
        """The time since the last run counts neither for what is open nor for its searches."""
        now = time.perf_counter()
        rest = now - (now if self._rests_since is None else self._rests_since)
        for episode in self._episodes():
            episode.opened += rest
            episode.asked += rest

    def _begin_again(self, request: Request) -> None:
        self._queue.appendleft(request)
        self.stats.restarted += 1

    def _warm_up(
        self, model: SamplingModel, mesh: Mesh | None, shards: int, sizes: schedule.Sizes
    ) -> None:
        """Run every program once on an empty inbox, so that all are compiled."""
        if self._stop is None:
            size, eos_ids = model.config.vocab_size, tuple(self.rules.vocab.eos_ids)
            spelled = self.rules.token_bytes[:size]
            table = decode.stop_table(spelled, eos_ids, markup.stops(self.tools.names), size)
            self._stop = table if mesh is None else sharding.replicate(mesh, table)
        own = max(shards // jax.process_count(), 1)
        if (mesh, sizes.rows[-1]) in self._warm:
            return
        # The first once more: the cache of a tick may lie otherwise than the cache before any.
        for rows in (*sizes.rows, sizes.rows[0]):
            chunks = schedule.chunking(self.cfg)
            inbox = decode.empty_inbox(own, sizes.rows[-1], sizes.width, *chunks)
            self._call(model, mesh, inbox, rows)
        self._warm.update((mesh, rows) for rows in sizes.rows)

    def _call(
        self, model: SamplingModel, mesh: Mesh | None, inbox: decode.Inbox[np.ndarray], rows: int
    ) -> decode.Sampled:
        """One tick. Raises CompileError if it was compiled only now."""
        if split := self._split(mesh):
            inbox = hosts.shard_batch(split, hosts.exchange(split, inbox))
        before = self.compiles
        self._cache, sampled = self._tick(
            model, self._cache, inbox, np.uint32(self.cfg.seed), self._stop, rows
        )
        if self.compiles > before and (mesh, rows) in self._warm:
            message = f"the rollout program of {rows} rows was compiled again after the warm-up"
            if self.strict:
                raise CompileError(message)
            logging.getLogger(__name__).warning(message)
        return sampled

    def _split(self, mesh: Mesh | None) -> Mesh | None:
        """The mesh that the rows are split over; None: every device has them all."""
        return mesh if self._layout is not None and self._layout[1] > 1 else None

    def _episodes(self) -> list[Episode]:
        return [e for shard in self._shards for e in shard.episodes]

    def _forget(self) -> None:
        for shard in self._shards:
            shard.forget_all()

    def _abandon(self, episode: Episode) -> None:
        if episode.search is not None:
            self._pool.abandon(episode.search)

    # ---- one tick

    def _next_letter(self) -> schedule.Letter:
        def open_next(fits: Callable[[Request], bool]) -> Episode | None:
            if not self._queue or not fits(self._queue[0]):
                return None
            self.stats.prompts += 1
            return self.rules.open(self._queue.popleft())

        reach = functools.partial(schedule.reach, cfg=self.cfg, rules=self.rules)

        for i, shard in enumerate(self._shards):
            # No more to each than its share, so that the last requests are spread over all.
            share = -(-len(self._queue) // (len(self._shards) - i))
            shard.assign_rows(open_next, share, reach)
        return schedule.write_inbox(self._shards, self.cfg, self.rules)

    def _advance(
        self, model: SamplingModel, mesh: Mesh | None, letter: schedule.Letter, needs: Needs
    ) -> None:
        """Tick; while the device works, take in what searches have found; then read the tokens."""
        started = time.perf_counter()
        sampled = self._call(model, mesh, letter.inbox, needs.rows)
        self.stats.add_tick(self._shards, len(self._queue))
        if not letter.decoding and jax.process_count() == 1:
            return  # the middle of a prompt: nothing to read, the next tick follows at once
        self._collect()
        overlapped = time.perf_counter()
        split = self._split(mesh)
        read = functools.partial(hosts.own_rows, split) if split else hosts.local_rows
        ids, logprobs, count = map(read, sampled)
        now = time.perf_counter()
        self.stats.device_seconds += now - started
        self.stats.overlapped_seconds += overlapped - started
        self.stats.sampled_tokens += int(count.sum())
        self.stats.decode_rows += len(letter.decoding)
        self.stats.program_rows += needs.rows * len(self._shards)
        asking: list[Episode] = []
        for at, episode in letter.decoding:
            if episode not in self._shards[at[0]].rows:
                continue  # its time ran out during the tick
            c = count[at]
            outcome = self.rules.read(episode, ids[at][:c], logprobs[at][:c], self._version)
            if self.watch:
                self.watch(episode)
            if isinstance(outcome, tuple):
                episode.queries = outcome
                asking.append(episode)
            elif outcome:
                self._finish(self._shards[at[0]], episode, outcome)
        self._ask(asking)
        self.stats.host_seconds += time.perf_counter() - now

    def _finish(self, shard: schedule.Shard, episode: Episode, status: Status) -> None:
        shard.close(episode)
        self.stats.trajectories += 1
        self._finished.append((episode.request, finish(episode, status, self.tools.names)))

    # ---- search

    def _ask(self, asking: Sequence[Episode]) -> None:
        """Send the queries of a tick to the pool; a search without a query finds nothing."""
        searches = [(e.queries, e.request.source) for e in asking if e.tool == SEARCH and e.queries]
        if searches:
            self.tools.begin_searches(searches)
        for episode in asking:
            episode.asked = time.perf_counter()
            if episode.tool == SEARCH:
                self.stats.searches += 1
                self.stats.queries += len(episode.queries)
            asked = (episode.tool, episode.queries, episode.request.source)
            room = self.rules.observation_room(episode)
            episode.search = self._pool.submit(functools.partial(self.rules.call, *asked, room))

    def _collect(self) -> None:
        """Put finished searches into their slots; a failed or late one ends its trajectory."""
        for shard in self._shards:
            for episode in shard.episodes:
                now = time.perf_counter()
                if status := self._look(episode, now):
                    self._abandon(episode)
                    self._finish(shard, episode, status)

    def _look(self, episode: Episode, now: float) -> Status | None:
        """Take in its search if that has ended; its status if it, or all its time, has run out."""
        call = episode.search
        status: Status | None
        if call is not None and call.done():
            if (error := call.exception()) is not None:
                text = f"{type(error).__name__}: {error}"
                status = self.rules.fail(episode, now - episode.asked, text)
            else:
                self.stats.observation_tokens += len(call.result().ids)
                if episode.tool == SEARCH:
                    self.stats.add_results(call.result().found)
                status = self.rules.observe(episode, call.result(), now - episode.asked)
                if self.watch:
                    self.watch(episode)
            episode.search = None
            return status
        expired = self.cfg.deadline and now > episode.opened + self.cfg.deadline
        if expired or episode.request.withdrawn():
            return "out_of_time"
        if call is not None and now > call.late(self.search_cfg.timeout, now):
            late = f"no result in {self.search_cfg.timeout:g} s"
            return self.rules.fail(episode, now - episode.asked, late)
        return None

    def _wait_for_search(self, alone: bool) -> None:
        """Sleep until a search ends or the earliest deadline passes; not for long unless alone."""
        started = time.perf_counter()
        waiting = [(e, e.search) for e in self._episodes() if e.search]
        ends = [call.late(self.search_cfg.timeout, started) for _, call in waiting]
        if self.cfg.deadline:
            ends += [e.opened + self.cfg.deadline for e, _ in waiting]
        left = max(0.0, min(ends, default=started) - started) + 1e-3
        left = left if alone else min(left, _IDLE_SECONDS)
        with contextlib.suppress(TimeoutError):
            futures.wait([call for _, call in waiting], left, return_when=futures.FIRST_COMPLETED)
        self.stats.search_wait_seconds += time.perf_counter() - started

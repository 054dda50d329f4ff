"""What an engine has done and where its time went."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from masksearch_jax.core.types import QueryRecord
from masksearch_jax.rollout.schedule import Shard


@dataclasses.dataclass
class EngineStats:
    """Counts and seconds since the engine was made; a step's figures are the growth over it."""

    ticks: int = 0
    sampled_tokens: int = 0
    observation_tokens: int = 0
    searches: int = 0
    queries: int = 0
    results: int = 0  # of queries, by search
    cache_hits: int = 0  # of these, not searched for
    prompts: int = 0  # begun
    shared_prompts: int = 0  # of these, found in another's cache
    prefix_tokens: int = 0  # of other prompts, found in the cache of one that begins alike
    trajectories: int = 0
    restarted: int = 0  # trajectories begun again, their weights too old
    evicted: int = 0  # caches taken from trajectories for others, to be written again
    device_seconds: float = 0.0  # from a tick's call to its tokens
    overlapped_seconds: float = 0.0  # of these, the host worked too
    host_seconds: float = 0.0  # the device had nothing to do but wait for us
    search_wait_seconds: float = 0.0  # nor we: all open trajectories waited for search
    decode_rows: int = 0  # sum over ticks of trajectories that decoded
    program_rows: int = 0  # sum over ticks of rows that the program had
    queued: int = 0  # sum over ticks of requests not open
    searching: int = 0  # sum over ticks of trajectories that waited for a search
    opened: int = 0  # sum over ticks of open trajectories
    used_pages: int = 0  # sum over ticks of pages of the cache that somebody uses
    all_pages: int = 0  # sum over ticks of pages that there are

    def add_tick(self, shards: Sequence[Shard], queued: int) -> None:
        """The state of things as a tick begins."""
        self.ticks += 1
        self.queued += queued
        for shard in shards:
            self.searching += sum(e.search is not None for e in shard.episodes)
            self.opened += len(shard.episodes)
            self.used_pages += shard.pool.used
            self.all_pages += shard.sizes.pages
            self.shared_prompts += shard.shared
            self.prefix_tokens += shard.prefix_tokens
            self.evicted += shard.evicted
            shard.shared = shard.prefix_tokens = shard.evicted = 0

    def add_results(self, found: Sequence[QueryRecord]) -> None:
        """What a search of this engine has found; the tool's own counts are of all who ask it."""
        self.results += len(found)
        self.cache_hits += sum(record.cached for record in found)

    def since(self, before: EngineStats) -> EngineStats:
        names = [f.name for f in dataclasses.fields(self)]
        return EngineStats(*(getattr(self, n) - getattr(before, n) for n in names))

    def figures(self) -> dict[str, float]:
        """For the log: shares, rates, means per tick, seconds in the three kinds of waiting."""
        busy = self.device_seconds + self.host_seconds + self.search_wait_seconds
        return {
            "rollout_tokens_per_second": self.sampled_tokens / max(busy, 1e-9),
            "decode_occupancy": self.decode_rows / max(self.program_rows, 1),
            "queue_length": self.queued / max(self.ticks, 1),
            "searches_in_flight": self.searching / max(self.ticks, 1),
            "search_cache_hits": self.cache_hits / max(self.results, 1),
            "prompts_shared": self.shared_prompts / max(self.prompts, 1),
            "device_seconds": self.device_seconds,
            "host_seconds": self.host_seconds,
            "host_share": self.host_seconds / max(busy, 1e-9),
            "overlapped_seconds": self.overlapped_seconds,
            "search_wait_seconds": self.search_wait_seconds,
            "open_trajectories": self.opened / max(self.ticks, 1),
            "kv_pages_used": self.used_pages / max(self.all_pages, 1),
            "prefix_tokens": float(self.prefix_tokens),
            "evicted": float(self.evicted),
            "restarted": float(self.restarted),
        }

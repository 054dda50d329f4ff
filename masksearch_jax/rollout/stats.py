"""What an engine has done and where its time went."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass
class EngineStats:
    """Counts and seconds since the engine was made; a step's figures are the growth over it."""

    ticks: int = 0
    sampled_tokens: int = 0
    observation_tokens: int = 0
    searches: int = 0
    queries: int = 0
    cache_hits: int = 0  # queries answered from the search tool's cache
    prompts: int = 0  # begun
    shared_prompts: int = 0  # of these, copied from another slot
    trajectories: int = 0
    restarted: int = 0  # trajectories begun again, their weights too old
    device_seconds: float = 0.0  # from a tick's call to its tokens
    overlapped_seconds: float = 0.0  # of these, the host worked too
    host_seconds: float = 0.0  # the device had nothing to do but wait for us
    search_wait_seconds: float = 0.0  # nor we: all open trajectories waited for search
    decode_rows: int = 0  # sum over ticks of trajectories that decoded
    program_rows: int = 0  # sum over ticks of rows that the program had
    queued: int = 0  # sum over ticks of requests without a slot
    searching: int = 0  # sum over ticks of trajectories that waited for a search

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
            "search_cache_hits": self.cache_hits / max(self.queries, 1),
            "prompts_shared": self.shared_prompts / max(self.prompts, 1),
            "device_seconds": self.device_seconds,
            "host_seconds": self.host_seconds,
            "host_share": self.host_seconds / max(busy, 1e-9),
            "overlapped_seconds": self.overlapped_seconds,
            "search_wait_seconds": self.search_wait_seconds,
            "restarted": float(self.restarted),
        }

"""Which slot an open trajectory has, who decodes, and what the device is told about it.

The first R slots of a shard decode. A trajectory that waits for its search gives its place there
to one that can go on: its cache is copied to a slot beyond R and back, which costs about as much
as two decode steps read, once per search. When few can go on they are moved together, so that a
program of fewer rows will do. A group's prompt is written once and copied to its other samples.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import NamedTuple

from masksearch_jax.config import RolloutConfig
from masksearch_jax.rollout import decode
from masksearch_jax.rollout.episode import Episode, Rules


class Sizes(NamedTuple):
    """Slots of one shard: R of each program, ascending, how many may be open, and how many exist.

    One slot more than may be open lets two trajectories change places.
    """

    rows: tuple[int, ...]
    open: int
    slots: int


def sizes(cfg: RolloutConfig, shards: int) -> Sizes:
    """Slots of each of `shards` equal parts. ValueError for parts or shares that are none."""
    if cfg.slots < 1 or cfg.slots % shards:
        raise ValueError(
            f"rollout.slots is {cfg.slots}; it must be a positive multiple of {shards}, the parts "
            "that the mesh splits a batch into"
        )
    share = cfg.decode_share
    if not share or list(share) != sorted(set(share)) or not 0 < share[0] <= share[-1] <= 1:
        raise ValueError(f"rollout.decode_share is {share}; it must ascend, above 0 and up to 1")
    open_ = cfg.slots // shards
    rows = tuple(sorted({max(1, round(s * open_)) for s in share}))
    return Sizes(rows, open_, open_ + (open_ > rows[-1] or len(rows) > 1))


def windows(cfg: RolloutConfig) -> tuple[int, ...]:
    """The cache lengths that programs read. Raises ValueError unless they ascend to max_len."""
    lengths = (*cfg.lengths, cfg.max_len)
    if list(lengths) != sorted(set(lengths)) or lengths[0] < 1:
        raise ValueError(
            f"rollout.lengths is {cfg.lengths}; it must ascend from 1 to below max_len, "
            f"{cfg.max_len}"
        )
    return lengths


@dataclasses.dataclass
class Shard:
    """The places of one shard and the copies that the next tick begins with."""

    sizes: Sizes
    places: list[Episode | None]
    copies: list[tuple[int, int]] = dataclasses.field(default_factory=list)

    @classmethod
    def empty(cls, sizes: Sizes) -> Shard:
        return cls(sizes, [None] * sizes.slots)

    def open_episodes(self) -> Iterator[Episode]:
        return (e for e in self.places if e is not None)

    def running(self) -> list[Episode]:
        """Those that decode or are being written, in order of place."""
        return [e for e in self.places[: self.sizes.rows[-1]] if e and e.search is None]

    def plan(self, open_next: Callable[[], Episode | None], share: int) -> None:
        """Give every decode row to one that can go on; `open_next` makes up to `share` new ones.

        Those with the most searches before them go first: the waits of all overlap with work then,
        where the last to begin would wait for search after search with nobody left beside them.
        """
        self.copies = []
        most = self.sizes.rows[-1]
        ready = [e for e in self.places[most:] if e and e.search is None]
        ready.sort(key=lambda e: (len(e.turns), e.asked))
        free = self.sizes.open - sum(e is not None for e in self.places)
        free = min(free, share)
        # Empty rows first: they need no copy.
        for place in sorted(range(most), key=lambda i: self.places[i] is not None):
            holder = self.places[place]
            if holder is not None and holder.search is None:
                continue
            if free and (new := open_next()) is not None:
                free -= 1
                self._give(place, new)
            elif ready:
                self._give(place, ready.pop(0))
        self._compact()

    def _give(self, place: int, episode: Episode) -> None:
        """Put an episode there; a waiting one that was there is parked."""
        if (waiting := self.places[place]) is not None:
            self._move(waiting, self.places.index(None))
        self._move(episode, place)

    def _compact(self) -> None:
        """Bring those that run to the front, if a smaller program will do then."""
        running = self.running()
        wanted = fitting(self.sizes.rows, len(running))
        holes = [i for i in range(wanted) if not (e := self.places[i]) or e.search]
        for episode in reversed(running):
            if episode.place < wanted:
                break
            self._give(holes.pop(0), episode)

    def _move(self, episode: Episode, place: int) -> None:
        if episode.place >= 0:
            self.places[episode.place] = None
            if episode.written:
                self.copies.append((episode.place, place))
        self.places[place], episode.place = episode, place

    def share_prompts(self) -> set[Episode]:
        """Copy written prompts to those that have the same; returns those that wait for one.

        A prompt that two are about to write is written by the first alone.
        """
        written = {e.key: e for e in self.open_episodes() if e.written >= e.prompt_len - 1}
        writers = {e.key: e for e in self.running() if 0 < e.written < e.prompt_len - 1}
        waiting = set()
        for episode in self.running():
            if episode.written or episode.prompt_len < 2:
                continue
            if (donor := written.get(episode.key)) is not None:
                self.copies.append((donor.place, episode.place))
                episode.written = episode.prompt_len - 1
            elif writers.setdefault(episode.key, episode) is not episode:
                waiting.add(episode)
        return waiting


def fitting(choices: tuple[int, ...], needed: int) -> int:
    """The smallest choice that is not below `needed`."""
    return next(c for c in choices if c >= needed)


class Letter(NamedTuple):
    """An inbox, the program that it needs, and who decodes."""

    inbox: decode.Inbox
    program: decode.Program
    decoding: list[tuple[int, Episode]]  # with the shard's number
    shared: int  # prompts copied from another slot

    @property
    def has_work(self) -> bool:
        return bool(self.decoding) or bool(self.inbox.chunks.any())


def write_inbox(shards: list[Shard], cfg: RolloutConfig, rules: Rules) -> Letter:
    """The next chunk of all that have tokens to write, and who decodes, on all shards."""
    inbox = decode.empty_inbox(len(shards), shards[0].sizes.slots, cfg.extend_tokens)
    decoding, longest, last_row, shared = [], 1, 0, 0
    for n, shard in enumerate(shards):
        moved = len(shard.copies)
        waiting = shard.share_prompts()
        shared += len(shard.copies) - moved
        row = 0
        for episode in shard.running():
            if episode in waiting:
                continue
            last_row = max(last_row, episode.place)
            row += _write_chunk(inbox, n, row, episode, cfg.extend_tokens)
            longest = max(longest, episode.written)
            if episode.written < len(episode.ids) - 1:
                continue
            _let_decode(inbox, n, episode, min(cfg.tick_tokens, rules.room(episode)))
            decoding.append((n, episode))
        inbox.chunks[n] = -(-row // decode.EXTEND_ROWS)
        inbox.copies[n] = len(shard.copies)
        for c, (source, target) in enumerate(shard.copies):
            inbox.source[n, c], inbox.target[n, c] = source, target
    rows = fitting(shards[0].sizes.rows, last_row + 1)
    program = decode.Program(rows, fitting(windows(cfg), longest))
    return Letter(inbox, program, decoding, shared)


def _write_chunk(inbox: decode.Inbox, n: int, row: int, episode: Episode, most: int) -> int:
    """Send the next tokens that the cache lacks; 1 if there were any."""
    end = min(len(episode.ids) - 1, episode.written + most)
    chunk = episode.ids[episode.written : end]
    if not chunk:
        return 0
    at = (n, *divmod(row, decode.EXTEND_ROWS))
    inbox.slot[at], inbox.start[at], inbox.count[at] = episode.place, episode.written, len(chunk)
    inbox.ids[at][: len(chunk)] = chunk
    # Rows at rest write at their length: past what is written, not where a former holder stood.
    place = (n, episode.place)
    inbox.length[place], inbox.last[place] = end, episode.ids[end]
    episode.written, episode.placed = end, False
    return 1


def _let_decode(inbox: decode.Inbox, n: int, episode: Episode, budget: int) -> None:
    at = (n, episode.place)
    inbox.decode[at], inbox.budget[at] = True, budget
    inbox.stream[at] = (episode.request.stream, episode.request.sample)
    if not episode.placed:
        inbox.length[at], inbox.last[at] = len(episode.ids) - 1, episode.ids[-1]
        episode.placed = True

"""Which trajectories are open, who decodes, which pages of the cache each holds.

A trajectory keeps its row while it can go on. One that waits for its search leaves the row to
another and keeps its pages, which cost no decode time. A group's prompt is written once; the pages
that it fills are shared, and the one that it ends in is copied. When pages run out nobody is
opened, and then they are taken from those that wait or came last, to be written again later.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from masksearch_jax.core.rollout_config import RolloutConfig
from masksearch_jax.rollout import decode
from masksearch_jax.rollout.decode import RolloutError
from masksearch_jax.rollout.episode import Episode, Request, Rules, key_of
from masksearch_jax.rollout.pages import PagePool
from masksearch_jax.rollout.sampling import Sampler, sampler_of


class Sizes(NamedTuple):
    """Of one shard: rows of each program, ascending; how many may be open; pages of the cache."""

    rows: tuple[int, ...]
    open: int
    pages: int
    page_tokens: int
    width: int  # pages of the longest trajectory
    # Pieces of prompts end where pages do, so that a prompt is cut alike from any page on. What is
    # computed of a token depends on its piece in the last bit.
    whole_pieces: bool = False


def sizes(cfg: RolloutConfig, shards: int) -> Sizes:
    """Sizes of each of `shards` equal shards. RolloutError for shards, shares or pages of none."""
    if cfg.slots < 1 or cfg.slots % shards:
        raise RolloutError(
            f"rollout.slots is {cfg.slots}; it must be a positive multiple of {shards}, the shards "
            "that the mesh and the processes split a batch into"
        )
    share = cfg.decode_share
    if not share or list(share) != sorted(set(share)) or not 0 < share[0] <= share[-1] <= 1:
        raise RolloutError(f"rollout.decode_share is {share}; it must ascend, above 0 and up to 1")
    if cfg.page_tokens < 1:
        raise RolloutError(f"rollout.page_tokens is {cfg.page_tokens}; it must be positive")
    open_ = cfg.slots // shards
    rows = tuple(sorted({max(1, round(s * open_)) for s in share}))
    width = math.ceil(cfg.max_len / cfg.page_tokens)
    pages = cfg.kv_tokens // (shards * cfg.page_tokens) if cfg.kv_tokens else open_ * width
    if pages < width:
        raise RolloutError(
            f"rollout.kv_tokens is {cfg.kv_tokens}; each of {shards} shards must hold one "
            f"trajectory of rollout.max_len {cfg.max_len} in pages of {cfg.page_tokens}: at least "
            f"{shards * width * cfg.page_tokens}, or 0 for {cfg.slots} of them"
        )
    if not 1 <= cfg.chunk_tokens <= cfg.extend_tokens:
        raise RolloutError(
            f"rollout.chunk_tokens is {cfg.chunk_tokens}; it must be from 1 to "
            f"rollout.extend_tokens, {cfg.extend_tokens}"
        )
    cut = cfg.page_tokens % cfg.chunk_tokens or cfg.extend_tokens % cfg.chunk_tokens
    return Sizes(rows, open_, pages, cfg.page_tokens, width, not cut)


class Shard:
    """The open trajectories of one shard, and what the next tick begins with."""

    def __init__(self, sizes: Sizes):
        self.sizes = sizes
        self.pool = PagePool(sizes.pages)
        self.episodes: list[Episode] = []  # open, in the order of opening
        self.rows: list[Episode] = []  # those of the next tick, in the order of their rows
        self.copies: list[tuple[int, int]] = []  # of pages, in order
        # Prompts copied, tokens of other prompts' beginnings, caches taken, since it was made.
        self.shared = self.prefix_tokens = self.evicted = 0

    def close(self, episode: Episode) -> None:
        """It has ended: its pages are free."""
        self.forget(episode)
        self.episodes = [e for e in self.episodes if e is not episode]
        self.rows = [e for e in self.rows if e is not episode]

    def forget(self, episode: Episode) -> None:
        """Take its cache, which will be written again."""
        self.pool.release(episode.pages)
        episode.forget_cache()

    def forget_all(self) -> None:
        self.pool = PagePool(self.sizes.pages)
        for episode in self.episodes:
            episode.forget_cache()

    # ---- a tick's rows

    def assign_rows(
        self,
        open_next: Callable[[Callable[[Request], bool]], Episode | None],
        share: int,
        reach: Callable[[Episode, int], int],
    ) -> None:
        """Fill the rows: those that had one and go on, then up to `share` new ones, then others.

        `open_next` opens the next request if it fits; reach(episode, written) is how many tokens
        of cache it needs by the end of the tick. Of those that come back from a search, the ones
        with the fewest go first: the waits of all overlap with work then, where the last to begin
        would wait for search after search with nobody left beside them.
        """
        had = set(self.rows)
        ready = [e for e in self.episodes if e.search is None]
        # Some wait for another to write their prompt, some have lost their pages: before new ones.
        first = [e for e in ready if e in had]
        first += [e for e in ready if e not in had and not (e.turns and e.written)]
        back = [e for e in ready if e not in had and e.turns and e.written]
        self.rows, self.copies = [], []
        had_pages = [self._seat(e, reach) for e in first]
        share = share if all(had_pages) else 0
        while share and len(self.rows) < self.sizes.rows[-1] and self.free:
            if (new := open_next(self._has_pages)) is None:
                break
            self.episodes.append(new)
            self._seat(new, reach, take=False)
            share -= 1
        for episode in sorted(back, key=lambda e: (len(e.turns), e.asked)):
            self._seat(episode, reach)

    @property
    def free(self) -> int:
        """How many more may be open."""
        return self.sizes.open - len(self.episodes)

    def _seat(
        self, episode: Episode, reach: Callable[[Episode, int], int], take: bool = True
    ) -> bool:
        """Give it a row, if there is one, unless another is about to write its prompt.

        False where the pages that it needs could not be had; with `take`, not even from others.
        """
        if len(self.rows) == self.sizes.rows[-1]:
            return True
        begins = not episode.written and episode.prompt_len > 1
        donor = self._donor(episode.key) if begins else None
        if begins and not donor and any(self._is_writing(e, episode.key) for e in self.rows):
            return True
        if begins and not donor:
            self._share_beginning(episode)
        if not self._make_room(episode, self._missing(episode, donor, reach), take):
            if begins and episode.written:  # what it shares is no use without the rest
                self.prefix_tokens -= episode.written
                self.forget(episode)
            return False
        if donor and not donor.written:  # its pages were taken just now
            donor = None
            if not self._make_room(episode, self._missing(episode, None, reach), take):
                return False
        if donor:
            self._share(donor, episode)
        missing = self._missing(episode, None, reach)
        episode.pages += self.pool.take(missing)
        self.rows.append(episode)
        return True

    def _missing(
        self, episode: Episode, donor: Episode | None, reach: Callable[[Episode, int], int]
    ) -> int:
        """Pages that it needs for the tick beyond its own and those that the donor shares."""
        page = self.sizes.page_tokens
        has = (episode.prompt_len - 1) // page if donor else len(episode.pages)
        written = episode.prompt_len - 1 if donor else episode.written
        return max(0, math.ceil(reach(episode, written) / page) - has)

    def _donor(self, key: bytes) -> Episode | None:
        """One whose cache holds this whole prompt."""
        return next(
            (e for e in self.episodes if e.key == key and e.written >= e.prompt_len - 1), None
        )

    @staticmethod
    def _is_writing(episode: Episode, key: bytes) -> bool:
        return episode.key == key and episode.written < episode.prompt_len - 1

    def _share(self, donor: Episode, episode: Episode) -> None:
        """The prompt's full pages by reference; the one that it ends in is copied."""
        full, rest = divmod(episode.prompt_len - 1, self.sizes.page_tokens)
        episode.pages = self.pool.share(donor.pages[:full])
        if rest:
            episode.pages += self.pool.take(1)
            self.copies.append((donor.pages[full], episode.pages[-1]))
        episode.written = episode.prompt_len - 1
        self.shared += 1

    def _share_beginning(self, episode: Episode) -> None:
        """The most full pages that its prompt begins with and another's does too, by reference.

        The instructions of a task, which all of its prompts begin with, are written once so.
        """
        if not self.sizes.whole_pieces:
            return
        most, donor = 0, episode
        for other in self.episodes:
            if (count := self._alike(other, episode)) > most:
                most, donor = count, other
        episode.pages = self.pool.share(donor.pages[:most])
        episode.written = most * self.sizes.page_tokens
        self.prefix_tokens += episode.written

    def _alike(self, donor: Episode, episode: Episode) -> int:
        """Full pages, from the first on, of both prompts that have the same tokens."""
        page = self.sizes.page_tokens
        written = min(donor.written, donor.prompt_len - 1) if donor.key else 0  # by these weights
        most = min(written, episode.prompt_len - 1) // page
        for i in range(most):
            if donor.ids[i * page : (i + 1) * page] != episode.ids[i * page : (i + 1) * page]:
                return i
        return most

    def _has_pages(self, request: Request) -> bool:
        """Whether the prompt finds pages free, and one more for each row in use to grow by."""
        page, key = self.sizes.page_tokens, key_of(request)
        length = len(request.prompt_ids)
        need = min(math.ceil(length / page), self.sizes.width)
        if any(e.key == key for e in self.episodes):
            need -= (length - 1) // page
        growing = sum(len(e.pages) < self.sizes.width for e in self.rows)
        return need + growing <= self.pool.free

    def _make_room(self, episode: Episode, count: int, take: bool) -> bool:
        """Whether so many pages are free, after taking those of others where that is allowed."""
        while self.pool.free < count:
            victim = self._victim(episode) if take else None
            if victim is None:
                return False
            self.forget(victim)
            self.evicted += 1
        return True

    def _victim(self, episode: Episode) -> Episode | None:
        """The last that began to wait; else the youngest, but younger than `episode`.

        So the oldest that can go on always does, and nobody is robbed in this tick's rows.
        """
        seated = {episode, *self.rows}
        others = [e for e in self.episodes if e.pages and e not in seated]
        if waiting := [e for e in others if e.search is not None]:
            return max(waiting, key=lambda e: e.asked)
        younger = self.episodes[self.episodes.index(episode) + 1 :]
        return next((e for e in reversed(younger) if e in others), None)


def fitting(choices: tuple[int, ...], needed: int) -> int:
    """The smallest choice that is not below `needed`."""
    return next(c for c in choices if c >= needed)


class Letter(NamedTuple):
    """An inbox, the rows of the program that it needs, and who decodes."""

    inbox: decode.Inbox[np.ndarray]
    rows: int
    decoding: list[tuple[tuple[int, int], Episode]]  # with the numbers of shard and row

    @property
    def has_work(self) -> bool:
        return bool(self.decoding) or bool(self.inbox.chunks.any())


def chunking(cfg: RolloutConfig) -> tuple[int, int, int]:
    """What `decode.empty_inbox` is told of the chunks that write prompts and observations."""
    return cfg.extend_tokens, cfg.chunk_tokens, cfg.chunk_rows


def reach(episode: Episode, written: int, cfg: RolloutConfig, rules: Rules) -> int:
    """Tokens that its cache may hold after a tick that finds `written` of them there."""
    end = min(len(episode.ids) - 1, written + cfg.extend_tokens)
    if end < len(episode.ids) - 1:
        return end
    return end + min(cfg.tick_tokens, max(rules.room(episode), 0))


def write_inbox(shards: list[Shard], cfg: RolloutConfig, rules: Rules) -> Letter:
    """The next tokens of all that have some to write, and who decodes, on all shards."""
    sizes = shards[0].sizes
    inbox = decode.empty_inbox(len(shards), sizes.rows[-1], sizes.width, *chunking(cfg))
    decoding = []
    for n, shard in enumerate(shards):
        inbox.chunks[n] = _write_chunks(inbox, n, shard.rows, cfg)
        for row, episode in enumerate(shard.rows):
            inbox.table[n, row, : len(episode.pages)] = episode.pages
            if episode.written == len(episode.ids) - 1:
                budget = min(cfg.tick_tokens, rules.room(episode))
                _let_decode(inbox, (n, row), episode, budget, sampler_of(cfg))
                decoding.append(((n, row), episode))
        inbox.copies[n] = len(shard.copies)
        for c, (src, dst) in enumerate(shard.copies):
            inbox.copy_from[n, c], inbox.copy_to[n, c] = src, dst
    rows = fitting(sizes.rows, max(1, *(len(shard.rows) for shard in shards)))
    return Letter(inbox, rows, decoding)


def _write_chunks(
    inbox: decode.Inbox[np.ndarray], n: int, rows: list[Episode], cfg: RolloutConfig
) -> int:
    """Send the next tokens that the caches of these rows lack, in as few chunks as can be.

    Cut into pieces of `chunk_tokens`, all pieces of all rows are laid along the lanes of as many
    chunks as that takes, one lane after the other. A row has no more pieces than there are chunks,
    so none has two of its own, and one piece finds those before it in the cache.
    """
    size, pieces = cfg.chunk_tokens, []
    for row, episode in enumerate(rows):
        end = min(len(episode.ids) - 1, episode.written + cfg.extend_tokens)
        pieces.append([(row, at, min(at + size, end)) for at in range(episode.written, end, size)])
    total = sum(map(len, pieces))
    chunks = max(-(-total // cfg.chunk_rows), *map(len, pieces), 0)
    first = 0
    for own in pieces:
        places = [divmod(i, chunks)[::-1] for i in range(first, first + len(own))]
        first += len(own)
        for place, (row, start, end) in zip(sorted(places), own, strict=True):
            at = (n, *place)
            inbox.row[at], inbox.start[at], inbox.count[at] = row, start, end - start
            inbox.ids[at][: end - start] = rows[row].ids[start:end]
            rows[row].written = end
    return chunks


def _let_decode(
    inbox: decode.Inbox[np.ndarray],
    at: tuple[int, int],
    episode: Episode,
    budget: int,
    sampler: Sampler,
) -> None:
    inbox.length[at], inbox.last[at] = len(episode.ids) - 1, episode.ids[-1]
    inbox.budget[at] = max(budget, 0)
    inbox.stream[at] = (episode.request.stream, episode.request.sample)
    inbox.sampler[at] = episode.request.sampler or sampler

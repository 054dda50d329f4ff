"""Batches for training, read from the cache through grain: packed rows for SFT, prompts for RL.

Every process plans the same global batch from the records' lengths and reads only the records of
its own rows, so a position is a small dict that means the same for any number of processes.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import grain
import numpy as np

from masksearch_jax.core import rows
from masksearch_jax.core.curriculum_config import SCHEDULE, LessonsConfig
from masksearch_jax.core.types import Example
from masksearch_jax.data import cache
from masksearch_jax.data.curriculum import Order, Place
from masksearch_jax.data.demonstrations import parse_example
from masksearch_jax.data.gate import Gate

SFT_FIELDS = {"ids": np.int32, "targets": np.int32, "loss_weights": np.float32}


class Prompt(NamedTuple):
    """ids int32[P] and the example that they ask for."""

    ids: np.ndarray
    example: Example


def sft_batches(
    manifest: cache.Manifest,
    curriculum: str,
    *,
    batch_size: int,
    seq_len: int,
    seed: int,
    context_loss_weight: float,
    context: int = 0,
    process_index: int = 0,
    process_count: int = 1,
    split: str = "train",
    prefetch: int = 0,
    lessons: LessonsConfig = SCHEDULE,
) -> grain.DatasetIterator[rows.Batch]:
    """An endless, checkpointable iterator of packed batches; batch_size rows over all processes.

    Processes that are to have the same rows have the same number (`hosts.share`).

    Each batch holds this process's rows, B = batch_size / process_count, T = seq_len: `ids`,
    `targets`, `positions`, `segment_ids` int32[B, T] (segment 0 is padding) and `loss_weights`
    float32[B, T]: 1 where the target was written by the agent, `context_loss_weight` where it was
    not, 0 where there is no next token in the segment. `get_state()` is a JSON-ready dict;
    `set_state` continues with bitwise the same batches, on any number of processes. `prefetch` > 0
    prepares that many batches in a thread. Raises CacheError for a record longer than `seq_len`, or
    than `context`, the tokens that the model's positions reach (0: any number).
    """
    own = _own_share(batch_size, process_index, process_count, "batch_size")
    order = Order(manifest, curriculum, split, "sft", seed, lessons=lessons)
    if not process_index:
        order.tell_absent()
    for records in order.records.values():
        if (longest := int(records.lengths.max())) > seq_len:
            raise cache.CacheError(
                f"{records.name} has a record of {longest} tokens, seq_len is {seq_len}; raise "
                "seq_len, or build the cache with a smaller max_len"
            )
        if 0 < context < longest:
            raise cache.CacheError(
                f"{records.name} has a record of {longest} tokens, and the model's context is of "
                f"{context} (config.model.max_position): build the cache with a smaller max_len"
            )
    made = _SftBatches(order, batch_size, own, seq_len, context_loss_weight, manifest.pad_id)
    return grain.experimental.ThreadPrefetchDatasetIterator(made, prefetch) if prefetch else made


def prompt_batches(
    manifest: cache.Manifest,
    curriculum: str,
    *,
    groups: int,
    seed: int,
    process_index: int = 0,
    process_count: int = 1,
    split: str = "train",
    max_len: int = 0,
    lessons: LessonsConfig = SCHEDULE,
) -> PromptBatches:
    """An endless, checkpointable iterator of lists of `Prompt`: `groups` a step, all processes.

    Prompts that leave no room to answer in `max_len` tokens (0: any number) are left out. Raises
    CacheError where all of a task are, and where a mixture has fewer prompts than `groups`: a step
    would sample some twice.
    """
    order = Order(manifest, curriculum, split, "prompt", seed, max_len, lessons)
    if not process_index:
        order.tell_absent()
        order.tell_unused("rl")
    for lesson in range(order.lessons):
        mixture, size = order.size(lesson)
        if size < groups:
            raise cache.CacheError(
                f"mixture {mixture!r} has {size} prompts; config.dapo.groups is {groups}, and a "
                "step would sample some twice: choose fewer groups or a larger mixture"
            )
    return PromptBatches(order, groups, process_index, process_count)


class PromptBatches(grain.DatasetIterator[list[Prompt]]):
    """Prompts of each RL step; `extra` draws more within a step, for groups that were dropped.

    The state counts what was drawn, so a restored iterator goes on with prompts not yet seen.
    `is_resting(id)` of an example leaves its prompt out for now; where the lesson has too few
    others, the first of those that rest make up for them. The first step that draws a prompt twice
    is told on stderr: its groups are of one prompt, and weigh double.
    """

    def __init__(self, order: Order, groups: int, process_index: int, process_count: int) -> None:
        super().__init__()
        _own_share(groups, process_index, process_count, "groups")
        self._order, self._groups = order, groups
        self._process = process_index, process_count
        self._place = Place()
        self.is_resting: Callable[[str], bool] | None = None
        self._step = 0  # the one whose prompts are drawn, from 1
        self._of_step: list[int] = []  # numbers of the records that it has drawn
        self._is_told = process_index > 0

    @property
    def gate(self) -> Gate:
        return self._order.gate

    def __next__(self) -> list[Prompt]:
        self._place = self._order.enter(self._place)
        self._step, self._of_step = self._place.step + 1, []
        prompts = self.extra(self._groups)
        self._place = self._place._replace(step=self._place.step + 1)
        return prompts

    def left_out(self) -> list[str]:
        """Ids of the examples whose prompts are too long."""
        return [
            parse_example(self._order.records[task][int(number)]["example"]).id
            for task, numbers in self._order.left_out.items()
            for number in numbers
        ]

    @property
    def total(self) -> int:
        """Prompts of all tasks of the curriculum, with those left out."""
        return sum(map(len, self._order.records.values()))

    def extra(self, groups: int) -> list[Prompt]:
        """This process's share of `groups` more prompts, from the mixture of the last step."""
        own = _own_share(groups, *self._process, "groups")
        drawn = self._draw(groups)
        self._of_step += [self._order.number(self._place.lesson, at) for at in drawn]
        self._tell_repeated()
        self._place = self._place._replace(next=drawn[-1] + 1 if drawn else self._place.next)
        return [self._prompt(self._place.lesson, drawn[i]) for i in own]

    def _tell_repeated(self) -> None:
        repeated = len(self._of_step) - len(set(self._of_step))
        if not repeated or self._is_told:
            return
        self._is_told = True
        mixture, size = self._order.size(self._place.lesson)
        print(
            f"  step {self._step} draws {repeated} of {len(self._of_step)} prompts "
            f"again: mixture {mixture!r} has {size} prompts, which refills and the end of an epoch "
            "go through; a larger mixture, fewer dapo.groups or dapo.max_refills repeat none "
            "(later steps are not told)",
            file=sys.stderr,
            flush=True,
        )

    def _draw(self, groups: int) -> list[int]:
        """Positions of the next prompts; with rests none twice, unless the lesson has too few."""
        lesson, start = self._place.lesson, self._place.next
        if self.is_resting is None:
            return list(range(start, start + groups))
        found: list[int] = []
        resting: list[int] = []
        names: set[str] = set()
        _, size = self._order.size(lesson)
        for position in range(start, start + size):
            name = parse_example(self._order.record(lesson, position)["example"]).id
            if name in names:
                continue
            names.add(name)
            (resting if self.is_resting(name) else found).append(position)
            if len(found) == groups:
                return found
        found += resting[: groups - len(found)]
        return sorted(found) if len(found) == groups else list(range(start, start + groups))

    def first(self, count: int) -> list[Prompt]:
        """The first `count` prompts of each lesson of the curriculum; draws none."""
        lessons = range(self._order.lessons)
        return [self._prompt(lesson, i) for lesson in lessons for i in range(count)]

    def _prompt(self, lesson: int, position: int) -> Prompt:
        record = self._order.record(lesson, position)
        return Prompt(record["ids"], parse_example(record["example"]))

    def get_state(self) -> dict[str, Any]:
        return self._order.to_state(self._place)

    def set_state(self, state: dict[str, Any]) -> None:
        self._place = self._order.from_state(state)


class _SftBatches(grain.DatasetIterator[rows.Batch]):
    """The iterator behind `sft_batches`: plans the global batch, reads its own rows."""

    def __init__(
        self,
        order: Order,
        batch_size: int,
        own: range,
        seq_len: int,
        context_loss_weight: float,
        pad_id: int,
    ) -> None:
        super().__init__()
        self._order, self._batch_size, self._own = order, batch_size, own
        self._seq_len, self._context_weight, self._pad_id = seq_len, context_loss_weight, pad_id
        self._place = Place()

    def __next__(self) -> rows.Batch:
        place = self._order.enter(self._place)
        filled = rows.fill_rows(
            lambda position: self._order.length(place.lesson, position),
            place.next,
            place.pending,
            rows=self._batch_size,
            seq_len=self._seq_len,
            shortest=self._order.shortest(place.lesson),
        )
        own = [
            [self._tokens(place.lesson, position) for position in members]
            for members in filled.rows[self._own.start : self._own.stop]
        ]
        self._place = Place(place.step + 1, place.lesson, filled.next, filled.pending)
        return rows.lay(own, self._seq_len, SFT_FIELDS, self._pad_id)

    def _tokens(self, lesson: int, position: int) -> rows.Tokens:
        return sft_tokens(self._order.record(lesson, position), self._context_weight, self._pad_id)

    @property
    def gate(self) -> Gate:
        return self._order.gate

    def get_state(self) -> dict[str, Any]:
        return self._order.to_state(self._place)

    def set_state(self, state: dict[str, Any]) -> None:
        self._place = self._order.from_state(state)


def sft_tokens(record: cache.Record, context_weight: float, padding: int) -> rows.Tokens:
    """A record's fields for SFT, `SFT_FIELDS`; its last token has no target."""
    ids, weights = record["ids"], np.where(record["agent"], 1.0, context_weight)
    return {
        "ids": ids,
        "targets": np.append(ids[1:], padding),
        "loss_weights": np.append(weights[1:], 0.0),
    }


def _own_share(total: int, process_index: int, process_count: int, name: str) -> range:
    """The part of a global batch that this process holds."""
    if total % process_count or not 0 <= process_index < process_count:
        raise cache.CacheError(
            f"{name}={total} must be a multiple of the {process_count} processes, and process "
            f"{process_index} one of them"
        )
    own = total // process_count
    return range(process_index * own, (process_index + 1) * own)

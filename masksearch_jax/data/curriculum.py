"""The order in which a run reads its records: stages of a curriculum, mixtures, epochs, positions.

A function of (seed, curriculum, cache) alone, addressed by position: nothing depends on the number
of processes, and going back to a position costs nothing.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import grain
import numpy as np

from masksearch_jax.data import cache


class Stage(NamedTuple):
    """From `step` on, `mixture` is in force."""

    step: int
    mixture: str


class Place(NamedTuple):
    """Where a stream stands: batches given, the stage in force, positions in that stage's order."""

    step: int = 0
    stage: int = 0
    next: int = 0
    pending: tuple[int, ...] = ()


def parse_curriculum(text: str, names: Iterable[str]) -> tuple[Stage, ...]:
    """Stages of "0:mixture,200:mixture", steps rising from 0, mixtures among `names`.

    Raises CacheError that quotes the faulty part and the rule, and the nearest name.
    """
    names = list(names)
    where = f"curriculum {text!r}"
    stages: list[Stage] = []
    for part in text.split(","):
        step, colon, mixture = (s.strip() for s in part.partition(":"))
        if not colon or not step.isdecimal():
            raise cache.CacheError(
                f"{where}: {part!r} is not STEP:MIXTURE, as in '0:ramp_sft_upto1'"
            )
        if mixture not in names:
            raise cache.CacheError(
                f"{where}: the cache {cache.unknown('mixture or task', mixture, names)}"
            )
        if int(step) <= stages[-1].step if stages else int(step) != 0:
            raise cache.CacheError(f"{where}: steps must rise from 0, {part!r} does not")
        stages.append(Stage(int(step), mixture))
    return tuple(stages)


class Order:
    """The records of a cache in the order of a curriculum: `record(stage, position)`.

    Records of `max_len` tokens or more (0: of any number) are in no stage; `left_out` has them, by
    task. Raises CacheError for a mixture that is not there, holds the other kind of records, or
    none.
    """

    def __init__(
        self,
        manifest: cache.Manifest,
        curriculum: str,
        split: str,
        kind: cache.Kind,
        seed: int,
        max_len: int = 0,
    ) -> None:
        self._stages = parse_curriculum(curriculum, manifest.names())
        self.sources: dict[str, cache.Source] = {}
        self.left_out: dict[str, np.ndarray] = {}
        self._orders: list[_StageOrder] = []
        self._hashes: list[str] = []
        for index, stage in enumerate(self._stages):
            rates = _tasks_of(manifest, stage.mixture, split, kind)
            for task in rates:
                if task not in self.sources:
                    self._open(manifest, task, split, max_len)
            tasks = [
                _Task(self.sources[task], rate, self.left_out[task]) for task, rate in rates.items()
            ]
            made_of = [[t, r, manifest.tasks[t][split].made_from] for t, r in rates.items()]
            left_out = {t: self.left_out[t].tolist() for t in rates if len(self.left_out[t])}
            made_of += [left_out] if left_out else []
            self._orders.append(_StageOrder(tasks, f"{seed}/{index}/{stage.mixture}"))
            self._hashes.append(f"{_hash(str(seed), stage.mixture, json.dumps(made_of)):08x}")

    def _open(self, manifest: cache.Manifest, task: str, split: str, max_len: int) -> None:
        self.sources[task] = source = manifest.open(task, split)
        long = source.lengths >= (max_len or np.inf)
        self.left_out[task] = np.flatnonzero(long)
        if long.all():
            raise cache.CacheError(
                f"{source.name} has no prompt of fewer than {max_len} tokens (rollout.max_len), "
                "which must leave room to answer; raise it, or build the cache with a smaller "
                "max_prompt_len"
            )

    @property
    def stages(self) -> int:
        return len(self._stages)

    def size(self, stage: int) -> tuple[str, int]:
        """A stage's mixture, and how many records it has."""
        return self._stages[stage].mixture, self._orders[stage].size

    def enter(self, place: Place) -> Place:
        """The place itself, or the start of the next stage when its step has come."""
        stage = max(i for i, s in enumerate(self._stages) if s.step <= place.step)
        return place if stage == place.stage else Place(place.step, stage)

    def length(self, stage: int, position: int) -> int:
        """Tokens of a record, without reading it."""
        order = self._orders[stage]
        return int(order.lengths[order.number(position)])

    def shortest(self, stage: int) -> int:
        return int(self._orders[stage].lengths.min())

    def record(self, stage: int, position: int) -> cache.Record:
        return self._orders[stage].record(position)

    def to_state(self, place: Place) -> dict[str, Any]:
        """The place as a JSON-ready dict, with a hash of the order that it counts in."""
        state = place._asdict() | {"pending": list(place.pending)}
        return state | {"order": self._hashes[place.stage]}

    def from_state(self, state: dict[str, Any]) -> Place:
        """The inverse of `to_state`. Raises CacheError for a state that counts in another order."""
        place = Place(**{k: state[k] for k in Place._fields})
        if place.stage >= self.stages or state["order"] != self._hashes[place.stage]:
            raise cache.CacheError(
                f"data position of step {place.step} counts in another order (stage {place.stage} "
                f"of {self.stages}): seed, curriculum so far and cache must be those it was saved "
                "with"
            )
        return place._replace(pending=tuple(place.pending))


class _Task(NamedTuple):
    """What a stage takes of a task, at which rate, without the records of these numbers."""

    source: cache.Source
    rate: float
    left_out: np.ndarray


class _StageOrder:
    """The endless order of one stage: position → record number, over the sources side by side.

    Each task is shuffled anew every epoch; tasks alternate in proportion to their rates.
    """

    def __init__(self, tasks: Sequence[_Task], seed: str) -> None:
        self._sources = [task.source for task in tasks]
        self._starts = np.cumsum([0, *(len(s) for s in self._sources)])
        self.lengths = np.concatenate([s.lengths for s in self._sources])
        used = [np.delete(np.arange(len(task.source)), task.left_out) for task in tasks]
        self._used = np.concatenate(
            [start + numbers for start, numbers in zip(self._starts[:-1], used, strict=True)]
        )
        shuffled = self._shuffled(seed, [len(numbers) for numbers in used])
        mixed = grain.MapDataset.mix(list(shuffled), [task.rate for task in tasks])
        # A position is asked for while planning, again while it waits for room, and when read.
        self.number = functools.lru_cache(maxsize=8192)(lambda at: int(self._used[mixed[at]]))

    @property
    def size(self) -> int:
        return len(self._used)

    def _shuffled(self, seed: str, sizes: Sequence[int]) -> Iterator[grain.MapDataset[int]]:
        """Of each task, places in `_used`."""
        end = 0
        for source, size in zip(self._sources, sizes, strict=True):
            start, end = end, end + size
            places = grain.MapDataset.range(start, end)
            yield places.seed(_hash(seed, source.name)).shuffle().repeat()

    def record(self, position: int) -> cache.Record:
        number = self.number(position)
        source = int(np.searchsorted(self._starts, number, side="right")) - 1
        return self._sources[source][number - int(self._starts[source])]


def _tasks_of(
    manifest: cache.Manifest, mixture: str, split: str, kind: cache.Kind
) -> dict[str, float]:
    """Tasks and rates of a mixture that have records in `split`. Raises CacheError for none."""
    rates = {}
    for task, rate in manifest.rates(mixture).items():
        found = manifest.tasks[task].get(split)
        if found is not None and found.kind != kind:
            raise cache.CacheError(
                f"mixture {mixture!r} holds {found.kind!r} records (task {task!r}), {kind!r} are "
                "needed: ramp_sft_* and qa_sft_* are for SFT, the others for RL"
            )
        if found is not None and found.records:
            rates[task] = rate
    if not rates:
        raise cache.CacheError(f"mixture {mixture!r} has no records in split {split!r}")
    return rates


def _hash(*parts: str) -> int:
    """32 bits that depend on all parts, the same on every machine."""
    return int.from_bytes(hashlib.sha256("\0".join(parts).encode()).digest()[:4], "big")

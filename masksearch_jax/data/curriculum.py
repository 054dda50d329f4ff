"""The order in which a run reads its records: lessons of a curriculum, mixtures, epochs, positions.

A function of (seed, curriculum, cache) alone, addressed by position: nothing depends on the number
of processes, and going back to a position costs nothing.
"""

from __future__ import annotations

import functools
import hashlib
import json
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import grain
import numpy as np

from masksearch_jax.core.curriculum_config import SCHEDULE, LessonsConfig, check_lessons
from masksearch_jax.data import cache
from masksearch_jax.data.gate import Gate


class Lesson(NamedTuple):
    """From `step` on, `mixture` is in force."""

    step: int
    mixture: str


class Place(NamedTuple):
    """Where a stream stands: batches given, the stretch in force, positions in its order.

    A stretch is a lesson but where rates are measured, see `gate`.
    """

    step: int = 0
    lesson: int = 0
    next: int = 0
    pending: tuple[int, ...] = ()


def parse_curriculum(text: str, names: Iterable[str]) -> tuple[Lesson, ...]:
    """Lessons of "0:mixture,200:mixture", steps rising from 0, mixtures among `names`.

    Raises CacheError that quotes the faulty part and the rule, and the nearest name.
    """
    names = list(names)
    where = f"curriculum {text!r}"
    lessons: list[Lesson] = []
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
        if int(step) <= lessons[-1].step if lessons else int(step) != 0:
            raise cache.CacheError(f"{where}: steps must rise from 0, {part!r} does not")
        lessons.append(Lesson(int(step), mixture))
    return tuple(lessons)


class Order:
    """The records of a cache in the order of a curriculum: `record(lesson, position)`.

    Records of `max_len` tokens or more (0: of any number) are in no lesson; `left_out` has them, by
    task. `absent`: of each mixture, its tasks that have no records. `gate` says which lesson, or
    stretch, is in force. Raises CacheError for a mixture that is not there, holds the other kind of
    records, or none; ConfigError for a gate that cannot pass.
    """

    def __init__(
        self,
        manifest: cache.Manifest,
        curriculum: str,
        split: str,
        kind: cache.Kind,
        seed: int,
        max_len: int = 0,
        lessons: LessonsConfig = SCHEDULE,
    ) -> None:
        check_lessons(lessons)
        self._lessons = parse_curriculum(curriculum, manifest.names())
        self._manifest, self._split, self._seed = manifest, split, seed
        self.records: dict[str, cache.Records] = {}
        self.left_out: dict[str, np.ndarray] = {}
        own = [_tasks_of(manifest, lesson.mixture, split, kind) for lesson in self._lessons]
        self.absent = {
            mixture: found
            for (_, mixture), rates in zip(self._lessons, own, strict=True)
            if (found := [t for t in manifest.rates(mixture) if t not in rates])
        }
        for task in dict.fromkeys(task for rates in own for task in rates):
            self._open(manifest, task, split, max_len)
        tasks = [_with_earlier(own[: i + 1], lessons.keep_earlier) for i in range(len(own))]
        self.gate = Gate(lessons, own, tasks, [lesson.step for lesson in self._lessons])
        self._tasks = tasks
        # Where rates are measured there are ever more stretches, each as large as its records.
        self._order = functools.lru_cache(maxsize=len(own) + 1)(self._made_order)

    def _made_order(self, index: int) -> _LessonOrder:
        """The order of a stretch."""
        stretch = self.gate.stretches[index]
        mixture = self._lessons[stretch.lesson].mixture
        rates = stretch.rates or self._tasks[stretch.lesson]
        tasks = [_Task(self.records[t], rate, self.left_out[t]) for t, rate in rates.items()]
        made_from = {t: self._manifest.tasks[t][self._split].made_from for t in rates}
        made_of: list[Any] = [[t, rate, made_from[t]] for t, rate in rates.items()]
        left_out = {t: self.left_out[t].tolist() for t in rates if len(self.left_out[t])}
        made_of += [left_out] if left_out else []
        fingerprint = f"{_hash(str(self._seed), mixture, json.dumps(made_of)):08x}"
        return _LessonOrder(tasks, f"{self._seed}/{index}/{mixture}", fingerprint)

    def _open(self, manifest: cache.Manifest, task: str, split: str, max_len: int) -> None:
        self.records[task] = records = manifest.open(task, split)
        long = records.lengths >= (max_len or np.inf)
        self.left_out[task] = np.flatnonzero(long)
        if long.all():
            raise cache.CacheError(
                f"{records.name} has no prompt of fewer than {max_len} tokens (rollout.max_len), "
                "which must leave room to answer; raise it, or build the cache with a smaller "
                "max_prompt_len"
            )

    def tell_absent(self) -> None:
        """A line on stderr for each mixture that lacks the records of a task."""
        for mixture, tasks in self.absent.items():
            print(
                f"  mixture {mixture!r} has no records of {', '.join(tasks)} in split "
                f"{self._split!r}: its lessons are of the others alone",
                file=sys.stderr,
                flush=True,
            )

    def tell_unused(self, split: str) -> None:
        """A line on stderr where the tasks have records in `split`, and another one is read."""
        splits = [self._manifest.tasks[task].get(split) for task in self.records]
        unused = sum(found.records for found in splits if found)
        if unused and split != self._split:
            print(
                f"  split {split!r} has {unused:,} records of the curriculum's tasks, and this run "
                f"reads split {self._split!r}",
                file=sys.stderr,
                flush=True,
            )

    @property
    def lessons(self) -> int:
        return len(self._lessons)

    def size(self, lesson: int) -> tuple[str, int]:
        """A stretch's mixture, and how many records it has."""
        mixture = self._lessons[self.gate.stretches[lesson].lesson].mixture
        return mixture, self._order(lesson).size

    def enter(self, place: Place) -> Place:
        """The place itself, or the start of the stretch that is in force from its step on."""
        lesson = self.gate.enter(place.step)
        return place if lesson == place.lesson else Place(place.step, lesson)

    def length(self, lesson: int, position: int) -> int:
        """Tokens of a record, without reading it."""
        order = self._order(lesson)
        return int(order.lengths[order.number(position)])

    def number(self, lesson: int, position: int) -> int:
        """Which record of its lesson stands at a position: each once an epoch."""
        return self._order(lesson).number(position)

    def shortest(self, lesson: int) -> int:
        return int(self._order(lesson).lengths.min())

    def record(self, lesson: int, position: int) -> cache.Record:
        return self._order(lesson).record(position)

    def to_state(self, place: Place) -> dict[str, Any]:
        """The place as a JSON-ready dict, with a hash of the order that it counts in."""
        found = {
            "step": place.step,
            "stage": place.lesson,  # the key in the checkpoints of all versions
            "next": place.next,
            "pending": list(place.pending),
            "order": self._order(place.lesson).fingerprint,
        }
        gate = self.gate.state()
        return found | ({"gate": gate} if gate else {})

    def from_state(self, state: dict[str, Any]) -> Place:
        """The inverse of `to_state`. Raises CacheError for a state that counts in another order."""
        place = Place(state["step"], state["stage"], state["next"], tuple(state["pending"]))
        self.gate.restore(state.get("gate", {}), place.step)
        self._order.cache_clear()
        is_known = place.lesson < len(self.gate.stretches)
        if not is_known or state["order"] != self._order(place.lesson).fingerprint:
            raise cache.CacheError(
                f"data position of step {place.step} counts in another order (lesson "
                f"{place.lesson} of {self.lessons}): seed, curriculum so far and cache must be "
                "those it was saved with"
            )
        return place


def _with_earlier(own: Sequence[Mapping[str, float]], share: float) -> dict[str, float]:
    """Tasks and rates of the last lesson, with a share of the lessons before, in equal parts."""
    *earlier, last = own
    if not earlier or not share:
        return dict(last)
    found: dict[str, float] = {}
    parts = [(rates, share / len(earlier)) for rates in earlier] + [(last, 1 - share)]
    for rates, part in parts:
        for task, rate in rates.items():
            found[task] = found.get(task, 0.0) + part * rate / sum(rates.values())
    return found


class _Task(NamedTuple):
    """What a lesson takes of a task, at which rate, without the records of these numbers."""

    records: cache.Records
    rate: float
    left_out: np.ndarray


class _LessonOrder:
    """The endless order of one lesson: position → record number, over the tasks side by side.

    Each task is shuffled anew every epoch; tasks alternate in proportion to their rates.
    """

    def __init__(self, tasks: Sequence[_Task], seed: str, fingerprint: str) -> None:
        self.fingerprint = fingerprint  # of what it is made of
        self._records = [task.records for task in tasks]
        self._starts = np.cumsum([0, *(len(s) for s in self._records)])
        self.lengths = np.concatenate([s.lengths for s in self._records])
        used = [np.delete(np.arange(len(task.records)), task.left_out) for task in tasks]
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
        for records, size in zip(self._records, sizes, strict=True):
            start, end = end, end + size
            places = grain.MapDataset.range(start, end)
            yield places.seed(_hash(seed, records.name)).shuffle().repeat()

    def record(self, position: int) -> cache.Record:
        number = self.number(position)
        task = int(np.searchsorted(self._starts, number, side="right")) - 1
        return self._records[task][number - int(self._starts[task])]


def _tasks_of(
    manifest: cache.Manifest, mixture: str, split: str, kind: cache.Kind
) -> dict[str, float]:
    """Tasks and rates of a mixture that have records in `split`. Raises CacheError for none."""
    rates, longer = {}, 0
    asked = manifest.rates(mixture)
    if not asked:  # the cache leaves tasks that kept nothing out of a mixture, so it may be any
        found = (splits[split] for splits in manifest.tasks.values() if split in splits)
        longer = sum(s.dropped for s in found if s.kind == kind and not s.records)
    for task, rate in asked.items():
        found = manifest.tasks[task].get(split)
        if found is not None and found.kind != kind:
            raise cache.CacheError(
                f"mixture {mixture!r} holds {found.kind!r} records (task {task!r}), {kind!r} are "
                "needed: ramp_sft_* and qa_sft_* are for SFT, the others for RL"
            )
        longer += found.dropped if found is not None else 0
        if found is not None and found.records:
            rates[task] = rate
    if not rates:
        raise cache.CacheError(_without_records(manifest, mixture, split, kind, longer))
    return rates


def _without_records(
    manifest: cache.Manifest, mixture: str, split: str, kind: cache.Kind, longer: int
) -> str:
    """What a lesson lacks, and where there is some. longer: records that had no room."""

    def has_records(name: str, split: str) -> bool:
        found = (manifest.tasks[task].get(split) for task in manifest.rates(name))
        return any(s is not None and s.kind == kind and s.records for s in found)

    where = f"curriculum: mixture {mixture!r} has no {kind!r} records in split {split!r}"
    if longer:
        key = "max_prompt_len" if kind == "prompt" else "max_len"
        return f"{where}: {longer} were too long for it; give build_cache a larger config.{key}"
    splits = sorted({name for found in manifest.tasks.values() for name in found})
    if others := [repr(name) for name in splits if has_records(mixture, name)]:
        key = " (config.dapo.split)" if kind == "prompt" else ""
        return f"{where}; it has them in {', '.join(others)}{key}"
    choices = [name for name in manifest.names() if has_records(name, split)]
    return f"{where}; choices: {', '.join(choices) or 'none'}"


def _hash(*parts: str) -> int:
    """32 bits that depend on all parts, the same on every machine."""
    return int.from_bytes(hashlib.sha256("\0".join(parts).encode()).digest()[:4], "big")

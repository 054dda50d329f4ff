"""How items become trajectories: one retrieval before where the method has one, then a sampler."""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np

from masksearch_jax.core.config import EvalRun, SearchConfig
from masksearch_jax.core.retrieval import SearchError, SearchTool
from masksearch_jax.core.rollout_config import RolloutConfig
from masksearch_jax.core.tokenizer import Vocabulary
from masksearch_jax.core.types import NOT_ITS_DOING, Trajectory, Turn
from masksearch_jax.data import methods
from masksearch_jax.data.methods import Retrieved
from masksearch_jax.evals.items import Item
from masksearch_jax.evals.lost import Lost, LostItemsError, named
from masksearch_jax.runtime.call_pool import Call, CallPool

_AT_ONCE = 8  # retrievals that a worker is given together
# Items that tools failed with none between them that did not, and seconds since the first: more of
# both, and a service is down. Many are in flight, and all fail at once in a short outage.
OUTAGE, OUTAGE_SECONDS = 32, 60.0
NO_FAULT = "ended for no fault of the model"
AGAIN = "what is done is kept, and the same command asks for the others again"


class Asked(NamedTuple):
    """An item as it is asked: with what was retrieved for it, where its method retrieves."""

    item: Item
    retrieved: Retrieved | None = None


class Sampled(NamedTuple):
    """A trajectory of an item. tokens: that its model wrote, where no ids tell."""

    item: Item
    trajectory: Trajectory
    tokens: int | None = None


class Sampler(Protocol):
    """Hands a trajectory of each asked item to `each`, as it ends, until that returns False."""

    def __call__(self, asked: Sequence[Asked], each: Callable[[Sampled], bool]) -> None: ...


class Prepare(Protocol):
    """`prepare` of one method. most: items that a process has. goes_on: whether more is asked."""

    def __call__(
        self, items: Sequence[Item], most: int, goes_on: Callable[[], bool]
    ) -> Iterable[Asked | Sampled]: ...


Gather = Callable[[Any], list[Any]]  # what each process has, as all of them call it


def rollout_of(cfg: EvalRun, method: str) -> RolloutConfig:
    """Of evaluation rollouts; a method without searches ends at the first turn."""
    found = dataclasses.replace(cfg.rollout, temperature=cfg.eval.temperature)
    if method in methods.SINGLE_TURN:
        return dataclasses.replace(found, max_turns=0, corrections=0)
    return found


def shown_of(search: SearchConfig) -> SearchConfig:
    """The search section whose source passage each request names, or names none."""
    return dataclasses.replace(search, exclude_source=True)


def prepare(
    method: str,
    tool: SearchTool,
    search: SearchConfig,
    fits: Callable[[Item, str], bool],
    check: Callable[[], None],
    items: Sequence[Item],
    most: int,
    goes_on: Callable[[], bool],
) -> Iterator[Asked | Sampled]:
    """The items of a method as they are asked; one whose retrieval failed as a trajectory.

    A few are retrieved at once, and `check` is called between, equally often on all processes: a
    caller that hears of an outage, or of a preemption, need not wait for the others.
    """

    def retrieve(item: Item) -> Retrieved:
        return methods.retrieve(
            tool, item.example, search, item.hidden, functools.partial(fits, item)
        )

    def asked(item: Item, call: Call[Retrieved]) -> Asked | Sampled:
        try:
            return Asked(item, pool.wait(call, search.timeout))
        except (SearchError, OSError) as error:  # TimeoutError is an OSError
            query = methods.query_of(item.example)
            turn = Turn((query,), (), (), 0.0, f"{type(error).__name__}: {error}")
            return Sampled(item, ended(item, turn))

    if method != "rag":
        yield from map(Asked, items)
        return
    pool: CallPool[Retrieved] = CallPool(search.workers)
    try:
        few = _AT_ONCE * search.workers
        for start in range(0, most, few):
            check()
            if goes_on():
                some = items[start : start + few]
                calls = [pool.submit(functools.partial(retrieve, item)) for item in some]
                yield from map(asked, some, calls)
    finally:
        pool.close()


def ended(item: Item, turn: Turn) -> Trajectory:
    """A trajectory without a token: a tool has failed before the first."""
    ids = np.zeros(0, np.int32)
    nothing = np.zeros(0, np.float32)
    none = np.zeros(0, np.bool_)
    return Trajectory(
        item.example.id, 0, ids, nothing, none, ids, 0, (), (turn,), "tool_failure", 0.0
    )


def room_of(cfg: EvalRun, vocab: Vocabulary | None) -> Callable[[Item, str], bool]:
    """Whether an `<information>` block has room in an item's prompt; an endpoint has any."""

    def has_room(item: Item, block: str) -> bool:
        if vocab is None:
            return True
        left = cfg.rollout.max_len - len(item.prompt_ids) - 1 - cfg.rollout.answer_tokens
        room = min(cfg.rollout.max_observation_tokens, left)
        return len(vocab.encode(block, literal=True)) <= room

    return has_room


class _Row:
    """Items that a tool failed, one after the other. `tell` hears of their number, 0 at its end."""

    def __init__(self, tell: Callable[[int, str], None]):
        self.length, self._tell, self._since = 0, tell, 0.0

    def add(self, error: str) -> None:
        self._since = self._since if self.length else time.monotonic()
        self.length += 1
        self._tell(self.length, error)

    def end(self) -> None:
        if self.length:
            self._tell(0, "")
        self.length = 0

    def is_outage(self) -> bool:
        return self.length >= OUTAGE and time.monotonic() - self._since >= OUTAGE_SECONDS


def ask(
    sampler: Sampler,
    prepared: Prepare,
    items: Sequence[Item],
    retries: int,
    allowed: float,
    keep: Callable[[Sampled, int], None],
    gather: Gather,
    tell: Callable[[int, str], None] = lambda failures, error: None,
) -> list[Lost]:
    """Hands a trajectory of each item, of one suite and method, to `keep`, and attempts before it.

    items: this process's; all must call it. One that ended for no fault of the model is sampled
    again, `retries` times at most; the items of which none ended otherwise are returned. `tell`
    hears how many a tool failed one after the other, 0 once one ends otherwise, and why. Raises
    LostItemsError, on all processes, where that is an outage (`OUTAGE`) in the first attempt, and
    more than `allowed` of a process's items are lost.
    """
    left = {item.example.id: item for item in items}
    lost: dict[str, Lost] = {}
    attempt, outage, row = 0, "", _Row(tell)

    def each(sampled: Sampled) -> bool:
        nonlocal outage
        item, trajectory = sampled.item, sampled.trajectory
        if trajectory.status not in NOT_ITS_DOING:
            keep(sampled, attempt)
            row.end()
            return not outage
        error = trajectory.turns[-1].error if trajectory.turns else ""
        lost[item.example.id] = Lost(*item.name, trajectory.status, error)
        if trajectory.status == "tool_failure":
            row.add(error)
        if not (attempt or outage) and row.is_outage() and len(lost) > allowed:
            said = f"{row.length} items in a row {NO_FAULT}"
            outage = f"{said}: {named(list(lost.values()))}; {AGAIN}"
        return not outage

    for number in range(retries + 1):
        if not (most := max(gather(len(left)))):
            break
        row.end()
        attempt, lost = number, {}
        asked: list[Asked] = []
        for one in prepared(list(left.values()), most, lambda: not outage):
            if isinstance(one, Sampled):
                each(one)
            else:
                asked.append(one)
                row.end()
        _check_outages(gather(outage))
        sampler(asked, each)
        _check_outages(gather(outage))
        left = {name: item for name, item in left.items() if name in lost}
    row.end()
    return list(lost.values())


def _check_outages(outages: Sequence[str]) -> None:
    """Raises LostItemsError where a process says that a service is down."""
    if said := next(filter(None, outages), ""):
        raise LostItemsError(said)

"""What a study takes before it is run: things to make, updates, tokens, seconds and disk.

Seconds are linear in the work: costs of units, measured on what is done or given by the config.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from masksearch_jax import plan
from masksearch_jax.core.config import (
    ComputeConfig,
    DapoConfig,
    ModelConfig,
    OptimConfig,
    SftConfig,
    SurvivalConfig,
)
from masksearch_jax.core.errors import ConfigError, nearest
from masksearch_jax.evals.suites import number_of
from masksearch_jax.planning import flops
from masksearch_jax.quickstart import QuickstartRun

# What has a cost → the unit that its seconds are of.
UNITS = {
    "text": "a text with its index and demonstrations",
    "tokenizer": "a tokenizer",
    "cache": "a cache",
    "sft": "1,000 tokens of rows",
    "dapo": "a trajectory that is trained on",
    "evaluate": "an item",
}
Costs = Mapping[str, float]  # of UNITS, in seconds


class State(NamedTuple):
    """What decides how large the checkpoints of a training are, and how many it keeps."""

    model: ModelConfig
    compute: ComputeConfig
    optim: OptimConfig
    survival: SurvivalConfig
    keep: int


class Work(NamedTuple):
    """What making a thing takes.

    amounts: (a key of UNITS, how many units), the main one first. tokens: of rows, or of
    trajectories at their longest. flops: that its updates need at least. state: what a training
    keeps.
    """

    amounts: tuple[tuple[str, float], ...]
    updates: int = 0
    tokens: int = 0
    flops: float = 0.0
    state: State | None = None


def of_evaluation(cfg: QuickstartRun) -> Work:
    """Of an arm's evaluation, which asks by one method."""
    names = [spec.partition("=")[0] for spec in cfg.eval.suites]
    items = sum(number_of(cfg.eval, name) for name in names)
    return Work((("evaluate", items),))


def of_sft(cfg: QuickstartRun, sft: SftConfig, optim: OptimConfig) -> Work:
    tokens = sft.steps * sft.batch_size * sft.seq_len
    needed = flops.of_training(cfg.model, tokens, sft.seq_len)
    amounts = (("sft", tokens / 1000), _heldout(cfg))
    return Work(amounts, sft.steps, tokens, needed, _state(cfg, optim))


def of_dapo(cfg: QuickstartRun, dapo: DapoConfig, optim: OptimConfig) -> Work:
    """Without refills, of which there may be `max_refills` less one."""
    trajectories = dapo.steps * dapo.groups * dapo.group_size
    length = cfg.rollout.max_len
    tokens = trajectories * length
    needed = flops.of_training(cfg.model, tokens, length)
    needed += flops.of_forward(cfg.model, tokens, length)  # to sample them
    amounts = (("dapo", trajectories), _heldout(cfg))
    updates = dapo.steps * dapo.minibatches
    return Work(amounts, updates, tokens, needed, _state(cfg, optim))


def _heldout(cfg: QuickstartRun) -> tuple[str, float]:
    """Held-out items that a training is measured on: of each number of masks, and questions."""
    kinds = cfg.ramp.max_masks + 1
    return "evaluate", float(cfg.heldout_points * cfg.heldout_examples * kinds)


def _state(cfg: QuickstartRun, optim: OptimConfig) -> State:
    return State(cfg.model, cfg.compute, optim, cfg.survival, max(1, cfg.checkpoint.keep))


def disk(works: Iterable[Work]) -> int:
    """Bytes of the checkpoints that trainings keep: weights and the optimizer's state."""
    counted = Counter(work.state for work in works if work.state)
    return sum(
        plan.checkpoint_bytes(*state[:-1]) * state.keep * count for state, count in counted.items()
    )


# ---- costs


def given(specs: Sequence[str]) -> dict[str, float]:
    """The costs that a config names. Raises ConfigError for what is not KIND=SECONDS."""
    found: dict[str, float] = {}
    for spec in specs:
        kind, _, seconds = spec.partition("=")
        if kind not in UNITS:
            raise ConfigError(f"config.costs has {spec!r}; {nearest(kind, UNITS)}")
        try:
            found[kind] = float(seconds)
        except ValueError as error:
            raise ConfigError(
                f"config.costs has {spec!r}; it must be {kind}=SECONDS, of {UNITS[kind]}"
            ) from error
        if not 0 <= found[kind] < math.inf:
            raise ConfigError(f"config.costs has {spec!r}; its seconds must be finite, at least 0")
    return found


def measured(done: Iterable[tuple[Work, float]]) -> dict[str, float]:
    """The costs that works of known seconds tell, each the mean over its units."""
    works = list(done)
    costs: dict[str, float] = {}
    for kind in reversed(UNITS):  # an evaluation's first: it is a part of others
        own = [(work, seconds) for work, seconds in works if work.amounts[0][0] == kind]
        amount = sum(work.amounts[0][1] for work, _ in own)
        if not amount:
            continue
        others = (n * costs.get(part, 0.0) for work, _ in own for part, n in work.amounts[1:])
        costs[kind] = max(0.0, sum(s for _, s in own) - sum(others)) / amount
    return costs


def seconds(works: Iterable[Work], costs: Costs) -> float | None:
    """What the works take; None where a cost is not known."""
    amounts = [one for work in works for one in work.amounts if one[1]]
    if any(kind not in costs for kind, _ in amounts):
        return None
    return sum(costs[kind] * amount for kind, amount in amounts)


# ---- as text


def table(made: Sequence[tuple[str, Work, bool]], costs: Costs, where: str) -> list[str]:
    """Lines of what is to be made: each kind's number, work and seconds, and all of it.

    made: kind, work, whether it is done. where: from which the costs are.
    """
    by_kind: dict[str, list[tuple[Work, bool]]] = {}
    for kind, work, is_done in made:
        by_kind.setdefault(kind, []).append((work, is_done))
    rows = [["", "number", "done", "updates", "tokens", "PFLOP", "minutes"]]
    for kind, works in [*by_kind.items(), ("all", list(itertools.chain(*by_kind.values())))]:
        left = [work for work, is_done in works if not is_done]
        done = len(works) - len(left)
        rows.append([kind, str(len(works)), str(done), *_sums(left), _minutes(left, costs)])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) for row in rows
    ]
    size = disk(work for _, work, is_done in made if not is_done)
    told = ", ".join(f"{kind} {cost:.3g}" for kind, cost in costs.items()) or "none"
    unknown = [kind for kind in UNITS if kind not in costs]
    lines += [
        "updates and the rest are of what is not done; tokens of DAPO at most, without refills",
        f"disk: {size / 2**30:.2f} GiB of checkpoints, besides texts and caches",
        f"seconds of a unit, {where}: {told}",
    ]
    if unknown:
        said = "; ".join(f"{kind} is of {UNITS[kind]}" for kind in unknown)
        lines.append(f"not known, to be given as config.costs=KIND=SECONDS: {said}")
    return lines


def _sums(works: Sequence[Work]) -> list[str]:
    updates, tokens = sum(w.updates for w in works), sum(w.tokens for w in works)
    needed = sum(w.flops for w in works)
    return [f"{n:,}" if n else "" for n in (updates, tokens)] + [
        f"{needed / 1e15:.3g}" if needed else ""
    ]


def _minutes(works: Sequence[Work], costs: Costs) -> str:
    took = seconds(works, costs)
    return "?" if took is None else f"{took / 60:.1f}"

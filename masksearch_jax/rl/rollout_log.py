"""WORKDIR/rollouts/STEP.jsonl.gz: a step's trajectories, with all that they were trained by.

A line is a trajectory as `types.to_json` has it, with its `example`, its `tokens` as text and

    step, version     the update that it trained, and the policy's version when the step began
    group, sample     the prompt's number in the run, and the sample's in its group
    trained           whether the group is one of those that the step trained on
    advantage         of the sample, without what its turns add (`reward.turns`); null: not trained
    reward            the terms of its reward
    logprobs          the sampler's, of sampled tokens, as in every trajectory
    trainer_logprobs  by the trainer's forward at the step's start; null: not trained

Numbers that are not finite are null.
"""

from __future__ import annotations

import dataclasses
import errno
import functools
import gzip
import json
import math
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from masksearch_jax.core import files
from masksearch_jax.core.bucket import StorageError
from masksearch_jax.core.types import JsonObject, Trajectory, to_json
from masksearch_jax.parallel import hosts
from masksearch_jax.rl.groups import Group
from masksearch_jax.rl.update import Trained

FOLDER = "rollouts"
_DIGITS = 6  # after the point, of log-probabilities


class _Sampled(NamedTuple):
    """A group, and its place among those that trained; None: it did not."""

    group: Group
    place: int | None


class RolloutLog:
    """Writes trajectories of each step, in whole groups that are chosen by `seed` and step.

    folder: of the run. amount: up to 1 a share of the step's trajectories, above 1 their number.
    decode: of one token's id, its text.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        amount: float,
        seed: int,
        decode: Callable[[list[int]], str],
    ):
        self._folder, self._amount, self._seed = os.path.join(folder, FOLDER), amount, seed
        self._text = functools.cache(lambda token: decode([token]))

    def write(
        self,
        step: int,
        version: int,
        seen: Sequence[Group],
        kept: Sequence[Group],
        trained: Trained,
    ) -> None:
        """Writes the step's file, which replaces an older one; all processes must call it.

        A disk without room is told on stderr, and the run goes on.
        """
        trains = {group.stream for group in kept}
        groups = [_Sampled(group, place) for place, group in enumerate(kept)]
        groups += [_Sampled(group, None) for group in seen if group.stream not in trains]
        counts = hosts.gather_counts(len(groups))
        first = sum(counts[: jax.process_index()])
        chosen = self._choose(sum(counts), step, [*kept, *seen])
        own = [groups[number - first] for number in chosen if 0 <= number - first < len(groups)]
        lines = [
            json.dumps({"step": step, "version": version} | row, allow_nan=False)
            for sampled in own
            for row in self._rows(sampled, trained)
        ]
        gathered = [json.loads(text) for text in hosts.gather_texts(json.dumps(lines))]
        if jax.process_index() == 0:
            self._write(step, [line for part in gathered for line in part])

    def _choose(self, total: int, step: int, groups: Sequence[Group]) -> list[int]:
        """Numbers of the groups to write, ascending, of all processes' groups."""
        if self._amount <= 1:
            count = math.ceil(self._amount * total)
        else:
            size = hosts.most([max((len(g.trajectories) for g in groups), default=1)])[0]
            count = math.ceil(self._amount / size)
        order = np.random.default_rng((self._seed, step)).permutation(total)
        return sorted(order[:count].tolist())

    def _rows(self, sampled: _Sampled, trained: Trained) -> list[JsonObject]:
        group, place = sampled
        rows = []
        for number, (trajectory, terms) in enumerate(
            zip(group.trajectories, group.rewards, strict=True)
        ):
            row = _finite(to_json(trajectory))
            row |= {"group": group.stream, "trained": place is not None, "advantage": None}
            row |= {"reward": _finite(dataclasses.asdict(terms)), "trainer_logprobs": None}
            if place is not None:
                row["advantage"] = float(trained.advantages[place, number])
                logprobs = trained.logprobs[place * len(group.trajectories) + number]
                row["trainer_logprobs"] = _of_sampled(trajectory, logprobs)
            row["example"] = to_json(group.example)
            row["tokens"] = [self._text(token) for token in trajectory.ids.tolist()]
            rows.append(row)
        return rows

    def _write(self, step: int, lines: Sequence[str]) -> None:
        path = os.path.join(self._folder, f"{step}.jsonl.gz")
        text = "".join(f"{line}\n" for line in lines).encode()
        try:
            with files.writing(path, "wb") as file:
                file.write(gzip.compress(text, mtime=0))
        except StorageError as error:
            print(f"  warning: {error}", file=sys.stderr, flush=True)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            print(f"  warning: no room on the disk for {path}", file=sys.stderr, flush=True)


def _of_sampled(trajectory: Trajectory, logprobs: np.ndarray) -> list[float | None] | None:
    """float[T] of a trajectory's ids, 0 where the policy sampled none; from those of targets."""
    if not len(logprobs):  # left out of the loss
        return None
    whole = np.where(trajectory.sampled, np.concatenate([[0.0], logprobs]), 0.0)
    found: list[float | None] = _finite(whole.tolist())
    return found


def _finite(value: Any) -> Any:
    """JSON with null for each number that is not finite, and log-probabilities of few digits."""
    if isinstance(value, dict):
        return {name: _finite(x) for name, x in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(x) for x in value]
    if isinstance(value, float):
        return round(value, _DIGITS) if math.isfinite(value) else None
    return value

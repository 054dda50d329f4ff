"""The update of a DAPO step: groups with spread in, a new state and its figures out.

The samples that train are exchanged between the processes that share their rows, as sequences; then
they are laid, once, into packed rows: lengths differ severalfold, and an update computes as many
micro-batches of rows as hold anything.
"""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from masksearch_jax.core import rows
from masksearch_jax.core.config import DapoConfig
from masksearch_jax.core.rollout_config import RolloutConfig
from masksearch_jax.parallel import hosts, sharding
from masksearch_jax.parallel.sharding import PyTree
from masksearch_jax.rl import advantages
from masksearch_jax.rl.groups import DAPO_FIELDS, Group, score_groups, to_tokens
from masksearch_jax.training.train_state import TrainState, join

TrainStep = Callable[
    [TrainState, rows.Batch, np.int32, np.int32], tuple[TrainState, dict[str, jax.Array]]
]
Logprobs = Callable[[PyTree, rows.Batch], jax.Array]


def micro_batches(dapo: DapoConfig) -> int:
    """How many micro-batches a minibatch has room for: one row for each of its samples."""
    return dapo.groups * dapo.group_size // (dapo.minibatches * dapo.micro_batch)


class Minibatch(NamedTuple):
    """What one optimizer update reads on this process.

    batch: [B, T], the rows of each shard of the mesh after each other. used: how many micro-batches
    hold anything, at least 1. micro_batches: the rows of each, int[rows]. members: of each row, the
    numbers of the samples that lie in it.
    """

    batch: rows.Batch
    used: int
    micro_batches: list[np.ndarray]
    members: list[list[int]]

    @property
    def tokens(self) -> int:
        """How many tokens the loss counts."""
        asked = self.batch["loss_mask"] & np.isfinite(self.batch["logp_sampler"])
        return int(np.count_nonzero(asked))

    @property
    def row_fill(self) -> float:
        """The share of the tokens of the rows in use that is no padding."""
        used = np.concatenate(self.micro_batches[: self.used])
        tokens = np.count_nonzero(self.batch["segment_ids"])
        return tokens / self.batch["segment_ids"][used].size


class Trained(NamedTuple):
    """What an update made of each sample of its groups, on this process.

    advantages: float32[groups, group_size]. logprobs: sample by sample, float32 of its targets by
    the trainer's forward at the step's start; empty where the sample had no loss, or none were
    asked for.
    """

    advantages: np.ndarray
    logprobs: list[np.ndarray]


class Update:
    """`update(state, kept, step) -> state, metrics`, with the step's `state` donated.

    kept: this process's groups. step: how many steps came before. All processes must call it.
    Sample i of all, those of a process after each other, is in minibatch i modulo their number, on
    any mesh; each minibatch that holds any is one `train_step(state, micro_batches, used, place)`.
    The schedule has `dapo.minibatches` places for each step; the last update of a step takes the
    step's last place. With `dapo.minibatches` above 1, `logprobs(model, batch)` gives the
    log-probabilities under the policy that the step began with.
    metrics: what `train_step` reports, `combined`; `row_fill`, the mean over the updates; the
    number of those that the guard did not leave out, `updates`. Without an update, `row_fill` 0 and
    `updates` 0 alone. `trained` is of the last call, with log-probabilities where `keeps_logprobs`
    asks for them.
    """

    def __init__(
        self,
        mesh: Mesh,
        dapo: DapoConfig,
        rollout: RolloutConfig,
        train_step: TrainStep,
        logprobs: Logprobs,
        keeps_logprobs: bool = False,
        reference: PyTree = None,
    ):
        self._mesh, self._dapo, self._rollout = mesh, dapo, rollout
        self._train_step, self._logprobs = train_step, logprobs
        self._shards = sharding.batch_shards(mesh) // hosts.share(mesh)[1]  # on this process
        self._rows_per_shard = dapo.micro_batch // sharding.batch_shards(mesh)
        self._samples = dapo.groups * dapo.group_size // jax.process_count()
        self._accumulate = micro_batches(dapo)
        self._keeps_logprobs, self._reference = keeps_logprobs, reference
        self._needs_old = dapo.minibatches > 1 or keeps_logprobs or dapo.sequence_gap > 0
        self.trained = self._untrained(0)
        self._first = 0  # of this process's samples, among those of its peers
        self._seconds = 0.0

    def timing(self) -> dict[str, float]:
        """Seconds of this process since the last call: of the log-probabilities before updates."""
        found, self._seconds = {"logprob_seconds": self._seconds}, 0.0
        return found

    def _untrained(self, groups: int) -> Trained:
        size = self._dapo.group_size
        nothing = [np.zeros(0, np.float32)] * (groups * size)
        return Trained(np.zeros((groups, size), np.float32), nothing)

    def __call__(
        self, state: TrainState, kept: Sequence[Group], step: int
    ) -> tuple[TrainState, dict[str, float]]:
        self.trained = self._untrained(len(kept))
        minibatches = self._minibatches(kept)
        if not minibatches:
            return state, {"row_fill": 0.0, "updates": 0.0}
        for minibatch in minibatches if self._needs_old else ():
            self._add_logprobs(state.model, minibatch, "logp_old")
        if self._keeps_logprobs:
            self._keep_logprobs(minibatches)
        masked: dict[str, float] = {}
        if self._dapo.sequence_gap:
            minibatches, masked = self._without_gaps(minibatches)
        if not minibatches:
            return state, {"row_fill": 0.0, "updates": 0.0} | masked
        for minibatch in minibatches if has_reference(self._dapo) else ():
            # What is frozen is the state's: each update donates it, and gives it back.
            reference = join(self._reference, state.frozen)
            self._add_logprobs(reference, minibatch, "logp_ref")
        found = []
        places = self._dapo.minibatches
        for number, minibatch in enumerate(minibatches, 1):
            place = np.int32(step * places + number * places // len(minibatches) - 1)
            placed = hosts.shard_batch(self._mesh, minibatch.batch, self._accumulate)
            state, out = self._train_step(state, placed, np.int32(minibatch.used), place)
            found.append({name: float(value) for name, value in out.items()})
        row_fill = float(np.mean([minibatch.row_fill for minibatch in minibatches]))
        metrics = combined(found) | hosts.mean_over_processes({"row_fill": row_fill})
        applied = sum(not one.get("skipped_in_a_row") for one in found)
        return state, metrics | masked | {"updates": float(applied)}

    def _minibatches(self, kept: Sequence[Group]) -> list[Minibatch]:
        """Those that hold tokens on any process."""
        groups = hosts.gather_counts(len(kept))
        if not any(groups):
            return []
        total, valid, _ = score_groups(kept, self._dapo, self._rollout)
        moments = _over_processes(advantages.own_moments(total, valid))
        advantage = advantages.group_advantages(total, valid, self._dapo.advantage, moments)
        self.trained = self.trained._replace(advantages=advantage)
        samples = to_tokens(kept, advantage, valid, self._samples)
        samples = hosts.exchange_sequences(self._mesh, samples, DAPO_FIELDS)
        peers = hosts.peers(self._mesh)
        taken = [groups[process] * self._dapo.group_size for process in peers]
        self._first = sum(taken[: peers.index(jax.process_index())])
        starts = range(0, len(samples), self._samples)
        samples = [
            tokens
            for start, count in zip(starts, taken, strict=True)
            for tokens in samples[start : start + count]
        ]
        size = self._accumulate * self._rows_per_shard  # rows of a shard of a minibatch
        least = hosts.most([-(-len(samples) // (size * self._shards))])[0]
        count = min(self._dapo.minibatches, max(sum(groups), least))
        first = sum(groups[process] for process in hosts.before(self._mesh))
        minibatches = cut_minibatches(
            samples,
            self._shards,
            count,
            size,
            self._rows_per_shard,
            self._rollout.max_len,
            batch_fields(self._dapo),
            first * self._dapo.group_size,
        )
        used = hosts.most([minibatch.used for minibatch in minibatches])
        tokens = hosts.most([minibatch.tokens for minibatch in minibatches])
        return [
            minibatch._replace(used=most)
            for minibatch, most, any_ in zip(minibatches, used, tokens, strict=True)
            if any_
        ]

    def _add_logprobs(self, model: PyTree, minibatch: Minibatch, name: str) -> None:
        """Writes those of the rows in use, by the model, to a field of the batch."""
        began = time.perf_counter()
        for own in minibatch.micro_batches[: minibatch.used]:
            micro_batch = {name: x[own] for name, x in minibatch.batch.items()}
            found = self._logprobs(model, hosts.shard_batch(self._mesh, micro_batch))
            minibatch.batch[name][own] = hosts.local_rows(found)
        self._seconds += time.perf_counter() - began

    def _without_gaps(
        self, minibatches: Sequence[Minibatch]
    ) -> tuple[list[Minibatch], dict[str, float]]:
        """The minibatches that have tokens left on any process, and the share of samples masked."""
        masked = samples = 0
        for minibatch in minibatches:
            batch = minibatch.batch
            for row, members in enumerate(minibatch.members):
                for segment in range(1, len(members) + 1):
                    own = batch["segment_ids"][row] == segment
                    old, sampler, asked = (
                        batch[name][row, own] for name in ("logp_old", "logp_sampler", "loss_mask")
                    )
                    samples += 1
                    if not is_within_gap(old, sampler, asked, self._dapo.sequence_gap):
                        batch["loss_mask"][row, own] = False
                        masked += 1
        left = hosts.most([minibatch.tokens for minibatch in minibatches])
        share = hosts.mean_over_processes({"masked": float(masked), "samples": float(samples)})
        found = [minibatch for minibatch, any_ in zip(minibatches, left, strict=True) if any_]
        return found, {"masked_sequences": share["masked"] / share["samples"]}

    def _keep_logprobs(self, minibatches: Sequence[Minibatch]) -> None:
        """Reads `logp_old` of this process's samples back from the rows that they lie in."""
        found = self.trained.logprobs
        for minibatch in minibatches:
            for row, members in enumerate(minibatch.members):
                for segment, number in enumerate(members, 1):
                    if 0 <= number - self._first < len(found):
                        own = minibatch.batch["segment_ids"][row] == segment
                        found[number - self._first] = minibatch.batch["logp_old"][row, own]


def _over_processes(own: advantages.Moments) -> advantages.Moments:
    """The sum of all processes'; all must call it."""
    each = [json.loads(text) for text in hosts.gather_texts(json.dumps(own))]
    return advantages.Moments(*map(sum, zip(*each, strict=True)))


def batch_fields(dapo: DapoConfig) -> dict[str, type]:
    """The fields of a minibatch: DAPO_FIELDS, and what the loss reads besides."""
    return DAPO_FIELDS | ({"logp_ref": np.float32} if has_reference(dapo) else {})


def has_reference(dapo: DapoConfig) -> bool:
    """Whether the loss compares with the weights that the run starts from."""
    return dapo.kl in ("k1", "k3")


def is_within_gap(
    logp_old: np.ndarray, logp_sampler: np.ndarray, asked: np.ndarray, limit: float
) -> bool:
    """Whether trainer and sampler agree on a sample: |mean of logp_old - logp_sampler| <= limit.

    The mean is over the sample's asked tokens with a finite difference, in float64; without one
    they do. exp of it is the geometric mean of the ratios, by which whole samples are masked since
    a product of many ratios of which each is within bounds need not be: the geometric sequence mask
    of SkyRL's documentation.
    """
    gap = np.asarray(logp_old, np.float64) - logp_sampler
    gap = gap[asked & np.isfinite(gap)]
    return not len(gap) or bool(abs(gap.mean()) <= limit)


def cut_minibatches(
    samples: Sequence[rows.Tokens],
    shards: int,
    count: int,
    size: int,
    rows_per_shard: int,
    seq_len: int,
    fields: rows.Fields = DAPO_FIELDS,
    first: int = 0,
) -> list[Minibatch]:
    """Sample i of a step as one of minibatch i % count, on any mesh; `first`: i of the first one.

    The samples, in order, are `shards` runs of equal length. Numbers of samples of a run in the
    minibatches, and of runs, differ by one at most; none is above `size`, the rows that a run of a
    minibatch has. A micro-batch has `rows_per_shard` rows of each run. Each run of a minibatch is
    packed by itself into its first rows: what a device gets does not depend on how many others its
    process has. Samples without tokens are left out.
    """
    by_run = np.arange(shards * size).reshape(shards, -1, rows_per_shard).swapaxes(0, 1)
    micro_rows = [*by_run.reshape(-1, shards * rows_per_shard)]
    ends = len(samples) * np.arange(shards + 1) // shards
    found = []
    for minibatch in range(count):
        laid: list[list[int]] = []
        most = 1
        for start, end in itertools.pairwise(ends.tolist()):
            run = range(start + (minibatch - first - start) % count, end, count)
            shared = rows.fewest_rows([len(samples[i]["ids"]) for i in run], seq_len)
            most = max(most, len(shared))
            laid += [[run[i] for i in members] for members in shared]
            laid += [[]] * (size - len(shared))
        batch = rows.lay([[samples[i] for i in row] for row in laid], seq_len, fields)
        found.append(Minibatch(batch, -(-most // rows_per_shard), micro_rows, laid))
    return found


def combined(metrics: Sequence[dict[str, float]]) -> dict[str, float]:
    """The figures of a step's updates as one.

    Means are weighted by `loss_weight`, what an update's loss is divided by, which adds up. Of
    `…_max` it is the largest; of `lr`, and of `skipped…`, which add up over the run, the last.
    """
    weights = np.asarray([one["loss_weight"] for one in metrics])

    def figure(name: str, values: list[float]) -> float:
        if name == "loss_weight":
            return float(np.sum(values))
        if name.endswith("_max"):
            return float(np.max(values))
        if name == "lr" or name.startswith("skipped"):
            return values[-1]
        return float(np.dot(values, weights) / weights.sum())

    return {name: figure(name, [one[name] for one in metrics]) for name in metrics[0]}

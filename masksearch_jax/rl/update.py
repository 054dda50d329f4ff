"""The update of a DAPO step: groups with spread in, a new state and its figures out.

The samples that train are exchanged between the processes that share their rows, as sequences; then
they are laid, once, into packed rows: lengths differ severalfold, and an update computes as many
micro-batches of rows as hold anything.
"""

from __future__ import annotations

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
from masksearch_jax.training.train_state import TrainState

TrainStep = Callable[[TrainState, rows.Batch, np.int32], tuple[TrainState, dict[str, jax.Array]]]
Logprobs = Callable[[PyTree, rows.Batch], jax.Array]


def micro_batches(dapo: DapoConfig) -> int:
    """How many micro-batches a minibatch has room for: one row for each of its samples."""
    return dapo.groups * dapo.group_size // (dapo.minibatches * dapo.micro_batch)


class Minibatch(NamedTuple):
    """What one optimizer update reads on this process.

    batch: [B, T], the rows of each shard of the mesh after each other. used: how many micro-batches
    hold anything, at least 1. micro_batches: the rows of each, int[rows].
    """

    batch: rows.Batch
    used: int
    micro_batches: list[np.ndarray]

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


class Update:
    """`update(state, kept) -> state, metrics`, with the step's `state` donated.

    kept: this process's groups. All processes must call it. Samples are spread over the
    minibatches in their order; each minibatch that holds any, on any process, is one
    `train_step(state, micro_batches, used)`. With `dapo.minibatches` above 1,
    `logprobs(model, batch)` gives the log-probabilities under the policy that the step began with.
    metrics: what `train_step` reports, `combined`; `row_fill`, the mean over the updates; their
    number, `updates`. Without an update, `row_fill` 0 and `updates` 0 alone.
    """

    def __init__(
        self,
        mesh: Mesh,
        dapo: DapoConfig,
        rollout: RolloutConfig,
        train_step: TrainStep,
        logprobs: Logprobs,
    ):
        self._mesh, self._dapo, self._rollout = mesh, dapo, rollout
        self._train_step, self._logprobs = train_step, logprobs
        self._shards = sharding.batch_shards(mesh) // hosts.share(mesh)[1]  # on this process
        self._rows_per_shard = dapo.micro_batch // sharding.batch_shards(mesh)
        self._samples = dapo.groups * dapo.group_size // jax.process_count()
        self._accumulate = micro_batches(dapo)
        self._seconds = 0.0

    def timing(self) -> dict[str, float]:
        """Seconds of this process since the last call: of the log-probabilities before updates."""
        found, self._seconds = {"logprob_seconds": self._seconds}, 0.0
        return found

    def __call__(
        self, state: TrainState, kept: Sequence[Group]
    ) -> tuple[TrainState, dict[str, float]]:
        minibatches = self._minibatches(kept)
        if not minibatches:
            return state, {"row_fill": 0.0, "updates": 0.0}
        if self._dapo.minibatches > 1:
            began = time.perf_counter()
            for minibatch in minibatches:
                self._add_old_logprobs(state.model, minibatch)
            self._seconds += time.perf_counter() - began
        found = []
        for minibatch in minibatches:
            placed = hosts.shard_batch(self._mesh, minibatch.batch, self._accumulate)
            state, out = self._train_step(state, placed, np.int32(minibatch.used))
            found.append({name: float(value) for name, value in out.items()})
        row_fill = float(np.mean([minibatch.row_fill for minibatch in minibatches]))
        metrics = combined(found) | hosts.mean_over_processes({"row_fill": row_fill})
        return state, metrics | {"updates": float(len(found))}

    def _minibatches(self, kept: Sequence[Group]) -> list[Minibatch]:
        """Those that hold tokens on any process."""
        groups = hosts.gather_counts(len(kept))
        if not any(groups):
            return []
        total, valid, _ = score_groups(kept, self._dapo, self._rollout)
        advantage = advantages.group_advantages(total, valid)
        samples = to_tokens(kept, advantage, valid, self._samples)
        samples = hosts.exchange_sequences(self._mesh, samples, DAPO_FIELDS)
        taken = [groups[process] * self._dapo.group_size for process in hosts.peers(self._mesh)]
        starts = range(0, len(samples), self._samples)
        samples = [
            tokens
            for start, count in zip(starts, taken, strict=True)
            for tokens in samples[start : start + count]
        ]
        size = self._accumulate * self._rows_per_shard  # rows of a shard of a minibatch
        least = hosts.most([-(-len(samples) // (size * self._shards))])[0]
        count = min(self._dapo.minibatches, max(sum(groups), least))
        cut = self._shards, count, size, self._rows_per_shard
        minibatches = cut_minibatches(samples, *cut, self._rollout.max_len)
        used = hosts.most([minibatch.used for minibatch in minibatches])
        tokens = hosts.most([minibatch.tokens for minibatch in minibatches])
        return [
            minibatch._replace(used=most)
            for minibatch, most, any_ in zip(minibatches, used, tokens, strict=True)
            if any_
        ]

    def _add_old_logprobs(self, model: PyTree, minibatch: Minibatch) -> None:
        """Writes `logp_old` of the rows in use."""
        for own in minibatch.micro_batches[: minibatch.used]:
            micro_batch = {name: x[own] for name, x in minibatch.batch.items()}
            found = self._logprobs(model, hosts.shard_batch(self._mesh, micro_batch))
            minibatch.batch["logp_old"][own] = hosts.local_rows(found)


def cut_minibatches(
    samples: Sequence[rows.Tokens],
    shards: int,
    count: int,
    size: int,
    rows_per_shard: int,
    seq_len: int,
) -> list[Minibatch]:
    """Samples, in order, as `shards` runs of `count` minibatches: as many of each run in each.

    Numbers of samples differ by one at most, none is above `size`, the rows that a run of a
    minibatch has. A micro-batch has `rows_per_shard` rows of each run. Each run of a minibatch is
    packed by itself into its first rows: what a device gets does not depend on how many others its
    process has. Samples without tokens are left out.
    """
    by_run = np.arange(shards * size).reshape(shards, -1, rows_per_shard).swapaxes(0, 1)
    micro_rows = [*by_run.reshape(-1, shards * rows_per_shard)]
    ends = len(samples) * np.arange(shards * count + 1) // (shards * count)
    found = []
    for minibatch in range(count):
        laid: list[list[rows.Tokens]] = []
        most = 1
        for shard in range(shards):
            cell = shard * count + minibatch
            run = samples[ends[cell] : ends[cell + 1]]
            shared = rows.fewest_rows([len(tokens["ids"]) for tokens in run], seq_len)
            most = max(most, len(shared))
            laid += [[run[i] for i in members] for members in shared]
            laid += [[]] * (size - len(shared))
        batch = rows.lay(laid, seq_len, DAPO_FIELDS)
        found.append(Minibatch(batch, -(-most // rows_per_shard), micro_rows))
    return found


def combined(found: Sequence[dict[str, float]]) -> dict[str, float]:
    """The figures of a step's updates as one.

    Means are weighted by `loss_weight`, the tokens of an update, which itself adds up. Of `…_max`
    it is the largest; of `lr`, and of `skipped…`, which add up over the run, the last.
    """
    weights = np.asarray([one["loss_weight"] for one in found])

    def figure(name: str, values: list[float]) -> float:
        if name == "loss_weight":
            return float(np.sum(values))
        if name.endswith("_max"):
            return float(np.max(values))
        if name == "lr" or name.startswith("skipped"):
            return values[-1]
        return float(np.dot(values, weights) / weights.sum())

    return {name: figure(name, [one[name] for one in found]) for name in found[0]}

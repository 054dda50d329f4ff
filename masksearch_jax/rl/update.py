"""The update of a DAPO step: groups with spread in, a new state and its figures out.

The samples that train are exchanged between the processes that share their rows, as sequences; then
they are laid, once, into packed rows: lengths differ severalfold, and an update computes as many
micro-batches of rows as hold anything.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from masksearch_jax.core import rows
from masksearch_jax.core.config import DapoConfig, RolloutConfig
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

    batch: [B, T], the rows of each part of the mesh after each other. used: how many micro-batches
    hold anything, at least 1. micro_batches: the rows of each, int[rows].
    """

    batch: rows.Batch
    used: int
    micro_batches: list[np.ndarray]

    @property
    def row_fill(self) -> float:
        """The share of the tokens of the rows in use that is no padding."""
        used = np.concatenate(self.micro_batches[: self.used])
        tokens = np.count_nonzero(self.batch["segment_ids"])
        return tokens / self.batch["segment_ids"][used].size


class Update:
    """`update(state, kept) -> state, metrics`, with the step's `state` donated.

    kept: this process's groups. All processes must call it. Samples are cut into the minibatches in
    their order; each is one `train_step(state, micro_batches, used)`. Where there are several,
    `logprobs(model, batch)` gives the log-probabilities under the policy that the step began with.
    metrics: the mean over the minibatches of what `train_step` reports, and `row_fill`; of no group
    on any process, `row_fill` 0 alone.
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
        self._parts = sharding.batch_shards(mesh) // hosts.share(mesh)[1]  # on this process
        self._rows_per_part = dapo.micro_batch // sharding.batch_shards(mesh)
        self._samples = dapo.groups * dapo.group_size // jax.process_count()
        self._accumulate = micro_batches(dapo)

    def __call__(
        self, state: TrainState, kept: Sequence[Group]
    ) -> tuple[TrainState, dict[str, float]]:
        if not hosts.any_process(bool(kept)):
            return state, {"row_fill": 0.0}
        minibatches = self._minibatches(kept)
        if len(minibatches) > 1:
            for minibatch in minibatches:
                self._add_old_logprobs(state.model, minibatch)
        found = []
        for minibatch in minibatches:
            placed = hosts.shard_batch(self._mesh, minibatch.batch, self._accumulate)
            state, out = self._train_step(state, placed, np.int32(minibatch.used))
            found.append({name: float(value) for name, value in out.items()})
        row_fill = float(np.mean([minibatch.row_fill for minibatch in minibatches]))
        return state, combined(found) | hosts.mean_over_processes({"row_fill": row_fill})

    def _minibatches(self, kept: Sequence[Group]) -> list[Minibatch]:
        total, valid, _ = score_groups(kept, self._dapo, self._rollout)
        advantage = advantages.group_advantages(total, valid)
        samples = to_tokens(kept, advantage, valid, self._samples)
        samples = hosts.exchange_sequences(self._mesh, samples, DAPO_FIELDS)
        cut = self._parts, self._dapo.minibatches, self._rows_per_part
        minibatches = cut_minibatches(samples, *cut, self._rollout.max_len)
        used = hosts.most([minibatch.used for minibatch in minibatches])
        return [m._replace(used=most) for m, most in zip(minibatches, used, strict=True)]

    def _add_old_logprobs(self, model: PyTree, minibatch: Minibatch) -> None:
        """Writes `logp_old` of the rows in use."""
        for own in minibatch.micro_batches[: minibatch.used]:
            micro_batch = {name: x[own] for name, x in minibatch.batch.items()}
            found = self._logprobs(model, hosts.shard_batch(self._mesh, micro_batch))
            minibatch.batch["logp_old"][own] = hosts.local_rows(found)


def cut_minibatches(
    samples: Sequence[rows.Tokens], parts: int, count: int, rows_per_part: int, seq_len: int
) -> list[Minibatch]:
    """Samples, in `parts` equal runs, as `count` minibatches of as many samples of each run.

    A micro-batch has `rows_per_part` rows of each run. Each run of a minibatch is packed by itself
    into its first rows: what a device gets does not depend on how many others its process has.
    Samples without tokens are left out.
    """
    size = len(samples) // (parts * count)  # samples of a run of a minibatch, and rows: enough
    by_run = np.arange(parts * size).reshape(parts, -1, rows_per_part).swapaxes(0, 1)
    micro_rows = [*by_run.reshape(-1, parts * rows_per_part)]
    found = []
    for minibatch in range(count):
        laid: list[list[rows.Tokens]] = []
        most = 1
        for part in range(parts):
            first = (part * count + minibatch) * size
            run = samples[first : first + size]
            shared = rows.fewest_rows([len(tokens["ids"]) for tokens in run], seq_len)
            most = max(most, len(shared))
            laid += [[run[i] for i in members] for members in shared]
            laid += [[]] * (size - len(shared))
        batch = rows.lay(laid, seq_len, DAPO_FIELDS)
        found.append(Minibatch(batch, -(-most // rows_per_part), micro_rows))
    return found


def combined(found: Sequence[dict[str, float]]) -> dict[str, float]:
    """The mean of each figure over the updates of a step; of `skipped…`, which add up, the last."""
    mean = {name: float(np.mean([one[name] for one in found])) for name in found[0]}
    return mean | {name: x for name, x in found[-1].items() if name.startswith("skipped")}

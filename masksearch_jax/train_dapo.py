"""Reinforcement learning with live search: DAPO (arXiv 2503.14476) on RAMP or QA prompts.

    python -m masksearch_jax.train_dapo --config=configs/ramp_dapo.py:qwen2.5-1.5b

Each step: sample groups with the rollout engine, reward them, keep the groups with spread (sampling
again up to a cap), update. Synchronous: a step's tokens come from the weights that it began with.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from masksearch_jax import cli, train_state
from masksearch_jax.checkpoint import Checkpointer
from masksearch_jax.config import ComputeConfig, DapoConfig, DapoRun, RolloutConfig
from masksearch_jax.data import pipeline, records
from masksearch_jax.data.vocab import Vocab
from masksearch_jax.metrics import MetricWriter, check_finite
from masksearch_jax.models import attention, transformer
from masksearch_jax.models.initial import check_vocabulary, initial
from masksearch_jax.progress import Progress
from masksearch_jax.rl import advantages, losses, rewards
from masksearch_jax.rollout.engine import Engine, EngineStats, Request
from masksearch_jax.search.tool import SearchTool, open_tool
from masksearch_jax.sharding import make_mesh, shard_batch, shard_cache
from masksearch_jax.types import Example, Trajectory


class Group(NamedTuple):
    """One prompt's samples, in sample order, and their rewards."""

    example: Example
    trajectories: list[Trajectory]
    rewards: list[rewards.RewardParts]


def make_loss_fn(
    compute: ComputeConfig, dapo: DapoConfig, temperature: float
) -> train_state.LossFn:
    """The DAPO loss of a batch of `to_batch`, as the update step wants it."""

    def loss_fn(model: Any, batch: dict[str, jax.Array]):
        hidden = model.hidden(batch["ids"], batch["positions"], batch["segment_ids"])
        logp, entropy = transformer.token_logprobs(
            model, hidden, batch["targets"], temperature, compute.loss_chunk
        )
        # With one update per step the policy is still the one that the step began with.
        old = batch["logp_old"] if dapo.minibatches > 1 else jax.lax.stop_gradient(logp)
        return losses.dapo_loss(
            logp, old, batch["logp_sampler"], batch["advantages"], batch["mask"], dapo, entropy
        )

    return loss_fn


def make_logprob_fn(compute: ComputeConfig, temperature: float):
    """Jitted log-probabilities of a batch's targets, float32[B, T], by the trainer's forward."""

    @jax.jit
    def logprobs(model: Any, batch: dict[str, jax.Array]) -> jax.Array:
        hidden = model.hidden(batch["ids"], batch["positions"], batch["segment_ids"])
        return transformer.token_logprobs(
            model, hidden, batch["targets"], temperature, compute.loss_chunk
        )[0]

    return logprobs


def sample_groups(
    engine: Engine,
    model: Any,
    prompts: Sequence[pipeline.Prompt],
    first_stream: int,
    cfg: DapoConfig,
    version: int,
) -> list[Group]:
    """One group per prompt, in order: `group_size` trajectories each, rewarded."""
    requests = [
        Request(str(i), prompt.ids, (first_stream + i) % 2**32, sample)
        for i, prompt in enumerate(prompts)
        for sample in range(cfg.group_size)
    ]
    found: dict[tuple[int, int], Trajectory] = {}
    for t in engine.run(model, requests, version):
        found[int(t.example_id), t.sample] = t
    groups = []
    for i, (_, example) in enumerate(prompts):
        members = [found[i, sample] for sample in range(cfg.group_size)]
        members = [dataclasses.replace(t, example_id=example.id) for t in members]
        groups.append(Group(example, members, [rewards.reward(example, t, cfg) for t in members]))
    return groups


def score_groups(groups: Sequence[Group], cfg: DapoConfig, rollout: RolloutConfig):
    """Totals with the overlong penalty and which samples count [G, n], groups with spread [G].

    Tool failures never count; with `overlong_filter`, nor do truncated samples.
    """
    total = np.asarray([[r.total for r in g.rewards] for g in groups], np.float32)
    accuracy = np.asarray([[r.accuracy for r in g.rewards] for g in groups], np.float32)
    lengths = np.asarray([[int(t.sampled.sum()) for t in g.trajectories] for g in groups])
    status = np.asarray([[t.status for t in g.trajectories] for g in groups])
    total = total + advantages.overlong_penalty(
        lengths, rollout.max_new_tokens, cfg.overlong_buffer, cfg.overlong_penalty
    )
    valid = status != "tool_failure"
    if cfg.overlong_filter:
        valid &= status != "out_of_tokens"
    keep = advantages.keep_groups(accuracy, cfg.accuracy_threshold, total, valid=valid)
    return total, valid, keep


def to_batch(
    groups: Sequence[Group], advantage: np.ndarray, valid: np.ndarray, rows: int, length: int
) -> dict[str, np.ndarray]:
    """Rows [rows, length] of next-token targets, group by group; advantage and valid are [G, n].

    Samples that do not count, and rows beyond the groups, have mask 0: neither loss nor tokens.
    """
    trajectories = [t for g in groups for t in g.trajectories]
    shape = (rows, length)
    batch = {
        "ids": np.zeros(shape, np.int32),
        "targets": np.zeros(shape, np.int32),
        "positions": np.zeros(shape, np.int32),
        "segment_ids": np.zeros(shape, np.int32),
        "mask": np.zeros(shape, np.bool_),
        "logp_sampler": np.zeros(shape, np.float32),
        "logp_old": np.zeros(shape, np.float32),
        "advantages": np.zeros(rows, np.float32),
    }
    for row, (trajectory, counts) in enumerate(zip(trajectories, valid.reshape(-1), strict=True)):
        n = len(trajectory.ids) - 1
        batch["ids"][row, :n] = trajectory.ids[:-1]
        batch["targets"][row, :n] = trajectory.ids[1:]
        batch["positions"][row, :n] = np.arange(n)
        batch["segment_ids"][row, :n] = 1
        batch["mask"][row, :n] = trajectory.sampled[1:] & counts
        batch["logp_sampler"][row, :n] = trajectory.logprobs[1:]
    flat = advantage.reshape(-1)
    batch["advantages"][: len(flat)] = flat
    return batch


def run(cfg: DapoRun, search: SearchTool | None = None) -> dict[str, Any]:
    """Trains to `cfg.dapo.steps`; returns the last metrics. `search` stands for cfg.search."""
    workdir = Path(cfg.workdir)
    dapo, rollout = cfg.dapo, cfg.rollout
    if rollout.temperature <= 0:
        raise cli.ConfigError(
            f"config.rollout.temperature is {rollout.temperature}; to train, it must be above 0"
        )
    if jax.process_count() > 1:
        raise cli.ConfigError(
            f"{jax.process_count()} processes: rollouts with live search run on one so far; start "
            "train_dapo on a single host"
        )
    trajectories = dapo.groups * dapo.group_size
    if trajectories % (dapo.minibatches * dapo.micro_batch):
        raise cli.ConfigError(
            f"config.dapo: groups × group_size = {trajectories} trajectories do not divide into "
            f"{dapo.minibatches} minibatches of micro-batches of {dapo.micro_batch}"
        )

    # ---- data, search
    vocab = Vocab.load(cfg.tokenizer)
    check_vocabulary(cfg.model, vocab.size)
    manifest = records.Manifest.load(
        cfg.data, tokenizer=vocab.fingerprint, prompt_style=cfg.prompt.style
    )
    prompts = pipeline.prompt_batches(
        manifest,
        dapo.curriculum,
        groups=dapo.groups,
        seed=dapo.seed,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
    )
    search = search or open_tool(cfg.search)

    # ---- model, state, programs
    mesh = make_mesh(cfg.mesh)
    model = initial(cfg.init, cfg.model, cfg.compute, mesh, cfg.seed)
    tx = train_state.make_optimizer(cfg.optim, dapo.steps * dapo.minibatches)
    state = train_state.init_state(model, tx)
    accumulate = trajectories // (dapo.minibatches * dapo.micro_batch)
    loss_fn = make_loss_fn(cfg.compute, dapo, rollout.temperature)
    train_step = train_state.make_train_step(loss_fn, tx, accumulate, like=state)
    logprob_fn = make_logprob_fn(cfg.compute, rollout.temperature)
    engine = Engine(
        vocab,
        search,
        rollout,
        cfg.search,
        model_cache=lambda slots, length: shard_cache(
            mesh,
            attention.init_cache(cfg.model, slots, length, jnp.dtype(cfg.compute.dtype)),
        ),
        vocab_size=cfg.model.vocab_size,
    )

    metrics: dict[str, Any] = {}
    checkpoints = Checkpointer(workdir / "checkpoints", cfg.checkpoint, cfg.model)
    with engine, checkpoints as checkpointer:
        start, stream = 0, 0
        if checkpointer.latest_step() is not None:
            state, extra = checkpointer.restore(state)
            prompts.set_state(extra["prompts"])
            start, stream = extra["step"], extra["stream"]
        writer = MetricWriter(workdir, start)

        # ---- loop
        with jax.set_mesh(mesh), Progress("DAPO", dapo.steps, start) as progress:
            for step in range(start, dapo.steps):
                began, before = time.perf_counter(), dataclasses.replace(engine.stats)

                # ---- sample until enough groups have spread
                kept: list[Group] = []
                seen: list[Group] = []
                drawn = next(prompts)
                for round_ in range(max(dapo.max_refills, 1)):
                    if round_:
                        drawn = prompts.extra(dapo.groups)
                    groups = sample_groups(engine, state.params, drawn, stream, dapo, step)
                    stream += len(drawn)
                    seen += groups
                    _, _, keep = score_groups(groups, dapo, rollout)
                    kept += [g for g, k in zip(groups, keep, strict=True) if k]
                    if len(kept) >= dapo.groups:
                        break
                kept = kept[: dapo.groups]
                sampled_at = time.perf_counter()

                # ---- update
                outs = []
                if kept:
                    total, valid, _ = score_groups(kept, dapo, rollout)
                    advantage = advantages.group_advantages(total, valid)
                    batch = to_batch(kept, advantage, valid, trajectories, rollout.max_len)
                    if dapo.minibatches > 1:
                        on_device = shard_batch(mesh, batch)
                        batch["logp_old"] = np.asarray(logprob_fn(state.params, on_device))
                    rows = trajectories // dapo.minibatches
                    for m in range(dapo.minibatches):
                        part = {k: v[m * rows : (m + 1) * rows] for k, v in batch.items()}
                        part = train_state.split_micro(part, accumulate)
                        state, out = train_step(
                            state, shard_batch(mesh, part, axis=int(accumulate > 1))
                        )
                        outs.append({k: float(v) for k, v in out.items()})

                # ---- figures
                metrics = {
                    k: float(np.mean([o[k] for o in outs])) for k in (outs[0] if outs else ())
                }
                check_finite(step + 1, metrics)
                metrics |= rollout_metrics(seen, kept, before, engine.stats)
                metrics["sample_seconds"] = sampled_at - began
                metrics["update_seconds"] = time.perf_counter() - sampled_at
                done = step + 1
                writer.write(done, metrics)
                progress.update(
                    done, reward=metrics["reward"], accuracy=metrics["accuracy"], kept=len(kept)
                )
                if checkpointer.is_due(done) or done == dapo.steps:
                    extra = {"prompts": prompts.get_state(), "step": done, "stream": stream}
                    checkpointer.save(done, state, extra)
    return metrics


def rollout_metrics(
    seen: Sequence[Group], kept: Sequence[Group], before: EngineStats, after: EngineStats
) -> dict[str, float]:
    """What the sampled groups looked like, and where the sampling time went."""
    trajectories = [t for g in seen for t in g.trajectories]
    parts = [r for g in seen for r in g.rewards]
    spent = {
        f.name: getattr(after, f.name) - getattr(before, f.name)
        for f in dataclasses.fields(EngineStats)
    }
    busy = spent["device_seconds"] + spent["host_seconds"] + spent["search_wait_seconds"]
    return {
        "reward": float(np.mean([r.total for r in parts])),
        "answer": float(np.mean([r.answer for r in parts])),
        "format": float(np.mean([r.format for r in parts])),
        "accuracy": float(np.mean([r.accuracy for r in parts])),
        "searches": float(np.mean([len(t.turns) for t in trajectories])),
        "sampled_tokens": float(np.mean([t.sampled.sum() for t in trajectories])),
        "truncated": float(np.mean([t.status == "out_of_tokens" for t in trajectories])),
        "tool_failures": float(np.mean([t.status == "tool_failure" for t in trajectories])),
        "groups_sampled": float(len(seen)),
        "groups_kept": float(len(kept)),
        "rollout_tokens_per_second": spent["sampled_tokens"] / max(busy, 1e-9),
        "device_seconds": spent["device_seconds"],
        "host_seconds": spent["host_seconds"],
        "search_wait_seconds": spent["search_wait_seconds"],
    }


if __name__ == "__main__":
    cli.run(lambda cfg: run(cfg) and None, DapoRun)

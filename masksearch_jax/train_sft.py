"""Supervised fine-tuning on cached trajectories.

    python -m masksearch_jax.train_sft --config=configs/ramp_sft.py:qwen2.5-1.5b \\
        --config.init=Qwen2.5-1.5B-Instruct --config.tokenizer=Qwen2.5-1.5B-Instruct

The story: data, model, state (restored if there is one), loop. Stopping at any time loses at most
`checkpoint.every` steps; the same command goes on with bitwise the same losses.
"""

from __future__ import annotations

import dataclasses
import sys
import time
from typing import Any

import jax
import numpy as np

from masksearch_jax.core.config import ComputeConfig, OptimConfig, SftConfig, SftRun
from masksearch_jax.core.errors import ConfigError
from masksearch_jax.core.tokenizer import Vocab
from masksearch_jax.data import cache
from masksearch_jax.data.batches import sft_batches
from masksearch_jax.models import head, lora
from masksearch_jax.models.head import LanguageModel
from masksearch_jax.models.load import (
    check_context,
    check_vocabulary,
    context_of,
    identity,
    initial,
    pinned,
    read_model,
)
from masksearch_jax.parallel import hosts
from masksearch_jax.parallel.sharding import batch_shards, context_shards, make_mesh
from masksearch_jax.rl import losses
from masksearch_jax.rl.nothing_learned import check_updates
from masksearch_jax.rl.watch import Watch, check_watched
from masksearch_jax.runtime import agent_settings, cli, storage
from masksearch_jax.runtime.metric_services import check_installed
from masksearch_jax.runtime.metric_writer import MetricWriter
from masksearch_jax.runtime.progress import Progress
from masksearch_jax.search.open import check_named, open_tool
from masksearch_jax.tools.registry import open_tools
from masksearch_jax.training import run_folder, train_state
from masksearch_jax.training.checkpoint import Checkpointer
from masksearch_jax.training.guard import Guard, counts, guarded, updates
from masksearch_jax.training.supervisor import Survival


def make_loss_fn(compute: ComputeConfig) -> train_state.LossFn:
    """The SFT loss of a packed batch as the update step wants it."""

    def loss_fn(model: LanguageModel, batch: dict[str, jax.Array]) -> losses.Loss:
        logprobs, _ = head.batch_logprobs(model, batch, 1.0, compute.loss_chunk)
        return losses.sft_loss(logprobs, batch["loss_weights"])

    return loss_fn


def check_batch(sft: SftConfig, optim: OptimConfig, mesh: jax.sharding.Mesh) -> None:
    """Raises ConfigError for a batch that the micro-batches on the mesh's shards do not divide.

    MeshError for rows that it cannot split.
    """
    context_shards(mesh, sft.seq_len)
    shards, accumulate = batch_shards(mesh), optim.accumulate
    if accumulate < 1:
        raise ConfigError(f"config.optim.accumulate is {accumulate}; it must be at least 1")
    if sft.batch_size % (shards * accumulate):
        raise ConfigError(
            f"config.sft.batch_size is {sft.batch_size}; it must be a multiple of "
            f"{shards * accumulate}: {accumulate} micro-batches (config.optim.accumulate) on each "
            f"of the {shards} shards that the mesh {dict(mesh.shape)} splits a batch into"
        )


# Keys of what nothing reads where no held-out example is asked.
_UNREAD = tuple(f"search.{name}" for name in agent_settings.KEYS["search"])


def check_config(cfg: SftRun) -> None:
    """Raises ConfigError for what no data can mend: keys that are empty, and keys that clash.

    SearchError for those of search, where held-out examples are asked.
    """
    run_folder.check_config(cfg)
    check_watched(cfg, samples=False)
    lora.check_lora(cfg.lora)
    if cfg.eval.every:
        check_context(cfg.model, cfg.rollout.max_len, "config.rollout.max_len")
        check_named(cfg.search)


def tell_other_search(cfg: SftRun, manifest: cache.Manifest) -> None:
    """A line on stderr where the agent would be asked by another search than it is taught with."""
    own = dataclasses.asdict(cfg.search)
    other = {name: value for name, value in manifest.search.items() if own[name] != value}
    if other and jax.process_index() == 0:
        taught = " ".join(f"--config.search.{name}={value}" for name, value in other.items())
        here = ", ".join(f"{name}={own[name]}" for name in other)
        print(
            f"  the demonstrations searched by {taught}; what asks this model will search by "
            f"{here}, as this run's record tells: give the run the same flags",
            file=sys.stderr,
            flush=True,
        )


def run(cfg: SftRun, *, is_asked_by_record: bool = True) -> dict[str, Any]:
    """Trains to `cfg.sft.steps`; the last metrics, and `all_updates` that the weights have had.

    is_asked_by_record: whether its record alone says how to ask the model. Artefacts go to
    `cfg.workdir`. Raises NothingLearnedError where the guard left out all of them.
    """
    check_config(cfg)
    check_installed(cfg.log)
    workdir = storage.path(cfg.workdir)
    survival = Survival(cfg.survival, workdir)

    # ---- mesh, data
    mesh = make_mesh(cfg.mesh)
    check_batch(cfg.sft, cfg.optim, mesh)
    share, shares = hosts.share(mesh)
    vocab = Vocab.load(cfg.tokenizer)
    manifest = cache.Manifest.load(  # of the style that whoever asks the model is told of
        cfg.data, tokenizer=vocab.fingerprint, prompt_style=cfg.prompt.style, tools=cfg.tools
    )
    check_vocabulary(cfg.model, vocab, cfg.tokenizer, cfg.init)
    if is_asked_by_record:
        tell_other_search(cfg, manifest)
    batches = sft_batches(
        manifest,
        cfg.sft.curriculum,
        batch_size=cfg.sft.batch_size,
        seq_len=cfg.sft.seq_len,
        seed=cfg.sft.seed,
        context_loss_weight=cfg.sft.context_loss_weight,
        context=context_of(cfg.model),
        process_index=share,
        process_count=shares,
        lessons=cfg.lessons,
    )
    watch = Watch(
        cfg,
        cfg.sft.steps,
        batches.gate,
        vocab,
        lambda: open_tools(cfg.tools, open_tool(cfg.search), cfg.search),
        survival,
    )

    folder = run_folder.open_run_folder(cfg, "sft.steps", () if cfg.eval.every else _UNREAD)

    # ---- model and state
    init = pinned(cfg.init, cfg.model)
    model = initial(init, cfg.model, cfg.compute, mesh, cfg.seed, cfg.base)
    params, frozen = lora.trained(model, cfg.lora, mesh, cfg.seed)
    adapters = lora.describe(cfg.lora, model, init, cfg.seed)
    tx = guarded(train_state.make_optimizer(cfg.optim, cfg.sft.steps), cfg.survival)
    state = train_state.init_state(params, tx, frozen)
    train_step = train_state.make_train_step(
        make_loss_fn(cfg.compute),
        tx,
        cfg.optim.accumulate,
        like=state,
        rounding=train_state.rounding_seed(cfg.optim, cfg.seed),
    )

    metrics: dict[str, Any] = {}
    checkpoints = Checkpointer(
        workdir / "checkpoints", cfg.checkpoint, cfg.model, adapters, identity(vocab, cfg.tokenizer)
    )
    with folder, watch, checkpoints as checkpointer, survival:
        start = 0
        if checkpointer.latest_step() is not None:
            with survival.disk("restore"):
                state, extra = checkpointer.restore(state)
            batches.set_state(extra["data"])
            watch.restore(extra["watch"])
            start = int(state.step)
            run_folder.tell_start(cfg.workdir, start, cfg.sft.steps)
        guard = Guard(cfg.survival, state.opt_state, start)

        def save(done: int) -> None:
            with survival.disk("save", done):
                extra = {"data": batches.get_state(), "watch": watch.state()}
                told = metrics if watch.is_best_told(metrics) else None
                checkpointer.save(done, state, extra, told)

        def is_due(done: int) -> bool:
            return checkpointer.is_due(done) or done == cfg.sft.steps

        # ---- loop
        with (
            MetricWriter(workdir, start - watch.is_behind, cfg.log) as writer,
            jax.set_mesh(mesh),
            Progress("SFT", cfg.sft.steps, start) as progress,
        ):

            def look(done: int) -> None:
                """Watches the step and tells its figures, unless a stop cuts that off."""
                earlier = updates(state.opt_state) - (not metrics["skipped_in_a_row"])
                metrics.update(watch.look(done, state.model, metrics, earlier > 0))
                watch.check_best(metrics)
                if not watch.is_behind:
                    writer.write(done, metrics)
                    shown = {"loss": metrics["loss"], "tok_s": int(metrics["tokens_per_second"])}
                    progress.update(done, **shown, **watch.shown())
                    watch.act(done)

            if watch.is_behind:
                metrics = watch.owed()
                look(start)
                if watch.is_behind:
                    survival.stop(checkpointer)
                if is_due(start) and watch.is_best_told(metrics):
                    checkpointer.add_metrics(start, metrics)
            tokens, clock = 0, time.perf_counter()
            for step in survival.steps(start, cfg.sft.steps, "update"):
                with survival.phase("data"):
                    batch = next(batches)
                tokens += int(np.count_nonzero(batch["segment_ids"]))
                batch = hosts.shard_batch(mesh, batch, cfg.optim.accumulate)
                state, out = train_step(state, batch)
                done = step + 1
                preempted = survival.preemption.is_reached()
                due = is_due(done)
                if done % cfg.sft.log_every == 0 or due or preempted or watch.is_due(done):
                    metrics = {k: float(v) for k, v in out.items()}
                    guard.check_figures(done, metrics)
                if done % cfg.sft.log_every == 0 or due or watch.is_due(done):
                    metrics["tokens_per_second"] = tokens / (time.perf_counter() - clock)
                    look(done)
                    tokens, clock = 0, time.perf_counter()  # watching is no training
                if due or preempted or watch.is_behind:
                    save(done)
                if preempted or watch.is_behind:
                    survival.stop(checkpointer)
            survival.finish(checkpointer)
    found = metrics | counts(state.opt_state)
    check_updates(found, cfg.sft.steps, "no batch was trained on")
    return found


if __name__ == "__main__":
    cli.run(
        lambda cfg: run(cfg) and None,
        SftRun,
        resumes=True,
        read_model=read_model,
        check=check_config,
    )

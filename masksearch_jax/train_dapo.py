"""Reinforcement learning with live search: DAPO (arXiv 2503.14476) on RAMP or QA prompts.

    python -m masksearch_jax.train_dapo --config=configs/ramp_dapo.py:qwen2.5-1.5b \\
        --config.tokenizer=Qwen2.5-1.5B-Instruct

Each step: sample groups with the rollout engine, reward them, keep the groups with spread (sampling
again up to a cap), update on rows that trajectories share. A step's tokens come from the weights
that it began with, but for groups that the step before had too many of, and partial rollouts.
"""

from __future__ import annotations

import dataclasses
import sys
import time
from collections.abc import Collection, Sequence
from typing import Any

import jax
from jax.sharding import Mesh

from masksearch_jax.agents.judge import SERVED, Judge, served_of
from masksearch_jax.agents.own_model import OwnModel
from masksearch_jax.core.config import ComputeConfig, DapoConfig, DapoRun, OptimConfig
from masksearch_jax.core.errors import ConfigError, Restart
from masksearch_jax.core.retrieval import SearchTool
from masksearch_jax.core.rollout_config import RolloutConfig
from masksearch_jax.core.tokenizer import Vocab
from masksearch_jax.core.tools import check_budgets
from masksearch_jax.core.types import Trajectory
from masksearch_jax.data import batches, cache
from masksearch_jax.models import head, lora
from masksearch_jax.models.head import LanguageModel
from masksearch_jax.models.load import (
    check_context,
    check_vocabulary,
    identity,
    initial,
    pinned,
    read_model,
)
from masksearch_jax.parallel import sharding
from masksearch_jax.parallel.sharding import make_mesh
from masksearch_jax.rl import behaviour, left_out, losses, rewards
from masksearch_jax.rl.group_sampler import GroupSampler, Outage, figures
from masksearch_jax.rl.groups import Group, score_groups
from masksearch_jax.rl.nothing_learned import NothingLearnedError, check_updates, no_spread
from masksearch_jax.rl.pass_rates import PassRates
from masksearch_jax.rl.reward_pool import RewardPool, right_answer
from masksearch_jax.rl.rollout_log import RolloutLog
from masksearch_jax.rl.sampling_settings import check_sampling
from masksearch_jax.rl.update import Update, has_reference, micro_batches
from masksearch_jax.rl.watch import Watch, after_rollbacks, check_watched
from masksearch_jax.rollout.engine import Engine
from masksearch_jax.runtime import cli, storage
from masksearch_jax.runtime.metric_services import check_installed
from masksearch_jax.runtime.metric_writer import MetricWriter
from masksearch_jax.runtime.progress import Progress
from masksearch_jax.search.open import (
    check_named,
    check_source_passages,
    index_served,
    open_tool,
)
from masksearch_jax.tools.registry import instructions_of, open_tools
from masksearch_jax.training import run_folder, train_state
from masksearch_jax.training.alarms import RolledBack, read_rollbacks, roll_back
from masksearch_jax.training.checkpoint import Checkpointer
from masksearch_jax.training.guard import Guard, counts, guarded, updates
from masksearch_jax.training.patience import Patience
from masksearch_jax.training.supervisor import Preempted, Survival


class ToolOutageError(Restart):
    """A tool or the judge was down, or sampling too slow, for longer than the run waits.

    What the run had is saved.
    """


def make_loss_fn(
    compute: ComputeConfig, dapo: DapoConfig, temperature: float
) -> train_state.LossFn:
    """The DAPO loss of a batch of DAPO_FIELDS, as the update step wants it."""

    def loss_fn(model: LanguageModel, batch: dict[str, jax.Array]) -> losses.Loss:
        logp, entropy = head.batch_logprobs(model, batch, temperature, compute.loss_chunk)
        # With one update per step the policy is still the one that the step began with.
        old = batch["logp_old"] if dapo.minibatches > 1 else jax.lax.stop_gradient(logp)
        return losses.dapo_loss(
            logp,
            old,
            batch["logp_sampler"],
            batch["advantages"],
            batch["loss_mask"],
            dapo,
            entropy,
            batch["segment_ids"],
            batch.get("logp_ref"),
        )

    return loss_fn


def make_logprob_fn(compute: ComputeConfig, temperature: float) -> jax.stages.Wrapped:
    """Jitted log-probabilities of a batch's targets, float32[B, T], by the trainer's forward."""

    @jax.jit
    def logprobs(model: LanguageModel, batch: dict[str, jax.Array]) -> jax.Array:
        return head.batch_logprobs(model, batch, temperature, compute.loss_chunk)[0]

    return logprobs


def on_mesh(dapo: DapoConfig, mesh: Mesh) -> DapoConfig:
    """The config with its number of rows per micro-batch on this mesh."""
    return dataclasses.replace(dapo, micro_batch=dapo.micro_batch or sharding.batch_shards(mesh))


def check_settings(
    dapo: DapoConfig, rollout: RolloutConfig, mesh: Mesh, tools: Sequence[str] = ()
) -> None:
    """Raises ConfigError, or MeshError, for settings that cannot work. tools: besides search."""
    shards, dapo = sharding.batch_shards(mesh), on_mesh(dapo, mesh)
    sharding.context_shards(mesh, rollout.max_len)
    check_sampling(dapo, rollout, tools)
    trajectories = dapo.groups * dapo.group_size
    cut = max(dapo.minibatches, 0) * max(dapo.micro_batch, 0)  # 0: into none
    if not cut or trajectories % cut or dapo.micro_batch % shards:
        raise ConfigError(
            f"config.dapo: groups × group_size = {trajectories} trajectories do not divide into "
            f"{dapo.minibatches} minibatches of micro-batches of {dapo.micro_batch} over "
            f"the {shards} shards that the mesh splits a batch into"
        )


def check_optim(optim: OptimConfig) -> None:
    """Raises ConfigError for micro-batches that are not this trainer's."""
    if optim.accumulate != 1:
        raise ConfigError(
            f"config.optim.accumulate is {optim.accumulate}; of DAPO it must be 1: set "
            "config.dapo.micro_batch, the rows of a micro-batch, an update has as many as it needs"
        )


def open_judge(cfg: DapoRun, vocab: Vocab) -> tuple[Judge | None, OwnModel | None]:
    """The judge of the reward, and the model that it asks where that is our own."""
    if cfg.dapo.reward != "judge":
        return None, None
    own = OwnModel(vocab, cfg.judge, cfg.rollout) if cfg.judge.own_model else None
    return Judge(cfg.judge, own), own


def check_reward(
    dapo: DapoConfig,
    judge: Judge | None,
    own_model: OwnModel | None,
    right: Sequence[tuple[batches.Prompt, Trajectory]],
) -> None:
    """Raises UserError where a right answer earns nothing, or our own judge has no room for it."""
    if judge and own_model:
        for prompt, trajectory in right:
            answer = rewards.read_answer(trajectory) or ""
            own_model.check_room(judge.asked(prompt.example, answer))
        return
    with RewardPool(dapo, judge) as pool:
        prompt, trajectory = right[0]
        pool.check_sample(prompt.example, trajectory)


def check_config(cfg: DapoRun, search: SearchTool | None = None) -> None:
    """Raises ConfigError for what no data can mend: keys that are empty, and keys that clash.

    SearchError for those of search, which `search` stands for.
    """
    run_folder.check_config(cfg)
    check_sampling(cfg.dapo, cfg.rollout, cfg.tools)
    check_optim(cfg.optim)
    lora.check_lora(cfg.lora)
    check_context(cfg.model, cfg.rollout.max_len, "config.rollout.max_len")
    if cfg.dapo.reward == "judge" and not cfg.judge.own_model:
        Judge(cfg.judge)
    check_budgets(cfg.rollout.tool_turns, [t.name for t in instructions_of(cfg.tools)])
    check_watched(cfg, samples=True)
    if search is None:
        check_named(cfg.search)


def run(cfg: DapoRun, search: SearchTool | None = None) -> dict[str, Any]:
    """Trains to `cfg.dapo.steps`; the last metrics, and `all_updates` that the weights have had.

    `search` stands for cfg.search. Raises ToolOutageError where a tool is down for too long,
    NothingLearnedError after `cfg.dapo.patience` steps in a row without an update, and AlarmError
    or RolledBack by `cfg.alarms.action`.
    """
    check_config(cfg, search)
    check_installed(cfg.log)
    workdir = storage.path(cfg.workdir)
    survival = Survival(cfg.survival, workdir)
    given, rollbacks = cfg, len(read_rollbacks(workdir))
    cfg = after_rollbacks(given, rollbacks)
    mesh = make_mesh(cfg.mesh)
    dapo, rollout = on_mesh(cfg.dapo, mesh), cfg.rollout
    check_settings(dapo, rollout, mesh, cfg.tools)

    # ---- data, search
    vocab = Vocab.load(cfg.tokenizer)
    judge, own_model = open_judge(cfg, vocab)
    manifest = cache.Manifest.load(
        cfg.data, tokenizer=vocab.fingerprint, prompt_style=cfg.prompt.style, tools=cfg.tools
    )
    check_vocabulary(cfg.model, vocab, cfg.tokenizer, cfg.init)
    prompts = batches.prompt_batches(
        manifest,
        dapo.curriculum,
        groups=dapo.groups,
        seed=dapo.seed,
        split=dapo.split,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
        max_len=rollout.max_len,
        lessons=cfg.lessons,
    )
    left_out.check_share(prompts, cfg)
    search = search or open_tool(cfg.search)
    tools = open_tools(cfg.tools, search, cfg.search)
    first = prompts.first(8)
    check_source_passages(search, cfg.search, [p.example for p in first])
    check_reward(dapo, judge, own_model, [(p, right_answer(p, vocab)) for p in first])

    watch = Watch(
        given,  # held-out examples are asked alike before and after a rollback
        dapo.steps,
        prompts.gate,
        vocab,
        lambda: tools,
        survival,
        rollbacks,
    )
    pass_rates = PassRates(dapo.rest_steps, dapo.accuracy_threshold)
    prompts.is_resting = pass_rates.is_resting if dapo.rest_steps else None

    compared = pinned(cfg.init, cfg.model) if has_reference(dapo) else ""
    served: dict[str, str] = {}
    if jax.process_index() == 0:
        served |= index_served(search, cfg.search)
        if judge and not own_model:
            served |= {SERVED: served_of(cfg.judge)}
    folder = run_folder.open_run_folder(
        given,
        "dapo.steps",
        compared=compared,
        served=served,
    )
    if jax.process_index() == 0:
        left_out.write(prompts, cfg, workdir)

    # ---- model, state, programs
    init = folder.compared or pinned(cfg.init, cfg.model)
    model = initial(init, cfg.model, cfg.compute, mesh, cfg.seed, cfg.base)
    params, frozen = lora.trained(model, cfg.lora, mesh, cfg.seed)
    adapters = lora.describe(cfg.lora, model, init, cfg.seed)
    tx = guarded(train_state.make_optimizer(cfg.optim, dapo.steps * dapo.minibatches), cfg.survival)
    reference = train_state.copied(params) if has_reference(dapo) else None
    state = train_state.init_state(params, tx, frozen)
    train_step = train_state.make_train_step(
        make_loss_fn(cfg.compute, dapo, rollout.temperature),
        tx,
        micro_batches(dapo),
        like=state,
        rounding=train_state.rounding_seed(cfg.optim, cfg.seed),
    )
    logprobs = make_logprob_fn(cfg.compute, rollout.temperature)
    update = Update(mesh, dapo, rollout, train_step, logprobs, bool(dapo.keep_rollouts), reference)
    rollout_log = RolloutLog(workdir, dapo.keep_rollouts, dapo.seed, vocab.decode)
    engine = Engine(vocab, tools, rollout, cfg.search, check=survival.raise_if_stopped)

    metrics: dict[str, Any] = {}
    checkpointer = Checkpointer(
        workdir / "checkpoints", cfg.checkpoint, cfg.model, adapters, identity(vocab, cfg.tokenizer)
    )
    with (
        folder,
        engine,
        watch,
        RewardPool(dapo, judge, survival.raise_if_stopped) as pool,
        checkpointer,
        survival,
    ):
        failures = cfg.survival.tool_failures
        sampler = GroupSampler(
            engine, prompts, dapo, rollout, pool, failures, own_model, tools.names
        )
        start = idle = 0  # idle: steps without an update
        if checkpointer.latest_step() is not None:
            with survival.disk("restore"):
                state, extra = checkpointer.restore(state)
            prompts.set_state(extra["prompts"])
            start = extra["step"]
            sampler.restore(extra["sampler"])
            watch.restore(extra["watch"])
            pass_rates.restore(extra["pass_rates"])
            idle = extra["idle"]
            run_folder.tell_start(cfg.workdir, start, dapo.steps)
        guard = Guard(cfg.survival, state.opt_state, start)

        def position() -> dict[str, Any]:
            return {"prompts": prompts.get_state(), "sampler": sampler.state()}

        def save(done: int, at: dict[str, Any]) -> None:
            with survival.disk("save", done):
                extra = at | {"step": done, "sampler": sampler.gather(at["sampler"])}
                extra |= {"watch": watch.state(), "pass_rates": pass_rates.state(), "idle": idle}
                told = metrics if watch.is_best_told(metrics) else None
                checkpointer.save(done, state, extra, told)

        def sample(step: int) -> tuple[list[Group], list[Group]]:
            """Groups with spread, and all.

            A step whose searches or verdicts fail, or which the clock cuts off, is sampled again,
            as if for the first time; one that is told to stop, or for which there is no more time
            to wait, is saved at its start.
            """
            began_at = position()
            patience = Patience(cfg.survival.tool_outage_seconds, survival.raise_if_stopped)
            try:
                while True:
                    try:
                        with survival.phase("sample"):
                            return sampler.step(state.model, step)
                    except Outage as outage:
                        prompts.set_state(began_at["prompts"])
                        sampler.rewind(began_at["sampler"])
                        wait_for(step, patience, outage)
            except (Preempted, ToolOutageError):
                save(step, began_at)
                survival.finish(checkpointer)
                raise

        def wait_for(step: int, patience: Patience, outage: Outage) -> None:
            """Raises ToolOutageError where there is no more time to wait."""
            label = outage.tool.partition(" ")[0]

            def tell(left: float) -> None:
                said = f"{outage.state}, again in {left:.0f} s ({outage})"
                progress.update(step, **{label: said})

            with survival.phase("data"):
                goes_on = patience.wait(tell)
            progress.figures.pop(label, None)
            if not goes_on:
                raise ToolOutageError(
                    f"the {outage.tool} was {outage.state} for "
                    f"{cfg.survival.tool_outage_seconds:g} s (config.survival.tool_outage_seconds) "
                    f"in step {step + 1}: {outage}; the run is saved, start the same command again "
                    f"{outage.until}"
                ) from outage

        def is_due(done: int) -> bool:
            return checkpointer.is_due(done) or done == dapo.steps

        # ---- loop
        told = False  # that there was nothing to learn from
        with (
            MetricWriter(workdir, start - watch.is_behind, cfg.log) as writer,
            jax.set_mesh(mesh),
            Progress("DAPO", dapo.steps, start) as progress,
        ):

            def look(done: int, sampled: Collection[str] = (), **shown: float) -> None:
                """Watches the step and tells its figures, unless a stop cuts that off.

                sampled: names of those of what it sampled.
                """
                is_trained = updates(state.opt_state) > metrics["updates"]
                metrics.update(watch.look(done, state.model, metrics, is_trained))
                watch.check_best(metrics, sampled)
                if watch.is_behind:
                    return
                writer.write(done, metrics)
                known = {name: metrics[name] for name in ("reward", "accuracy") if name in metrics}
                progress.update(done, **known, **shown, **watch.shown())
                if (good := watch.act(done)) is not None:
                    roll_back(workdir, checkpointer, done, good, watch.why())

            if watch.is_behind:
                metrics = watch.owed()
                look(start)
                if watch.is_behind:
                    survival.stop(checkpointer)
                if is_due(start) and watch.is_best_told(metrics):
                    checkpointer.add_metrics(start, metrics)
            if not start:
                sampler.check_own_judge(state.model, [p.example for p in first])
            for step in survival.steps(start, dapo.steps, "update"):
                began, before = time.perf_counter(), dataclasses.replace(engine.stats)
                pass_rates.begin(step)
                kept, seen = sample(step)
                sampled_at = time.perf_counter()
                state, metrics = update(state, kept, step)
                done, of_update = step + 1, set(metrics)
                if "loss" in metrics:
                    guard.check_figures(done, metrics)
                metrics |= figures(
                    seen,
                    kept,
                    sampler.expired,
                    engine.stats.since(before),
                    step,
                    dapo,
                    rollout,
                    tools.names,
                )
                metrics |= pool.timing() | update.timing()
                metrics["sample_seconds"] = sampled_at - began
                metrics["update_seconds"] = time.perf_counter() - sampled_at
                metrics |= behaviour.figures(seen) | {"refills": float(sampler.refills)}
                if dapo.rest_steps:
                    pass_rates.update(step, seen, score_groups(seen, dapo, rollout)[2])
                    metrics |= pass_rates.figures()
                if dapo.keep_rollouts:
                    rollout_log.write(done, step, seen, kept, update.trained)
                look(done, metrics.keys() - of_update, kept=len(kept))
                idle = 0 if metrics["updates"] else idle + 1
                if idle == dapo.warn_after and not told:
                    told = True
                    said = no_spread(idle, metrics, dapo.overlong_filter)
                    print(f"  {said}", file=sys.stderr, flush=True)
                preempted = survival.preemption.is_reached()
                idles = idle >= dapo.patience > 0
                if is_due(done) or idles or preempted:
                    save(done, position())
                if preempted:
                    survival.stop(checkpointer)
                if idles:
                    survival.finish(checkpointer)
                    said = no_spread(idle, metrics, dapo.overlong_filter)
                    raise NothingLearnedError(f"{said} (dapo.patience)")
            survival.finish(checkpointer)
    return metrics | counts(state.opt_state)


def train(cfg: DapoRun) -> dict[str, Any]:
    """What `run` returns, again after each rollback; no success where no update was ever made.

    NothingLearnedError then; a line on stderr where `dapo.patience` is 0, which does not ask.
    """
    found = None
    while found is None:
        try:
            found = run(cfg)
        except RolledBack as back:
            print(f"  rolled back: {back}", file=sys.stderr, flush=True)
    why = (
        "no group of samples was trained on; see accuracy and reward_spread in metrics.jsonl, and "
        "config.dapo.keep_by, dapo.accuracy_threshold, dapo.group_size, dapo.curriculum and init"
    )
    if "reward_spread" in found:  # of the last step; where none was left to do there is none
        why = no_spread(cfg.dapo.steps, found, cfg.dapo.overlong_filter)
    try:
        check_updates(found, cfg.dapo.steps, why)
    except NothingLearnedError as error:
        if cfg.dapo.patience:
            raise
        if jax.process_index() == 0:
            print(f"  nothing was learned: {error}", file=sys.stderr, flush=True)
    return found


if __name__ == "__main__":
    cli.run(
        lambda cfg: train(cfg) and None,
        DapoRun,
        resumes=True,
        read_model=read_model,
        check=check_config,
    )

"""Reinforcement learning with live search: DAPO (arXiv 2503.14476) on RAMP or QA prompts.

    python -m masksearch_jax.train_dapo --config=configs/ramp_dapo.py:qwen2.5-1.5b

Each step: sample groups with the rollout engine, reward them, keep the groups with spread (sampling
again up to a cap), update on rows that trajectories share. Synchronous: a step's tokens come from
the weights that it began with.
"""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np

from masksearch_jax.core import retrieval
from masksearch_jax.core.config import ComputeConfig, DapoConfig, DapoRun, RolloutConfig
from masksearch_jax.core.errors import ConfigError, check_given
from masksearch_jax.core.retrieval import SearchTool
from masksearch_jax.core.tokenizer import Vocab
from masksearch_jax.core.types import Trajectory, to_json
from masksearch_jax.data import batches, cache
from masksearch_jax.data.demonstrations import parse_example
from masksearch_jax.models import head, lora
from masksearch_jax.models.hf_config import read_config
from masksearch_jax.models.load import check_vocabulary, initial, pinned
from masksearch_jax.parallel import hosts, sharding
from masksearch_jax.parallel.sharding import make_mesh
from masksearch_jax.rl import advantages, losses, packing, rewards
from masksearch_jax.rl.groups import Group, lacking, score_groups, to_batch
from masksearch_jax.rollout import sampling
from masksearch_jax.rollout.engine import Engine
from masksearch_jax.rollout.episode import Request
from masksearch_jax.runtime import cli, storage
from masksearch_jax.runtime.metric_writer import MetricWriter
from masksearch_jax.runtime.progress import Progress
from masksearch_jax.search.open import check_sources, open_tool
from masksearch_jax.training import train_state
from masksearch_jax.training.checkpoint import Checkpointer
from masksearch_jax.training.guard import Guard, guarded
from masksearch_jax.training.run_folder import open_run_folder
from masksearch_jax.training.supervisor import Preempted, Survival


def make_loss_fn(
    compute: ComputeConfig, dapo: DapoConfig, temperature: float
) -> train_state.LossFn:
    """The DAPO loss of a batch of `to_batch`, as the update step wants it."""

    def loss_fn(model: Any, batch: dict[str, jax.Array]):
        hidden = model.hidden(batch["ids"], batch["positions"], batch["segment_ids"])
        logp, entropy = head.token_logprobs(
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
        return head.token_logprobs(
            model, hidden, batch["targets"], temperature, compute.loss_chunk
        )[0]

    return logprobs


# Figures of which a process has its part; of the others all have their own.
_TOTALS = ("groups_sampled", "groups_kept", "rollout_tokens_per_second", "restarted")


class GroupSampler:
    """Draws prompts and samples groups; those that are not whole at a step's end go on in the next.

    A prompt's stream is its number in the run, whatever the number of processes.
    """

    def __init__(self, engine: Engine, prompts: Any, dapo: DapoConfig, rollout: RolloutConfig):
        self.engine, self.prompts, self.dapo, self.rollout = engine, prompts, dapo, rollout
        self.partial = rollout.in_flight != "drop"
        self.wanted = dapo.groups // jax.process_count()
        self.stream = 0
        self.open: dict[str, tuple[batches.Prompt, dict[int, Trajectory]]] = {}
        self.again: list[Request] = []

    def state(self) -> dict[str, Any]:
        """JSON of the next stream and of this process's prompts whose groups are open."""
        own = [
            {
                "stream": name,
                "ids": prompt.ids.tolist(),
                "example": json.dumps(to_json(prompt.example)),
            }
            for name, (prompt, _) in self.open.items()
        ]
        return {"stream": self.stream, "open": own}

    @staticmethod
    def gather(state: dict[str, Any]) -> dict[str, Any]:
        """`state` with the prompts of all processes; all must call it."""
        texts = hosts.gather_texts(json.dumps(state["open"]))
        return state | {"open": [p for text in texts for p in json.loads(text)]}

    def restore(self, state: dict[str, Any]) -> None:
        """Goes on from `state`, on any number of processes; open groups are sampled anew."""
        self.stream = state["stream"]
        for saved in state["open"][jax.process_index() :: jax.process_count()]:
            ids = np.asarray(saved["ids"], np.int32)
            prompt = batches.Prompt(ids, parse_example(saved["example"]))
            self.again += self._request(int(saved["stream"]), prompt)

    def step(self, model: Any, version: int) -> tuple[list[Group], list[Group]]:
        """This process's groups with spread, at most its share, and all that it saw."""
        kept: list[Group] = []
        seen: list[Group] = []
        drawn = next(self.prompts)
        ahead = round((self.dapo.oversample - 1) * self.wanted) * jax.process_count()
        if self.partial and ahead and not hosts.any_process(bool(self.open)):
            drawn = [*drawn, *self.prompts.extra(ahead)]
        for round_ in range(max(self.dapo.max_refills, 1)):
            if round_:
                counts = hosts.gather_texts(json.dumps([len(kept), len(seen)]))
                short = lacking([json.loads(c) for c in counts], self.wanted)
                if not short:
                    break
                drawn = self.prompts.extra(short * jax.process_count())
            requests, self.again = self.again + self._requests(drawn), []
            for group in self._sample(model, version, requests, kept):
                seen.append(group)
                if score_groups([group], self.dapo, self.rollout)[2][0]:
                    kept.append(group)
        kept.sort(key=lambda group: group.stream)
        return kept[: self.wanted], sorted(seen, key=lambda group: group.stream)

    def _sample(
        self, model: Any, version: int, requests: list[Request], kept: list[Group]
    ) -> Iterator[Group]:
        """Groups as they become whole; in parts, until `kept` has enough."""

        def enough() -> bool:
            return self.partial and len(kept) >= self.wanted

        for trajectory in self.engine.run(model, requests, version, enough=enough):
            name = trajectory.example_id
            prompt, found = self.open[name]
            found[trajectory.sample] = trajectory
            if len(found) < self.dapo.group_size:
                continue
            del self.open[name]
            example, members = prompt.example, [t for _, t in sorted(found.items())]
            members = [dataclasses.replace(t, example_id=example.id) for t in members]
            parts = [rewards.reward(example, t, self.dapo) for t in members]
            yield Group(example, members, parts, int(name))

    def _requests(self, drawn: Sequence[batches.Prompt]) -> list[Request]:
        """One request per sample of each prompt; streams are numbered as one process would."""
        first = self.stream + jax.process_index() * len(drawn)
        self.stream += jax.process_count() * len(drawn)
        return [r for i, prompt in enumerate(drawn, first) for r in self._request(i, prompt)]

    def _request(self, stream: int, prompt: batches.Prompt) -> list[Request]:
        self.open[str(stream)] = (prompt, {})
        source = retrieval.source_of(prompt.example)
        samples = range(self.dapo.group_size)
        return [Request(str(stream), prompt.ids, stream % 2**32, s, source) for s in samples]


def on_mesh(dapo: DapoConfig, mesh: Any) -> DapoConfig:
    """The config with its number of rows per micro-batch on this mesh."""
    return dataclasses.replace(dapo, micro_batch=dapo.micro_batch or sharding.batch_shards(mesh))


def check(dapo: DapoConfig, rollout: RolloutConfig, mesh: Any) -> int:
    """Trajectories per update on this process. ConfigError, MeshError for what cannot work."""
    parts, dapo = sharding.batch_shards(mesh), on_mesh(dapo, mesh)
    sharding.time_parts(mesh, rollout.max_len)
    if rollout.temperature <= 0:
        raise ConfigError(
            f"config.rollout.temperature is {rollout.temperature}; to train, it must be above 0"
        )
    if sampling.sampler_of(rollout).filters and not dapo.allow_filters:
        raise ConfigError(
            f"config.rollout samples with top_k {rollout.top_k}, top_p {rollout.top_p}, min_p "
            f"{rollout.min_p}: tokens left out make the sampler's log-probabilities differ from "
            "the trainer's; turn them off, or set config.dapo.allow_filters"
        )
    trajectories, processes = dapo.groups * dapo.group_size, jax.process_count()
    cut = max(dapo.minibatches, 0) * max(dapo.micro_batch, 0)  # 0: into none
    if not cut or trajectories % cut or dapo.micro_batch % parts:
        raise ConfigError(
            f"config.dapo: groups × group_size = {trajectories} trajectories do not divide into "
            f"{dapo.minibatches} minibatches of micro-batches of {dapo.micro_batch} over "
            f"the {parts} parts that the mesh splits a batch into"
        )
    return trajectories // processes


def run(cfg: DapoRun, search: SearchTool | None = None) -> dict[str, Any]:
    """Trains to `cfg.dapo.steps`; returns the last metrics. `search` stands for cfg.search."""
    check_given(cfg, workdir="the folder to write", data="the folder that build_cache wrote")
    workdir = storage.path(cfg.workdir)
    survival = Survival(cfg.survival, workdir)
    mesh = make_mesh(cfg.mesh)
    dapo, rollout = on_mesh(cfg.dapo, mesh), cfg.rollout
    parts = sharding.batch_shards(mesh) // hosts.share(mesh)[1]  # of a batch, on this process
    per_part = dapo.micro_batch // sharding.batch_shards(mesh)
    sampled = check(dapo, rollout, mesh)

    # ---- data, search
    vocab = Vocab.load(cfg.tokenizer)
    check_vocabulary(cfg.model, vocab.size)
    manifest = cache.Manifest.load(
        cfg.data, tokenizer=vocab.fingerprint, prompt_style=cfg.prompt.style
    )
    prompts = batches.prompt_batches(
        manifest,
        dapo.curriculum,
        groups=dapo.groups,
        seed=dapo.seed,
        split=dapo.split,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
    )
    search = search or open_tool(cfg.search)
    check_sources(search, cfg.search, [p.example for p in prompts.first(8)])

    open_run_folder(cfg, "dapo.steps")

    # ---- model, state, programs
    init = pinned(cfg.init, cfg.model)
    model = initial(init, cfg.model, cfg.compute, mesh, cfg.seed, cfg.base)
    params, frozen = lora.trained(model, cfg.lora, mesh, cfg.seed)
    adapters = lora.describe(cfg.lora, model, init, cfg.seed)
    tx = guarded(train_state.make_optimizer(cfg.optim, dapo.steps * dapo.minibatches), cfg.survival)
    state = train_state.init_state(params, tx, frozen)
    accumulate = dapo.groups * dapo.group_size // (dapo.minibatches * dapo.micro_batch)
    loss_fn = make_loss_fn(cfg.compute, dapo, rollout.temperature)
    rounding = train_state.rounding_seed(cfg.optim, params, cfg.seed)
    train_step = train_state.make_train_step(loss_fn, tx, accumulate, state, rounding)
    logprob_fn = make_logprob_fn(cfg.compute, rollout.temperature)
    engine = Engine(vocab, search, rollout, cfg.search, check=survival.check)
    sampler = GroupSampler(engine, prompts, dapo, rollout)

    metrics: dict[str, Any] = {}
    checkpoints = Checkpointer(workdir / "checkpoints", cfg.checkpoint, cfg.model, adapters)
    with engine, checkpoints as checkpointer, survival:
        start = 0
        if checkpointer.latest_step() is not None:
            with survival.disk("restore"):
                state, extra = checkpointer.restore(state)
            prompts.set_state(extra["prompts"])
            start = extra["step"]
            sampler.restore(extra["sampler"])
        writer = MetricWriter(workdir, start)
        guard = Guard(cfg.survival, state.opt_state, start)

        def save(done: int, position: dict[str, Any]) -> None:
            with survival.disk("save", done):
                extra = position | {"step": done, "sampler": sampler.gather(position["sampler"])}
                checkpointer.save(done, state, extra, metrics or None)

        # ---- loop
        with jax.set_mesh(mesh), Progress("DAPO", dapo.steps, start) as progress:
            for step in survival.steps(start, dapo.steps, "update"):
                began, before = time.perf_counter(), dataclasses.replace(engine.stats)

                # ---- sample until enough groups have spread
                position = {"prompts": prompts.get_state(), "sampler": sampler.state()}
                try:
                    with survival.phase("sample"):
                        kept, seen = sampler.step(state.model, step)
                except Preempted:  # what this step has sampled is sampled again
                    save(step, position)
                    survival.stop(checkpointer)
                sampled_at = time.perf_counter()

                # ---- update
                outs, fills = [], []
                if hosts.any_process(bool(kept)):
                    total, valid, _ = score_groups(kept, dapo, rollout)
                    advantage = advantages.group_advantages(total, valid)
                    batch = to_batch(kept, advantage, valid, sampled, rollout.max_len)
                    rows = packing.split(hosts.exchange(mesh, batch), parts, dapo.minibatches)
                    packed = [packing.pack(part, parts, per_part) for part in rows]
                    used = hosts.most([micros for _, micros in packed])
                    if dapo.minibatches > 1:
                        for (part, _), micros in zip(packed, used, strict=True):
                            for at in packing.micro_rows(part, parts, per_part)[:micros]:
                                own = hosts.shard_batch(mesh, {k: v[at] for k, v in part.items()})
                                found = logprob_fn(state.model, own)
                                part["logp_old"][at] = hosts.local_rows(found)
                    for (part, _), micros in zip(packed, used, strict=True):
                        placed = hosts.shard_batch(mesh, part, accumulate)
                        state, out = train_step(state, placed, np.int32(micros))
                        outs.append({k: float(v) for k, v in out.items()})
                        fills.append(packing.fill(part, micros * per_part * parts))

                # ---- figures
                metrics = {
                    k: float(np.mean([o[k] for o in outs])) for k in (outs[0] if outs else ())
                }
                if outs:
                    metrics |= {k: v for k, v in outs[-1].items() if k.startswith("skipped")}
                    guard.check(step + 1, metrics)
                own = rollout_metrics(seen, kept) | engine.stats.since(before).figures()
                own |= {k: own[k] * jax.process_count() for k in _TOTALS}
                own["row_fill"] = float(np.mean(fills or 0.0))
                metrics |= hosts.mean_over_processes(own)
                metrics["sample_seconds"] = sampled_at - began
                metrics["update_seconds"] = time.perf_counter() - sampled_at
                done = step + 1
                writer.write(done, metrics)
                progress.update(
                    done, reward=metrics["reward"], accuracy=metrics["accuracy"], kept=len(kept)
                )
                preempted = survival.preemption.reached()
                if checkpointer.is_due(done) or done == dapo.steps or preempted:
                    save(done, {"prompts": prompts.get_state(), "sampler": sampler.state()})
                if preempted:
                    survival.stop(checkpointer)
            survival.finish(checkpointer)
    return metrics


def rollout_metrics(seen: Sequence[Group], kept: Sequence[Group]) -> dict[str, float]:
    """What the sampled groups looked like."""
    trajectories = [t for g in seen for t in g.trajectories]
    parts = [r for g in seen for r in g.rewards]
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
    }


if __name__ == "__main__":
    cli.run(lambda cfg: run(cfg) and None, DapoRun, resumes=True, read_model=read_config)

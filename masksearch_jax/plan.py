"""What a run needs on TPUs: its programs compiled for a slice, ahead of time, without one.

    python -m masksearch_jax.plan --config=configs/ramp_sft.py:qwen2.5-7b \\
        --config.plan.topology=v5p-64 --config.compute.attention=splash

Takes the config of `train_sft` or `train_dapo` as it is, needs libtpu (the `tpu` extra) and no
weights. Memory, collectives and bytes are the compiler's; times are estimates by published peaks.
Exits with 1 where a program does not fit.
"""

from __future__ import annotations

import importlib.util
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.experimental import topologies
from jax.sharding import Mesh

from masksearch_jax import train_dapo, train_sft
from masksearch_jax.core.config import (
    ComputeConfig,
    DapoRun,
    ModelConfig,
    OptimConfig,
    SftRun,
    SurvivalConfig,
)
from masksearch_jax.core.errors import UserError
from masksearch_jax.core.files import write_json
from masksearch_jax.core.types import JsonObject
from masksearch_jax.data.batches import SFT_FIELDS
from masksearch_jax.models import hf, layout, lora, paged_attention, rollout_weights
from masksearch_jax.models.load import read_model
from masksearch_jax.models.transformer import Transformer, stacked
from masksearch_jax.parallel import hosts, sharding
from masksearch_jax.parallel.sharding import PyTree
from masksearch_jax.planning import alternatives, chips, flops, measure, shapes, vector_search
from masksearch_jax.planning.alternatives import Run
from masksearch_jax.planning.hlo import Module
from masksearch_jax.planning.page import page, update_of
from masksearch_jax.rl.sampling_settings import check_sampling
from masksearch_jax.rl.update import batch_fields, has_reference, micro_batches
from masksearch_jax.rollout import decode, memory, schedule
from masksearch_jax.rollout.sampling import sampler_of
from masksearch_jax.runtime import cli
from masksearch_jax.runtime.progress import Clock
from masksearch_jax.training import guard, train_state

# Of a host without TPUs: libtpu asks no metadata server, and does not miss the kind of its chips.
QUIET = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_ACCELERATOR_TYPE": "v5p-8",
}
_FIT = 0.98  # of the HBM: gaps between arrays take some, which the compiler's peak leaves out


class Program(NamedTuple):
    """One jitted function of a run and the shapes that it is called with."""

    name: str
    function: jax.stages.Wrapped
    args: tuple[PyTree, ...]
    held: tuple[int, ...]  # which of these the run keeps on the device anyway
    model_flops: float  # what the model needs for it; 0: not told
    loops: int = 1  # how often those run whose length is not in the program, at most
    rows: int = 0  # of an update
    row_tokens: int = 0
    updates: int = 0  # of the whole run


def mesh_of(cfg: Run) -> tuple[chips.Slice, Mesh]:
    """The slice that is asked for and the run's mesh over its devices.

    Raises PlanError without libtpu or for a slice that does not exist.
    """
    target = chips.parse(cfg.plan.topology)
    if importlib.util.find_spec("libtpu") is None:
        raise chips.PlanError("libtpu, a TPU compiler, is not installed: pip install 'jax[tpu]'")
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    sharding.set_libtpu_args()
    jax.config.update("jax_platforms", "cpu")
    more = {"num_slices": cfg.plan.slices} if cfg.plan.slices > 1 else {}
    try:
        description = topologies.get_topology_desc(
            platform="tpu", topology_name=target.topology, **target.options(), **more
        )
    except Exception as error:  # the compiler's own words for a slice that it does not know
        raise chips.PlanError(f"plan.topology {target.topology}: {error}") from error
    return target, sharding.make_mesh(cfg.mesh, description.devices)


# ---- shapes


def state_of(cfg: Run, mesh: Mesh) -> tuple[train_state.TrainState, optax.GradientTransformation]:
    """Shapes of the training state, laid out as in the run, and its optimizer."""
    steps = cfg.dapo.steps if isinstance(cfg, DapoRun) else cfg.sft.steps
    tx = guard.guarded(train_state.make_optimizer(cfg.optim, steps), cfg.survival)
    parts = lora.shapes(hf.abstract(cfg.model, cfg.compute), cfg.lora)
    state = jax.eval_shape(lambda p, f: train_state.init_state(p, tx, f), *parts)

    def place(subtree: PyTree) -> PyTree:
        if not isinstance(subtree, Transformer):
            return shapes.placed(subtree, mesh)
        return shapes.at(subtree, layout.parameter_shardings(mesh, subtree))

    return jax.tree.map(place, state, is_leaf=lambda x: isinstance(x, Transformer)), tx


def checkpoint_bytes(
    model: ModelConfig, compute: ComputeConfig, optim: OptimConfig, survival: SurvivalConfig
) -> int:
    """Bytes of a checkpoint: the weights and the optimizer's state."""
    tx = guard.guarded(train_state.make_optimizer(optim, 1), survival)
    params = hf.abstract(model, compute)
    state = jax.eval_shape(lambda p: train_state.init_state(p, tx), params)
    return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(state))


# ---- programs


def sft_programs(cfg: SftRun, mesh: Mesh) -> Iterator[Program]:
    state, tx = state_of(cfg, mesh)
    train_sft.check_batch(cfg.sft, cfg.optim, mesh)
    micro = cfg.optim.accumulate
    rows = cfg.sft.batch_size // micro
    batch = shapes.batch(mesh, micro, rows, cfg.sft.seq_len, SFT_FIELDS)
    rounding = train_state.rounding_seed(cfg.optim, cfg.seed)
    loss = train_sft.make_loss_fn(cfg.compute)
    step = train_state.make_train_step(loss, tx, micro, state, rounding)
    tokens = cfg.sft.batch_size * cfg.sft.seq_len
    need = flops.of_training(cfg.model, tokens, cfg.sft.seq_len, cfg.lora.rank > 0)
    size = cfg.sft.batch_size, cfg.sft.seq_len, cfg.sft.steps
    yield Program("update", step, (state, batch), (0,), need, 1, *size)


def dapo_programs(cfg: DapoRun, mesh: Mesh) -> Iterator[Program]:
    state, tx = state_of(cfg, mesh)
    dapo, rollout = train_dapo.on_mesh(cfg.dapo, mesh), cfg.rollout
    train_dapo.check_settings(dapo, rollout, mesh, cfg.tools)
    micro, length = micro_batches(dapo), rollout.max_len
    batch = shapes.batch(mesh, micro, dapo.micro_batch, length, batch_fields(dapo))
    count = shapes.placed(jax.ShapeDtypeStruct((), jnp.int32), mesh)
    loss = train_dapo.make_loss_fn(cfg.compute, dapo, rollout.temperature)
    rounding = train_state.rounding_seed(cfg.optim, cfg.seed)
    step = train_state.make_train_step(loss, tx, micro, state, rounding)
    tokens = micro * dapo.micro_batch * length
    need = flops.of_training(cfg.model, tokens, length, cfg.lora.rank > 0)
    size = micro * dapo.micro_batch, length, dapo.steps * dapo.minibatches
    yield Program("update", step, (state, batch, count, count), (0,), need, micro, *size)
    part = shapes.batch(mesh, 1, dapo.micro_batch, length, batch_fields(dapo))
    logprobs = train_dapo.make_logprob_fn(cfg.compute, rollout.temperature)
    need = flops.of_forward(cfg.model, dapo.micro_batch * length, length)
    if dapo.minibatches > 1 or dapo.keep_rollouts or dapo.sequence_gap:
        yield Program("logprobs", logprobs, (state.model, part), (0,), need)
    if has_reference(dapo):
        yield Program("reference", logprobs, (state.model, part), (0,), need)
    model, held = state.model, (0, 1)
    if rollout_weights.is_needed(cfg.compute, rollout.weights, mesh.shape):
        yield Program("copy", stacked, (model,), (0,), 0.0)
        model, held = copy_of(model, mesh), (1,)
    tick, args = tick_of(cfg, mesh, model)
    yield Program("tick", tick, args, held, 0.0)


def copy_of(model: Transformer, mesh: Mesh) -> Transformer:
    """Shapes of the weights that rollouts read."""
    return shapes.at(
        jax.eval_shape(stacked, model),
        layout.parameter_shardings(mesh, model, whole=True),
    )


def tick_of(
    cfg: DapoRun, mesh: Mesh, model: PyTree
) -> tuple[jax.stages.Wrapped, tuple[PyTree, ...]]:
    """The engine's largest program and the shapes that it is called with."""
    rollout, shards = cfg.rollout, hosts.shards(mesh)
    sizes, dtype = schedule.sizes(rollout, shards), memory.cache_dtype(rollout, cfg.compute)
    at = (shards, sizes.pages, sizes.page_tokens, dtype)
    cache = jax.eval_shape(lambda m: decode.init_cache(m, *at), model)
    cache = jax.tree.map(lambda x: shapes.placed(x, mesh, *sharding.CACHE[: x.ndim]), cache)
    chunks = schedule.chunking(rollout)
    inbox = decode.empty_inbox(shards, sizes.rows[-1], sizes.width, *chunks)
    seed = shapes.placed(jax.ShapeDtypeStruct((), jnp.uint32), mesh)
    stop = shapes.placed(jax.ShapeDtypeStruct((cfg.model.vocab_size,), jnp.bool_), mesh)
    attention = paged_attention.reader(
        rollout.attention, "tpu", cfg.model.head_dim, sizes.page_tokens
    )
    tick = decode.make_tick(rollout.tick_tokens, sampler_of(rollout), attention)
    return tick, (model, cache, shapes.placed(inbox, mesh, "batch"), seed, stop, sizes.rows[-1])


def held_of(programs: list[Program]) -> dict[str, float]:
    """Bytes on a chip that a run keeps from step to step, by kind."""
    state, on_device = programs[0].args[0], sharding.bytes_on_device
    if state.frozen is None:
        found = {"weights": on_device(state.params)}
    else:
        found = {"base_weights": on_device(state.frozen), "adapters": on_device(state.params)}
    found["optimizer"] = on_device(state.opt_state)
    for program in programs:
        if program.name == "reference":  # with adapters, their base is the same
            found["reference"] = on_device(state.params)
        if program.name == "tick":
            found["kv_cache"] = sharding.bytes_on_device(program.args[1])
    return found


# ---- compiling


def compile_program(program: Program, mesh: Mesh, target: chips.Slice) -> JsonObject:
    """A program's figures; `needed` bytes alone where the compiler says that it does not fit."""
    started = time.perf_counter()
    with jax.set_mesh(mesh):
        traced = program.function.trace(*program.args)
        lowered = traced.lower(lowering_platforms=("tpu",))
        try:
            compiled = lowered.compile()
        except jax.errors.JaxRuntimeError as error:
            if (needed := measure.needed(error)) is None:
                raise
            return needed | {"compile_seconds": time.perf_counter() - started}
    module = Module(compiled.as_text(), program.loops)
    wires = module.collectives()
    collectives = measure.wires(wires, [getattr(d, "slice_index", 0) for d in mesh.devices.flat])
    figures: JsonObject = {
        "compile_seconds": time.perf_counter() - started,
        "memory": measure.memory(compiled),
        "held": sum(sharding.bytes_on_device(program.args[i]) for i in program.held),
        "hbm_traffic": module.traffic(),
        "collectives": collectives,
    }
    if not program.model_flops:
        tick = program.name == "tick"
        return figures | (tick_figures(program, module, mesh, target) if tick else {})
    config = getattr(program.args[0], "params", program.args[0]).config
    return figures | {
        "flops": (done := flops.of_program(traced.jaxpr, program.loops)),
        "model_flops": program.model_flops,
        "recompute": done / program.model_flops,
        "weight_stacks_gathered": measure.stacks_gathered(wires, config, mesh.shape["tensor"]),
        "estimate": measure.estimate(
            target.chip,
            devices=mesh.size,
            program_flops=done,
            model_flops=program.model_flops,
            traffic=figures["hbm_traffic"],
            collectives=collectives,
        ),
    }


def tick_figures(
    program: Program, module: Module, mesh: Mesh, target: chips.Slice
) -> dict[str, float]:
    """Bytes that a decode step moves to and from HBM and between chips, and the rate they allow."""
    (body,) = module.loop_bodies("conditional")
    layers = program.args[0].config.num_layers
    step = module.decode_step_bytes(layers, program.args[2].table.shape[-1])
    wires = module.collectives_of(body) * layers + module.collectives_of(*module.branches(body))
    sent = sum(row["ici"] for row in measure.wires(wires, [0] * mesh.size).values())
    seconds = max(step / target.chip.bandwidth, sent / target.chip.ici) * target.chip.devices
    rate = program.args[-1] * hosts.shards(mesh) / seconds
    return {"step_bytes": step, "step_ici": sent, "tokens_per_second_at_most": rate}


def peak_of(figures: JsonObject, held: dict[str, float]) -> float:
    """Bytes on a chip while a program runs, with what the run holds besides its arguments."""
    if "needed" in figures:
        return figures["needed"]
    return sum(figures["memory"].values()) - figures["held"] + sum(held.values())


def plan(cfg: Run, only: str = "") -> JsonObject:
    """Programs of a run compiled for its slice: their figures, and whether they fit.

    `only`: the program of that name alone.
    """
    target, mesh = mesh_of(cfg)
    programs = list((dapo_programs if isinstance(cfg, DapoRun) else sft_programs)(cfg, mesh))
    held = held_of(programs)
    room = target.chip.hbm / target.chip.devices
    results: JsonObject = {
        "topology": target.topology,
        "slices": cfg.plan.slices,
        "chips": target.chips * cfg.plan.slices,
        "mesh": dict(mesh.shape),
        "hbm": room,
        "held": held,
        "programs": {},
    }
    for program in (p for p in programs if only in ("", p.name)):
        with Clock(f"compiling {program.name} for {target.topology}"):
            figures = compile_program(program, mesh, target)
        if program.updates:
            figures["rows"], figures["row_tokens"] = program.rows, program.row_tokens
            figures["updates"] = program.updates
        figures["peak"] = peak_of(figures, held)
        figures["fits"] = "needed" not in figures and figures["peak"] <= _FIT * room
        results["programs"][program.name] = figures
    if isinstance(cfg, DapoRun) and not only:
        most = max(f["peak"] for f in results["programs"].values())
        free = int((_FIT * room - most + held["kv_cache"]) * mesh.size)
        at = hosts.shards(mesh), memory.cache_dtype(cfg.rollout, cfg.compute)
        results["kv"] = memory.room(cfg.model, cfg.rollout, *at, free)._asdict()
    if cfg.plan.passages and not only:
        host = mesh.devices.flat[0].process_index
        devices = sum(d.process_index == host for d in mesh.devices.flat)
        results["vectors"] = [
            vector_search.cost(cfg.plan.passages, dim, target.chip, devices)
            for dim in vector_search.DIMS
        ]
    results["fits"] = all(f["fits"] for f in results["programs"].values())
    return results


# ---- what to change


def improve(cfg: Run) -> list[JsonObject]:
    """What needs less memory, until one fits."""
    tried = []
    for changes, other in alternatives.smaller(cfg):
        try:
            results = plan(other)
        except (ValueError, UserError) as error:  # it does not divide
            tried.append({"changes": list(changes), "error": str(error)})
        else:
            tried.append({"changes": list(changes), "results": results})
            if results["fits"]:
                break
    return tried


def check_config(cfg: Run) -> None:
    """Raises ConfigError for a training that cannot be, PlanError for a slice that does not exist.

    Of both as far as the name of the slice tells it.
    """
    chips.parse(cfg.plan.topology)
    train_state.check_rounding(cfg)
    if isinstance(cfg, DapoRun):
        check_sampling(cfg.dapo, cfg.rollout, cfg.tools)


def run(cfg: Run) -> int:
    """Prints the plan and what to change; 1 where the run does not fit."""
    check_config(cfg)
    results = plan(cfg)
    print(page(results))
    tried = improve(cfg) if cfg.plan.improve and not results["fits"] else []
    for t in tried:
        what = t.get("error") or ("fits" if t["results"]["fits"] else "does not fit")
        print(f"with {', '.join(t['changes'])}: {what}")
    if tried and tried[-1].get("results", {}).get("fits"):
        print(page(tried[-1]["results"]))
    faster = alternatives.quicker(cfg) if cfg.plan.improve and results["fits"] else None
    if faster:
        change, other = faster
        results["quicker"] = {"change": change, "results": (found := plan(other, only="update"))}
        print(f"\nwith {change}:\n{update_of(found)}")
    if cfg.plan.json:
        write_json(Path(cfg.plan.json), results | {"tried": tried})
    return 0 if results["fits"] else 1


if __name__ == "__main__":
    cli.run(run, (SftRun, DapoRun), read_model=read_model, check=check_config)

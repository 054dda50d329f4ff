"""The tick compiled for TPUs, ahead of time, without one: memory, collectives, bytes read.

    python -m benchmarks.rollout_tpu [--json FILE]      needs libtpu (the `tpu` extra)

Per model, topology and way to read the KV cache, 64 slots of 8,192 tokens in pages of 128,
bfloat16: what the compiler needs beyond weights and cache (temp / cache), whether it gathers the
cache, and the bytes that a decode step over a full cache moves to and from HBM against weights +
cache, counted in the compiled tick itself (`planning.hlo`); of the kernel, what it copies. Nothing
is run: these are the compiler's figures, not measured ones.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import time
from collections import Counter
from typing import Any

os.environ |= {"JAX_PLATFORMS": "cpu", "TPU_SKIP_MDS_QUERY": "1"}
os.environ |= {"TPU_WORKER_HOSTNAMES": "localhost"}

import jax
import jax.numpy as jnp
from jax.experimental import mesh_utils, topologies
from jax.sharding import AxisType, Mesh

from configs import common
from masksearch_jax.core.config import ComputeConfig, ModelConfig
from masksearch_jax.core.schema import to_dataclass
from masksearch_jax.models import hf, layout
from masksearch_jax.parallel import sharding
from masksearch_jax.planning import shapes
from masksearch_jax.planning.hlo import Module
from masksearch_jax.planning.measure import memory
from masksearch_jax.rollout import decode
from masksearch_jax.rollout.memory import page_bytes
from masksearch_jax.rollout.sampling import Sampler

SLOTS, LENGTH, PAGE, TICK = 64, 8192, 128, 64
EXTEND, CHUNK = 512, 128
WIDTH = LENGTH // PAGE
# Name as users say it: topology, chips.
TOPOLOGIES = {"v5e-8": ("v5e:2x4", 8), "v5p-8": ("v5p:2x2x1", 4), "v6e-8": ("v6e:2x4", 8)}
MODELS = ("qwen2.5-1.5b", "qwen2.5-7b")
ATTENTION = ("pallas", "xla")
COMPUTE = ComputeConfig("bfloat16", "bfloat16", "xla", "none", 1024)


def mesh_of(topology: str, tensor: int) -> Mesh:
    sharding.set_libtpu_args()
    devices = topologies.get_topology_desc(platform="tpu", topology_name=topology).devices
    shape = (len(devices) // tensor, 1, 1, tensor)
    grid = mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)
    return Mesh(grid, sharding.AXES, axis_types=(AxisType.Auto,) * len(sharding.AXES))


def abstract(mesh: Mesh, config: ModelConfig) -> tuple[Any, Any, Any]:
    """Shapes with shardings of the model, the KV cache and an inbox."""

    model = hf.abstract(config, COMPUTE)
    model = shapes.at(model, layout.parameter_shardings(mesh, model))
    shards = sharding.batch_shards(mesh)
    slots = SLOTS // shards
    cache = jax.eval_shape(lambda: decode.init_cache(model, shards, slots * WIDTH, PAGE, ""))
    cache = jax.tree.map(lambda x: shapes.placed(x, mesh, *sharding.CACHE[: x.ndim]), cache)
    inbox = decode.empty_inbox(shards, slots, WIDTH, EXTEND, CHUNK, 8)
    return model, cache, shapes.placed(inbox, mesh, "batch")


def measure(name: str, model_name: str, attention: str) -> dict[str, Any]:
    topology, _ = TOPOLOGIES[name]
    config = to_dataclass(ModelConfig, common.model(model_name))
    mesh = mesh_of(topology, config.num_kv_heads)
    with jax.set_mesh(mesh):
        model, cache, inbox = abstract(mesh, config)
        seed = shapes.placed(jax.ShapeDtypeStruct((), jnp.uint32), mesh)
        stop = shapes.placed(jax.ShapeDtypeStruct((config.vocab_size,), jnp.bool_), mesh)
        rows = SLOTS // sharding.batch_shards(mesh)
        tick = decode.make_tick(tokens=TICK, sampler=Sampler(1.0), attention=attention)
        started = time.perf_counter()
        traced = tick.trace(model, cache, inbox, seed, stop, rows)
        compiled = traced.lower(lowering_platforms=("tpu",)).compile()
        seconds = time.perf_counter() - started
    cache = SLOTS * WIDTH * page_bytes(config, PAGE, "bfloat16") / mesh.size
    weights = sum(x.size * 2 for x in jax.tree.leaves(model)) / config.num_kv_heads
    temporaries = memory(compiled)["temporaries"]
    module = Module(compiled.as_text())
    step = module.decode_step_bytes(config.num_layers, WIDTH)
    collectives = module.collectives()
    largest = max((c.size for c in collectives if c.kind == "all-gather"), default=0)
    return {
        "mesh": dict(mesh.shape),
        "compile_seconds": round(seconds, 1),
        "weights_gib": weights / 2**30,
        "cache_gib": cache / 2**30,
        "temp_gib": temporaries / 2**30,
        "temp_to_cache": temporaries / cache,
        "largest_all_gather_to_cache": largest / cache,
        "step_bytes_ratio": step / (weights + cache),
        "collectives": dict(sorted(Counter(c.kind for c in collectives).items())),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json")
    parser.add_argument("--models", nargs="*", default=MODELS, choices=MODELS)
    parser.add_argument(
        "--topologies", nargs="*", default=list(TOPOLOGIES), choices=list(TOPOLOGIES)
    )
    parser.add_argument("--attention", nargs="*", default=ATTENTION, choices=ATTENTION)
    args = parser.parse_args()
    results: dict[str, Any] = {"versions": {"jax": jax.__version__, "date": time.strftime("%F")}}
    columns = ("temp_to_cache", "largest_all_gather_to_cache", "step_bytes_ratio")
    print(f"{'':31}{'mesh':14}{'weights':>9}{'cache':>9}{'temp':>9}  " + "  ".join(columns))
    for model, name, how in itertools.product(args.models, args.topologies, args.attention):
        m = measure(name, model, how)
        results.setdefault("tpu", {}).setdefault(name, {}).setdefault(model, {})[how] = m
        mesh = "x".join(str(v) for v in m["mesh"].values())
        gib = "".join(f"{m[k]:8.2f}G" for k in ("weights_gib", "cache_gib", "temp_gib"))
        shown = "  ".join(f"{m[c]:>{len(c)}.3f}" for c in columns)
        print(f"{model:14}{name:10}{how:7}{mesh:14}{gib}  {shown}  {m['collectives']}", flush=True)
    if args.json:
        with open(args.json, "w", encoding="utf-8") as file:
            json.dump(results, file, indent=1)


if __name__ == "__main__":
    main()

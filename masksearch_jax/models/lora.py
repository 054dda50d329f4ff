"""Low-rank adapters (LoRA, arXiv 2106.09685): W + alpha / rank · A·B, of which only A and B train.

Axis key: L layers, I inputs and O outputs of a matrix, R rank. A [L, I, R] and B [L, R, O] are
float32 and stacked as the matrices are; the base may be bfloat16.

They are applied in the forward pass, in training and in rollouts alike. Merging once per update
would need the weights twice on the device and, in bfloat16, round away what an update adds, so that
the sampler and the trainer would disagree; two thin products per matrix cost little beside it.
`merge` is for weights that stay as they are: export, evaluation, the start of another run.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh

from masksearch_jax.core.config import LoraConfig
from masksearch_jax.core.errors import ConfigError
from masksearch_jax.core.schema import check_idle
from masksearch_jax.core.types import JsonObject
from masksearch_jax.models import layout
from masksearch_jax.models.adapters import TARGETS, Adapters
from masksearch_jax.models.transformer import Transformer
from masksearch_jax.parallel import sharding
from masksearch_jax.training import checkpoint_files, train_state


def check_lora(config: LoraConfig) -> None:
    """Raises ConfigError for adapters that cannot be, that add nothing, or that are not asked for.

    These have a negative rank, no target or an unknown one; an alpha of 0; no rank.
    """
    if config.rank < 0:
        raise ConfigError(f"config.lora.rank is {config.rank}; it must be 0 (all weights) or more")
    unknown = [name for name in config.targets if name not in TARGETS]
    if config.rank and (unknown or not config.targets):
        raise ConfigError(f"config.lora.targets is {config.targets}; choose some of {TARGETS}")
    if config.rank and not config.alpha:
        raise ConfigError(
            f"config.lora.alpha is {config.alpha}, with which adapters add nothing, whatever they "
            "learn; it must be above 0 where lora.rank is"
        )
    if not config.rank:
        instead = "choose a rank, such as 16"
        check_idle(config, "config.lora", "lora.rank=0", instead, alpha=0.0, targets=())


def add(model: Transformer, config: LoraConfig, seed: int) -> Transformer:
    """The model with fresh adapters: A uniform within ±1/sqrt(I), as peft's, and B zero.

    So it computes what it did before. The arrays of the base are shared, not copied.
    """
    keys = jax.random.split(jax.random.key(seed), len(TARGETS))
    factors = {}
    for name, key in zip(TARGETS, keys, strict=True):
        if name not in config.targets:
            continue
        layers, inputs, outputs = getattr(model.blocks, name).shape
        bound, shape = inputs**-0.5, (layers, inputs, config.rank)
        factors[f"{name}_a"] = jax.random.uniform(key, shape, jnp.float32, -bound, bound)
        factors[f"{name}_b"] = jnp.zeros((layers, config.rank, outputs), jnp.float32)
    return attach(model, Adapters(factors, config.alpha / config.rank))


def trained(
    model: Transformer, config: LoraConfig, mesh: Mesh, seed: int
) -> tuple[Transformer, Transformer | None]:
    """What a run trains of a model laid out over `mesh`, and what it only reads (None: nothing).

    Both have the model's structure and None for the other's part; `train_state.join` undoes it.
    """
    if not config.rank:
        return model, None
    check_lora(config)
    placed = layout.parameter_shardings(mesh, jax.eval_shape(lambda m: add(m, config, 0), model))
    make = jax.jit(lambda m: add(m, config, seed).blocks.adapters)
    return _split(attach(model, jax.device_put(make(model), placed.blocks.adapters)))


def shapes(model: Transformer, config: LoraConfig) -> tuple[Transformer, Transformer | None]:
    """`trained` of a model of shapes."""
    if not config.rank:
        return model, None
    return _split(jax.eval_shape(lambda m: add(m, config, 0), model))


def _split(model: Transformer) -> tuple[Transformer, Transformer]:
    return train_state.split(model, lambda path: "adapters" in sharding.parameter_name(path))


def merge(model: Transformer, dtype: str) -> Transformer:
    """The model without its adapters: each target's matrix + scale · A·B, summed in float32.

    All of it in `dtype`; a layer at a time.
    """
    adapters = model.blocks.adapters
    out = jax.tree.map(lambda x: x.astype(dtype), attach(model, None))
    out.compute = dataclasses.replace(model.compute, param_dtype=dtype)

    for name in TARGETS:
        weight, a, b = (
            None if leaf is None else leaf[...]
            for leaf in (
                getattr(model.blocks, name),
                getattr(adapters, f"{name}_a"),
                getattr(adapters, f"{name}_b"),
            )
        )
        if a is not None:
            setattr(out.blocks, name, nnx.Param(merged(weight, a, b, adapters.scale, dtype)))
    return out


def merged(weight: jax.Array, a: jax.Array, b: jax.Array, scale: float, dtype: str) -> jax.Array:
    """`merge` of one matrix of all layers."""

    def layer(matrices: tuple[jax.Array, ...]) -> jax.Array:
        weight, a, b = matrices
        return (weight.astype(jnp.float32) + scale * (a @ b)).astype(dtype)

    whole = jax.jit(lambda *matrices: jax.lax.map(layer, matrices), out_shardings=weight.sharding)
    return whole(weight, a, b)


def describe(config: LoraConfig, base: Transformer, init: str, seed: int) -> JsonObject | None:
    """What a checkpoint of adapters says about them and their base, as JSON; None at rank 0.

    init: where the base came from, as `pinned` gives it; `seed`: of random weights.
    """
    if not config.rank:
        return None
    folder, step = checkpoint_files.split(init) if init else ("", None)
    return {
        **dataclasses.asdict(config),
        "targets": list(config.targets),
        "base": str(folder),
        "base_step": step,  # None: it is no checkpoint
        "base_seed": seed,
        "base_dtype": base.compute.param_dtype,
        "base_fingerprint": fingerprint(base),
    }


def fingerprint(model: Transformer, read: Callable[[str], jax.Array] | None = None) -> str:
    """16 hex digits of a model's float32 values, wherever they lie: equal for equal weights.

    A bfloat16 model and the same in float32 are alike. Sums of integers modulo 2^32, each weighted
    by its place, so that the order of the sum, and with it the mesh, does not matter. The model is
    arrays, or shapes whose parameters `read` brings by name, one after the other.
    """

    @jax.jit
    def total(x: jax.Array) -> jax.Array:
        bits = jax.lax.bitcast_convert_type(x.astype(jnp.float32), jnp.uint32)
        place = jnp.zeros(x.shape, jnp.uint32)
        for axis in range(x.ndim):
            place = place * jnp.uint32(2654435761) + jax.lax.broadcasted_iota(
                jnp.uint32, x.shape, axis
            )
        return jnp.sum(bits * (2 * place + 1), dtype=jnp.uint32)

    leaves = jax.tree_util.tree_flatten_with_path(model)[0]
    named = ((sharding.parameter_name(path), x) for path, x in leaves)
    sums = [f"{n} {x.shape} {int(total(read(n) if read else x))}" for n, x in named]
    return hashlib.sha256("\n".join(sums).encode()).hexdigest()[:16]


def attach(model: Transformer, adapters: Adapters | None) -> Transformer:
    """A model of the same arrays with these adapters."""
    copy = jax.tree.map(lambda x: x, model)
    copy.blocks.adapters = nnx.data(adapters)
    return copy

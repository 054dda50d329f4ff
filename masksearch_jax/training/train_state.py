"""Training state, optimizer and the one update step that SFT and RL share.

A step is pure: `step(state, batch) -> (state, metrics)`. What differs between trainers is the loss
function and the loop, not the update.
"""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import NamedSharding, PartitionSpec
from jax.tree_util import KeyPath

from masksearch_jax.core.config import OptimConfig, TrainRun
from masksearch_jax.core.errors import ConfigError
from masksearch_jax.parallel.sharding import PyTree
from masksearch_jax.training import gradients, guard

# (numerator, denominator): a metric is their ratio over the whole global batch.
Metrics = dict[str, tuple[jax.Array, jax.Array]]
LossFn = Callable[[PyTree, PyTree], tuple[jax.Array, jax.Array, Metrics]]

SCHEDULES = ("constant", "linear", "cosine")
_NOT_DECAYED = re.compile(r"norm|bias|scale", re.IGNORECASE)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """Everything an update reads and writes. `step` (int32) counts the updates done.

    `frozen`: the part of the model that is not trained, as `split` leaves it; None: there is none.
    """

    step: jax.Array
    params: PyTree
    opt_state: PyTree
    frozen: PyTree = None

    @property
    def model(self) -> PyTree:
        """The whole model: what is trained and what is not."""
        return join(self.params, self.frozen)


class LearningRateState(NamedTuple):
    """`learning_rate` is the one the last update used."""

    learning_rate: jax.Array


def make_schedule(config: OptimConfig, total_steps: int) -> optax.Schedule:
    """Learning rate at place 0, 1, …: linear warm-up to the peak, then the named decay.

    The warm-up's last update and the one after it run at the peak; place `total_steps - 1` runs at
    `end_lr_ratio` of it (for `constant`, at the peak). Raises ValueError on an unknown schedule.
    """
    if config.schedule not in SCHEDULES:
        raise ValueError(f"optim.schedule is {config.schedule!r}; choose one of {SCHEDULES}")
    peak, end, warmup = config.learning_rate, config.end_lr_ratio, config.warmup_steps
    decay_steps = max(total_steps - 1 - warmup, 1)

    def schedule(count: jax.Array) -> jax.Array:
        rise = jnp.minimum((count + 1) / max(warmup, 1), 1.0)
        done = jnp.clip((count - warmup) / decay_steps, 0.0, 1.0)
        shape = {
            "constant": jnp.zeros_like(done),
            "linear": done,
            "cosine": (1 - jnp.cos(jnp.pi * done)) / 2,
        }[config.schedule]
        return jnp.asarray(peak * rise * (1 - (1 - end) * shape), jnp.float32)

    return schedule


def make_optimizer(config: OptimConfig, total_steps: int) -> optax.GradientTransformationExtraArgs:
    """AdamW: global-norm clipping, float32 moments, decay on matrices only (not norms, not biases).

    `clip_norm` 0 turns clipping off. `update` wants the update's `place` in a schedule of
    `total_steps` places, int32[].
    """
    schedule = make_schedule(config, total_steps)
    clip = optax.clip_by_global_norm(config.clip_norm) if config.clip_norm else optax.identity()
    chain = optax.chain(
        clip,
        optax.scale_by_adam(config.b1, config.b2, config.eps),
        _weight_decay(config.weight_decay),
        _scale_by_learning_rate(schedule),
    )

    def init(params: PyTree) -> PyTree:
        # Moments take the dtype of what `init` sees: bf16 weights must not make bf16 moments.
        return chain.init(_float32(params))

    def update(
        grads: PyTree, state: PyTree, params: PyTree = None, **more: object
    ) -> tuple[PyTree, PyTree]:
        with jax.numpy_dtype_promotion("standard"):  # optax raises a float to an int32 step count
            return chain.update(grads, state, params, **more)

    return optax.GradientTransformationExtraArgs(init, update)


def is_decayed(path: KeyPath) -> bool:
    """True when weight decay applies to the parameter at this pytree path: told by its name.

    By name and not by rank, since stacked layers give a norm's scale the shape [L, M].
    """
    return not _NOT_DECAYED.search(jax.tree_util.keystr(path))


def split(model: PyTree, wanted: Callable[[KeyPath], bool]) -> tuple[PyTree, PyTree]:
    """The leaves whose path is wanted, and the others; each with None where the other has them."""

    def subtree(keep: bool) -> PyTree:
        return jax.tree_util.tree_map_with_path(
            lambda path, x: x if wanted(path) is keep else None, model
        )

    return subtree(True), subtree(False)


def join(params: PyTree, frozen: PyTree) -> PyTree:
    """The model that was `split`; params itself where nothing is frozen."""
    if frozen is None:
        return params
    return jax.tree.map(
        lambda a, b: b if a is None else a, params, frozen, is_leaf=lambda x: x is None
    )


def init_state(
    params: PyTree, tx: optax.GradientTransformation, frozen: PyTree = None
) -> TrainState:
    """The state before the first update; moments are sharded as the parameters they belong to."""
    state = TrainState(jnp.zeros((), jnp.int32), params, tx.init(params), frozen)
    sharding = getattr(jax.tree.leaves(params)[0], "sharding", None)  # None while tracing
    if not isinstance(sharding, NamedSharding):
        return state
    replicated = NamedSharding(sharding.mesh, PartitionSpec())
    # Not `device_put`: across processes, nothing that it returns can be asked for its shards.
    put = jax.jit(jnp.copy, out_shardings=replicated)
    return jax.tree.map(lambda x: put(np.asarray(x)) if x.ndim == 0 else x, state)


def copied(params: PyTree) -> PyTree:
    """The same values, laid out alike, in arrays of their own, which no update donates."""
    return jax.jit(lambda tree: jax.tree.map(jnp.copy, tree))(params)


def check_rounding(cfg: TrainRun) -> None:
    """Raises ConfigError where weights would be rounded that are trained in float32."""
    if cfg.optim.rounding == "nearest":
        return
    trained = f"config.compute.param_dtype is {cfg.compute.param_dtype}"
    if cfg.lora.rank:
        trained = f"config.lora.rank is {cfg.lora.rank}, and adapters are float32"
    elif cfg.compute.param_dtype == "bfloat16":
        return
    raise ConfigError(
        f"config.optim.rounding is {cfg.optim.rounding!r}, which is of weights in bfloat16, and "
        f"{trained}; give compute.param_dtype=bfloat16 and no adapters, or optim.rounding=nearest"
    )


def rounding_seed(config: OptimConfig, seed: int) -> int | None:
    """`rounding` of make_train_step."""
    return None if config.rounding == "nearest" else seed


def make_train_step(
    loss_fn: LossFn,
    tx: optax.GradientTransformation,
    accumulate: int = 1,
    like: TrainState | None = None,
    rounding: int | None = None,
) -> jax.stages.Wrapped:
    """A jitted update, `step(state, batch, used, place) -> (state, metrics)`; it donates its state.

    loss_fn(model, batch) returns (sum, count, {name: (sum, count)}); a name that ends in `_max` is
    combined by maximum. Sums and gradients are added over `accumulate` micro-batches (leading batch
    axis, absent when 1) and over the mesh, then divided once by the whole batch's count: the update
    does not depend on how a batch is cut. `used`, int32[] or None for all: how many micro-batches
    hold anything; no more are computed. `place`, int32[], in the schedule; None: as many updates
    came before. `like`, a sharded state, fixes the result's shardings.
    `rounding`: seed of the stochastic rounding of bfloat16 weights; None: to the nearest.
    metrics: float32 scalars `loss`, `loss_weight` (the count), `grad_norm` (before clipping), `lr`
    (where `tx` comes from make_optimizer), the guard's (where `tx` is guarded), and the loss
    function's own.
    """
    update = optax.with_extra_args_support(tx).update
    objective = functools.partial(_objective, loss_fn)

    def step(
        state: TrainState,
        batch: PyTree,
        used: jax.Array | None = None,
        place: jax.Array | None = None,
    ) -> tuple[TrainState, dict[str, jax.Array]]:
        grads, (total, count, sums) = gradients.gradient(
            objective, state.params, state.frozen, batch, accumulate, used
        )
        divisor = jnp.where(count > 0, count, 1)
        grads = jax.tree.map(lambda g: g / divisor, grads)
        loss = total / divisor
        place = state.step if place is None else place
        updates, opt_state = update(grads, state.opt_state, state.params, value=loss, place=place)
        params = _apply(state.params, updates, rounding, state.step)
        metrics = {name: _finish(name, *pair) for name, pair in sums.items()}
        metrics |= {"loss": loss, "loss_weight": count} | guard.figures(opt_state)
        metrics |= {"grad_norm": optax.tree.norm(grads)} | _rate(opt_state)
        return TrainState(state.step + 1, params, opt_state, state.frozen), metrics

    shardings = None if like is None else (jax.tree.map(lambda x: x.sharding, like), None)
    return jax.jit(step, donate_argnums=0, out_shardings=shardings)


def _objective(
    loss_fn: LossFn, params: PyTree, frozen: PyTree, batch: PyTree
) -> tuple[jax.Array, PyTree]:
    total, count, sums = loss_fn(join(params, frozen), batch)
    return total, _float32((total, count, sums))


def _rate(opt_state: PyTree) -> dict[str, jax.Array]:
    rate = optax.tree.get(opt_state, "learning_rate")
    return {} if rate is None else {"lr": rate}


def _finish(name: str, total: jax.Array, count: jax.Array) -> jax.Array:
    if name.endswith("_max"):
        return total
    return total / jnp.where(count > 0, count, 1)


def _apply(params: PyTree, updates: PyTree, rounding: int | None, step: jax.Array) -> PyTree:
    sums = jax.tree.map(lambda p, u: p.astype(jnp.float32) + u, params, updates)
    if rounding is None:
        return jax.tree.map(lambda x, p: x.astype(p.dtype), sums, params)
    leaves, structure = jax.tree.flatten(sums)
    keys = jax.random.split(jax.random.fold_in(jax.random.key(rounding), step), len(leaves))
    return jax.tree.unflatten(structure, map(round_stochastically, leaves, keys))


def round_stochastically(x: jax.Array, key: jax.Array) -> jax.Array:
    """bfloat16 of float32 x, one of its two neighbours by chance, so that the mean is x.

    The upper is as likely as x is far from the lower: 16 random bits are added to those that
    bfloat16 lacks. The same key gives the same on any mesh.
    """
    bits = jax.lax.bitcast_convert_type(x, jnp.uint32)
    noise = jax.random.bits(key, x.shape, jnp.uint16).astype(jnp.uint32)
    kept = (bits + noise) & jnp.uint32(0xFFFF0000)
    rounded = jax.lax.bitcast_convert_type(kept, jnp.float32)
    return jnp.where(jnp.isfinite(x), rounded, x).astype(jnp.bfloat16)


def _float32(tree: PyTree) -> PyTree:
    return jax.tree.map(lambda x: x.astype(jnp.float32), tree)


def _weight_decay(rate: float) -> optax.GradientTransformation:
    def add(updates: PyTree, params: PyTree) -> PyTree:
        return jax.tree_util.tree_map_with_path(
            lambda path, u, p: u + rate * p.astype(u.dtype) if is_decayed(path) else u,
            updates,
            params,
        )

    return optax.stateless(add)


def _scale_by_learning_rate(schedule: optax.Schedule) -> optax.GradientTransformationExtraArgs:
    def init(params: PyTree) -> LearningRateState:
        return LearningRateState(schedule(jnp.zeros((), jnp.int32)))

    def update(
        updates: PyTree,
        state: LearningRateState,
        params: PyTree = None,
        *,
        place: jax.Array,
        **_: object,
    ) -> tuple[PyTree, LearningRateState]:
        rate = schedule(place)
        return jax.tree.map(lambda u: -rate * u, updates), LearningRateState(rate)

    return optax.GradientTransformationExtraArgs(init, update)

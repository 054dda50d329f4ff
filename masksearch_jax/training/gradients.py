"""The gradient of a batch that may come in micro-batches, on a mesh that may have replicas."""

from __future__ import annotations

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jax.tree_util import KeyPath

from masksearch_jax.parallel import sharding
from masksearch_jax.parallel.sharding import PyTree

# objective(params, frozen, batch) -> (what is differentiated, float32 figures to be added up)
Objective = Callable[[PyTree, PyTree, PyTree], tuple[jax.Array, PyTree]]


def gradient(
    objective: Objective,
    params: PyTree,
    frozen: PyTree,
    batch: PyTree,
    accumulate: int,
    used: jax.Array | None,
) -> tuple[PyTree, PyTree]:
    """float32 gradient with respect to params, and figures, added up over a batch.

    `accumulate` above 1: over the first `used` (None: all) of as many micro-batches, the leading
    axis of every leaf; figures whose name ends in `_max` are combined by maximum. Each replica of a
    mesh adds up what its own rows give, and these are summed once: the compiler would do so for
    each micro-batch, between slices over the slowest wires there are. Raises ValueError for another
    number of micro-batches.
    """
    if accumulate == 1:
        grads, sums = jax.grad(objective, has_aux=True)(params, frozen, batch)
        return jax.tree.map(lambda g: g.astype(jnp.float32), grads), sums
    counts = {x.shape[0] for x in jax.tree.leaves(batch)}
    if counts != {accumulate}:
        raise ValueError(f"leading batch axes are {sorted(counts)}; every one must be {accumulate}")
    add = functools.partial(_added, objective)
    # A number of its own makes a loop of known length.
    some = accumulate if used is None else used
    if sharding.replicas() == 1:
        return add(some, params, frozen, batch)

    def replica(*args: PyTree) -> tuple[PyTree, PyTree]:
        return jax.tree_util.tree_map_with_path(_over_replicas, add(some, *args))

    return jax.shard_map(
        replica,
        in_specs=(PartitionSpec(), PartitionSpec(), PartitionSpec(None, sharding.REPLICAS)),
        out_specs=PartitionSpec(),
        axis_names={sharding.REPLICAS},
        check_vma=False,
    )(params, frozen, batch)


def _added(
    objective: Objective, used: int | jax.Array, params: PyTree, frozen: PyTree, batch: PyTree
) -> tuple[PyTree, PyTree]:
    """Gradient and figures of the first `used` micro-batches.

    The backward pass adds each layer's gradient to its place in the sum as soon as it has it, so
    that there is no second gradient beside the sum. That of weights in another dtype (bfloat16) is
    made whole first: a reference takes its own dtype only.
    """

    def micro_batch(i: int | jax.Array) -> PyTree:
        return jax.tree.map(lambda x: jax.lax.dynamic_index_in_dim(x, i, keepdims=False), batch)

    leaves, structure = jax.tree.flatten(params)
    kept = [jax.new_ref(jnp.zeros(x.shape, jnp.float32)) for x in leaves]
    # JAX's own types lack both this class and `with_refs` below.
    whole = jax.ad.GradValue  # type: ignore[attr-defined]
    into = [ref if x.dtype == jnp.float32 else whole() for ref, x in zip(kept, leaves, strict=True)]

    def add(i: jax.Array, sums: PyTree) -> PyTree:
        micro = micro_batch(i)
        total, backward, found_sums = jax.vjp(
            lambda parts: objective(jax.tree.unflatten(structure, parts), frozen, micro),
            leaves,
            has_aux=True,
        )
        with_refs = backward.with_refs  # type: ignore[attr-defined]  # as above
        (found,) = with_refs(into)(jnp.ones_like(total))
        for ref, target, grad in zip(kept, into, found, strict=True):
            if target is not ref:
                ref[...] += grad.astype(jnp.float32)
        return jax.tree_util.tree_map_with_path(_combine, sums, found_sums)

    shapes = jax.eval_shape(lambda: objective(params, frozen, micro_batch(0))[1])
    start = jax.tree_util.tree_map_with_path(_neutral, shapes)
    sums = jax.lax.fori_loop(0, used, add, start)
    return jax.tree.unflatten(structure, [jax.freeze(ref) for ref in kept]), sums


def _is_maximum(path: KeyPath) -> bool:
    return any(str(getattr(key, "key", "")).endswith("_max") for key in path)


def _neutral(path: KeyPath, x: jax.ShapeDtypeStruct) -> jax.Array:
    return jnp.full(x.shape, -jnp.inf if _is_maximum(path) else 0.0, x.dtype)


def _combine(path: KeyPath, a: jax.Array, b: jax.Array) -> jax.Array:
    return jnp.maximum(a, b) if _is_maximum(path) else a + b


def _over_replicas(path: KeyPath, x: jax.Array) -> jax.Array:
    return (jax.lax.pmax if _is_maximum(path) else jax.lax.psum)(x, sharding.REPLICAS)

"""The weights as a rollout reads them: a copy made once for many ticks, in the compute dtype.

A decode step reads every weight to multiply a few rows by it. Those that devices share would be
gathered anew for every token, those kept in float32 for training are twice the bytes to read.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

import jax
import jax.numpy as jnp

from masksearch_jax.core.config import ComputeConfig
from masksearch_jax.models import parameters
from masksearch_jax.parallel import sharding

Weights = TypeVar("Weights")  # a pytree of parameters by our names


def is_shared(sizes: Mapping[str, int]) -> bool:
    """Whether devices of a mesh of these sizes share weights: none has all that it needs."""
    return any(sizes.get(axis, 1) > 1 for axis in sharding.RULES[sharding.SHARED])


def is_unrolled(weights: str, sizes: Mapping[str, int]) -> bool:
    """Whether the copy is an `unrolled.Unrolled`: where no weight is split, but for TPUs."""
    split = (is_shared(sizes) and weights == "shared") or sizes.get("tensor", 1) > 1
    return not split and jax.default_backend() != "tpu"


def is_needed(compute: ComputeConfig, weights: str, sizes: Mapping[str, int]) -> bool:
    """Whether rollouts with stacked weights read a copy: not shared, or of another dtype."""
    if is_shared(sizes):
        return weights == "whole"
    return jnp.dtype(compute.param_dtype) != jnp.dtype(compute.dtype)


def whole(model: Weights, dtype: str) -> Weights:
    """The model in this dtype, split by the mesh's `tensor` alone; within a jitted function.

    Adapters keep their dtype. Stacks are gathered layer by layer, so that none is there twice.
    """
    found, structure = jax.tree_util.tree_flatten_with_path(model)
    names = [sharding.parameter_name(path) for path, _ in found]

    def place(name: str, leaf: jax.Array, axes: tuple[str, ...]) -> jax.Array:
        return sharding.constrain(leaf if ".adapters." in name else leaf.astype(dtype), *axes)

    def layer(leaves: dict[str, jax.Array]) -> dict[str, jax.Array]:
        return {n: place(n, x, parameters.whole_axes(n)[1:]) for n, x in leaves.items()}

    leaves = dict(zip(names, (leaf for _, leaf in found), strict=True))
    if is_shared(jax.sharding.get_abstract_mesh().shape):
        leaves |= jax.lax.map(layer, {n: x for n, x in leaves.items() if n.startswith("blocks.")})
    return structure.unflatten(place(n, x, parameters.whole_axes(n)) for n, x in leaves.items())

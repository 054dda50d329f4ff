"""The weights as a rollout reads them: a copy made once for many ticks, in the compute dtype.

A decode step reads every weight to multiply a few rows by it. Those that devices share would be
gathered anew for every token, those kept in float32 for training are twice the bytes to read.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

import jax
import jax.numpy as jnp

from masksearch_jax import sharding
from masksearch_jax.config import ComputeConfig

Model = TypeVar("Model")


def is_shared(sizes: Mapping[str, int]) -> bool:
    """Whether devices of a mesh of these sizes share weights: none has all that it needs."""
    return any(sizes.get(axis, 1) > 1 for axis in ("fsdp", "context"))


def is_unrolled(weights: str, sizes: Mapping[str, int]) -> bool:
    """Whether the copy is an `unrolled.Unrolled`: where no weight is split, but for TPUs."""
    split = (is_shared(sizes) and weights == "shared") or sizes.get("tensor", 1) > 1
    return not split and jax.default_backend() != "tpu"


def is_needed(compute: ComputeConfig, weights: str, sizes: Mapping[str, int]) -> bool:
    """Whether rollouts with stacked weights read a copy: not shared, or of another dtype."""
    if is_shared(sizes):
        return weights == "whole"
    return jnp.dtype(compute.param_dtype) != jnp.dtype(compute.dtype)


def whole(model: Model) -> Model:
    """The model in the compute dtype, split by the mesh's `tensor` alone; within a jitted function.

    Adapters keep their dtype.
    """
    dtype = jnp.dtype(model.compute.dtype)

    def place(path: tuple[Any, ...], leaf: jax.Array) -> jax.Array:
        name = sharding.parameter_name(path)
        leaf = leaf if ".adapters." in name else leaf.astype(dtype)
        return sharding.constrain(leaf, *sharding.whole_axes(name))

    return jax.tree_util.tree_map_with_path(place, model)


stacked = jax.jit(whole)

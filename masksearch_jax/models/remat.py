"""What the backward pass finds of a layer besides its input; the rest is computed again."""

from __future__ import annotations

from typing import Any

import jax

_POLICIES = jax.checkpoint_policies


def _dots(primitive: Any, *args: object, **params: object) -> bool:
    """Products with weights, and what attention's kernels found, as dear as a product."""
    kernel = primitive.name.startswith(("pallas_call", "dot_product_attention_fwd"))
    return kernel or _POLICIES.dots_with_no_batch_dims_saveable(primitive, *args, **params)


REMAT = {
    "dots": _dots,
    "offload": _POLICIES.offload_dot_with_no_batch_dims("device", "pinned_host"),
    "block": _POLICIES.nothing_saveable,
}

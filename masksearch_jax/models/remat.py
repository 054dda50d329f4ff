"""What the backward pass finds of a layer besides its input; the rest is computed again."""

from __future__ import annotations

import jax
from jax.ad_checkpoint import checkpoint_name
from jax.extend.core import Primitive

_POLICIES = jax.checkpoint_policies
_KEPT = "product"


def keep(x: jax.Array) -> jax.Array:
    """Marks what products made for the policies that save or offload it.

    JAX's own policies for products do not see those of functions with a gradient of their own.
    """
    return checkpoint_name(x, _KEPT)


def _is_kept(primitive: Primitive, *args: object, **params: object) -> bool:
    """What is marked, and what attention's kernels found, as dear as a product."""
    kernel = primitive.name.startswith(("pallas_call", "dot_product_attention_fwd"))
    return kernel or _POLICIES.save_only_these_names(_KEPT)(primitive, *args, **params)


REMAT = {
    "dots": _is_kept,
    "offload": _POLICIES.save_and_offload_only_these_names(
        names_which_can_be_saved=[],
        names_which_can_be_offloaded=[_KEPT],
        offload_src="device",
        offload_dst="pinned_host",
    ),
    "block": _POLICIES.nothing_saveable,
}

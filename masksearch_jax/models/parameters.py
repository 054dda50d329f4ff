"""The names of our weights and the logical axes of each."""

from masksearch_jax.parallel.sharding import SHARED

# Logical axes of every parameter, by its path in the model.
PARAMETERS: dict[str, tuple[str, ...]] = {
    "embedding": ("vocab", "model"),
    "head": ("vocab", "model"),
    "norm": ("norm",),
    "blocks.attention_norm": ("layers", "norm"),
    "blocks.q": ("layers", "model", "heads"),
    "blocks.k": ("layers", "model", "kv_heads"),
    "blocks.v": ("layers", "model", "kv_heads"),
    "blocks.q_bias": ("layers", "heads"),
    "blocks.k_bias": ("layers", "kv_heads"),
    "blocks.v_bias": ("layers", "kv_heads"),
    "blocks.q_norm": ("layers", "norm"),
    "blocks.k_norm": ("layers", "norm"),
    "blocks.o": ("layers", "heads", "model"),
    "blocks.mlp_norm": ("layers", "norm"),
    "blocks.gate": ("layers", "model", "hidden"),
    "blocks.up": ("layers", "model", "hidden"),
    "blocks.down": ("layers", "hidden", "model"),
}
# An adapter's A is split as its matrix's inputs, B as its outputs.
PARAMETERS |= {
    f"blocks.adapters.{name}_{half}": axes
    for name in ("q", "k", "v", "o", "gate", "up", "down")
    for half, axes in (
        ("a", (*PARAMETERS[f"blocks.{name}"][:2], "rank")),
        ("b", ("layers", "rank", PARAMETERS[f"blocks.{name}"][2])),
    )
}


def whole_axes(name: str) -> tuple[str, ...]:
    """Logical axes of a parameter of that name that no devices share."""
    return tuple("any" if axis == SHARED else axis for axis in PARAMETERS[name])

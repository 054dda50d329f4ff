"""What an exact search among vectors on a run's own devices costs, by their number and length.

As `search.nearest=device` keeps them: float16, each device of a host with a part, every host with
all of them. Computed from sizes and published peaks; nothing is compiled or measured.
"""

from __future__ import annotations

from masksearch_jax.planning.chips import Chip

DIMS = (384, 768)  # numbers of a vector: MiniLM, E5-small and BGE-small; E5-base and BGE-base
BATCH = 64  # queries that are searched for at once, at most
_VECTOR, _SCORE = 2, 4  # bytes of a number
_PASSES = 6  # bfloat16 products in one of float32 at full precision


def cost(passages: int, dim: int, chip: Chip, devices: int) -> dict[str, float]:
    """Bytes and seconds; devices: of a host.

    disk: of the file. held: on a device, the vectors. scores: on a device besides, while a batch is
    searched for. query_seconds, batch_seconds: of one query and of a full batch, at least.
    """
    part = -(-passages // devices)
    held, scores = part * dim * _VECTOR, part * BATCH * _SCORE

    def seconds(queries: int) -> float:
        moved = held + 2 * part * queries * _SCORE  # scores are written and read
        products = 2.0 * part * dim * queries * _PASSES
        return max(moved / chip.bandwidth, products / chip.flops) * chip.devices

    return {
        "passages": passages,
        "dim": dim,
        "devices": devices,
        "disk": float(passages * dim * _VECTOR),
        "held": float(held),
        "scores": float(scores),
        "query_seconds": seconds(1),
        "batch_seconds": seconds(BATCH),
    }

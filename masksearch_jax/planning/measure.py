"""What a compiled program needs of a chip: memory, operations, traffic; and how long that takes."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any

from masksearch_jax.core.config import ModelConfig
from masksearch_jax.planning import chips
from masksearch_jax.planning.hlo import Collective

# How often a ring of many devices sends what it gathers or sums.
_ROUNDS = {"all-reduce": 2.0}


def memory(compiled: Any) -> dict[str, float]:
    """Bytes on a chip: what a program is given, returns elsewhere, needs besides, and its code.

    By the compiler's peak, which is what it refuses a program by. Of updates with donated arguments
    its `temp_size_in_bytes` is up to half as much again.
    """
    found = compiled.memory_analysis()
    given = float(found.argument_size_in_bytes)
    results = float(found.output_size_in_bytes - found.alias_size_in_bytes)
    return {
        "arguments": given,
        "results": results,
        "temporaries": float(found.peak_memory_in_bytes) - given - results,
        "code": float(found.generated_code_size_in_bytes),
    }


def needed(error: Exception) -> dict[str, float] | None:
    """Bytes by the compiler's message that a program does not fit; None for another error."""
    text = str(error)
    if "RESOURCE_EXHAUSTED" not in text and "Ran out of memory" not in text:
        return None
    units = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
    sizes = [float(n) * units[u] for n, u in re.findall(r"([\d.]+)([KMGT])", text)]
    return {"needed": max(sizes, default=float("nan"))}


def wires(
    collectives: Sequence[Collective], slice_of: Sequence[int]
) -> dict[str, dict[str, float]]:
    """Per kind: count, bytes per run within a slice (`ici`) and between slices (`dcn`), on a chip.

    As a ring sends them: of G devices each sends G - 1 parts of what is gathered or scattered, and
    twice as many of what is summed for all. slice_of: of each device by its place in the mesh.
    """
    found: dict[str, dict[str, float]] = {}
    one_of_each = tuple({number: device for device, number in enumerate(slice_of)}.values())
    # The text does not tell the groups of a sum between slices, or of one over all devices.
    untold = one_of_each if len(one_of_each) > 1 else tuple(range(len(slice_of)))
    for c in collectives:
        row = found.setdefault(c.kind, {"count": 0.0, "ici": 0.0, "dcn": 0.0})
        groups = c.groups or (untold,)
        between = any(len({slice_of[d] for d in group}) > 1 for group in groups)
        share = 1.0 if c.kind == "collective-permute" else 1.0 - 1.0 / len(groups[0])
        sent = c.size * c.times * share * _ROUNDS.get(c.kind, 1.0)
        row["count"] += 1
        row["dcn" if between else "ici"] += sent
    return dict(sorted(found.items()))


def estimate(
    chip: chips.Chip,
    *,
    devices: int,
    program_flops: float,
    model_flops: float,
    traffic: float,
    collectives: dict[str, dict[str, float]],
) -> dict[str, float]:
    """Seconds by published peaks, if all overlapped: the longest of them, never measured.

    program_flops and model_flops over all devices; traffic on one.
    """
    share = chip.devices  # a chip's figures are for all its devices
    peak = chip.flops / share
    seconds = {
        "compute": program_flops / devices / peak,
        "hbm": traffic / (chip.bandwidth / share),
        "ici": sum(row["ici"] for row in collectives.values()) / (chip.ici / share),
        "dcn": sum(row["dcn"] for row in collectives.values()) / chips.DCN,
    }
    bound = max(seconds, key=seconds.__getitem__)
    total = seconds[bound]
    found = {f"{name}_seconds": value for name, value in seconds.items()}
    return found | {"seconds": total, "mfu": model_flops / devices / peak / total, "bound": bound}


def stacks_gathered(collectives: Sequence[Collective], config: ModelConfig, tensor: int) -> int:
    """All-gathers of a matrix of all layers at once, [layers, ., .], where one layer's would do."""
    least = config.num_layers * config.hidden_size * config.num_kv_heads * config.head_dim / tensor
    return sum(
        c.kind == "all-gather"
        and len(c.dims) == 3
        and c.dims[0] == config.num_layers
        and math.prod(c.dims) >= least  # one layer's by heads may have as many of these
        for c in collectives
    )

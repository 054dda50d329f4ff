"""TPU slices by the names that people use, and what a chip can do by its published peaks."""

from __future__ import annotations

import dataclasses
import difflib
import math
import re
from typing import Any

GIB = 2**30


class PlanError(ValueError):
    """A slice that does not exist, or that cannot be planned for here."""


@dataclasses.dataclass(frozen=True)
class Chip:
    """One chip: memory as its compiler has it, the rest as published (Cloud TPU documentation)."""

    flops: float  # bfloat16 per second
    hbm: float  # bytes that programs may take
    bandwidth: float  # of HBM, bytes per second
    ici: float  # all links together, bytes per second, one way
    dimensions: int  # of the torus
    is_named_by_cores: bool  # whether N of KIND-N counts cores, two per chip
    devices: int  # that JAX sees per chip


CHIPS = {
    "v4": Chip(275e12, 30.75 * GIB, 1228e9, 300e9, 3, True, 1),
    "v5e": Chip(197e12, 15.75 * GIB, 819e9, 200e9, 2, False, 1),
    "v5p": Chip(459e12, 95.74 * GIB, 2765e9, 600e9, 3, True, 1),
    "v6e": Chip(918e12, 31.25 * GIB, 1640e9, 448e9, 2, False, 1),
    "tpu7x": Chip(2307e12, 2 * 94.75 * GIB, 7380e9, 1200e9, 3, True, 2),
}
ALIASES = {"v5litepod": "v5e", "v7x": "tpu7x", "trillium": "v6e", "ironwood": "tpu7x"}
DCN = 12.5e9  # bytes per second and chip between slices: 100 Gbit/s, ours for lack of a figure

# Chips of a slice → its shape, as it is sold.
SHAPES = {
    2: {
        1: "1x1", 4: "2x2", 8: "2x4", 16: "4x4", 32: "4x8", 64: "8x8", 128: "8x16",
        256: "16x16",
    },
    3: {
        4: "2x2x1", 8: "2x2x2", 16: "2x2x4", 32: "2x4x4", 64: "4x4x4", 128: "4x4x8",
        256: "4x8x8", 512: "8x8x8", 1024: "8x8x16", 2048: "8x16x16",
    },
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Slice:
    """One slice: its chips, and how the compiler is to be told of it."""

    kind: str
    shape: tuple[int, ...]

    @property
    def chip(self) -> Chip:
        return CHIPS[self.kind]

    @property
    def chips(self) -> int:
        return math.prod(self.shape)

    @property
    def topology(self) -> str:
        """As the compiler names it, such as `v5p:2x4x4`."""
        return f"{self.kind}:{'x'.join(map(str, self.shape))}"

    def options(self) -> dict[str, Any]:
        """What else changes the compiled program: cores per device, chips per host, closed rings.

        A ring is closed where its side is whole: a 3-D slice of 4x4x4 cubes, a 2-D pod of 16.
        """
        if self.kind in ("v4", "v5p"):
            closed = all(side % 4 == 0 for side in self.shape)
            return {
                "chip_config_name": "megacore",
                "chips_per_host_bounds": (2, 2, 1),
                "wrap": (closed,) * 3,
            }
        if self.chip.dimensions == 2:
            alone = {"chips_per_host_bounds": (1, 1, 1)} if self.chips == 1 else {}
            return alone | {"wrap": (*(side == 16 for side in self.shape), False)}
        return {}


def parse(name: str) -> Slice:
    """The slice called `v5p-64`, `v5litepod-16` or `v5p:2x4x4`. Raises PlanError with the choices.

    As sold, v4-N, v5p-N and tpu7x-N count cores, two per chip; v5e-N and v6e-N count chips.
    """
    found = re.fullmatch(r"(\w+)(?:-(\d+)|:(\d+(?:x\d+)*))", name.strip().lower())
    if not name.strip():
        raise PlanError(
            "config.plan.topology is empty; it must name a TPU slice, as v5p-64 or v5p:2x4x4 do"
        )
    kind = ALIASES.get(found[1], found[1]) if found else ""
    if kind not in CHIPS:
        near = difflib.get_close_matches(name.lower(), [*CHIPS, *ALIASES], n=1, cutoff=0.0)[0]
        raise PlanError(
            f"plan.topology {name!r} is no TPU slice; did you mean {near}? Write KIND-N or "
            f"KIND:AxB, KIND one of {', '.join(CHIPS)}, such as v5p-64, v6e-256 or v5p:2x4x4"
        )
    chip = CHIPS[kind]
    if found[3]:
        shape = tuple(int(side) for side in found[3].split("x"))
        if len(shape) != chip.dimensions or 0 in shape:
            raise PlanError(
                f"plan.topology {name!r}: a {kind} slice has {chip.dimensions} sides, such as "
                f"{', '.join(list(SHAPES[chip.dimensions].values())[:4])}"
            )
        return Slice(kind, shape)
    factor = 2 if chip.is_named_by_cores else 1
    shapes = SHAPES[chip.dimensions]
    count, rest = divmod(int(found[2]), factor)
    if rest or count not in shapes:
        names = ", ".join(f"{kind}-{chips * factor}" for chips in shapes)
        raise PlanError(f"plan.topology {name!r} is not sold; choices: {names}")
    return Slice(kind, tuple(int(side) for side in shapes[count].split("x")))

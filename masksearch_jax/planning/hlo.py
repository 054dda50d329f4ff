"""What a compiled TPU program moves to and from its HBM, read from the program's text.

The compiler's own `bytes accessed` also counts what moves within the chip's fast memory, and a
loop's body once.
"""

from __future__ import annotations

import math
import re
from typing import NamedTuple

import numpy as np

SIZES = {"bf16": 2, "f16": 2, "f32": 4, "s32": 4, "u32": 4, "s8": 1, "u8": 1, "pred": 1, "s4": 0.5}
NOTHING = {
    "after-all", "bitcast", "constant", "get-tuple-element", "iota", "parameter", "partition-id",
    "tuple",
}  # fmt: skip
CONTROL = {"async-start", "call", "conditional", "while"}  # what they call is counted by itself
COLLECTIVES = {
    "all-gather", "all-reduce", "all-to-all", "collective-permute", "ragged-all-to-all",
    "reduce-scatter",
}  # fmt: skip
SLICES = {"dynamic-slice", "gather", "slice"}
# A collective between slices is a host's, which is sent what a chip has for it.
_BETWEEN_SLICES = r'_xla_megascale_transfer_type="(\w+)"'
_ARRAY = re.compile(r"([a-z]\w*)\[([\d,]*)\](\{[^}]*\})?")


class Instruction(NamedTuple):
    name: str
    shape: str
    op: str
    operands: tuple[str, ...]
    text: str

    def arrays(self) -> list[tuple[float, bool]]:
        """(bytes with the tiles' padding, whether in HBM) of each array of the result."""
        return [_size(*found.groups()) for found in _ARRAY.finditer(self.shape)]

    def written(self) -> float:
        return sum(size for size, hbm in self.arrays() if hbm)


class Collective(NamedTuple):
    kind: str
    size: float  # bytes on a chip of all that is gathered or summed
    dims: tuple[int, ...]  # of its largest array
    times: float  # that a run of the program does it
    groups: tuple[tuple[int, ...], ...]  # of devices, by their place in the mesh; () if not told


class Module:
    """The computations of a program's text.

    `loops`: how often those run whose length it does not tell.
    """

    def __init__(self, text: str, loops: float = 1.0):
        self.entry = ""
        self.loops = loops
        self.computations: dict[str, dict[str, Instruction]] = {}
        current: dict[str, Instruction] = {}
        for line in text.splitlines():
            if head := re.match(r"(ENTRY )?%?(\S+) \(.*\{$", line):
                current = self.computations[head[2]] = {}
                self.entry = head[2] if head[1] else self.entry
            elif (found := _instruction(line)) is not None:
                current[found.name] = found

    def loop_bodies(self, op: str) -> list[str]:
        """While loops' bodies that hold an instruction of this kind."""
        bodies = {
            _called(i, "body")
            for c in self.computations.values()
            for i in c.values()
            if i.op == "while"
        }
        return [b for b in bodies if any(i.op == op for i in self.computations[b].values())]

    def runs(self) -> dict[str, float]:
        """How often a run of the program runs each computation."""
        found: dict[str, float] = {}

        def visit(name: str, times: float) -> None:
            found[name] = found.get(name, 0.0) + times
            for i in self.computations[name].values():
                if i.op == "while":
                    body, condition = (_called(i, key) for key in ("body", "condition"))
                    visit(body, times * self._trips(condition))
                elif i.op == "conditional":
                    for branch in _branches(i):
                        visit(branch, times)
                elif i.op in ("call", "async-start"):
                    visit(_called(i, "calls" if "calls=" in i.text else "to_apply"), times)

        visit(self.entry, 1.0)
        return found

    def collectives(self) -> list[Collective]:
        """Each collective of the program."""
        runs = self.runs()
        return [
            c._replace(times=times)
            for name, times in runs.items()
            for c in self.collectives_of(name)
        ]

    def collectives_of(self, *computations: str) -> list[Collective]:
        """Those of the computations themselves, once each."""
        found = []
        for own in (self.computations[name] for name in computations):
            for i in own.values():
                if kind := _collective_kind(i):
                    found.append(_collective(kind, i, own))
                elif i.op == "fusion":
                    found += self._fused(_called(i, "calls"))
        return found

    def _fused(self, name: str) -> list[Collective]:
        """Those within a fusion: a sum of which each device keeps a slice is a reduce-scatter."""
        sliced = any(i.op == "dynamic-slice" for i in self.computations[name].values())
        return [
            c._replace(kind="reduce-scatter") if sliced and c.kind == "all-reduce" else c
            for c in self.collectives_of(name)
        ]

    def branches(self, computation: str) -> list[str]:
        """All branches of the conditionals in it."""
        own = self.computations[computation].values()
        return [branch for i in own if i.op == "conditional" for branch in _branches(i)]

    def traffic(self) -> float:
        """Bytes that a run of the program moves to and from HBM; all branches are counted."""
        return sum(times * self.hbm_bytes(name) for name, times in self.runs().items())

    def _trips(self, condition: str) -> float:
        """Of a loop that counts from 0 to a constant; `loops` for any other."""
        own = self.computations[condition].values()
        limits = [int(m[1]) for i in own if (m := re.search(r"constant\((\d+)\)", i.text))]
        counts = [i for i in own if "direction=LT" in i.text]
        return float(limits[0]) if len(limits) == len(counts) == 1 else self.loops

    def hbm_bytes(self, computation: str) -> float:
        """Bytes read from and written to HBM by one run of it, but for what it calls."""
        own = self.computations[computation]
        return sum(self._bytes(own, i) for i in own.values())

    def branch_bytes(self, computation: str) -> float:
        """Bytes of the heavier branch of each conditional in it."""
        own = self.computations[computation]
        found = [_branches(i) for i in own.values() if i.op == "conditional"]
        return sum(max(self.hbm_bytes(b) for b in names) for names in found)

    def decode_step_bytes(self, layers: int, pages: int) -> float:
        """Bytes that one decode step of the engine's tick moves to and from HBM.

        Its loop over (token, layer) is the one with a branch: the end of a step. A loop within it
        is over the pages of a row, which has so many.
        """
        (body,) = self.loop_bodies("conditional")
        inner = [i for i in self.computations[body].values() if i.op == "while"]
        over_pages = sum(self.hbm_bytes(_called(i, "body")) for i in inner) * pages
        return (self.hbm_bytes(body) + over_pages) * layers + self.branch_bytes(body)

    def _bytes(self, own: dict[str, Instruction], i: Instruction) -> float:
        if i.op in NOTHING or i.op in CONTROL or i.op.endswith("-done"):
            return 0.0
        operands = [own[name] for name in i.operands if name in own]
        if i.op in SLICES:
            moved = max(size for size, _ in i.arrays())
            return moved * _is_in_hbm(operands[0]) + i.written()
        if i.op == "slice-start":  # returns what it was given, the slice, a context
            size, hbm = i.arrays()[1]
            return size * (_is_in_hbm(operands[0]) + hbm)
        if i.op == "dynamic-update-slice":
            moved = max(size for size, _ in operands[1].arrays())
            return moved * (_is_in_hbm(operands[1]) + _is_in_hbm(i))
        if i.op == "copy-start":
            size, hbm = i.arrays()[0]
            return size * (hbm + _is_in_hbm(operands[0]))
        if i.op == "custom-call" and (told := re.search(r'"bytes_accessed":"(\d+)"', i.text)):
            return float(told[1])  # a kernel's own estimate: it reads parts of its operands
        if i.op == "fusion":
            inner = self.computations[_called(i, "calls")]
            return self._read(inner, operands) + self._result(inner, i)
        return i.written() + sum(o.written() for o in operands)

    def _read(self, inner: dict[str, Instruction], operands: list[Instruction]) -> float:
        """What a fusion reads of its operands in HBM: of a sliced one, the slices."""
        total = 0.0
        for i in inner.values():
            if i.op == "parameter":
                operand = operands[int(re.search(r"parameter\((\d+)\)", i.text)[1])]
                if operand.written():
                    total += min(operand.written(), self._used(inner, i.name, operand.written()))
        return total

    def _used(self, inner: dict[str, Instruction], name: str, whole: float) -> float:
        total = 0.0
        for user in inner.values():
            if name not in user.operands:
                continue
            if user.op == "bitcast":
                total += self._used(inner, user.name, whole)
            elif user.op in SLICES:
                total += max(size for size, _ in user.arrays())
            elif user.op == "fusion":
                nested = self.computations[_called(user, "calls")]
                for at, operand in enumerate(user.operands):
                    if operand != name:
                        continue
                    inside = [n for n, i in nested.items() if f"parameter({at})" in i.text]
                    used = sum(self._used(nested, n, whole) for n in inside)
                    # One that nothing in there uses is handed on as it is.
                    total += used or self._used(inner, user.name, whole)
            elif user.op != "dynamic-update-slice" or user.operands[0] != name:
                return whole
        return total

    def _result(self, inner: dict[str, Instruction], i: Instruction) -> float:
        """What a fusion writes: where it updates a slice in place, the slice."""
        root = next(r for r in inner.values() if r.text.lstrip().startswith("ROOT"))
        roots = [inner[name] for name in root.operands] if root.op == "tuple" else [root]
        if len(roots) != len(i.arrays()):  # a collective of several arrays
            return i.written()
        total = 0.0
        for made, (size, hbm) in zip(roots, i.arrays(), strict=True):
            while made.op == "bitcast":
                made = inner[made.operands[0]]
            if made.op == "dynamic-update-slice":
                size = max(size for size, _ in inner[made.operands[1]].arrays())
            total += size * hbm
        return total


def _collective_kind(i: Instruction) -> str:
    """`all-reduce` and the like of what is or starts one; nothing of another instruction."""
    if i.op == "send" and (between := re.search(_BETWEEN_SLICES, i.text)):
        return between[1].lower().replace("_", "-")
    kind = i.op.removesuffix("-start")
    return kind if kind in COLLECTIVES else ""


def _collective(kind: str, i: Instruction, own: dict[str, Instruction]) -> Collective:
    """Of an instruction of the computation `own`; several arrays may go together."""
    sizes = [size for size, _ in i.arrays()]
    dims = [array[2] for array in _ARRAY.finditer(i.shape)][sizes.index(max(sizes))]
    if kind == "reduce-scatter":
        sizes = [size for name in i.operands for size, _ in own[name].arrays()]
    # What starts one also returns what it was given.
    size = sum(sizes) if i.op == kind else max(sizes)
    return Collective(kind, size, tuple(int(d) for d in dims.split(",") if d), 1.0, _groups(i.text))


def _called(i: Instruction, key: str) -> str:
    return re.search(rf"{key}=%?([\w.\-]+)", i.text)[1]


def _branches(i: Instruction) -> list[str]:
    if listed := re.search(r"branch_computations=\{([^}]*)\}", i.text):
        return listed[1].replace("%", "").split(", ")
    return [_called(i, "true_computation"), _called(i, "false_computation")]


def _groups(text: str) -> tuple[tuple[int, ...], ...]:
    """A collective's groups of devices, of the three ways to write them; () for any other."""
    if listed := re.search(r"replica_groups=\{(\{[\d,{}]*\})\}", text):
        rows = re.findall(r"\{([\d,]+)\}", listed[1])
        return tuple(tuple(map(int, row.split(","))) for row in rows)
    if tiled := re.search(r"replica_groups=\[([\d,]+)\]<=(\[[\d,]+\](?:T\([\d,]+\))?)", text):
        rows = _iota(tiled[2]).reshape([int(d) for d in tiled[1].split(",")])
        return tuple(map(tuple, rows.tolist()))
    named = re.search(
        r"replica_groups=mesh\[([^\]]*)\](?:, device_ids=\(([^ ]*)\))? \{([^}]*)\}", text
    )
    if not named or ":" in named[3]:
        return ()
    sizes = {name: int(size) for name, size in re.findall(r"'(\w+)'=(\d+)", named[1])}
    count = math.prod(sizes.values())
    devices = _iota(named[2] or f"[{count}]").reshape(list(sizes.values()))
    across = [list(sizes).index(name) for name in re.findall(r"'(\w+)'", named[3])]
    kept = [axis for axis in range(len(sizes)) if axis not in across]
    rows = devices.transpose(*kept, *across)
    rows = rows.reshape(-1, math.prod(list(sizes.values())[axis] for axis in across))
    return tuple(map(tuple, rows.tolist()))


def _iota(text: str) -> np.ndarray:
    """The devices of `[4,2]T(1,0)`: counted up in that shape, then transposed, flat."""
    dims = [int(d) for d in re.search(r"\[([\d,]+)\]", text)[1].split(",")]
    devices = np.arange(math.prod(dims)).reshape(dims)
    if turned := re.search(r"T\(([\d,]+)\)", text):
        devices = devices.transpose([int(d) for d in turned[1].split(",")])
    return devices.reshape(-1)


def _is_in_hbm(i: Instruction) -> bool:
    return any(hbm for _, hbm in i.arrays())


def _size(kind: str, dims: str, layout: str | None) -> tuple[float, bool]:
    """Bytes of an array and whether it lies in HBM; `S(1)` and the like are other memories."""
    layout = layout or ""
    shape = [int(d) for d in dims.split(",") if d]
    order = re.match(r"\{([\d,]*)", layout)
    tile = re.search(r"T\(([\d,]+)\)", layout)
    if shape and order and tile:
        minor_first = [int(d) for d in order[1].split(",") if d]
        for axis, multiple in zip(minor_first, reversed(tile[1].split(",")), strict=False):
            shape[axis] = -(-shape[axis] // int(multiple)) * int(multiple)
    return math.prod(shape) * SIZES.get(kind, 4), "S(" not in layout


def _instruction(line: str) -> Instruction | None:
    head = re.match(r"\s+(?:ROOT )?%?([\w.\-]+) = ", line)
    if not head:
        return None
    rest = line[head.end() :]
    end = _closing(rest, 0) + 1 if rest.startswith("(") else rest.index(" ")
    shape, call = rest[:end], rest[end:].lstrip()
    opening = call.index("(")
    inputs = call[opening : _closing(call, opening)]
    operands = tuple(re.findall(r"%([\w.\-]+)", inputs))
    return Instruction(head[1], shape, call[:opening], operands, line)


def _closing(text: str, opening: int) -> int:
    """The index of the parenthesis that closes the one at `opening`."""
    depth = 0
    for at in range(opening, len(text)):
        depth += {"(": 1, ")": -1}.get(text[at], 0)
        if not depth:
            return at
    raise ValueError(f"unbalanced: {text[:80]!r}")

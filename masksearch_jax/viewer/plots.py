"""Inline SVG: line charts of a run's curves and dot-and-whisker plots of an evaluation.

Coordinates are those of a 440-wide drawing, which the page scales to the column.
"""

from __future__ import annotations

import json
import math
from typing import Any

from markupsafe import Markup, escape

from masksearch_jax.viewer import figures
from masksearch_jax.viewer.load import is_number

WIDTH = 440
LEFT, RIGHT, TOP, BOTTOM = 52, 12, 14, 40
MAX_POINTS = 600


def nice_ticks(low: float, high: float, count: int = 5) -> list[float]:
    """About `count` round values (1, 2 or 5 times a power of ten) that cover [low, high]."""
    if high <= low:
        pad = abs(low) * 0.1 or 1.0
        low, high = (0.0 if low == 0 else low - pad), high + pad
    rough = (high - low) / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= rough * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(i * step, 12) for i in range(first, last + 1)]


def tick_label(value: float) -> str:
    """Short: 0, 0.25, 300, 1.5k, 3e-4."""
    size = abs(value)
    if size >= 1e6:
        return f"{value / 1e6:g}M"
    if size >= 10_000:
        return f"{value / 1e3:g}k"
    if size and size < 1e-3:
        return f"{value:.1e}".replace(".0e", "e").replace("e-0", "e-")
    return f"{value:g}"


def thin(points: list[tuple[float, float]], most: int = MAX_POINTS) -> tuple[list, int]:
    """At most `most` points, each the mean of that many neighbours; and how many that is."""
    width = math.ceil(len(points) / most) if points else 1
    if width == 1:
        return points, 1
    groups = [points[i : i + width] for i in range(0, len(points), width)]
    return [tuple(sum(c) / len(g) for c in zip(*g, strict=True)) for g in groups], width


def line_chart(
    rows: list[dict[str, Any]],
    key: str,
    marks: list[tuple[float, str]] = (),
    height: int = 210,
    x_name: str = "step",
    floor: float | None = None,
) -> Markup:
    """The curve of `key` over `step` with axes, ticks and vertical `marks` (step, label).

    Rows that have `KEY_low` and `KEY_high` get a bar between them. The axis shows `floor` too.
    The page's script shows the value under the pointer; `aria-label` gives the ends and extremes.
    """
    points = [(r["step"], r[key]) for r in rows if is_number(r.get(key))]
    shown, _ = thin(points)
    xs, ys = zip(*shown, strict=True)
    bars = [(r["step"], r[f"{key}_low"], r[f"{key}_high"]) for r in rows
            if is_number(r.get(f"{key}_low")) and is_number(r.get(f"{key}_high"))]  # fmt: skip
    ends = [*ys, *(end for bar in bars for end in bar[1:]), *([] if floor is None else [floor])]
    x_ticks, y_ticks = nice_ticks(min(xs), max(xs)), nice_ticks(min(ends), max(ends))
    if max(xs) > min(xs):  # the axis ends where the data does, and steps are whole
        x_ticks = [t for t in x_ticks if min(xs) <= t <= max(xs) and t == int(t)]
    x0, x1 = (min(xs), max(xs)) if max(xs) > min(xs) else (x_ticks[0], x_ticks[-1])
    px = _scale(x0, x1, LEFT, WIDTH - RIGHT)
    py = _scale(y_ticks[0], y_ticks[-1], height - BOTTOM, TOP)
    path = " ".join(f"{px(x):.1f},{py(y):.1f}" for x, y in shown)
    dots = shown if len(shown) <= 40 else shown[-1:]
    data = [[round(px(x), 1), round(py(y), 1), _step(x), figures.number(y, 4)] for x, y in shown]
    parts = [
        _svg_open(height, _describe(key, points), json.dumps(data)),
        _axes(x_ticks, y_ticks, px, py, height, x_name),
        *[f'<line class="bar" x1="{px(x):.1f}" x2="{px(x):.1f}" y1="{py(low):.1f}" '
          f'y2="{py(high):.1f}"/>' for x, low, high in bars],
        *[_mark(px(x), label, height) for x, label in marks if x0 < x <= x1],
        f'<polyline class="curve" points="{path}"/>',
        *[f'<circle class="dot" cx="{px(x):.1f}" cy="{py(y):.1f}" r="2.4"/>' for x, y in dots],
        f'<line class="cursor" x1="0" x2="0" y1="{TOP}" y2="{height - BOTTOM}"/>',
        '<circle class="spot" r="4"/></svg>',
    ]  # fmt: skip
    return Markup("".join(parts))


def whiskers(groups: list[tuple[str, list[dict[str, Any]]]], label: str) -> Markup:
    """Dots with 95% intervals on [0, 1] or wider; `groups` are (condition, one row per estimate).

    A row is {name, checkpoint, value, low, high}; `checkpoint` picks the colour.
    """
    rows = [row for _, inner in groups for row in inner]
    top = max([1.0, *(r["high"] if is_number(r["high"]) else r["value"] for r in rows)])
    left, line, gap = 190, 27, 18
    height = TOP + sum(line * len(inner) + gap for _, inner in groups) + 34
    ticks = nice_ticks(0.0, top, 4) if top > 1 else [0, 0.25, 0.5, 0.75, 1.0]
    px = _scale(0.0, ticks[-1], left, WIDTH - RIGHT)
    bottom = height - 34
    parts = [_svg_open(height, label)]
    for tick in ticks:
        x = px(tick)
        parts.append(f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="{TOP - 6}" y2="{bottom}"/>')
        parts.append(
            f'<text class="tick mid" x="{x:.1f}" y="{bottom + 16}">{tick_label(tick)}</text>'
        )
    y = TOP + 4.0
    for condition, inner in groups:
        middle = y + line * len(inner) / 2
        parts.append(f'<text class="group" x="0" y="{middle + 4:.1f}">{escape(condition)}</text>')
        for row in inner:
            parts.append(_whisker(row, px, y + line / 2, left))
            y += line
        y += gap
    return Markup("".join([*parts, "</svg>"]))


def _whisker(row: dict[str, Any], px: Any, y: float, left: int) -> str:
    value, interval = figures.estimate(row)
    kind = figures.KINDS.get(row["checkpoint"], "other")
    bar = ""
    if interval:
        low, high = px(row["low"]), px(row["high"])
        bar = (
            f'<line class="bar {kind}" x1="{low:.1f}" x2="{high:.1f}" y1="{y}" y2="{y}"/>'
            + "".join(
                f'<line class="bar {kind}" x1="{x:.1f}" x2="{x:.1f}" y1="{y - 4}" y2="{y + 4}"/>'
                for x in (low, high)
            )
        )
    tip = escape(f"{row['name']}: {value}" + (f" [{interval}]" if interval else ""))
    return (
        f"<g><title>{tip}</title>"
        f'<rect class="hit" x="{left}" y="{y - 10}" width="{WIDTH - left}" height="20"/>'
        f'<text class="tick end" x="{left - 10}" y="{y + 4}">{escape(row["checkpoint"])}</text>'
        f"{bar}"
        f'<circle class="est {kind}" cx="{px(row["value"]):.1f}" cy="{y}" r="4.5"/></g>'
    )


def _scale(d0: float, d1: float, r0: float, r1: float) -> Any:
    return lambda v: r0 + (v - d0) / (d1 - d0) * (r1 - r0)


def _step(x: float) -> str:
    return f"{x:g}" if abs(x) < 1e6 else f"{x:.0f}"


def _describe(key: str, points: list[tuple[float, float]]) -> str:
    ys = [y for _, y in points]
    (x0, y0), (x1, y1) = points[0], points[-1]
    show = figures.number
    return (
        f"{figures.words(key)}: {show(y0)} at step {_step(x0)}, {show(y1)} at step {_step(x1)}, "
        f"lowest {show(min(ys))}, highest {show(max(ys))}, {len(points)} values"
    )


def _svg_open(height: float, label: str, data: str = "") -> str:
    extra = f' data-points="{escape(data)}"' if data else ""
    return (
        f'<svg class="plot" viewBox="0 0 {WIDTH} {height:.0f}" role="img" '
        f'aria-label="{escape(label)}"{extra}>'
    )


def _axes(x_ticks: list, y_ticks: list, px: Any, py: Any, height: int, x_name: str) -> str:
    base = height - BOTTOM
    parts = []
    for tick in y_ticks:
        y = py(tick)
        parts.append(
            f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
        )
        parts.append(
            f'<text class="tick end" x="{LEFT - 6}" y="{y + 4:.1f}">{tick_label(tick)}</text>'
        )
    for tick in x_ticks:
        x = px(tick)
        parts.append(f'<line class="axis" x1="{x:.1f}" x2="{x:.1f}" y1="{base}" y2="{base + 4}"/>')
        parts.append(
            f'<text class="tick mid" x="{x:.1f}" y="{base + 17}">{tick_label(tick)}</text>'
        )
    parts.append(f'<line class="axis" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{base}" y2="{base}"/>')
    middle = (LEFT + WIDTH - RIGHT) / 2
    parts.append(f'<text class="tick mid" x="{middle}" y="{height - 6}">{x_name}</text>')
    return "".join(parts)


def _mark(x: float, label: str, height: int) -> str:
    return (
        f'<g><title>{escape(label)}</title><line class="mark" x1="{x:.1f}" x2="{x:.1f}" '
        f'y1="{TOP}" y2="{height - BOTTOM}"/>'
        f'<text class="tick marklabel" x="{x + 4:.1f}" y="{TOP + 9}">{escape(label[:22])}</text>'
        "</g>"
    )

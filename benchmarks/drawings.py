"""Line charts one below the other, as an SVG file for light and dark pages."""

from __future__ import annotations

from html import escape
from typing import Any, NamedTuple

from masksearch_jax.viewer.study import round_ticks

WIDTH, HEIGHT, GAP, TITLE = 400, 210, 16, 24  # in pixels: a phone shows it whole
LEFT, RIGHT, TOP, BOTTOM = 52, 12, 14, 40

STYLE = """
  svg { font: 12px system-ui, "DejaVu Sans", sans-serif; fill: #6b6b6b; }
  .title { font-weight: bold; } .mid { text-anchor: middle; } .end { text-anchor: end; }
  .grid { stroke: #8884; } .axis { stroke: #888; }
  .bar { stroke: #1f77b4; stroke-width: 1.2; opacity: 0.6; }
  .curve { fill: none; stroke: #1f77b4; stroke-width: 1.8; } .dot { fill: #1f77b4; }
"""


class Chart(NamedTuple):
    """A curve: rows with `step` and a value under `title`; `TITLE_low` and `TITLE_high`: a bar."""

    rows: list[dict[str, Any]]
    title: str
    floor: float | None = None  # a value that the axis shows in any case


def stacked(charts: list[Chart], x_name: str) -> str:
    height = len(charts) * (TITLE + HEIGHT + GAP) - GAP
    size = f'viewBox="0 0 {WIDTH} {height}" width="{WIDTH}"'
    parts = [f'<svg xmlns="http://www.w3.org/2000/svg" {size}>', f"<style>{STYLE}</style>"]
    for i, (rows, title, floor) in enumerate(charts):
        chart = line_chart(rows, title, x_name, floor)
        top = i * (TITLE + HEIGHT + GAP)
        place = f'<svg y="{top + TITLE}" width="{WIDTH}" height="{HEIGHT}" '
        parts.append(f'<text class="title" x="0" y="{top + 16}">{escape(title)}</text>')
        parts.append(chart.replace("<svg ", place, 1))
    return "\n".join([*parts, "</svg>\n"])


def line_chart(rows: list[dict[str, Any]], key: str, x_name: str, floor: float | None) -> str:
    """The curve of `key` over `step` with axes and ticks; the axis shows `floor` too.

    Rows that have `KEY_low` and `KEY_high` get a bar between them.
    """
    xs, ys = [r["step"] for r in rows], [r[key] for r in rows]
    bars = [(r["step"], r[f"{key}_low"], r[f"{key}_high"]) for r in rows if f"{key}_low" in r]
    ends = [*ys, *(end for bar in bars for end in bar[1:]), *([] if floor is None else [floor])]
    x_ticks, y_ticks = round_ticks(min(xs), max(xs)), round_ticks(min(ends), max(ends))
    if max(xs) > min(xs):  # the axis ends where the data does, and steps are whole
        x_ticks = [t for t in x_ticks if min(xs) <= t <= max(xs) and t == int(t)]
    x0, x1 = (min(xs), max(xs)) if max(xs) > min(xs) else (x_ticks[0], x_ticks[-1])
    px = _scale(x0, x1, LEFT, WIDTH - RIGHT)
    py = _scale(y_ticks[0], y_ticks[-1], HEIGHT - BOTTOM, TOP)
    points = [(px(x), py(y)) for x, y in zip(xs, ys, strict=True)]
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    parts = [
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(key)}">',
        _axes(x_ticks, y_ticks, px, py, x_name),
        *[f'<line class="bar" x1="{px(x):.1f}" x2="{px(x):.1f}" y1="{py(low):.1f}" '
          f'y2="{py(high):.1f}"/>' for x, low, high in bars],
        f'<polyline class="curve" points="{path}"/>',
        *[f'<circle class="dot" cx="{x:.1f}" cy="{y:.1f}" r="2.4"/>' for x, y in points],
        "</svg>",
    ]  # fmt: skip
    return "".join(parts)


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


def _scale(d0: float, d1: float, r0: float, r1: float) -> Any:
    return lambda v: r0 + (v - d0) / (d1 - d0) * (r1 - r0)


def _axes(x_ticks: list, y_ticks: list, px: Any, py: Any, x_name: str) -> str:
    base = HEIGHT - BOTTOM
    parts = []
    for tick in y_ticks:
        y = py(tick)
        parts.append(
            f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
        )
        parts.append(f'<text class="end" x="{LEFT - 6}" y="{y + 4:.1f}">{tick_label(tick)}</text>')
    for tick in x_ticks:
        x = px(tick)
        parts.append(f'<line class="axis" x1="{x:.1f}" x2="{x:.1f}" y1="{base}" y2="{base + 4}"/>')
        parts.append(f'<text class="mid" x="{x:.1f}" y="{base + 17}">{tick_label(tick)}</text>')
    parts.append(f'<line class="axis" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{base}" y2="{base}"/>')
    middle = (LEFT + WIDTH - RIGHT) / 2
    parts.append(f'<text class="mid" x="{middle}" y="{HEIGHT - 6}">{x_name}</text>')
    return "".join(parts)

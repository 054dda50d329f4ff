"""The report's line charts side by side, as an SVG file of its own."""

from __future__ import annotations

from typing import Any, NamedTuple

from masksearch_jax.viewer import plots

HEIGHT, GAP, TITLE = 210, 30, 24

STYLE = """
  svg { font: 11px system-ui, "DejaVu Sans", sans-serif; }
  .paper { fill: #fff; } .title { font-size: 13px; fill: #1b1e23; }
  .tick { fill: #5b626d; } .mid { text-anchor: middle; } .end { text-anchor: end; }
  .grid { stroke: #eceef0; } .axis { stroke: #9aa2ae; }
  .bar { stroke: #1f5fbf; stroke-width: 1.2; opacity: 0.6; }
  .curve { fill: none; stroke: #1f5fbf; stroke-width: 1.8; } .dot { fill: #1f5fbf; }
  .cursor, .spot { display: none; }
"""


class Chart(NamedTuple):
    """A curve: rows with `step` and a value under `title`; `TITLE_low` and `TITLE_high`: a bar."""

    rows: list[dict[str, Any]]
    title: str
    floor: float | None = None  # a value that the axis shows in any case


def side_by_side(charts: list[Chart], x_name: str) -> str:
    width = len(charts) * (plots.WIDTH + GAP) - GAP
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {HEIGHT + TITLE}">',
        f"<style>{STYLE}</style>",
        f'<rect class="paper" width="{width}" height="{HEIGHT + TITLE}"/>',
    ]
    for i, (rows, title, floor) in enumerate(charts):
        chart = str(plots.line_chart(rows, title, height=HEIGHT, x_name=x_name, floor=floor))
        x = i * (plots.WIDTH + GAP)
        place = f'<svg x="{x}" y="{TITLE}" width="{plots.WIDTH}" height="{HEIGHT}" '
        parts.append(f'<text class="title" x="{x + plots.LEFT}" y="16">{title}</text>')
        parts.append(chart.replace("<svg ", place, 1).replace(" at step ", f" at {x_name} "))
    return "\n".join([*parts, "</svg>\n"])

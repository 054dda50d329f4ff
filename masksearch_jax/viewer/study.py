"""A study as a picture and as a page: one HTML file that loads nothing from anywhere."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from typing import Any

from masksearch_jax.core.types import JsonObject

_LEFT, _WIDTH, _ROW, _TOP, _GAP = 150, 360, 24, 34, 26  # of a panel, in pixels
_COLOUR, _REFERENCE = "#1f77b4", "#d62728"
_STYLE = """\
:root { color-scheme: light dark }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem }
table { border-collapse: collapse; margin: .5rem 0 1.5rem }
th, td { padding: .2rem .8rem; text-align: left; border-bottom: 1px solid #8884 }
td.number { font-variant-numeric: tabular-nums; white-space: nowrap }
svg { max-width: 100%; height: auto }
code { overflow-wrap: anywhere }"""


def plot(compared: JsonObject, reference: str, title: str) -> str:
    """An SVG: of each suite and metric a panel, with a dot and its interval for each arm.

    compared: as `evals.arms.compare` gives it. A dashed line marks the reference's mean.
    """
    panels = [(s, m, cells) for s, metrics in compared.items() for m, cells in metrics.items()]
    height = sum(_TOP + _ROW * len(cells) + _GAP for _, _, cells in panels)
    size = f'viewBox="0 0 {_LEFT + _WIDTH + 40} {height}" width="{_LEFT + _WIDTH + 40}"'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" {size} font-family="sans-serif"'
    parts = [f'{head} font-size="12" fill="#777"><title>{html.escape(title)}</title>']
    top = 0
    for suite, metric, cells in panels:
        parts += _panel(top, f"{suite}, {metric}", cells, reference)
        top += _TOP + _ROW * len(cells) + _GAP
    return "".join([*parts, "</svg>\n"])


def _panel(top: int, name: str, cells: Mapping[str, Any], reference: str) -> list[str]:
    means = {arm: cell["mean"] for arm, cell in cells.items()}
    low = min(0.0, *(m["low"] for m in means.values()))
    high = max(1.0, *(m["high"] for m in means.values()))

    def at(value: float) -> str:
        return f"{_LEFT + (value - low) / (high - low) * _WIDTH:.1f}"

    bottom = top + _TOP + _ROW * len(cells)
    parts = [f'<text x="0" y="{top + 16}" font-weight="bold">{html.escape(name)}</text>']
    for share in (0.0, 0.25, 0.5, 0.75, 1.0):
        value = low + share * (high - low)
        parts.append(f'<path d="M{at(value)} {top + _TOP - 6}V{bottom}" stroke="#8884"/>')
        parts.append(f'<text x="{at(value)}" y="{bottom + 14}" text-anchor="middle">')
        parts.append(f"{value:.3g}</text>")
    if reference in means:
        line = f'd="M{at(means[reference]["value"])} {top + _TOP - 6}V{bottom}"'
        parts.append(f'<path {line} stroke="{_REFERENCE}" stroke-dasharray="3 3"/>')
    for place, (arm, mean) in enumerate(means.items()):
        y = top + _TOP + _ROW * place + _ROW // 2
        colour = _REFERENCE if arm == reference else _COLOUR
        parts.append(f'<text x="{_LEFT - 10}" y="{y + 4}" text-anchor="end">')
        parts.append(f"{html.escape(arm)}</text>")
        parts.append(f'<path d="M{at(mean["low"])} {y}H{at(mean["high"])}" stroke="{colour}"/>')
        parts.append(f'<circle cx="{at(mean["value"])}" cy="{y}" r="4" fill="{colour}"/>')
    return parts


def page(study: JsonObject, picture: str) -> str:
    """The HTML of study.json with its plot."""
    title = html.escape(f"Study: {study['study']}")
    asked = study["seeds_asked"]
    said = f"{study['seeds']} of {asked} seeds are done. "
    over = "items and seeds" if study["seeds"] > 1 else "items alone: there is one seed"
    said += f"Intervals are of 95%, over {over}."
    said += f" Differences are paired, to the arm {study['reference']}."
    parts = [
        "<!doctype html>",
        f'<html lang="en"><meta charset="utf-8"><title>{title}</title>',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<style>{_STYLE}</style><h1>{title}</h1><p>{html.escape(said)}</p>",
        picture,
    ]
    for suite, metrics in study["results"].items():
        for metric, cells in metrics.items():
            parts += _results(f"{suite}, {metric}", cells)
    arms = [
        [n, " → ".join(a["stages"]) or "none", a["overrides"]] for n, a in study["arms"].items()
    ]
    rows = [[html.escape(n), html.escape(s), _code(o)] for n, s, o in arms]
    parts += ["<h2>Arms</h2>", *_table(["arm", "stages", "overrides"], rows)]
    made = [
        [html.escape(n), f"{s['seconds']:.0f}", _code(s["of"])] for n, s in study["made"].items()
    ]
    parts += ["<h2>What was run</h2>", *_table(["folder", "seconds", "of"], made)]
    return "\n".join([*parts, "</html>\n"])


def _results(name: str, cells: Mapping[str, Any]) -> list[str]:
    rows = []
    for arm, cell in cells.items():
        apart = cell["difference"]
        shown = [_cell(cell["mean"]), _cell(apart, "+") if apart else "reference"]
        rows.append([html.escape(arm), *shown, str(cell["mean"]["n"])])
    return [f"<h2>{html.escape(name)}</h2>", *_table(["arm", "mean", "difference", "items"], rows)]


def _cell(cell: Mapping[str, float], sign: str = "") -> str:
    return f"{cell['value']:{sign}.3f} [{cell['low']:{sign}.3f}, {cell['high']:{sign}.3f}]"


def _code(words: Sequence[str]) -> str:
    return " ".join(f"<code>{html.escape(word)}</code>" for word in words)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    cells = "".join(f"<th>{name}" for name in head)
    body = ("<tr>" + "".join(f'<td class="number">{c}' for c in row) for row in rows)
    return [f"<table><tr>{cells}", *body, "</table>"]

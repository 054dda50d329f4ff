"""A study as a picture and as a page: one HTML file that loads nothing from anywhere."""

from __future__ import annotations

import html
import math
from collections.abc import Mapping, Sequence
from typing import Any

from masksearch_jax.core.types import JsonObject
from masksearch_jax.viewer import names
from masksearch_jax.viewer.page import STYLES, UPLOT, asset, hashes, pack

SCRIPTS = ("data.js", "format.js", "elements.js", "charts.js", "study.js")
_WIDTH, _ROW, _TOP, _GAP = 250, 24, 34, 26  # of a panel, in pixels: a phone shows it whole
_LETTER = 7  # pixels of a letter of an arm's name, at most
_COLOUR, _REFERENCE = "#1f77b4", "#d62728"
_STYLE = """\
main { max-width: 62rem }
table { width: auto; margin: .5rem 0 1.5rem }
td.whole { white-space: nowrap }
svg { max-width: 100%; height: auto }"""

_GROWTH = (
    "Words of answers over words of the right ones, in the first and in the last quarter of the "
    "updates. Answers have grown where those of every seed are longer by a tenth of the right ones."
)


def plot(compared: JsonObject, reference: str, title: str) -> str:
    """An SVG: of each suite and metric a panel, with a dot and its interval for each arm.

    compared: as `evals.arms.compare` gives it. A dashed line marks the reference's mean.
    """
    panels = [(s, m, cells) for s, metrics in compared.items() for m, cells in metrics.items()]
    height = sum(_TOP + _ROW * len(cells) + _GAP for _, _, cells in panels)
    left = 16 + _LETTER * max((len(arm) for _, _, cells in panels for arm in cells), default=0)
    size = f'viewBox="0 0 {left + _WIDTH + 20} {height}" width="{left + _WIDTH + 20}"'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" {size} font-family="sans-serif"'
    parts = [f'{head} font-size="12" fill="#6b6b6b"><title>{html.escape(title)}</title>']
    top = 0
    for suite, metric, cells in panels:
        parts += _panel(left, top, f"{suite}, {metric}", cells, reference)
        top += _TOP + _ROW * len(cells) + _GAP
    return "".join([*parts, "</svg>\n"])


def _panel(left: int, top: int, name: str, cells: Mapping[str, Any], reference: str) -> list[str]:
    means = {arm: cell["mean"] for arm, cell in cells.items()}
    low = min(0.0, *(m["low"] for m in means.values()))
    ticks = round_ticks(low, max(1.0, *(m["high"] for m in means.values())))
    low, high = ticks[0], ticks[-1]

    def at(value: float) -> str:
        return f"{left + (value - low) / (high - low) * _WIDTH:.1f}"

    bottom = top + _TOP + _ROW * len(cells)
    parts = [f'<text x="0" y="{top + 16}" font-weight="bold">{html.escape(name)}</text>']
    for value in ticks:
        parts.append(f'<path d="M{at(value)} {top + _TOP - 6}V{bottom}" stroke="#8884"/>')
        parts.append(f'<text x="{at(value)}" y="{bottom + 14}" text-anchor="middle">')
        parts.append(f"{value:g}</text>")
    if reference in means:
        line = f'd="M{at(means[reference]["value"])} {top + _TOP - 6}V{bottom}"'
        parts.append(f'<path {line} stroke="{_REFERENCE}" stroke-dasharray="3 3"/>')
    for place, (arm, mean) in enumerate(means.items()):
        y = top + _TOP + _ROW * place + _ROW // 2
        colour = _REFERENCE if arm == reference else _COLOUR
        parts.append(f'<text x="{left - 10}" y="{y + 4}" text-anchor="end">')
        parts.append(f"{html.escape(arm)}</text>")
        parts.append(f'<path d="M{at(mean["low"])} {y}H{at(mean["high"])}" stroke="{colour}"/>')
        parts.append(f'<circle cx="{at(mean["value"])}" cy="{y}" r="4" fill="{colour}"/>')
    return parts


def round_ticks(low: float, high: float, count: int = 5) -> list[float]:
    """About `count` round values (1, 2 or 5 times a power of ten) that cover [low, high]."""
    if high <= low:
        pad = abs(low) * 0.1 or 1.0
        low, high = (0.0 if low == 0 else low - pad), high + pad
    rough = (high - low) / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= rough * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(i * step, 12) for i in range(first, last + 1)]


def page(study: JsonObject, picture: str) -> str:
    """The HTML of study.json with its plot and its curves."""
    title = html.escape(f"Study: {study['study']}")
    scripts = [asset(UPLOT), "\n".join(map(asset, SCRIPTS))]
    policy = f"default-src 'none'; style-src 'unsafe-inline'; script-src {hashes(scripts)}"
    policy += "; base-uri 'none'; form-action 'none'"
    style = "\n".join([*map(asset, STYLES), _STYLE])
    parts = [
        "<!doctype html>",
        f'<html lang="en"><meta charset="utf-8"><title>{title}</title>',
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<style>{style}</style><main><h1>{title}</h1>",
        *(f"<p>{html.escape(text)}</p>" for text in (study["question"], _said(study)) if text),
        *(f'<p class="absent">{html.escape(text)}</p>' for text in study["notes"]),
        picture,
    ]
    for suite, metrics in study["results"].items():
        for metric, cells in metrics.items():
            parts += _results(f"{suite}, {metric}", cells, study["reference"])
    if study["curves"]:
        parts += _curves(study["curves"])
    arms = [
        [n, " → ".join(a["stages"]) or "none", a["overrides"]] for n, a in study["arms"].items()
    ]
    rows = [[html.escape(n), html.escape(s), _code(o)] for n, s, o in arms]
    parts += ["<h2>Arms</h2>", *_table(["arm", "stages", "overrides"], rows)]
    made = [
        [html.escape(n), f"{s['seconds']:.0f}", _code(s["of"])] for n, s in study["made"].items()
    ]
    ran = [f"<p>{html.escape(line)}</p>" for line in study["ran"]]
    parts += ["<h2>What was run</h2>", *ran, *_table(["folder", "seconds", "of"], made), "</main>"]
    packed = pack(drawn(study["curves"]))
    parts.append(f'<script type="application/gzip" id="data-curves">{packed}</script>')
    parts += [f"<script>{script}</script>" for script in scripts if study["curves"]]
    return "\n".join([*parts, "</html>\n"])


def _said(study: JsonObject) -> str:
    return f"{study['said']}. Differences are paired, to the arm {study['reference']}."


# ---- curves


def drawn(curves: Sequence[JsonObject]) -> list[JsonObject]:
    """The charts of each stage, as the page's script draws them.

    curves: of each stage, the arms that share its trainings with their metrics over updates.
    """
    found: dict[str, JsonObject] = {}
    for entry in curves:
        stage = {"name": names.TRAININGS[entry["stage"]], "arms": [], "charts": {}}
        stage = found.setdefault(entry["stage"], stage)
        label, colour = ", ".join(entry["arms"]), len(stage["arms"])
        stage["arms"].append(label)
        for metric, curve in entry["metrics"].items():
            _, title, unit = names.metric(metric)
            chart = {"title": title, "unit": unit, "lines": []}
            line = {"label": label, "colour": colour, "x": curve["steps"], "y": curve["mean"]}
            line |= {"low": curve["low"], "high": curve["high"]}
            stage["charts"].setdefault(metric, chart)["lines"].append(line)
    for stage in found.values():
        stage["charts"] = list(stage["charts"].values())
    return list(found.values())


def _curves(curves: Sequence[JsonObject]) -> list[str]:
    parts = [
        "<h2>Over updates</h2>",
        "<p>Lines are means of the seeds, bands reach from the least to the greatest of them.</p>",
        '<div id="curves"></div>',
        '<noscript><p class="absent">The curves are drawn by a script.</p></noscript>',
    ]
    grown = [entry for entry in curves if entry.get("lengthened")]
    rows = [_grown(entry) for entry in grown]
    if rows:
        head = ["arm", "stage", "answer length", "change by seed", "reward", "longer answers"]
        parts += [
            "<h3>Did answers grow?</h3>",
            f"<p>{_GROWTH}</p>",
            *_table(head, rows),
        ]
    return parts


def _grown(entry: JsonObject) -> list[str]:
    told = entry["lengthened"]
    length, reward = told["length"], told["reward"]
    moved = f"{length['low']:+.3f} to {length['high']:+.3f}"
    return [
        html.escape(", ".join(entry["arms"])),
        html.escape(names.TRAININGS[entry["stage"]]),
        f"{length['first']:.3f} → {length['last']:.3f}",
        moved,
        f"{reward['first']:.3f} → {reward['last']:.3f}",
        "yes" if told["has_grown"] else "no: it did not show",
    ]


def _results(name: str, cells: Mapping[str, Any], reference: str) -> list[str]:
    rows = []
    for arm, cell in cells.items():
        mean, apart = cell["mean"], cell["difference"]
        told = [_cell(apart, "+"), str(apart["n"])] if apart else ["–", ""]
        told = ["reference", ""] if arm == reference else told
        by_seed = ", ".join(f"{value:.3f}" for value in cell["by_seed"])
        shown = [_cell(mean), by_seed, told[0], str(mean["n"]), told[1]]
        rows.append([html.escape(arm), *shown])
    head = ["arm", "mean", "by seed", "difference", "items", "items of both"]
    return [f"<h2>{html.escape(name)}</h2>", *_table(head, rows)]


def _cell(cell: Mapping[str, float], sign: str = "") -> str:
    return f"{cell['value']:{sign}.3f} [{cell['low']:{sign}.3f}, {cell['high']:{sign}.3f}]"


def _code(words: Sequence[str]) -> str:
    return " ".join(f"<code>{html.escape(word)}</code>" for word in words)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    cells = "".join(f"<th>{name}" for name in head)
    body = ("<tr>" + "".join(map(_td, row)) for row in rows)
    return [f'<div class="scroll"><table><tr>{cells}', *body, "</table></div>"]


def _td(cell: str) -> str:
    """A figure stays on its line; words of a list may go on in the next."""
    return f"<td>{cell}" if "<code>" in cell else f'<td class="whole">{cell}'

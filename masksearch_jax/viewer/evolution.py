"""Self-evolution in the report: figures by iteration as a table, curves, and lines of text."""

from __future__ import annotations

from typing import Any

from markupsafe import Markup

from masksearch_jax.viewer import figures, plots
from masksearch_jax.viewer.load import as_dict, as_list, is_number

# Curves in order: key → (title, unit).
CURVES = {
    "span_recall": ("Held-out span recall", "bars: 95% intervals"),
    "accepted": ("Accepted", "share of what students sampled"),
    "demonstrations": ("Demonstrations", "trained on"),
    "distinct_2": ("Distinct-2", "of thoughts and queries"),
    "self_bleu": ("Self-BLEU", "the higher the more alike"),
    "query_overlap": ("Query overlap", "within an example"),
    "shape_entropy": ("Plan shapes", "entropy in bits"),
    "words": ("Length", "words that the agent wrote"),
    "searches": ("Searches", "per demonstration"),
}
_COLUMNS = {
    "demonstrations": "demonstrations",
    "new": "new",
    "sampled": "sampled",
    "accepted": "accepted",
    "distinct_2": "distinct-2",
    "self_bleu": "self-BLEU",
    "query_overlap": "query overlap",
    "shapes": "shapes",
    "words": "words",
    "searches": "searches",
}


def rows_of(summary: dict[str, Any]) -> list[dict[str, Any]]:
    """Iterations of a summary, flat: `span_recall` is a number, its interval `…_low`, `…_high`."""
    rows = []
    for given in as_list(summary.get("evolution")):
        row = dict(as_dict(given))
        if not is_number(row.get("iteration")):
            continue
        recall = as_dict(row.pop("span_recall", None))
        row |= {"step": row["iteration"], "span_recall": recall.get("value")}
        row |= {f"span_recall_{end}": recall.get(end) for end in ("low", "high")}
        rows.append(row)
    return rows


def view(summary: dict[str, Any]) -> dict[str, Any] | None:
    """What the template shows of the iterations; None for a run of another kind."""
    rows = rows_of(summary)
    if not rows:
        return None
    masks = sorted({k for r in rows for k in r if k.startswith("accepted_k")})
    known = CURVES | {
        k: (f"Accepted, {_masks(k)}", "share of what students sampled") for k in masks
    }
    order = ["span_recall", "accepted", *masks, *list(CURVES)[2:]]
    charts = [_chart(rows, key, *known[key]) for key in order]
    columns = {**_COLUMNS, **{k: _masks(k) for k in masks}}
    return {
        "charts": [c for c in charts if c],
        "columns": ["span recall", *columns.values()],
        "rows": [_cells(row, list(columns)) for row in rows],
        "collapsed": [line for r in rows for line in _collapsed(r)]
        + [f"Stopped: {line}" for line in as_list(summary.get("collapsed"))],
    }


def _masks(key: str) -> str:
    k = key.removeprefix("accepted_k")
    return f"{k} mask" + ("" if k == "1" else "s")


def _chart(rows: list[dict[str, Any]], key: str, title: str, unit: str) -> dict[str, Any] | None:
    shown = [r for r in rows if is_number(r.get(key))]
    if key.startswith("accepted"):
        shown = [r for r in shown if r["iteration"] > 0]
    if not shown:
        return None
    return {
        "title": title,
        "unit": unit,
        "last": figures.number(shown[-1][key]),
        "note": "",
        "svg": plots.line_chart(shown, key, x_name="iteration"),
    }


def _cells(row: dict[str, Any], columns: list[str]) -> dict[str, Any]:
    value, low, high = (row.get(f"span_recall{end}") for end in ("", "_low", "_high"))
    first = figures.estimate({"value": value, "low": low, "high": high})
    others = [(figures.number(row.get(c)), "") for c in columns]
    return {"iteration": figures.number(row["iteration"]), "cells": [first, *others]}


def _collapsed(row: dict[str, Any]) -> list[str]:
    return [f"Iteration {row['iteration']}: {line}" for line in as_list(row.get("collapsed"))]


def lines(summary: dict[str, Any]) -> list[Markup]:
    """Lines for the head of the report; none for a run of another kind."""
    rows = rows_of(summary)
    if not rows:
        return []
    last = rows[-1]
    recalls = [figures.number(r["span_recall"]) for r in rows]
    span = f"{figures.number(last['span_recall_low'])}–{figures.number(last['span_recall_high'])}"
    accepted = [figures.number(r.get("accepted")) for r in rows[1:]] or ["none sampled"]
    kept = figures.number(last.get("demonstrations"))
    bleu = [figures.number(r.get("self_bleu")) for r in (rows[0], last)]
    template = Markup(
        "Held-out span recall by iteration: <b>{}</b> <span class='ci'>[{}]</span>.|"
        "Share of the students' trajectories that the judge accepted, by iteration: <b>{}</b>.|"
        "The last student was trained on <b>{}</b> demonstrations; self-BLEU of those that an "
        "iteration added went from {} to {}."
    )
    filled = template.format(", ".join(recalls), span, ", ".join(accepted), kept, *bleu)
    return [Markup(part) for part in filled.split("|")]

"""The report: a run's files in, one HTML page out that loads nothing from anywhere."""

from __future__ import annotations

import base64
import hashlib
import pathlib
import re
from importlib import resources
from typing import Any

import jinja2
from markupsafe import Markup

from masksearch_jax.viewer import evolution, figures, plots, traces
from masksearch_jax.viewer.abstract import abstract
from masksearch_jax.viewer.load import Run, as_dict, is_number, read_run

MAX_TRAJECTORIES = 10
# Curves the trainers write: key → (title, unit). Other numeric keys are drawn after them.
CURVES = {
    "reward": ("Reward", "mean per trajectory"),
    "accuracy": ("Accuracy", "share of trajectories that are right"),
    "answer": ("Answer score", "mean per trajectory"),
    "format": ("Format", "share well-formed"),
    "searches": ("Searches", "per trajectory"),
    "sampled_tokens": ("Length", "sampled tokens per trajectory"),
    "entropy": ("Entropy", "nats per sampled token"),
    "truncated": ("Truncated", "share of trajectories"),
    "groups_kept": ("Groups trained on", "with spread in reward"),
    "updates": ("Updates", "per step"),
    "staleness": ("Staleness", "versions, mean per token"),
    "loss": ("Loss", "per token"),
    "agent_nll": ("Loss on the agent's tokens", "nats per token"),
    "agent_confident": ("Agent's tokens above even odds", "share"),
    "lr": ("Learning rate", ""),
    "grad_norm": ("Gradient norm", "before clipping"),
    "tokens_per_second": ("Throughput", "tokens per second"),
    "rollout_tokens_per_second": ("Rollout throughput", "sampled tokens per second"),
}
_BAD = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ud800-\udfff]")


def render(run_dir: str | pathlib.Path) -> str:
    """The report of the run in `run_dir` as one page of HTML, all text escaped.

    Raises RunFilesError as `load.read_run` does.
    """
    run = read_run(run_dir)
    files = resources.files("masksearch_jax.viewer")
    script = files.joinpath("report.js").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    env = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    env.filters["words"] = figures.words
    template = env.from_string(files.joinpath("report.html.jinja").read_text(encoding="utf-8"))
    page = template.render(
        style=Markup(files.joinpath("report.css").read_text(encoding="utf-8")),
        script=Markup(script),
        script_hash=digest,
        **context(run),
    )
    # Control characters and lone surrogates cannot be written as HTML: show that they were there.
    return _BAD.sub("\ufffd", page)


def context(run: Run) -> dict[str, Any]:
    """Everything the template shows, as text or finished SVG."""
    summary = run.summary
    return {
        "name": run.name,
        "notes": run.notes,
        "abstract": abstract(summary),
        "evolution": evolution.view(summary),
        "stages": stages(summary),
        "curves": [
            (
                _CURVE_NAMES.get(key, figures.CHECKPOINTS.get(key, key)),
                curve_charts(rows, _marks(summary, run.trainings[key])),
                len(rows),
            )
            for key, rows in run.curves.items()
            if run.trainings[key] or key in ("sft", "dapo")
        ],
        "suites": [suite_view(summary, s) for s in suite_names(summary)],
        "data": data_rows(summary),
        "trajectories": [
            traces.view(record, i)
            for i, record in enumerate(run.trajectories[:MAX_TRAJECTORIES], start=1)
        ],
        "trajectories_total": len(run.trajectories),
        "export": figures.pairs(summary.get("export")),
        "config": figures.pairs(summary.get("config"), exact=True),
        "versions": figures.pairs(summary.get("versions"), exact=True),
        "rest": figures.pairs({k: v for k, v in summary.items() if k not in _SHOWN}),
    }


_CURVE_NAMES = {
    "sft": "Supervised fine-tuning",
    "dapo": "DAPO",
    "control": "Questions alone, the control",
}
_SHOWN = (
    "wall_seconds", "peak_memory_bytes", "stages", "eval", "eval_by_type", "export", "config",
    "data", "versions", "evolution", "collapsed",
)  # fmt: skip


def stages(summary: dict[str, Any]) -> list[dict[str, Any]]:
    """Stages in order with the share of the whole each starts at and takes, in percent."""
    named = [(k, v) for k, v in as_dict(summary.get("stages")).items() if isinstance(v, dict)]
    total = sum(v["seconds"] for _, v in named if is_number(v.get("seconds"))) or 1.0
    rows, start = [], 0.0
    for name, stage in named:
        took = stage["seconds"] if is_number(stage.get("seconds")) else 0.0
        others = {k: v for k, v in stage.items() if k not in ("seconds", "counts")}
        rows.append(
            {
                "name": figures.words(name),
                "seconds": figures.seconds(stage.get("seconds")),
                "raw": stage.get("seconds"),
                "left": 100 * start / total,
                "width": 100 * took / total,
                "facts": figures.pairs(stage.get("counts")) + figures.pairs(others),
            }
        )
        start += took
    return rows


def curve_charts(
    rows: list[dict[str, Any]], marks: list[tuple[float, str]]
) -> list[dict[str, Any]]:
    """One chart per numeric key with a finite value, the known keys first."""
    keys = {k: "" for row in rows for k, v in row.items() if k != "step" and is_number(v)}
    charts = []
    for key in figures.ordered(CURVES, keys):
        title, unit = CURVES.get(key, (figures.words(key), ""))
        values = [row[key] for row in rows if is_number(row.get(key))]
        unusable = sum(key in row and not is_number(row[key]) for row in rows)
        width = plots.thin(list(enumerate(values)))[1]
        notes = [f"{unusable} value(s) not finite"] if unusable else []
        notes += [f"each point is the mean of {width}"] if width > 1 else []
        charts.append(
            {
                "title": title,
                "unit": unit,
                "last": figures.number(values[-1]),
                "note": "; ".join(notes),
                "svg": plots.line_chart(rows, key, marks),
                "known": key in CURVES,
            }
        )
    return charts


def suite_names(summary: dict[str, Any]) -> list[str]:
    found = {s: "" for by in as_dict(summary.get("eval")).values() for s in as_dict(by)}
    return figures.ordered(figures.SUITES, found)


def suite_view(summary: dict[str, Any], suite: str) -> dict[str, Any]:
    """One suite: its table rows (checkpoint × condition), its plot, and its results by type."""
    results = {c: as_dict(v).get(suite) for c, v in as_dict(summary.get("eval")).items()}
    results = {c: v for c, v in results.items() if isinstance(v, dict)}
    metrics = {m: "" for v in results.values() for cells in v.values() for m in as_dict(cells)}
    columns = figures.ordered(figures.METRICS, metrics)
    conditions = {c: "" for v in results.values() for c in v}
    rows, groups = [], []
    shown = figures.main_metric(suite, metrics)
    for condition in figures.ordered(figures.CONDITIONS, conditions):
        dots = []
        for checkpoint in figures.ordered(figures.CHECKPOINTS, results):
            cells = as_dict(results[checkpoint].get(condition))
            if cells:
                rows.append(_table_row(checkpoint, condition, cells, columns))
            cell = as_dict(cells.get(shown))
            if is_number(cell.get("value")):
                label = f"{figures.CHECKPOINTS.get(checkpoint, checkpoint)}, {condition}"
                dots.append(
                    {"name": label, "checkpoint": checkpoint, "low": None, "high": None} | cell
                )
        if dots:
            groups.append((figures.CONDITIONS.get(condition, condition), dots))
    title = figures.SUITES.get(suite, figures.words(suite))
    measure = figures.METRICS.get(shown, figures.words(shown))
    plot = plots.whiskers(groups, f"{title}: {measure} with 95% intervals") if groups else ""
    return {
        "title": title,
        "columns": [figures.METRICS.get(m, figures.words(m)) for m in columns],
        "rows": rows,
        "plot": plot,
        "measure": measure,
        "types": type_rows(summary, suite, shown),
    }


def type_rows(summary: dict[str, Any], suite: str, metric: str) -> dict[str, Any] | None:
    """A suite's results with search by type: types down, checkpoints across; None without."""
    found = {
        c: as_dict(as_dict(as_dict(v).get(suite)).get("search"))
        for c, v in as_dict(summary.get("eval_by_type")).items()
    }
    types = dict.fromkeys(t for by_type in found.values() for t in by_type)
    checkpoints = [c for c in figures.ordered(figures.CHECKPOINTS, found) if found[c]]
    if len(types) < 2:
        return None
    rows = []
    for name in types:
        cells = [as_dict(as_dict(found[c].get(name)).get(metric)) for c in checkpoints]
        sizes = [cell["n"] for cell in cells if is_number(cell.get("n"))]
        shown = [figures.estimate(cell) for cell in cells]
        rows.append({"name": figures.words(name), "n": max(sizes, default=0), "cells": shown})
    return {"columns": [figures.CHECKPOINTS.get(c, c) for c in checkpoints], "rows": rows}


def _table_row(checkpoint: str, condition: str, cells: dict, columns: list[str]) -> dict[str, Any]:
    shown = []
    for metric in columns:
        cell = as_dict(cells.get(metric))
        value, interval = figures.estimate(cell, 2 if metric == "searches" else 3)
        title = ", ".join(f"{k} {cell[k]!r}" for k in ("value", "low", "high", "n") if k in cell)
        shown.append({"value": value, "interval": interval, "title": title})
    sizes = sorted(
        {c["n"] for c in cells.values() if isinstance(c, dict) and is_number(c.get("n"))}
    )
    return {
        "checkpoint": checkpoint,
        "checkpoint_label": figures.CHECKPOINTS.get(checkpoint, checkpoint),
        "kind": figures.KINDS.get(checkpoint, "other"),
        "condition": figures.CONDITIONS.get(condition, figures.words(condition)),
        "cells": shown,
        "n": "–".join(figures.number(n) for n in (sizes[:1] + sizes[1:][-1:])) or figures.ABSENT,
    }


def data_rows(summary: dict[str, Any]) -> list[dict[str, Any]]:
    """Steps of a build: what went in, what came out, and what was dropped for which reason."""
    rows = []
    for name, counts in as_dict(summary.get("data")).items():
        counts = as_dict(counts)
        n_in, n_out = counts.get("in"), counts.get("out")
        share = min(1.0, n_out / n_in) if is_number(n_in) and n_in and is_number(n_out) else None
        rows.append(
            {
                "name": figures.words(name),
                "in": figures.number(n_in),
                "out": figures.number(n_out),
                "kept": None if share is None else 100 * share,
                "dropped": figures.pairs(counts.get("dropped")),
                "more": figures.pairs(
                    {k: v for k, v in counts.items() if k not in ("in", "out", "dropped")}
                ),
            }
        )
    return rows


def _marks(summary: dict[str, Any], trainings: list[tuple[str, int]]) -> list[tuple[float, str]]:
    """Where a joined curve comes to its next training, and a curriculum to its next mixture."""
    marks = []
    for folder, before in trainings:
        section = folder.rpartition("/")[2].removeprefix("ramp_").replace("control_", "qa_")
        text = as_dict(as_dict(summary.get("config")).get(section)).get("curriculum")
        parts = re.findall(r"(\d+):([^,]+)", text) if isinstance(text, str) else []
        parts = parts or [("0", figures.words(folder.rpartition("/")[2]))]
        marks += [(before + int(step), name.strip()) for step, name in parts]
    return marks

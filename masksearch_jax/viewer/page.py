"""The report: files of runs in, one HTML page out that loads nothing from anywhere.

The page holds its data packed by gzip, in pieces that its script unpacks when they are looked at.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import html
import itertools
import json
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from importlib import resources
from typing import Any

from masksearch_jax.core.types import JsonObject
from masksearch_jax.viewer import evaluations, facts, load, names, trajectories
from masksearch_jax.viewer.load import Run, as_dict, as_list, is_number
from masksearch_jax.viewer.trajectories import Group, Tokens

MAX_POINTS = 2000  # of a curve: more are joined to means of neighbours
MAX_TRAJECTORIES = 3000
_TEXTS, _TOKENS = 100, 50  # trajectories in a piece of the page's data
STYLES = ("vendor/uPlot.min.css", "report.css")
SCRIPTS = (
    *("data.js", "format.js", "elements.js", "charts.js", "curves.js", "evaluation.js"),
    *("list.js", "trajectory.js", "run.js", "report.js"),
)
UPLOT = "vendor/uPlot.iife.min.js"


def render(folders: Sequence[str | os.PathLike], most: int = MAX_TRAJECTORIES) -> str:
    """The report of some runs as one page of HTML; at most so many trajectories can be read in it.

    Raises RunFilesError as `load.read_run` does.
    """
    runs = [load.read_run(*pair) for pair in zip(folders, load.run_names(folders), strict=True)]
    groups = [g for i, run in enumerate(runs) for g in trajectories.read(run, i, most)]
    trajectories.take(groups, most)
    metrics = {k: v for run in runs for k, v in evaluations.main_metrics(run).items()}
    rows, texts, tokens = _shown(runs, groups, metrics)
    evaluated = [evaluations.read(run, i) for i, run in enumerate(runs)]
    main = {
        "runs": [_run(run) for run in runs],
        "groups": _groups(groups),
        "rows": rows,
        "sizes": {"texts": _TEXTS, "tokens": _TOKENS},
        "series": [s for i, run in enumerate(runs) for s in _series(run, i)],
        "evaluations": [entry for entries, _ in evaluated for entry in entries],
        "origins": [origin for _, origins in evaluated for origin in origins],
        "metrics": metrics,
        "names": _names(),
    }
    pieces = [("main", main)]
    pieces += [(f"texts-{i}", piece) for i, piece in enumerate(texts)]
    pieces += [(f"tokens-{i}", piece) for i, piece in enumerate(tokens)]
    return _page([run.name for run in runs], pieces)


def _page(runs: list[str], pieces: list[tuple[str, Any]]) -> str:
    """The shell with styles, scripts and data in it."""
    scripts = [asset(UPLOT), "\n".join(map(asset, SCRIPTS))]
    packed = [
        f'<script type="application/gzip" id="data-{name}">{pack(value)}</script>'
        for name, value in pieces
    ]
    parts = {
        "title": html.escape(_printable(f"MaskSearch: {', '.join(runs)}")),
        "hashes": hashes(scripts),
        "style": "\n".join(map(asset, STYLES)),
        "first": packed[0],  # with it the page is drawn, while the browser reads on
        "data": "\n".join(packed[1:]),
        "scripts": "\n".join(f"<script>{script}</script>" for script in scripts),
    }
    return re.sub(r"\{\{(\w+)\}\}", lambda m: parts[m[1]], asset("report.html"))


def hashes(scripts: Iterable[str]) -> str:
    """What a page's policy lets run: these scripts and no others."""
    digests = (hashlib.sha256(script.encode()).digest() for script in scripts)
    return " ".join(f"'sha256-{base64.b64encode(digest).decode()}'" for digest in digests)


def asset(name: str) -> str:
    """The text of a file of this room: a script, a style or the shell of a page."""
    return resources.files("masksearch_jax.viewer").joinpath(name).read_text(encoding="utf-8")


def _printable(text: str) -> str:
    """Text without what cannot be written as HTML: control characters and lone surrogates."""
    return re.sub("[\x00-\x1f\x7f\ud800-\udfff]", "\ufffd", text)


def pack(value: Any) -> str:
    """JSON, packed by gzip, in base64; the same value gives the same text."""
    text = json.dumps(_finite(value), ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return base64.b64encode(gzip.compress(text.encode("utf-8", "replace"), 9, mtime=0)).decode()


def _finite(value: Any) -> Any:
    """The value with text in place of numbers that JSON does not have."""
    if isinstance(value, dict):
        return {str(k): _finite(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(v) for v in value]
    return str(value) if isinstance(value, float) and not is_number(value) else value


def _names() -> JsonObject:
    return {
        "suites": names.SUITES,
        "methods": names.METHODS,
        "scores": names.SCORES,
        "statuses": names.STATUSES,
        "iterations": names.ITERATIONS,
        "groups": [*names.GROUPS, names.OTHER],
    }


def _run(run: Run) -> JsonObject:
    summary = run.summary
    shown = ("wall_seconds", "peak_memory_bytes", "export", "collapsed")
    iterations = [as_dict(row) for row in as_list(summary.get("evolution"))]
    return {
        "name": run.name,
        "summary": {k: summary[k] for k in shown if k in summary},
        "stages": facts.stages(run),
        "data": facts.data(run),
        "records": facts.records(run),
        "iterations": [row for row in iterations if is_number(row.get("iteration"))],
        "notes": run.notes,
    }


def _series(run: Run, number: int) -> Iterator[JsonObject]:
    """The curves of each training of a run, by metric."""
    for folder in run.folders:
        if load.METRICS not in folder.files:
            continue
        rows = load.read_metrics(folder, run)
        shared, width = _thinned(rows)
        found = dict.fromkeys(k for row in rows for k, v in row.items() if is_number(v))
        keys = names.ordered(names.metric_order(), found.keys() - {"step", "wall_time"})
        times = [row.get("wall_time") for row in shared]
        yield {
            "run": number,
            "place": names.place(folder.parts),
            "kind": "rl" if "reward" in found else "sft",
            "steps": [row["step"] for row in shared],
            "seconds": [t - times[0] for t in times] if all(map(is_number, times)) else None,
            "values": {k: [_short(row.get(k)) for row in shared] for k in keys},
            "metrics": {k: list(names.metric(k)) for k in keys},
            "marks": facts.marks(folder, rows) + facts.alarms(rows) + facts.rollbacks(folder),
            "rows": len(rows),
            "width": width,
            "unusable": {k: n for k in keys if (n := _unusable(rows, k))},
        }


def _unusable(rows: list[JsonObject], key: str) -> int:
    return sum(key in row and not is_number(row[key]) for row in rows)


def _short(value: Any) -> Any:
    """Six digits: more are not seen in a curve."""
    return float(f"{value:.6g}") if is_number(value) else None


def _thinned(rows: list[JsonObject]) -> tuple[list[JsonObject], int]:
    """At most MAX_POINTS rows, each the mean of that many neighbours; and how many that is."""
    width = -(-len(rows) // MAX_POINTS) if rows else 1
    if width == 1:
        return rows, 1
    parts = (rows[i : i + width] for i in range(0, len(rows), width))
    return [_mean(part) for part in parts], width


def _mean(rows: list[JsonObject]) -> JsonObject:
    found = {}
    for key in dict.fromkeys(itertools.chain(*rows)):
        values = [row[key] for row in rows if is_number(row.get(key))]
        if values:
            found[key] = sum(values) / len(values)
    return found


def _groups(groups: list[Group]) -> list[JsonObject]:
    """What each group holds; its items as numbers that other groups share, for paired differences.

    Items of different files are different ones, whatever their ids.
    """
    places: dict[tuple[str, str], int] = {}
    return [
        {
            "run": g.run,
            "place": g.place,
            "suite": g.suite,
            "method": g.method,
            "items": [places.setdefault((g.file, name), len(places)) for name in g.ids],
            "scores": g.scores,
            "shown": len(g.lines),
        }
        for g in groups
    ]


def _shown(
    runs: list[Run], groups: list[Group], metrics: dict[str, str]
) -> tuple[list[JsonObject], list[list[JsonObject]], list[JsonObject]]:
    """Rows of the list, and pieces of what is read of each row: texts, and tokens."""
    rows: list[JsonObject] = []
    texts: list[list[JsonObject]] = []
    tokens: list[Tokens] = []
    used: dict[str, int] = {}
    for number, group in enumerate(groups):
        for line in group.lines:
            row = json.loads(line)
            kept = trajectories.shown(row)
            if said := group.verdicts.get(str(kept["example_id"])):
                kept["verdicts"] = said
            if len(rows) % _TEXTS == 0:
                texts.append([])
            if len(rows) % _TOKENS == 0:
                tokens.append(Tokens())
            name = trajectories.name_of(runs[group.run].name, group, row)
            used[name] = used.get(name, 0) + 1
            name += f"-{used[name]}" if used[name] > 1 else ""
            listing = trajectories.listed(row, kept, metrics.get(group.suite, ""))
            rows.append({"id": name, "of": number} | listing)
            texts[-1].append(kept)
            tokens[-1].add(row)
    return rows, texts, [t.packed() for t in tokens]

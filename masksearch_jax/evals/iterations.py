"""What a run of self-evolution shows: one row of figures per iteration, as data and as text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

SHOWN = ("distinct_1", "distinct_2", "self_bleu", "query_overlap", "shapes", "shape_entropy")

_LINES = (  # of the table: a name, the key of the figure, how it is written
    ("demonstrations", "demonstrations", ","),
    ("  new", "new", ","),
    ("sampled", "sampled", ","),
    ("accepted", "accepted", ".3f"),
    ("distinct-2", "distinct_2", ".3f"),
    ("self-BLEU", "self_bleu", ".3f"),
    ("query overlap", "query_overlap", ".3f"),
    ("plan shapes", "shapes", ""),
    ("words", "words", ".1f"),
    ("searches", "searches", ".2f"),
)


def row(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """One iteration's figures, flat but for `span_recall`, an interval, and `collapsed`, lines."""
    figures, masks = manifest["figures"], manifest["figures"]["acceptance"]
    shown = {f"accepted_k{k}": cells["rate"] for k, cells in masks.items() if k != "all"}
    return {
        "iteration": manifest["iteration"],
        "span_recall": manifest["eval"]["ramp"]["search"]["span_recall"],
        "demonstrations": figures["demonstrations"],
        "new": figures["kept"],
        "sampled": masks["all"]["sampled"],
        "accepted": masks["all"]["rate"],
        **shown,
        **{name: figures["diversity"][name] for name in SHOWN},
        **figures["lengths"],
        **{f"{kind}_items": count for kind, count in figures["pool"].items()},
        "collapsed": manifest["collapsed"],
    }


def table(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """The rows as lines of text, one column each: recall with its interval, samples, diversity."""
    masks = sorted({k for r in rows for k in r if k.startswith("accepted_k")})
    lines = [["iteration", *(str(r["iteration"]) for r in rows)]]
    for name, key in (("span recall", "value"), ("  from", "low"), ("  to", "high")):
        lines.append([name, *(f"{r['span_recall'][key]:.3f}" for r in rows)])
    for name, key, form in _LINES:
        lines.append([name, *(format(r[key], form) for r in rows)])
        if key == "accepted":
            for k in masks:
                told = [f"{r[k]:.2f}" if k in r else "-" for r in rows]
                lines.append([f"  of {k.removeprefix('accepted_')}", *told])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return [
        "  ".join([name.ljust(widths[0]), *map(str.rjust, cells, widths[1:])])
        for name, *cells in lines
    ]

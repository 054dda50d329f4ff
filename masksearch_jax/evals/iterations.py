"""What a run of self-evolution shows: one row of figures per iteration, as data and as text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

SHOWN = ("distinct_1", "distinct_2", "self_bleu", "query_overlap", "shapes", "shape_entropy")


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
    """The rows as lines of text: recall with its interval, what was sampled and kept, diversity."""
    masks = sorted({k for r in rows for k in r if k.startswith("accepted_k")})
    head = ["n", "held-out span recall", "demos", "new", "sampled", "accepted"]
    head += [k.removeprefix("accepted_") for k in masks]
    head += ["dist-2", "s-BLEU", "overlap", "shapes", "words", "searches"]
    lines = [head]
    for r in rows:
        m = r["span_recall"]
        cells = [str(r["iteration"]), f"{m['value']:.3f} [{m['low']:.3f}, {m['high']:.3f}]"]
        cells += [f"{r[k]:,}" for k in ("demonstrations", "new", "sampled")]
        cells += [f"{r['accepted']:.3f}", *(f"{r[k]:.2f}" if k in r else "-" for k in masks)]
        cells += [f"{r[k]:.3f}" for k in ("distinct_2", "self_bleu", "query_overlap")]
        cells += [str(r["shapes"]), f"{r['words']:.1f}", f"{r['searches']:.2f}"]
        lines.append(cells)
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return ["  ".join(c.rjust(w) for c, w in zip(cells, widths, strict=True)) for cells in lines]

"""A plan as text."""

from __future__ import annotations

from typing import Any

from masksearch_jax.planning.chips import GIB
from masksearch_jax.planning.vector_search import BATCH


def page(results: dict[str, Any]) -> str:
    """All programs of a plan, one paragraph each, in lines for a terminal of 80 columns."""
    r = results
    mesh = " ".join(f"{name}={size}" for name, size in r["mesh"].items())
    held = ", ".join(f"{kind} {_gib(size)}" for kind, size in r["held"].items())
    head = (
        f"{r['slices']} x {r['topology']}: {r['chips']} chips, {_gib(r['hbm'])} of HBM on a "
        f"device\nmesh {mesh}\nheld on a device: {held}"
    )
    if "kv" in r:
        head += (
            f"\nthe KV cache holds {r['kv']['tokens']:,} tokens\n"
            f"  {r['kv']['longest']} slots of rollout.max_len; {r['kv']['slots_that_fit']} would "
            "fit"
        )
    parts = [head, *(_program(name, f) for name, f in r["programs"].items())]
    return "\n\n".join([*parts, *([vectors_of(r["vectors"])] if "vectors" in r else [])])


def vectors_of(rows: list[dict[str, Any]]) -> str:
    """What an exact search among vectors costs, two lines for each length."""
    where = f"on a host's {rows[0]['devices']} devices, each with a part"
    lines = [f"dense search of {rows[0]['passages']:,} passages {where}"]
    lines.append("(computed; times are at least these):")
    for row in rows:
        size = f"{row['disk'] / 1e9:.1f} GB on disk, {_gib(row['held'])} on a device"
        query, batch = (f"{1e3 * row[f'{name}_seconds']:.1f} ms" for name in ("query", "batch"))
        lines.append(f"  {row['dim']} numbers: {size} and {_gib(row['scores'])} of scores")
        lines.append(f"    a query takes {query}, {BATCH} at once {batch}")
    return "\n".join(lines)


def update_of(results: dict[str, Any]) -> str:
    """The update of a plan, without what it shares with other ways to run it."""
    return _program("update", results["programs"]["update"])


def _program(name: str, figures: dict[str, Any]) -> str:
    fits = "fits" if figures["fits"] else "DOES NOT FIT"
    lines = [f"{name}: {fits}, {_gib(figures['peak'])} at its peak"]
    if "needed" in figures:
        return lines[0]
    memory = figures["memory"]
    lines.append(
        f"  temporaries {_gib(memory['temporaries'])}, code {_gib(memory['code'])}, compiled in "
        f"{figures['compile_seconds']:.0f} s"
    )
    lines += [
        f"  {kind}: {row['count']:.0f}, {_gib(row['ici'])} over ICI, {_gib(row['dcn'])} over DCN"
        for kind, row in figures["collectives"].items()
    ]
    if "step_bytes" in figures:
        lines += _decoding(figures)
    if "estimate" in figures:
        lines += _training(figures)
    return "\n".join(lines)


def _decoding(figures: dict[str, Any]) -> list[str]:
    rate = f"{figures['tokens_per_second_at_most']:,.0f} tokens/s"
    step, sent = _gib(figures["step_bytes"]), _gib(figures["step_ici"])
    moved = f"{step} to and from HBM and {sent} over ICI"
    return [
        f"  a decode step moves {moved}",
        f"    at most {rate} (estimate by published peaks)",
    ]


def _training(figures: dict[str, Any]) -> list[str]:
    e = figures["estimate"]
    times = ", ".join(f"{k} {e[f'{k}_seconds']:.2f} s" for k in ("compute", "hbm", "ici", "dcn"))
    return [
        f"  {figures['flops']:.3g} FLOPs, {figures['recompute']:.2f} x the model's (causal)",
        f"  all-gathers of the weights of all layers at once: {figures['weight_stacks_gathered']}",
        f"  estimate by published peaks: MFU {e['mfu']:.0%} if all of this overlaps",
        f"    {times}",
        *_whole_run(figures),
    ]


def _whole_run(figures: dict[str, Any]) -> list[str]:
    if "updates" not in figures:
        return []
    size = f"{figures['rows']} rows of {figures['row_tokens']:,} tokens each"
    hours = figures["updates"] * figures["estimate"]["seconds"] / 3600
    return [f"    {size}; {figures['updates']:,} such updates: at least {hours:,.1f} hours"]


def _gib(size: float) -> str:
    return f"{size / GIB:.2f} GiB" if size >= GIB / 10 else f"{size / 2**20:.1f} MiB"

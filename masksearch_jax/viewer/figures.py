"""Numbers as text: the one place that decides units and digits."""

from __future__ import annotations

from typing import Any

from masksearch_jax.viewer.load import as_dict, is_number

ABSENT = "–"

# Those of a single stage, of both and of the control; cells of launch/cells.sh, RAMP → questions.
CHECKPOINTS = {
    "init": "before SFT",
    "sft": "after SFT",
    "dapo": "after DAPO",
    "ramp_sft": "after RAMP SFT",
    "ramp_dapo": "after RAMP DAPO",
    "qa_sft": "after QA SFT",
    "qa_dapo": "after QA DAPO",
    "control": "control: QA alone",
    "start": "the model as it was",
    "none-sft": "none → SFT",
    "none-rl": "none → RL",
    "sft-sft": "SFT → SFT",
    "rl-sft": "RL → SFT",
    "sft-rl": "SFT → RL",
    "rl-rl": "RL → RL",
}
CELLS = tuple(CHECKPOINTS)[-7:]
# The colour of each.
KINDS = {
    "init": "init",
    "sft": "sft",
    "dapo": "dapo",
    "ramp_sft": "sft",
    "ramp_dapo": "dapo",
    "qa_sft": "qa-sft",
    "qa_dapo": "qa-dapo",
    "control": "control",
    "start": "init",
    "none-sft": "control",
    "none-rl": "control",
    "sft-sft": "sft",
    "rl-sft": "dapo",
    "sft-rl": "qa-sft",
    "rl-rl": "qa-dapo",
}
SUITES = {
    "ramp": "Held-out RAMP",
    "source_hidden": "RAMP, its own passage hidden",
    "two_hop": "Two-hop questions",
}
CONDITIONS = {"search": "search", "no_search": "no search", "random": "random retriever"}
METRICS = {
    "span_recall": "span recall",
    "recall": "recall",
    "em": "EM",
    "f1": "F1",
    "format_rate": "format rate",
    "searches": "searches",
    "source_hit": "source hit",
}


def main_metric(suite: str, present: Any) -> str:
    """What a suite's plot shows: F1 of questions, span recall of masks."""
    first = "f1" if suite == "two_hop" else "span_recall"
    return first if first in present else next(iter(present), first)


def ordered(known: dict[str, str], present: Any) -> list[str]:
    """Keys of `present`, those of `known` first and in its order, the others after them."""
    keys = list(present)
    return [k for k in known if k in keys] + [k for k in keys if k not in known]


def words(name: str) -> str:
    """A key as words; a unit that the value will show anyway is left out."""
    return name.removesuffix("_bytes").removesuffix("_seconds").replace("_", " ")


def number(value: Any, digits: int = 3) -> str:
    """A plain number: integers in groups of three, others to `digits` decimals (tiny: digits)."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if not is_number(value):
        return ABSENT if value is None else str(value)
    if isinstance(value, int) or (float(value).is_integer() and abs(value) >= 1000):
        return f"{int(value):,}"
    if value and abs(value) < 10 ** (1 - digits):
        return f"{value:.{digits}g}"
    return f"{value:,.{digits}f}" if abs(value) < 1000 else f"{value:,.0f}"


def seconds(value: Any) -> str:
    """A duration: 0.42 s, 12.3 s, 9 min 42 s, 2 h 05 min."""
    if not is_number(value):
        return ABSENT
    if value < 59.95:
        return f"{value:.2f} s" if value < 10 else f"{value:.1f} s"
    minutes, rest = divmod(round(value), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def size(value: Any) -> str:
    """Bytes in binary units."""
    if not is_number(value):
        return ABSENT
    amount, units = float(value), ["B", "KiB", "MiB", "GiB", "TiB"]
    while amount >= 1024 and len(units) > 1:
        amount /= 1024
        units.pop(0)
    return f"{amount:.0f} B" if units[0] == "B" else f"{amount:.2f} {units[0]}"


def quantity(key: str, value: Any) -> str:
    """A number whose key tells its unit: `..._seconds`, `..._bytes`, or none."""
    if key.endswith("seconds"):
        return seconds(value)
    if key.endswith("bytes"):
        return size(value)
    return number(value)


def estimate(cell: Any, digits: int = 3) -> tuple[str, str]:
    """Value and 95% interval of one evaluated metric as text; the interval may be empty."""
    cell = as_dict(cell)
    if not is_number(cell.get("value")):
        return ABSENT, ""
    low, high = cell.get("low"), cell.get("high")
    interval = f"{low:.{digits}f}–{high:.{digits}f}" if is_number(low) and is_number(high) else ""
    return f"{cell['value']:.{digits}f}", interval


def flatten(value: Any, prefix: str = "") -> list[tuple[str, Any]]:
    """Leaves of nested dicts as (dotted key, value), in order."""
    if not isinstance(value, dict):
        return [(prefix, value)]
    leaves = []
    for key, inner in value.items():
        leaves += flatten(inner, f"{prefix}.{key}" if prefix else str(key))
    return leaves


def pairs(value: Any, exact: bool = False) -> list[tuple[str, str, Any]]:
    """(dotted key, shown text, raw value) of every leaf of a nested dict.

    `exact` shows values as they were written (settings), not rounded (measurements).
    """
    leaves = [(k, v) for k, v in flatten(as_dict(value)) if v != {}]
    return [(k, str(v) if exact else quantity(k, v), v) for k, v in leaves]

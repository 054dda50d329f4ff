"""The five lines at the head of the report, written from the summary's figures."""

from __future__ import annotations

from typing import Any

from markupsafe import Markup

from masksearch_jax.viewer import evolution, figures
from masksearch_jax.viewer.load import as_dict, is_number


def abstract(summary: dict[str, Any]) -> list[Markup]:
    """Five lines with the headline numbers; each says so when its figure is absent."""
    wall, memory = summary.get("wall_seconds"), summary.get("peak_memory_bytes")
    stage_count = len(as_dict(summary.get("stages")))
    first = (
        _fill("Whole run: <b>{}</b>, peak memory <b>{}</b>, {} stages.",
              figures.seconds(wall), figures.size(memory), stage_count)
        if is_number(wall)
        else Markup("Whole run: not finished, or not measured.")
    )  # fmt: skip
    if evolved := evolution.lines(summary):
        return [first, *evolved]
    if any(c in figures.CELLS for c in as_dict(summary.get("eval"))):
        return _by_cell(summary)
    return [
        first,
        _across_checkpoints(summary),
        _across_conditions(summary),
        _two_hop(summary),
        _export_line(summary),
    ]


def _by_cell(summary: dict[str, Any]) -> list[Markup]:
    """How RAMP and then questions were trained, by what came out of it."""
    lines = []
    measures = {"two_hop": ("f1", "Two-hop F1"), "ramp": ("span_recall", "Held-out span recall")}
    for suite, (metric, name) in measures.items():
        found = {c: _cell(summary, c, suite, "search", metric) for c in figures.CELLS}
        parts = [
            _fill("{} {}", figures.CHECKPOINTS[c], _value(cell))
            for c, cell in found.items()
            if cell
        ]
        said = Markup(", ").join(parts) if parts else Markup("not evaluated")
        lines.append(_fill("{} with search: ", name) + said + ".")
    return lines


def _across_checkpoints(summary: dict[str, Any]) -> Markup:
    trained = [c for c in figures.CHECKPOINTS if c != "control"]  # which never saw a mask
    cells = {c: _cell(summary, c, "ramp", "search", "span_recall") for c in trained}
    known = {c: cell for c, cell in cells.items() if cell}
    if not known:
        return Markup("Held-out span recall with search: not evaluated.")
    parts = [_fill("{} {}", _value(cell), figures.CHECKPOINTS[c]) for c, cell in known.items()]
    line = Markup("Held-out span recall with search: ") + Markup(", ").join(parts) + "."
    for sft, dapo in (("sft", "dapo"), ("ramp_sft", "ramp_dapo")):
        line += _compared(cells[sft], cells[dapo], " The intervals after SFT and after DAPO {}.")
    return line


def _compared(one: dict[str, Any], other: dict[str, Any], sentence: str) -> Markup:
    """Whether two intervals overlap; nothing where one is not known."""
    if not all(is_number(cell.get(end)) for cell in (one, other) for end in ("low", "high")):
        return Markup("")
    apart = one["low"] > other["high"] or other["low"] > one["high"]
    return _fill(sentence, "are apart" if apart else "overlap")


def _across_conditions(summary: dict[str, Any]) -> Markup:
    best = _last_checkpoint(summary, "ramp")
    parts = [
        _fill("{} {}", _value(cell), text)
        for condition, text in (("no_search", "when search returns nothing"),
                                ("random", "when it returns random passages"))
        if (cell := _cell(summary, best, "ramp", condition, "span_recall"))
    ]  # fmt: skip
    if not parts:
        return Markup("Without search: not evaluated.")
    return (
        _fill("The same measure {}: ", figures.CHECKPOINTS.get(best, best))
        + Markup(", ").join(parts)
        + "."
    )


def _two_hop(summary: dict[str, Any]) -> Markup:
    best = _last_checkpoint(summary, "two_hop")
    parts = [
        _fill("{} {}", label, _value(cell))
        for metric, label in (("em", "exact match"), ("f1", "F1"))
        if (cell := _cell(summary, best, "two_hop", "search", metric))
    ]
    if not parts:
        return Markup("Two-hop questions: not evaluated.")
    line = _fill("Two-hop questions {}: ", figures.CHECKPOINTS.get(best, best))
    line += Markup(", ").join(parts) + "."
    if control := _cell(summary, "control", "two_hop", "search", "f1"):
        line += _fill(" Questions alone, with as many updates: F1 {}.", _value(control))
        ours = _cell(summary, best, "two_hop", "search", "f1")
        line += _compared(ours, control, " The two intervals {}.")
    return line


def _export_line(summary: dict[str, Any]) -> Markup:
    pairs = figures.pairs(summary.get("export"))
    if not pairs:
        return Markup("Hugging Face export: not made.")
    parts = [
        _fill("{} <b>{}</b>", figures.words(k), text)
        for k, text, raw in pairs
        if not isinstance(raw, str)
    ]
    return (
        Markup("Hugging Face export: ")
        + Markup(", ").join(parts[:4] or [_fill("{}", pairs[0][1])])
        + "."
    )


def _cell(summary: dict[str, Any], *keys: str) -> dict[str, Any]:
    value: Any = summary.get("eval")
    for key in keys:
        value = as_dict(value).get(key)
    return value if is_number(as_dict(value).get("value")) else {}


def _last_checkpoint(summary: dict[str, Any], suite: str) -> str:
    """The furthest-trained checkpoint that was evaluated on a suite, of RAMP before questions."""
    evaluated = as_dict(summary.get("eval"))
    others = ("control",) if suite == "two_hop" else ("control", "qa_sft", "qa_dapo")
    done = [
        c for c in figures.CHECKPOINTS if c not in others and as_dict(evaluated.get(c)).get(suite)
    ]
    return done[-1] if done else "init"


def _value(cell: dict[str, Any]) -> Markup:
    value, interval = figures.estimate(cell)
    tail = _fill(' <span class="ci">[{}]</span>', interval) if interval else ""
    return _fill("<b>{}</b>{}", value, tail)


def _fill(template: str, *values: Any) -> Markup:
    return Markup(template).format(*values)

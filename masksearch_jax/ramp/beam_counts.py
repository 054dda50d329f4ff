"""What became of a corpus, from what `beam_ramp` counted and wrote; needs no Beam."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Mapping
from typing import Any

from etils import epath


def named(work: epath.Path) -> dict[str, dict[str, list[str]]]:
    """A few of what was left out: stage → reason → names."""
    found: dict[str, dict[str, list[str]]] = defaultdict(dict)
    for file in sorted(work.glob("dropped-*")):
        for line in file.read_text().splitlines():
            (stage, reason), names = json.loads(line)
            found[stage][reason] = names
    return found


def counts(
    counters: Mapping[tuple[str, str], int], named: Mapping[str, dict[str, list[str]]]
) -> dict[str, Any]:
    """Beam's counters as counts per stage."""
    dropped: dict[str, Counter[str]] = defaultdict(Counter)
    by_masks: dict[str, Counter[str]] = defaultdict(Counter)
    for (stage, name), count in sorted(counters.items()):
        kind, _, detail = name.partition("/")
        if stage == "examples":
            by_masks[kind][detail] += count
        elif kind == "dropped":
            dropped[stage][detail] += count

    def count(stage: str, name: str) -> int:
        return counters.get((stage, name), 0)

    def stage(name: str, given: int, out: int) -> dict[str, Any]:
        left_out = {"dropped": dict(dropped[name]), "such_as": dict(sorted(named[name].items()))}
        return {"in": given, "out": out} | left_out

    corpus = stage("corpus", count("corpus", "in"), count("corpus", "out"))
    if count("articles", "in"):
        corpus["left_out"] = stage("articles", count("articles", "in"), count("articles", "out"))
    made = sum(c.total() for c in by_masks.values())
    return {
        "corpus": corpus,
        "clean": stage("clean", corpus["out"], count("clean", "out")),
        "ramp": stage("ramp", count("clean", "out"), made)
        | {
            "used": count("ramp", "used"),
            "refused_spans": dict(dropped["spans"]),
            "by_masks": {s: dict(by_masks[s]) for s in ("train", "rl", "heldout") if s in by_masks},
        },
    }

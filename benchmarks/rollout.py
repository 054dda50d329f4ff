"""The rollout engine measured: waiting for search, plain decoding, parked slots, determinism.

    python -m benchmarks.rollout --json=FILE [--only=latency,decode,parked,determinism]

Random weights of Qwen2 shapes, computed in full. Contestants take turns within each repeat, and a
ratio is of one repeat, so that a busy machine slows all alike. Each figure is the median of the
repeats, with least and most. Compiling and first calls are not timed.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
import numpy as np

from benchmarks import rollout_decode, rollout_determinism, rollout_latency
from benchmarks import rollout_model as stand_in
from masksearch_jax.models.transformer import Transformer, unroll
from masksearch_jax.rollout import decode
from masksearch_jax.rollout.sampling import Sampler

TARGETS = {
    "latency.ratio_to_zero_latency": (">=", 0.9),
    "latency.ratio_to_turn_synchronous": (">=", 2.0),
    "parked.ratio_half_to_all": ("<=", 0.6),
    "determinism.identical": (">=", 1.0),
    "determinism.identical_one_process": (">=", 1.0),
    "determinism.identical_two_processes": (">=", 1.0),
}
PARKED_SLOTS, PARKED_LENGTH = 64, 128
Values = dict[str, list[float]]
Notes = dict[str, str]


def latency(repeats: int) -> tuple[Values, Notes]:
    model, vocab = medium(), stand_in.Words(MEDIUM.vocab_size)
    return rollout_latency.measure(unroll(model), vocab, repeats), {}


def plain_decode(repeats: int) -> tuple[Values, Notes]:
    return rollout_decode.measure(medium(), repeats)


def parked(repeats: int) -> tuple[Values, Notes]:
    """Seconds of a decode tick with half of the open slots parked, and with all decoding."""
    model, config = unroll(medium()), stand_in.ROLLOUT
    tick = decode.make_tick(tokens=config.tick_tokens, sampler=Sampler(config.temperature))
    stop = np.zeros(model.config.vocab_size, np.bool_)
    width = PARKED_LENGTH * 2 // config.page_tokens
    cache = decode.init_cache(model, 1, PARKED_SLOTS * width, config.page_tokens, "")
    values = defaultdict(list)
    for repeat in range(-1, 3 * repeats):  # the first compiles
        seconds = {}
        for name, rows in (("half", PARKED_SLOTS // 2), ("all", PARKED_SLOTS)):
            inbox = decoding_inbox(rows, width, config.tick_tokens)
            started = time.perf_counter()
            cache, sampled = tick(model, cache, inbox, np.uint32(0), stop, rows)
            count = np.asarray(sampled.count)
            seconds[name] = time.perf_counter() - started
            assert (count == config.tick_tokens).all(), count
        if repeat >= 0:
            values["half_seconds"].append(seconds["half"])
            values["all_seconds"].append(seconds["all"])
            values["ratio_half_to_all"].append(seconds["half"] / seconds["all"])
    return values, {}


def decoding_inbox(rows: int, width: int, tokens: int) -> decode.Inbox:
    """Of all rows the first `rows`, of `width` pages each, decode so many tokens."""
    inbox = decode.empty_inbox(1, PARKED_SLOTS, width, 64, 64, 8)
    inbox.table[0] = np.arange(PARKED_SLOTS * width).reshape(PARKED_SLOTS, width)
    inbox.length[0, :rows], inbox.last[0, :rows] = PARKED_LENGTH, np.arange(rows)
    inbox.budget[0, :rows] = tokens
    inbox.stream[0, :rows, 0] = np.arange(rows)
    return inbox


def determinism(repeats: int) -> tuple[Values, Notes]:
    return rollout_determinism.measure(), {}


MEDIUM = stand_in.qwen2(8192, 512, 1408, 8, 8)
SECTIONS = {
    "latency": latency,
    "decode": plain_decode,
    "parked": parked,
    "determinism": determinism,
}


def medium() -> Transformer:
    return stand_in.transformer(MEDIUM)


def versions() -> dict[str, Any]:
    found: dict[str, Any] = {"python": platform.python_version()}
    for package in ("jax", "torch", "transformers"):
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = "absent"
    cpus = len(os.sched_getaffinity(0))
    date = datetime.datetime.now(datetime.UTC).date().isoformat()
    return found | {"device": jax.devices()[0].device_kind, "cpus": cpus, "date": date}


def table(values: Values, targets: dict[str, tuple[str, float]] = TARGETS) -> str:
    """A line per figure: median, least and most, and the target where there is one."""
    lines = [["figure", "median", "least", "most", "target"]]
    for key, found in values.items():
        figures = [f"{f(found):,.4g}" for f in (np.median, min, max)]
        sign, target = targets.get(key, ("", 0.0))
        met = (np.median(found) >= target) == (sign == ">=")
        note = f"{sign} {target:g} {'met' if met else 'MISSED'}" if sign else ""
        lines.append([key, *figures, note])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        f"{line[0]:<{widths[0]}}  " + "  ".join(map(str.rjust, line[1:], widths[1:]))
        for line in lines
    )


def nested(values: Values, notes: Notes) -> dict[str, Any]:
    """Medians under their keys, split at the dots, and `<key>_range` with least and most."""
    flat: dict[str, Any] = dict(notes)
    for key, found in values.items():
        flat[key] = float(np.median(found))
        flat[f"{key}_range"] = [float(min(found)), float(max(found))]
    tree: dict[str, Any] = {}
    for key, value in flat.items():
        *path, name = key.split(".")
        place = tree
        for part in path:
            place = place.setdefault(part, {})
        place[name] = value
    return tree


def arguments(doc: str, sections: Mapping[str, Any], repeats: int) -> argparse.ArgumentParser:
    """The command line of a benchmark of sections."""
    parser = argparse.ArgumentParser(description=doc.split("\n")[0])
    parser.add_argument("--json", help="file to write the figures to")
    parser.add_argument("--only", default=",".join(sections), help="sections, by comma")
    parser.add_argument("--repeats", type=int, default=repeats)
    return parser


def report(
    parser: argparse.ArgumentParser,
    sections: Mapping[str, Callable[[int], tuple[Values, Notes]]],
    targets: dict[str, tuple[str, float]],
) -> None:
    """Runs the sections asked for, prints their figures and writes them."""
    args = parser.parse_args()
    names = args.only.split(",")
    if unknown := set(names) - set(sections):
        parser.error(f"no section {', '.join(sorted(unknown))}; choices: {', '.join(sections)}")
    about = versions()
    print(*(f"{name} {value}" for name, value in about.items()), sep=", ", flush=True)
    values, notes = {}, {}
    for name in names:
        found, said = sections[name](args.repeats)
        found = {f"{name}.{key}": value for key, value in found.items()}
        print(f"\n{table(found, targets)}", flush=True)
        for key, text in said.items():
            print(f"{name}.{key}: {text}", flush=True)
            notes[f"{name}.{key}"] = text
        values |= found
    if args.json:
        figures = {"versions": about, "repeats": args.repeats} | nested(values, notes)
        Path(args.json).write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    report(arguments(__doc__, SECTIONS, 3), SECTIONS, TARGETS)

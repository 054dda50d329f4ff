"""RAMP examples from a corpus of any size: an Apache Beam pipeline around per-paragraph functions.

    read → parse, refuse → one of each id → one of each text → spans → masks → JSON lines per k

What becomes of a paragraph depends on it, the config and the corpus's counts of spans, and on
nothing else: not on bundles, workers, or how the corpus is cut into files. Everything left out is
counted in Beam's metrics (namespace: stage, name: "dropped/REASON") and a few of each are named.
"""

from __future__ import annotations

import bisect
import functools
import hashlib
import itertools
import json
import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any

import apache_beam as beam
from apache_beam.transforms import combiners

from masksearch_jax.config import RampConfig
from masksearch_jax.data import corpus, masking, ramp, spans
from masksearch_jax.types import Passage, RampExample, Span, to_json

NAMED_DROPS = 3  # items named of each reason
DROPPED = "dropped"  # output tag of what is left out: ((stage, reason), name)

Row = tuple[str, str, str]  # a Passage between stages: id, title, text
Shares = Mapping[int, Sequence[float]]


def shares(histogram: Mapping[int, int], max_masks: int) -> dict[int, tuple[float, ...]]:
    """P(k masks | n spans): n → probabilities of k = 1 … min(n, max_masks).

    `histogram` counts paragraphs by n. Makes the expected examples of each k as equal as the
    paragraphs allow: those with the fewest spans choose first, each for the rarest k so far, as
    `ramp.build_examples` does it one by one.
    """
    made = [0.0] * max_masks
    found = {}
    for n, count in sorted(histogram.items()):
        feasible = min(n, max_masks)
        poured = _level(made[:feasible], count)
        made[:feasible] = [m + p for m, p in zip(made, poured, strict=False)]
        found[n] = tuple(p / count for p in poured)
    return found


def _level(heights: Sequence[float], amount: float) -> list[float]:
    """What each gets of `amount` when it is poured over `heights` like water."""
    ranked = sorted(heights)
    for filled, total in enumerate(itertools.accumulate(ranked), 1):
        surface = (total + amount) / filled
        if filled == len(ranked) or surface <= ranked[filled]:
            break
    return [max(0.0, surface - height) for height in heights]


def draw(paragraph: Passage, found: Sequence[Span], odds: Shares, cfg: RampConfig) -> Iterator[Any]:
    """The examples of a paragraph, and a reason in place of one that came out again."""
    seen: set[str] = set()
    for i in range(cfg.examples_per_passage):
        name = f"{cfg.seed}/{paragraph.id}/{i}"
        edges = list(itertools.accumulate(odds[len(found)]))
        point = random.Random(f"{name}/k").random() * edges[-1]
        k = 1 + min(bisect.bisect(edges, point), len(edges) - 1)
        masked, chosen = masking.mask(paragraph.text, found, k, random.Random(name))
        yield "same_masks_again" if masked in seen else ramp._example(paragraph, i, masked, chosen)
        seen.add(masked)


def parse(line: bytes) -> Passage | str:
    """The passage of a line of a corpus, or why it is none."""
    try:
        return corpus._parse(line)
    except corpus._BadLine as bad:
        return bad.reason


def extract(pipeline: beam.Pipeline, files: Sequence[str], cfg: RampConfig, work: str) -> None:
    """Adds to `pipeline` all stages from the corpus `files` to JSON lines under the folder `work`.

    WORK/kN/*.jsonl.gz hold an example and its `split` a line, WORK/dropped-* the names of what was
    left out by stage and reason.
    """
    lines = (
        pipeline
        | "files" >> beam.Create(list(files))
        | "read" >> beam.io.ReadAllFromText(coder=beam.coders.BytesCoder(), with_filename=True)
    )
    read, bad = _split(lines | "parse" >> beam.ParDo(_Parse(cfg)).with_outputs(DROPPED, main="ok"))
    by_id, same_id = _unique(read, "id", lambda row: row[0])
    by_text, same_text = _unique(by_id, "text", lambda row: f"{row[1]}\n{row[2]}")
    made, lost = _examples(by_text, cfg)
    parts = made | "by masks" >> beam.Partition(lambda item, n: item[0] - 1, cfg.max_masks)
    for k, part in enumerate(parts, 1):
        _ = (
            part
            | f"lines {k}" >> beam.Values()
            | f"write {k}" >> beam.io.WriteToText(f"{work}/k{k}/part", ".jsonl.gz")
        )
    _ = (
        (bad, same_id, same_text, *lost)
        | "dropped" >> beam.Flatten()
        | "a few" >> combiners.Top.PerKey(NAMED_DROPS, reverse=True)
        | "as JSON" >> beam.Map(json.dumps)
        | "write dropped" >> beam.io.WriteToText(f"{work}/dropped", ".jsonl", num_shards=1)
    )


def _examples(rows: Any, cfg: RampConfig) -> tuple[Any, list[Any]]:
    """Rows to (k, JSON of an example), and what is dropped on the way."""
    found, empty = _split(
        rows | "spans" >> beam.ParDo(_FindSpans(cfg)).with_outputs(DROPPED, main="ok")
    )
    odds = (
        found
        | "spans of each" >> beam.Map(lambda item: len(item[1]))
        | combiners.Count.PerElement()
        | combiners.ToDict()
        | "shares" >> beam.Map(shares, cfg.max_masks)
    )
    made, again = _split(
        found
        | "masks"
        >> beam.ParDo(_Mask(cfg), beam.pvalue.AsSingleton(odds)).with_outputs(DROPPED, main="ok")
    )
    return made, [empty, again]


def _split(outputs: Any) -> tuple[Any, Any]:
    return outputs["ok"], outputs[DROPPED]


def _unique(rows: Any, name: str, key: Callable[[Row], str]) -> tuple[Any, Any]:
    """The least of the rows that have the same key, and the others as dropped."""

    def keyed(row: Row) -> tuple[bytes, Row]:
        return hashlib.sha256(key(row).encode()).digest()[:16], row

    return _split(
        rows
        | f"key {name}" >> beam.Map(keyed)
        | f"group {name}" >> beam.GroupByKey()
        | f"one {name}"
        >> beam.ParDo(_KeepLeast(f"duplicate_{name}")).with_outputs(DROPPED, main="ok")
    )


@functools.cache
def _counter(stage: str, name: str) -> Any:
    return beam.metrics.Metrics.counter(stage, name)


def _drop(stage: str, reason: str, name: str) -> beam.pvalue.TaggedOutput:
    _counter(stage, f"dropped/{reason}").inc()
    return beam.pvalue.TaggedOutput(DROPPED, ((stage, reason), name))


class _Parse(beam.DoFn):
    """(file, line) → Row of a paragraph that can be masked."""

    def __init__(self, cfg: RampConfig) -> None:
        self._cfg = cfg

    def process(self, item: tuple[str, bytes]) -> Iterator[Any]:
        file, line = item
        if not line.strip():
            return
        _counter("corpus", "in").inc()
        passage = parse(line)
        if isinstance(passage, str):
            yield _drop("corpus", passage, f"{PurePosixPath(file).name}: {line[:80]!r}")
            return
        _counter("corpus", "out").inc()
        if reason := ramp._refusal(passage, self._cfg):
            yield _drop("ramp", reason, passage.id)
        else:
            yield passage.id, passage.title, passage.text


class _KeepLeast(beam.DoFn):
    """(key, Rows) → the least Row."""

    def __init__(self, reason: str) -> None:
        self._reason = reason

    def process(self, item: tuple[bytes, Iterable[Row]]) -> Iterator[Any]:
        rows = iter(item[1])
        least = next(rows)
        for row in rows:
            least, other = sorted((least, row))
            yield _drop("ramp", self._reason, other[0])
        yield least


class _FindSpans(beam.DoFn):
    """Row → (Row, its disjoint spans as tuples)."""

    def __init__(self, cfg: RampConfig) -> None:
        self._cfg = cfg

    def setup(self) -> None:
        self._extractor = spans.extractor(self._cfg.extractor)

    def process(self, row: Row) -> Iterator[Any]:
        paragraph = Passage(*row)
        found = masking.disjoint(self._extractor.extract(paragraph.text, paragraph.title))
        for reason, count in self._extractor.refused.items():
            _counter("spans", f"dropped/{reason}").inc(count)
        self._extractor.refused.clear()
        if found:
            yield row, tuple((s.start, s.end, s.text, s.type) for s in found)
        else:
            yield _drop("ramp", "no_spans", paragraph.id)


class _Mask(beam.DoFn):
    """(Row, spans) → (k, JSON of an example and its split)."""

    def __init__(self, cfg: RampConfig) -> None:
        self._cfg = cfg

    def process(self, item: tuple[Row, tuple], odds: Shares) -> Iterator[Any]:
        row, found = item
        paragraph = Passage(*row)
        split = ramp.split_of(paragraph.title, self._cfg)
        _counter("ramp", "used").inc()
        for made in draw(paragraph, [Span(*s) for s in found], odds, self._cfg):
            if not isinstance(made, RampExample):
                yield _drop("ramp", made, paragraph.id)
                continue
            _counter("examples", f"{split}/{made.k}").inc()
            yield made.k, json.dumps(to_json(made) | {"split": split}, ensure_ascii=False)

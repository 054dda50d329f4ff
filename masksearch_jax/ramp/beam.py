"""RAMP examples from a corpus of any size: an Apache Beam pipeline around per-paragraph functions.

    read → parse, refuse → one of each id → one of each text → spans → masks → JSON lines per k

What becomes of a paragraph is what `factory` makes of it, but for its number of masks. It depends
on the paragraph, the rules and the corpus's counts of spans, and on nothing else: not on bundles,
workers, or how the corpus is cut into files. Everything left out is counted in Beam's metrics
(namespace: step, name: "dropped/REASON") and a few of each are named.
"""

from __future__ import annotations

import bisect
import dataclasses
import functools
import hashlib
import itertools
import json
import random
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any

import apache_beam as beam
from apache_beam.transforms import combiners
from etils import epath

from masksearch_jax.core.corpus_config import RampConfig
from masksearch_jax.core.types import Passage, RampExample, Span, to_json
from masksearch_jax.corpus import readers
from masksearch_jax.corpus.passages import BadRow, parse_line, to_passage
from masksearch_jax.corpus.tally import Tally
from masksearch_jax.ramp import build, examples, masking, survey
from masksearch_jax.ramp.survey import PassageRules

NAMED_DROPS = 3  # items named of each reason
DROPPED = "dropped"  # output tag of what is left out: ((step, reason), name)

Row = tuple[str, str, str]  # a Passage between steps: id, title, text
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


def draw(
    paragraph: Passage,
    candidates: Sequence[Span],
    odds: Shares,
    cfg: RampConfig,
    weights: Mapping[Span, float] | None = None,
) -> Iterator[RampExample | str]:
    """The examples of a paragraph, and a reason in place of one that came out again."""
    seen: set[str] = set()
    edges = list(itertools.accumulate(odds[len(candidates)]))
    for i in range(cfg.examples_per_passage):
        point = random.Random(f"{cfg.seed}/{paragraph.id}/{i}/k").random() * edges[-1]
        k = 1 + min(bisect.bisect(edges, point), len(edges) - 1)
        example = examples.mask_paragraph(paragraph, candidates, k, i, cfg.seed, weights)
        yield "same_masks_again" if example.masked in seen else example
        seen.add(example.masked)


def read(line: bytes, words: int, language: str) -> readers.Read:
    """What a line of a corpus gives: its passage, or an article's of `words` words. Raises BadRow.

    words: 0 where lines are passages.
    """
    row = parse_line(line)
    if words:
        return readers.read_article(row, words, language)
    return readers.Read([to_passage(row)], [], Tally())


def extract(
    pipeline: beam.Pipeline, files: Sequence[str], rules: PassageRules, work: str, words: int = 0
) -> None:
    """Adds to `pipeline` all steps from the corpus `files` to JSON lines under the folder `work`.

    WORK/kN/*.jsonl.gz hold an example and its `split` a line, WORK/dropped-* the names of what was
    left out by step and reason. words: of the passages that articles are cut into; 0: lines are
    passages. Of the rules neither near duplicates nor what needs a model or an order is done here.
    """
    lines = (
        pipeline
        | "files" >> beam.Create(list(files))
        | "read" >> beam.io.ReadAllFromText(coder=beam.coders.BytesCoder(), with_filename=True)
    )
    parse = beam.ParDo(_Parse(rules, words))
    whole, bad = _split(lines | "parse" >> parse.with_outputs(DROPPED, main="ok"))
    by_id, same_id = _unique(whole, "id", lambda row: row[0])
    by_text, same_text = _unique(by_id, "text", lambda row: f"{row[1]}\n{row[2]}")
    made, lost = _examples(by_text, dataclasses.replace(rules, evaluation=None))
    parts = made | "by masks" >> beam.Partition(lambda item, n: item[0] - 1, rules.ramp.max_masks)
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


def _examples(rows: Any, rules: PassageRules) -> tuple[Any, list[Any]]:
    """Rows to (k, JSON of an example), and what is dropped on the way."""
    found, empty = _split(
        rows | "spans" >> beam.ParDo(_FindSpans(rules)).with_outputs(DROPPED, main="ok")
    )
    odds = (
        found
        | "spans of each" >> beam.Map(lambda item: len(item[1]))
        | combiners.Count.PerElement()
        | combiners.ToDict()
        | "shares" >> beam.Map(shares, rules.ramp.max_masks)
    )
    common = beam.pvalue.AsSingleton(_common(found)) if rules.ramp.strategy == "weighted" else None
    mask = beam.ParDo(_Mask(rules.ramp), beam.pvalue.AsSingleton(odds), common)
    made, again = _split(found | "masks" >> mask.with_outputs(DROPPED, main="ok"))
    return made, [empty, again]


def _common(rows: Any) -> Any:
    """In how many paragraphs a span's text stands, of those in several; each worker holds it."""
    return (
        rows
        | "texts" >> beam.FlatMap(lambda item: masking.texts(Span(*s) for s in item[1]))
        | "paragraphs of each" >> combiners.Count.PerElement()
        | "in several" >> beam.Filter(lambda item: item[1] > 1)
        | "common" >> combiners.ToDict()
    )


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
def _counter(step: str, name: str) -> Any:
    return beam.metrics.Metrics.counter(step, name)


def _drop(step: str, reason: str, name: str, count: int = 1) -> beam.pvalue.TaggedOutput:
    _counter(step, f"dropped/{reason}").inc(count)
    return beam.pvalue.TaggedOutput(DROPPED, ((step, reason), name))


class _Parse(beam.DoFn):
    """(file, line) → Rows of paragraphs that can be masked."""

    def __init__(self, rules: PassageRules, words: int) -> None:
        self._rules, self._words = rules, words

    def process(self, item: tuple[str, bytes]) -> Iterator[Any]:
        file, line = item
        if not line.strip():
            return
        _counter("corpus", "in").inc()
        try:
            passages, _, left_out = read(line, self._words, self._rules.language)
        except BadRow as bad:
            yield _drop("corpus", bad.reason, f"{PurePosixPath(file).name}: {line[:80]!r}")
            return
        _counter("articles", "in").inc(left_out.seen)
        _counter("articles", "out").inc(left_out.kept)
        for reason, count in left_out.dropped.items():
            yield _drop("articles", reason, left_out.example[reason], count)
        _counter("corpus", "out").inc(len(passages))
        for passage in passages:
            yield self._row(passage)

    def _row(self, passage: Passage) -> Row | beam.pvalue.TaggedOutput:
        if reason := survey.refusal(passage, self._rules):
            return _drop("clean", reason, passage.id)
        _counter("clean", "out").inc()
        passage = survey.mended(passage, self._rules)
        if reason := examples.refusal(passage, self._rules.ramp, self._rules.language):
            return _drop("ramp", reason, passage.id)
        return passage.id, passage.title, passage.text


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

    def __init__(self, rules: PassageRules) -> None:
        self._rules = rules

    def setup(self) -> None:
        self._extractor = build.extractor_of(self._rules)

    def process(self, row: Row) -> Iterator[Any]:
        paragraph = Passage(*row)
        [(proposed, refused, _)] = self._extractor.find([paragraph])
        for reason, count in refused.items():
            _counter("spans", f"dropped/{reason}").inc(count)
        if found := masking.disjoint(proposed):
            yield row, tuple((s.start, s.end, s.text, s.type) for s in found)
        else:
            yield _drop("ramp", "no_spans", paragraph.id)


class _Mask(beam.DoFn):
    """(Row, spans) → (k, JSON of an example and its split)."""

    def __init__(self, cfg: RampConfig) -> None:
        self._cfg = cfg

    def process(
        self, item: tuple[Row, tuple], odds: Shares, common: Mapping[str, int] | None
    ) -> Iterator[Any]:
        paragraph, found = Passage(*item[0]), [Span(*s) for s in item[1]]
        weights = None if common is None else masking.by_type_and_rarity(found, common)
        split = examples.split_of(examples.article_of(paragraph), self._cfg)
        _counter("ramp", "used").inc()
        for made in draw(paragraph, found, odds, self._cfg, weights):
            if isinstance(made, str):
                yield _drop("ramp", made, paragraph.id)
                continue
            _counter("examples", f"{split}/{made.k}").inc()
            yield made.k, json.dumps(to_json(made) | {"split": split}, ensure_ascii=False)


# ---- what became of the corpus, by what was counted


def read_dropped(work: epath.Path) -> dict[str, dict[str, list[str]]]:
    """A few of what a run left out: step → reason → names."""
    found: dict[str, dict[str, list[str]]] = defaultdict(dict)
    for file in sorted(work.glob("dropped-*")):
        for line in file.read_text().splitlines():
            (step, reason), names = json.loads(line)
            found[step][reason] = names
    return found


def counts_by_step(
    counters: Mapping[tuple[str, str], int], such_as: Mapping[str, dict[str, list[str]]]
) -> dict[str, Any]:
    """Beam's counters as counts per step."""
    dropped: dict[str, Counter[str]] = defaultdict(Counter)
    by_masks: dict[str, Counter[str]] = defaultdict(Counter)
    for (step, name), count in sorted(counters.items()):
        kind, _, detail = name.partition("/")
        if step == "examples":
            by_masks[kind][detail] += count
        elif kind == "dropped":
            dropped[step][detail] += count

    def count(step: str, name: str) -> int:
        return counters.get((step, name), 0)

    def counted(name: str, given: int, out: int) -> dict[str, Any]:
        left_out = {"dropped": dict(dropped[name]), "such_as": dict(sorted(such_as[name].items()))}
        return {"in": given, "out": out} | left_out

    corpus = counted("corpus", count("corpus", "in"), count("corpus", "out"))
    if count("articles", "in"):
        corpus["left_out"] = counted("articles", count("articles", "in"), count("articles", "out"))
    made = sum(c.total() for c in by_masks.values())
    return {
        "corpus": corpus,
        "clean": counted("clean", corpus["out"], count("clean", "out")),
        "ramp": counted("ramp", count("clean", "out"), made)
        | {
            "used": count("ramp", "used"),
            "refused_spans": dict(dropped["spans"]),
            "by_masks": {s: dict(by_masks[s]) for s in ("train", "rl", "heldout") if s in by_masks},
        },
    }

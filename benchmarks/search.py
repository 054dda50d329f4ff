"""BM25 as configured here against plain BM25: build, disk, opening, latency and recall in one run.

    python -m benchmarks.search --passages=passages.jsonl.gz --questions=questions.jsonl.gz --json=F

The rivals: `flat`, the same engine with one field and every word of the query, and `bm25s` where it
is installed. All index the same passages in one thread, then take turns at every question, so that
a busy machine slows all alike. Ours keeps the passages and returns them, the rivals only numbers:
its disk space and latency hold that too. recall@k: share of gold passages among the first k, where
a passage of the gold one's title and 80% of the shorter one's words counts as the gold one.
Questions: one JSON object a line with `question`, `gold` (passage ids) and `dataset`.
"""

from __future__ import annotations

import argparse
import gzip
import importlib.util
import json
import re
import shutil
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import tantivy

from masksearch_jax.core.types import Passage
from masksearch_jax.corpus.passages import read_passages
from masksearch_jax.search import bm25

CUTS = (2, 5, 10)
Row = dict[str, Any]


class Engine(Protocol):
    def build(self, passages: Sequence[Passage], folder: Path) -> None: ...
    def open(self, folder: Path) -> Callable[[str], list[int]]:
        """A search that returns the rows of the first ten passages."""
        ...


class Ours:
    """Title weighted 0.4 beside the text, no question words, the 24 rarest terms."""

    def build(self, passages: Sequence[Passage], folder: Path) -> None:
        numbered = (Passage(str(row), p.title, p.text) for row, p in enumerate(passages))
        bm25.build(numbered, folder)

    def open(self, folder: Path) -> Callable[[str], list[int]]:
        tool = bm25.BM25.open(folder)
        return lambda query: [int(p.id) for p in tool.search([query], CUTS[-1])[0]]


class Flat:
    """One field of title and text, stemmed without stop words; every term of the query."""

    def __init__(self) -> None:
        step = tantivy.Filter
        words = tantivy.TextAnalyzerBuilder(tantivy.Tokenizer.simple()).filter(step.remove_long(40))
        words = words.filter(step.lowercase()).filter(step.stopword("english"))
        self.words = words.filter(step.stemmer("english")).build()

    def build(self, passages: Sequence[Passage], folder: Path) -> None:
        schema = tantivy.SchemaBuilder().add_integer_field("row", fast=True)
        schema.add_text_field("text", tokenizer_name="words", index_option="freq")
        folder.mkdir()
        index = tantivy.Index(schema.build(), path=str(folder))
        index.register_tokenizer("words", self.words)
        writer = index.writer(128_000_000, num_threads=1)
        for row, passage in enumerate(passages):
            document = tantivy.Document()
            document.add_integer("row", row)
            document.add_text("text", f"{passage.title}\n{passage.text}")
            writer.add_document(document)
        writer.commit()
        writer.wait_merging_threads()

    def open(self, folder: Path) -> Callable[[str], list[int]]:
        index = tantivy.Index.open(str(folder))
        searcher, schema, query = index.searcher(), index.schema, tantivy.Query

        def search(text: str) -> list[int]:
            terms = dict.fromkeys(self.words.analyze(text))
            clauses = [
                (tantivy.Occur.Should, query.term_query(schema, "text", t, "freq")) for t in terms
            ]
            hits = searcher.search(query.boolean_query(clauses), CUTS[-1], count=False).hits
            return searcher.fast_field_values("row", [address for _, address in hits])

        return search


class Bm25s:
    """The package bm25s as it comes, without a stemmer."""

    def build(self, passages: Sequence[Passage], folder: Path) -> None:
        import bm25s

        texts = [f"{p.title}\n{p.text}" for p in passages]
        retriever = bm25s.BM25(method="lucene", k1=1.2, b=0.75)
        retriever.index(bm25s.tokenize(texts, show_progress=False), show_progress=False)
        retriever.save(str(folder))

    def open(self, folder: Path) -> Callable[[str], list[int]]:
        import bm25s

        retriever = bm25s.BM25.load(str(folder), mmap=True)

        def search(text: str) -> list[int]:
            tokens = bm25s.tokenize(text, return_ids=False, show_progress=False)
            rows, scores = retriever.retrieve(tokens, k=CUTS[-1], show_progress=False)
            return [int(row) for row, score in zip(rows[0], scores[0], strict=True) if score > 0]

        return search


def engines() -> dict[str, Engine]:
    found: dict[str, Engine] = {"ours": Ours(), "flat": Flat()}
    if importlib.util.find_spec("bm25s"):
        found["bm25s"] = Bm25s()
    return found


def measure(passages: Sequence[Passage], questions: Sequence[Row], folder: Path) -> list[Row]:
    """A row of figures per engine."""
    rows, searches = [], {}
    for name, engine in engines().items():
        started = time.perf_counter()
        engine.build(passages, folder / name)
        built = time.perf_counter() - started
        size = sum(f.stat().st_size for f in (folder / name).rglob("*") if f.is_file())
        started = time.perf_counter()
        searches[name] = engine.open(folder / name)
        opened = time.perf_counter() - started
        rows.append(
            {
                "engine": name,
                "passages": len(passages),
                "build_passages_per_second": len(passages) / built,
                "disk_mb": size / 1e6,
                "open_ms": opened * 1e3,
            }
        )
    seconds, found = ask(searches, [q["question"] for q in questions])
    for row in rows:
        name = row["engine"]
        row["p50_ms"], row["p99_ms"] = np.percentile(seconds[name], (50, 99)) * 1e3
        row["recall"] = recall(passages, questions, found[name])
    return rows


def ask(
    searches: dict[str, Callable[[str], list[int]]], queries: Sequence[str]
) -> tuple[dict[str, list[float]], dict[str, list[list[int]]]]:
    """Seconds and rows found per engine and query, engines taking turns; one pass warms up."""
    for query in queries[:100]:
        for search in searches.values():
            search(query)
    seconds, found = defaultdict(list), defaultdict(list)
    for query in queries:
        for name, search in searches.items():
            started = time.perf_counter()
            rows = search(query)
            seconds[name].append(time.perf_counter() - started)
            found[name].append(rows)
    return seconds, found


def recall(
    passages: Sequence[Passage], questions: Sequence[Row], found: Sequence[Sequence[int]]
) -> dict[str, dict[str, float]]:
    """Percent of gold passages within each cut, averaged over the questions of each data set."""
    by_id = {p.id: p for p in passages}
    values = defaultdict(lambda: {k: [] for k in CUTS})
    for question, rows in zip(questions, found, strict=True):
        gold = [by_id[str(name)] for name in question["gold"]]
        for k in CUTS:
            hits = sum(any(is_same_passage(passages[row], g) for row in rows[:k]) for g in gold)
            values[question["dataset"]][k].append(100 * hits / len(gold))
    return {
        dataset: {str(k): float(np.mean(v)) for k, v in cuts.items()}
        for dataset, cuts in values.items()
    }


def is_same_passage(found: Passage, gold: Passage) -> bool:
    if found.id == gold.id or found.title != gold.title:
        return found.id == gold.id
    one, two = (set(re.findall(r"\w+", p.text.lower())) for p in (found, gold))
    return len(one & two) >= 0.8 * min(len(one), len(two))


def table(rows: Sequence[Row]) -> str:
    datasets = list(rows[0]["recall"])
    head = ["engine", "passages/s", "MB", "open ms", "p50 ms", "p99 ms"]
    lines = [head + [f"{d} R@{'/'.join(map(str, CUTS))}" for d in datasets]]
    for row in rows:
        keys = "build_passages_per_second", "disk_mb", "open_ms", "p50_ms", "p99_ms"
        figures = [
            f"{row[key]:,.{digits}f}" for key, digits in zip(keys, (0, 1, 1, 2, 2), strict=True)
        ]
        recalls = ["/".join(f"{v:.1f}" for v in row["recall"][d].values()) for d in datasets]
        lines.append([row["engine"], *figures, *recalls])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join("  ".join(map(str.rjust, line, widths)) for line in lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--passages", required=True, help="JSONL of id, title, text; .gz allowed")
    parser.add_argument(
        "--questions", required=True, help="JSONL of question, gold, dataset, gzipped"
    )
    parser.add_argument("--json", help="file to write the figures to")
    args = parser.parse_args()
    passages = list(read_passages(args.passages))
    with gzip.open(args.questions) as lines:
        questions = [json.loads(line) for line in lines]
    folder = Path(tempfile.mkdtemp(prefix="search-benchmark-"))
    try:
        rows = measure(passages, questions, folder)
    finally:
        shutil.rmtree(folder)
    print(f"{len(passages):,} passages, {len(questions):,} questions, one thread")
    print(table(rows))
    if args.json:
        Path(args.json).write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()

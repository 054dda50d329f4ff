"""The terms of passages in a tantivy index: written, counted and scored by BM25.

A passage is known by its row. The title is searched twice, with the text and on its own at weight
0.4. The engine's ValueError on writing, which is what a full disk comes as, is an OSError here. A
panic of the engine is by its class no Exception: `panics` makes it one.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import tantivy

from masksearch_jax.core.types import Passage
from masksearch_jax.search.words import as_pair, text_words, title_words

VERSION: str = tantivy.__version__
TITLE_BOOST = 0.4
FIELDS: Mapping[str, float] = {"title": TITLE_BOOST, "text": 1.0}  # with their weights
NO_PASSAGE = -1  # row of a document without one

_HEAP = 128_000_000  # bytes that all writers hold before they start a new segment
_LEAST_HEAP = 32_000_000  # of one
_FILLER = "\ua500"  # a letter of the Vai script: a term of its own, and a pair of these as well

Ranking = list[tuple[int, float]]  # rows and scores, best first
Clause = tuple[str, str, float]  # field, term, weight


class TermIndex:
    """An index that `TermWriter` wrote, for any number of threads. Raises ValueError, OSError."""

    def __init__(self, folder: Path):
        with panics():
            index = tantivy.Index.open(str(folder))
            self._schema, self._searcher = index.schema, index.searcher()

    @property
    def count(self) -> int:
        """Of its documents."""
        return self._searcher.num_docs

    def frequency(self, field: str, term: str) -> int:
        """Passages that have the term there."""
        return self._searcher.doc_freq(field, term)

    def search(self, terms: Sequence[str], top_k: int) -> Ranking:
        """The passages of the highest BM25 for any of the terms; equal ones by row."""
        return self.weighted([(f, term, w) for term in terms for f, w in FIELDS.items()], top_k)

    def weighted(self, clauses: Sequence[Clause], top_k: int) -> Ranking:
        """As `search`, with the weights of terms and fields."""
        if not clauses:
            return []
        disjunction = tantivy.Query.boolean_query(
            [
                (tantivy.Occur.Should, tantivy.Query.boost_query(self._term(field, term), weight))
                for field, term, weight in clauses
            ]
        )
        hits = self._with_equals(disjunction, top_k)
        rows = self._searcher.fast_field_values("row", [address for _, address in hits])
        scores = [score for score, _ in hits]
        ranking = sorted(zip(rows, scores, strict=True), key=lambda hit: (-hit[1], hit[0]))
        return ranking[:top_k]

    def _with_equals(self, query: tantivy.Query, top_k: int) -> list[tuple[float, Any]]:
        """The best `top_k`, and all that score as the last of them does.

        The engine cuts equal scores in the order of its segments, which differs from build to
        build.
        """
        asked = top_k + 1
        while True:
            # Uncounted, so that the engine may skip blocks that cannot reach the top.
            hits = self._searcher.search(query, asked, count=False).hits
            if len(hits) < asked or hits[-1][0] < hits[top_k - 1][0]:
                return hits
            asked *= 4

    def average_length(self, field: str, term: str) -> float:
        """Terms of the field per passage, from how the engine explains a term that it has there."""
        query = self._term(field, term)
        ((_, address),) = self._searcher.search(query, 1, count=False).hits
        tree = json.loads(query.explain(self._searcher, address).to_json())
        return explained(tree, "avgdl")

    def _term(self, field: str, term: str) -> tantivy.Query:
        return tantivy.Query.term_query(self._schema, field, term, index_option="freq")


def explained(tree: Any, name: str) -> float:
    """The value of this name in the engine's explanation of a score; 0 where there is none."""
    if tree["description"].startswith(f"{name}, "):
        return float(tree["value"])
    return max((explained(part, name) for part in tree.get("details", ())), default=0.0)


class TermWriter:
    """Writes the terms of passages to a new index in `folder`, one of `shards` that are written.

    Its threads have ended when the `with` block has.
    """

    def __init__(self, folder: Path, language: str, shards: int):
        self.count = 0  # documents so far
        self._folder = folder
        self._language = language
        self._analysers = {"title": title_words(language), "text": text_words(language)}
        self._examples: dict[str, str] = {}  # of each field, a term that is in it
        schema = tantivy.SchemaBuilder().add_integer_field("row", fast=True)
        for field in FIELDS:
            schema.add_text_field(field, tokenizer_name=field, index_option="freq")
        folder.mkdir()
        with _write_errors():
            index = tantivy.Index(schema.build(), path=str(folder))
            # Analysers are not kept with an index: whoever writes to it must register them.
            for field, analyser in self._analysers.items():
                index.register_tokenizer(field, analyser)
            self._writer = index.writer(max(_LEAST_HEAP, _HEAP // shards), num_threads=1)

    def __enter__(self) -> TermWriter:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is None:
            with _write_errors():
                self._writer.wait_merging_threads()
            return
        with suppress(ValueError):
            self._writer.wait_merging_threads()

    def add(self, row: int, passage: Passage) -> None:
        title = as_pair(passage.title, self._language)
        texts = {"title": title, "text": f"{passage.title}\n{passage.text}"}
        for field, text in texts.items():
            if field not in self._examples and (terms := self._analysers[field].analyze(text)):
                self._examples[field] = terms[0]
        self._add(row, texts)

    def commit(self) -> None:
        with _write_errors():
            self._writer.commit()

    def lengths(self) -> dict[str, float]:
        """Terms of each field in all documents that are committed."""
        if not self._examples:
            return dict.fromkeys(FIELDS, 0.0)
        index = TermIndex(self._folder)
        averages = {f: index.average_length(f, term) for f, term in self._examples.items()}
        return {field: averages.get(field, 0.0) * self.count for field in FIELDS}

    def fill(self, documents: int, terms: Mapping[str, int]) -> None:
        """Commits so many documents without a passage, one of them with so many terms a field."""
        self._add(NO_PASSAGE, {field: self._filler_text(n) for field, n in terms.items()})
        for _ in range(documents - 1):
            self._add(NO_PASSAGE, {})
        self.commit()

    def _filler_text(self, terms: int) -> str:
        """Text of so many terms: words of one letter, or as many pairs of letters."""
        if self._language == "zh":
            return _FILLER * (terms + 1) if terms else ""
        return f"{_FILLER} " * terms

    def _add(self, row: int, texts: Mapping[str, str]) -> None:
        document = tantivy.Document()
        document.add_integer("row", row)  # as i64: an integer in an unsigned field kills the writer
        for field, text in texts.items():
            document.add_text(field, text)
        with _write_errors():
            self._writer.add_document(document)
        self.count += 1


@contextmanager
def _write_errors() -> Iterator[None]:
    try:
        yield
    except ValueError as error:
        raise OSError(str(error)) from error


@contextmanager
def panics() -> Iterator[None]:
    """Turns a panic of the engine into a ValueError."""
    try:
        yield
    except BaseException as error:
        if type(error).__name__ != "PanicException":
            raise
        raise ValueError(f"the engine gave up: {error}") from error

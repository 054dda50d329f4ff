"""BM25 over passages on disk, by tantivy: opens in milliseconds, builds in constant memory.

The title is searched twice, with the text and on its own at weight 0.4. A query is analysed here
into terms and becomes a plain disjunction of them, so that no character of it can be read as query
syntax: the engine's own parser raises on unbalanced quotes, on `a:b:c` and on stop words alone.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import tantivy

from masksearch_jax.core.files import write_json, writing_folder
from masksearch_jax.core.retrieval import SearchError
from masksearch_jax.core.types import Hits, Passage
from masksearch_jax.search.manifest import checksum, seal, verify
from masksearch_jax.search.store import PassageStore, PassageWriter
from masksearch_jax.search.words import LANGUAGES, query_words, text_words, title_words

FORMAT = 2  # of the folder's layout and of the analysis of text; an index of another one is refused
TITLE_BOOST = 0.4
MAX_TERMS = 24  # rarest terms kept of a long query
MAX_QUERY_CHARS = 20_000  # of a query; the rest is ignored
MAX_TOP_K = 10_000  # the engine sets memory aside for as many

_FIELDS = (("title", TITLE_BOOST), ("text", 1.0))
_MANIFEST = "manifest.json"
_HEAP = 128_000_000  # bytes the writer holds before it starts a new segment
_COMMAND = "python -m masksearch_jax.build_index"


class BM25:
    """An index that `build` wrote, open for searching from any number of threads at once."""

    def __init__(
        self, index: tantivy.Index, passages: PassageStore, language: str, fingerprint: str = ""
    ):
        self.passages = passages
        self.language = language
        self.fingerprint = fingerprint  # of all that is in the index, as hexadecimal digits
        self._schema = index.schema
        self._searcher = index.searcher()
        self._analysers = query_words(language)

    @classmethod
    def open(cls, folder: str | os.PathLike[str]) -> BM25:
        """Opens `folder`. Raises SearchError when there is no index, a damaged or another one.

        The sizes of all files are compared with those that `build` wrote down, and the checksums
        too where the index has at most `manifest.VERIFIED_BYTES`.
        """
        folder = Path(folder)
        manifest = _read_manifest(folder)
        language, count = manifest["language"], manifest["count"]
        try:
            verify(folder, manifest["files"])
            with _engine_panics():
                index = tantivy.Index.open(str(folder / "terms"))
                tool = cls(index, PassageStore(folder), language, manifest["fingerprint"])
        except (OSError, ValueError, EOFError) as error:
            raise SearchError(f"{folder} is damaged ({error}); rebuild it: {_COMMAND}") from error
        counts = {
            "manifest": count,
            "passages": len(tool),
            "terms": tool._searcher.num_docs,
        }
        if len(set(counts.values())) > 1:
            raise SearchError(f"{folder} is damaged (counts {counts}); rebuild it: {_COMMAND}")
        return tool

    def __len__(self) -> int:
        return len(self.passages)

    def get(self, passage_id: str) -> Passage:
        """The passage of this id. Raises KeyError."""
        passage = self.passages.find(passage_id)
        if passage is None:
            raise KeyError(f"no passage has the id {passage_id!r} among {len(self)}")
        return passage

    def search(self, queries: Sequence[str], top_k: int) -> list[list[Passage]]:
        """The scores of its `Hits` are BM25's; equal ones in the corpus's order."""
        return [
            Hits((self.passages[row] for row, _ in hits), scores=[score for _, score in hits])
            for hits in self.search_rows(queries, top_k)
        ]

    def search_rows(self, queries: Sequence[str], top_k: int) -> list[list[tuple[int, float]]]:
        """As `search`, with each passage's row and score."""
        if not 1 <= top_k <= MAX_TOP_K:
            raise SearchError(f"top_k is {top_k}, must be 1 to {MAX_TOP_K}")
        try:
            with _engine_panics():
                return [self._search_one(query, min(top_k, len(self))) for query in queries]
        except (OSError, ValueError) as error:
            raise SearchError(f"the index failed on {queries!r:.200}: {error}") from error

    def terms(self, query: str) -> list[str]:
        """What is searched for: distinct terms that the index knows, the MAX_TERMS rarest."""
        text = query[:MAX_QUERY_CHARS].encode("utf-8", "replace").decode()
        for analyser in self._analysers:
            frequency = {term: self._frequency(term) for term in analyser.analyze(text)}
            if frequency:
                known = [term for term, count in frequency.items() if count]
                return sorted(known, key=frequency.__getitem__)[:MAX_TERMS]
        return []

    def _frequency(self, term: str) -> int:
        return max(self._searcher.doc_freq(field, term) for field, _ in _FIELDS)

    def _search_one(self, query: str, top_k: int) -> list[tuple[int, float]]:
        clauses = [
            (tantivy.Occur.Should, tantivy.Query.boost_query(self._term(field, term), boost))
            for term in self.terms(query)
            for field, boost in _FIELDS
        ]
        if not clauses:
            return []
        disjunction = tantivy.Query.boolean_query(clauses)
        # Uncounted, so that the engine may skip blocks that cannot reach the top.
        hits = self._searcher.search(disjunction, top_k, count=False).hits
        rows = self._searcher.fast_field_values("row", [address for _, address in hits])
        scores = [score for score, _ in hits]
        return sorted(zip(rows, scores, strict=True), key=lambda hit: (-hit[1], hit[0]))

    def _term(self, field: str, term: str) -> tantivy.Query:
        return tantivy.Query.term_query(self._schema, field, term, index_option="freq")


def build(
    passages: Iterable[Passage],
    folder: str | os.PathLike[str],
    *,
    language: str = "en",
    progress: Callable[[int], None] | None = None,
) -> int:
    """Writes an index of `passages` to `folder`, all or nothing; returns their number.

    The folder appears, complete, by one rename; an index that was there is replaced, anything else
    is refused. `progress` is told the number so far. Raises SearchError for no passages, an id that
    occurs twice, an unknown language, a folder in the way, or a disk that fails.
    """
    folder = Path(folder).absolute()
    if language not in LANGUAGES:
        raise SearchError(f"language is {language!r}, must be one of {', '.join(LANGUAGES)}")
    if folder.exists() and not is_index(folder) and not _is_empty_folder(folder):
        raise SearchError(f"{folder} exists and is no index; choose another folder or remove it")
    try:
        with writing_folder(folder) as partial:
            count, contents = _write(passages, partial, language, progress)
            _write_manifest(partial, language, count, contents)
    except OSError as error:
        raise SearchError(f"the index {folder} could not be written: {error}") from error
    return count


def is_index(folder: str | os.PathLike[str]) -> bool:
    """True for a folder that `build` finished, of this or another version."""
    return (Path(folder) / _MANIFEST).is_file()


def _write(
    passages: Iterable[Passage],
    folder: Path,
    language: str,
    progress: Callable[[int], None] | None,
) -> tuple[int, str]:
    """Writes the passage store and the terms; returns the number of passages and their hash."""
    with PassageWriter(folder) as store, _term_writer(folder / "terms", language) as writer:
        for row, passage in enumerate(passages):
            store.add(passage)
            with _engine_errors():
                writer.add_document(_document(row, passage))
            if progress and row % 1000 == 999:
                progress(row + 1)
        count = store.finish()
        with _engine_errors():
            writer.commit()
    if progress:
        progress(count)
    return count, store.contents


@contextmanager
def _term_writer(folder: Path, language: str) -> Iterator[tantivy.IndexWriter]:
    """A writer of a new tantivy index in `folder`; its threads have ended when this has."""
    schema = tantivy.SchemaBuilder().add_integer_field("row", fast=True)
    for field, _ in _FIELDS:
        schema.add_text_field(field, tokenizer_name=field, index_option="freq")
    folder.mkdir()
    with _engine_errors():
        index = tantivy.Index(schema.build(), path=str(folder))
        # Analysers are not kept with an index: whoever writes to it must register them.
        index.register_tokenizer("title", title_words(language))
        index.register_tokenizer("text", text_words(language))
        writer = index.writer(_HEAP, num_threads=1)
    try:
        yield writer
    except BaseException:
        with suppress(ValueError):
            writer.wait_merging_threads()
        raise
    with _engine_errors():
        writer.wait_merging_threads()


def _document(row: int, passage: Passage) -> tantivy.Document:
    document = tantivy.Document()
    document.add_integer("row", row)  # as i64: an integer in an unsigned field kills the writer
    document.add_text("title", passage.title)
    document.add_text("text", f"{passage.title}\n{passage.text}")
    return document


@contextmanager
def _engine_errors() -> Iterator[None]:
    """Turns the engine's ValueError, which is what a full disk comes as, into an OSError."""
    try:
        yield
    except ValueError as error:
        raise OSError(str(error)) from error


@contextmanager
def _engine_panics() -> Iterator[None]:
    """Turns a panic of the engine into a ValueError; by its class, a panic is no Exception."""
    try:
        yield
    except BaseException as error:
        if type(error).__name__ != "PanicException":
            raise
        raise ValueError(f"the engine gave up: {error}") from error


def _files(folder: Path) -> dict[str, Path]:
    """The files of an index by name, but its manifest and the engine's locks."""
    paths = sorted(p for p in folder.rglob("*") if p.is_file() and p.suffix != ".lock")
    return {str(p.relative_to(folder)): p for p in paths if p.name != _MANIFEST}


def _write_manifest(folder: Path, language: str, count: int, contents: str) -> None:
    """contents: the hash of all passages, in their order."""
    made = f"{FORMAT} {tantivy.__version__} {language} {contents}"
    manifest = {
        "format": FORMAT,
        "engine": tantivy.__version__,
        "language": language,
        "count": count,
        "fingerprint": hashlib.sha256(made.encode()).hexdigest()[:16],
        "files": {name: [p.stat().st_size, checksum(p)] for name, p in _files(folder).items()},
    }
    write_json(folder / _MANIFEST, manifest | {"seal": seal(manifest)})


def _read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of an index this program can read. Raises SearchError."""
    try:
        manifest = json.loads((folder / _MANIFEST).read_bytes())
        theirs = {key: manifest[key] for key in ("format", "engine")}
    except (FileNotFoundError, NotADirectoryError):
        raise SearchError(f"no search index in {str(folder)!r}; build it: {_COMMAND}") from None
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise SearchError(
            f"{folder / _MANIFEST} is damaged ({error!r}); rebuild: {_COMMAND}"
        ) from None
    ours = {"format": FORMAT, "engine": tantivy.__version__}
    if theirs != ours:
        raise SearchError(
            f"{folder} was built as {theirs}, this program reads {ours}; rebuild it: {_COMMAND}"
        )
    if manifest.get("seal") != seal(manifest):
        raise SearchError(
            f"{folder / _MANIFEST} is damaged (it is not as it was written); rebuild: {_COMMAND}"
        )
    return manifest


def _is_empty_folder(folder: Path) -> bool:
    return folder.is_dir() and not any(folder.iterdir())

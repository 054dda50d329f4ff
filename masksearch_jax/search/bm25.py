"""BM25 over passages on disk, by tantivy: opens in milliseconds, builds in constant memory.

A query is analysed here into terms and becomes a plain disjunction of them, so that no character of
it can be read as query syntax: the engine's own parser raises on unbalanced quotes, on `a:b:c` and
on stop words alone. The terms may lie in several shards, which are written and searched in parallel
and give the results of one (see `shards`).
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from masksearch_jax.core.files import write_json, writing_folder
from masksearch_jax.core.retrieval import SearchError
from masksearch_jax.core.search_config import MAX_TOP_K
from masksearch_jax.core.types import Hits, Passage
from masksearch_jax.runtime import storage
from masksearch_jax.search.manifest import entry, seal, verify
from masksearch_jax.search.shards import ShardedTerms, level
from masksearch_jax.search.store import PassageStore, PassageWriter
from masksearch_jax.search.term_index import FIELDS, VERSION, TermIndex, TermWriter, panics
from masksearch_jax.search.words import LANGUAGES, as_pair, query_words

# By language, of the folder's layout and of the analysis of text; an index of another is refused.
FORMATS = {"en": 2, "zh": 3}
MAX_TERMS = 24  # rarest terms kept of a long query
MAX_QUERY_CHARS = 20_000  # of a query; the rest is ignored

_MANIFEST = "manifest.json"
_SHARDS = "shards"  # in the manifest of several: the documents of each
_COMMAND = "python -m masksearch_jax.build_index"


class BM25:
    """An index that `build` wrote, open for searching from any number of threads at once."""

    def __init__(
        self,
        terms: TermIndex | ShardedTerms,
        passages: PassageStore,
        language: str,
        fingerprint: str = "",
    ):
        self.passages = passages
        self.language = language
        self.fingerprint = fingerprint  # of all that is in the index, as hexadecimal digits
        self._terms = terms
        self._analysers = query_words(language)

    @classmethod
    def open(cls, folder: str | os.PathLike[str]) -> BM25:
        """Opens `folder`. Raises SearchError when there is no index, a damaged or another one.

        Its files are compared with what `build` wrote down of them, as `manifest.verify` does.
        """
        folder = Path(folder)
        manifest = _read_manifest(folder)
        language, count = manifest["language"], manifest["count"]
        try:
            verify(folder, manifest["files"])
            passages = PassageStore(folder)
            terms = _open_terms(folder, manifest)
            tool = cls(terms, passages, language, manifest["fingerprint"])
        except (OSError, ValueError, EOFError) as error:
            raise SearchError(f"{folder} is damaged ({error}); rebuild it: {_COMMAND}") from error
        counts = {"manifest": count, "passages": len(tool)}
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
            most = min(top_k, len(self))
            with panics():
                return [self._terms.search(terms, most) for terms in map(self.terms, queries)]
        except (OSError, ValueError) as error:
            raise SearchError(f"the index failed on {queries!r:.200}: {error}") from error

    def terms(self, query: str) -> list[str]:
        """What is searched for: distinct terms that the index knows, the MAX_TERMS rarest."""
        text = query[:MAX_QUERY_CHARS].encode("utf-8", "replace").decode()
        text = as_pair(text, self.language)
        for analyser in self._analysers:
            frequency = {term: self._frequency(term) for term in analyser.analyze(text)}
            if frequency:
                known = [term for term, count in frequency.items() if count]
                return sorted(known, key=frequency.__getitem__)[:MAX_TERMS]
        return []

    def _frequency(self, term: str) -> int:
        return max(self._terms.frequency(field, term) for field in FIELDS)


def _open_terms(folder: Path, manifest: dict[str, Any]) -> TermIndex | ShardedTerms:
    """Raises ValueError for a shard of another number of documents than it was written with."""
    documents = manifest.get(_SHARDS, [manifest["count"]])
    shards = [TermIndex(folder / _shard_name(i, len(documents))) for i in range(len(documents))]
    if (found := [shard.count for shard in shards]) != documents:
        raise ValueError(f"its terms are of {found} documents, not {documents}")
    return shards[0] if len(shards) == 1 else ShardedTerms(shards, manifest["count"])


def _shard_name(number: int, count: int) -> str:
    return "terms" if count == 1 else f"terms-{number:05d}-of-{count:05d}"


def build(
    passages: Iterable[Passage],
    folder: str | os.PathLike[str],
    *,
    language: str = "en",
    shards: int = 1,
    progress: Callable[[int], None] | None = None,
) -> int:
    """Writes an index of `passages` to `folder`, all or nothing; returns their number.

    Its terms lie in so many shards, to which passages go in turn.

    The folder appears, complete, by one rename; an index that was there is replaced, anything else
    is refused. `progress` is told the number so far. Raises SearchError for no passages, an id that
    occurs twice, an unknown language, a folder in the way, or a disk that fails.
    """
    folder = Path(folder).absolute()
    if language not in LANGUAGES:
        raise SearchError(f"language is {language!r}, must be one of {', '.join(LANGUAGES)}")
    if not is_index(folder) and not storage.is_unmade(folder):
        raise SearchError(f"{folder} exists and is no index; choose another folder or remove it")
    try:
        with writing_folder(folder) as partial:
            told = _write(passages, partial, language, shards, progress)
            _write_manifest(partial, language, dict(told))
    except OSError as error:
        raise SearchError(f"the index {folder} could not be written: {error}") from error
    return int(told["count"])


def is_index(folder: str | os.PathLike[str]) -> bool:
    """True for a folder that `build` finished, of this or another version."""
    return (Path(folder) / _MANIFEST).is_file()


def _write(
    passages: Iterable[Passage],
    folder: Path,
    language: str,
    shards: int,
    progress: Callable[[int], None] | None,
) -> dict[str, Any]:
    """Writes the passage store and the terms; what the manifest has of them."""
    with PassageWriter(folder) as store, ExitStack() as stack:
        writers = [
            stack.enter_context(TermWriter(folder / _shard_name(i, shards), language, shards))
            for i in range(shards)
        ]
        for row, passage in enumerate(passages):
            store.add(passage)
            writers[row % shards].add(row, passage)
            if progress and row % 1000 == 999:
                progress(row + 1)
        count = store.finish()
        for writer in writers:
            writer.commit()
        documents = level(writers) if shards > 1 else []
    if progress:
        progress(count)
    told: dict[str, Any] = {"count": count, "contents": store.contents}
    if documents:
        told[_SHARDS] = documents
    return told


def _files(folder: Path) -> dict[str, Path]:
    """The files of an index by name, but its manifest and the engine's locks."""
    paths = sorted(p for p in folder.rglob("*") if p.is_file() and p.suffix != ".lock")
    return {str(p.relative_to(folder)): p for p in paths if p.name != _MANIFEST}


def _write_manifest(folder: Path, language: str, told: dict[str, Any]) -> None:
    """told: what `_write` tells; its `contents`, a hash, are in the fingerprint."""
    made = f"{FORMATS[language]} {VERSION} {language} {told.pop('contents')}"
    manifest = {
        "format": FORMATS[language],
        "engine": VERSION,
        "language": language,
        "count": told.pop("count"),
        "fingerprint": hashlib.sha256(made.encode()).hexdigest()[:16],
        **told,
        "files": {name: entry(path) for name, path in _files(folder).items()},
    }
    write_json(folder / _MANIFEST, manifest | {"seal": seal(manifest)})


def _read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of an index this program can read. Raises SearchError."""
    try:
        manifest = json.loads((folder / _MANIFEST).read_bytes())
        theirs = {key: manifest[key] for key in ("format", "engine")}
    except (FileNotFoundError, NotADirectoryError):
        raise SearchError(
            f"no search index in {str(folder)!r} (config.search.index); build it: {_COMMAND}"
        ) from None
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise SearchError(
            f"{folder / _MANIFEST} is damaged ({error!r}); rebuild: {_COMMAND}"
        ) from None
    is_of_ours = theirs["engine"] == VERSION and theirs["format"] in FORMATS.values()
    if is_of_ours and manifest.get("seal") != seal(manifest):
        raise SearchError(
            f"{folder / _MANIFEST} is damaged (it is not as it was written); rebuild: {_COMMAND}"
        )
    ours = {"format": FORMATS.get(str(manifest.get("language"))), "engine": VERSION}
    if theirs != ours:
        raise SearchError(
            f"{folder} was built as {theirs}, this program reads {ours}; rebuild it: {_COMMAND}"
        )
    return manifest

"""A corpus of any kind as passages: text files, folders of datasets, Wikipedia's dumps, TFDS.

Rows of `jsonl`, `tsv` and `hf` are passages as they are unless `corpus.articles` says that they are
whole articles; those, and all of the other formats, lose what is no prose and are cut into
passages. A corpus is a file, or a folder whose files are all of one format.
"""

from __future__ import annotations

import itertools
import json
import logging
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from masksearch_jax.core.corpus_config import CorpusConfig
from masksearch_jax.core.types import Passage
from masksearch_jax.corpus import prose, wikipedia_dump, wikitext
from masksearch_jax.corpus.passages import (
    EARLY,
    FORMS,
    BadRow,
    CorpusError,
    CorpusStats,
    Ids,
    Row,
    from_rows,
    read_rows,
    to_passage,
)
from masksearch_jax.corpus.tally import Tally
from masksearch_jax.corpus.wikitext import Article

FORMATS = ("auto", "jsonl", "tsv", "hf", "dump", "wikiextractor", "tfds")
_PASSAGES = ("jsonl", "tsv", "hf")  # rows are passages unless `corpus.articles`
_PACKED = r"(?:\.(?:gz|bz2|xz|lzma|zst|zip|7z|rar|lz4|br))?"
_NAMES = {  # what the files of a format are called
    "tfds": re.compile(r"features\.json"),
    "hf": re.compile(r".+\.(?:parquet|arrow)"),
    "dump": re.compile(rf".+\.xml(?:-p\d+p\d+)?{_PACKED}"),
    "wikiextractor": re.compile(rf"wiki_\d+{_PACKED}"),
    "tsv": re.compile(rf".+\.tsv{_PACKED}"),
    "jsonl": re.compile(rf".+\.(?:jsonl|ndjson|json){_PACKED}"),
}
_METADATA = re.compile(rf".+\.json{_PACKED}")  # a .json file beside data of another kind
Mapper = Callable[[Callable[[Any], Any], Iterable[Any]], Iterable[Any]]
_log = logging.getLogger(__name__)


class Read(NamedTuple):
    """What one article gave: its passages, texts of its links, and what was left out of it."""

    passages: list[Passage]
    anchors: list[str]
    left_out: Tally


def read_corpus(
    cfg: CorpusConfig,
    *,
    log: Callable[[str], None] = _log.warning,
    stats: CorpusStats | None = None,
    mapper: Mapper = map,
    anchors: Callable[[str], None] | None = None,
) -> Iterator[Passage]:
    """Yields the passages of `cfg.path`, at most `cfg.limit` (0: all).

    stats: counts of rows, bad ones apart from pages and paragraphs left out since they are no
    prose. mapper: `map`, or one that works in other processes. anchors: is told the text of each
    link, where the format has links. Raises CorpusError for what cannot be read, too many bad rows,
    no passages at all, a format or language that is not there.
    """
    if cfg.language not in prose.LANGUAGES:
        choices = ", ".join(prose.LANGUAGES)
        raise CorpusError(f"corpus.language is {cfg.language!r}; choices: {choices}")
    stats = CorpusStats() if stats is None else stats
    kind = detect(cfg.path) if cfg.format == "auto" else cfg.format
    rows = _rows(kind, cfg, stats)
    if kind in _PASSAGES and not cfg.articles:
        return from_rows(rows, cfg.path, cfg.limit, cfg.max_bad_fraction, log, stats)
    return _limited(_articles(rows, cfg, log, stats, mapper, anchors), cfg, stats)


def has_articles(cfg: CorpusConfig) -> bool:
    """True where whole articles are cut into passages, which is worth several processes."""
    kind = detect(cfg.path) if cfg.format == "auto" else cfg.format
    return cfg.articles or kind not in _PASSAGES


def detect(path: str) -> str:
    """The format of a path by its name and what a folder holds. Raises CorpusError."""
    place = Path(path)
    if not place.is_dir():
        name = place.name.lower()
        return next((kind for kind, names in _NAMES.items() if names.fullmatch(name)), "jsonl")
    found = {kind: files[0].name for kind in _NAMES if (files := _files(place, kind))}
    if "tfds" in found:
        return "tfds"
    if len(found) > 1 and _METADATA.fullmatch(found.get("jsonl", "")):
        del found["jsonl"]
    if len(found) > 1:
        several = ", ".join(f"{kind} ({name})" for kind, name in found.items())
        raise CorpusError(
            f"the corpus {path} is a folder of several formats: {several}; name the one to read "
            "with corpus.format"
        )
    if not found:
        raise CorpusError(
            f"the corpus {path} is a folder without a file that a reader knows; it reads {FORMS}"
        )
    return next(iter(found))


def _files(path: Path, kind: str) -> list[Path]:
    """The files of a format: the path itself, or those of a folder in the order of their names.

    Raises CorpusError for a folder of a saved dataset that lacks a file.
    """
    if path.is_file():
        return [path]
    inside = (f for f in path.rglob("*") if not f.relative_to(path).as_posix().startswith("."))
    named = (f for f in inside if _NAMES[kind].fullmatch(f.name.lower()))
    files = sorted(named, key=_numbered)
    if kind == "hf":
        return _of_dataset(files)
    if kind == "jsonl":  # beside JSON lines, a .json file says something about them
        files = [f for f in files if not _METADATA.fullmatch(f.name.lower())] or files
    return files


def _numbered(file: Path) -> list[tuple[int, str | int]]:
    """A key that sorts part 2 before part 10."""
    pieces = re.split(r"(\d+)", str(file))
    return [(0, int(piece)) if piece.isdecimal() else (1, piece) for piece in pieces]


def _of_dataset(files: Iterable[Path]) -> list[Path]:
    """Of parquet and arrow files those that are data: what a folder's `state.json` names.

    Without one, what `datasets` keeps of a mapped dataset (`cache-*.arrow`) is none.
    """
    kept: list[Path] = []
    for folder, here in itertools.groupby(files, key=lambda file: file.parent):
        if (folder / "state.json").is_file():
            kept += _named_by_state(folder)
        else:
            kept += [f for f in here if not re.fullmatch(r"cache-.+\.arrow", f.name)]
    return kept


def _named_by_state(folder: Path) -> list[Path]:
    """The data files of a folder that `Dataset.save_to_disk` wrote. Raises CorpusError."""
    path = folder / "state.json"
    try:
        state = json.loads(path.read_text(encoding="utf-8"))
        files = [folder / row["filename"] for row in state["_data_files"]]
        moved = bool(state.get("_indices_data_files"))
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise CorpusError(f"{path} names no _data_files: {error!r}") from None
    if moved:
        raise CorpusError(
            f"{path} has _indices_data_files, an order of rows that is not read; save the dataset "
            "again after flatten_indices()"
        )
    if missing := [file.name for file in files if not file.is_file()]:
        raise CorpusError(f"{path} names {missing[0]}, which is not there")
    return files


def _rows(kind: str, cfg: CorpusConfig, stats: CorpusStats) -> Iterator[Row]:
    """Rows of a corpus with where they stand; those of a dump hold pages. Raises CorpusError."""
    if kind not in FORMATS[1:]:
        raise CorpusError(f"corpus.format is {kind!r}; choices: {', '.join(FORMATS)}")
    place = Path(cfg.path)
    if not place.exists():
        raise CorpusError(f"cannot read the corpus {cfg.path}: No such file or directory")
    if kind == "tfds":
        from masksearch_jax.corpus import tfds_rows  # loads TensorFlow

        return tfds_rows.rows(cfg.path)
    files = _files(place, kind)
    if not files:
        raise CorpusError(f"the corpus {cfg.path} has no files of corpus.format {kind}")
    if kind == "hf":
        return _hf_rows(files, stats)
    if kind == "dump":
        pages = ((f, page) for f in files for page in wikipedia_dump.read_pages(f))
        return ((f"{f}: page {page.id}", page) for f, page in pages)
    part = 1 / len(files)
    rows = (read_rows(f, stats, kind, (i * part, part)) for i, f in enumerate(files))
    return itertools.chain.from_iterable(rows)


def _hf_rows(files: list[Path], stats: CorpusStats) -> Iterator[Row]:
    """Rows of parquet and arrow files."""
    import pyarrow as pa
    from pyarrow import parquet

    for number, file in enumerate(files):
        stats.done = number / len(files)
        try:
            if file.suffix == ".parquet":
                batches = parquet.ParquetFile(file).iter_batches(batch_size=1024)
            else:
                batches = _arrow_batches(file)
            rows = (row for batch in batches for row in batch.to_pylist())
            for row_number, row in enumerate(rows, 1):
                yield f"{file}: row {row_number}", row
        except (pa.ArrowException, OSError) as error:
            raise CorpusError(f"{file}: unreadable: {error}") from error


def _arrow_batches(file: Path) -> Iterator[Any]:
    """Batches of an Arrow file in the stream format, as `datasets` saves it, or the file format."""
    import pyarrow as pa

    with pa.memory_map(str(file)) as mapped:
        if mapped.read(6) == b"ARROW1":
            reader = pa.ipc.open_file(mapped)
            yield from map(reader.get_batch, range(reader.num_record_batches))
        else:
            mapped.seek(0)
            yield from pa.ipc.open_stream(mapped)


def _articles(
    rows: Iterable[Any],
    cfg: CorpusConfig,
    log: Callable[[str], None],
    stats: CorpusStats,
    mapper: Mapper,
    anchors: Callable[[str], None] | None,
) -> Iterator[Passage]:
    """The passages of articles, each article's id once, read by `mapper` in blocks."""
    blocks = ((block, cfg.passage_words, cfg.language) for block in _blocks(rows, 64))
    seen = Ids()
    for results in mapper(read_block, blocks):
        for where, result in results:
            stats.read += 1
            if isinstance(result, Read) and result.passages:
                article = result.passages[0].id.rpartition("-")[0]
                if not seen.add(article):
                    result = BadRow("duplicate id", repr(article))
            if isinstance(result, BadRow):
                log(stats.note(result, where))
                if stats.bad > EARLY:
                    stats.check_share(cfg.path, cfg.max_bad_fraction)
                continue
            stats.left_out.add(result.left_out)
            for anchor in result.anchors if anchors else ():
                anchors(anchor)
            yield from result.passages


def _blocks(rows: Iterable[Any], size: int) -> Iterator[list[Any]]:
    rows = iter(rows)
    while block := list(itertools.islice(rows, size)):
        yield block


def read_block(task: tuple[list[Row], int, str]) -> list[tuple[str, Read | BadRow]]:
    """What each row of a block gives; pure, to be run in any process."""
    rows, words, language = task
    read: list[tuple[str, Read | BadRow]] = []
    for where, row in rows:
        try:
            if isinstance(row, BadRow):
                raise row
            read.append((where, read_article(row, words, language)))
        except BadRow as bad:
            read.append((where, bad))
    return read


def read_article(row: dict[str, Any] | wikipedia_dump.Page, words: int, language: str) -> Read:
    """The passages of a dump page or of a row of id, title, text. Raises BadRow."""
    left_out = Tally()
    if isinstance(row, wikipedia_dump.Page):
        if row.refusal:
            left_out.drop(row.refusal, repr(row.title))
            return Read([], [], left_out)
        try:
            article = wikitext.render(row.id, row.title, row.text)
        except ValueError as error:
            raise BadRow("unparsable wikitext", f"{row.title!r}: {error}") from None
    else:
        whole = to_passage(_with_id(row))
        article = Article(whole.id, whole.title, tuple(whole.text.split("\n")))
    kept = _prose(article, language, left_out)
    texts = prose.cut(kept, words, language)
    passages = [Passage(f"{article.id}-{i}", article.title, text) for i, text in enumerate(texts)]
    return Read(passages, list(article.anchors), left_out)


def _with_id(row: dict[str, Any]) -> dict[str, Any]:
    """A row without an id, as TFDS has them, gets its title for one: titles are unique there."""
    return row if "id" in row or "title" not in row else {**row, "id": row["title"]}


def _prose(article: Article, language: str, left_out: Tally) -> list[str]:
    """The paragraphs that are prose; none of an article that has too little."""
    kept: list[str] = []
    for text in filter(str.strip, article.paragraphs):
        left_out.seen += 1
        text = prose.mend(text)
        heading = "heading" if prose.is_heading(text, language) else ""
        if reason := prose.refusal(text, language) or heading:
            left_out.drop(reason, f"{article.title!r}: {text[:60]!r}")
        else:
            kept.append(text)
    if kept and sum(prose.length(t, language) for t in kept) < prose.STUB_WORDS:
        left_out.drop("stub", repr(article.title), len(kept))
        kept = []
    left_out.kept += len(kept)
    return kept


def _limited(
    passages: Iterable[Passage], cfg: CorpusConfig, stats: CorpusStats
) -> Iterator[Passage]:
    try:
        for passage in itertools.islice(passages, cfg.limit or None):
            stats.kept += 1
            yield passage
    except wikipedia_dump.DumpError as error:
        raise CorpusError(str(error)) from error
    stats.done = 1.0
    stats.check_share(cfg.path, cfg.max_bad_fraction)
    if not stats.kept:
        reasons = dict(stats.left_out.dropped) | stats.dropped
        raise CorpusError(f"the corpus {cfg.path} has no passages (left out: {reasons or 'none'})")

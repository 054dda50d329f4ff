"""Index a corpus for searching.

    python -m masksearch_jax.build_index --config=configs/build_index.py \\
        --config.corpus.path=wiki.jsonl.gz --config.index=DATA/index

Reads what build_ramp reads, and gives each passage the same id. The index appears whole or not at
all, and replaces an older one. INDEX.dropped.txt beside it names the rows that could not be read.
With config.vectors.encoder, a folder of a text encoder, each passage gets a vector besides, in
INDEX.vectors: a cut-off encoding goes on where it was. With config.opensearch.url the passages are
loaded into an OpenSearch cluster, which goes on likewise.
"""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

from masksearch_jax.core.corpus_config import CorpusConfig
from masksearch_jax.core.errors import check_given
from masksearch_jax.core.retrieval import SearchError
from masksearch_jax.core.schema import key, keys_but, section
from masksearch_jax.core.search_services_config import OpenSearchLoadConfig
from masksearch_jax.corpus import readers
from masksearch_jax.corpus.dropped_rows import DroppedRows
from masksearch_jax.corpus.passages import CorpusStats
from masksearch_jax.ramp import survey
from masksearch_jax.runtime import cli, run_record, storage
from masksearch_jax.runtime.progress import Progress
from masksearch_jax.search import bm25, vectors


@dataclasses.dataclass(frozen=True)
class VectorConfig:
    """Vectors of the passages, for search of kind dense and hybrid."""

    encoder: str = key(
        "", "HF folder of a text encoder of BERT's family; empty: no vectors.", content="sampled"
    )
    max_tokens: int = key(
        0, "Tokens of a text that are read; 0: as many as the folder says.", least=0
    )
    query_prefix: str = key("auto", "Stands before a query; auto: what the folder says.")
    passage_prefix: str = key("auto", "Stands before a passage; auto: what the folder says.")
    dtype: Literal["bfloat16", "float32"] = key("bfloat16", "Of the encoder's computing.")
    graph: bool = key(False, "Make an HNSW graph of the vectors, for search.nearest=graph.")


@dataclasses.dataclass(frozen=True)
class BuildIndexRun:
    """`build_index`: passages to an index."""

    corpus: CorpusConfig = section(CorpusConfig)
    index: str = key("runs/index", "Folder to write.")
    workers: int = key(1, "Processes that cut whole articles into passages.", least=1)
    vectors: VectorConfig = section(VectorConfig)
    shards: int = key(
        1,
        "Pieces of the index that are written and searched at once; they find what one would.",
        least=1,
    )
    opensearch: OpenSearchLoadConfig = section(OpenSearchLoadConfig)

    def idle(self) -> Iterator[tuple[str, str]]:
        """See `Switched`."""
        for name in keys_but(OpenSearchLoadConfig, "url"):
            if not self.opensearch.url:
                yield f"opensearch.{name}", "it is read with config.opensearch.url"
        for name in keys_but(VectorConfig, "encoder"):
            if not self.vectors.encoder:
                yield f"vectors.{name}", "it is read with config.vectors.encoder"


def check_config(cfg: BuildIndexRun) -> None:
    """Raises ConfigError for keys that are empty."""
    check_given(cfg, index="the folder to write")
    readable = "a corpus that build_ramp reads, or the passages.jsonl that it wrote"
    check_given(cfg.corpus, "config.corpus", path=readable)


def run(cfg: BuildIndexRun) -> dict[str, Any]:
    """Builds the index; the counts in and out, every drop by reason, and what it cost.

    left_out: of whole articles, what is no prose, by reason.
    """
    check_config(cfg)
    started = time.monotonic()
    encoder = _open_encoder(cfg.vectors) if cfg.vectors.encoder else None
    load = _open_cluster(cfg.opensearch) if cfg.opensearch.url else None
    stats = CorpusStats()
    with contextlib.ExitStack() as stack:
        progress = stack.enter_context(Progress("index", cfg.corpus.limit))
        dropped = stack.enter_context(DroppedRows(dropped_path(cfg.index)))
        workers = cfg.workers if readers.has_articles(cfg.corpus) else 1
        passages = readers.read_corpus(
            cfg.corpus,
            log=dropped.add,
            stats=stats,
            mapper=stack.enter_context(survey.mapper(workers)),
        )
        _begin(cfg)

        def show(count: int) -> None:
            if not cfg.corpus.limit and stats.done:
                progress.total = max(count, round(count / stats.done))
            progress.update(count, dropped=stats.bad)

        how = {"language": cfg.corpus.language, "shards": cfg.shards}
        count = bm25.build(passages, cfg.index, **how, progress=show)
    run_record.write(cfg.index, cfg)
    if encoder is not None:
        _encode(cfg, encoder)
    if load is not None:
        _load(cfg, load)
    files = [f for folder in _folders(cfg) for f in folder.rglob("*") if f.is_file()]
    return {
        "index": cfg.index,
        "read": stats.read,
        "dropped": dict(stats.dropped),
        "left_out": dict(stats.left_out.dropped),
        "passages": count,
        "bytes": sum(f.stat().st_size for f in files),
        "seconds": round(time.monotonic() - started, 1),
    }


def _begin(cfg: BuildIndexRun) -> None:
    """Tells of an index of other settings; the record of a new one is there from the start."""
    run_record.begin(
        cfg.index,
        cfg,
        replaces="the index of other settings is" if bm25.is_index(cfg.index) else "",
        stands=not storage.is_unmade(cfg.index),
        harmless=("index", "workers"),
    )


def _folders(cfg: BuildIndexRun) -> list[Path]:
    return [Path(cfg.index), *([vectors.folder_of(cfg.index)] if cfg.vectors.encoder else [])]


def _open_encoder(cfg: VectorConfig) -> vectors.Encoder:
    """Opened before the corpus is read, so that a folder of another kind is known at once."""
    from masksearch_jax.models.encoder_folder import TextEncoder

    asked = {"query_prefix": cfg.query_prefix, "passage_prefix": cfg.passage_prefix}
    reading: dict[str, str | int] = {k: v for k, v in asked.items() if v != "auto"}
    if cfg.max_tokens:
        reading["max_tokens"] = cfg.max_tokens
    return TextEncoder(cfg.encoder, dtype=cfg.dtype, reading=reading)


def _encode(cfg: BuildIndexRun, encoder: vectors.Encoder) -> None:
    index = bm25.BM25.open(cfg.index)
    with Progress("vectors", len(index)) as progress:
        vectors.build(
            index.passages,
            vectors.folder_of(cfg.index),
            encoder,
            index=index.fingerprint,
            graph=cfg.vectors.graph,
            progress=progress.update,
        )


def _open_cluster(cfg: OpenSearchLoadConfig) -> Callable[..., None]:
    """What loads passages. Asked before the corpus is read, so that no cluster is known at once."""
    try:
        from masksearch_jax.search import opensearch
    except ModuleNotFoundError as error:
        raise SearchError(f"config.opensearch needs the extra `opensearch`: {error}") from None
    opensearch.check_cluster(cfg)
    return opensearch.load


def _load(cfg: BuildIndexRun, load: Callable[..., None]) -> None:
    index = bm25.BM25.open(cfg.index)
    with Progress("opensearch", len(index)) as progress:
        load(
            cfg.opensearch,
            index.passages,
            _vectors(cfg, index),
            fingerprint=index.fingerprint,
            language=index.language,
            progress=progress.update,
        )


def _vectors(cfg: BuildIndexRun, index: bm25.BM25) -> vectors.Vectors | None:
    if not cfg.vectors.encoder:
        return None
    return vectors.Vectors.open(vectors.folder_of(cfg.index), index.fingerprint)


def dropped_path(index: str) -> Path:
    """The file beside an index that names the rows which could not be read."""
    return Path(index).with_name(f"{Path(index).name}.dropped.txt")


def _print_summary(summary: dict[str, Any]) -> None:
    dropped, left_out = (
        ", ".join(f"{n:,} {reason}" for reason, n in summary[key].items())
        for key in ("dropped", "left_out")
    )
    print(
        f"{summary['index']}: {summary['passages']:,} passages of {summary['read']:,} rows "
        f"(dropped: {dropped or 'none'}), {summary['bytes'] / 1e6:.1f} MB, {summary['seconds']} s"
    )
    if dropped:
        print(f"rows that could not be read: {dropped_path(summary['index'])}")
    if left_out:
        print(f"left out of articles: {left_out}")


if __name__ == "__main__":
    cli.run(lambda cfg: _print_summary(run(cfg)), BuildIndexRun, check=check_config)

"""The search tool that a config describes, and whether it fits the examples."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from masksearch_jax.core.config import SearchConfig
from masksearch_jax.core.errors import check_given
from masksearch_jax.core.retrieval import SearchError, SearchTool
from masksearch_jax.core.search_config import DENSE, REMOTE
from masksearch_jax.core.types import Example, RampExample
from masksearch_jax.runtime.progress import Progress
from masksearch_jax.search.rate import LimitedSearch, RateLimit
from masksearch_jax.search.replicas import Patience
from masksearch_jax.search.shared import SharedSearch
from masksearch_jax.search.tool import NoSearch, RandomSearch

if TYPE_CHECKING:
    from masksearch_jax.search.nearest import Nearest
    from masksearch_jax.search.vectors import Encoder, Vectors

KINDS = ("bm25", "dense", "hybrid", "http", "web", "opensearch", "none", "random")
_INDEXED = ("bm25", *DENSE, "random")
# Kinds of a service that may tell which index it searches, and the key of its address.
SERVICES = {"http": "search.url", "opensearch": "search.opensearch.url"}
_SLOW = (*DENSE, *REMOTE)  # kinds whose results are kept in memory
_CONTROLS = ("none", "random")
_FIRST_QUERY = "river"  # of any tool, to see that it answers
_PROBES, _PROBE_DEPTH = 8, 10  # examples searched for, and how deep


def check_named(cfg: SearchConfig) -> None:
    """Raises ConfigError where a tool's kind lacks what it needs, and SearchError where keys clash.

    Whatever is there: no folder is read, no service asked.
    """
    if cfg.recorded and (not cfg.replay or cfg.cache):
        raise SearchError(
            "search.recorded is what search.replay answers from, without search.cache: set "
            "search.replay, and search.cache to nothing"
        )
    if cfg.replay and not cfg.cache and not cfg.recorded:
        raise SearchError(
            "search.replay answers from what was recorded: search.cache names none, and neither "
            "does search.recorded"
        )
    if cfg.recorded and cfg.kind not in _CONTROLS:
        check_given(cfg, "config.search", index="the folder that has the recorded passages")
    elif cfg.replay and not cfg.recorded:
        return  # nothing is searched
    elif cfg.kind in _INDEXED:
        check_given(cfg, "config.search", index="the folder that build_index wrote")
    elif cfg.kind == "http":
        check_given(cfg, "config.search", url="the address of the search service")
    elif cfg.kind == "opensearch":
        check_given(cfg.opensearch, "config.search.opensearch", url="the address of the cluster")
    elif cfg.kind == "web":
        from masksearch_jax.search import web

        web.completed(cfg.web)


def open_tool(cfg: SearchConfig) -> SearchTool:
    """The search tool that `cfg` describes, with its cache.

    Raises SearchError if there is none, or if it does not answer a first search, which no cache is
    asked.
    """
    check_named(cfg)
    # Imported here, so that each kind loads only its own dependencies (and those import this file).
    if cfg.recorded:
        return open_recorded(cfg)
    tool = None if cfg.replay else _answering(cfg)
    if cfg.cache:
        from masksearch_jax.search.cache import CachedSearch

        tool = CachedSearch(
            tool,
            cfg.cache,
            mode="replay" if cfg.replay else "use",
            name=_cache_name(cfg),
            fingerprint=getattr(tool, "fingerprint", ""),
            max_bytes=cfg.cache_bytes,
        )
    is_slow = cfg.cache or cfg.rerank or cfg.kind in _SLOW
    return SharedSearch(tool, cfg.memory if is_slow else 0)


def _cache_name(cfg: SearchConfig) -> str:
    """What is searched, for a cache of several tools."""
    if cfg.kind == "web":
        from masksearch_jax.search import web

        return web.cache_name(cfg.web)
    if cfg.kind == "opensearch":
        return f"opensearch:{cfg.opensearch.url}/{cfg.opensearch.name}/{cfg.opensearch.by}"
    if cfg.kind in DENSE and cfg.nearest != "exact":
        return f"{cfg.kind}:{cfg.index}:{cfg.nearest}"
    return cfg.url if cfg.kind == "http" else f"{cfg.kind}:{cfg.index}"


def open_recorded(cfg: SearchConfig, control: str = "") -> SearchTool:
    """What trajectories recorded of a tool; a control, which asks no service, is itself.

    control: the method of an evaluation that is replayed, where a service answered that too.
    Raises SearchError where nothing was recorded.
    """
    if cfg.kind in _CONTROLS:
        return _open(cfg)
    from masksearch_jax.search.bm25 import BM25
    from masksearch_jax.search.recorded import RecordedSearch

    index = BM25.open(cfg.index)
    return RecordedSearch(cfg.recorded, index.passages, index.fingerprint, control)


def _answering(cfg: SearchConfig) -> SearchTool:
    tool = _open(cfg)
    if cfg.requests_per_second > 0 and cfg.kind not in REMOTE:
        tool = LimitedSearch(tool, RateLimit(cfg.requests_per_second), cfg.timeout)
    if cfg.rerank and cfg.kind not in _CONTROLS:
        tool = _reranked(tool, cfg)
    try:
        tool.search([_FIRST_QUERY], cfg.top_k)
    except (SearchError, OSError) as error:
        raise SearchError(f"the search tool does not answer: {error}") from error
    return tool


def _reranked(tool: SearchTool, cfg: SearchConfig) -> SearchTool:
    from masksearch_jax.models.cross_encoder_folder import PairScorer
    from masksearch_jax.models.hf_config import HfError
    from masksearch_jax.search.rerank import RerankedSearch

    try:
        scorer = PairScorer(cfg.rerank, place=cfg.models_on)
    except (OSError, HfError) as error:
        raise SearchError(f"the reranker cannot be opened: {error}") from error
    _compile("reranker", scorer.program.searches())
    return RerankedSearch(tool, scorer, cfg.rerank_depth)


def index_served(tool: SearchTool, cfg: SearchConfig) -> dict[str, str]:
    """The fingerprint of the index that a service searches, by the service's key; else {}.

    As `run_record.resume` takes it: an index that was built anew is another one. {} of a service
    that tells none, and of a tool that is no service.
    """
    key = SERVICES.get(cfg.kind)
    if key is None or cfg.replay or cfg.recorded:
        return {}
    found = getattr(tool, "fingerprint", "")
    return {key: found} if found else {}


def check_source_passages(tool: SearchTool, cfg: SearchConfig, examples: Sequence[Example]) -> None:
    """Raises SearchError where `cfg.exclude_source` would hide nothing, else does nothing.

    A tool that numbers its passages otherwise than the examples do hides none of them, and nobody
    would notice. So paragraphs of the first few RAMP examples are searched for, and one of them at
    least must come back as the passage that it is of. A replayed run was checked when recorded.
    """
    if not cfg.exclude_source or cfg.replay or cfg.kind in _CONTROLS:
        return
    asked = [e for e in examples if isinstance(e, RampExample)][:_PROBES]
    depth = max(_PROBE_DEPTH, cfg.top_k + 1)
    found = tool.search([e.paragraph for e in asked], depth) if asked else []
    ids = [[p.id for p in hits] for hits in found]
    if asked and not any(e.passage_id in hits for e, hits in zip(asked, ids, strict=True)):
        raise SearchError(
            "search.exclude_source can hide nothing: the search tool knows passages by other ids "
            f"than the examples. {len(asked)} paragraphs were searched for; that of passage "
            f"{asked[0].passage_id!r} gave {ids[0][:3]}. Search the corpus that the examples were "
            "made of, or turn search.exclude_source off"
        )


def _open(cfg: SearchConfig) -> SearchTool:
    """The tool itself, of the kind that the config names."""
    if cfg.kind == "bm25":
        from masksearch_jax.search.bm25 import BM25

        return BM25.open(cfg.index)
    if cfg.kind == "random":
        from masksearch_jax.search.bm25 import BM25

        index = BM25.open(cfg.index)
        return RandomSearch(index.passages, fingerprint=index.fingerprint)
    if cfg.kind in DENSE:
        return _open_vectors(cfg)
    if cfg.kind == "web":
        from masksearch_jax.search.web import WebSearch

        return WebSearch(cfg.web, _patience(cfg), RateLimit(cfg.requests_per_second))
    if cfg.kind == "opensearch":
        try:
            from masksearch_jax.search.opensearch import OpenSearchSearch
        except ModuleNotFoundError as error:
            raise SearchError(
                f"search.kind=opensearch needs the extra `opensearch`: {error}"
            ) from None

        limit = RateLimit(cfg.requests_per_second)
        opened = functools.partial(_encoder, cfg)
        return OpenSearchSearch(cfg.opensearch, _patience(cfg), limit, opened)
    if cfg.kind == "http":
        from masksearch_jax.search.remote import RemoteSearch

        return RemoteSearch(
            cfg.url,
            **dataclasses.asdict(_patience(cfg)),
            batch_wait=cfg.batch_wait,
            limit=RateLimit(cfg.requests_per_second),
        )
    if cfg.kind == "none":
        return NoSearch()
    raise SearchError(f"search.kind is {cfg.kind!r}, must be one of {', '.join(KINDS)}")


def _patience(cfg: SearchConfig) -> Patience:
    # A little less than whoever waits for the call, who could not say why the service fails.
    timeout = 0.95 * cfg.timeout
    return Patience(timeout, cfg.attempt_timeout, cfg.retries, cfg.backoff, cfg.hedge)


def _open_vectors(cfg: SearchConfig) -> SearchTool:
    """The tool of kind dense or hybrid."""
    from masksearch_jax.search import vectors
    from masksearch_jax.search.bm25 import BM25
    from masksearch_jax.search.dense import DenseSearch, HybridSearch

    index = BM25.open(cfg.index)
    table = vectors.Vectors.open(vectors.folder_of(cfg.index), index.fingerprint)
    encoder = _encoder(cfg, table.encoder_folder, table.reading)
    dense = DenseSearch(index, table, encoder, _nearest(cfg, table))
    if cfg.kind == "dense":
        return dense
    return HybridSearch(
        index,
        dense,
        fuse=cfg.fusion,
        rank_constant=cfg.rank_constant,
        dense_weight=cfg.dense_weight,
        depth=cfg.fusion_depth,
    )


def _encoder(cfg: SearchConfig, folder: str, reading: dict[str, str | int]) -> Encoder:
    """The encoder of queries: that of the config, or of the folder where it was."""
    from masksearch_jax.models.encoder_folder import TextEncoder
    from masksearch_jax.models.hf_config import HfError

    try:
        encoder = TextEncoder(cfg.encoder or folder, reading=reading, place=cfg.models_on)
    except (OSError, HfError) as error:
        then = "; the vectors were made with it then: give its folder now as search.encoder"
        said = "" if cfg.encoder else then
        raise SearchError(f"the encoder cannot be opened: {error}{said}") from error
    _compile("encoder", encoder.program.searches())
    return encoder


def _nearest(cfg: SearchConfig, table: Vectors) -> Nearest:
    if cfg.nearest.startswith("device"):
        from masksearch_jax.search.device_nearest import DeviceNearest

        found = DeviceNearest(table.table, approximate=cfg.nearest == "device_approximate")
        _compile("nearest vectors", found.searches(_depths(cfg)))
        return found
    from masksearch_jax.search import nearest

    return nearest.Graph(table) if cfg.nearest == "graph" else nearest.Exact(table)


def _depths(cfg: SearchConfig) -> set[int]:
    """How many of the nearest vectors searches ask for, and a server that tells how well it is."""
    asked = {1, cfg.top_k, cfg.top_k + cfg.exclude_source}
    least = max(cfg.rerank_depth if cfg.rerank else 0, cfg.fusion_depth * (cfg.kind == "hybrid"))
    return {max(depth, least) for depth in asked}


def _compile(what: str, programs: Sequence[Callable[[], object]]) -> None:
    """Compiles what searches run, so that none compiles within its time."""
    with (
        Progress(f"programs of the {what}", len(programs)) as progress,
        ThreadPoolExecutor() as pool,
    ):
        for done, _ in enumerate(pool.map(lambda compiled: compiled(), programs), start=1):
            progress.update(done)

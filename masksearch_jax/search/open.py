"""The search tool that a config describes, and whether it fits the examples."""

from __future__ import annotations

from collections.abc import Sequence

from masksearch_jax.core.config import SearchConfig
from masksearch_jax.core.errors import check_given
from masksearch_jax.core.retrieval import SearchError, SearchTool
from masksearch_jax.core.types import Example, RampExample
from masksearch_jax.search.tool import NoSearch, RandomSearch

KINDS = ("bm25", "http", "none", "random")
_FIRST_QUERY = "river"  # of any tool, to see that it answers
_PROBES, _PROBE_DEPTH = 8, 10  # examples searched for, and how deep


def open_tool(cfg: SearchConfig) -> SearchTool:
    """The search tool that `cfg` describes, with its cache.

    Raises SearchError if there is none, or if it does not answer a first search, which no cache is
    asked.
    """
    # Imported here, so that each kind loads only its own dependencies (and those import this file).
    if not cfg.cache:
        if cfg.replay:
            raise SearchError("search.replay answers from a cache, and search.cache names none")
        return _answering(cfg)
    from masksearch_jax.search.cache import CachedSearch

    tool = None if cfg.replay else _answering(cfg)
    return CachedSearch(
        tool,
        cfg.cache,
        mode="replay" if cfg.replay else "use",
        name=cfg.url if cfg.kind == "http" else f"{cfg.kind}:{cfg.index}",
        fingerprint=getattr(tool, "fingerprint", ""),
    )


def _answering(cfg: SearchConfig) -> SearchTool:
    tool = _open(cfg)
    try:
        tool.search([_FIRST_QUERY], cfg.top_k)
    except (SearchError, OSError) as error:
        raise SearchError(f"the search tool does not answer: {error}") from error
    return tool


def check_source_passages(tool: SearchTool, cfg: SearchConfig, examples: Sequence[Example]) -> None:
    """Raises SearchError where `cfg.exclude_source` would hide nothing, else does nothing.

    A tool that numbers its passages otherwise than the examples do hides none of them, and nobody
    would notice. So paragraphs of the first few RAMP examples are searched for, and one of them at
    least must come back as the passage that it is of. A replayed run was checked when recorded.
    """
    if not cfg.exclude_source or cfg.replay or cfg.kind in ("none", "random"):
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
    if cfg.kind in ("bm25", "random"):
        check_given(cfg, "config.search", index="the folder that build_index wrote")
    if cfg.kind == "http":
        check_given(cfg, "config.search", url="the address of the search service")
    if cfg.kind == "bm25":
        from masksearch_jax.search.bm25 import BM25

        return BM25.open(cfg.index)
    if cfg.kind == "random":
        from masksearch_jax.search.bm25 import BM25

        index = BM25.open(cfg.index)
        return RandomSearch(index.passages, fingerprint=index.fingerprint)
    if cfg.kind == "http":
        from masksearch_jax.search.remote import RemoteSearch

        return RemoteSearch(
            cfg.url,
            timeout=cfg.timeout,
            attempt_timeout=cfg.attempt_timeout,
            retries=cfg.retries,
            backoff=cfg.backoff,
            hedge=cfg.hedge,
            batch_wait=cfg.batch_wait,
        )
    if cfg.kind == "none":
        return NoSearch()
    raise SearchError(f"search.kind is {cfg.kind!r}, must be one of {', '.join(KINDS)}")

"""The search tool, and what of its results an agent is shown."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any, Literal

from masksearch_jax.core.schema import key, section, share
from masksearch_jax.core.search_services_config import OpenSearchConfig, WebConfig

MAX_TOP_K = 10_000  # passages of a query; the engine of an index sets memory aside for as many


def tools_key() -> Any:
    """The key `tools`, the same in every main in which an agent calls tools."""
    return key(
        (),
        "What the agent may call besides search: calculate, date, or classes of yours, "
        "package.module:Class.",
    )


DENSE = ("dense", "hybrid")  # kinds that search an index by its vectors
REMOTE = ("http", "web", "opensearch")  # kinds that send requests, and bound their rate themselves
_READ_BY = {
    **dict.fromkeys(("url", "batch_wait"), ("http",)),
    "web": ("web",),
    "opensearch": ("opensearch",),
    **dict.fromkeys(("attempt_timeout", "retries", "backoff", "hedge"), REMOTE),
    "encoder": (*DENSE, "opensearch"),
    "nearest": DENSE,
    **dict.fromkeys(("fusion", "rank_constant", "dense_weight", "fusion_depth"), ("hybrid",)),
}  # keys that some kinds of search alone read


@dataclasses.dataclass(frozen=True)
class SearchConfig:
    """The search tool, and what of its results an agent is shown."""

    kind: Literal["bm25", "dense", "hybrid", "http", "web", "opensearch", "none", "random"] = key(
        "bm25",
        "bm25: an index's words; dense: its vectors; hybrid: both; http: a running serve_search; "
        "web: a service of the web; opensearch: a cluster; "
        "none, random: baselines of evaluation.",
    )
    index: str = key("runs/index", "Folder that build_index wrote.", content="sampled")
    url: str = key(
        "",
        "Of a running serve_search, for kind http; commas between those of several replicas.",
        user="a service that asks for them is reached through a proxy that adds them",
    )
    top_k: int = key(5, "Passages per query.", least=1, most=MAX_TOP_K)
    max_passages: int = key(5, "Passages shown per search, after merging.", least=1)
    max_queries: int = key(4, "Queries read from one <search> block.", least=1)
    timeout: float = key(
        30.0, "Seconds per search call, all its attempts together.", harmless=True, least=0.001
    )
    workers: int = key(16, "Searches in flight; further ones wait.", harmless=True, least=1)
    cache: str = key(
        "",
        "SQLite file of results that need not be asked for again; empty: none.",
        harmless=True,
    )
    replay: bool = key(
        False,
        "Answer from the cache alone, or from search.recorded, and fail where it lacks a result.",
        harmless=True,
    )
    exclude_source: bool = key(
        False,
        "Hide the passage that an example masks from its own searches, as if it were not indexed.",
    )
    encoder: str = key(
        "",
        "Folder of the encoder that made the vectors; empty: where it was then.",
        content="sampled",
        harmless=True,
    )
    nearest: Literal["exact", "graph", "device", "device_approximate"] = key(
        "exact",
        "How near vectors are found. exact: on the host, all compared; graph: on the host, by "
        "HNSW; device: on the run's own devices, all compared; device_approximate: there, a few "
        "missed.",
    )
    models_on: Literal["device", "host"] = key(
        "device",
        "Where the encoder of queries and the reranker compute: on the run's own devices (device), "
        "or on the host's CPU, so that no tick waits for them (host).",
        harmless=True,
    )
    fusion: Literal["rank", "score"] = key(
        "score",
        "How kind hybrid joins its two rankings: by weighted scores, which at 0.3 found most of "
        "eight ways that were measured, or by reciprocal ranks.",
    )
    rank_constant: float = key(60.0, "k of 1 / (k + rank), of fusion by rank.", least=0)
    dense_weight: float = share(0.3, "Of the vectors in fusion by score; the words' is the rest.")
    fusion_depth: int = key(
        100, "Passages of each ranking that are joined.", least=1, most=MAX_TOP_K
    )
    memory: int = key(
        10_000,
        "Results of a cache, a reranker and kinds dense, hybrid, http, web and opensearch that are "
        "kept in memory, the last used; fewer where their texts have over 268 million characters.",
        harmless=True,
        least=0,
    )
    attempt_timeout: float = key(
        5.0,
        "Seconds of the first attempt of kind http; doubles with each that runs out of time.",
        harmless=True,
        least=0.001,
    )
    retries: int = key(
        20,
        "Attempts of kind http after the first, or of all replicas, as far as the timeout allows.",
        harmless=True,
        least=0,
    )
    backoff: float = key(
        0.1,
        "Seconds before the first retry of kind http, jittered; doubles with each, up to 2 s.",
        harmless=True,
        least=0,
    )
    hedge: float = key(
        0.0,
        (
            "Seconds after which kind http asks a second time, at another replica if there is "
            "one, and takes the first reply; 0: never."
        ),
        harmless=True,
        least=0,
    )
    batch_wait: float = key(
        0.002,
        "Seconds in which searches of kind http that start together become one request.",
        harmless=True,
        least=0,
    )
    cache_bytes: int = key(
        2**33,
        "Bytes that the cache's file may take; results used longest ago go first; 0: no bound.",
        harmless=True,
        least=0,
    )
    recorded: str = key(
        "",
        "Trajectories, a JSONL file or a folder of them, whose recorded searches, and answers of "
        "other tools, search.replay answers from, with the passages of search.index.",
        harmless=True,
    )
    requests_per_second: float = key(
        0.0,
        "Requests that may begin in a second, of this process; what is cached is none. 0: any.",
        harmless=True,
        least=0,
    )
    rerank: str = key(
        "",
        "HF folder of a cross-encoder of BERT's family that orders results anew; empty: none.",
        content="sampled",
    )
    rerank_depth: int = key(
        20, "Passages of a query that are ordered anew.", least=1, most=MAX_TOP_K
    )
    web: WebConfig = section(WebConfig)
    opensearch: OpenSearchConfig = section(OpenSearchConfig)

    def idle(self) -> Iterator[tuple[str, str]]:
        """See `Switched`."""
        for name, kinds in _READ_BY.items():
            if self.kind not in kinds:
                yield name, f"it is read with config.search.kind={' or '.join(kinds)}"
        if self.kind == "hybrid" and self.fusion == "score":
            yield "rank_constant", "it is read with config.search.fusion=rank"
        if self.kind == "hybrid" and self.fusion == "rank":
            yield "dense_weight", "it is read with config.search.fusion=score"
        if self.kind == "opensearch" and self.opensearch.by != "vectors":
            yield "encoder", "it is read with config.search.opensearch.by=vectors"
        if self.kind in ("none", "random"):
            yield "rerank", f"config.search.kind={self.kind} is a baseline that orders nothing"
        if not self.rerank:
            yield "rerank_depth", "it is read with config.search.rerank"
        if not self.cache:
            yield "cache_bytes", "it is read with config.search.cache"

    @property
    def service(self) -> str:
        """What a kind sends its requests to; "" of one that searches in this process."""
        services = {
            "http": self.url,
            "web": self.web.url or self.web.service,
            "opensearch": f"{self.opensearch.url}/{self.opensearch.name}",
        }
        return services.get(self.kind, "")

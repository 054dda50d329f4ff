"""Serve a search tool over HTTP, for runs on other machines (`search.kind = "http"`).

    python -m masksearch_jax.serve_search --config=configs/serve_search.py \\
        --config.search.index=DATA/index

POST /retrieve takes Search-R1's request, GET /health searches, GET /metrics has figures for
Prometheus. It has no access control: bind it to a private address.
"""

from __future__ import annotations

import dataclasses
import signal
from collections.abc import Iterator

from masksearch_jax.core.config import SearchConfig
from masksearch_jax.core.errors import ConfigError
from masksearch_jax.core.schema import key, section
from masksearch_jax.runtime import cli
from masksearch_jax.search.open import check_named, open_tool
from masksearch_jax.search.server import SearchServer


@dataclasses.dataclass(frozen=True)
class ServeSearchRun:
    """`serve_search`: a search tool as an HTTP service."""

    search: SearchConfig = section(SearchConfig)
    host: str = key("127.0.0.1", "Address to bind; 127.0.0.1: this machine only.")
    port: int = key(8001, "Port to bind; 0: any free one.", least=0, most=65_535)
    waiting: int = key(
        256, "Requests that may wait for a search; more get 503 and Retry-After.", least=1
    )
    drain: int = key(
        30, "Seconds at the end in which requests are answered; the rest gets 503.", least=0
    )

    def idle(self) -> Iterator[tuple[str, str]]:
        """See `Switched`."""
        for name in ("max_passages", "max_queries"):
            yield f"search.{name}", "it is of the agents that ask the service"


def check_config(cfg: ServeSearchRun) -> None:
    """Raises what `check_named` raises, and ConfigError for a replay."""
    check_named(cfg.search)
    if cfg.search.replay:
        raise ConfigError(
            "config.search.replay: a service would fail on all that was not recorded; replay in "
            "the run itself, by its own search.replay"
        )


def run(cfg: ServeSearchRun) -> None:
    """Serves until SIGINT, SIGTERM or SIGHUP; requests in progress are answered first."""
    check_config(cfg)
    server = SearchServer(
        open_tool(cfg.search),
        cfg.host,
        cfg.port,
        cfg.search.workers,
        waiting=cfg.waiting,
        default_top_k=cfg.search.top_k,
        last_words=cfg.drain,
    )
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:  # as `nohup` has it
            signal.signal(number, lambda *_: server.shutdown())
    print(f"serving {_served(cfg.search)} at {server.url}", flush=True)
    try:
        server.serve_forever()
    finally:
        server.server_close()


def _served(cfg: SearchConfig) -> str:
    """What the replies come from."""
    if cfg.kind == "none":
        return "no passages"
    return cfg.service or (f"random passages of {cfg.index}" if cfg.kind == "random" else cfg.index)


if __name__ == "__main__":
    cli.run(run, ServeSearchRun, check=check_config)

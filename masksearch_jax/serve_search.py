"""Serve a search tool over HTTP, for runs on other machines (`search.kind = "http"`).

    python -m masksearch_jax.serve_search --config=configs/serve_search.py \\
        --config.search.index=DATA/index

POST /retrieve takes Search-R1's request; GET /health says how many passages there are. It has no
access control: bind it to a private address.
"""

from __future__ import annotations

import dataclasses
import signal
from typing import Any

from masksearch_jax.core.config import SearchConfig
from masksearch_jax.core.schema import key, section
from masksearch_jax.runtime import cli
from masksearch_jax.search.open import open_tool
from masksearch_jax.search.server import SearchServer


@dataclasses.dataclass(frozen=True)
class ServeSearchRun:
    """`serve_search`: a search tool as an HTTP service."""

    search: SearchConfig = section(SearchConfig)
    host: str = key("127.0.0.1", "Address to bind; 127.0.0.1: this machine only.")
    port: int = key(8001, "Port to bind; 0: any free one.")


def run(cfg: ServeSearchRun) -> None:
    """Serves until SIGINT or SIGTERM; requests in progress are answered first."""
    with SearchServer(open_tool(cfg.search), cfg.host, cfg.port, cfg.search.workers) as server:

        def stop(*_: Any) -> None:
            server.shutdown()

        signal.signal(signal.SIGINT, stop)
        signal.signal(signal.SIGTERM, stop)
        print(f"serving {cfg.search.index or cfg.search.kind} at {server.url}", flush=True)
        server.serve_forever()


if __name__ == "__main__":
    cli.run(run, ServeSearchRun)

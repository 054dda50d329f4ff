"""A search tool as an HTTP service.

    python -m masksearch_jax.serve_search --config=configs/serve_search.py \\
        --config.search.index=runs/index

Runs on other machines reach it with `search.kind = "http"` and its address as `search.url`.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    c = ConfigDict()
    c.host = "127.0.0.1"
    c.port = 8001  # beside serve_model, whose is 8000

    c.search = ConfigDict()
    c.search.kind = "bm25"
    c.search.index = "runs/index"
    c.search.url = ""
    c.search.top_k = 5
    c.search.max_passages = 5
    c.search.max_queries = 4
    c.search.timeout = 10.0
    c.search.workers = 8  # searches at once; further requests wait
    c.search.cache = ""
    c.search.replay = False
    c.search.exclude_source = False  # the clients hide
    return c

"""A search tool as an HTTP service.

    python -m masksearch_jax.serve_search --config=configs/serve_search.py \\
        --config.search.index=runs/index

Runs on other machines reach it with `search.kind = "http"` and its address as `search.url`.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    c = ConfigDict()
    c.search = ConfigDict()
    c.search.workers = 8  # searches at once; further requests wait
    return c

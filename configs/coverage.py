"""Which questions a corpus can answer at all.

    python -m masksearch_jax.coverage --config=configs/coverage.py \\
        --config.questions=hotpot_dev.json --config.search.index=runs/index
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    c = ConfigDict()
    c.out = "runs/coverage"
    return c

"""The HTML report of runs, finished or not; the argument is a folder.

    python -m masksearch_jax.report runs/quickstart
    python -m masksearch_jax.report runs/one runs/other --config.out=compared.html

The page needs no network and no other file.
"""

from ml_collections import ConfigDict


def get_config(arg: str = "runs/quickstart") -> ConfigDict:
    c = ConfigDict()
    c.runs = (arg,)
    return c

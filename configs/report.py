"""The HTML report of one run, finished or not; the argument is its folder.

    python -m masksearch_jax.report --config=configs/report.py:runs/quickstart

The page needs no network and no other file.
"""

from ml_collections import ConfigDict


def get_config(arg: str = "runs/quickstart") -> ConfigDict:
    c = ConfigDict()
    c.workdir = arg
    return c

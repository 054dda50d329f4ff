"""The HTML report of one run, finished or not.

python -m masksearch_jax.report --config=configs/report.py:runs/quickstart
"""

from ml_collections import ConfigDict


def get_config(arg: str = "runs/quickstart") -> ConfigDict:
    c = ConfigDict()
    c.workdir = arg
    return c

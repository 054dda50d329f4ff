"""A corpus to a BM25 index.

    python -m masksearch_jax.build_index --config=configs/build_index.py \\
        --config.corpus.path=wiki.jsonl.gz

The corpus is any that build_ramp reads: JSONL of id, title, text, a folder of parquet or arrow
files, a dump of Wikipedia, a TFDS dataset; by default the passages that build_ramp wrote.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    c = ConfigDict()
    c.corpus = ConfigDict()
    c.corpus.path = "runs/ramp/passages.jsonl"
    c.index = "runs/index"
    return c

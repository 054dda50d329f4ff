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
    c.corpus.path = "runs/ramp/passages.jsonl"  # a file or folder of `format`
    c.corpus.questions = ""  # not read
    c.corpus.limit = 0
    c.corpus.max_bad_fraction = 0.01
    c.corpus.format = "auto"  # auto | jsonl | tsv | hf | dump | wikiextractor | tfds
    c.corpus.language = "en"  # en | zh
    c.corpus.articles = False  # True where rows are whole articles: they are cut into passages
    c.corpus.passage_words = 100

    c.index = "runs/index"
    c.workers = 1  # processes that cut whole articles into passages
    return c

"""A corpus to passages, masked paragraphs and questions, split by article.

    python -m masksearch_jax.build_ramp --config=configs/build_ramp.py \\
        --config.corpus.path=wiki.jsonl.gz --config.corpus.questions=questions.jsonl

Then, each with its config and the defaults of all: build_index, build_trajectories, build_cache,
train_sft (ramp_sft), train_dapo (ramp_dapo), evaluate, export_hf. `:runlocal` is a smoke run.
"""

from ml_collections import ConfigDict

from configs import common


def get_config(arg: str = "") -> ConfigDict:
    arg = common.parse_arg(arg, runlocal=False)
    c = ConfigDict()
    c.folder = "runs/ramp"
    c.seed = 0  # of the atlas's wording

    c.corpus = ConfigDict()
    c.corpus.path = ""  # JSONL of id, title, text, .gz allowed; empty: the built-in atlas of facts
    c.corpus.questions = ""  # JSONL of qid, dataset, question, answers, gold
    c.corpus.limit = 0
    c.corpus.max_bad_fraction = 0.01
    c.corpus.format = "auto"
    c.corpus.language = "en"  # en | zh
    c.corpus.articles = False  # True where rows are whole articles: they are cut into passages
    c.corpus.passage_words = 100

    c.ramp = ConfigDict()
    c.ramp.cities = 3000
    c.ramp.reworded = False  # True is harder: read, not copy
    c.ramp.extractor = "rules"
    c.ramp.max_masks = 4
    c.ramp.examples_per_passage = 2
    c.ramp.min_words = 8
    c.ramp.max_words = 160
    c.ramp.heldout_fraction = 0.05
    c.ramp.rl_fraction = 0.0
    c.ramp.max_examples = 0
    c.ramp.seed = 0

    if arg.runlocal:
        c.corpus.limit = 300
    return c

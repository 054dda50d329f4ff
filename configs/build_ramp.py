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

    c.ramp = ConfigDict()
    c.ramp.gazetteer = 1_000_000

    c.clean = ConfigDict()  # text from the web is not clean
    c.clean.prose = True
    c.clean.duplicates = 0.8
    c.clean.max_drop = 0.5

    c.ppl = ConfigDict()  # of the strategy ppl
    c.ppl.compute = ConfigDict()
    c.ppl.compute.loss_chunk = 1024  # a batch is a few short texts

    c.llm = ConfigDict()  # of the extractor llm
    c.llm.temperature = 0.0  # spans are found, not made up
    c.llm.cache = "runs/llm.sqlite"

    if arg.runlocal:
        c.corpus = ConfigDict()
        c.corpus.limit = 300
    return c

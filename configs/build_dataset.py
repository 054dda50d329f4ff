"""A corpus of any size to the TFDS dataset `ramp/k1` … `ramp/k4`, through Apache Beam.

    python -m masksearch_jax.build_dataset --config=configs/build_dataset.py \\
        --config.corpus='wiki/*.jsonl.gz' --config.folder=runs/ramp

On a cluster: `--config.beam.runner=FlinkRunner --config.beam.options='--flink_master=HOST:8081 …'`;
corpus and folder must be where launcher and workers see them. `:runlocal` uses two processes.
"""

from ml_collections import ConfigDict

from configs import common


def get_config(arg: str = "") -> ConfigDict:
    arg = common.parse_arg(arg, runlocal=False)
    c = ConfigDict()
    c.folder = "runs/ramp"
    c.corpus = ""  # files or patterns, separated by commas; needed
    c.language = "en"  # en | zh
    c.articles = False  # True where lines are whole articles: they are cut into passages
    c.passage_words = 100
    c.max_bad_fraction = 0.01
    c.tfrecord = True  # also as TFRecord, which tfds.load reads; False: half the bytes

    c.clean = ConfigDict()
    c.clean.prose = True
    c.clean.duplicates = 0.0  # near duplicates are build_ramp's to find; exact ones are dropped
    c.clean.max_drop = 0.5
    c.clean.leakage = "keep"  # keep | drop
    c.clean.evaluation = ()  # files of questions, as their authors publish them
    c.clean.evaluation_passages = ""  # JSONL of the passages that they name
    c.clean.ngram = 13

    c.ramp = ConfigDict()
    c.ramp.cities = 0  # of the atlas, which is not used here
    c.ramp.reworded = False
    c.ramp.extractor = "rules"  # rules | spacy
    c.ramp.max_masks = 4
    c.ramp.examples_per_passage = 2
    c.ramp.min_words = 8
    c.ramp.max_words = 160
    c.ramp.heldout_fraction = 0.05
    c.ramp.rl_fraction = 0.0
    c.ramp.max_examples = 0
    c.ramp.seed = 0
    c.ramp.strategy = "random"  # random | weighted
    c.ramp.min_nll = 0.5  # of ppl, which is not used here
    c.ramp.max_nll = 6.0
    c.ramp.gazetteer = 0  # learned by build_ramp alone
    c.ramp.spacy_model = ""  # of the extractor spacy, such as en_core_web_sm

    c.beam = ConfigDict()
    c.beam.runner = "FnApiRunner"  # this machine; FlinkRunner, SparkRunner, DataflowRunner, …
    c.beam.options = ""

    if arg.runlocal:
        c.beam.options = "--direct_num_workers=2 --direct_running_mode=multi_processing"
    return c

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
    c.corpus.path = ""  # empty: the built-in atlas of facts
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
    c.ramp.extractor = "rules"  # rules | spacy | llm
    c.ramp.max_masks = 4
    c.ramp.examples_per_passage = 2
    c.ramp.min_words = 8
    c.ramp.max_words = 160
    c.ramp.heldout_fraction = 0.05
    c.ramp.rl_fraction = 0.0
    c.ramp.max_examples = 0
    c.ramp.seed = 0
    c.ramp.strategy = "random"  # random | weighted | ppl
    c.ramp.min_nll = 0.5  # of ppl
    c.ramp.max_nll = 6.0
    c.ramp.gazetteer = 1_000_000  # names learned from titles and links
    c.ramp.spacy_model = ""  # of the extractor spacy, such as en_core_web_sm

    c.clean = ConfigDict()
    c.clean.prose = True
    c.clean.duplicates = 0.8
    c.clean.max_drop = 0.5
    c.clean.leakage = "keep"  # keep | tag | drop
    c.clean.evaluation = ()  # files of questions, as their authors publish them
    c.clean.evaluation_passages = ""  # JSONL of the passages that they name
    c.clean.ngram = 13

    c.work = ConfigDict()
    c.work.workers = 1
    c.work.part = 5000
    c.work.examples = 0  # of each number of masks to read, in FOLDER/examples.html

    c.ppl = ConfigDict()
    c.ppl.init = ""  # of the strategy ppl: HF folder or checkpoints
    c.ppl.tokenizer = ""
    c.ppl.batch = 16
    c.ppl.max_len = 1024
    c.ppl.compute = ConfigDict()
    c.ppl.compute.dtype = "bfloat16"
    c.ppl.compute.param_dtype = "float32"
    c.ppl.compute.attention = "xla"
    c.ppl.compute.remat = "none"
    c.ppl.compute.loss_chunk = 1024
    c.ppl.mesh = ConfigDict()
    c.ppl.mesh.data = 1
    c.ppl.mesh.fsdp = -1
    c.ppl.mesh.context = 1
    c.ppl.mesh.tensor = 1

    c.llm = common.llm()  # of the extractor llm
    c.llm.temperature = 0.0
    c.llm.cache = "runs/llm.sqlite"
    c.max_failed = 0.01  # share of passages that it may give no reply for

    if arg.runlocal:
        c.corpus.limit = 300
    return c

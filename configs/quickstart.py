"""A small model learns to search, from raw text to a report, on two CPU cores.

    python -m masksearch_jax.quickstart --config=configs/quickstart.py
    ... --config.corpus.path=wiki.jsonl        JSONL of id, title, text instead of the atlas

`:runlocal` is a smoke run: every stage, a handful of steps, nothing learned. Every number here is
ours, but for the DAPO clip range.
"""

from ml_collections import ConfigDict

from configs import common


def get_config(arg: str = "") -> ConfigDict:
    arg = common.parse_arg(arg, model="tiny", runlocal=False)
    c = ConfigDict()
    c.workdir = "runs/quickstart"
    c.seed = 0

    # ---- text, index, masks ---------------------------------------------------------------
    c.corpus = ConfigDict()
    c.corpus.path = ""  # empty: the built-in atlas of facts
    c.corpus.questions = ""
    c.corpus.limit = 0
    c.corpus.max_bad_fraction = 0.01
    c.corpus.format = "auto"
    c.corpus.language = "en"  # en | zh
    c.corpus.articles = False  # True where rows are whole articles: they are cut into passages
    c.corpus.passage_words = 100

    c.ramp = ConfigDict()
    c.ramp.cities = 10_000
    c.ramp.reworded = False  # True is harder: read, not copy
    c.ramp.extractor = "rules"
    c.ramp.max_masks = 4
    c.ramp.examples_per_passage = 2
    c.ramp.min_words = 8
    c.ramp.max_words = 120
    c.ramp.heldout_fraction = 0.18
    c.ramp.rl_fraction = 0.25
    c.ramp.max_examples = 0
    c.ramp.seed = 0
    c.ramp.strategy = "random"
    c.ramp.min_nll = 0.5  # of the strategy ppl, which this recipe has no model for
    c.ramp.max_nll = 6.0
    c.ramp.gazetteer = 0
    c.ramp.spacy_model = ""

    c.search = ConfigDict()
    c.search.kind = "bm25"
    c.search.index = ""  # empty: the index that this run builds in its workdir
    c.search.url = ""
    c.search.top_k = 1
    c.search.max_passages = 1
    c.search.max_queries = 2
    c.search.timeout = 10.0
    c.search.workers = 2
    c.search.cache = ""
    c.search.replay = False
    c.search.exclude_source = False  # True: a masked paragraph is not found by its own searches

    c.prompt = ConfigDict()
    c.prompt.style = "minimal"
    c.tokenizer_vocab_size = 1024  # of few tokens, each is met often enough to be copied
    c.demonstrations = 0  # 0: one of every training example that the teacher solves

    # ---- model ----------------------------------------------------------------------------
    c.model = common.model(arg.model)
    c.model.vocab_size = c.get_ref("tokenizer_vocab_size")

    c.compute = ConfigDict()
    c.compute.dtype = "float32"  # CPUs are slow at bfloat16
    c.compute.param_dtype = "float32"
    c.compute.attention = "xla"
    c.compute.remat = "dots"
    c.compute.loss_chunk = 4096

    c.cpu_devices = 2  # each in a thread of its own: faster than one that splits every operation
    c.mesh = ConfigDict()
    c.mesh.data = -1
    c.mesh.fsdp = 1
    c.mesh.context = 1
    c.mesh.tensor = 1

    # ---- SFT: one mask, then up to two, so that RL has masks left to learn --------------------
    c.sft = ConfigDict()
    c.sft.batch_size = 12
    c.sft.seq_len = 192
    c.sft.steps = 800
    c.sft.other_loss_weight = 0.05  # from random weights, reading has to be learned too
    c.sft.curriculum = "0:ramp_sft_upto1,200:ramp_sft_upto2"
    c.sft.log_every = 10
    c.sft.seed = 0

    c.sft_optim = ConfigDict()
    c.sft_optim.learning_rate = 3e-3
    c.sft_optim.schedule = "cosine"
    c.sft_optim.warmup_steps = 30
    c.sft_optim.end_lr_ratio = 0.1
    c.sft_optim.b1 = 0.9
    c.sft_optim.b2 = 0.95
    c.sft_optim.eps = 1e-8
    c.sft_optim.weight_decay = 0.01
    c.sft_optim.clip_norm = 1.0
    c.sft_optim.accumulate = 2  # what three rows a device touch stays in its core's cache
    c.sft_optim.rounding = "nearest"

    # ---- DAPO with live search, up to four masks ----------------------------------------------
    c.rollout = ConfigDict()
    c.rollout.slots = 64
    c.rollout.decode_share = (1.0,)  # one program: bit by bit the same, however long a search takes
    c.rollout.max_len = 224
    c.rollout.kv_tokens = 0
    c.rollout.page_tokens = 56
    c.rollout.kv_dtype = "compute"
    c.rollout.attention = "auto"
    c.rollout.weights = "whole"
    c.rollout.tick_tokens = 16
    c.rollout.extend_tokens = 64
    c.rollout.chunk_tokens = 32
    c.rollout.max_turns = 2
    c.rollout.max_new_tokens = 104
    c.rollout.max_turn_tokens = 0
    c.rollout.max_observation_tokens = 96
    c.rollout.answer_tokens = 0
    c.rollout.corrections = 0
    c.rollout.temperature = 1.0
    c.rollout.top_k = 0
    c.rollout.top_p = 1.0
    c.rollout.min_p = 0.0
    c.rollout.max_repeats = 0
    c.rollout.deadline = 0.0
    c.rollout.in_flight = "drop"
    c.rollout.max_staleness = 1
    c.rollout.seed = 0

    c.dapo = ConfigDict()
    c.dapo.steps = 30
    c.dapo.groups = 12
    c.dapo.group_size = 8
    c.dapo.minibatches = 1
    c.dapo.micro_batch = 16
    c.dapo.clip_low = 0.2
    c.dapo.clip_high = 0.28
    c.dapo.tis_cap = 2.0
    c.dapo.reward = "recall"
    c.dapo.format_weight = 0.1
    c.dapo.length_penalty = 0.5
    c.dapo.accuracy_threshold = 0.999
    c.dapo.max_refills = 4
    c.dapo.overlong_buffer = 32
    c.dapo.overlong_penalty = 1.0
    c.dapo.overlong_filter = False
    c.dapo.allow_filters = False
    c.dapo.oversample = 1.0
    c.dapo.curriculum = "0:ramp_upto4"
    c.dapo.split = "rl"
    c.dapo.seed = 0

    c.dapo_optim = ConfigDict()
    c.dapo_optim.learning_rate = 3e-4
    c.dapo_optim.schedule = "cosine"
    c.dapo_optim.warmup_steps = 3
    c.dapo_optim.end_lr_ratio = 0.1
    c.dapo_optim.b1 = 0.9
    c.dapo_optim.b2 = 0.99
    c.dapo_optim.eps = 1e-8
    c.dapo_optim.weight_decay = 0.0
    c.dapo_optim.clip_norm = 1.0
    c.dapo_optim.accumulate = 1
    c.dapo_optim.rounding = "nearest"

    # ---- evaluation, checkpoints, report ------------------------------------------------------
    c.eval = ConfigDict()
    c.eval.suites = ("ramp", "two_hop")
    c.eval.conditions = ("search", "no_search", "random")
    c.eval.examples = 2600
    c.eval.baseline_examples = 150
    c.eval.temperature = 0.6
    c.eval.bootstrap = 1000
    c.eval.seed = 0
    c.eval.retries = 3  # of an item that ended for no fault of the model
    c.eval.max_tool_failures = 0.01  # share of such items, after that
    c.eval.max_bad_fraction = 0.01  # share of items that cannot be run

    c.checkpoint = ConfigDict()
    c.checkpoint.every = 50
    c.checkpoint.keep = 2
    c.checkpoint.keep_every = 0
    c.checkpoint.best_metric = ""
    c.checkpoint.best_mode = "max"
    c.checkpoint.folder = ""

    c.survival = ConfigDict()
    c.survival.startup_seconds = 3600.0
    c.survival.step_factor = 10.0
    c.survival.step_seconds = 300.0
    c.survival.heartbeat_seconds = 30
    c.survival.guard = "stop"
    c.survival.spike_sigma = 0.0
    c.survival.spike_window = 128
    c.survival.max_skips = 10
    c.survival.profile_steps = ()
    c.survival.compile_cache = ""

    c.report_trajectories = 10

    if arg.runlocal:
        c.corpus.limit = 300
        c.sft.batch_size, c.sft.steps, c.sft.log_every = 4, 6, 1
        c.sft.curriculum = "0:ramp_sft_upto1,3:ramp_sft_upto2"
        c.sft_optim.accumulate = 2
        c.rollout.slots = 8
        c.dapo.steps, c.dapo.groups, c.dapo.group_size, c.dapo.micro_batch = 2, 2, 4, 4
        c.dapo.max_refills = 1
        c.eval.examples = c.eval.baseline_examples = 8
        c.eval.bootstrap = 100
        c.checkpoint.every = 2
        c.report_trajectories = 4
    return c

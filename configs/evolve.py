"""Three iterations of self-evolution of a small model on the atlas of facts, on two CPU cores.

    python -m masksearch_jax.evolve --config=configs/evolve.py
    ... --config.corpus.path=wiki.jsonl        JSONL of id, title, text instead of the atlas
    ... --config.evolve.teacher=agents --config.llm.base_url=http://HOST:8000/v1
    ... --config.evolve.judge=llm

`:qwen2.5-1.5b` names the architecture, with its `init` and `tokenizer`; `:runlocal` is a smoke run.
The paper publishes none of these numbers: they are ours.
"""

from ml_collections import ConfigDict

from configs import common


def get_config(arg: str = "") -> ConfigDict:
    arg = common.parse_arg(arg, model="tiny", runlocal=False)
    c = ConfigDict()
    c.workdir = "runs/evolve"
    c.seed = 0

    # ---- text, index, masks ---------------------------------------------------------------
    c.corpus = ConfigDict()
    c.corpus.path = ""  # empty: the built-in atlas of facts
    c.corpus.questions = ""
    c.corpus.limit = 0
    c.corpus.max_bad_fraction = 0.01
    c.corpus.format = "auto"
    c.corpus.language = "en"
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
    c.ramp.rl_fraction = 0.6  # the students sample on these articles, the teacher on the others
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
    c.init = ""  # HF folder or checkpoints to start from; empty: random weights
    c.tokenizer = ""  # empty: one trained on this run's text
    c.tokenizer_vocab_size = 1024  # of few tokens, each is met often enough to be copied

    # ---- model ----------------------------------------------------------------------------
    c.model = common.model(arg.model)
    c.model.vocab_size = c.get_ref("tokenizer_vocab_size")

    c.compute = ConfigDict()
    c.compute.dtype = "float32"  # CPUs are slow at bfloat16
    c.compute.param_dtype = "float32"
    c.compute.attention = "xla"
    c.compute.remat = "dots"
    c.compute.loss_chunk = 4096

    c.cpu_devices = 2
    c.mesh = ConfigDict()
    c.mesh.data = -1
    c.mesh.fsdp = 1
    c.mesh.context = 1
    c.mesh.tensor = 1

    # ---- iterations -----------------------------------------------------------------------
    c.evolve = ConfigDict()
    c.evolve.iterations = 3  # after the first demonstrations
    c.evolve.teacher = "scripted"  # scripted | agents, of the first demonstrations
    c.evolve.language = "en"  # of the agents' prompts: en | zh
    c.evolve.seed_examples = 3000  # training examples that the teacher is given
    c.evolve.seed_masks = 2  # most masks in them; students sample on up to ramp.max_masks
    c.evolve.split = "rl"  # the students' examples: of articles that the teacher has not seen
    c.evolve.items = 1200  # examples that a student samples on in an iteration
    c.evolve.samples = 4  # trajectories of each
    c.evolve.hard_share = 0.25  # of the items, at most: unsolved so far
    c.evolve.max_tries = 3  # iterations before a hard item is given up
    c.evolve.per_example = 2  # accepted trajectories of an example that are kept
    c.evolve.max_failed = 0.01  # share of attempts lost to an endpoint or a search that failed
    c.evolve.judge = "rules"  # rules | llm
    c.evolve.restart = False  # True: each student from the first weights
    c.evolve.diversity_texts = 300  # trajectories that diversity is measured on
    c.evolve.on_collapse = "warn"  # warn | stop

    c.evolve.rules = ConfigDict()
    c.evolve.rules.min_recall = 1.0  # of the masked spans
    c.evolve.rules.grounded = True  # what it fills in must stand in what it has read

    c.evolve.floors = ConfigDict()  # shares of the first demonstrations' diversity
    c.evolve.floors.distinct_2 = 0.5
    c.evolve.floors.novelty = 0.5  # 1 - self-BLEU
    c.evolve.floors.shape_entropy = 0.25

    # ---- SFT: the first student on the teacher's demonstrations, then each on all so far -------
    c.first_sft = ConfigDict()
    c.first_sft.batch_size = 12
    c.first_sft.seq_len = 224
    c.first_sft.steps = 800
    c.first_sft.other_loss_weight = 0.05  # from random weights, reading has to be learned too
    c.first_sft.curriculum = "0:ramp_sft_upto1,200:ramp_sft_upto2"
    c.first_sft.log_every = 10
    c.first_sft.seed = 0

    c.first_optim = ConfigDict()
    c.first_optim.learning_rate = 3e-3
    c.first_optim.schedule = "cosine"
    c.first_optim.warmup_steps = 30
    c.first_optim.end_lr_ratio = 0.1
    c.first_optim.b1 = 0.9
    c.first_optim.b2 = 0.95
    c.first_optim.eps = 1e-8
    c.first_optim.weight_decay = 0.01
    c.first_optim.clip_norm = 1.0
    c.first_optim.accumulate = 2

    c.sft = ConfigDict()
    c.sft.batch_size = 12
    c.sft.seq_len = 224
    c.sft.steps = 250
    c.sft.other_loss_weight = 0.05
    c.sft.curriculum = "0:ramp_sft_mixed"
    c.sft.log_every = 10
    c.sft.seed = 0

    c.optim = ConfigDict()
    c.optim.learning_rate = 1e-3
    c.optim.schedule = "cosine"
    c.optim.warmup_steps = 10
    c.optim.end_lr_ratio = 0.1
    c.optim.b1 = 0.9
    c.optim.b2 = 0.95
    c.optim.eps = 1e-8
    c.optim.weight_decay = 0.01
    c.optim.clip_norm = 1.0
    c.optim.accumulate = 2

    # ---- students sample, and are evaluated ---------------------------------------------------
    c.rollout = ConfigDict()
    c.rollout.slots = 64
    c.rollout.decode_share = (1.0,)
    c.rollout.max_len = 224
    c.rollout.kv_tokens = 0
    c.rollout.page_tokens = 56
    c.rollout.attention = "auto"
    c.rollout.weights = "whole"
    c.rollout.kv_dtype = "compute"
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

    c.llm = common.llm()

    c.eval = ConfigDict()
    c.eval.suites = ("ramp",)
    c.eval.conditions = ("search",)
    c.eval.examples = 600
    c.eval.baseline_examples = 600
    c.eval.temperature = 0.6
    c.eval.bootstrap = 1000
    c.eval.seed = 0
    c.eval.retries = 3  # of an item that ended for no fault of the model
    c.eval.max_tool_failures = 0.01  # share of such items, after that
    c.eval.max_bad_fraction = 0.01  # share of items that cannot be run

    c.checkpoint = ConfigDict()
    c.checkpoint.every = 50
    c.checkpoint.keep = 1
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

    c.report_trajectories = 8

    if arg.runlocal:
        c.corpus.limit, c.ramp.max_examples, c.tokenizer_vocab_size = 300, 600, 512
        c.model.hidden_size, c.model.intermediate_size, c.model.head_dim = 64, 128, 16
        c.model.num_layers, c.compute.remat = 2, "none"
        c.evolve.iterations, c.evolve.seed_examples, c.evolve.items = 1, 40, 8
        c.evolve.samples, c.evolve.rules.min_recall, c.evolve.rules.grounded = 2, 0.0, False
        c.first_sft.batch_size, c.first_sft.steps, c.first_sft.log_every = 4, 20, 10
        c.first_sft.curriculum = "0:ramp_sft_upto2"
        c.sft.batch_size, c.sft.steps, c.sft.log_every = 4, 4, 1
        c.first_optim.accumulate = c.optim.accumulate = 2
        c.rollout.slots, c.rollout.max_new_tokens = 8, 48
        c.eval.examples = c.eval.baseline_examples = 8
        c.eval.bootstrap, c.checkpoint.every, c.report_trajectories = 50, 2, 2
    return c

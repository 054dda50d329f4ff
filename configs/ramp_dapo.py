"""RAMP by DAPO with live search (MaskSearch), from 1 to 4 masked spans.

    python -m masksearch_jax.train_dapo --config=configs/ramp_dapo.py:qwen2.5-1.5b \\
        --config.tokenizer=PATH/Qwen2.5-1.5B-Instruct

Starts from what ramp_sft trained; with `--config.init=PATH/Qwen2.5-1.5B-Instruct`, from there.

The argument names a model of `configs.common.MODELS`; `,runlocal` makes it a smoke run.
Values marked DAPO are those of arXiv 2503.14476; the MaskSearch paper gives none, so that every
other number here is ours.
"""

from ml_collections import ConfigDict

from configs import common


def get_config(arg: str = "") -> ConfigDict:
    arg = common.parse_arg(arg, model="qwen2.5-1.5b", runlocal=False)
    c = ConfigDict()
    c.workdir = "runs/ramp_dapo"
    c.seed = 0
    c.data = "runs/ramp/cache"
    c.tokenizer = ""  # folder with tokenizer.json; needed
    c.init = "runs/ramp_sft/checkpoints"  # HF or checkpoint folder; empty: random weights
    c.base = ""  # where init holds adapters: their base model; empty: where they say it is

    c.model = common.model(arg.model)

    c.compute = ConfigDict()
    c.compute.dtype = "bfloat16"
    c.compute.param_dtype = "float32"
    c.compute.attention = "xla"
    c.compute.remat = "block"
    c.compute.loss_chunk = 2048

    c.mesh = ConfigDict()
    c.mesh.data = 1
    c.mesh.fsdp = -1  # of a 7B 64 at most, and data = -1, on larger slices
    c.mesh.context = 1  # above 1: rows too long for a device are split over so many
    c.mesh.tensor = 1

    c.prompt = ConfigDict()
    c.prompt.style = "chat"

    c.lora = ConfigDict()
    c.lora.rank = 0  # 0: off, all weights are trained; 16 with learning_rate 2e-4 is a usual start
    c.lora.alpha = 32.0
    c.lora.targets = ("q", "k", "v", "o", "gate", "up", "down")

    c.optim = ConfigDict()
    c.optim.learning_rate = 1e-6  # DAPO
    c.optim.schedule = "constant"
    c.optim.warmup_steps = 10  # DAPO
    c.optim.end_lr_ratio = 1.0
    c.optim.b1 = 0.9
    c.optim.b2 = 0.999
    c.optim.eps = 1e-8
    c.optim.weight_decay = 0.1  # DAPO
    c.optim.clip_norm = 1.0
    c.optim.accumulate = 1
    c.optim.rounding = "nearest"

    c.search = ConfigDict()
    c.search.kind = "bm25"
    c.search.index = "runs/index"
    c.search.url = ""
    c.search.top_k = 5
    c.search.max_passages = 5
    c.search.max_queries = 4
    c.search.timeout = 10.0
    c.search.workers = 16
    c.search.cache = ""
    c.search.replay = False
    c.search.exclude_source = False  # True: a masked paragraph is not found by its own searches

    c.rollout = ConfigDict()
    c.rollout.slots = 256
    c.rollout.decode_share = (0.25, 0.5, 0.75)  # more open than decode: some search
    c.rollout.max_len = 6144
    c.rollout.kv_tokens = 0  # 0: slots times max_len; less: opened as long as pages are free
    c.rollout.page_tokens = 128
    c.rollout.kv_dtype = "compute"
    c.rollout.attention = "auto"
    c.rollout.weights = "whole"
    c.rollout.tick_tokens = 64
    c.rollout.extend_tokens = 512
    c.rollout.chunk_tokens = 128
    c.rollout.max_turns = 4
    c.rollout.max_new_tokens = 1536
    c.rollout.max_turn_tokens = 0
    c.rollout.max_observation_tokens = 768
    c.rollout.answer_tokens = 256
    c.rollout.corrections = 1
    c.rollout.temperature = 1.0  # DAPO
    c.rollout.top_k = 0
    c.rollout.top_p = 1.0
    c.rollout.min_p = 0.0
    c.rollout.max_repeats = 16
    c.rollout.deadline = 600.0
    c.rollout.in_flight = "drop"
    c.rollout.max_staleness = 1
    c.rollout.seed = 0

    c.dapo = ConfigDict()
    c.dapo.steps = 400
    c.dapo.groups = 64
    c.dapo.group_size = 16  # DAPO
    c.dapo.minibatches = 4
    c.dapo.micro_batch = 0  # a row for each part of the mesh
    c.dapo.clip_low = 0.2  # DAPO
    c.dapo.clip_high = 0.28  # DAPO
    c.dapo.tis_cap = 2.0
    c.dapo.reward = "penalised"
    c.dapo.format_weight = 0.1
    c.dapo.length_penalty = 0.6  # above one half: a second guess costs more than it may win
    c.dapo.accuracy_threshold = 0.999
    c.dapo.max_refills = 10
    c.dapo.overlong_buffer = 256
    c.dapo.overlong_penalty = 1.0  # DAPO
    c.dapo.overlong_filter = False
    c.dapo.allow_filters = False
    c.dapo.oversample = 1.0
    c.dapo.curriculum = "0:ramp_upto1,100:ramp_upto2,200:ramp_upto3,300:ramp_upto4"
    c.dapo.split = "train"
    c.dapo.seed = 0

    c.checkpoint = ConfigDict()
    c.checkpoint.every = 10
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
    c.survival.compile_cache = "runs/programs"

    c.plan = ConfigDict()  # what `python -m masksearch_jax.plan` compiles this run for
    c.plan.topology = ""
    c.plan.slices = 1
    c.plan.improve = True
    c.plan.json = ""

    if arg.runlocal:
        c.dapo.steps, c.dapo.groups, c.dapo.group_size = 2, 2, 2
        c.dapo.minibatches, c.dapo.micro_batch, c.dapo.max_refills = 1, 2, 1
        c.dapo.overlong_buffer = 16
        c.dapo.curriculum = "0:ramp_upto1,1:ramp_upto4"
        c.compute.dtype = "float32"
        c.rollout.slots, c.rollout.max_len, c.rollout.max_new_tokens = 4, 768, 64
        c.rollout.tick_tokens, c.rollout.extend_tokens, c.rollout.chunk_tokens = 8, 64, 32
        c.rollout.answer_tokens = 16
        c.rollout.max_turns, c.rollout.max_observation_tokens = 1, 64
        c.checkpoint.every = 1
    return c

"""RAMP by SFT (MaskSearch): trajectories that fill 1, then up to 4 masked spans.

    python -m masksearch_jax.train_sft --config=configs/ramp_sft.py:qwen2.5-1.5b \\
        --config.init=PATH/Qwen2.5-1.5B --config.tokenizer=PATH/Qwen2.5-1.5B

The argument names a model of `configs.common.MODELS`; `,runlocal` makes it a smoke run. The paper
gives the curriculum's order and no training settings: every number here is ours.
"""

from ml_collections import ConfigDict

from configs import common


def get_config(arg: str = "") -> ConfigDict:
    arg = common.parse_arg(arg, model="qwen2.5-1.5b", runlocal=False)
    c = ConfigDict()
    c.workdir = "runs/ramp_sft"
    c.seed = 0
    c.data = "runs/ramp/cache"
    c.tokenizer = ""  # folder with tokenizer.json; needed
    c.init = ""  # HF or checkpoint folder to start from; empty: random weights
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

    c.lora = ConfigDict()
    c.lora.rank = 0  # 0: off, all weights are trained; 16 with learning_rate 2e-4 is a usual start
    c.lora.alpha = 32.0
    c.lora.targets = ("q", "k", "v", "o", "gate", "up", "down")

    c.optim = ConfigDict()
    c.optim.learning_rate = 1e-5
    c.optim.schedule = "cosine"
    c.optim.warmup_steps = 100
    c.optim.end_lr_ratio = 0.1
    c.optim.b1 = 0.9
    c.optim.b2 = 0.95
    c.optim.eps = 1e-8
    c.optim.weight_decay = 0.01
    c.optim.clip_norm = 1.0
    c.optim.accumulate = 1
    c.optim.rounding = "nearest"

    c.sft = ConfigDict()
    c.sft.batch_size = 128
    c.sft.seq_len = 4096
    c.sft.steps = 4000
    c.sft.other_loss_weight = 0.0  # observations are the tool's words, never learned
    c.sft.curriculum = (
        "0:ramp_sft_upto1,1000:ramp_sft_upto2,2000:ramp_sft_upto3,3000:ramp_sft_upto4"
    )
    c.sft.log_every = 10
    c.sft.seed = 0

    c.checkpoint = ConfigDict()
    c.checkpoint.every = 200
    c.checkpoint.keep = 2
    c.checkpoint.keep_every = 0
    c.checkpoint.best_metric = ""
    c.checkpoint.best_mode = "min"
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
        c.sft.batch_size, c.sft.seq_len, c.sft.steps, c.sft.log_every = 2, 768, 4, 1
        c.sft.curriculum = "0:ramp_sft_upto1,2:ramp_sft_upto4"
        c.compute.dtype = "float32"
        c.checkpoint.every = 2
    return c

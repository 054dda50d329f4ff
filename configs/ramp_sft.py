"""RAMP by SFT (MaskSearch): trajectories that fill 1, then up to 4 masked spans.

    python -m masksearch_jax.train_sft --config=configs/ramp_sft.py:qwen2.5-1.5b \\
        --config.init=PATH/Qwen2.5-1.5B --config.tokenizer=PATH/Qwen2.5-1.5B

The argument names a model of `configs.common.MODELS`, or `hf` for the architecture of the folder
`config.init`, or an HF folder by its path; `,runlocal` makes it a smoke run; `,rl-sft` or another
cell of `configs.common.CELLS` makes it a stage of that cell (launch/cells.sh). The paper gives the
curriculum's order and no training settings: every number here is ours.
"""

from ml_collections import ConfigDict

from configs import common


def settings(arg: str) -> ConfigDict:
    arg = common.parse_arg(arg, model="qwen2.5-1.5b", runlocal=False, **common.cells())
    c = ConfigDict()
    c.workdir = "runs/ramp_sft"
    c.data = "runs/ramp/cache"  # what build_cache writes
    c.model = common.model(arg.model)

    c.compute = ConfigDict()
    c.compute.remat = "block"  # memory before time: rows of 4096 tokens

    c.optim = ConfigDict()
    c.optim.learning_rate = 1e-5
    c.optim.warmup_steps = 100

    c.sft = ConfigDict()
    c.sft.steps = 4000
    c.sft.curriculum = (
        "0:ramp_sft_upto1,1000:ramp_sft_upto2,2000:ramp_sft_upto3,3000:ramp_sft_upto4"
    )

    c.search = common.search(arg.runlocal)

    c.checkpoint = ConfigDict()
    c.checkpoint.every = 200
    c.checkpoint.best_mode = "min"  # of the loss, where best_metric names it

    c.survival = ConfigDict()
    c.survival.compile_cache = "runs/programs"  # a run that starts again compiles nothing

    if arg.runlocal:
        c.sft.batch_size, c.sft.seq_len, c.sft.steps, c.sft.log_every = 2, 768, 4, 1
        c.sft.curriculum = "0:ramp_sft_upto1,2:ramp_sft_upto4"
        c.compute.dtype = "float32"
        c.checkpoint.every = 2
    return c


def get_config(arg: str = "") -> ConfigDict:
    return common.in_cell(settings(arg), arg, "ramp_sft")

"""RAMP by DAPO with live search (MaskSearch), from 1 to 4 masked spans.

    python -m masksearch_jax.train_dapo --config=configs/ramp_dapo.py:qwen2.5-1.5b \\
        --config.tokenizer=PATH/Qwen2.5-1.5B-Instruct

Starts from what ramp_sft trained; with `--config.init=PATH/Qwen2.5-1.5B-Instruct`, from there.

The argument is as in ramp_sft. Values marked DAPO are those of arXiv 2503.14476, as are the
defaults of group_size, clip range, overlong penalty and temperature; the MaskSearch paper gives
none, so that every other number here is ours.
"""

from ml_collections import ConfigDict

from configs import common


def settings(arg: str) -> ConfigDict:
    arg = common.parse_arg(arg, model="qwen2.5-1.5b", runlocal=False, **common.cells())
    c = ConfigDict()
    c.workdir = "runs/ramp_dapo"
    c.data = "runs/ramp/cache"  # what build_cache writes
    c.init = "runs/ramp_sft/checkpoints"
    c.model = common.model(arg.model)

    c.compute = ConfigDict()
    c.compute.remat = "block"  # memory before time: rows of rollout.max_len tokens

    c.optim = ConfigDict()
    c.optim.learning_rate = 1e-6  # DAPO
    c.optim.schedule = "constant"  # DAPO
    c.optim.end_lr_ratio = 1.0
    c.optim.b2 = 0.999
    c.optim.weight_decay = 0.1  # DAPO

    c.dapo = ConfigDict()
    c.dapo.steps = 400
    c.dapo.reward = "penalised"  # an answer is the whole paragraph: excess words are a hack
    c.dapo.curriculum = "0:ramp_upto1,100:ramp_upto2,200:ramp_upto3,300:ramp_upto4"

    c.search = common.search(arg.runlocal)

    c.checkpoint = ConfigDict()
    c.checkpoint.every = 10

    c.survival = ConfigDict()
    c.survival.compile_cache = "runs/programs"  # a run that starts again compiles nothing

    if arg.runlocal:
        c.dapo.steps, c.dapo.groups, c.dapo.group_size = 2, 2, 2
        c.dapo.minibatches, c.dapo.micro_batch, c.dapo.max_refills = 1, 2, 1
        c.dapo.overlong_buffer = 16
        c.dapo.patience = 0  # a model that can do nothing has no group with spread
        c.dapo.curriculum = "0:ramp_upto1,1:ramp_upto4"
        c.compute.dtype = "float32"
        c.rollout = common.smoke_rollout()
        c.checkpoint.every = 1
    return c


def get_config(arg: str = "") -> ConfigDict:
    return common.in_cell(settings(arg), arg, "ramp_dapo")

"""Multi-hop QA by SFT, the second stage (MaskSearch): start from what ramp_sft trained.

    python -m masksearch_jax.train_sft --config=configs/qa_sft.py:qwen2.5-1.5b \\
        --config.tokenizer=PATH/Qwen2.5-1.5B

`ramp_sft` with other data, fewer steps and one mixture. The paper gives no training settings: every
number here is ours.
"""

from ml_collections import ConfigDict

from configs import common, ramp_sft


def get_config(arg: str = "") -> ConfigDict:
    c = ramp_sft.settings(arg)
    c.workdir = "runs/qa_sft"
    c.init = "runs/ramp_sft/checkpoints"  # the first stage
    c.sft.curriculum = "0:qa_sft_mixed"
    c.sft.steps = min(c.sft.steps, 1000)  # there is less of it; a smoke run has fewer
    c.optim.warmup_steps = 30
    return common.in_cell(c, arg, "qa_sft")

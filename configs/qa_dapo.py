"""Multi-hop QA by DAPO, the second stage (MaskSearch): start from what ramp_dapo trained.

    python -m masksearch_jax.train_dapo --config=configs/qa_dapo.py:qwen2.5-1.5b \\
        --config.tokenizer=PATH/Qwen2.5-1.5B-Instruct

`ramp_dapo` with other data, one mixture and a reward that other answers cannot win.
"""

from ml_collections import ConfigDict

from configs import common, ramp_dapo


def get_config(arg: str = "") -> ConfigDict:
    c = ramp_dapo.settings(arg)
    c.workdir = "runs/qa_dapo"
    c.init = "runs/ramp_dapo/checkpoints"  # the first stage
    c.dapo.curriculum = "0:qa_mixed"
    c.dapo.steps = min(c.dapo.steps, 200)  # there is less of it; a smoke run has fewer
    return common.in_cell(c, arg, "qa_dapo")

"""A checkpoint on the evaluation suites, with and without search.

    python -m masksearch_jax.evaluate --config=configs/evaluate.py:qwen2.5-1.5b \\
        --config.tokenizer=PATH/Qwen2.5-1.5B-Instruct

By default of what ramp_dapo trained. Sampled at temperature 1, seeded: the same command gives the
same figures. The argument is as in ramp_sft.
"""

from ml_collections import ConfigDict

from configs import common


def get_config(arg: str = "") -> ConfigDict:
    arg = common.parse_arg(arg, model="qwen2.5-1.5b", runlocal=False)
    c = ConfigDict()
    c.workdir = "runs/evaluate"
    c.data = "runs/ramp"  # holds ramp/heldout.jsonl, questions/heldout.jsonl
    c.init = "runs/ramp_dapo/checkpoints"
    c.model = common.model(arg.model)

    c.rollout = ConfigDict()
    if arg.runlocal:
        c.eval = ConfigDict()
        c.eval.examples, c.eval.baseline_examples, c.eval.bootstrap = 4, 4, 100
        c.compute = ConfigDict()
        c.compute.dtype = "float32"
        c.rollout = common.smoke_rollout()
    c.rollout.temperature = 0.0  # eval.temperature is in its place
    return c

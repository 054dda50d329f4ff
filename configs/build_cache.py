"""RAMP examples, questions and demonstrations to the tokenised records that training reads.

    python -m masksearch_jax.build_cache --config=configs/build_cache.py \\
        --config.folder=runs/ramp --config.tokenizer=PATH/Qwen2.5-1.5B

The tokenizer and the prompt's style must be those of the run that reads the cache.
"""

from ml_collections import ConfigDict

from configs import common


def get_config(arg: str = "") -> ConfigDict:
    arg = common.parse_arg(arg, runlocal=False)
    c = ConfigDict()
    c.folder = "runs/ramp"
    c.cache = c.get_ref("folder") + "/cache"
    if arg.runlocal:
        c.max_len, c.max_prompt_len = 768, 576
    return c

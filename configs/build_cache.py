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
    c.folder = "runs/ramp"  # holds ramp/, questions/ or demonstrations/, JSONL by split
    c.cache = "runs/ramp/cache"
    c.tasks = ""  # regular expression of tasks, or of TASK-SPLITs; empty: all
    c.tokenizer = ""  # folder with tokenizer.json; needed
    c.temperatures = ()  # (1.0, 2.0) adds mixtures M_t1 and M_t2, rates examples ** (1/T)
    c.max_len = 4096
    c.max_prompt_len = 1024

    c.prompt = ConfigDict()
    c.prompt.style = "chat"

    if arg.runlocal:
        c.max_len, c.max_prompt_len = 768, 576
    return c

"""A checkpoint to a Hugging Face folder; the argument names its model.

    python -m masksearch_jax.export_hf --config=configs/export_hf.py:qwen2.5-1.5b \\
        --config.tokenizer=PATH/Qwen2.5-1.5B-Instruct
    ... --config=configs/export_hf.py:hf --config.checkpoint=RUN/checkpoints --config.tokenizer=PATH
    ... --config=configs/export_hf.py:hf --config.checkpoint=MODEL.gguf       a model as it is

`hf` reads the architecture from what `checkpoint` names.
"""

from ml_collections import ConfigDict

from configs import common


def get_config(arg: str = "") -> ConfigDict:
    arg = common.parse_arg(arg, model="qwen2.5-1.5b")
    c = ConfigDict()
    c.checkpoint = "runs/ramp_dapo/checkpoints"
    c.folder = "runs/ramp_dapo/export"
    c.model = common.model(arg.model)
    return c

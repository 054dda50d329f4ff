"""A checkpoint to a Hugging Face folder; the argument names its model.

    python -m masksearch_jax.export_hf --config=configs/export_hf.py:qwen2.5-1.5b \\
        --config.tokenizer=PATH/Qwen2.5-1.5B-Instruct
"""

from ml_collections import ConfigDict

from configs import common


def get_config(arg: str = "") -> ConfigDict:
    arg = common.parse_arg(arg, model="qwen2.5-1.5b")
    c = ConfigDict()
    c.checkpoint = "runs/ramp_dapo/checkpoints"
    c.base = ""  # where that holds adapters: their base model; empty: where they say it is
    c.step = -1  # the latest
    c.folder = "runs/ramp_dapo/export"
    c.tokenizer = ""  # folder whose tokenizer files are copied; needed
    c.dtype = "bfloat16"  # stored: as the checkpoint has them, or the base of its adapters
    c.max_shard_gigabytes = 5.0
    c.reload = "auto"  # with transformers where torch is installed, else against the table

    c.card = ConfigDict()  # for the README.md of the folder; empty: left to whoever publishes it
    c.card.base_model = ""
    c.card.stage = "RAMP: SFT, then DAPO"
    c.card.dataset = ""
    c.card.license = ""

    c.mesh = ConfigDict()  # a parameter lies on all devices while it is written
    c.mesh.data = 1
    c.mesh.fsdp = -1
    c.mesh.context = 1
    c.mesh.tensor = 1

    c.model = common.model(arg.model)
    return c

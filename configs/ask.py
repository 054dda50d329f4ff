"""One question to a trained agent; what it searches for is shown as it does.

    python -m masksearch_jax.ask --config=configs/ask.py --config.question="..."
    ... --config=configs/ask.py:chat --config.init=FOLDER      of a model trained on chat prompts

By default the agent of the quickstart. The prompt's style must be that of the training.
"""

from ml_collections import ConfigDict

from configs import common


def get_config(arg: str = "") -> ConfigDict:
    arg = common.parse_arg(arg, chat=False)
    c = ConfigDict()
    c.init = "runs/ramp_dapo/export" if arg.chat else "runs/quickstart/hf"

    c.compute = ConfigDict()
    c.compute.param_dtype = "bfloat16" if arg.chat else "float32"
    c.compute.loss_chunk = 1024

    c.search = ConfigDict()
    c.search.workers = 1

    c.rollout = ConfigDict()
    c.rollout.slots = 1
    c.rollout.decode_share = (1.0,)
    c.rollout.page_tokens = 64
    c.rollout.temperature = 0.0  # what it finds most likely
    c.rollout.answer_tokens = c.rollout.corrections = c.rollout.max_repeats = 0
    c.rollout.deadline = 0.0

    if not arg.chat:  # as the quickstart's agent was trained
        c.prompt = ConfigDict()
        c.prompt.style = "minimal"
        c.compute.dtype = "float32"
        c.search.index = "runs/quickstart/index"
        c.search.top_k = c.search.max_passages = c.search.max_queries = 2
        c.rollout.max_len, c.rollout.max_new_tokens = 320, 192
        c.rollout.tick_tokens, c.rollout.extend_tokens, c.rollout.chunk_tokens = 16, 64, 32
        c.rollout.max_turns, c.rollout.max_observation_tokens = 2, 128
    return c

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
    c.init = "runs/quickstart/hf"  # HF folder
    c.base = ""  # where init holds adapters: their base model; empty: where they say it is
    c.question = ""  # or a paragraph with [mask] in it; needed
    c.tokenizer = ""  # empty: that of init

    c.compute = ConfigDict()
    c.compute.dtype = "float32"
    c.compute.param_dtype = "float32"
    c.compute.attention = "xla"
    c.compute.remat = "none"
    c.compute.loss_chunk = 1024

    c.mesh = ConfigDict()
    c.mesh.data = 1
    c.mesh.fsdp = -1
    c.mesh.context = 1
    c.mesh.tensor = 1

    c.prompt = ConfigDict()
    c.prompt.style = "minimal"

    c.search = ConfigDict()
    c.search.kind = "bm25"
    c.search.index = "runs/quickstart/index"
    c.search.url = ""
    c.search.top_k = 2
    c.search.max_passages = 2
    c.search.max_queries = 2
    c.search.timeout = 10.0
    c.search.workers = 1
    c.search.cache = ""
    c.search.replay = False
    c.search.exclude_source = False  # a question is of no passage

    c.rollout = ConfigDict()
    c.rollout.slots = 1
    c.rollout.decode_share = (1.0,)
    c.rollout.max_len = 320
    c.rollout.kv_tokens = 0
    c.rollout.page_tokens = 64
    c.rollout.kv_dtype = "compute"
    c.rollout.attention = "auto"
    c.rollout.weights = "whole"
    c.rollout.tick_tokens = 16
    c.rollout.extend_tokens = 64
    c.rollout.chunk_tokens = 32
    c.rollout.max_turns = 2
    c.rollout.max_new_tokens = 192
    c.rollout.max_turn_tokens = 0
    c.rollout.max_observation_tokens = 128
    c.rollout.answer_tokens = 0
    c.rollout.corrections = 0
    c.rollout.temperature = 0.0
    c.rollout.top_k = 0
    c.rollout.top_p = 1.0
    c.rollout.min_p = 0.0
    c.rollout.max_repeats = 0
    c.rollout.deadline = 0.0
    c.rollout.in_flight = "drop"
    c.rollout.max_staleness = 1
    c.rollout.seed = 0

    if arg.chat:
        c.init = "runs/ramp_dapo/export"
        c.prompt.style = "chat"
        c.compute.dtype = c.compute.param_dtype = "bfloat16"
        c.search.index = "runs/index"
        c.search.top_k, c.search.max_passages, c.search.max_queries = 5, 5, 4
        c.rollout.max_len, c.rollout.max_new_tokens = 6144, 1536
        c.rollout.tick_tokens, c.rollout.extend_tokens, c.rollout.chunk_tokens = 64, 512, 128
        c.rollout.max_turns, c.rollout.max_observation_tokens = 4, 768
    return c

"""A model as an HTTP service for OpenAI-compatible clients.

    python -m masksearch_jax.serve_model --config=configs/serve_model.py --config.init=FOLDER

The agents reach it with `llm.base_url=http://HOST:8000/v1` and `llm.model`, the name of the folder.
All replies are sampled alike: a client asks for `rollout.temperature` or for none.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    c = ConfigDict()
    c.init = "Qwen2.5-1.5B-Instruct"  # HF folder, or one of checkpoints
    c.base = ""  # where init holds adapters: their base model; empty: where they say it is
    c.tokenizer = ""  # empty: that of init
    c.name = ""  # what clients call the model; empty: as the folder init is called
    c.host = "127.0.0.1"
    c.port = 8000
    c.deadline = 600.0  # seconds of a request, its wait for a slot included
    c.grace = 20.0  # seconds that requests in flight have once it is told to stop

    c.compute = ConfigDict()
    c.compute.dtype = "bfloat16"
    c.compute.param_dtype = "bfloat16"
    c.compute.attention = "xla"
    c.compute.remat = "none"
    c.compute.loss_chunk = 2048

    c.mesh = ConfigDict()
    c.mesh.data = 1
    c.mesh.fsdp = -1
    c.mesh.context = 1
    c.mesh.tensor = 1

    c.rollout = ConfigDict()
    c.rollout.slots = 16  # replies decoded at once; further requests wait
    # With (0.25, 1.0) a few requests are decoded faster, and the text of a seed may depend on how
    # many there are.
    c.rollout.decode_share = (1.0,)
    c.rollout.max_len = 8192  # tokens of a conversation with its reply
    c.rollout.kv_tokens = 0
    c.rollout.page_tokens = 128
    c.rollout.kv_dtype = "compute"
    c.rollout.attention = "auto"
    c.rollout.weights = "whole"
    c.rollout.tick_tokens = 16  # a new request is taken up after as many
    c.rollout.extend_tokens = 512
    c.rollout.chunk_tokens = 128
    c.rollout.max_new_tokens = 1024  # of a reply; a client may ask for fewer
    c.rollout.temperature = 0.7
    c.rollout.top_k = 0
    c.rollout.top_p = 1.0
    c.rollout.min_p = 0.0
    c.rollout.deadline = 0.0
    c.rollout.in_flight = "keep"
    c.rollout.max_staleness = 1
    c.rollout.seed = 0

    # Of trajectories with searches; no reply is one.
    c.rollout.max_turns = 0
    c.rollout.max_turn_tokens = 0
    c.rollout.max_observation_tokens = 0
    c.rollout.answer_tokens = 0
    c.rollout.corrections = 0
    c.rollout.max_repeats = 0
    return c

"""A model as an HTTP service for OpenAI-compatible clients.

    python -m masksearch_jax.serve_model --config=configs/serve_model.py --config.init=FOLDER

The agents reach it with `llm.base_url=http://HOST:8000/v1` and `llm.model`, the name of the folder.
All replies are sampled alike: a client asks for `rollout.temperature` or for none.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    c = ConfigDict()
    c.init = "Qwen2.5-1.5B-Instruct"

    c.compute = ConfigDict()
    c.compute.param_dtype = "bfloat16"  # nothing is trained

    c.rollout = ConfigDict()
    c.rollout.slots = 16  # replies decoded at once; further requests wait
    # With (0.25, 1.0) a few requests are decoded faster, and the text of a seed may depend on how
    # many there are.
    c.rollout.decode_share = (1.0,)
    c.rollout.max_len = 8192  # tokens of a conversation with its reply
    c.rollout.tick_tokens = 16  # a new request is taken up after as many
    c.rollout.max_new_tokens = 1024  # of a reply; a client may ask for fewer
    c.rollout.temperature = 0.7
    c.rollout.deadline = 0.0  # `deadline` is a request's
    c.rollout.in_flight = "keep"  # requests come as others end

    # Of trajectories with searches; no reply is one.
    c.rollout.max_turns = c.rollout.max_observation_tokens = c.rollout.answer_tokens = 0
    c.rollout.corrections = c.rollout.max_repeats = 0
    return c

"""A model as an HTTP service for OpenAI-compatible clients.

    python -m masksearch_jax.serve_model --config=configs/serve_model.py --config.init=FOLDER

The agents reach it with `llm.base_url=http://HOST:8000/v1` and `llm.model`, the name of the folder.
With `--config.agent=True` NAME:agent answers by live search, as its folder says it was trained to.
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
    c.rollout.tick_tokens = 16  # a new request is taken up after as many
    c.rollout.temperature = 0.7  # of requests that name none
    c.rollout.deadline = 0.0  # `deadline` is a request's
    c.rollout.in_flight = "keep"  # requests come as others end
    return c

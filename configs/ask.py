"""Questions to a trained agent, whose searches are shown as it makes them.

    python -m masksearch_jax.ask --config=configs/ask.py --config.init=FOLDER

By default the agent of the quickstart. How an agent was trained to be asked stands in its folder,
and what is given here or on the command line comes before it.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    c = ConfigDict()
    c.init = "runs/quickstart/hf"

    c.search = ConfigDict()
    c.search.workers = 1

    c.rollout = ConfigDict()
    c.rollout.slots = 1
    c.rollout.decode_share = (1.0,)
    c.rollout.page_tokens = 64
    c.rollout.tick_tokens = 8  # what it says is shown after as many
    c.rollout.temperature = 0.0  # what it finds most likely
    c.rollout.deadline = 0.0
    return c

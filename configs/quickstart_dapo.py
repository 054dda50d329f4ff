"""DAPO from a stage of the quickstart on: to try a reward or a switch with a model that can search.

    python -m masksearch_jax.train_dapo --config=configs/quickstart_dapo.py \\
        --config.dapo.reward=examples.my_reward:reward

Model, prompts, search and rollouts are those of the quickstart, whose folder is `runs/quickstart`.
It starts from the model that SFT has taught to fill up to two masks, on articles that SFT has not
seen. `questions` as the argument is the second stage: two-hop questions and masked paragraphs.
"""

from ml_collections import ConfigDict

from configs import common, quickstart


def get_config(arg: str = "") -> ConfigDict:
    arg = common.parse_arg(arg, questions=False)
    made = quickstart.get_config()
    c = ConfigDict()
    c.workdir = "runs/quickstart_dapo"
    c.data = f"{made.workdir}/cache"
    c.tokenizer = f"{made.workdir}/tokenizer"
    c.init = f"{made.workdir}/{'qa_sft' if arg.questions else 'ramp_sft'}/checkpoints"
    c.model, c.mesh = made.model, made.mesh
    c.prompt, c.compute, c.rollout = made.prompt, made.compute, made.rollout
    c.search = made.search
    c.search.index = f"{made.workdir}/index"
    c.dapo = made.qa_dapo if arg.questions else made.dapo
    c.optim = made.qa_dapo_optim if arg.questions else made.dapo_optim
    c.dapo.steps = 10
    c.checkpoint = made.checkpoint
    return c

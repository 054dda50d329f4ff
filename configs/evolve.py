"""Three iterations of self-evolution of a small model on the atlas of facts, on two CPU cores.

    python -m masksearch_jax.evolve --config=configs/evolve.py
    ... --config.corpus.path=wiki.jsonl        JSONL of id, title, text instead of the atlas
    ... --config.evolve.teacher=agents --config.llm.base_url=http://HOST:8000/v1
    ... --config.evolve.judge=llm

`:qwen2.5-1.5b` names the architecture, with its `init` and `tokenizer`, and `:hf` reads it from
`init`; `:runlocal` is a smoke run. The paper publishes none of these numbers: they are ours.
"""

from ml_collections import ConfigDict

from configs import common, quickstart


def get_config(arg: str = "") -> ConfigDict:
    arg = common.parse_arg(arg, model="tiny", runlocal=False)
    c = quickstart.small(arg.model)
    c.workdir = "runs/evolve"
    c.evolve = ConfigDict()
    c.evolve.thoughts = "short"  # the model is small and its context short
    c.ramp.rl_fraction = 0.6  # the students sample on these articles, the teacher on the others

    # ---- SFT: the first student on the teacher's demonstrations, then each on all so far -------
    first = "0:ramp_sft_upto1,200:ramp_sft_upto2"
    c.first_sft = quickstart.small_sft(800, first, seq_len=224)
    c.first_optim = quickstart.small_optim(3e-3, warmup_steps=30)
    c.sft = quickstart.small_sft(250, "0:ramp_sft_mixed", seq_len=224)
    c.optim = quickstart.small_optim(1e-3, warmup_steps=10)

    # ---- evaluation, checkpoints, report ------------------------------------------------------
    c.eval.suites = ("ramp",)
    c.eval.methods = ("agent",)
    c.eval.examples = 600
    c.checkpoint.keep = 1

    if arg.runlocal:
        c.corpus = ConfigDict()
        c.corpus.limit, c.ramp.max_examples, c.tokenizer_vocab_size = 300, 600, 512
        c.model.hidden_size, c.model.intermediate_size, c.model.head_dim = 64, 128, 16
        c.model.num_layers, c.compute.remat = 2, "none"
        c.evolve.iterations, c.evolve.seed_examples, c.evolve.pool_size = 1, 40, 8
        c.evolve.samples = 2
        c.evolve.rules = ConfigDict()
        c.evolve.rules.min_recall, c.evolve.rules.grounded = 0.0, False
        c.first_sft.batch_size, c.first_sft.steps, c.first_sft.log_every = 4, 20, 10
        c.first_sft.curriculum = "0:ramp_sft_upto2"
        c.sft.batch_size, c.sft.steps, c.sft.log_every = 4, 4, 1
        c.rollout.slots, c.rollout.max_new_tokens = 8, 48
        c.eval.examples = 8
        c.eval.bootstrap, c.checkpoint.every = 50, 2
    return c

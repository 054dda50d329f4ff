"""A small model learns to search, from raw text to a report, on two CPU cores.

    python -m masksearch_jax.quickstart --config=configs/quickstart.py
    ... --config.control=True                  questions alone with as many updates, to compare with
    ... --config.corpus.path=wiki.jsonl        JSONL of id, title, text instead of the atlas

`:tools` adds a calculator and dates, and questions that want them beside search. `:runlocal` is a
smoke run: every stage, a handful of steps, nothing learned. Every number here is ours.
"""

from ml_collections import ConfigDict

from configs import common


def small(model: str) -> ConfigDict:
    """The atlas of facts, and a model that learns to search it on two CPU cores."""
    c = ConfigDict()
    c.ramp = ConfigDict()
    c.ramp.cities = 10_000
    c.ramp.max_words = 120
    c.ramp.heldout_fraction = 0.18

    c.search = ConfigDict()
    c.search.index = ""
    c.search.top_k = c.search.max_passages = 1  # an observation is one passage: rows stay short
    c.search.max_queries = 2
    c.search.workers = 2

    c.prompt = ConfigDict()
    c.prompt.style = "minimal"  # a small model learns no instructions

    c.tokenizer_vocab_size = 1024  # of few tokens, each is met often enough to be copied
    c.model = common.model(model)
    c.model.vocab_size = c.get_ref("tokenizer_vocab_size")

    c.compute = ConfigDict()
    c.compute.dtype = "float32"  # CPUs are slow at bfloat16
    c.compute.remat = "dots"
    c.compute.loss_chunk = 4096

    c.cpu_devices = 2  # each in a thread of its own: faster than one that splits every operation
    c.mesh = ConfigDict()
    c.mesh.data = -1
    c.mesh.fsdp = 1

    c.rollout = ConfigDict()
    c.rollout.slots = 64
    c.rollout.decode_share = (1.0,)  # one program: bit by bit the same, however long a search takes
    c.rollout.max_len = 224
    c.rollout.page_tokens = 56
    c.rollout.tick_tokens, c.rollout.extend_tokens, c.rollout.chunk_tokens = 16, 64, 32
    c.rollout.max_turns = 2
    c.rollout.max_new_tokens = 104
    c.rollout.max_observation_tokens = 96
    c.rollout.answer_tokens = c.rollout.corrections = c.rollout.max_repeats = 0
    c.rollout.deadline = 0.0

    c.eval = ConfigDict()
    c.eval.temperature = 0.6

    c.checkpoint = ConfigDict()
    c.checkpoint.every = 50
    return c


def small_sft(steps: int, curriculum: str, seq_len: int, batch_size: int = 12) -> ConfigDict:
    """Supervised fine-tuning of a small model."""
    c = ConfigDict()
    c.steps, c.curriculum, c.seq_len, c.batch_size = steps, curriculum, seq_len, batch_size
    c.context_loss_weight = 0.05  # reading has to be learned too
    return c


def small_optim(learning_rate: float, warmup_steps: int) -> ConfigDict:
    c = ConfigDict()
    c.learning_rate, c.warmup_steps = learning_rate, warmup_steps
    c.accumulate = 2  # what three rows a device touch stays in its core's cache
    return c


def small_dapo(steps: int, curriculum: str) -> ConfigDict:
    """DAPO of a small model."""
    c = ConfigDict()
    c.steps, c.curriculum = steps, curriculum
    c.reward = "penalised"  # what recall pays for, such as lists of guesses, is worth less than one
    c.groups, c.group_size = 12, 8
    c.minibatches = 1
    c.micro_batch = 16
    c.max_refills = 4
    c.overlong_buffer = 32
    c.split = "rl"
    return c


def small_dapo_optim() -> ConfigDict:
    c = ConfigDict()
    c.learning_rate, c.warmup_steps = 3e-4, 3
    c.b2, c.weight_decay = 0.99, 0.0
    return c


def get_config(arg: str = "") -> ConfigDict:
    arg = common.parse_arg(arg, model="tiny", tools=False, runlocal=False)
    c = small(arg.model)
    c.workdir = "runs/quickstart"
    c.ramp.rl_fraction = 0.25
    c.question_demonstrations = 6000
    c.thoughts = "short"  # the model is small and its context short
    c.rollout.max_len = 336  # a question's two searches take more room than a paragraph's

    # ---- RAMP by SFT: one mask, then up to two, so that RL has masks left to learn ------------
    c.sft = small_sft(800, "0:ramp_sft_upto1,200:ramp_sft_upto2", seq_len=288, batch_size=8)
    c.sft_optim = small_optim(3e-3, warmup_steps=30)

    # ---- RAMP by DAPO with live search, up to four masks, on articles that SFT has not seen ---
    c.dapo = small_dapo(30, "0:ramp_upto4")
    c.dapo_optim = small_dapo_optim()

    # ---- two-hop questions: SFT, then DAPO on questions that SFT has not seen -----------------
    c.qa_share = 0.8  # the rest are masked paragraphs, which it would forget
    c.qa_sft = small_sft(2000, "0:ramp_sft_qa_mixed", seq_len=288, batch_size=8)
    c.qa_sft_optim = small_optim(3e-3, warmup_steps=30)
    c.qa_dapo = small_dapo(24, "0:ramp_qa_mixed")
    c.qa_dapo_optim = small_dapo_optim()

    # ---- evaluation ---------------------------------------------------------------------------
    c.eval.suites = ("ramp", "questions", "source_hidden")
    c.eval.examples = 400
    c.eval.strata = "even"  # results by type need items of the rare types too

    if arg.tools:
        c.tools = ("calculate", "date")
        c.ramp.arithmetic = True
        c.rollout.max_turns = 3  # two searches, and a call for what the two passages do not say
        c.rollout.max_new_tokens, c.rollout.max_len = 128, 392
        for sft in (c.sft, c.qa_sft):
            sft.seq_len = 392

    if arg.runlocal:
        c.corpus = ConfigDict()
        c.corpus.limit = 300
        for sft in (c.sft, c.qa_sft):
            sft.batch_size, sft.steps, sft.log_every = 4, 6, 1
        c.sft.curriculum = "0:ramp_sft_upto1,3:ramp_sft_upto2"
        c.rollout.slots = 8
        for dapo in (c.dapo, c.qa_dapo):
            dapo.steps, dapo.groups, dapo.group_size, dapo.micro_batch = 2, 2, 4, 4
            dapo.max_refills = 1
            dapo.patience = 0  # a model that can do nothing has no group with spread
        c.eval.examples = 8
        c.eval.bootstrap = 100
        c.checkpoint.every = 2
    return c

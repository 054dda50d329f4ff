"""A pretrained language model learns to search: the quickstart's stages on real text and questions.

    python -m masksearch_jax.quickstart --config=configs/real.py \\
        --config.corpus.path=passages.jsonl.gz --config.corpus.questions=questions.jsonl.gz
    ... --config=configs/real.py:hf --config.init=FOLDER_OR_FILE.gguf       another model
    ... --config=configs/real.py:gpu                                        one NVIDIA H100 or H200

`launch/real.sh` installs SmolLM2-135M-Instruct and gives its file as `--config.init`. The sizes are
for two CPU cores and three hours, of which SFT takes most: a run took 168 minutes beside other work
(docs/results.md). Sizes of `:gpu` are an estimate for 15 minutes and ten times the tokens: no run
of it was made on a GPU. `:runlocal` is a smoke run. Switches and models go together, as in
`:hf,gpu`. Every number here is ours.
"""

from ml_collections import ConfigDict

from configs import common


def sft(steps: int, curriculum: str) -> ConfigDict:
    c = ConfigDict()
    c.steps, c.curriculum = steps, curriculum
    c.batch_size, c.seq_len = 1, 2048  # a row holds two or three trajectories
    c.log_every = 1  # an update takes many seconds: the watchdog is to see each
    return c


def dapo(steps: int, curriculum: str) -> ConfigDict:
    c = ConfigDict()
    c.steps, c.curriculum = steps, curriculum
    c.reward = "penalised"
    c.groups, c.group_size, c.minibatches = 4, 8, 1
    c.keep_by = "spread"  # few answers to real questions are wholly right
    c.max_refills, c.overlong_buffer = 1, 64
    c.split = "rl"
    return c


def optim(learning_rate: float, warmup_steps: int) -> ConfigDict:
    c = ConfigDict()
    c.learning_rate, c.warmup_steps = learning_rate, warmup_steps
    return c


def on_gpu(c: ConfigDict) -> None:
    """Ten times the tokens of each stage, for a model of some hundred million weights.

    A run that is killed loses at most five steps: seconds of SFT, about a minute of DAPO.
    """
    c.compute.dtype = "bfloat16"
    c.compute.attention = "xla"  # cudnn is faster; its updates were not yet compared with others
    c.compute.remat = "block"  # XLA's attention holds the scores of a layer, not of all
    c.compute.loss_chunk = 4096
    for part, steps in ((c.sft, 100), (c.qa_sft, 75)):
        part.steps, part.batch_size, part.log_every = steps, 16, 5
    c.sft.curriculum = "0:ramp_sft_upto1,25:ramp_sft_upto4"
    for part in (c.dapo, c.qa_dapo):
        part.steps, part.groups, part.micro_batch = 10, 12, 8
    c.ramp.max_examples, c.demonstrations = 24_000, 6000
    c.ramp.heldout_fraction = 0.25  # so that 300 of some thousand questions are held out

    c.rollout.slots = 256
    c.rollout.tick_tokens, c.rollout.extend_tokens = 32, 512
    c.rollout.chunk_rows, c.rollout.chunk_tokens = 8, 128
    c.search.workers = 8
    c.eval.examples = 300

    c.checkpoint.every = 5
    c.survival.compile_cache = "runs/programs"  # a run that starts again compiles nothing


def get_config(arg: str = "") -> ConfigDict:
    arg = common.parse_arg(arg, model="smollm2-135m", gpu=False, runlocal=False)
    c = ConfigDict()
    c.workdir = "runs/real"
    c.init = "SmolLM2-135M-Instruct.gguf" if arg.model == "smollm2-135m" else ""
    c.model = common.model(arg.model)

    c.corpus = ConfigDict()
    c.corpus.path = "passages.jsonl.gz"
    c.corpus.questions = "questions.jsonl.gz"

    c.clean = ConfigDict()  # as in build_ramp
    c.clean.prose, c.clean.duplicates, c.clean.max_drop = True, 0.8, 0.5

    c.ramp = ConfigDict()
    c.ramp.gazetteer = 1_000_000
    c.ramp.max_words = 110
    c.ramp.rl_fraction = 0.25
    c.ramp.max_examples = 12_000
    c.demonstrations = 3000

    c.search = ConfigDict()
    c.search.index = ""
    c.search.top_k = c.search.max_passages = c.search.max_queries = 2
    c.search.workers = 2

    c.prompt = ConfigDict()
    c.prompt.style = "chat"

    c.compute = ConfigDict()
    c.compute.dtype = "float32"  # CPUs are slow at bfloat16
    c.compute.attention = "blockwise"  # a row's texts do not see one another
    c.compute.remat = "dots"
    c.compute.loss_chunk = 512  # logits of 49,152 tokens each
    c.cpu_devices = 1  # a row is not divided

    # ---- RAMP, then questions, each by SFT and by DAPO ------------------------------------------
    c.sft = sft(160, "0:ramp_sft_upto1,40:ramp_sft_upto4")
    c.sft_optim = optim(3e-4, warmup_steps=10)
    c.dapo = dapo(3, "0:ramp_upto4")
    c.dapo_optim = optim(5e-6, warmup_steps=1)
    c.qa_share = 0.8  # the rest are masked paragraphs, which it would forget
    c.qa_sft = sft(120, "0:ramp_sft_qa_mixed")
    c.qa_sft_optim = optim(3e-4, warmup_steps=10)
    c.qa_dapo = dapo(3, "0:ramp_qa_mixed")
    c.qa_dapo_optim = optim(5e-6, warmup_steps=1)

    c.rollout = ConfigDict()
    c.rollout.slots = 16
    c.rollout.decode_share = (1.0,)
    c.rollout.max_len = 1536
    c.rollout.page_tokens = 128
    c.rollout.tick_tokens, c.rollout.extend_tokens = 16, 512
    # Prompts and observations are long, and few trajectories wait for theirs at once.
    c.rollout.chunk_rows, c.rollout.chunk_tokens = 1, 128
    c.rollout.max_turns = 2
    c.rollout.max_new_tokens = 512  # a demonstration of four masks has up to 465
    c.rollout.max_observation_tokens = 400
    c.rollout.answer_tokens = c.rollout.corrections = 0
    c.rollout.deadline = 0.0

    c.eval = ConfigDict()
    c.eval.suites = ("ramp", "questions")
    c.eval.methods = ("agent",)  # each further one, such as no_search, takes as long again
    c.eval.examples = 32
    c.eval.temperature = 0.0

    c.checkpoint = ConfigDict()
    c.checkpoint.every = 10
    c.checkpoint.keep = 1
    c.survival = ConfigDict()

    if arg.gpu:
        on_gpu(c)
    else:
        c.survival.step_seconds = 1800.0  # of a CPU that does other things too
    if arg.runlocal:
        c.corpus.limit, c.ramp.max_examples, c.demonstrations = 300, 40, 24
        for part in (c.sft, c.qa_sft):
            part.steps, part.seq_len, part.log_every = 2, 1536, 1
            part.batch_size = 1
        c.sft.curriculum = "0:ramp_sft_upto1"
        for part in (c.dapo, c.qa_dapo):
            part.steps, part.groups, part.group_size, part.max_refills = 1, 1, 2, 1
            part.micro_batch = 0
            part.patience = 0
        c.rollout.slots, c.rollout.max_new_tokens, c.dapo.overlong_buffer = 4, 32, 8
        c.qa_dapo.overlong_buffer = 8
        c.eval.examples = 2
        c.eval.bootstrap = 20
        c.checkpoint.every = 1
        c.report_trajectories = 2
    return c

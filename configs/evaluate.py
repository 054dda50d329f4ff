"""A checkpoint on the evaluation suites, with and without search.

    python -m masksearch_jax.evaluate --config=configs/evaluate.py:qwen2.5-1.5b \\
        --config.tokenizer=PATH/Qwen2.5-1.5B-Instruct

By default of what ramp_dapo trained. Sampled at temperature 1, seeded: the same command gives the
same figures.
"""

from ml_collections import ConfigDict

from configs import common


def get_config(arg: str = "") -> ConfigDict:
    arg = common.parse_arg(arg, model="qwen2.5-1.5b", runlocal=False)
    c = ConfigDict()
    c.workdir = "runs/evaluate"
    c.data = "runs/ramp"  # holds ramp/heldout.jsonl, questions/heldout.jsonl
    c.tokenizer = ""  # folder with tokenizer.json; needed
    c.init = "runs/ramp_dapo/checkpoints"  # HF or checkpoint folder
    c.base = ""  # where init holds adapters: their base model; empty: where they say it is

    c.model = common.model(arg.model)

    c.compute = ConfigDict()
    c.compute.dtype = "bfloat16"
    c.compute.param_dtype = "float32"
    c.compute.attention = "xla"
    c.compute.remat = "none"
    c.compute.loss_chunk = 2048

    c.mesh = ConfigDict()
    c.mesh.data = 1
    c.mesh.fsdp = -1
    c.mesh.context = 1
    c.mesh.tensor = 1

    c.prompt = ConfigDict()
    c.prompt.style = "chat"

    c.search = ConfigDict()
    c.search.kind = "bm25"
    c.search.index = "runs/index"
    c.search.url = ""
    c.search.top_k = 5
    c.search.max_passages = 5
    c.search.max_queries = 4
    c.search.timeout = 10.0
    c.search.workers = 16
    c.search.cache = ""
    c.search.replay = False
    c.search.exclude_source = False  # True: a masked paragraph is not found by its own searches

    c.rollout = ConfigDict()
    c.rollout.slots = 256
    c.rollout.decode_share = (0.25, 0.5, 0.75)  # more open than decode: some search
    c.rollout.max_len = 6144
    c.rollout.kv_tokens = 0  # 0: slots times max_len; less: opened as long as pages are free
    c.rollout.page_tokens = 128
    c.rollout.kv_dtype = "compute"
    c.rollout.attention = "auto"
    c.rollout.weights = "whole"
    c.rollout.tick_tokens = 64
    c.rollout.extend_tokens = 512
    c.rollout.chunk_tokens = 128
    c.rollout.max_turns = 4
    c.rollout.max_new_tokens = 1536
    c.rollout.max_turn_tokens = 0
    c.rollout.max_observation_tokens = 768
    c.rollout.answer_tokens = 256
    c.rollout.corrections = 1
    c.rollout.temperature = 0.0
    c.rollout.top_k = 0
    c.rollout.top_p = 1.0
    c.rollout.min_p = 0.0
    c.rollout.max_repeats = 16
    c.rollout.deadline = 600.0
    c.rollout.in_flight = "drop"
    c.rollout.max_staleness = 1
    c.rollout.seed = 0

    c.eval = ConfigDict()
    c.eval.suites = ("ramp", "two_hop")
    c.eval.conditions = ("search", "no_search", "random")
    c.eval.examples = 1000
    c.eval.baseline_examples = 200
    c.eval.temperature = 1.0
    c.eval.bootstrap = 1000
    c.eval.seed = 0
    c.eval.retries = 3  # of an item that ended for no fault of the model
    c.eval.max_tool_failures = 0.01  # share of such items, after that
    c.eval.max_bad_fraction = 0.01  # share of items that cannot be run

    if arg.runlocal:
        c.eval.examples, c.eval.baseline_examples, c.eval.bootstrap = 4, 4, 100
        c.compute.dtype = "float32"
        c.rollout.slots, c.rollout.max_len, c.rollout.max_new_tokens = 4, 768, 64
        c.rollout.tick_tokens, c.rollout.extend_tokens, c.rollout.chunk_tokens = 8, 64, 32
        c.rollout.answer_tokens = 16
        c.rollout.max_turns, c.rollout.max_observation_tokens = 1, 64
    return c

"""Examples to demonstrations: by a script, by LLM agents on an endpoint, or by a model of ours.

    python -m masksearch_jax.build_trajectories --config=configs/build_trajectories.py \\
        --config.folder=runs/ramp
    ... --config.teacher=agents --config.llm.base_url=http://HOST:8000/v1 --config.llm.model=NAME
    ... --config.teacher=local --config.student.init=runs/ramp_sft/checkpoints

The scripted teacher knows the masked spans; a trajectory is kept when what it read contains them.
Section `llm` is for the agents and for a judge, section `student` for teacher `local`;
`:qwen2.5-7b` names its architecture.
"""

from ml_collections import ConfigDict

from configs import common


def get_config(arg: str = "") -> ConfigDict:
    arg = common.parse_arg(arg, model="qwen2.5-1.5b", runlocal=False)
    c = ConfigDict()
    c.folder = "runs/ramp"  # holds ramp/train.jsonl, questions/train.jsonl or both
    c.kinds = ("ramp", "questions")
    c.teacher = "scripted"  # scripted | agents | local
    c.language = "en"  # of the agents' prompts: en | zh
    c.max_searches = 4
    c.demonstrations = 0  # kept of each kind, 0: all
    c.max_rejected = 1.0  # share of attempts without a demonstration; beyond it the job fails
    c.max_failed = 0.01  # share of attempts lost to an endpoint or a search that failed
    c.seed = 0

    c.search = ConfigDict()
    c.search.kind = "bm25"  # bm25 | http
    c.search.index = "runs/index"
    c.search.url = ""
    c.search.top_k = 3
    c.search.max_passages = 3
    c.search.max_queries = 3
    c.search.timeout = 10.0
    c.search.workers = 4
    c.search.cache = ""
    c.search.replay = False
    c.search.exclude_source = False  # True: a masked paragraph is not found by its own searches

    c.llm = common.llm()
    c.llm.cache = "runs/ramp/replies.sqlite"

    c.student = ConfigDict()
    c.student.init = "runs/ramp_sft/checkpoints"
    c.student.tokenizer = "Qwen2.5-1.5B-Instruct"
    c.student.samples = 4  # per example
    c.student.judge = "rules"  # llm: what the rules accept the LLM judge must accept too

    c.student.rules = ConfigDict()
    c.student.rules.min_recall = 1.0  # of the masked spans
    c.student.rules.grounded = True  # what it fills in must stand in what it has read

    c.student.model = common.model(arg.model)

    c.student.compute = ConfigDict()
    c.student.compute.dtype = "bfloat16"
    c.student.compute.param_dtype = "bfloat16"
    c.student.compute.attention = "xla"
    c.student.compute.remat = "none"
    c.student.compute.loss_chunk = 2048

    c.student.mesh = ConfigDict()
    c.student.mesh.data = 1
    c.student.mesh.fsdp = -1
    c.student.mesh.context = 1
    c.student.mesh.tensor = 1

    c.student.prompt = ConfigDict()
    c.student.prompt.style = "chat"

    c.student.rollout = ConfigDict()
    c.student.rollout.slots = 256
    c.student.rollout.decode_share = (0.25, 0.5, 0.75)
    c.student.rollout.max_len = 6144
    c.student.rollout.kv_tokens = 0
    c.student.rollout.page_tokens = 128
    c.student.rollout.attention = "auto"
    c.student.rollout.weights = "whole"
    c.student.rollout.kv_dtype = "compute"
    c.student.rollout.tick_tokens = 64
    c.student.rollout.extend_tokens = 512
    c.student.rollout.chunk_tokens = 128
    c.student.rollout.max_turns = 4
    c.student.rollout.max_new_tokens = 1536
    c.student.rollout.max_turn_tokens = 0
    c.student.rollout.max_observation_tokens = 768
    c.student.rollout.answer_tokens = 256
    c.student.rollout.corrections = 0  # a corrected trajectory is no demonstration
    c.student.rollout.temperature = 1.0
    c.student.rollout.top_k = 0
    c.student.rollout.top_p = 1.0
    c.student.rollout.min_p = 0.0
    c.student.rollout.max_repeats = 16
    c.student.rollout.deadline = 600.0
    c.student.rollout.in_flight = "drop"
    c.student.rollout.max_staleness = 1
    c.student.rollout.seed = 0

    if arg.runlocal:
        c.demonstrations = 50
        c.max_searches, c.search.top_k = 2, 1
    return c

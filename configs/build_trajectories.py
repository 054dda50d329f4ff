"""Examples to demonstrations: by a script, by LLM agents on an endpoint, or by a model of ours.

    python -m masksearch_jax.build_trajectories --config=configs/build_trajectories.py \\
        --config.folder=runs/ramp
    ... --config.teacher=agents --config.llm.base_url=http://HOST:8000/v1 --config.llm.model=NAME
    ... --config.teacher=local --config.student.init=runs/ramp_sft/checkpoints

The scripted teacher knows the masked spans; a trajectory is kept when what it read contains them.
Section `llm` is for the agents and for a judge, section `student` for teacher `local`; the argument
names its architecture as in ramp_sft.
"""

from ml_collections import ConfigDict

from configs import common


def get_config(arg: str = "") -> ConfigDict:
    arg = common.parse_arg(arg, model="qwen2.5-1.5b", runlocal=False)
    c = ConfigDict()
    c.folder = "runs/ramp"

    c.search = common.search(arg.runlocal)
    c.search.workers = 4

    c.llm = ConfigDict()
    c.llm.cache = "runs/ramp/replies.sqlite"

    c.student = ConfigDict()
    c.student.init = "runs/ramp_sft/checkpoints"
    c.student.tokenizer = "Qwen2.5-1.5B-Instruct"
    c.student.model = common.model(arg.model)
    c.student.compute = ConfigDict()
    c.student.compute.param_dtype = "bfloat16"  # nothing is trained
    c.student.rollout = ConfigDict()
    c.student.rollout.corrections = 0  # a corrected trajectory is no demonstration

    if arg.runlocal:
        c.demonstrations = 50
        c.max_searches = 2
    return c

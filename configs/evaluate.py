"""A model on suites, by several methods.

    python -m masksearch_jax.evaluate --config=configs/evaluate.py:qwen2.5-1.5b \\
        --config.tokenizer=PATH/Qwen2.5-1.5B-Instruct

    ... --config.eval.suites=hotpotqa=PATH,musique=PATH,ramp   files in their authors' form too
    ... --config.eval.methods=closed_book,rag,agent            rows of the paper's table 2
    ... --config.endpoint.base_url=URL --config.endpoint.model=NAME   a model behind an endpoint

By default of what ramp_dapo trained; with a cell in the argument, of what that cell trained
(launch/cells.sh). Sampled at temperature 1, seeded: with one program (rollout.decode_share of 1.0)
the same command gives the same figures. The argument is as in ramp_sft.
"""

from ml_collections import ConfigDict

from configs import common


def get_config(arg: str = "") -> ConfigDict:
    cell = common.cell_of(arg)
    arg = common.parse_arg(arg, model="qwen2.5-1.5b", runlocal=False, **common.cells())
    c = ConfigDict()
    c.workdir = f"runs/cells/eval/{cell}" if cell else "runs/evaluate"
    c.data = "runs/ramp"  # holds ramp/heldout.jsonl, questions/heldout.jsonl
    last = f"cells/{cell}/{common.CELLS[cell][-1]}" if cell else "ramp_dapo"
    c.init = f"runs/{last}/checkpoints"
    c.model = common.model(arg.model)

    c.rollout = ConfigDict()
    if arg.runlocal:
        c.eval = ConfigDict()
        c.eval.examples, c.eval.bootstrap = 4, 100
        c.compute = ConfigDict()
        c.compute.dtype = "float32"
        c.rollout = common.smoke_rollout()
    c.rollout.temperature = 0.0  # eval.temperature is in its place
    return c

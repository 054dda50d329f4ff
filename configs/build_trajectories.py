"""Training examples to the scripted teacher's demonstrations.

    python -m masksearch_jax.build_trajectories --config=configs/build_trajectories.py \\
        --config.folder=runs/ramp

The teacher knows the masked spans; a trajectory is kept when what it read contains them.
"""

from ml_collections import ConfigDict

from configs import common


def get_config(arg: str = "") -> ConfigDict:
    arg = common.parse_arg(arg, runlocal=False)
    c = ConfigDict()
    c.folder = "runs/ramp"  # holds ramp/train.jsonl, questions/train.jsonl or both
    c.kinds = ("ramp", "questions")
    c.max_searches = 4
    c.demonstrations = 0  # kept of each kind, 0: all
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

    if arg.runlocal:
        c.demonstrations = 50
        c.max_searches, c.search.top_k = 2, 1
    return c

"""A corpus of any size to the TFDS dataset `ramp/k1` … `ramp/k4`, through Apache Beam.

    python -m masksearch_jax.build_dataset --config=configs/build_dataset.py \\
        --config.corpus='wiki/*.jsonl.gz'

On a cluster: `--config.beam.runner=FlinkRunner --config.beam.options='--flink_master=HOST:8081 …'`;
corpus and folder must be where launcher and workers see them. `:runlocal` uses two processes.
"""

from ml_collections import ConfigDict

from configs import common


def get_config(arg: str = "") -> ConfigDict:
    arg = common.parse_arg(arg, runlocal=False)
    c = ConfigDict()
    c.folder = "runs/ramp_tfds"  # runs/ramp has the examples of build_ramp

    c.clean = ConfigDict()  # exact duplicates are dropped, near ones are build_ramp's to find
    c.clean.prose = True
    c.clean.max_drop = 0.5

    c.ramp = ConfigDict()
    c.ramp.cities = 0  # of the atlas, which is not used here

    if arg.runlocal:
        c.beam = ConfigDict()
        c.beam.options = "--direct_num_workers=2 --direct_running_mode=multi_processing"
    return c

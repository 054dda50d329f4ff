"""Examples and trajectories as plain files, for other stacks and for the Hugging Face hub.

    python -m masksearch_jax.export_data --config=configs/export_data.py --config.data=runs/ramp \\
        --config.runs=runs/evaluate
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    c = ConfigDict()
    c.folder = "runs/published"
    return c

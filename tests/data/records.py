"""Records of a cache."""

import numpy as np


def sft_records(task: str, count: int, seed: int):
    """Records whose ids tell them apart: no id occurs in two records."""
    rng = np.random.default_rng(seed)
    for i in range(count):
        size = int(rng.integers(5, 40))
        ids = (seed * 1_000_000 + i * 100 + np.arange(size)).astype(np.int32)
        yield {"id": f"{task}-{i}", "ids": ids, "agent": rng.random(size) < 0.5}

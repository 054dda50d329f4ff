"""A reward of your own: the answer's token F1, less a little for every search that it took.

    python -m masksearch_jax.train_dapo --config=configs/qa_dapo.py:qwen2.5-1.5b \\
        --config.tokenizer=Qwen2.5-1.5B-Instruct --config.dapo.reward=examples.my_reward:reward

A reward is a function of the example and of the finished trajectory. It returns a number, or named
numbers with `total`: `total` is what the policy is trained on, `accuracy` says which samples count
as right, and all others are logged. It is called from several threads; an `async def` runs in one.
"""

from __future__ import annotations

from masksearch_jax.core import markup, scoring
from masksearch_jax.core.types import Example, RampExample, Trajectory

SEARCH_COST = 0.02  # a search pays if it adds that much F1


def reward(example: Example, trajectory: Trajectory) -> dict[str, float]:
    """`f1` of the answer, of a masked paragraph the recall of its spans; `cost` of the searches."""
    answer = markup.extract_answer(trajectory.text_by("policy"))
    if not answer:
        f1 = 0.0
    elif isinstance(example, RampExample):
        f1 = scoring.span_recall(example, answer)
    else:
        f1 = scoring.strict_f1(answer, example.answers)
    cost = SEARCH_COST * len(trajectory.turns)
    return {"total": f1 - cost, "accuracy": f1, "f1": f1, "cost": cost}

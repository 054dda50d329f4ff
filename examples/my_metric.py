"""A measure of your own in evaluations: when the search that helped came, and what was shown.

    python -m masksearch_jax.evaluate --config=configs/evaluate.py:qwen2.5-1.5b \\
        --config.tokenizer=Qwen2.5-1.5B-Instruct --config.eval.metrics=examples.my_metric:searching

A measure is a function of the example and of the finished trajectory. It returns a number, which
has the function's name, or numbers by name. A name that it leaves out is in no mean of that item.
"""

from __future__ import annotations

from masksearch_jax.core.types import Example, RampExample, Trajectory


def searching(example: Example, trajectory: Trajectory) -> dict[str, float]:
    """`passages_shown`, and `source_search`, the number of the search that showed the source."""
    shown = [set(turn.passage_ids) for turn in trajectory.turns]
    found = {"passages_shown": float(len(set().union(*shown)))}
    wanted = {example.passage_id} if isinstance(example, RampExample) else set(example.gold)
    hits = [number for number, ids in enumerate(shown, 1) if ids & wanted]
    return found | ({"source_search": float(hits[0])} if hits else {})

"""A tool of one's own tried without a model: its instructions, a demonstration, a bad request.

    python -m examples.worked.own_tool

`examples/my_tool.py` converts lengths. The scripted teacher of `build_trajectories` reads the gold
passage of a question, and then calls what the question's field `calls` lists.
"""

from __future__ import annotations

import random

from examples.my_search import TitleSearch
from masksearch_jax.agents.scripted_teacher import demonstrate
from masksearch_jax.core.config import SearchConfig
from masksearch_jax.core.types import Passage, QAExample
from masksearch_jax.data.prompt import wording
from masksearch_jax.tools.registry import open_tools

PASSAGES = [
    Passage("marathon", "Marathon", "A marathon is a race of 26.2 miles."),
    Passage("sprint", "Sprint", "A sprint is a race of at most 400 m."),
]
QUESTION = QAExample(
    id="q1",
    dataset="made",
    question="How many km is a Marathon?",
    answers=("42.16 km",),
    gold=("marathon",),
    calls=("convert: 26.2 miles in km",),
)


def main() -> None:
    cfg = SearchConfig(top_k=1)
    tools = open_tools(["examples.my_tool:Lengths"], TitleSearch(PASSAGES), cfg)
    print(f"what the agent is told:\n{wording(QUESTION, 'chat', tools.instructions)}")
    demonstration = demonstrate(QUESTION, tools, random.Random(0))
    print("\nwhat it learns:")
    for segment in demonstration.segments:
        print(f"  {segment.author:6} {segment.text}")
    result = tools["convert"].call(["26.2 miles in parsecs"], hidden="")
    print(f"\nto a request that it cannot read:\n{result.texts[0]}")
    print(f"unreadable requests: {result.unreadable}")


if __name__ == "__main__":
    main()

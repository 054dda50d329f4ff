"""Faults of a trajectory's turns, and what they add to the advantage of the turns' own tokens.

A turn is what the policy sampled between two texts of the tool; where it sampled nothing there is
none. The terms are ours: with weight 0, the default, they are counted and add nothing.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence

import numpy as np

from masksearch_jax.core import markup
from masksearch_jax.core.reward_config import RewardConfig
from masksearch_jax.core.types import SEARCH, SEARCH_ALONE, Trajectory, Turn

# Name of a fault → the key of its weight.
WEIGHTS = {
    "no_answer": "no_answer_penalty",
    "no_search": "no_search_penalty",
    "malformed_turn": "malformed_turn_penalty",
    "repeated_query": "repeated_query_penalty",
    "unreadable_call": "unreadable_call_penalty",
}


def texts(trajectory: Trajectory) -> list[str]:
    """The policy's text of each turn; "" of one whose tokens are no text."""
    return [segment.text for segment in trajectory.segments if segment.author == "policy"]


def _runs(trajectory: Trajectory) -> list[slice]:
    """Where the tokens of each turn are in `ids`."""
    edges = np.flatnonzero(np.diff(trajectory.sampled.astype(np.int8), prepend=0, append=0))
    return [slice(int(first), int(end)) for first, end in edges.reshape(-1, 2)]


def faults(trajectory: Trajectory) -> Mapping[str, tuple[float, ...]]:
    """Of each fault, how much of it each turn has, in 0..1.

    no_answer: of the last turn of a trajectory that did not end with an answer. no_search: of the
    last turn where no turn searched, the last one included. malformed_turn: of a turn that is not
    an optional thought and one action. repeated_query: the share of a turn's queries that a turn
    before it asked. unreadable_call, where there are other tools than search: the share that its
    tool could not read.
    """
    turns = texts(trajectory)
    tools = trajectory.tools
    queries = [_queries(text, tools) for text in turns]
    last = [i == len(turns) - 1 for i in range(len(turns))]
    unanswered = trajectory.status != "answered"
    unsearched = not any(tool == SEARCH for asked in queries for tool, _ in asked)
    found = {
        "no_answer": tuple(float(end and unanswered) for end in last),
        "no_search": tuple(float(end and unsearched) for end in last),
        "malformed_turn": tuple(float(not markup.is_turn(text, tools)) for text in turns),
        "repeated_query": tuple(_repeated(queries)),
    }
    if tools != SEARCH_ALONE:
        found["unreadable_call"] = tuple(_unreadable(trajectory.turns, queries))
    return found


def _queries(text: str, tools: Sequence[str]) -> list[tuple[str, str]]:
    """What a turn asks, each with the tool that it asks."""
    return [(tool, q) for tool in tools for q in markup.parse_queries(text, sys.maxsize, tool)]


def _unreadable(calls: Sequence[Turn], queries: Sequence[Sequence[tuple[str, str]]]) -> list[float]:
    """Of each turn's queries the share that the tool could not read.

    A turn that was corrected made no call, and one without a query an empty one: the calls with
    queries are those of the other turns, in order.
    """
    left, found = [call for call in calls if call.queries], []
    for asked in queries:
        made = {(left[0].tool, query) for query in left[0].queries} if left else set()
        if made and made <= set(asked):
            call = left.pop(0)
            found.append(call.unreadable / len(call.queries))
        else:
            found.append(0.0)
    return found


def _repeated(queries: Sequence[Sequence[tuple[str, str]]]) -> list[float]:
    before: set[tuple[str, str]] = set()
    found = []
    for asked in queries:
        plain = [(tool, " ".join(query.casefold().split())) for tool, query in asked]
        found.append(sum(query in before for query in plain) / max(len(plain), 1))
        before.update(plain)
    return found


def totals(faults: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """How much of each fault a trajectory has, summed over its turns; to be logged."""
    return {name: float(sum(each)) for name, each in faults.items()}


def terms(faults: Mapping[str, Sequence[float]], cfg: RewardConfig) -> tuple[float, ...]:
    """What each turn adds to the advantage of its tokens: minus weight times fault, summed."""
    weighted = [[-getattr(cfg, WEIGHTS[name]) * x for x in each] for name, each in faults.items()]
    return tuple(map(sum, zip(*weighted, strict=True)))


def per_token(trajectory: Trajectory, added: Sequence[float]) -> np.ndarray:
    """float32[T]: each turn's term on the tokens that it sampled, 0 elsewhere."""
    found = np.zeros(len(trajectory.ids), np.float32)
    for run, term in zip(_runs(trajectory), added, strict=False):  # no terms: all are 0
        found[run] = term
    return found

"""ATIF v1.7: trajectories come back token by token, and the published rules hold."""

import json

import numpy as np
import pytest
from pydantic import ValidationError

from masksearch_jax.core import atif, markup
from masksearch_jax.core.atif_schema import Document
from masksearch_jax.core.types import QueryRecord, Segment, Trajectory, Turn

FOUND = (QueryRecord(("p1", "p2"), (7.5, 3.0), 1, 0.25, False),)
TURN = Turn(("grey", "red"), ("p1",), ("Grey",), 0.5, "", FOUND)
CORRECTION = markup.wrap("information", markup.correction("no_action"))


def trajectory(rounds, turns, status="answered", after=()) -> Trajectory:
    """Of rounds of (policy text, sampled ids, tool text, its ids), after a prompt of three ids."""
    segments, ids, sampled = [Segment("prompt", "Which?\n")], [1, 2, 3], [False] * 3
    for policy, new, tool, given in rounds:
        segments += [Segment("policy", policy)] * bool(policy or new)
        segments += [Segment("tool", tool)] * bool(tool)
        ids += [*new, *given]
        sampled += [True] * len(new) + [False] * len(given)
    ids += after
    sampled += [False] * len(after)
    chosen = np.array(sampled)
    logprobs = np.where(chosen, -np.arange(len(ids)) / 7, 0.0).astype(np.float32)
    return Trajectory(
        "q1",
        2,
        np.array(ids, np.int32),
        logprobs,
        chosen,
        np.where(chosen, 5, -1).astype(np.int32),
        3,
        tuple(segments),
        tuple(turns),
        status,
        1.5,
        tuple(dict.fromkeys(["search", *(turn.tool for turn in turns)])),
    )


SEARCH = "<think>a plan</think><search>grey\nred</search>"
SHOWN = "<information>Grey: blue</information>"
CASES = {
    "answered": ([(SEARCH, [4, 5], SHOWN, [6]), ("<answer>blue</answer>", [7], "", [])], [TURN]),
    "corrected": ([("hm", [4], CORRECTION, [5, 6]), ("<answer>blue</answer>", [7], "", [])], []),
    "nothing": ([("", [4], CORRECTION, [5]), ("hm", [6], "", [])], []),
    "no room at first": ([("", [], CORRECTION, [4]), ("<answer>blue</answer>", [5], "", [])], []),
    "no room after a result": (
        [
            (SEARCH, [4, 5], SHOWN, [6]),
            ("", [], CORRECTION, [7]),
            ("<answer>a</answer>", [8], "", []),
        ],
        [TURN],
    ),
    "no room twice": (
        [
            ("", [], CORRECTION, [4]),
            ("", [5], SHOWN, [6]),
            ("", [], CORRECTION, [7]),
            ("b", [8], "", []),
        ],
        [TURN],
    ),
    "no room, then no text": (
        [
            ("a", [4], CORRECTION, [5]),
            ("", [], CORRECTION, [6]),
            ("", [7], CORRECTION, [8]),
            ("<answer>a</answer>", [9], "", []),
        ],
        [],
    ),
    "ids behind all text": ([("hm", [4], CORRECTION, [5]), ("", [6], "", [])], []),
    "retrieved for the prompt": ([("<answer>blue</answer>", [4, 5], "", [])], [TURN]),
    "tool_failure": ([(SEARCH, [4, 5], "", [])], [Turn(("grey", "red"), (), (), 9.0, "down")]),
    "another tool": (
        [
            ("<calculate>1 + 2</calculate>", [4, 5], "<information>3</information>", [6]),
            ("<answer>3</answer>", [7], "", []),
        ],
        [Turn(("1 + 2",), (), (), 0.0, tool="calculate", unreadable=1)],
    ),
    "given last": ([(SEARCH, [4], SHOWN, [5, 6])], [TURN]),
}


def check_same(one: Trajectory, other: Trajectory) -> None:
    for name in ("ids", "logprobs", "sampled", "versions"):
        a, b = getattr(one, name), getattr(other, name)
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)
    for name in ("segments", "turns", "status", "example_id", "sample", "prompt_len", "seconds"):
        assert getattr(one, name) == getattr(other, name)
    assert one.tools == other.tools
    assert [t.found for t in one.turns] == [t.found for t in other.turns]


@pytest.mark.parametrize("name", CASES)
def test_a_trajectory_comes_back(name):
    given = trajectory(*CASES[name])
    text = atif.dumps(atif.to_atif(given, run="run", facts={"reward": 1.0}))
    document = Document.model_validate_json(text)
    assert document.extra["reward"] == 1.0
    check_same(given, atif.from_atif(document))


def test_a_turn_is_a_step_with_its_thought_search_and_result():
    user, turn, answer = atif.to_atif(trajectory(*CASES["answered"])).steps
    assert (user.source, user.message) == ("user", "Which?\n")
    assert (turn.reasoning_content, turn.message) == ("a plan", "")
    (call,) = turn.tool_calls
    assert (call.function_name, call.arguments) == ("search", {"queries": ["grey", "red"]})
    (result,) = turn.observation.results
    assert (result.source_call_id, result.content) == (call.tool_call_id, SHOWN)
    assert turn.metrics.prompt_token_ids == [1, 2, 3]
    assert turn.metrics.completion_token_ids == [4, 5]
    assert answer.metrics.prompt_token_ids == [1, 2, 3, 4, 5, 6]
    assert answer.message == "<answer>blue</answer>"
    assert answer.tool_calls is None


@pytest.mark.parametrize(
    ("name", "sampled"),
    [
        ("nothing", [[4], [6]]),
        ("no room at first", [None, [5]]),
        ("no room after a result", [[4, 5], None, [8]]),
        ("no room twice", [None, [5], None, [8]]),
        ("no room, then no text", [[4], None, [7], [9]]),
        ("ids behind all text", [[4], [6]]),
    ],
)
def test_a_turn_without_room_is_a_step_without_an_inference(name, sampled):
    _, *agent = atif.to_atif(trajectory(*CASES[name])).steps
    assert [step.metrics and step.metrics.completion_token_ids for step in agent] == sampled
    assert [step.llm_call_count for step in agent] == [int(ids is not None) for ids in sampled]


def test_a_search_made_for_the_prompt_is_no_call_of_the_agent():
    user, answer = atif.to_atif(trajectory(*CASES["retrieved for the prompt"])).steps
    assert user.extra["retrieved"][0]["queries"] == ("grey", "red")
    assert answer.tool_calls is None
    assert answer.observation is None


def test_a_call_of_another_tool_has_its_name():
    document = atif.to_atif(trajectory(*CASES["another tool"]))
    (call,) = document.steps[1].tool_calls
    assert (call.function_name, call.arguments) == ("calculate", {"queries": ["1 + 2"]})
    assert document.steps[1].message == ""
    names = [tool["function"]["name"] for tool in document.agent.tool_definitions]
    assert names == ["search", "calculate"]


def test_what_is_no_number_comes_back_as_none():
    given = trajectory(*CASES["answered"])
    given.logprobs[3] = np.nan
    text = atif.dumps(atif.to_atif(given))
    assert "NaN" not in text
    back = atif.from_atif(Document.model_validate_json(text))
    np.testing.assert_array_equal(back.logprobs, given.logprobs)


def without_ids(given: Trajectory, **more) -> Trajectory:
    """As an endpoint's, which tells text alone."""
    none = {n: getattr(given, n)[:0] for n in ("ids", "logprobs", "sampled", "versions")}
    return Trajectory(**(vars(given) | none | {"prompt_len": 0} | more))


def test_one_without_ids_has_no_figures():
    rounds = [(SEARCH, [], SHOWN, []), ("<answer>blue</answer>", [], "", [])]
    given = without_ids(trajectory(rounds, [TURN]))
    document = atif.to_atif(given)
    assert [step.metrics for step in document.steps] == [None] * 3
    check_same(given, atif.from_atif(Document.model_validate_json(atif.dumps(document))))


def test_an_empty_reply_is_a_step_with_an_inference():
    segments = (Segment("prompt", "Which?\n"), Segment("policy", ""))
    given = without_ids(trajectory([], []), segments=segments)
    document = atif.to_atif(given)
    assert [step.llm_call_count for step in document.steps[1:]] == [1]
    check_same(given, atif.from_atif(Document.model_validate_json(atif.dumps(document))))


def test_a_document_of_another_agent_is_refused():
    other = {"schema_version": "ATIF-v1.7", "agent": {"name": "a", "version": "1"}, "steps": []}
    with pytest.raises(ValueError, match="the document is of a: its extra has no masksearch_jax"):
        atif.from_atif(Document.model_validate(other))


def changed(**values) -> str:
    """A document of one step of the agent, with other fields of that step."""
    step = {"step_id": 1, "source": "agent", "message": ""} | values
    agent = {"name": "a", "version": "1"}
    return json.dumps({"schema_version": "ATIF-v1.7", "agent": agent, "steps": [step]})


CALL = {"tool_call_id": "c1", "function_name": "search", "arguments": {}}


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"step_id": 2}, "step_id must count from 1"),
        ({"source": "tool"}, "source"),
        ({"source": "user", "reasoning_content": "x"}, "has reasoning_content: an agent's"),
        ({"message": None}, "message"),
        ({"reward": 1.0}, "reward"),
        ({"timestamp": "yesterday"}, "Invalid isoformat"),
        ({"metrics": {"completion_tokens": 2, "logprobs": [0.0]}}, "1 values for 2 tokens"),
        ({"llm_call_count": 0, "metrics": {}}, "without an inference"),
        ({"observation": {"results": [{"source_call_id": "c2"}]}, "tool_calls": [CALL]}, "'c2'"),
        ({"tool_calls": [{**CALL, "arguments": "{}"}]}, "arguments"),
        ({"message": [{"type": "text", "source": None}]}, "a part of type text"),
        (
            {"observation": {"results": [{"subagent_trajectory_ref": [{"session_id": "s"}]}]}},
            "needs trajectory_id or trajectory_path",
        ),
    ],
)
def test_the_published_rules_hold(values, said):
    Document.model_validate_json(changed())
    with pytest.raises(ValidationError, match=said):
        Document.model_validate_json(changed(**values))


def test_embedded_trajectories_are_told_apart():
    document = json.loads(changed())
    for names in ([None], ["a", "a"]):
        inner = [document | {"trajectory_id": name} for name in names]
        with pytest.raises(ValidationError, match="all different"):
            Document.model_validate_json(json.dumps(document | {"subagent_trajectories": inner}))
    inner = [document | {"trajectory_id": name} for name in ("a", "b")]
    Document.model_validate_json(json.dumps(document | {"subagent_trajectories": inner}))

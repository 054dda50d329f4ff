"""Tools that a config names: found, made, asked once before a run, and refused with the reason."""

import dataclasses
import json

import pytest

from masksearch_jax.core.config import SearchConfig
from masksearch_jax.core.errors import ConfigError
from masksearch_jax.core.retrieval import SearchError
from masksearch_jax.core.tools import Answering, ToolError
from masksearch_jax.core.types import QueryRecord, Turn, to_json
from masksearch_jax.data import prompt
from masksearch_jax.search.tool import NoSearch
from masksearch_jax.tools.registry import instructions_of, open_tools
from tests.tools import bad_tools

LENGTHS = "examples.my_tool:Lengths"


def opened(*names):
    return open_tools(names, NoSearch(), SearchConfig())


def texts(*names, ask):
    """What the last of the tools says to each request."""
    toolbox = opened(*names)
    return toolbox[toolbox.names[-1]].call(ask, "").texts


def test_search_comes_first_and_the_others_as_they_are_named():
    assert opened().names == ("search",)
    assert opened("date", LENGTHS, "calculate").names == ("search", "date", "convert", "calculate")
    assert opened("date").limits == {"search": 4, "date": 4}


def test_a_tool_of_a_user_answers_and_tells_what_it_cannot_read():
    assert texts(LENGTHS, ask=("26.2 miles in km", "1 km in m")) == ("42.16 km", "1000 m")
    found = opened(LENGTHS)["convert"].call(("1 km in m", "far"), "")
    assert found.unreadable == 1
    assert found.texts[1].startswith("Write it as")


def test_instructions_name_every_tool_and_what_it_wants():
    said = prompt.instructions(instructions_of(("calculate", LENGTHS)))
    assert "a search engine over an encyclopedia, a calculator and a converter of lengths." in said
    assert "one of four things" in said
    assert said.count("\n- ") == 4
    assert said.index("- search:") < said.index("- calculate:") < said.index("- convert:")
    assert said.endswith("trust what you read more than what you remember.")


# ---- tools that are none


BAD = "tests.tools.bad_tools"


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("calculator", r"has 'calculator', not calculate, date or package.*did you mean calculate"),
        ("search", r"has 'search', not calculate"),
        ("examples.my_tool:Length", r"module 'examples.my_tool' has no 'Length'; did you mean Len"),
        ("examples.no_tool:Lengths", r"there is no module 'examples.no_tool'"),
        ("examples.my_tool", r"not calculate, date or package.module:Class"),
        ("examples.my_tool:METRES", r"which is dict, not a class"),
        (f"{BAD}:NoText", r"NoText' of config.tools has '' as its attribute 'usage'"),
        (f"{BAD}:OddName", r"has the name 'Good Tool'; it must be of lower-case letters"),
        (f"{BAD}:Answer", r"has the name 'answer'.*none of think, information, answer"),
        (f"{BAD}:Twice", r"two tools have the tag 'search'; search is there"),
        (f"{BAD}:NoMethod", r"has no method answer\(request\)"),
        (f"{BAD}:Breaks", r"cannot be made: OSError: no licence"),
        (f"{BAD}:WantsMore", r"cannot be called as WantsMore\(\)"),
    ],
)
def test_what_is_no_tool_is_refused_with_the_reason(name, said):
    with pytest.raises(ConfigError, match=said):
        opened(name)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("Down", r"Down' of config.tools raised ConnectionError for 'x': nobody listens"),
        ("Number", r"Number' of config.tools gave 42 \(int\) for 'x'; an answer must be a str"),
    ],
)
def test_a_tool_that_does_not_answer_is_named_before_the_run(name, said):
    with pytest.raises(ToolError, match=said):
        opened(f"{BAD}:{name}")


def test_the_same_tool_twice_is_refused():
    with pytest.raises(ConfigError, match="two tools have the tag 'date'"):
        opened("date", "date")


def test_text_of_a_tool_is_without_controls():
    assert Answering(bad_tools.Noisy(), "it").call(("q",), "").texts == ("abc",)


KEPT = "tests.tools.bad_tools:Kept"


@pytest.fixture
def asked():
    bad_tools.Kept.asked.clear()
    yield bad_tools.Kept.asked
    bad_tools.Kept.asked.clear()


def test_answers_of_a_tool_that_has_a_fingerprint_are_kept_and_replayed(tmp_path, asked):
    cfg = SearchConfig(kind="none", cache=str(tmp_path / "cache"))
    for _ in range(2):  # in memory, then from the file
        tool = open_tools([KEPT], NoSearch(), cfg)["good"]
        for _ in range(2):
            found = tool.call(("a", "odd"), "")
            assert (found.texts, found.unreadable) == (("a!", "odd"), 1)
        assert [r.cached for r in found.records] == [True, True]
        with pytest.raises(ToolError, match="nobody listens"):
            tool.call(("down",), "")
    assert asked == ["x", "a", "odd", "down", "x", "down"]  # x: the example, of every run
    asked.clear()
    replayed = open_tools([KEPT], NoSearch(), dataclasses.replace(cfg, replay=True))["good"]
    assert replayed.call(("a", "odd"), "").texts == ("a!", "odd")
    with pytest.raises(SearchError, match="'down' with top_k 1 is not recorded"):
        replayed.call(("down",), "")
    assert asked == []


@pytest.mark.parametrize("name", ["Kept", "Good"])  # with a fingerprint and without
def test_answers_that_trajectories_recorded_are_replayed(tmp_path, asked, name):
    requests = ("a", "odd", "b", "")
    tool = open_tools([f"{BAD}:{name}"], NoSearch(), SearchConfig())["good"]
    found = tool.call(requests, "")
    turn = Turn(requests, (), (), 0.1, found=found.records, tool="good")
    path = tmp_path / "t.jsonl"
    path.write_text(json.dumps({"turns": [to_json(turn)]}) + "\n")
    asked.clear()
    cfg = SearchConfig(kind="none", replay=True, recorded=str(path))
    replayed = open_tools([f"{BAD}:{name}", "calculate"], NoSearch(), cfg)
    again = replayed["good"].call(requests, "")
    assert (again.texts, again.unreadable) == (found.texts, found.unreadable)
    assert all(record.cached for record in again.records)
    with pytest.raises(SearchError, match=r"'c' is not recorded in .*, for the tool 'tests"):
        replayed["good"].call(("c",), "")
    assert asked == []
    assert replayed["calculate"].call(("1 + 1",), "").texts == ("2",)


def test_answers_that_were_not_recorded_or_not_always_the_same_are_not_replayed(tmp_path):
    def line(request, answer):
        record = QueryRecord((), answer=answer)
        turn = Turn((request,), (), (), 0.1, found=(record,), tool="good")
        return json.dumps({"turns": [to_json(turn)]}) + "\n"

    path = tmp_path / "t.jsonl"
    path.write_text(line("a", "1") + line("a", "1") + line("b", "1") + line("b", "2"))
    cfg = SearchConfig(kind="none", replay=True, recorded=str(path))
    tool = open_tools([f"{BAD}:Good"], NoSearch(), cfg)["good"]
    assert tool.call(("a",), "").texts == ("1",)
    with pytest.raises(SearchError, match="'b' has several answers in"):
        tool.call(("b",), "")
    path.write_text(line("a", None))  # as earlier versions wrote it
    with pytest.raises(SearchError, match=r"nothing to replay: no trajectory in .* of the tool"):
        open_tools([f"{BAD}:Good"], NoSearch(), cfg)


def test_another_version_of_a_tool_is_asked_anew(tmp_path, asked, monkeypatch):
    cfg = SearchConfig(kind="none", cache=str(tmp_path / "cache"))
    for version in ("1", "2"):
        monkeypatch.setattr(bad_tools.Kept, "fingerprint", version)
        open_tools([KEPT], NoSearch(), cfg)["good"].call(("a",), "")
    assert asked == ["x", "a"] * 2


def test_a_tool_without_a_fingerprint_is_asked_each_time(tmp_path):
    cfg = SearchConfig(kind="none", cache=str(tmp_path / "cache"), replay=True)
    found = open_tools(["calculate"], NoSearch(), cfg)["calculate"].call(("1 + 1",) * 2, "")
    assert (found.texts, [r.cached for r in found.records]) == (("2", "2"), [False, False])
    assert not (tmp_path / "cache").exists()


def test_a_tool_is_asked_no_more_often_than_it_says():
    tool = open_tools(["tests.tools.bad_tools:Slow"], NoSearch(), SearchConfig(timeout=0.01))
    tool["good"].call(("a",), "")
    with pytest.raises(SearchError, match=r"no turn within .* requests_per_second of the tool"):
        tool["good"].call(("b",), "")


@pytest.mark.parametrize(
    ("name", "changes", "said"),
    [
        ("OddRate", {}, "has requests_per_second 'often'; it must be a number"),
        ("OddFingerprint", {}, "has fingerprint 1; it must be a text"),
        (
            "Kept",
            {"replay": True},
            r"is replayed from search\.cache or .*, and neither",
        ),
        (
            "Good",
            {"replay": True, "cache": "c"},
            r"no fingerprint: search\.cache has none of",
        ),
    ],
)
def test_what_cannot_be_put_around_a_tool_is_said(name, changes, said):
    with pytest.raises(ConfigError, match=said):
        open_tools([f"tests.tools.bad_tools:{name}"], NoSearch(), SearchConfig(**changes))

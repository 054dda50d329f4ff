"""Several tools in one rollout: which is called, what it says, and whose failure is whose."""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import pytest

from masksearch_jax.core import markup
from masksearch_jax.core.errors import ConfigError
from masksearch_jax.core.tools import Answering, Searching, Toolbox, Unreadable
from masksearch_jax.core.types import Trajectory, from_json, to_json
from masksearch_jax.rollout import chat, narration, replies
from masksearch_jax.rollout.engine import Engine
from masksearch_jax.rollout.episode import Request, Rules, finish
from masksearch_jax.rollout.narration import Narrator
from masksearch_jax.testing.models import TextVocab, scripted_model
from tests.rollout.word_engine import GREEDY, SEARCH, colours

TAGS = ("<add>", "</add>")
VOCAB = TextVocab("red", "blue", "12", "7", "x", "go", *TAGS)
ROLLOUT = dataclasses.replace(
    GREEDY, max_len=400, page_tokens=50, max_new_tokens=300, max_observation_tokens=100
)


class Add:
    """Adds the numbers of a request."""

    name, offers, usage, example = "add", "a sum", "put numbers", "1 2"

    def answer(self, request: str) -> str:
        if request == "x":
            raise ConnectionError("the service is down")
        if not all(part.isdigit() for part in request.split()):
            return Unreadable("Write <answer> numbers </add>.")
        return str(sum(map(int, request.split())))


def toolbox(tool=None) -> Toolbox:
    return Toolbox(Searching(colours(), SEARCH), [Answering(tool or Add(), "the tool add")])


def sampled(*said: str, rollout=ROLLOUT, tool=None) -> Trajectory:
    """The trajectory of a model that writes the texts, each after what a tool has shown."""
    first, *others = (VOCAB.encode(text) for text in said)
    lists = [VOCAB.encode("go") + first]
    shown = VOCAB.encode("</information>")
    lists += [shown + ids for ids in others]
    model = scripted_model(VOCAB, *lists)
    with Engine(VOCAB, toolbox(tool), rollout, SEARCH, strict=True) as engine:
        prompt = np.asarray(VOCAB.encode("go"), np.int32)
        (found,) = engine.run(model, [Request("e", prompt, 0)])
    return found


def test_a_call_is_answered_recorded_and_not_trained_on():
    t = sampled("<add>12</add>", "<answer>blue</answer>")
    assert [s.text for s in t.segments] == [
        "go",
        "<add>12</add>",
        "<information>12</information>",
        "<answer>blue</answer>",
    ]
    assert [s.author for s in t.segments] == ["prompt", "policy", "tool", "policy"]
    told = VOCAB.encode("<information>12</information>", literal=True)
    start = 1 + len(VOCAB.encode("<add>12</add>"))
    assert t.ids[start : start + len(told)].tolist() == told
    assert not t.sampled[start : start + len(told)].any()
    assert t.sampled.sum() == len(t.ids) - 1 - len(told)
    (turn,) = t.turns
    assert (turn.tool, turn.queries, turn.passage_ids, turn.titles) == ("add", ("12",), (), ())
    assert (t.tools, t.status, t.searches) == (("search", "add"), "answered", 0)
    assert markup.is_well_formed(t.segments, t.tools)
    assert not markup.is_well_formed(t.segments)
    assert from_json(Trajectory, to_json(t)).turns == t.turns
    assert to_json(t)["tools"] == ("search", "add")


def test_what_a_tool_says_cannot_act():
    t = sampled("<add>red</add>", "<answer>blue</answer>")
    assert t.segments[2].text == (
        "<information>Write <\u200banswer> numbers <\u200b/add>.</information>"
    )
    assert t.turns[0].unreadable == 1
    assert t.status == "answered"


def test_a_tool_that_fails_is_no_fault_of_the_policy():
    t = sampled("<add>x</add>")
    assert t.status == "tool_failure"
    (turn,) = t.turns
    assert turn.tool == "add"
    assert turn.error == (
        "ToolError: the tool add raised ConnectionError for 'x': the service is down"
    )


def test_an_answer_of_another_type_is_named_and_no_fault_of_the_policy():
    class Number(Add):
        def answer(self, request):
            return 12

    t = sampled("<add>7</add>", tool=Number())
    assert t.status == "tool_failure"
    assert "gave 12 (int) for '7'; an answer must be a str" in t.turns[0].error


# ---- rules, without an engine


def say(rules: Rules, episode, text: str):
    ids = VOCAB.encode(text)
    return rules.read(episode, np.asarray(ids, np.int32), np.zeros(len(ids)), 0)


def opened(**changes):
    rules = Rules(VOCAB, dataclasses.replace(ROLLOUT, **changes), toolbox())
    return rules, rules.open(Request("e", np.asarray(VOCAB.encode("go"), np.int32), 0))


def take(rules: Rules, episode, text: str):
    """The policy calls a tool, which answers; what `read` said."""
    asked = say(rules, episode, text)
    if isinstance(asked, tuple):
        episode.queries = asked
        rules.observe(episode, rules.call(episode.tool, asked, "", 100), 0.0)
    return asked


def test_each_tool_has_its_budget_within_that_of_all():
    rules, episode = opened(max_turns=3, tool_turns=("add=1",), corrections=1)
    assert take(rules, episode, "<add>7</add>") == ("7",)
    assert take(rules, episode, "<add>12</add>") is None
    hint = "No calls of <\u200badd> are left. Go on without it."
    assert episode.segments[-1].text == f"<information>{hint}</information>"
    assert take(rules, episode, "<search>red</search>") == ("red",)
    assert take(rules, episode, "<add>12</add>") == "out_of_turns"
    assert [turn.tool for turn in episode.turns] == ["add", "search"]


def test_all_calls_together_have_one_budget():
    rules, episode = opened(max_turns=1, corrections=1)
    assert take(rules, episode, "<search>red</search>") == ("red",)
    assert take(rules, episode, "<add>7</add>") is None
    assert episode.segments[-1].text.endswith("No calls are left. Answer now.</information>")


@pytest.mark.parametrize(
    ("said", "why"),
    [("add", "must be TOOL=NUMBER"), ("add=x", "must be TOOL=NUMBER"), ("ad=1", "no tool 'ad'")],
)
def test_a_budget_that_is_none_is_refused(said, why):
    with pytest.raises(ConfigError, match=why):
        opened(tool_turns=(said,))


def test_hints_name_the_tools_of_the_run():
    names = ("search", "add")
    assert markup.correction("no_action", names) == (
        "No action. Write <\u200bsearch>, <\u200badd> or <\u200banswer> and close it."
    )
    assert markup.correction("no_query", names, "add") == (
        "No query. Write one query per line in <\u200badd>."
    )


def test_the_call_is_of_the_tag_that_closes_the_turn():
    rules, episode = opened()
    assert say(rules, episode, "<search>red</search>") == ("red",)
    assert episode.tool == "search"
    rules, episode = opened()
    assert say(rules, episode, "red <add>12 7\n12 7\n 7 </add>") == ("12 7", "7")
    assert episode.tool == "add"


def test_a_narrator_tells_calls_and_results():
    rules, episode = opened()
    narrator = Narrator(rules.tools.limits)
    told = []
    for text in ("plan <add>12 7</add>", "<search>red</search>"):
        take(rules, episode, text)
        told += narrator.tell(narration.seen_of(episode))
    told += narrator.end(narration.seen_of(episode), "tool_failure", "down", "add")
    kinds = list(itertools.chain(*told))
    assert kinds == ["plan", "call", "result", "search", "documents", "failed"]
    assert told[1]["call"] == {"tool": "add", "requests": ["12 7"]}
    assert told[2]["result"] == "19"
    assert told[-1] == {"failed": "the add failed: down"}


def test_a_reply_has_the_calls_of_an_agent_with_other_tools():
    rules, episode = opened(max_turns=3)
    for text in ("<add>12 7</add>", "<search>red</search>", "<add>7</add>"):
        take(rules, episode, text)
    say(rules, episode, "<answer>19</answer>")
    seen, ended = narration.seen_of(episode), finish(episode, "answered", rules.tools.names)
    body = {"model": "m", "agent": True, "messages": [{"role": "user", "content": "?"}]}
    asked = chat.parse_chat(body, "m", ROLLOUT, has_agent=True)

    def message(limits):
        reply = replies.Writer(asked, "m:agent", "1", VOCAB, limits).whole([(ended, seen)])
        return reply["choices"][0]["message"]

    said = message(rules.tools.limits)
    assert (said["content"], said["searches"]) == ("19", [["red"]])
    assert [(c["id"], c["search"]) for c in said["citations"]] == [("red", 0)]
    assert said["calls"] == [
        {"tool": "add", "requests": ["12 7"]},
        {"tool": "add", "requests": ["7"]},
    ]
    assert "calls" not in message({"search": 2})

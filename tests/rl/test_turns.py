"""Turn-level terms: which turns have a fault, on which tokens it is felt, what search has shown."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from masksearch_jax.core.config import DapoConfig
from masksearch_jax.core.errors import ConfigError
from masksearch_jax.core.tools import search_alone
from masksearch_jax.core.types import (
    QAExample,
    RampExample,
    Segment,
    Span,
    Status,
    Trajectory,
    Turn,
)
from masksearch_jax.rl import rewards, turns
from masksearch_jax.rl.groups import Group, to_tokens
from masksearch_jax.rollout.episode import Request, Rules, finish
from masksearch_jax.testing.models import TextVocab
from tests.rollout.word_engine import GREEDY, SEARCH, colours

CFG = DapoConfig(steps=1, curriculum="", group_size=2)
WEIGHTS = dict(zip(turns.WEIGHTS.values(), (1.0, 0.1, 0.01, 0.001, 1e-4), strict=True))
RAMP = RampExample(
    "e",
    "p1",
    "Marie Curie",
    "Born in [mask] in [mask].",
    "Born in Warsaw in 1867.",
    (Span(8, 14, "Warsaw", "PLACE"), Span(18, 22, "1867", "DATE")),
)
QA = QAExample("q", "made", "Who?", ("The Beatles", "Beatles"), ("p1", "p2"), titles=("Hey Jude",))


def made(*said: str, status: Status = "answered", shown: Turn | None = None) -> Trajectory:
    """Prompt, then policy and tool in turn; a token for each character, two for the prompt."""
    authors = ["policy" if i % 2 == 0 else "tool" for i in range(len(said))]
    texts = [Segment("prompt", "??"), *map(Segment, authors, said)]
    sampled = np.concatenate([np.full(len(s.text), s.author == "policy") for s in texts])
    size = len(sampled)
    return Trajectory(
        *("e", 0, np.arange(size, dtype=np.int32), np.zeros(size, np.float32), sampled),
        *(sampled.astype(np.int32) - 1, 2, tuple(s for s in texts if s.text)),
        *((shown,) if shown else (), status),
    )


def search(*queries: str) -> str:
    return f"<search>{chr(10).join(queries)}</search>"


FOUND, ANSWER = "<information>x</information>", "<think>so</think><answer>y</answer>"
NONE = (0.0, 0.0, 0.0)


@pytest.mark.parametrize(
    ("said", "status", "expected"),
    [
        ((search("a"), FOUND, search("b"), FOUND, ANSWER), "answered", {}),
        ((ANSWER,), "answered", {"no_search": (1.0,)}),
        ((search("a"), FOUND, "so"), "no_answer", {"no_answer": (0, 1), "malformed_turn": (0, 1)}),
        (("so", FOUND, ANSWER), "answered", {"no_search": (0, 1), "malformed_turn": (1, 0)}),
        (
            (search("a", "B  c"), FOUND, search("b c", "d"), FOUND, search("A"), FOUND, ANSWER),
            "answered",
            {"repeated_query": (0, 0.5, 1, 0)},
        ),
        ((search(" "), FOUND, ANSWER), "answered", {"no_search": (0, 1), "malformed_turn": (1, 0)}),
        ((search("a"), FOUND), "out_of_tokens", {"no_answer": (1,)}),  # cut before it went on
    ],
)
def test_faults_are_those_of_their_turn(said, status, expected):
    found = turns.faults(made(*said, status=status))
    count = len(said) // 2 + len(said) % 2
    assert {name: each for name, each in found.items() if any(each)} == expected
    assert {len(each) for each in found.values()} == {count}


@pytest.mark.parametrize(
    ("said", "status", "expected"),
    [
        (("so", FOUND, search(" "), FOUND, "so"), "answered", (0, 1, 3, 0)),  # no share: a sum
        ((search("a"), FOUND, search("A "), FOUND, ANSWER), "answered", (0, 0, 0, 1)),
        ((search("a", "a"), FOUND, search("b", "a"), FOUND, ANSWER), "answered", (0, 0, 0, 0.5)),
        (("and so on and on",), "out_of_tokens", (1, 1, 1, 0)),
        (("so", FOUND, search("a")), "out_of_tokens", (1, 0, 1, 0)),  # the last turn searches first
        ((search("a") + ANSWER,), "answered", (0, 0, 1, 0)),
    ],
)
def test_what_is_logged_of_a_trajectory_is_summed_over_its_turns(said, status, expected):
    """no_answer, no_search, malformed_turn and repeated_query."""
    found = turns.totals(turns.faults(made(*said, status=status)))
    assert tuple(found.values()) == expected
    assert rewards.reward(RAMP, made(*said, status=status), CFG).logged.items() >= found.items()


def test_a_call_that_its_tool_could_not_read_is_a_fault_of_its_turn():
    def call(text):
        return f"<calculate>{text}</calculate>"

    said = (call("a"), FOUND, search("a"), FOUND, call("a\n1 + 1"), FOUND, call("2"), FOUND, ANSWER)
    calls = (  # the first was corrected: it is no call
        Turn(("a",), (), (), 0.0),
        Turn(("a", "1 + 1"), (), (), 0.0, tool="calculate", unreadable=1),
        Turn(("2",), (), (), 0.0, tool="calculate"),
    )
    tools = ("search", "calculate")
    whole = dataclasses.replace(made(*said), turns=calls, tools=tools)
    found = turns.faults(whole)
    assert found["unreadable_call"] == (0.0, 0.0, 0.5, 0.0, 0.0)
    assert found["repeated_query"] == (0.0, 0.0, 0.5, 0.0, 0.0)  # a search is no calculation
    assert found["malformed_turn"] == (0.0,) * 5
    assert found["no_search"] == (0.0,) * 5
    parts = rewards.reward(QA, whole, dataclasses.replace(CFG, unreadable_call_penalty=0.2))
    assert parts.turns == (0.0, 0.0, -0.1, 0.0, 0.0)
    assert parts.format == 1.0

    unsearched = made(call("1"), FOUND, ANSWER)
    unsearched = dataclasses.replace(unsearched, turns=calls[2:], tools=tools)
    assert turns.faults(unsearched)["no_search"] == (0.0, 1.0)
    least = dataclasses.replace(CFG, min_searches=1)
    assert rewards.reward(QA, unsearched, least).format == 0.0
    alone = dataclasses.replace(unsearched, tools=("search",))
    assert turns.faults(alone)["malformed_turn"] == (1.0, 0.0)


class Silent(TextVocab):
    """The end of sequence has no text."""

    def token_bytes(self, token_id: int) -> bytes:
        return super().token_bytes(token_id) if token_id else b""


VOCAB = Silent("red", "blue")
ROOMY = dataclasses.replace(
    GREEDY, max_len=400, max_new_tokens=300, max_observation_tokens=100, corrections=1
)


def played(say: Callable[[int], list[int]], **changes) -> Trajectory:
    """A trajectory under these rules; say: of the room of a turn, the ids that are sampled then."""
    r = Rules(VOCAB, dataclasses.replace(ROOMY, **changes), search_alone(colours(), SEARCH))
    e = r.open(Request("e", np.asarray(VOCAB.encode("red"), np.int32), 0))
    outcome: Status | tuple[str, ...] | None = None
    while not isinstance(outcome, str):
        ids = say(max(r.room(e), 0))
        outcome = r.read(e, np.asarray(ids, np.int32), np.full(len(ids), -0.5), 4)
        if isinstance(outcome, tuple):
            e.queries = outcome
            seen = r.call(e.tool, outcome, "", r.observation_room(e))
            outcome = r.observe(e, seen, 0.0)
    return finish(e, outcome)


def test_a_turn_without_room_has_no_fault_that_another_could_be_given():
    """Where a search took all the room there was before an answer, a correction comes at once."""
    texts = iter([f"<think>{'x' * 35}</think><search>red</search>", "", "<answer>blue</answer>"])
    rooms = []

    def say(room: int) -> list[int]:
        rooms.append(room)
        return VOCAB.encode(next(texts))

    found = played(say, max_new_tokens=60, answer_tokens=20, max_turns=2)
    assert rooms == [40, 0, 20]
    assert [s.author for s in found.segments] == ["prompt", "policy", "tool", "tool", "policy"]
    assert found.status == "answered"
    assert turns.faults(found) == dict.fromkeys(turns.faults(found), (0.0, 0.0))
    added = turns.terms(turns.faults(found), dataclasses.replace(CFG, **WEIGHTS))
    np.testing.assert_array_equal(turns.per_token(found, added), 0.0)


def test_a_turn_of_tokens_that_are_no_text_is_a_turn():
    """An end of sequence alone, corrected, then a search and an answer."""
    texts = iter(["<eos>", search("red"), "<answer>blue</answer>"])
    found = played(lambda room: VOCAB.encode(next(texts)))
    assert turns.texts(found) == ["", search("red"), "<answer>blue</answer>"]
    assert turns.faults(found)["malformed_turn"] == (1.0, 0.0, 0.0)
    assert turns.faults(found)["no_search"] == (0.0, 0.0, 0.0)


SAID = [search("red"), search("red", "blue"), search(" "), "so <eos>", "<eos>", ANSWER, "é" * 9]


@hypothesis.given(
    st.data(),
    st.fixed_dictionaries(
        {
            "max_len": st.integers(20, 600),
            "max_new_tokens": st.integers(1, 60),
            "max_turn_tokens": st.sampled_from([0, 5, 20]),
            "max_observation_tokens": st.integers(0, 60),
            "answer_tokens": st.integers(0, 60),
            "corrections": st.integers(0, 3),
            "max_turns": st.integers(0, 3),
        }
    ),
)
@hypothesis.settings(deadline=None, max_examples=300)
def test_each_stretch_of_sampled_tokens_is_a_turn_with_its_text(data, changes):
    """However tight the budgets are; a text is read in pieces, of no token too."""
    left: list[int] = []

    def say(room: int) -> list[int]:
        if not left:
            left.extend(VOCAB.encode(data.draw(st.sampled_from(SAID))))
        count = min(room, data.draw(st.integers(1, len(left))))
        said, left[:count] = left[:count], []
        return said

    found = played(say, **changes)
    ends = np.flatnonzero(np.diff(found.sampled, prepend=False, append=False)).reshape(-1, 2)
    assert turns.texts(found) == [VOCAB.decode(found.ids[a:b].tolist()) for a, b in ends]
    assert {len(each) for each in turns.faults(found).values()} == {len(ends)}


@hypothesis.given(
    st.lists(
        st.sampled_from([search("a"), search("a", "b"), "so", ANSWER, search(" ")]), min_size=1
    ),
    st.sampled_from(["answered", "no_answer"]),
)
@hypothesis.settings(deadline=None)
def test_each_token_has_its_turns_term_and_no_other(said, status):
    """Against a loop over characters, each of which is a token here."""
    texts = [text for pair in zip(said, [FOUND] * len(said), strict=True) for text in pair][:-1]
    trajectory = made(*texts, status=status)
    cfg = dataclasses.replace(CFG, **WEIGHTS)
    parts = rewards.reward(RAMP, trajectory, cfg)
    faults = turns.faults(trajectory)
    expected = [0.0, 0.0]  # the prompt
    for i, text in enumerate(texts):
        term = 0.0
        for name, key in turns.WEIGHTS.items():
            if name in faults and i % 2 == 0:
                term -= WEIGHTS[key] * faults[name][i // 2]
        expected += [term] * len(text)
    np.testing.assert_allclose(turns.per_token(trajectory, parts.turns), expected, atol=1e-6)

    group = Group(RAMP, [trajectory, trajectory], [parts, dataclasses.replace(parts, turns=())])
    with_terms, without = to_tokens(
        [group], np.asarray([[0.5, -0.5]], np.float32), np.ones((1, 2), bool), 2
    )
    np.testing.assert_allclose(with_terms["advantages"], 0.5 + np.asarray(expected)[1:], atol=1e-6)
    np.testing.assert_array_equal(without["advantages"], np.full(len(expected) - 1, -0.5))


def test_terms_are_counted_and_add_nothing_by_default():
    parts = rewards.reward(RAMP, made(search("a"), FOUND, search("a"), FOUND, "so"), CFG)
    assert parts.turns == NONE
    counted = {name: parts.logged[name] for name in turns.WEIGHTS if name in parts.logged}
    assert counted == {
        "no_answer": 0.0,
        "no_search": 0.0,
        "malformed_turn": 1.0,
        "repeated_query": 1.0,
    }


# ---- what search has shown


def information(text: str) -> str:
    return f"<information>{text}</information>"


@pytest.mark.parametrize(
    ("example", "text", "ids", "covered", "hit"),
    [
        (RAMP, "Curie: of Warsaw, 1867-1934", ("p1",), 1.0, 1.0),
        (RAMP, "Curie: of warsaw", ("p9",), 0.5, 0.0),
        (RAMP, "Warsaws in 18670", (), 0.0, 0.0),  # whole words alone
        (QA, "Hey Jude: a song", ("p2",), 1.0, 0.5),
        (QA, "a song of the Beatles", ("p2", "p1", "p3"), 0.0, 1.0),
        (dataclasses.replace(QA, titles=(), gold=()), "a song of Beatles", ("p1",), 1.0, None),
        (dataclasses.replace(QA, titles=(), answers=("!",)), "!", ("p1",), None, 0.5),
    ],
)
def test_coverage_and_gold_hits(example, text, ids, covered, hit):
    shown = Turn(("a",), ids, ("t",) * len(ids), 0.1)
    trajectory = made(search("a"), information(text), ANSWER, shown=shown)
    assert rewards.coverage(example, trajectory) == covered
    assert rewards.gold_hit(example, trajectory) == hit
    plain = rewards.reward(example, trajectory, CFG)
    paid = dataclasses.replace(CFG, coverage_weight=0.25, gold_hit_weight=0.5)
    extra = 0.25 * (covered or 0.0) + 0.5 * (hit or 0.0)
    assert rewards.reward(example, trajectory, paid).total == pytest.approx(plain.total + extra)
    known = {"coverage": covered, "gold_hit": hit}
    logged = {name: plain.logged.get(name) for name in known}
    assert logged == known


def test_what_the_policy_says_covers_nothing():
    assert rewards.coverage(RAMP, made(search("Warsaw 1867"), FOUND, ANSWER)) == 0.0


# ---- searches that are demanded


@pytest.mark.parametrize(("demanded", "forms"), [(0, (1, 1, 1)), (1, (0, 1, 1)), (2, (0, 0, 1))])
def test_fewer_searches_than_demanded_lose_the_share_of_the_format(demanded, forms):
    cfg = dataclasses.replace(CFG, min_searches=demanded)
    turns_ = [search("a"), FOUND, search("b"), FOUND]
    said = [(*turns_[: 2 * searches], "<answer>Beatles</answer>") for searches in range(3)]
    found = [rewards.reward(QA, made(*texts), cfg) for texts in said]
    assert tuple(parts.format for parts in found) == forms
    assert [parts.total for parts in found] == pytest.approx([0.9 + 0.1 * form for form in forms])
    assert [parts.answer for parts in found] == [1.0] * 3


def test_more_searches_than_there_are_turns_for_are_refused():
    cfg = dataclasses.replace(CFG, min_searches=5)
    said = r"config\.dapo\.min_searches is 5; it must lie in 0\.\.config\.rollout\.max_turns, 4"
    with pytest.raises(ConfigError, match=said):
        rewards.check_reward(cfg, max_turns=4)


def test_what_another_tool_repeats_is_nothing_that_search_has_shown():
    """A calculator says again the number that it is asked; nobody is paid for that."""
    call, told = "<calculate>1867</calculate>", "<information>1867 Warsaw Beatles</information>"
    calls = (Turn(("1867",), (), (), 0.0, tool="calculate"),)
    whole = made(call, told, ANSWER)
    whole = dataclasses.replace(whole, turns=calls, tools=("search", "calculate"))
    assert rewards.coverage(RAMP, whole) == 0.0
    untitled = dataclasses.replace(QA, titles=())
    assert rewards.coverage(untitled, whole) == 0.0
    computed = dataclasses.replace(untitled, calls=("calculate: 1 + 1",))
    assert rewards.coverage(computed, whole) is None
    both = made(call, told, search("Warsaw"), FOUND.replace("x", "Warsaw"), ANSWER)
    both = dataclasses.replace(both, turns=calls, tools=("search", "calculate"))
    assert rewards.coverage(RAMP, both) == 0.5


def test_a_call_without_a_request_hides_no_fault_of_those_after_it():
    said = (search(" "), FOUND, "<calculate>a</calculate>", FOUND, ANSWER)
    calls = (Turn((), (), (), 0.0), Turn(("a",), (), (), 0.0, tool="calculate", unreadable=1))
    whole = dataclasses.replace(made(*said), turns=calls, tools=("search", "calculate"))
    assert turns.faults(whole)["unreadable_call"] == (0.0, 1.0, 0.0)

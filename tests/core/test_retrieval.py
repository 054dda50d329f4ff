"""One search of an agent: what the passages that it is shown may hold."""

import dataclasses
import json

from hypothesis import given
from hypothesis import strategies as st

from masksearch_jax.core.config import SearchConfig
from masksearch_jax.core.retrieval import find, find_recorded
from masksearch_jax.core.types import Hits, Passage, QueryRecord, Turn, from_json, to_json

CFG = SearchConfig("none", "", "", 3, 3, 1, 1.0, 1)


class One:
    def __init__(self, passage: Passage):
        self.passage = passage

    def search(self, queries, top_k):
        return [[self.passage] for _ in queries]


def shown(title: str, text: str) -> Passage:
    (passage,) = find(One(Passage("p", title, text)), ["q"], CFG, "")
    return passage


def test_controls_and_half_characters_do_not_reach_an_agent():
    assert shown("A\x00\x1b[31mB", "red\x07 \x7f\x9bfruit\u202e \ud800tree\ufffe") == Passage(
        "p", "A[31mB", "red fruit tree"
    )


def test_text_stays_as_it_is():
    text = "Zürich\u200b, 東京\tand ‘Åre’\nnext line — é e\u0301 👩\u200d🔬"
    assert shown("T", text).text == text
    assert shown("T", "one\r\ntwo").text == "one\ntwo"


@given(st.text(st.characters(exclude_categories=("Cc", "Cs", "Cn"))))
def test_no_character_but_those_is_left_out(text):
    kept = shown("T", text).text
    assert all(
        c in "\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069" for c in set(text) - set(kept)
    )


@given(st.text(st.characters(exclude_categories=())))
def test_what_is_shown_can_be_written_as_utf8(text):
    passage = shown(text, text)
    assert dataclasses.astuple(passage)[1].encode() == passage.text.encode()


class Pieces:
    """An index in which the passage `x` is cut in three, of one id."""

    def __init__(self):
        self.depths = []

    def search(self, queries, top_k):
        self.depths.append(top_k)
        ids = ["x", "x", "a", "x", "b", "c", "d"][:top_k]
        return [Hits([Passage(i, i, f"{n}") for n, i in enumerate(ids)], scores=[1.0] * len(ids))]


def test_a_hidden_passage_that_is_cut_in_pieces_leaves_as_many_others():
    tool = Pieces()
    cfg = dataclasses.replace(CFG, exclude_source=True)
    assert [p.id for p in find(tool, ["q"], cfg, "x")] == ["a", "b", "c"]
    assert tool.depths == [4, 8]
    assert [p.id for p in find(Pieces(), ["q"], CFG, "x")] == ["x", "a"]


def test_what_a_tool_gave_is_recorded_before_any_is_left_out():
    shown, (record,) = find_recorded(Pieces(), ["q"], CFG, "")
    assert [p.id for p in shown] == ["x", "a"]
    assert record.seconds > 0  # of the call, where the tool tells none
    assert dataclasses.replace(record, seconds=0) == QueryRecord(
        ("x", "x", "a"), (1.0, 1.0, 1.0), depth=3
    )
    turn = Turn(("q",), ("x",), ("x",), 0.5, found=(record,))
    assert "answered_by" not in to_json(turn)["found"][0]  # a tool that tells nothing of itself
    assert from_json(Turn, json.loads(json.dumps(to_json(turn)))).found == (record,)


def test_who_answered_is_recorded():
    """The index of a tool in process, unless the answer itself tells what gave it."""

    class Told:
        fingerprint = "f1"

        def search(self, queries, top_k):
            return [[], Hits(), Hits(answered_by="http://b:1/retrieve f0")]

    _, records = find_recorded(Told(), ["q", "r", "s"], CFG, "")
    assert [r.answered_by for r in records] == ["f1", "f1", "http://b:1/retrieve f0"]
    turn = Turn(("q",), (), (), 0.5, found=records)
    assert from_json(Turn, json.loads(json.dumps(to_json(turn)))).found == records

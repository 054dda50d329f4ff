"""Records survive JSON unchanged, and JSON that is not theirs is refused by field."""

import dataclasses
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from masksearch_jax.core.types import (
    Demonstration,
    Passage,
    QAExample,
    RampExample,
    Segment,
    Span,
    Trajectory,
    Turn,
    from_json,
    to_json,
)

TEXT = st.text(max_size=8)
TEXTS = st.lists(TEXT, max_size=3).map(tuple)
SECONDS = st.floats(0, 1e6, allow_nan=False)
SPANS = st.builds(Span, st.integers(0, 99), st.integers(0, 99), TEXT, TEXT)
SEGMENTS = st.lists(st.builds(Segment, st.sampled_from(["policy", "tool"]), TEXT), max_size=3)
TURNS = st.lists(st.builds(Turn, TEXTS, TEXTS, TEXTS, SECONDS, TEXT), max_size=3)
RECORDS = st.one_of(
    st.builds(Passage, TEXT, TEXT, TEXT),
    st.builds(RampExample, TEXT, TEXT, TEXT, TEXT, TEXT, st.lists(SPANS, max_size=3).map(tuple)),
    st.builds(QAExample, *[TEXT] * 3, TEXTS, TEXTS, TEXT, TEXTS, TEXT, st.integers(0, 9)),
    st.builds(Demonstration, TEXT, TEXT, TEXT, TEXT, SEGMENTS.map(tuple), TURNS.map(tuple)),
)


@given(RECORDS)
def test_text_records_survive_json(record):
    assert from_json(type(record), json.loads(json.dumps(to_json(record)))) == record


@given(st.lists(st.tuples(st.integers(0, 2**31 - 1), st.floats(-90, 0, width=32), st.booleans())))
def test_trajectories_survive_json_with_their_dtypes(tokens):
    trajectory = Trajectory(
        example_id="e",
        sample=3,
        ids=np.asarray([t[0] for t in tokens], np.int32),
        logprobs=np.asarray([t[1] for t in tokens], np.float32),
        sampled=np.asarray([t[2] for t in tokens], np.bool_),
        versions=np.asarray([-1 + t[2] for t in tokens], np.int32),
        prompt_len=0,
        segments=(Segment("prompt", "p"), Segment("policy", "é")),
        turns=(Turn(("q",), (), (), 0.5, "late"),),
        status="answered",
    )
    found = from_json(Trajectory, json.loads(json.dumps(to_json(trajectory))))
    for field in dataclasses.fields(Trajectory):
        ours, theirs = getattr(trajectory, field.name), getattr(found, field.name)
        if isinstance(ours, np.ndarray):
            np.testing.assert_array_equal(theirs, ours, strict=True)
        else:
            assert theirs == ours


def test_fields_with_defaults_may_be_left_out():
    found = from_json(QAExample, {"id": "1", "dataset": "d", "question": "q", "answers": ["a"]})
    assert found == QAExample("1", "d", "q", ("a",), (), "", (), "", 0)


@pytest.mark.parametrize(
    ("obj", "message"),
    [
        ({"id": "1", "title": "t"}, r"Passage: .*missing fields \['text'\].*has \['id', 'text', "),
        ({"id": "1", "title": "t", "text": "", "url": ""}, r"Passage: unknown fields \['url'\]"),
    ],
)
def test_foreign_json_is_refused_by_field(obj, message):
    with pytest.raises(ValueError, match=message):
        from_json(Passage, obj)


def test_a_nested_record_is_checked_too():
    obj = to_json(RampExample("1", "p", "t", "[mask]", "x", (Span(0, 1, "x", "TERM"),)))
    del obj["spans"][0]["type"]
    with pytest.raises(ValueError, match=r"Span: .*missing fields \['type'\]"):
        from_json(RampExample, obj)


def test_text_by_author_is_in_order():
    said = (Segment("policy", "a"), Segment("tool", "b"), Segment("policy", "c"))
    empty = np.zeros(0)
    trajectory = Trajectory("e", 0, empty, empty, empty, empty, 0, said, (), "answered")
    assert [trajectory.text_by(a) for a in ("prompt", "policy", "tool")] == ["", "ac", "b"]

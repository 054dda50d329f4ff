"""Items that were trained on: by passages, titles and text, of a folder or a file of passages."""

import pytest

from masksearch_jax.core.jsonl import write_jsonl
from masksearch_jax.core.types import Passage, QAExample, RampExample, Span
from masksearch_jax.corpus.passages import write_passages
from masksearch_jax.evals import leaked, results
from masksearch_jax.evals.results import Bootstrap, Scored
from masksearch_jax.evals.rows import Row

HOW = Bootstrap(20, 0)


def question(name, *gold, asked="", titles=()):
    return QAExample(name, "d", asked or f"Which is {name}?", ("x",), gold, titles=titles)


def masked(name, title=""):
    text = f"Ann saw {name}."
    return RampExample(
        f"{name}@0", name, title, "[mask] saw it.", text, (Span(0, 3, "Ann", "TERM"),)
    )


def told(items, path):
    rows = [Row(("s", "agent"), item, "", Scored(item.id, {"em": 0.0}, {})) for item in items]
    return leaked.told(rows, str(path), 13, HOW)


@pytest.fixture
def folder(tmp_path):
    """p1 is masked; p2 is of its article, p3 of another; p4 is asked about."""
    titles = {"p1": "Oslo", "p2": "Oslo", "p3": "Rome", "p4": "Bonn"}
    write_passages(tmp_path / "passages.jsonl", [Passage(i, t, "x") for i, t in titles.items()])
    write_jsonl(tmp_path / "ramp" / "train.jsonl", [masked("p1", "Oslo")])
    write_jsonl(tmp_path / "questions" / "train.jsonl", [question("known", "p4")])
    write_jsonl(tmp_path / "questions" / "rl.jsonl", [question("r", asked="Who is the king?")])
    write_jsonl(tmp_path / "questions" / "heldout.jsonl", [question("held")])
    return tmp_path


def test_questions_that_name_passages_by_id_are_compared(folder):
    items = [
        question("a", "p1"),
        question("b", "p2"),
        question("c", "p3"),
        question("d", "p3", "p4"),
        question("e", asked="who is THE king"),
        question("known"),
        question("held"),
    ]
    (found,) = told(items, folder)["suites"].values()
    assert found["shared"] == {"passage": 2, "title": 1, "text": 2}
    assert found["shared_ids"] == ["a", "b", "d", "e", "known"]
    assert found["unknown"] == 0
    assert found["without"]["agent"]["em"]["n"] == 2


def test_ids_of_another_corpus_are_told(folder):
    found = told([question("a", "z1"), question("b", "z2"), question("c", "p3")], folder)
    (suite,) = found["suites"].values()
    assert (suite["shared"], suite["unknown"]) == ({}, 2)
    summary = {"results": {}, "suites": {"s": {"metric": "em"}}, "average": {}, "leakage": found}
    assert results.table(summary).splitlines()[-1] == (
        f"s: 2 of 3 items name passages by id alone, and {folder} has none of them: their words "
        "alone were compared"
    )


def test_an_id_says_nothing_of_what_has_a_title(folder):
    items = [question("a", "p1", titles=("Paris",)), masked("p1", "Paris"), masked("p3")]
    found = told(items[:1], folder)["suites"]["s"]
    assert (found["shared"], found["unknown"]) == ({}, 0)
    found = told(items[1:], folder)["suites"]["s"]  # the same text; no title in common
    assert found["shared"] == {"text": 1}


def test_an_id_with_a_number_sign_is_that_of_one_passage(tmp_path):
    path = tmp_path / "passages.jsonl"
    write_passages(path, [Passage("doc#1", "", "x")])
    items = [question("a", "doc#1"), question("b", "doc#2")]
    assert told(items, path)["suites"]["s"]["shared_ids"] == ["a"]


def test_a_file_of_rewordings_tells_of_the_passages_that_they_are_of(tmp_path):
    path = tmp_path / "paragraphs.jsonl"
    write_passages(path, [Passage("city:1#2", "Oslo", "x")])
    items = [question("a", "city:1"), question("b", "city:2")]
    assert told(items, path)["suites"]["s"]["shared"] == {"passage": 1}


def test_a_file_of_passages_has_ids_too(folder):
    items = [question("a", "p1"), question("b", "z")]
    found = told(items, folder / "passages.jsonl")["suites"]["s"]
    assert (found["shared"], found["unknown"]) == ({"passage": 1}, 1)

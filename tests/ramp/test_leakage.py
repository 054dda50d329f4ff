"""Leakage against real question sets: nothing that shares words in a row with them is masked."""

import collections
import itertools
import json

import pytest

from masksearch_jax import build_ramp
from masksearch_jax.core.corpus_config import CorpusConfig, RampConfig
from masksearch_jax.core.jsonl import read_jsonl
from masksearch_jax.core.types import Passage, QAExample, RampExample
from masksearch_jax.corpus.passages import read_passages, write_passages
from masksearch_jax.ramp import leakage
from masksearch_jax.ramp.question_files import read_questions
from masksearch_jax.ramp.survey import CleanConfig

N = 13
RAMP = RampConfig(
    cities=0,
    reworded=False,
    extractor="rules",
    max_masks=4,
    examples_per_passage=1,
    min_words=8,
    max_words=400,
    heldout_fraction=0.1,
    rl_fraction=0.1,
    max_examples=0,
    seed=0,
)


def runs(text: str) -> set[str]:
    """Every run of N words, as text: no hashes, no regular expressions."""
    words = "".join(c if c.isalnum() else " " for c in text.casefold()).split()
    return {" ".join(words[i : i + N]) for i in range(len(words) - N + 1)}


class Sets:
    """The question sets as plain titles and runs of words."""

    def __init__(self, questions, passages):
        gold = {g for q in questions for g in q.gold}
        known = [p for p in passages if p.id in gold]
        assert len(known) == len(gold) > 2000
        self.titles = {p.title.casefold() for p in known}
        self.runs = set().union(
            *(runs(p.text) for p in known), *(runs(q.question) for q in questions)
        )

    def reason(self, passage) -> str:
        if passage.title.casefold() in self.titles:
            return "gold_title"
        return "gold_text" if runs(passage.text) & self.runs else ""


@pytest.fixture(scope="module")
def real(shared_data, tmp_path_factory):
    """Passages around the questions and others, the sets, and why each passage overlaps them."""
    folder = shared_data / "multihop"
    files = folder / "questions.jsonl.gz", folder / "passages.jsonl.gz"
    around = list(read_passages(files[1]))
    sets = Sets(read_questions(files[0]).examples, around)
    others = read_passages(shared_data / "wiki_en" / "passages.jsonl.gz", limit=1000)
    given = [Passage(f"around-{p.id}", p.title, p.text) for p in around[::50]]
    given += [Passage(f"other-{p.id}", p.title, p.text) for p in others]
    # As if an article of the corpus quoted a gold passage under another title.
    gold = next(p for p in around if p.title.casefold() in sets.titles and len(runs(p.text)) > 50)
    given.append(Passage("quote", "A title of its own", f"As it is written: {gold.text}"))
    path = tmp_path_factory.mktemp("real") / "passages.jsonl"
    write_passages(path, given)
    return path, files, {p.id: sets.reason(p) for p in given}


def build(real, folder, leakage):
    path, (questions, passages), _ = real
    clean = CleanConfig(
        prose=False,
        duplicates=0.0,
        max_drop=1.0,
        leakage=leakage,
        evaluation=(str(questions),),
        evaluation_passages=str(passages),
        ngram=N,
    )
    read = CorpusConfig(str(path), "", 0, 0.0)
    made = build_ramp.run(build_ramp.BuildRampRun(str(folder), read, RAMP, 0, clean))
    splits = ("train", "rl", "heldout")
    found = [read_jsonl(folder / "ramp" / f"{split}.jsonl", RampExample) for split in splits]
    return made, list(itertools.chain(*found))


@pytest.mark.slow
def test_nothing_that_overlaps_the_real_question_sets_is_masked(real, tmp_path):
    reasons = real[2]
    made, kept = build(real, tmp_path / "drop", "drop")
    expected = collections.Counter(filter(None, reasons.values()))
    assert set(expected) == {"gold_title", "gold_text"}
    assert made["clean"]["dropped"] == expected
    assert made["clean"]["in"] == len(reasons)
    assert made["clean"]["out"] == len(reasons) - expected.total()
    assert len(kept) > 0.5 * made["clean"]["out"]
    assert not [e.id for e in kept if reasons[e.passage_id]]
    assert reasons["quote"] == "gold_text"

    made, tagged = build(real, tmp_path / "tag", "tag")
    assert made["clean"]["dropped"] == {}
    with open(tmp_path / "tag" / "ramp" / "leaks.jsonl", encoding="utf-8") as file:
        told = {row["id"]: row["reason"] for row in map(json.loads, file)}
    assert told == {e.id: reasons[e.passage_id] for e in tagged if reasons[e.passage_id]}
    clean = {(e.title, e.paragraph) for e in tagged if e.id not in told}
    assert {(e.title, e.paragraph) for e in kept} == clean


def test_fanoutqa_and_freshqa_are_read_in_their_authors_forms(shared_data):
    files = [
        shared_data / "fanoutqa" / "fanout-final-dev.json",
        shared_data / "freshqa/freshqa.csv",
    ]
    found = leakage.read(map(str, files), "", N)
    asked = [q for file in files for q in read_questions(file).examples]
    long = [q.question for q in asked if runs(q.question)]
    assert len(long) > 200
    for question in long:
        assert found.overlap(Passage("1", "Other", f"Someone asked: {question}")) == "gold_text"
    titles = {t.casefold() for q in asked for t in q.titles}
    assert len(titles) > 1000
    assert found.titles == titles
    assert found.overlap(Passage("1", "Pat Burrell", "He was a left fielder.")) == "gold_title"
    with pytest.raises(ValueError, match="no file of questions"):
        leakage.read((), "", N)


def test_evaluation_files_of_every_form_are_read(shared_cases):
    """Questions and titles count, answers are not needed."""
    titles = {
        "hotpot_dev_distractor.json": {"river alda"},
        "2wiki_dev.json": {"a"},
        "musique_ans_dev.jsonl": {"river alda"},
        "fanout_test.json": {"river alda"},
    }
    files = sorted((shared_cases / "qa").iterdir())
    assert len(files) == 8
    for file in files:
        found = leakage.read([str(file)], "", 4)
        assert found.titles == titles.get(file.name, set()), file.name
    every = leakage.read(map(str, files), "", 13)
    sheet = (
        "Which river passes the town of Corvo in the land of Brenland before it reaches the sea?"
    )
    assert every.overlap(Passage("1", "T", sheet)) == "gold_text"
    assert every.overlap(Passage("1", "River Alda", "It is long.")) == "gold_title"


def test_a_passage_without_a_title_shares_none():
    asked = [QAExample("q", "d", "Which?", (), ("1",))]
    found = leakage.evaluation(asked, [Passage("1", "", "a b c")], 3)
    assert found.titles == frozenset()
    assert found.overlap(Passage("2", "", "d e f")) == ""
    assert found.overlap(Passage("2", "", "x a b c")) == "gold_text"

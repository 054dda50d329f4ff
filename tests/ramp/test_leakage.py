"""Leakage against real question sets: nothing that shares words in a row with them is masked."""

import collections
import itertools
import json
import random

import pytest

from masksearch_jax import build_ramp
from masksearch_jax.core.corpus_config import CorpusConfig, RampConfig
from masksearch_jax.core.errors import ConfigError
from masksearch_jax.core.jsonl import read_jsonl, write_jsonl
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


# ---- gold passages that are named by id alone


def towns(prefix):
    """Two paragraphs an article, in words that no two share 13 of in a row."""
    return [
        Passage(
            f"{prefix}{i}",
            f"Town{i // 2}",
            f"In {1700 + i} the mayor Ann Berg{i} opened harbour {i} in Corvo{i}, which Brenland "
            f"had paid for since {1600 + i} by a tax of {i + 20} crowns on salt.",
        )
        for i in range(40)
    ]


def asking_by_id(tmp_path, names):
    path = tmp_path / "asked.jsonl"
    asked = [QAExample(f"q{n}", "d", f"Which is {n}?", ("x",), (n,)) for n in names]
    write_jsonl(path, asked)
    return path


def built_without(tmp_path, questions, leakage):
    write_passages(tmp_path / "corpus.jsonl", towns("t"))
    cfg = build_ramp.BuildRampRun(
        str(tmp_path / leakage),
        CorpusConfig(str(tmp_path / "corpus.jsonl")),
        RAMP,
        clean=CleanConfig(leakage=leakage, evaluation=(str(questions),)),
    )
    return build_ramp.run(cfg)


def test_gold_passages_named_by_id_alone_are_the_corpus_own(tmp_path):
    """With them go the other paragraphs of their articles."""
    questions = asking_by_id(tmp_path, ["t4", "t7", "of another corpus"])
    made = built_without(tmp_path, questions, "drop")
    assert made["clean"]["dropped"] == {"gold_id": 2, "gold_title": 2}
    built_without(tmp_path, questions, "tag")
    with open(tmp_path / "tag" / "ramp" / "leaks.jsonl", encoding="utf-8") as file:
        told = {(row["id"].partition("@")[0], row["reason"]) for row in map(json.loads, file)}
    assert told == {
        ("t4", "gold_id"),
        ("t5", "gold_title"),
        ("t6", "gold_title"),
        ("t7", "gold_id"),
    }


def test_ids_of_another_corpus_are_refused(tmp_path):
    message = (
        r"config\.clean\.evaluation has .*asked\.jsonl, which names 2 gold passages by id alone, "
        r"such as 'a1', and none is in the corpus; config\.clean\.evaluation_passages must name"
    )
    with pytest.raises(ConfigError, match=message):
        built_without(tmp_path, asking_by_id(tmp_path, ["a1", "a2"]), "drop")


def test_ids_that_a_file_of_passages_tells_are_not_the_corpus_own(tmp_path):
    write_passages(tmp_path / "gold.jsonl", [Passage("t4", "Oslo", "It is a city.")])
    asked = asking_by_id(tmp_path, ["t4"])
    found = leakage.read([str(asked)], str(tmp_path / "gold.jsonl"), N)
    assert found.unresolved == ()
    assert found.overlap(Passage("t4", "Town2", "Another.")) == ""
    assert found.overlap(Passage("x", "Oslo", "Another.")) == "gold_title"


def test_all_real_gold_passages_named_by_id_are_found(shared_data):
    folder = shared_data / "multihop"
    around = list(read_passages(folder / "passages.jsonl.gz"))
    found = leakage.read([str(folder / "questions.jsonl.gz")], "", N).resolved(around)
    asked = read_questions(folder / "questions.jsonl.gz").examples
    gold = {name for question in asked for name in question.gold}
    reasons = collections.Counter(found.overlap(p) for p in around if p.id in gold)
    assert reasons == {"gold_id": 2681}


# ---- runs


def test_three_chinese_characters_count_as_a_word():
    characters = "恩伯河是瓦尔德里亚北部的一条河流全长八十四公里"
    assert len(characters) == 23
    for n, count in ((1, 21), (7, 3), (8, 1), (9, 1)):
        assert len(list(leakage.runs(characters, n))) == count
    assert set(leakage.runs(characters[:21], 7)) < set(leakage.runs(characters, 7))
    assert list(leakage.runs("", 3)) == []
    mixed = "Alda河是一条河"  # a word and five characters: 8 thirds of a word
    assert len(list(leakage.runs(mixed, 2))) == 1
    assert list(leakage.runs("恩伯河 is long", 3)) == list(leakage.runs("恩伯河 IS long!", 3))


def test_few_unrelated_chinese_paragraphs_share_a_run(shared_data):
    passages = list(read_passages(shared_data / "wiki_zh" / "paragraphs.jsonl.gz"))
    random.Random(0).shuffle(passages)
    gold, others = passages[:500], passages[500:5500]
    asked = [QAExample("q", "d", "?", ("a",), tuple(p.id for p in gold))]
    found = leakage.evaluation(asked, gold, N)
    titles = {p.title for p in gold}
    others = [p for p in others if p.title not in titles]
    overlaps = sum(found.overlap(p) == "gold_text" for p in others)
    assert 0 < overlaps < 0.015 * len(others)  # of English paragraphs it is 0.003

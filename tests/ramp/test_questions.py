"""Questions split by article, and the prompts of both tasks."""

import collections
import dataclasses
import json
from collections import Counter

import pytest

from masksearch_jax.core.corpus_config import RampConfig
from masksearch_jax.core.jsonl import read_jsonl
from masksearch_jax.core.tokenizer import Vocab, train_bpe
from masksearch_jax.core.types import Passage, QAExample, RampExample
from masksearch_jax.corpus import atlas
from masksearch_jax.data import prompt
from masksearch_jax.ramp import examples, leakage
from masksearch_jax.ramp.question_files import read_questions
from masksearch_jax.ramp.questions import GoldPassages, split_questions, write_split

SPLIT = RampConfig(heldout_fraction=0.2, rl_fraction=0.25, seed=3)


def test_questions_split_by_article():
    small = atlas.build(seed=0, cities=250)
    titles = {p.id: p.title for p in small.passages}
    split = split_questions(small.questions, titles, SPLIT)
    named = (split.train, split.rl, split.heldout)
    assert sum(map(len, named)) + split.between == len(small.questions)

    def held(passage_id):
        return examples.is_heldout(titles[passage_id], 0.2, 3)

    assert not any(held(g) for q in (*split.train, *split.rl) for g in q.gold)
    for name in ("train", "rl"):
        starts = {titles[q.gold[0]] for q in getattr(split, name)}
        assert {examples.split_of(title, SPLIT) for title in starts} == {name}
    assert all(held(q.gold[0]) for q in split.heldout)
    assert 0.1 < len(split.heldout) / len(small.questions) < 0.3
    none = split_questions(small.questions, titles, RampConfig(heldout_fraction=0.0))
    assert sorted(none.train, key=lambda q: q.id) == sorted(small.questions, key=lambda q: q.id)
    assert (none.rl, none.heldout, none.between) == ((), (), 0)


def test_other_wordings_are_there_to_train_on_alone(tmp_path):
    small = atlas.build(seed=0, cities=250)
    titles = {p.id: p.title for p in small.passages}
    plain = split_questions(small.questions, titles, SPLIT)
    split = split_questions(small.questions, titles, SPLIT, small.reworded)
    assert (split.rl, split.heldout, split.between) == (plain.rl, plain.heldout, plain.between)
    trained = {q.id for q in plain.train}
    ours = {q for q in small.reworded if q.id.rpartition("#")[0] in trained}
    assert set(split.train) == {*plain.train, *ours}
    assert 0 < len(ours) < len(small.reworded)
    counts = write_split(
        tmp_path, small.questions, Counter(), titles, SPLIT, "", reworded=small.reworded
    )
    assert counts["train"] == len(split.train)
    assert counts["in"] - counts["out"] == sum(counts["dropped"].values()) == split.between


def test_questions_without_gold_passages_are_split_by_their_titles():
    small = atlas.build(seed=0, cities=250)
    titles = {p.id: p.title for p in small.passages}
    by_title = [
        dataclasses.replace(q, gold=(), titles=tuple(titles[g] for g in q.gold))
        for q in small.questions
    ]
    by_gold = split_questions(small.questions, titles, SPLIT)
    found = split_questions(by_title, {}, SPLIT)
    assert [q.id for q in found.train] == [q.id for q in by_gold.train]
    assert [q.id for q in found.heldout] == [q.id for q in by_gold.heldout]


def test_questions_without_gold_are_split_by_id():
    questions = [QAExample(str(i), "d", "Who?", ("x",)) for i in range(400)]
    split = split_questions(questions, {}, RampConfig(heldout_fraction=0.25))
    assert split.between == 0
    assert 60 < len(split.heldout) < 140


def test_the_first_questions_are_of_as_many_types_as_there_are():
    """And in a random order: no article has its questions side by side."""
    small = atlas.build(seed=0, cities=250)
    titles = {p.id: p.title for p in small.passages}
    heldout = split_questions(small.questions, titles, SPLIT).heldout
    counts = collections.Counter(q.type for q in heldout)
    for size in (len(counts), 60, 150, len(heldout)):
        first = collections.Counter(q.type for q in heldout[:size])
        share = max(n for t, n in first.items() if n < counts[t]) if size < len(heldout) else 0
        assert all(n in (counts[t], share, share - 1) or not share for t, n in first.items())
    assert [q.id for q in heldout] != [q.id for q in small.questions if q in heldout]
    assert heldout == split_questions(small.questions, titles, SPLIT).heldout
    other = split_questions(small.questions, titles, dataclasses.replace(SPLIT, seed=4)).heldout
    assert heldout[:20] != other[:20]


# ---- data sets' own files: titles and no passages, evaluation sets ----------------------------

CORPUS = [
    Passage("1", "Oslo", "Oslo is a city. Its river is the Akerselva."),
    Passage("2", "Oslo", "Oslo is the capital of Norway."),
    Passage("3", "norway", "Norway pays with the krone."),
    Passage("4", "Lagos", "Lagos is a city of Nigeria."),
]


def hotpot(number, question, answer, *titles):
    return {
        "_id": f"h{number}", "question": question, "answer": answer, "type": "bridge",
        "level": "easy", "context": [], "supporting_facts": [[t, 0] for t in titles],
    }  # fmt: skip


def test_questions_of_a_training_file_get_the_passages_of_their_articles(tmp_path):
    """One of each article: that with the answer; where an article is not there, none."""
    rows = [
        hotpot(1, "What does one pay with in the country of Oslo?", "krone", "Oslo", "Norway"),
        hotpot(2, "Oslo is the capital of what?", "Norway", "Oslo"),
        hotpot(3, "Where does one pay with lats?", "Latvia", "Latvia", "Oslo"),
    ]
    file = tmp_path / "hotpot_train.json"
    file.write_text(json.dumps(rows))
    asked = read_questions(file).examples
    gold = GoldPassages(asked)
    for passage in CORPUS:
        gold.note(passage)
    found = [gold.of(q) for q in asked]
    assert [q.gold for q in found] == [("1", "3"), ("2",), ()]
    assert gold.titles == {"1": "Oslo", "2": "Oslo", "3": "norway"}
    assert {q.dataset for q in found} == {"hotpotqa"}


def test_questions_that_an_evaluation_asks_are_not_trained_on(tmp_path):
    asked = [
        QAExample("a", "hotpotqa", "Who founded Oslo?", ("x",)),
        QAExample("b", "hotpotqa", "who  founded OSLO", ("x",)),
        QAExample("c", "hotpotqa", "Tell me: who was the king that founded Oslo long ago?", ("x",)),
        QAExample("d", "hotpotqa", "Who founded Bergen?", ("x",)),
    ]
    sets = [
        QAExample("e", "dev", "Who founded Oslo?", ()),
        QAExample("f", "dev", "Say who was the king that founded Oslo", ()),
    ]
    evaluation = leakage.evaluation(sets, (), 6)
    counts = write_split(tmp_path, asked, Counter(), {}, RampConfig(), "file", evaluation)
    assert counts["dropped"] == {"asked by an evaluation set": 3}
    kept = [q for name in ("train", "heldout") if (file := tmp_path / "questions" / f"{name}.jsonl")
            .exists() for q in read_jsonl(file, QAExample)]  # fmt: skip
    assert [q.id for q in kept] == ["d"]


# ---- prompts ----------------------------------------------------------------------------------

RAMP = RampExample("r", "p", "T", "A [mask] here.", "A thing here.", ())
QUESTION = QAExample("q", "d", "Which thing?", ("This",))


@pytest.fixture(scope="module")
def vocab(tmp_path_factory):
    folder = tmp_path_factory.mktemp("vocab")
    return Vocab.load(train_bpe(["a thing here"], folder / "bpe", vocab_size=300))


def test_minimal_prompts_are_the_task_and_a_line_break(vocab):
    assert prompt.render(RAMP, "minimal", vocab) == "A [mask] here.\n"
    assert prompt.render(QUESTION, "minimal", vocab) == "Which thing?\n"


def test_chat_prompts_explain_the_tags_of_their_task(vocab):
    for example, task in ((RAMP, "whole paragraph"), (QUESTION, "Below is a question")):
        text = prompt.render(example, "chat", vocab)
        assert text.startswith("<|im_start|>user\n")
        assert text.endswith("<|im_end|>\n<|im_start|>assistant\n")
        assert prompt.question_text(example) in text
        assert task in text
        for tag in ("think", "search", "information", "answer"):
            assert f"<{tag}>" in text
            assert f"</{tag}>" in text


def test_a_question_cannot_pass_for_ramp_or_act():
    question = QAExample("q", "d", "Is [mask] or <answer>x</answer> here?", ("x",))
    text = prompt.question_text(question)
    assert "[mask]" not in text
    assert "<answer>" not in text


def test_unknown_style_names_the_choices(vocab):
    with pytest.raises(ValueError, match="'fancy'; choices: minimal, chat"):
        prompt.render(RAMP, "fancy", vocab)

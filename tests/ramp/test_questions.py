"""Questions split by article, and the prompts of both tasks."""

import dataclasses

import pytest

from masksearch_jax.core.tokenizer import Vocab, train_bpe
from masksearch_jax.core.types import QAExample, RampExample
from masksearch_jax.corpus import atlas
from masksearch_jax.data import prompt
from masksearch_jax.ramp import examples
from masksearch_jax.ramp.questions import split_questions


def test_questions_split_by_article():
    small = atlas.build(seed=0, cities=250)
    titles = {p.id: p.title for p in small.passages}
    split = split_questions(small.questions, titles, 0.2, seed=3)
    assert len(split.train) + len(split.heldout) + split.between == len(small.questions)

    def held(passage_id):
        return examples.is_heldout(titles[passage_id], 0.2, 3)

    assert not any(held(g) for q in split.train for g in q.gold)
    assert all(held(q.gold[0]) for q in split.heldout)
    assert 0.1 < len(split.heldout) / len(small.questions) < 0.3
    none = split_questions(small.questions, titles, 0.0, seed=3)
    assert (none.train, none.heldout, none.between) == (small.questions, (), 0)


def test_questions_without_gold_passages_are_split_by_their_titles():
    small = atlas.build(seed=0, cities=250)
    titles = {p.id: p.title for p in small.passages}
    by_title = [
        dataclasses.replace(q, gold=(), titles=tuple(titles[g] for g in q.gold))
        for q in small.questions
    ]
    by_gold = split_questions(small.questions, titles, 0.2, seed=3)
    found = split_questions(by_title, {}, 0.2, seed=3)
    assert [q.id for q in found.train] == [q.id for q in by_gold.train]
    assert [q.id for q in found.heldout] == [q.id for q in by_gold.heldout]


def test_questions_without_gold_are_split_by_id():
    questions = [QAExample(str(i), "d", "Who?", ("x",)) for i in range(400)]
    split = split_questions(questions, {}, 0.25, seed=0)
    assert split.between == 0
    assert 60 < len(split.heldout) < 140


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

"""Questions from files, their split by article, and the prompts of both tasks."""

import collections
import gzip
import json

import pytest

from masksearch_jax.core.tokenizer import Vocab, train_bpe
from masksearch_jax.core.types import QAExample, RampExample
from masksearch_jax.corpus import atlas
from masksearch_jax.data import prompt
from masksearch_jax.ramp import examples
from masksearch_jax.ramp.questions import (
    QuestionsError,
    read_fanoutqa,
    read_freshqa,
    read_questions,
    split_questions,
)

ROW = {
    "qid": "q1",
    "dataset": "hotpotqa",
    "type": "bridge",
    "question": " Who wrote it? ",
    "answers": ["Ann", "Ann", " A. Lee "],
    "gold": [6, 4],
}


def write(path, rows):
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def test_a_line_becomes_a_question(tmp_path):
    expected = QAExample("q1", "hotpotqa", "Who wrote it?", ("Ann", "A. Lee"), ("6", "4"), "bridge")
    path = write(tmp_path / "q.jsonl", [ROW, ""])
    assert read_questions(path) == [expected]
    zipped = tmp_path / "q.jsonl.gz"
    zipped.write_bytes(gzip.compress(path.read_bytes()))
    assert read_questions(zipped) == [expected]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("{broken", "Expecting property name"),
        ("[1]", "an object is needed, got list"),
        ({k: v for k, v in ROW.items() if k != "answers"}, "no key 'answers'"),
        ({**ROW, "answers": []}, r"answers is \[\]"),
        ({**ROW, "answers": "Ann"}, "answers is 'Ann'; it must be a list"),
        ({**ROW, "question": " "}, "question is ' '"),
        ({**ROW, "qid": "0"}, "qid '0' is there already"),
    ],
)
def test_malformed_lines_are_skipped_named_and_bounded(tmp_path, line, reason):
    good = [{**ROW, "qid": str(i)} for i in range(99)]
    path = write(tmp_path / "q.jsonl", [*good, line])
    lines = []
    assert len(read_questions(path, log=lines.append)) == 99
    assert len(lines) == 1
    assert lines[0].startswith(f"{path}:100: ")
    with pytest.raises(QuestionsError, match=rf"q.jsonl are malformed.*q.jsonl:100: .*{reason}"):
        read_questions(path, max_bad_fraction=0.001, log=lines.append)


def test_missing_and_empty_files_are_named(tmp_path):
    with pytest.raises(QuestionsError, match=r"cannot read the questions .*none.jsonl"):
        read_questions(tmp_path / "none.jsonl")
    with pytest.raises(QuestionsError, match=r"empty.jsonl holds no questions"):
        read_questions(write(tmp_path / "empty.jsonl", [""]))
    (tmp_path / "cut.gz").write_bytes(gzip.compress(b"x" * 1000)[:-9])
    with pytest.raises(QuestionsError, match=r"cannot read the questions .*cut.gz"):
        read_questions(tmp_path / "cut.gz")


def test_real_question_files(shared_data):
    questions = read_questions(shared_data / "multihop" / "questions.jsonl.gz")
    by_dataset = collections.Counter(q.dataset for q in questions)
    assert by_dataset == {"musique": 798, "hotpotqa": 300, "2wiki": 215}
    assert all(len(q.gold) >= 2 for q in questions)

    fanout = read_fanoutqa(shared_data / "fanoutqa" / "fanout-final-dev.json")
    assert len(fanout) == 310
    first = fanout[0]
    assert len(first.answers) == 1
    assert first.answers[0].startswith("Pat Burrell: Right, Mark Mulder: Left, Corey Patterson: ")
    assert first.gold[0] == "18468611"
    assert len(first.gold) == 6

    fresh = read_freshqa(shared_data / "freshqa" / "freshqa.csv")
    assert len(fresh) == 600
    assert fresh[0].answers == (
        "No animal has ever landed on the moon yet.",
        "Since humans are animals, one could say Neil Armstrong.",
    )
    assert fresh[0].type == "slow-changing,one-hop"
    assert all(q.answers and q.question for q in fresh)


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

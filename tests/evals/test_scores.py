"""What a trajectory scores: answer, form, what its searches showed."""

import dataclasses
import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from masksearch_jax.core import scoring
from masksearch_jax.core.eval_config import EvalConfig
from masksearch_jax.core.types import QAExample, RampExample, Segment, Span, Trajectory, Turn
from masksearch_jax.evals import metrics
from masksearch_jax.evals.scores import (
    QA_METRICS,
    RAMP_METRICS,
    Scorer,
    score,
    scored_answer,
    slot_scores,
)
from masksearch_jax.evals.suites import Suite, load

PARAGRAPH = "Marie Curie was born in Warsaw in 1867 and discovered polonium with Pierre Curie."
OURS, SQUAD = Scorer(scoring.OURS._replace(is_chinese=False)), Scorer(metrics.SQUAD)
QA = QAExample("q1", "atlas", "Where was she born?", ("Warsaw", "Warsaw, Poland"))


def ramp(*golds):
    """The paragraph with the first occurrence of each gold text masked."""
    spans, masked, end = [], "", 0
    for gold in golds:
        start = PARAGRAPH.index(gold, end)
        spans.append(Span(start, start + len(gold), gold, "TERM"))
        masked += PARAGRAPH[end:start] + "[mask]"
        end = start + len(gold)
    return RampExample("r1", "p1", "t", masked + PARAGRAPH[end:], PARAGRAPH, tuple(spans))


EXAMPLE = ramp("Warsaw", "1867", "polonium")


def trajectory(text, turns=(), sampled=0):
    none = np.zeros(sampled, np.int32)
    segments = (Segment("prompt", "?"), Segment("policy", text))
    return Trajectory(
        "r1", 0, none, none.astype(np.float32), none == 0, none, 0, segments, turns, "answered"
    )


def answered(text):
    return f"<think>plan</think><answer>{text}</answer>"


def turn(*passages):
    return Turn(("q",), passages, tuple(p.upper() for p in passages), 0.0)


def test_a_masked_paragraph():
    half = PARAGRAPH.replace("polonium", "radium")
    got = score(EXAMPLE, trajectory(answered(half), (turn(), turn()), 7), OURS, tool_failures=2)
    assert tuple(got) == RAMP_METRICS
    assert got == pytest.approx(
        {
            "span_recall": 2 / 3, "precision": 2 / 3, "f1": 2 / 3, "em": 0, "answer_tokens": 14,
            "format_rate": 1, "searches": 2, "turns": 1, "tokens": 7, "tool_failures": 2,
            "source_hit": 0, "source_first": 0, "source_reciprocal_rank": 0,
        }
    )  # fmt: skip
    assert slot_scores(EXAMPLE, trajectory(answered(half)), OURS) == [1.0, 1.0, 0.0]
    assert score(EXAMPLE, trajectory(answered(PARAGRAPH)), OURS)["em"] == 1.0
    silent = score(EXAMPLE, trajectory("hm"), OURS)
    assert silent == dict.fromkeys(RAMP_METRICS, 0.0) | {"turns": 1.0}


def test_curly_quotes_are_straight_ones_in_all_measures_of_a_masked_paragraph():
    text = "She met Miles O\u2019Hara in Rome."
    span = Span(8, 20, text[8:20], "PERSON")
    example = RampExample("r", "p", "t", "She met [mask] in Rome.", text, (span,))
    for said in (text, text.replace("\u2019", "'")):
        got = score(example, trajectory(answered(said)), OURS)
        assert (got["span_recall"], got["precision"], got["f1"], got["em"]) == (1, 1, 1, 1)


def test_a_masked_paragraph_is_scored_in_its_own_language():
    """Whatever the others of its suite are written in: all measures mean the same words."""
    span = Span(3, 6, "挪威人", "TERM")
    chinese = RampExample("z", "p", "t", "他們是[mask]。", "他們是挪威人。", (span,))
    for example in (EXAMPLE, chinese):
        suite = Suite("ramp", Path("f"), "", (EXAMPLE, chinese), Counter(), is_chinese=False)
        got = score(example, trajectory(answered(example.paragraph)), Scorer(suite.rules(example)))
        assert (got["span_recall"], got["f1"], got["precision"], got["em"]) == (1, 1, 1, 1)
    assert got["answer_tokens"] == 6
    half = score(chinese, trajectory(answered("他們是挪威。")), Scorer(suite.rules(chinese)))
    assert (half["span_recall"], half["f1"]) == pytest.approx((2 / 3, 0.8))


def test_a_name_that_overrides_the_rules_of_a_file_is_told(tmp_path, capsys):
    row = {"_id": "a", "question": "Who?", "answer": "Ann", "context": []}
    (tmp_path / "dev.json").write_text(json.dumps([row, row | {"_id": "b"}]))
    for name, rules in (("musique", "musique"), ("hotpot", "hotpotqa"), ("mine", "hotpotqa")):
        (suite,) = load(EvalConfig(suites=(f"{name}={tmp_path / 'dev.json'}",)), "")
        assert {suite.rules_name(e) for e in suite.examples} == {rules}
    assert capsys.readouterr().err == (
        "  the suite musique is scored by the rules of musique, after its name; 2 of 2 questions "
        "are of hotpotqa, whose own rules are those of hotpotqa\n"
    )


@pytest.mark.parametrize(
    ("name", "rules"),
    [
        ("hotpotqa_dev", "hotpotqa"),
        ("HotpotQA-500", "hotpotqa"),
        ("hotpot_dev_distractor_v1", "hotpotqa"),
        ("2wiki_dev", "2wiki"),
        ("2WikiMultihopQA 1000", "2wiki"),
        ("musique_ans_v1.0_dev", "musique"),
        ("squad-v1.1", "squad"),
        ("SQuAD 2.0", "squad_v2"),
        ("squad20", "squad_v2"),
        ("squad_200", "squad"),
        ("squad_v2", "squad_v2"),
        ("squadron", "none"),
        ("my_hotpotqa", "none"),
        ("2wikipedia", "none"),
        ("nq", "none"),
    ],
)
def test_the_name_of_a_set_may_have_more_after_it(name, rules):
    assert metrics.rules_name(name, default="none") == rules


def test_a_file_that_no_rules_are_known_for_is_told(tmp_path, capsys):
    rows = [{"id": "a", "question": "Who?", "answers": ["Ann"], "data_source": "nq"}]
    rows.append(rows[0] | {"id": "b", "data_source": "hotpotqa_dev"})
    (tmp_path / "q.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (suite,) = load(EvalConfig(suites=(f"mine={tmp_path / 'q.jsonl'}",)), "")
    assert [suite.rules_name(e) for e in suite.examples] == ["squad", "hotpotqa"]
    assert capsys.readouterr().err == (
        "  the suite mine is scored by the rules of squad: none are known of its name, nor of nq, "
        "which 1 of 2 questions are of; known are those of squad, hotpotqa, 2wiki, musique, "
        "squad_v2\n"
    )


def test_a_question():
    qa = score(QA, trajectory(answered("Poland")), SQUAD, tokens=11)  # its passages are not known
    assert qa == pytest.approx(
        {
            "recall": 0.5, "precision": 1, "f1": 2 / 3, "em": 0, "answer_tokens": 1,
            "format_rate": 1, "searches": 0, "turns": 1, "tokens": 11, "tool_failures": 0,
        }
    )  # fmt: skip
    known = dataclasses.replace(QA, gold=("p1", "p2"))
    assert tuple(score(known, trajectory(answered("Poland")), SQUAD)) == QA_METRICS


@pytest.mark.parametrize(
    ("text", "em", "recall"),
    [
        ("Warsaw<|im_end|>", 1.0, 1.0),
        ("Born in Warsaw, she went to Paris. <|im_end|><|endoftext|>\n", 0.0, 1.0),
        ("Warsaw<｜end▁of▁sentence｜>", 1.0, 1.0),
        ("It is in Poland. <answer>Warsaw</answer>", 1.0, 1.0),
        ("Warsaw <answer>Poland</answer>", 0.0, 0.0),
        ("Warsaw <answer>", 0.0, 0.0),
        ("<|im_end|>", 0.0, 0.0),
    ],
)
def test_a_reply_without_the_tag_counts_whole_where_that_is_asked(text, em, recall):
    asked = dataclasses.replace(QA, answers=("Warsaw",))
    whole = score(asked, trajectory(text), dataclasses.replace(SQUAD, takes_whole=True))
    assert (whole["em"], whole["recall"]) == (em, recall)
    tagged = score(asked, trajectory(text), SQUAD)
    assert tagged["recall"] == (recall if "</answer>" in text else 0.0)
    assert whole["format_rate"] == tagged["format_rate"]  # the form is what it was


def test_the_ends_of_a_vocabulary_are_no_part_of_a_reply():
    asked = dataclasses.replace(QA, answers=("Warsaw",))
    scorer = dataclasses.replace(SQUAD, takes_whole=True, ends=("</s>", "<end_of_turn>"))
    assert score(asked, trajectory("Warsaw</s> <end_of_turn>\n"), scorer)["em"] == 1.0
    assert scored_answer(trajectory("a </s> b<|im_end|></s>"), scorer) == "a </s> b"


def test_the_whole_paragraph_of_a_reply_fills_its_slots():
    scorer = dataclasses.replace(OURS, takes_whole=True)
    reply = trajectory(f"{PARAGRAPH}<|im_end|>")
    assert score(EXAMPLE, reply, scorer)["span_recall"] == 1.0
    assert slot_scores(EXAMPLE, reply, scorer) == [1.0, 1.0, 1.0]
    assert slot_scores(EXAMPLE, reply, OURS) == [0.0, 0.0, 0.0]


def test_what_the_prompt_wrote_of_the_answer_counts():
    got = score(QA, trajectory("Warsaw</answer>"), SQUAD, opening="<answer>")
    assert (got["em"], got["format_rate"]) == (1.0, 1.0)
    got = score(QA, trajectory("Warsaw</answer>"), SQUAD)
    assert (got["em"], got["format_rate"]) == (0.0, 0.0)


@pytest.mark.parametrize(
    ("turns", "source", "by_id", "by_title"),
    [
        ((), (0.0, 0.0), (0.0, 0.0, 0.0), (0.0, 0.0, 0.0)),
        ((turn("a", "p1"),), (1.0, 0.0), (0.0, 0.0, 0.0), (0.0, 0.0, 0.0)),
        ((turn(), turn("p1", "a")), (1.0, 1.0), (0.0, 0.0, 0.0), (0.0, 0.0, 0.0)),
        ((turn("a"), turn("g2", "b")), (0.0, 0.0), (1.0, 0.0, 0.5), (1.0, 0.0, 1.0)),
        ((turn("g1"), turn("g2")), (0.0, 0.0), (1.0, 1.0, 1.0), (1.0, 0.0, 1.0)),
    ],
)
def test_what_searches_showed_of_the_passages_that_tell(turns, source, by_id, by_title):
    found = trajectory(answered("x"), turns)
    got = score(EXAMPLE, found, OURS)
    assert (got["source_hit"], got["source_first"]) == source

    def retrieved(**known):
        got = score(dataclasses.replace(QA, **known), found, SQUAD)
        return got["source_hit"], got["source_first"], got["gold_recall"]

    assert retrieved(gold=("g1", "g2"), titles=("G2",)) == by_id
    assert retrieved(titles=("g2",)) == by_title


def test_an_answer_of_several_parts_has_loose_and_strict_accuracy():
    several = dataclasses.replace(QA, parts='["Oslo", "Bergen"]')
    half = score(several, trajectory(answered("It is Oslo.")), SQUAD)
    assert (half["loose"], half["strict"]) == (0.5, 0.0)
    whole = score(several, trajectory(answered("Oslo and Bergen")), SQUAD)
    assert (whole["loose"], whole["strict"]) == (1.0, 1.0)

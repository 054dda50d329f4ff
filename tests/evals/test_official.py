"""Our measures against those that the data sets' own scripts gave for the same answers.

`official.json` holds 1,000 random answers and 200 adversarial ones with accepted answers, made for
this test, and what each script said of them: hotpot_evaluate_v1.py (the first accepted answer
alone, as HotpotQA has no more), 2wikimultihop_evaluate_v1.1.py, MuSiQue's metrics/answer.py,
evaluate-v1.1.py and evaluate-v2.0.py of SQuAD, and `answer_in_text` of FanOutQA's package with the
lemmas that spaCy's en_core_web_sm gave it.
"""

import json
from pathlib import Path

import pytest

from masksearch_jax.evals.fanoutqa import accuracy, normalise
from masksearch_jax.evals.metrics import RULES, answer_metrics

OFFICIAL = json.loads(Path(__file__).with_name("official.json").read_text(encoding="utf-8"))
MEASURES = {
    "hotpotqa": ("em", "f1", "precision", "recall"),
    "2wiki": ("em", "f1", "precision", "recall"),
    "musique": ("em", "f1"),
    "squad": ("em", "f1"),
    "squad_v2": ("em", "f1"),
}


@pytest.mark.parametrize("name", MEASURES)
def test_answers_score_what_the_sets_own_script_gives(name):
    apart = []
    for (answer, golds), want in zip(OFFICIAL["answers"], OFFICIAL[name], strict=True):
        got = answer_metrics(answer, golds[:1] if name == "hotpotqa" else golds, RULES[name])
        values = [got[measure] for measure in MEASURES[name]]
        if values != pytest.approx(want, abs=1e-9):
            apart.append((answer, golds, values, want))
    assert apart == []


def test_the_scripts_differ_where_their_rules_do():
    """Or the test above would say little."""
    rows = [list(map(tuple, OFFICIAL[name])) for name in ("squad", "musique", "squad_v2")]
    hotpotqa = [tuple(row[:2]) for row in OFFICIAL["hotpotqa"]]
    single = [len(golds) == 1 for _, golds in OFFICIAL["answers"]]
    closed = [a != b for a, b, one in zip(hotpotqa, rows[0], single, strict=True) if one]
    assert sum(closed) > 10
    assert sum(a != b for a, b in zip(rows[0], rows[1], strict=True)) > 10
    assert sum(a != b for a, b in zip(rows[1], rows[2], strict=True)) >= 1


def lemmatize(text):
    return OFFICIAL["lemmas"].get(text, text)


def test_parts_of_an_answer_are_found_where_fanoutqas_package_finds_them():
    apart = []
    for reference, text, loose, strict in OFFICIAL["fanoutqa"]:
        got = accuracy(reference, text, lemmatize)
        if got != pytest.approx((loose, strict), abs=1e-9):
            apart.append((reference, text, got, loose, strict))
    assert apart == []


def test_without_a_lemmatizer_words_stand_in_the_form_of_the_answer():
    assert accuracy('["Geese"]', "Three geese.").strict == 1.0
    assert accuracy('["Geese"]', "A goose.").strict == 0.0
    assert accuracy('{"Ada": true, "Bo": 1234}', "ada: Yes; bo has 1,234").loose == 1.0
    assert normalise("The U.S., in \u201c1,234\u201d") == 'the us in "1234"'

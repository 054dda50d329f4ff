"""Files of questions in the forms of their authors, read into one schema; what is refused."""

import bz2
import collections
import csv
import dataclasses
import gzip
import io
import json

import pytest

from masksearch_jax.core.types import QAExample
from masksearch_jax.evals.fanoutqa import accuracy
from masksearch_jax.ramp.question_files import QuestionsError, read_questions

ROW = {
    "id": "q1",
    "dataset": "hotpotqa",
    "type": "bridge",
    "question": " Who wrote it? ",
    "answers": ["Ann", "Ann", " A. Lee "],
    "gold": [6, 4],
}
EXPECTED = QAExample("q1", "hotpotqa", "Who wrote it?", ("Ann", "A. Lee"), ("6", "4"), "bridge")


def write(path, rows):
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def read(path, **options):
    return read_questions(path, **options).examples


def test_what_tools_are_to_be_asked_is_read_too(tmp_path):
    calls = ["convert: 26.2 miles in km"]
    assert read(write(tmp_path / "q.jsonl", [ROW | {"calls": calls}])) == [
        dataclasses.replace(EXPECTED, calls=tuple(calls))
    ]


@pytest.mark.parametrize("calls", ["convert: 1 km in m", ["1 km in m"], [1]])
def test_calls_that_name_no_tool_make_a_bad_row(tmp_path, calls):
    with pytest.raises(QuestionsError, match=r"must be a list of texts 'TOOL: REQUEST'"):
        read(write(tmp_path / "q.jsonl", [ROW | {"calls": calls}]))


# ---- the forms, each with rows made here

WALK = "Which river passes Old Harrow?"
HOTPOT = {
    "_id": "5a",
    "question": WALK,
    "answer": "The Ember",
    "type": "bridge",
    "level": "hard",
    "supporting_facts": [["Ember", 0], ["Old Harrow &amp; Lowmere", 2], ["Ember", 3]],
    "context": [["Ember", ["It rises there."]]],
}
STEP = {"id": "x", "question": "?", "answer": "a", "decomposition": []}
FORMS = {
    "hotpotqa": (
        HOTPOT,
        QAExample(
            "5a", "hotpotqa", WALK, ("The Ember",), (), "bridge",
            ("Ember", "Old Harrow & Lowmere"), "hard",
        ),
    ),
    "hotpotqa in columns": (
        HOTPOT | {"supporting_facts": {"title": ["Ember", "Lowmere"], "sent_id": [0, 1]}},
        QAExample(
            "5a", "hotpotqa", WALK, ("The Ember",), (), "bridge", ("Ember", "Lowmere"), "hard"
        ),
    ),
    "2wiki": (
        {
            "_id": "6a",
            "type": "compositional",
            "question": WALK,
            "context": [["A", ["x"]]],
            "supporting_facts": [["A", 0], ["B", 0]],
            "evidences": [["A", "r", "B"], ["B", "r", "C"]],
            "answer": "C",
        },
        QAExample("6a", "2wiki", WALK, ("C",), (), "compositional", ("A", "B"), "", 2),
    ),
    "musique": (
        {
            "id": "3hop1__1_2_3",
            "paragraphs": [
                {"idx": 0, "title": "A", "paragraph_text": "t", "is_supporting": True},
                {"idx": 1, "title": "B", "paragraph_text": "t", "is_supporting": False},
            ],
            "question": WALK,
            "question_decomposition": [],
            "answer": "Ember",
            "answer_aliases": ["The Ember", "Ember"],
            "answerable": True,
        },
        QAExample("3hop1__1_2_3", "musique", WALK, ("Ember", "The Ember"), (), "", ("A",), "", 3),
    ),
    "fanoutqa": (
        {
            "id": "f1",
            "question": WALK,
            "decomposition": [
                STEP | {"evidence": {"pageid": 1, "title": "Rivers", "url": "u"}},
                STEP
                | {
                    "evidence": None,
                    "decomposition": [
                        STEP | {"evidence": {"pageid": 2, "title": "Ember", "url": "u"}}
                    ],
                },
            ],
            "answer": {"Ember": "84 km", "Brook": ["a", "b"]},
            "categories": ["Geography", "Water"],
        },
        QAExample(
            "f1", "fanoutqa", WALK, ("Ember: 84 km, Brook: a, b",), (), "Geography,Water",
            ("Rivers", "Ember"), "", 2,
            parts='{"Ember": "84 km", "Brook": ["a", "b"]}',
        ),
    ),
    "fanoutqa's test": (
        {
            "id": "f2",
            "question": WALK,
            "necessary_evidence": [{"pageid": 1, "title": "Ember"}, {"pageid": 2, "title": "Sea"}],
            "categories": ["Geography"],
        },
        QAExample("f2", "fanoutqa", WALK, (), (), "Geography", ("Ember", "Sea")),
    ),
    "flashrag": (
        {
            "id": "dev_0",
            "question": WALK,
            "golden_answers": ["Ember", "The Ember"],
            "metadata": {
                "type": "bridge",
                "level": "hard",
                "supporting_facts": {"title": ["Ember", "Lowmere"], "sent_id": [0, 1]},
            },
        },
        QAExample(
            "dev_0", "questions", WALK, ("Ember", "The Ember"), (), "bridge",
            ("Ember", "Lowmere"), "hard",
        ),
    ),
    "flashrag's triviaqa": (
        {
            "id": "test_4",
            "question": WALK,
            "golden_answers": ["Ember", "The Ember", "R. Ember", "Ember (river)"],
            "metadata": {},
        },
        QAExample(
            "test_4", "questions", WALK, ("Ember", "The Ember", "R. Ember", "Ember (river)")
        ),
    ),
    "flashrag's fever": (
        {
            "id": "dev_2",
            "question": "The Ember is a river.",
            "golden_answers": ["SUPPORTS"],
            "metadata": {"label": "SUPPORTS"},
        },
        QAExample("dev_2", "questions", "The Ember is a river.", ("SUPPORTS",)),
    ),
    "flashrag's form of several sets": (
        {"id": "t", "question": WALK, "golden_answers": ["a"], "data_source": "musique"},
        QAExample("t", "musique", WALK, ("a",)),
    ),
    "ours": (
        {**ROW, "titles": ["Ember"], "level": "easy", "hops": 2},
        QAExample(
            "q1", "hotpotqa", "Who wrote it?", ("Ann", "A. Lee"), ("6", "4"), "bridge",
            ("Ember",), "easy", 2,
        ),
    ),
    "ours with qid and steps": (
        {"qid": 7, "dataset": "d", "question": WALK, "answers": ["a"], "decomposition": [{}, {}]},
        QAExample("7", "d", WALK, ("a",), hops=2),
    ),
}  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("container", ["lines", "array", "pretty", "utf-16", "bom", "gz", "bz2"])
def test_every_form_in_every_container(tmp_path, form, container):
    row, expected = FORMS[form]
    more = {**row, "id": "more", "_id": "more", "qid": "more"}
    lines = "\r\n".join(map(json.dumps, (row, more)))
    data = {
        "lines": lines.encode(),
        "array": json.dumps([row, more]).encode(),
        "pretty": json.dumps([row, more], indent=1).encode(),
        "utf-16": json.dumps([row, more], ensure_ascii=False).encode("utf-16"),
        "bom": b"\xef\xbb\xbf" + lines.encode(),
        "gz": gzip.compress(lines.encode()),
        "bz2": bz2.compress(lines.encode()),
    }[container]
    path = tmp_path / "questions.json"
    path.write_bytes(data)
    found = read(path, with_answers=False)
    assert [q.id for q in found] == [expected.id, "more"]
    assert found[0] == expected
    if expected.answers:
        assert read(path) == found
    else:
        with pytest.raises(
            QuestionsError, match=r"holds 2 questions without answers, as the test file"
        ):
            read(path)


FRESH = """WARNING: not for training,,,,,
,,,,,
id,split,question,num_hops,fact_type,answer_0,answer_1,note
0,TEST,"Which river, if any?",one-hop,never-changing,The Ember,Ember,
1,DEV,"Who
leads it?",multi-hop,fast-changing,Nobody,,x
,,,,,,,
"""


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_freshqas_sheet_with_rows_above_its_header(tmp_path, encoding):
    path = tmp_path / "sheet.csv"
    path.write_text(FRESH, encoding=encoding)
    first = QAExample(
        "freshqa:0", "freshqa", "Which river, if any?", ("The Ember", "Ember"),
        type="never-changing,one-hop", hops=1,
    )  # fmt: skip
    second = QAExample(
        "freshqa:1", "freshqa", "Who\nleads it?", ("Nobody",), type="fast-changing,multi-hop"
    )
    assert read(path) == [first, second]


@pytest.mark.parametrize("delimiter", [",", "\t"])
def test_bamboogles_sheet_and_ids_by_hash(tmp_path, delimiter):
    rows = [("Question", "Answer"), (WALK, "The Ember"), ("Who, if any, leads?", "Anna Lind")]
    for order in (rows, [rows[0], rows[2], rows[1]]):
        text = io.StringIO()
        csv.writer(text, delimiter=delimiter).writerows(order)
        (tmp_path / "bamboogle.csv").write_text(text.getvalue())
        found = read(tmp_path / "bamboogle.csv")
        assert {(q.dataset, q.question, q.answers) for q in found} == {
            ("bamboogle", WALK, ("The Ember",)),
            ("bamboogle", "Who, if any, leads?", ("Anna Lind",)),
        }
        ids = {q.question: q.id for q in found}
        assert ids[WALK] == "bamboogle:d9fa6873e76a"


def test_a_set_is_named_by_its_file_or_folder(tmp_path):
    row = {"id": "1", "question": WALK, "golden_answers": ["a"]}
    (tmp_path / "popqa").mkdir()
    assert read(write(tmp_path / "popqa" / "test.jsonl", [row]))[0].dataset == "popqa"
    path = write(tmp_path / "nq.jsonl", [row])
    assert read(path)[0].dataset == "nq"
    assert read(path, dataset="natural")[0].dataset == "natural"


def test_questions_that_cannot_be_answered_are_left_out_where_answers_are_needed(tmp_path):
    row, expected = FORMS["musique"]
    path = write(tmp_path / "q.jsonl", [row, {**row, "id": "2hop__x", "answerable": False}])
    found = read_questions(path, max_bad_fraction=0.0)
    assert found == ([expected], {"not answerable": 1})
    assert [q.id for q in read(path, with_answers=False)] == ["3hop1__1_2_3", "2hop__x"]


# ---- what is refused


@pytest.mark.parametrize(
    ("line", "reason", "detail"),
    [
        ("{broken", "not JSON", "Expecting property name"),
        ("[" * 100_000, "not JSON", ""),
        ("[1]", "not a JSON object", "list"),
        ({**ROW, "answers": []}, "no answers", "keys are id, dataset"),
        ({**ROW, "answers": "['Ann']"}, "a field is no list", "answers is \"['Ann']\""),
        ({**ROW, "answers": {"text": ["Ann"]}}, "a field is no list", "answers is {'text'"),
        ({**ROW, "gold": 6}, "a field is no list", "gold is 6; it must be a list"),
        ({**ROW, "decomposition": {"a": 1}}, "a field is no list", "decomposition is {'a': 1}"),
        ({**ROW, "decomposition": 5}, "a field is no list", "decomposition is 5"),
        (
            {**ROW, "metadata": {"decomposition": {"x": ["y"]}}},
            "a field is no list",
            "{'x': ['y']}",
        ),
        ({"id": "x", "question": "q?", "answer": float("nan")}, "no answers", "keys are id"),
        ({**ROW, "question": " "}, "question is not text", "' '"),
        ({"id": "x", "answers": ["a"]}, "no question", "keys are id, answers"),
        ({**ROW, "id": "0"}, "id is there already", "'0'"),
        ({**ROW, "question": "\ud800?"}, "not valid Unicode", "surrogates"),
        ({**ROW, "supporting_facts": [[]]}, "not a row of its form", "IndexError"),
        ({**ROW, "paragraphs": ["x"]}, "not a row of its form", "AttributeError"),
        ({**ROW, "hops": "many"}, "not a row of its form", "ValueError"),
        ({**ROW, "hops": float("inf")}, "not a row of its form", "OverflowError"),
        ({**ROW, "parts": "Oslo, Bergen"}, "parts are not JSON", "'Oslo, Bergen'; it must be"),
        ({**ROW, "parts": "['Oslo', 'Bergen']"}, "parts are not JSON", "Expecting value"),
        ({**ROW, "parts": "[" * 100_000}, "parts are not JSON", "parts is '[[[["),
        ({**ROW, "parts": ["\ud800"]}, "not valid Unicode", "surrogates"),
        ({**ROW, "type": "\ud800"}, "not valid Unicode", "surrogates"),
        ({**ROW, "gold": [{"id": "p1"}]}, "gold names no passage", "{'id': 'p1'}"),
    ],
)
def test_malformed_rows_are_skipped_named_and_bounded(tmp_path, line, reason, detail):
    good = [{**ROW, "id": str(i)} for i in range(99)]
    path = write(tmp_path / "q.jsonl", [*good, line])
    lines = []
    found = read_questions(path, log=lines.append)
    assert (len(found.examples), found.dropped) == (99, {reason: 1})
    assert len(lines) == 1
    assert lines[0].startswith(f"{path}:100: {reason}")
    assert detail in lines[0]
    message = rf"1 of 100 rows of .*q.jsonl are malformed.*q.jsonl:100: {reason}"
    with pytest.raises(QuestionsError, match=message):
        read_questions(path, max_bad_fraction=0.001, log=lines.append)


@pytest.mark.parametrize(
    ("parts", "read_as"),
    [
        (["Oslo", "Bergen"], '["Oslo", "Bergen"]'),
        ({"Tromsø": True, "Oslo": ["a", 2]}, '{"Tromsø": true, "Oslo": ["a", 2]}'),
        ('["Oslo", "Bergen"]', '["Oslo", "Bergen"]'),
        ('{"Oslo": 7}', '{"Oslo": 7}'),
        (7, "7"),
        (" ", ""),
        ([], ""),
        (None, ""),
        (float("nan"), ""),
    ],
)
def test_parts_are_json_however_a_row_writes_them(tmp_path, parts, read_as):
    (found,) = read(write(tmp_path / "q.jsonl", [ROW | {"parts": parts}]))
    assert found == dataclasses.replace(EXPECTED, parts=read_as)
    if read_as:
        assert accuracy(found.parts, f"{found.parts} yes").strict == 1.0


def test_a_list_of_answers_is_a_choice_and_fanoutqas_one_answer(tmp_path):
    names = ["Linda Davis", "Linda K. Davis"]
    path = write(tmp_path / "nq.jsonl", [{"question": WALK, "answer": names}])
    assert read(path)[0].answers == ("Linda Davis", "Linda K. Davis")
    assert read(path, dataset="fanoutqa")[0].answers == ("Linda Davis, Linda K. Davis",)
    path = write(tmp_path / "own.jsonl", [{"id": "1", "question": WALK, "answer": [True, 7]}])
    assert read(path)[0].answers == ("yes", "7")


def test_text_where_a_list_is_due_is_its_only_item_or_a_list_in_json(tmp_path):
    lists = {"answers": "Ann", "answer_aliases": "A. Lee", "gold": "p1", "titles": "[REC]"}
    row = {"id": "1", "dataset": "d", "question": WALK, **lists, "categories": "Film"}
    expected = QAExample("1", "d", WALK, ("Ann", "A. Lee"), ("p1",), "Film", ("[REC]",))
    assert read(write(tmp_path / "q.jsonl", [row])) == [expected]
    row |= {"supporting_facts": "Ember", "categories": ""}
    expected = dataclasses.replace(expected, type="", titles=("[REC]", "Ember"))
    assert read(write(tmp_path / "q.jsonl", [row])) == [expected]
    cells = {"question": WALK, "id": "1", "answers": '["Ann", "A. Lee"]', "gold": "[6, 4]"}
    cells |= {"titles": "Ember", "answer_aliases": "", "decomposition": '["first", "then"]'}
    with open(tmp_path / "d.csv", "w", newline="") as file:
        csv.writer(file).writerows([cells.keys(), cells.values()])
    expected = QAExample("1", "d", WALK, ("Ann", "A. Lee"), ("6", "4"), "", ("Ember",), "", 2)
    assert read(tmp_path / "d.csv") == [expected]


def test_lists_of_objects_may_be_stored_in_columns(tmp_path):
    row = FORMS["2wiki"][0] | {"evidences": {"fact": ["A", "B"], "entity": ["B", "C"]}}
    assert read(write(tmp_path / "q.jsonl", [row])) == [FORMS["2wiki"][1]]
    columns = {"title": ["A", "B"], "is_supporting": [True, False]}
    row = FORMS["musique"][0] | {"paragraphs": columns}
    assert read(write(tmp_path / "q.jsonl", [row])) == [FORMS["musique"][1]]


def test_names_of_fields_are_known_in_any_case(tmp_path):
    rows = [{"Question": WALK, "Answer": "The Ember", "Metadata": {"Level": "hard"}}]
    (found,) = read(write(tmp_path / "bamboogle.json", rows))
    assert (found.id, found.question) == ("bamboogle:d9fa6873e76a", WALK)
    assert (found.answers, found.level) == (("The Ember",), "hard")
    rows = [{"question": WALK, "Question": "No?", "Answer": "no", "answer": "a", "num_hops": 3}]
    (found,) = read(write(tmp_path / "own.json", rows))
    assert (found.question, found.answers, found.hops) == (WALK, ("a",), 3)


def test_a_row_of_a_sheet_with_other_columns_is_bad(tmp_path):
    good = "".join(f"{i},Who {i}?,Bob\n" for i in range(98))
    wrong = "x,In which year, then, was it?,1990\ny,Who?\n"
    (tmp_path / "s.csv").write_text(f"id,question,answer\n{good}{wrong}")
    lines = []
    found = read_questions(tmp_path / "s.csv", max_bad_fraction=0.02, log=lines.append)
    assert (len(found.examples), found.dropped) == (98, {"wrong number of columns": 2})
    assert [line.partition("s.csv:")[2] for line in lines] == [
        "100: wrong number of columns: 5, not 3",
        "101: wrong number of columns: 2, not 3",
    ]


def test_ids_of_several_sets_in_a_file_are_told_apart(tmp_path):
    """Each of FlashRAG's sets has ids test_0 and so on."""
    rows = [
        {"id": f"test_{i}", "question": f"{s} {i}?", "golden_answers": ["a"], "data_source": s}
        for s in ("nq", "popqa", "bamboogle")
        for i in range(2)
    ]
    found = read(write(tmp_path / "test.jsonl", rows), max_bad_fraction=0.0)
    assert [(q.id, q.dataset, q.question) for q in found] == [
        ("test_0", "nq", "nq 0?"),
        ("test_1", "nq", "nq 1?"),
        ("popqa:test_0", "popqa", "popqa 0?"),
        ("popqa:test_1", "popqa", "popqa 1?"),
        ("bamboogle:test_0", "bamboogle", "bamboogle 0?"),
        ("bamboogle:test_1", "bamboogle", "bamboogle 1?"),
    ]
    twice = write(tmp_path / "test.jsonl", [*rows, rows[0], rows[2]])
    assert read_questions(twice, max_bad_fraction=0.5).dropped == {"id is there already": 2}


def test_a_question_with_two_contexts_is_one_where_no_answer_is_needed(tmp_path):
    """MuSiQue-Full has each question with a context that answers it, and one that does not."""
    row, expected = FORMS["musique"]
    other = {**row, "answerable": False}
    path = write(tmp_path / "q.jsonl", [row, other])
    assert read_questions(path, max_bad_fraction=0.0) == ([expected], {"not answerable": 1})
    found = read_questions(path, with_answers=False, max_bad_fraction=0.0)
    paired = "its question is there already, with another context"
    assert found == ([expected], {paired: 1})
    path = write(tmp_path / "q.jsonl", [row, {**other, "question": "Which other?"}])
    found = read_questions(path, with_answers=False, max_bad_fraction=0.5)
    assert found == ([expected], {"id is there already": 1})


def test_without_a_log_malformed_rows_are_one_warning(tmp_path, caplog):
    good = [{**ROW, "id": str(i)} for i in range(96)]
    path = write(tmp_path / "q.jsonl", [*good, "1", "2", "3", "4"])
    assert len(read(path, max_bad_fraction=0.04)) == 96
    quoted = "; ".join(f"{path}:{n}: not a JSON object: int" for n in (97, 98, 99))
    assert caplog.messages == [f"4 rows of {path} are left out: {quoted}"]
    caplog.clear()
    with pytest.raises(QuestionsError, match="4 of 100 rows"):
        read(path)
    assert caplog.messages == []


def test_files_that_cannot_be_read_are_one_line(tmp_path):
    def message(data, name="q.json"):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(QuestionsError) as error:
            read(tmp_path / name)
        assert "\n" not in str(error.value)
        return str(error.value)

    with pytest.raises(QuestionsError, match=r"cannot read the questions .*none.jsonl"):
        read_questions(tmp_path / "none.jsonl")
    assert "q.json holds no questions" in message(b"")
    assert "q.json holds no questions" in message(b"[]")
    assert "cannot read the questions" in message(gzip.compress(b"x" * 1000)[:-9])
    assert "q.csv is neither UTF-8 nor UTF-16" in message("Café".encode("latin-1"), "q.csv")
    assert "invalid start byte" in message(b"question\n\x93Who\x94?", "q.csv")  # cp1252
    assert "NUL characters" in message(json.dumps([ROW]).encode("utf-16-le"))
    assert "has no questions; it reads a JSON array" in message(b"Frage,Antwort\n1,2\n")
    assert "has no questions; it reads a JSON array" in message(b"PAR1 and so on")
    assert "is packed as zip" in message(b"PK\x03\x04 and so on")
    assert "after 1 values: it breaks off" in message(json.dumps([ROW])[:-1].encode())
    assert "not JSON" in message(b'[{"id": 1} {]')
    assert "no question: keys are version, data" in message(b'{"version": 1, "data": [{}]}')


def test_real_question_files(shared_data):
    questions = read(shared_data / "multihop" / "questions.jsonl.gz")
    by_dataset = collections.Counter(q.dataset for q in questions)
    assert by_dataset == {"musique": 798, "hotpotqa": 300, "2wiki": 215}
    assert all(len(q.gold) >= 2 for q in questions)
    hops = collections.Counter(q.hops for q in questions if q.dataset == "musique")
    assert hops == {2: 575, 3: 167, 4: 56}

    fanout = read(shared_data / "fanoutqa" / "fanout-final-dev.json")
    assert len(fanout) == 310
    first = fanout[0]
    assert len(first.answers) == 1
    assert first.answers[0].startswith("Pat Burrell: Right, Mark Mulder: Left, Corey Patterson: ")
    assert first.titles[:2] == ("1998 Major League Baseball draft", "Pat Burrell")
    assert (len(first.titles), first.hops) == (6, 6)

    fresh = read(shared_data / "freshqa" / "freshqa.csv")
    assert len(fresh) == 600
    assert fresh[0].answers == (
        "No animal has ever landed on the moon yet.",
        "Since humans are animals, one could say Neil Armstrong.",
    )
    assert fresh[0].type == "slow-changing,one-hop"
    assert all(q.answers and q.question for q in fresh)


def test_small_inputs_that_once_failed(shared_cases):
    paths = sorted((shared_cases / "qa").iterdir())
    found = {p.name: read(p, with_answers="fanout" not in p.name)[0] for p in paths}
    river, alda = "Which river passes Corvo?", ("River Alda",)
    assert found["hotpot_dev_distractor.json"] == QAExample(
        "5a", "hotpotqa", river, alda, (), "bridge", alda, "hard"
    )
    assert found["2wiki_dev.json"] == QAExample(
        "6a", "2wiki", "Who led?", ("B",), (), "compositional", ("A",), "", 1
    )
    assert found["musique_ans_dev.jsonl"] == QAExample(
        "2hop__1_2", "musique", river, ("River Alda", "Alda"), (), "", alda, "", 2
    )
    assert found["bamboogle.csv"].question == found["flashrag_hotpot.jsonl"].question == river
    assert found["bamboogle.csv"].answers == found["flashrag_hotpot.jsonl"].answers == alda
    assert found["flashrag_hotpot.jsonl"].type == "bridge"
    assert found["freshqa_sheet.csv"].answers == ("River Alda", "Alda")
    assert (found["freshqa_sheet.csv"].id, found["freshqa_sheet.csv"].hops) == ("freshqa:0", 1)
    assert (found["fanout_test.json"].answers, found["fanout_test.json"].titles) == ((), alda)
    assert found["bom.jsonl"] == QAExample("1", "d", "Which river?", ("Alda",))


def test_true_and_false_are_yes_and_no(tmp_path):
    row = {**FORMS["fanoutqa"][0], "answer": {"Ember": True, "Brook": False}}
    (found,) = read(write(tmp_path / "q.json", [row]))
    assert found.answers == ("Ember: yes, Brook: no",)
    assert found.parts == '{"Ember": true, "Brook": false}'

"""Coverage of questions by a corpus: exact counts, what is missing, completed corpora."""

import dataclasses
import gzip
import json

import pytest

from masksearch_jax import build_index, coverage
from masksearch_jax.core.config import SearchConfig
from masksearch_jax.core.corpus_config import CorpusConfig
from masksearch_jax.core.errors import ConfigError
from masksearch_jax.core.types import VERDICTS, Passage
from masksearch_jax.corpus.passages import read_passages
from masksearch_jax.ramp.question_contexts import gold_documents
from masksearch_jax.ramp.question_files import read_questions
from masksearch_jax.search.bm25 import build
from masksearch_jax.search.coverage import additions

CORPUS = (
    Passage("1", "Ember (river)", "The Ember rises near Lindau and ends in Port Holm."),
    Passage("2", "Lindau", "Lindau was founded by Bishop Arno in 1204."),
    Passage("3", "Holm", "A harbour town."),
)
QUESTIONS = [
    {
        "id": "a", "dataset": "one", "question": "Where does the Ember rise?",
        "answers": ["Lindau"], "gold": ["1"], "titles": ["Ember_(river)"],
    },
    {
        "id": "b", "dataset": "one", "question": "Who founded Lindau?",
        "answers": ["Bishop Bruno"], "gold": ["2"], "titles": ["Lindau"],
    },
    {
        "id": "c", "dataset": "one", "question": "Is Holm a town?",
        "answers": ["yes"], "gold": ["3"], "titles": ["Holm"],
    },
    {
        "id": "d", "dataset": "two", "question": "Who wrote Ash?",
        "answers": ["Mara Lind"], "gold": ["9"], "titles": ["Ash (song)"],
    },
]  # fmt: skip


def settings(folder, questions, **options):
    build(CORPUS, folder / "index")
    path = folder / "questions.jsonl"
    path.write_text("".join(json.dumps(q) + "\n" for q in questions))
    search = SearchConfig("bm25", str(folder / "index"))
    return coverage.CoverageRun(str(path), search, str(folder / "out"), **options)


def rows(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_questions_are_counted_by_what_the_corpus_has(tmp_path):
    table = coverage.run(settings(tmp_path, QUESTIONS))
    one, two = table["one"], table["two"]
    assert one["questions"] == 3
    assert one["gold_there"] == one["titles_there"] == one["gold@5"] == 100.0
    assert one["answer_in_gold"] == one["answer@5"] == pytest.approx(100 / 3)
    assert one["answerable"] == pytest.approx(200 / 3)
    absent = ("gold_there", "titles_there", "answer_in_gold", "answerable", "answer@20", "gold@20")
    assert [two[k] for k in absent] == [0.0] * 6
    assert json.loads((tmp_path / "out" / "coverage.json").read_text()) == table
    assert "two" in coverage.render(table).splitlines()[2]


def test_what_is_missing_is_listed_and_the_rest_is_to_train_on(tmp_path):
    coverage.run(settings(tmp_path, QUESTIONS))
    missing = {row["id"]: row for row in rows(tmp_path / "out" / "missing.jsonl")}
    assert set(missing) == {"b", "d"}
    assert (missing["d"]["gold_missing"], missing["d"]["titles_missing"]) == (["9"], ["Ash (song)"])
    kept = read_questions(tmp_path / "out" / "answerable.jsonl").examples
    assert [q.id for q in kept] == ["a", "c"]


@pytest.mark.parametrize(
    ("answer", "is_answerable"),
    [
        ("Yes", True),
        ("否", True),
        ("SUPPORTS", True),
        ("REFUTES", True),
        ("NOT ENOUGH INFO", True),
        *((label, True) for label in VERDICTS),
        ("true north", False),
    ],
)
def test_no_passage_has_to_state_an_answer_that_judges(tmp_path, answer, is_answerable):
    claim = QUESTIONS[2] | {"question": "Holm is a town.", "answers": [answer]}
    table = coverage.run(settings(tmp_path, [claim]))
    assert table["one"]["answerable"] == 100.0 * is_answerable


def test_a_chinese_answer_is_found_within_a_sentence(tmp_path):
    question = QUESTIONS[0] | {"answers": ["林道"], "gold": ["4"], "titles": []}
    build(
        [Passage("4", "恩伯河", "恩伯河发源于林道，全长90公里。")],
        tmp_path / "index",
        language="zh",
    )
    path = tmp_path / "q.jsonl"
    path.write_text(json.dumps(question) + "\n")
    search = SearchConfig("bm25", str(tmp_path / "index"))
    table = coverage.run(coverage.CoverageRun(str(path), search, str(tmp_path / "out")))["one"]
    assert (table["answer_in_gold"], table["answerable"]) == (100.0, 100.0)


def test_an_answer_is_looked_for_as_whole_words(tmp_path):
    question = QUESTIONS[0] | {"answers": ["Lind"]}
    assert coverage.run(settings(tmp_path, [question]))["one"]["answer_in_gold"] == 0.0


HOTPOT = {
    "_id": "h", "question": "Who wrote Ash?", "answer": "Mara Lind", "type": "bridge",
    "level": "hard", "supporting_facts": [["Ash (song)", 0], ["Lindau", 0]],
    "context": [
        ["Ash (song)", ["Ash is a song.", " Mara Lind wrote it."]],
        ["Lindau", ["Another text."]],
        ["Noise", ["Not a gold document."]],
    ],
}  # fmt: skip


def test_a_corpus_is_completed_by_what_the_questions_ship(tmp_path):
    cfg = settings(tmp_path, [HOTPOT], complete=str(tmp_path / "whole.jsonl"))
    before = coverage.run(cfg)["hotpotqa"]
    whole = list(read_passages(tmp_path / "whole.jsonl"))
    added = Passage("added/Ash (song)", "Ash (song)", "Ash is a song. Mara Lind wrote it.")
    other = Passage("added/Lindau", "Lindau", "Another text.")  # of an article that is there
    assert whole == [*CORPUS, added, other]
    corpus = CorpusConfig(str(tmp_path / "whole.jsonl"), "", 0, 0.5)
    build_index.run(build_index.BuildIndexRun(corpus=corpus, index=str(tmp_path / "index")))
    after = coverage.run(coverage.CoverageRun(cfg.questions, cfg.search, cfg.out))["hotpotqa"]
    assert (before["answerable"], after["answerable"]) == (0.0, 100.0)


def test_a_completed_corpus_is_packed_as_its_name_says_and_replaces_its_own_alone(tmp_path):
    whole = tmp_path / "whole.jsonl.gz"
    cfg = settings(tmp_path, [HOTPOT], complete=str(whole))
    coverage.run(cfg)
    assert gzip.decompress(whole.read_bytes()).count(b"\n") == 5
    coverage.run(dataclasses.replace(cfg, complete=""))  # another run of the folder
    coverage.run(cfg)  # which wrote it
    foreign = tmp_path / "index" / "passages.jsonl"
    before = foreign.read_bytes()
    elsewhere = dataclasses.replace(cfg, out=str(tmp_path / "other"))
    whole.write_bytes(before)  # somebody else's by now
    for refused in (dataclasses.replace(cfg, complete=str(foreign)), cfg, elsewhere):
        with pytest.raises(ConfigError) as caught:
            coverage.run(refused)
        assert str(caught.value) == (
            f"config.complete is {refused.complete!r}, which is there and which no run of "
            f"config.out={refused.out!r} wrote; remove it or name another file"
        )
    assert foreign.read_bytes() == whole.read_bytes() == before
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize(
    ("row", "documents"),
    [
        (
            HOTPOT,
            [("Ash (song)", "Ash is a song. Mara Lind wrote it."), ("Lindau", "Another text.")],
        ),
        (
            {
                "supporting_facts": {"title": ["A"], "sent_id": [0]},
                "context": {"title": ["A", "B"], "sentences": [["x.", "y."], ["z."]]},
            },
            [("A", "x. y.")],
        ),
        (
            {
                "paragraphs": [
                    {"title": "A", "paragraph_text": "x", "is_supporting": True},
                    {"title": "A", "paragraph_text": "z", "is_supporting": True},
                    {"title": "B", "paragraph_text": "y", "is_supporting": False},
                ]
            },
            [("A", "x"), ("A", "z")],
        ),
        ({"context": 7, "supporting_facts": [["A", 0]]}, []),
        ({"question": "q"}, []),
    ],
)
def test_supporting_documents_of_each_form_are_read(tmp_path, row, documents):
    (tmp_path / "q.jsonl").write_text(json.dumps(row) + "\n")
    assert gold_documents(tmp_path / "q.jsonl") == documents


def test_a_document_is_added_unless_most_of_it_is_there():
    corpus = [
        *CORPUS,
        Passage("4", "Lindau", "It lies on the Ember."),
        Passage("added/Holm", "Holm", "A song of that name."),
    ]
    documents = [
        ("Lindau", "Lindau, founded by Bishop Arno in 1204, lies on the Ember."),
        ("lindau", "In 1650 all of its houses burned."),
        ("Holm", "Holm is an island far in the north."),
        ("Holm", "It has forty people and no harbour."),
        ("Holm", ""),
    ]
    assert additions(documents, corpus) == [
        Passage("added/lindau", "lindau", documents[1][1]),
        Passage("added/Holm#2", "Holm", documents[2][1]),
        Passage("added/Holm#3", "Holm", documents[3][1]),
    ]


def test_a_file_of_questions_must_be_named():
    with pytest.raises(ConfigError, match=r"config\.questions is empty"):
        coverage.run(coverage.CoverageRun())

"""Spans that another passage of the corpus holds."""

import collections

import pytest

from masksearch_jax import build_ramp
from masksearch_jax.core.corpus_config import CorpusConfig, RampConfig
from masksearch_jax.core.jsonl import read_jsonl
from masksearch_jax.core.types import Passage, RampExample
from masksearch_jax.corpus.passages import write_passages
from masksearch_jax.ramp import spans, support
from masksearch_jax.search import bm25
from masksearch_jax.search.tool import FakeSearch

BELL = Passage(
    "b", "John Bell", "John Bell was born in Salford in 1867 and studied with Marie Quill at Tarn."
)
SALFORD = Passage("s", "Salford", "Salford is a town. The surveyor John Bell was born there.")
QUILL = Passage("q", "Marie Quill", "Marie Quill taught a surveyor, who had come to her in 1867.")
OTHER = Passage("o", "Sand", "Sand is a material that is found in 18678 places on many shores.")
CORPUS = [BELL, SALFORD, QUILL, OTHER]


def texts(found):
    return [s.text for s in found.spans]


@pytest.fixture(scope="module")
def index(tmp_path_factory):
    folder = tmp_path_factory.mktemp("support") / "index"
    bm25.build(CORPUS, folder)
    return bm25.BM25.open(folder)


def test_only_spans_that_another_passage_holds_are_kept(index):
    rules = spans.RulesExtractor()
    (plain,) = rules.find([BELL])
    assert texts(plain) == ["Salford", "1867", "Marie Quill", "Tarn"]
    (kept,) = support.SupportedExtractor(rules, index).find([BELL])
    assert texts(kept) == ["Salford", "1867", "Marie Quill"]
    assert kept.refused == plain.refused + collections.Counter(unsupported=1)
    reworded = Passage("b#1", BELL.title, BELL.text)  # of passage b, which does not count
    assert texts(support.SupportedExtractor(rules, index).find([reworded])[0]) == texts(kept)


def test_as_many_passages_are_looked_at_as_told():
    search = FakeSearch(lambda query: [BELL, OTHER, SALFORD, QUILL])
    rules = spans.RulesExtractor()
    for depth, expected in ((1, []), (2, ["Salford"]), (3, ["Salford", "1867", "Marie Quill"])):
        (found,) = support.SupportedExtractor(rules, search, depth).find([BELL])
        assert texts(found) == expected


def test_a_query_has_the_title_and_what_is_around_the_span_without_it():
    (found,) = spans.RulesExtractor().find([BELL])
    queries = [support.query(BELL, span) for span in found.spans]
    assert queries[0] == (
        "John Bell John Bell was born in in 1867 and studied with Marie Quill at Tarn"
    )
    assert all(s.text not in q for s, q in zip(found.spans, queries, strict=True))


def test_a_build_counts_what_no_other_passage_supports(tmp_path):
    write_passages(tmp_path / "corpus.jsonl", CORPUS)

    def build(**ramp):
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        cfg = build_ramp.BuildRampRun(
            str(folder),
            CorpusConfig(str(tmp_path / "corpus.jsonl"), "", 0, 0.0),
            RampConfig(min_words=3, heldout_fraction=0.0, **ramp),
        )
        return build_ramp.run(cfg), read_jsonl(folder / "ramp" / "train.jsonl", RampExample)

    plain, _ = build()
    assert "unsupported" not in plain["ramp"]["refused_spans"]
    counts, made = build(supported=True)
    assert counts["ramp"]["refused_spans"]["unsupported"] >= 1
    assert 0 < len(made) < plain["ramp"]["out"]
    by_title = {p.title: p.text for p in CORPUS}
    for example in made:
        others = [text for title, text in by_title.items() if title != example.title]
        for span in example.spans:
            assert any(span.text in text for text in (*others, *by_title))

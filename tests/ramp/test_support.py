"""Spans that another passage of the corpus holds."""

import collections
import dataclasses

import pytest

from masksearch_jax import build_ramp
from masksearch_jax.core.corpus_config import CorpusConfig, RampConfig
from masksearch_jax.core.errors import ConfigError
from masksearch_jax.core.jsonl import read_jsonl
from masksearch_jax.core.types import Passage, RampExample, Span
from masksearch_jax.corpus.passages import write_passages
from masksearch_jax.ramp import examples, spans, support
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
    of_rewordings = support.SupportedExtractor(rules, index, has_rewordings=True)
    assert texts(of_rewordings.find([reworded])[0]) == texts(kept)


def test_a_passage_with_a_number_sign_in_its_id_is_no_support_of_itself():
    bell = dataclasses.replace(BELL, id="b#1")
    search = FakeSearch(lambda query: [bell, OTHER, SALFORD])
    (found,) = support.SupportedExtractor(spans.RulesExtractor(), search).find([bell])
    assert texts(found) == ["Salford"]


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


# ---- links

LAKE = Passage("l", "Lake Esk", "At Lake Esk lies Ford, where Ann Moor was born in 1901.")
MOOR = Passage("m", "Ann Moor", "Ann Moor drew many maps. She was a pupil of Otto Rill.")
FORD = Passage("f", "Ford", "Ford is a town whose mayor was Otto Rill. It has a mill.")


def span(passage, text):
    start = passage.text.index(text)
    return Span(start, start + len(text), text, "TERM")


@pytest.fixture(scope="module")
def born():
    """A paragraph on Ann Moor whose evidence is in other passages."""
    return Passage(
        "w", "Pilots", "A pilot born at Ford in 1901, Ann Moor, was taught by Otto Rill."
    )


def test_two_spans_are_linked_where_one_passage_leads_to_the_next(born):
    ford, rill, year = (span(born, text) for text in ("Ford", "Otto Rill", "1901"))
    evidence = {ford: [LAKE], year: [LAKE], rill: [FORD]}
    # Who has read of the lake knows of Ford, which the paragraph names where it is not masked.
    assert support.links(born, evidence) == ((ford, rill),)
    assert support.links(born, {ford: [LAKE], rill: [MOOR]}) == ()  # named: Ann Moor
    assert support.links(born, {ford: [FORD], rill: [FORD]}) == ()  # one passage tells both
    holding = Passage("h", "Mills", "At Ford, 1901, Otto Rill was born.")
    assert support.links(born, {ford: [holding], rill: [FORD]}) == ()  # it holds the second too
    own = Passage("w", "Ford", born.text)  # a title that the reader is given
    assert support.links(own, evidence) == ()


def test_linked_spans_are_masked_together_and_the_others_drawn(born):
    spans_ = [span(born, text) for text in ("Ford", "1901", "Ann Moor", "Otto Rill")]
    pair = (spans_[0], spans_[3])
    for k in (2, 3):
        made = [examples.mask_paragraph(born, spans_, k, i, 0, None, [pair]) for i in range(20)]
        assert all(set(pair) <= set(e.spans) and e.k == k for e in made)
    assert len({e.masked for e in made}) == 2  # the third is one of the two others


def test_a_build_with_linked_masks_counts_the_paragraphs_without(born, tmp_path):
    passages = [born, LAKE, MOOR, FORD, *CORPUS]
    write_passages(tmp_path / "corpus.jsonl", passages)
    corpus = CorpusConfig(str(tmp_path / "corpus.jsonl"), "", 0, 0.0)
    ramp = RampConfig(min_words=3, heldout_fraction=0.0, linked=True)
    counts = build_ramp.run(build_ramp.BuildRampRun(str(tmp_path / "data"), corpus, ramp))
    made = read_jsonl(tmp_path / "data" / "ramp" / "train.jsonl", RampExample)
    assert counts["ramp"]["dropped"]["no_linked_spans"] >= 1
    bm25.build(passages, tmp_path / "index")
    search = bm25.BM25.open(tmp_path / "index")
    linking = support.SupportedExtractor(spans.RulesExtractor(), search, is_linking=True)
    found = dict(zip([p.id for p in passages], linking.find(passages), strict=True))
    assert {e.passage_id for e in made} == {p for p, own in found.items() if own.links} >= {"w"}
    for example in made:
        pairs = found[example.passage_id].links
        assert any(set(pair) <= set(example.spans) for pair in pairs)


def test_linked_masks_are_two_at_least():
    with pytest.raises(ConfigError, match=r"ramp\.linked is True, and config\.ramp\.max_masks 1"):
        examples.check_settings(RampConfig(linked=True, max_masks=1))

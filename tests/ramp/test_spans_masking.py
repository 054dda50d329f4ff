"""Salient spans, masks and their inverse, and the balanced, split RAMP examples."""

import collections
import gzip
import itertools
import json
import random

import hypothesis
import hypothesis.strategies as st
import pytest

from masksearch_jax.core import markup
from masksearch_jax.core.corpus_config import RampConfig
from masksearch_jax.core.errors import ConfigError
from masksearch_jax.core.jsonl import read_jsonl, write_jsonl
from masksearch_jax.core.types import Passage, RampExample, Span
from masksearch_jax.corpus import atlas
from masksearch_jax.ramp import gazetteer, masking, spans
from masksearch_jax.ramp.examples import build_examples, is_heldout, split_of

CONFIG = RampConfig(cities=20, min_words=5, max_words=120, heldout_fraction=0.2, rl_fraction=0.25)


def replaced(**changes):
    return RampConfig(**{**CONFIG.__dict__, **changes})


def find(paragraph, title="Nothing", **options):
    extractor = spans.RulesExtractor(**options)
    return extractor.find([Passage("1", title, paragraph)])[0]


def found(paragraph, title="Nothing", **options):
    return [(s.text, s.type) for s in find(paragraph, title, **options).spans]


# ---- spans ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("paragraph", "expected"),
    [
        (
            "It was signed on 4 December 1982 by George McCready Price in Oxford.",
            [("4 December 1982", "DATE"), ("George McCready Price", "PERSON"), ("Oxford", "PLACE")],
        ),
        (
            "On February 21, 1967 about 2.1 million people left, and 25% came back in the 1970s.",
            [
                ("February 21, 1967", "DATE"),
                ("2.1 million", "NUMBER"),
                ("25%", "NUMBER"),
                ("1970s", "DATE"),
            ],
        ),
        (
            "The bridge is 1,280 m long and cost $35 million in the 19th century.",
            [("1,280 m", "NUMBER"), ("$35 million", "NUMBER"), ("19th century", "DATE")],
        ),
        (
            "She taught at the University of California and joined NASA under J. A. Marinsky.",
            [("University of California", "ORG"), ("NASA", "ORG"), ("J. A. Marinsky", "PERSON")],
        ),
        (
            'It keeps Asia/Ho Chi Minh time, ends in .vn and is called "bringer of light".',
            [("Asia/Ho Chi Minh", "PLACE"), (".vn", "TERM"), ("bringer of light", "TERM")],
        ),
        ("Its symbol is F. It has 35.3 degrees north.", [("35.3 degrees north", "NUMBER")]),
        (
            "He saw St. Louis and N'Djamena.",
            [("St. Louis", "PERSON"), ("N'Djamena", "TERM")],
        ),
    ],
)
def test_spans_by_rule(paragraph, expected):
    assert found(paragraph) == expected


@pytest.mark.parametrize(
    ("paragraph", "title", "reason"),
    [
        ("the work of Marie Curie was known", "Marie Curie", "title"),
        ("the work of Curie was known", "Marie Curie", "title"),
        ("they met at the Red Hat Headquarters.", "Red Hat", "title"),
        ("from Paris he went back to Paris again", "Nobody", "repeated"),
        ("seen from Japan it is a Japanese island", "Nobody", "given_away"),
        ("Rivers cross the land", "Nobody", "sentence_start"),
        ("He left. Critics were glad", "Nobody", "sentence_start"),
        ("they met in the shop on Monday.", "Nobody", "trivial"),
        ("there were 5 of them", "Nobody", "trivial"),
        ("the Society of Aa Bb Cc Dd Ee Ff met", "Nobody", "too_long"),
    ],
)
def test_refusals_carry_their_reason(paragraph, title, reason):
    kept, refused, _ = find(paragraph, title)
    assert refused[reason] >= 1
    assert {s.text for s in kept} <= {"Society"}


def test_words_that_only_open_a_sentence_are_cut_off():
    assert found("In France it rained. Critics of Marx left.") == [
        ("France", "PLACE"),
        ("Marx", "PLACE"),
    ]
    assert found("Osaka grew.") == []
    known = gazetteer.Gazetteer("en", {"Osaka": "PLACE"})
    assert found("Osaka grew.", gazetteer=known) == [("Osaka", "PLACE")]


def test_spans_of_real_paragraphs(shared_data):
    with gzip.open(shared_data / "wiki_en" / "paragraphs.jsonl.gz") as file:
        rows = [json.loads(line) for line in itertools.islice(file, 600)]
    refused = collections.Counter()
    per_paragraph = []
    for row in rows:
        spans_found, why, _ = find(row["text"], row["title"])
        refused += why
        per_paragraph.append(len(spans_found))
        for a, b in itertools.pairwise(spans_found):
            assert a.end <= b.start
        for span in spans_found:
            assert row["text"][span.start : span.end] == span.text
            assert span.type in spans.TYPES
            assert not set(span.text.split()) <= set(row["title"].split())
    assert sum(n > 0 for n in per_paragraph) > 0.8 * len(rows)
    assert sum(per_paragraph) > 4 * len(rows)
    reasons = ("sentence_start", "repeated", "title", "trivial", "given_away", "too_long")
    assert set(refused) == {*reasons, "demonym", "quoted_words", "cut_name"}


# ---- masks ------------------------------------------------------------------------------------


@st.composite
def marked_paragraphs(draw):
    """A paragraph and spans of it that may overlap."""
    paragraph = draw(st.text(st.characters(codec="utf-8"), min_size=1, max_size=60))
    hypothesis.assume(not masking.has_reserved(paragraph))
    size = len(paragraph)
    pairs = draw(st.lists(st.tuples(st.integers(0, size - 1), st.integers(1, 8)), max_size=7))
    return paragraph, [
        Span(i, min(i + n, size), paragraph[i : min(i + n, size)], "TERM") for i, n in pairs
    ]


@hypothesis.given(marked_paragraphs(), st.integers(0, 9), st.integers(1, 4))
def test_unmask_inverts_mask(marked, seed, k):
    paragraph, marks = marked
    hypothesis.assume(len(masking.disjoint(marks)) >= k)
    masked, chosen = masking.mask(paragraph, marks, k, random.Random(seed))
    assert masked.count(markup.MASK) == k == len(set(chosen))
    assert masking.unmask(masked, [s.text for s in chosen]) == paragraph
    assert all(a.end <= b.start for a, b in itertools.pairwise(chosen))
    assert masking.mask(paragraph, marks, k, random.Random(seed)) == (masked, chosen)


@hypothesis.given(marked_paragraphs())
def test_disjoint_keeps_as_many_as_possible(marked):
    _, marks = marked

    def fits(chosen):
        ordered = sorted(chosen, key=lambda s: s.start)
        return all(a.end <= b.start for a, b in itertools.pairwise(ordered))

    best = max(
        n for n in range(len(marks) + 1) if any(fits(c) for c in itertools.combinations(marks, n))
    )
    assert len(masking.disjoint(marks)) == best


def test_masks_are_drawn_evenly_and_without_replacement():
    paragraph = "a b c d e"
    marks = [Span(i, i + 1, paragraph[i], "TERM") for i in range(0, 9, 2)]
    rng = random.Random(0)
    drawn = collections.Counter(
        s.text for _ in range(2000) for s in masking.mask(paragraph, marks, 2, rng)[1]
    )
    assert all(abs(n - 800) < 100 for n in drawn.values())


@pytest.mark.parametrize("text", ["a [mask] here", "a [MASK] here", "<answer>x", "x</THINK>"])
def test_reserved_text_is_not_masked(text):
    assert masking.has_reserved(text)
    with pytest.raises(ValueError, match="already holds"):
        masking.mask(text, [Span(0, 1, text[0], "TERM")], 1, random.Random(0))


def test_mask_and_unmask_name_what_is_wrong():
    span = Span(0, 1, "a", "TERM")
    with pytest.raises(ValueError, match="k is 2; it must be 1 to 1"):
        masking.mask("ab", [span, span], 2, random.Random(0))
    with pytest.raises(ValueError, match="not at its place"):
        masking.mask("ba", [span], 1, random.Random(0))
    with pytest.raises(ValueError, match="1 fills for 2 masks"):
        masking.unmask("[mask] and [mask]", ["x"])


# ---- examples ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def paragraphs():
    return atlas.build(seed=0, cities=250).paragraphs


@pytest.fixture(scope="module")
def built(paragraphs):
    return build_examples(paragraphs, CONFIG, lambda line: None, has_rewordings=True)


def test_examples_are_balanced_over_the_number_of_masks(built):
    made, stats = built
    for split, examples in made.items():
        counts = collections.Counter(e.k for e in examples)
        assert set(counts) == {1, 2, 3, 4}
        assert max(counts.values()) - min(counts.values()) <= 1
        assert stats.examples[split] == counts


def test_no_article_is_in_two_splits(built):
    titles = {split: {e.title for e in examples} for split, examples in built[0].items()}
    everything = sum(map(len, titles.values()))
    assert len(set.union(*titles.values())) == everything
    assert 0.1 < len(titles["heldout"]) / everything < 0.3
    assert 0.1 < len(titles["rl"]) / everything < 0.3
    assert all(is_heldout(t, 0.2, 0) for t in titles["heldout"])
    again = split_of(next(iter(titles["rl"])), replaced(rl_fraction=0.0))
    assert again == "train"  # rl is a part of what would be trained on, not of what is held out


def test_examples_hold_together(built, paragraphs):
    known = {p.id: p for p in paragraphs}
    examples = [e for made in built[0].values() for e in made]
    assert len({e.id for e in examples}) == len(examples)
    for example in examples:
        paragraph = known[example.id.rpartition("@")[0]]
        assert example.paragraph == paragraph.text
        assert example.passage_id == paragraph.id.partition("#")[0]
        assert masking.unmask(example.masked, [s.text for s in example.spans]) == paragraph.text
        assert example.masked.count(markup.MASK) == example.k


def test_a_passage_keeps_the_whole_of_an_id_that_has_a_number_sign():
    text = "The town of Sora lies in Lazio and has 25,000 people."
    given = [Passage(f"doc#{i}", f"Sora {i}", f"{text} Number {i}.") for i in (1, 2)]
    made, _ = build_examples(given, CONFIG, lambda line: None)
    examples = [e for split in made.values() for e in split]
    assert {e.passage_id for e in examples} == {"doc#1", "doc#2"}


def test_every_paragraph_is_accounted_for(built, paragraphs):
    made, stats = built
    assert stats.paragraphs == len(paragraphs) == stats.used
    given = CONFIG.examples_per_passage * len(paragraphs)
    assert stats.dropped == {"same_masks_again": given - sum(map(len, made.values()))}
    assert stats.refused["title"] > 0


def test_drops_are_counted_by_reason():
    text = "The town of Sora lies in Lazio and has 25,000 people."
    given = [
        Passage("1", "Sora", text),
        Passage("2", "Sora", text),
        Passage("3", "Short", "In Rome."),
        Passage("4", "Long", text + " again" * 200),
        Passage("5", "Tagged", text + " [mask]"),
        Passage("6", "Plain", "there is nothing to be found in here"),
    ]
    lines = []
    config = replaced(heldout_fraction=0.0, rl_fraction=0.0)
    made, stats = build_examples(given, config, lines.append)
    assert made["rl"] == made["heldout"] == []
    assert {e.title for e in made["train"]} == {"Sora"}
    reasons = ("duplicate", "too_short", "too_long", "reserved_text", "no_spans")
    assert stats.dropped == dict.fromkeys(reasons, 1)
    assert (stats.paragraphs, stats.used) == (6, 1)
    assert any("6 paragraphs in, 1 used" in line for line in lines)


def test_max_examples_bounds_the_build_and_the_seed_decides_it(paragraphs):
    def ids(**changes):
        made, _ = build_examples(paragraphs, replaced(**changes), lambda line: None)
        train, heldout = made["train"] + made["rl"], made["heldout"]
        return [e.id for e in train], [e.id for e in heldout]

    few = ids(max_examples=50)
    assert len(few[0]) + len(few[1]) == 50
    odd = ids(max_examples=49)
    assert len(odd[0]) + len(odd[1]) == 49
    assert ids(max_examples=50) == few
    assert ids(max_examples=50, seed=1) != few


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"max_masks": 0}, "ramp.max_masks is 0"),
        ({"examples_per_passage": 0}, "ramp.examples_per_passage is 0"),
        ({"heldout_fraction": 1.0}, "ramp.heldout_fraction is 1.0"),
        ({"min_words": 9, "max_words": 8}, "min_words is 9; it must not be above max_words, 8"),
        ({"extractor": "ner"}, "ramp.extractor is 'ner'; choices: rules, spacy, llm"),
        ({"strategy": "best"}, "ramp.strategy is 'best'; choices: random, weighted, ppl"),
        ({"min_nll": 7.0}, "ramp.min_nll is 7.0; it must not be above max_nll, 6.0"),
    ],
)
def test_impossible_configs_are_named(changes, message):
    with pytest.raises(ConfigError, match=message):
        build_examples([], replaced(**changes), lambda line: None)


def test_jsonl_round_trip_and_its_errors(tmp_path, built):
    train = built[0]["train"][:20]
    path = tmp_path / "deep" / "train.jsonl"
    assert write_jsonl(path, train) == 20
    assert read_jsonl(path, RampExample) == train
    with pytest.raises(RuntimeError, match="stop"):
        write_jsonl(path, _failing(train))
    assert read_jsonl(path, RampExample) == train
    assert [p.name for p in path.parent.iterdir()] == ["train.jsonl"]
    path.write_text(path.read_text() + '{"id": 1}\n')
    with pytest.raises(ValueError, match=r"train.jsonl:21: not a RampExample"):
        read_jsonl(path, RampExample)


def _failing(records):
    yield records[0]
    raise RuntimeError("stop")


def test_real_passages_make_balanced_examples(shared_data):
    with gzip.open(shared_data / "wiki_en" / "passages.jsonl.gz") as file:
        rows = [json.loads(line) for line in itertools.islice(file, 1500)]
    given = [Passage(r["id"], r["title"], r["text"]) for r in rows]
    made, stats = build_examples(given, CONFIG, lambda line: None)
    train, heldout = made["train"] + made["rl"], made["heldout"]
    for split in made.values():
        counts = collections.Counter(e.k for e in split)
        assert max(counts.values()) - min(counts.values()) <= 1
    assert stats.used > 0.9 * len(given)
    assert len(train) + len(heldout) == 2 * stats.used - stats.dropped["same_masks_again"]

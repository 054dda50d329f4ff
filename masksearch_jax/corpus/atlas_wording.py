"""Articles of the atlas as prose: one opening, then verb phrases joined to short sentences.

Each fact group has four phrasings or more; `compose` draws phrasing, order and joins from its rng.
"""

from __future__ import annotations

import random
import re
from collections.abc import Collection, Mapping

from masksearch_jax.corpus.atlas_facts import Entity

_WITH_ARTICLE = re.compile(
    r"(United |Netherlands$|Philippines$|Bahamas$|Maldives$|Comoros$|Seychelles$|Gambia$|Vatican$"
    r"|Isle of |Republic of |Democratic |British |French Southern |USSR|U\.S\. )"
    r"|.*(Islands|Republic|Territory)$"
)
_INSTITUTE = re.compile(
    r"(?:^|(?<= and ))"
    r"((?:Nobel|Joint) Institute|Heavy Ion|GSI|Lawrence Livermore|Oak Ridge|University of)"
)

# Facts of each group, per kind, in the order of a full article. A group is told or left out whole.
GROUPS: dict[str, dict[str, tuple[str, ...]]] = {
    "country": {
        "continent": ("continent",),
        "capital": ("capital",),
        "currency": ("currency", "currency_code"),
        "population": ("population",),
        "area": ("area",),
        "domain": ("domain",),
        "calling": ("calling",),
        "neighbours": ("neighbour",),
    },
    "city": {
        "country": ("country",),
        "population": ("population",),
        "zone": ("zone",),
        "latitude": ("latitude",),
        "neighbour": ("neighbour", "distance"),
    },
    "element": {
        "symbol": ("symbol",),
        "number": ("number",),
        "discovery": ("discoverer", "year", "place"),
        "word": ("language", "word", "meaning"),
        "after": ("after",),
    },
}

# The first two of each begin with the name.
_OPENINGS: dict[str, tuple[str, ...]] = {
    "country": (
        "{Name} lies in {continent}",
        "{Name} is part of {continent}",
        "{Name} belongs to {continent}",
        "In {continent} lies {name}",
    ),
    "city": (
        "{name} is a city in {country}",
        "{name} is a city of {country}",
        "The city of {name} belongs to {country}",
        "In {country} lies the city of {name}",
    ),
    "capital": (
        "{name} is the capital of {country}",
        "{name} serves {country} as its capital",
        "{Country} has its capital at {name}",
        "The capital of {country} is {name}",
    ),
    "symbol": (
        "{name} is the element with the symbol {symbol}",
        "{name} is the chemical element {symbol}",
        "{symbol} stands for the element {name}",
        "The element {name} has the symbol {symbol}",
    ),
    "number": (
        "{name} is the element with atomic number {number}",
        "{name} is element {number} of the periodic table",
        "The element {name} has atomic number {number}",
        "Number {number} of the elements is {name}",
    ),
}
_SUBJECTS = {
    "country": ("It",),
    "city": ("It", "It", "The city"),
    "element": ("It", "It", "The element"),
}

_PHRASES: dict[str, dict[str, tuple[str, ...]]] = {
    "country": {
        "capital": (
            "has its capital at {capital}",
            "has {capital} as its capital",
            "has the capital {capital}",
            "counts {capital} as its capital",
        ),
        "currency": (
            "uses the {currency} ({currency_code})",
            "pays in the {currency} ({currency_code})",
            "has the {currency} ({currency_code}) as its currency",
            "has a currency called the {currency} ({currency_code})",
        ),
        "population": (
            "has {population} inhabitants",
            "is home to {population} people",
            "has a population of {population}",
            "counts {population} residents",
        ),
        "area": (
            "covers {area}",
            "has an area of {area}",
            "measures {area}",
            "spans {area}",
        ),
        "domain": (
            "has the internet domain {domain}",
            "uses {domain} on the internet",
            "is found under the domain {domain}",
            "ends its web addresses in {domain}",
        ),
        "calling": (
            "has the calling code {calling}",
            "is dialled with {calling}",
            "is reached by telephone at {calling}",
            "uses the calling code {calling}",
        ),
        "neighbours": (
            "borders {neighbours}",
            "shares a border with {neighbours}",
            "is next to {neighbours}",
            "touches {neighbours}",
        ),
    },
    "city": {
        "population": (
            "has {population} inhabitants",
            "is home to {population} people",
            "has a population of {population}",
            "counts {population} residents",
        ),
        "zone": (
            "keeps {zone} time",
            "is in the {zone} time zone",
            "uses the {zone} time zone",
            "sets its clocks to {zone} time",
        ),
        "latitude": (
            "lies at {latitude}",
            "stands at {latitude}",
            "is {latitude} of the equator",
            "sits {latitude} of the equator",
        ),
        "neighbour": (
            "is {distance} from {neighbour}, the nearest larger city",
            "has {neighbour} as its nearest larger city, {distance} away",
            "lies {distance} from its nearest larger city, {neighbour}",
            "has its nearest larger city, {neighbour}, {distance} away",
        ),
    },
    "element": {
        "symbol": (
            "has the symbol {symbol}",
            "is written {symbol}",
            "is abbreviated {symbol}",
            "bears the symbol {symbol}",
        ),
        "number": (
            "has atomic number {number}",
            "is number {number} in the periodic table",
            "stands at place {number} of the periodic table",
            "has {number} protons",
        ),
        "discovery": (
            "was discovered by {discoverer} in {year} in {place}",
            "was found in {year} by {discoverer} in {place}",
            "was first identified in {place} by {discoverer} in {year}",
            "became known in {year} through {discoverer} in {place}",
        ),
        "ancient": (
            "has been known since antiquity",
            "was known to the ancients",
            "is known from ancient times",
            "was already in use in antiquity",
        ),
        "word": (
            'is named after the {language} {word}, "{meaning}"',
            'takes its name from {language} {word}, "{meaning}"',
            'has a name from the {language} {word}, "{meaning}"',
            'owes its name to the {language} {word}, "{meaning}"',
        ),
        "after": (
            "is named after {after}",
            "takes its name from {after}",
            "was named for {after}",
            "owes its name to {after}",
        ),
    },
}


def in_prose(place: str) -> str:
    """A place's name as it stands inside a sentence: the Philippines, Japan."""
    return f"the {place}" if _WITH_ARTICLE.match(place) else place


def groups_of(entity: Entity) -> tuple[str, ...]:
    """The fact groups that an entity has, in the order of a full article."""
    groups = GROUPS[entity.kind]
    return tuple(g for g, facts in groups.items() if all(f in entity.facts for f in facts))


def compose(
    entity: Entity, groups: Collection[str], rng: random.Random, *, name_first: bool = False
) -> str:
    """A paragraph that tells exactly the facts of `groups` and names its entity.

    name_first: it begins with the name where one of the openings does, as an encyclopedia's does.
    """
    values = _values(entity)
    left = [g for g in groups_of(entity) if g in groups]
    if entity.kind == "element" and "discovery" not in groups_of(entity):
        left.append("ancient")
    opener = _opening_group(entity, left)
    phrases = _PHRASES[entity.kind]
    rng.shuffle(left)
    sentences = []
    if opener:
        left.remove(opener)
        key = opener if entity.kind == "element" else entity.kind
        key = "capital" if "capital_of" in entity.facts else key
        openings = _OPENINGS[key][:2] if name_first else _OPENINGS[key]
        sentences.append(rng.choice(openings).format(**values))
    verbs = [rng.choice(phrases[g]).format(**values) for g in left]
    subjects = _SUBJECTS[entity.kind]
    if not opener:
        city = entity.kind == "city" and not name_first
        named = ("The city of {name}" if city else "{Name}").format(**values)
        sentences.append(f"{named} {verbs.pop(0)}")
    while verbs:
        taken = [verbs.pop(0) for _ in range(min(len(verbs), rng.choice((1, 2, 2))))]
        sentences.append(f"{rng.choice(subjects)} {_join(taken)}")
    return " ".join(f"{s}." for s in sentences)


def statement(entity: Entity, fact: str, value: str, rng: random.Random) -> str:
    """A sentence that gives a fact of the entity this value, which need not be its own.

    fact: one that is a group by itself.
    """
    values = {**_values(entity), fact: value}
    phrase = rng.choice(_PHRASES[entity.kind][fact])
    return f"{values['Name']} {phrase.format(**values)}."


def _join(phrases: list[str]) -> str:
    """Verb phrases as one: "has 7 rivers and a harbour", an apposition last, a shared verb once."""
    first, *rest = sorted(phrases, key=lambda p: ", " in p)
    verb = first.split()[0]
    return " and ".join([first, *(p.removeprefix(f"{verb} ") for p in rest)])


def _opening_group(entity: Entity, groups: list[str]) -> str | None:
    """The group that opens the article; None where none of those that can is told."""
    choices = {"country": ("continent",), "city": ("country",), "element": ("symbol", "number")}
    return next((g for g in choices[entity.kind] if g in groups), None)


def _values(entity: Entity) -> Mapping[str, str]:
    facts = dict(entity.facts)
    name = in_prose(entity.name) if entity.kind == "country" else entity.name
    neighbours = [in_prose(facts[k]) for k in ("neighbour", "neighbour2") if k in facts]
    country = in_prose(facts.get("country", ""))
    place = " and ".join(in_prose(p) for p in facts.get("place", "").split(" and "))
    return facts | {
        "name": name,
        "Name": name[0].upper() + name[1:],
        "country": country,
        "Country": country[:1].upper() + country[1:],
        "place": place,
        "discoverer": _INSTITUTE.sub(r"the \1", facts.get("discoverer", "")),
        "neighbours": " and ".join(neighbours),
    }

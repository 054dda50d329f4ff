"""Questions of the atlas that want arithmetic or dates: two articles to read, then a computation.

Neither article says the answer: it is computed from one fact of each, as the articles tell it.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from masksearch_jax.core.types import QAExample
from masksearch_jax.corpus import atlas_wording
from masksearch_jax.corpus.atlas_facts import Entity

_SCALES = {"million": 10**6, "billion": 10**9}


class _Computed(NamedTuple):
    """What a tool is asked, and all that counts as its answer."""

    call: str
    answers: tuple[str, ...]


class _Type(NamedTuple):
    """A type of question: of which kinds of entities, of which fact, computed how, in which words.

    compute: of the facts of the two; None where there is nothing to ask. partners: that each
    entity is asked about with.
    """

    kinds: tuple[str, ...]
    fact: str
    compute: Callable[[str, str], _Computed | None]
    texts: tuple[str, ...]
    partners: int


def _value(fact: str) -> int:
    """The number that a fact says: 24.9 million, 173,000."""
    figure, _, scale = fact.replace(",", "").partition(" ")
    return round(float(figure) * _SCALES.get(scale, 1))


def _more(first: str, second: str) -> _Computed | None:
    more = _value(first) - _value(second)
    return _Computed(f"calculate: {first} - {second}", (f"{more:,}",)) if more > 0 else None


def _together(first: str, second: str) -> _Computed:
    return _Computed(f"calculate: {first} + {second}", (f"{_value(first) + _value(second):,}",))


def _years_later(first: str, second: str) -> _Computed | None:
    if not (first.isdecimal() and second.isdecimal()) or int(second) <= int(first):
        return None
    years = int(second) - int(first)
    told = f"{years:,} year{'s' if years > 1 else ''}"
    return _Computed(f"date: {first} to {second}", (told, f"{years:,}"))


_TYPES = {
    "population_difference": _Type(
        ("city", "country"),
        "population",
        _more,
        (
            "How many more people live in {a} than in {b}?",
            "By how much is the population of {a} larger than that of {b}?",
            "What is the difference between the populations of {a} and {b}?",
        ),
        1,
    ),
    "population_sum": _Type(
        ("city", "country"),
        "population",
        _together,
        (
            "How many people live in {a} and in {b} together?",
            "What is the population of {a} and {b} taken together?",
            "How many inhabitants have {a} and {b} in all?",
        ),
        1,
    ),
    "discovery_gap": _Type(
        ("element",),
        "year",
        _years_later,
        (
            "How many years after {a} was {b} discovered?",
            "How many years lie between the discovery of {a} and that of {b}?",
            "How long after the discovery of {a} was {b} found?",
        ),
        8,
    ),
}


def questions(
    entities: Sequence[Entity], told: Mapping[str, Mapping[str, str]], seed: int
) -> list[QAExample]:
    """Questions of all types, each of an entity and another of its kind, drawn at random.

    told: the facts that each article tells, by the entity's id; of an entity whose title does not
    stand for itself in a sentence nothing is asked.
    """
    found = []
    for name, asked in _TYPES.items():
        for kind in asked.kinds:
            able = [
                e
                for e in entities
                if e.kind == kind and asked.fact in told[e.id] and not set(e.title) & set("(,")
            ]
            for entity in able:
                rng = random.Random(f"{seed}/{entity.id}/{name}")
                drawn = rng.sample(able, min(asked.partners + 1, len(able)))
                others = [other for other in drawn if other is not entity][: asked.partners]
                found += [q for o in others if (q := _question(name, entity, o, told, rng))]
    return found


def _question(
    name: str,
    first: Entity,
    second: Entity,
    told: Mapping[str, Mapping[str, str]],
    rng: random.Random,
) -> QAExample | None:
    asked = _TYPES[name]
    computed = asked.compute(told[first.id][asked.fact], told[second.id][asked.fact])
    facts = {*told[first.id].values(), *told[second.id].values()}
    if computed is None or facts & set(computed.answers):
        return None
    a, b = (atlas_wording.in_prose(entity.title) for entity in (first, second))
    return QAExample(
        id=f"atlas:{name}:{first.id}:{second.id}",
        dataset="atlas",
        question=rng.choice(asked.texts).format(a=a, b=b),
        answers=computed.answers,
        gold=(first.id, second.id),
        type=name,
        calls=(computed.call,),
    )

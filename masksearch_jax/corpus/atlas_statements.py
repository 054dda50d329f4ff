"""Statements on the atlas that are to be checked: true, false, or not told by any passage.

Every fact that is stated is one that some articles tell and others of the same kind leave out, so
that the fact gives no label away. Values do not either: those of false statements are true values
of other statements, each as often as it is stated truly where it comes from.
"""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import NamedTuple

from masksearch_jax.core.types import STATEMENTS, VERDICTS, QAExample
from masksearch_jax.corpus import atlas_wording
from masksearch_jax.corpus.atlas_facts import Entity

# Facts that are told by their own article alone, and by one article of a kind and not by another.
_FACTS = {"country": ("area", "domain", "calling"), "city": ("zone", "latitude")}
_ASKED = "Is this true, false or not told? {statement}"


class _Stated(NamedTuple):
    entity: Entity
    fact: str
    label: str
    value: str  # what the entity's fact is


def statements(
    entities: Iterable[Entity], told: Mapping[str, Mapping[str, str]], seed: int
) -> tuple[QAExample, ...]:
    """At most one statement of each entity and fact.

    told: the facts of each indexed passage, by its id. `type` is the label, `level` the fact, and
    `gold` the passage that tells the fact, or would.
    """
    groups: dict[Hashable, list[_Stated]] = defaultdict(list)
    for entity in entities:
        if entity.title != entity.name or entity.id not in told:
            continue  # a title that tells namesakes apart tells a fact
        for fact in _FACTS.get(entity.kind, ()):
            if value := entity.facts.get(fact):
                draw = random.Random(f"{seed}/{entity.id}/{fact}/statement")
                label = draw.choice(VERDICTS[:2]) if fact in told[entity.id] else VERDICTS[2]
                is_own = label == "true" or (label == VERDICTS[2] and draw.random() < 0.5)
                kind = (entity.kind, fact, label, is_own, _near(fact, value))
                groups[kind].append(_Stated(entity, fact, label, value))
    made = []
    for (_, _, _, is_own, _), stated in groups.items():
        pairs = [(one, one.value) for one in stated] if is_own else _swapped(stated, seed)
        made += [_example(one, value, seed) for one, value in pairs]
    return tuple(sorted(made, key=lambda example: example.id))


def _near(fact: str, value: str) -> str:
    """Of what a wrong value must be like the right one: of a time zone the continent."""
    return value.partition("/")[0] if fact == "zone" else ""


def _swapped(stated: Sequence[_Stated], seed: int) -> list[tuple[_Stated, str]]:
    """Each with the value of another, which differs; the values in all are the same.

    Of a value that more than half have, those beyond half are left out.
    """
    by_value: dict[str, list[_Stated]] = defaultdict(list)
    for one in sorted(stated, key=lambda s: s.entity.id):
        by_value[one.value].append(one)
    values = sorted(by_value)
    random.Random(f"{seed}/{stated[0].fact}/{len(stated)}/swap").shuffle(values)
    most = max(values, key=lambda value: len(by_value[value]))
    others = sum(len(by_value[value]) for value in values if value != most)
    by_value[most] = by_value[most][:others]
    line = [one for value in values for one in by_value[value]]
    step = max((len(own) for own in by_value.values()), default=0)
    return [(one, line[(i + step) % len(line)].value) for i, one in enumerate(line)]


def _example(stated: _Stated, value: str, seed: int) -> QAExample:
    entity, fact, label, _ = stated
    rng = random.Random(f"{seed}/{entity.id}/{fact}/wording")
    text = atlas_wording.statement(entity, fact, value, rng)
    return QAExample(
        id=f"{STATEMENTS}:{fact}:{entity.id}",
        dataset=STATEMENTS,
        question=_ASKED.format(statement=text),
        answers=(label,),
        gold=(entity.id,),
        type=label,
        level=fact,
    )


def balanced(examples: Iterable[QAExample]) -> list[QAExample]:
    """Of each fact as many of each label, the first ones; their order is kept."""
    given = list(examples)
    count = Counter((e.level, e.type) for e in given)
    room = {key: min(count[key[0], label] for label in VERDICTS) for key in count}
    kept = []
    for example in given:
        key = (example.level, example.type)
        if room[key]:
            room[key] -= 1
            kept.append(example)
    return kept
